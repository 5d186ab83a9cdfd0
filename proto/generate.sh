#!/usr/bin/env bash
# Generates the committed protobuf modules from proto/ into OUT (default: the repository).
# Needs the tools of requirements/codegen.txt: the oldest supported ones, so that the modules work with
# every later protobuf and grpcio. Usage: proto/generate.sh PYTHON [OUT]
set -euo pipefail
python=$1
here=$(cd "$(dirname "$0")" && pwd)
out=${2:-$(dirname "$here")}
cd "$here"
# shellcheck disable=SC2046
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -I. \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
    $(find . -name '*.proto' | sort)
for package in coordinator participant_agent; do
    : > "$out/$package/v1/__init__.py"
done
