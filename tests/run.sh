#!/usr/bin/env bash
# Installs what the tests need (deploy/setup.sh) and runs them.
#
#   tests/run.sh                  all checks, then all tests
#   tests/run.sh ARGUMENT...      pytest only, with these arguments
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash deploy/setup.sh --engines mysql,mariadb --dev
PATH=$PWD/.venv/bin:$PATH

step() { printf '[%3d s] %s\n' "$SECONDS" "$*"; }

if (($#)); then
    exec pytest "$@"
fi

step "ruff check" && ruff check --quiet
step "ruff format" && ruff format --check --quiet

ours=()
for path in dtp shell wal coordinator participant_agent xacoord deploy; do
    if [[ -e $path ]]; then ours+=("$path"); fi
done
step "mypy --strict ${ours[*]}"
mypy --strict --no-error-summary "${ours[@]}"

checks="ruff, mypy"
if [[ -d proto ]]; then
    step "buf lint"
    buf lint proto
    checks+=", buf"
fi

step "pytest"
output=$(mktemp)
trap 'rm -f "$output"' EXIT
colour=no
if [[ -t 1 ]]; then colour=yes; fi
status=0
pytest --color="$colour" 2>&1 | tee "$output" || status=$?
# pytest's last line, "=== 12 passed in 3.45s ===", without colours and rules.
counts=$(tail -n 1 "$output" | sed -E 's/\x1b\[[0-9;]*m//g; s/^=+ | =+$//g')
if ((status)); then
    step "FAILED: $counts ($checks passed)"
else
    step "passed: $counts ($checks passed)"
fi
exit "$status"
