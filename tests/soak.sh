#!/usr/bin/env bash
# Installs what is needed (deploy/setup.sh) and soaks the system: real processes, a fault every few seconds, the
# invariants judged all along. The report is DIR/soak.md with DIR/soak.svg.
#
#   tests/soak.sh [--minutes N] [--engine mysql|mariadb|both] [--seed S] [--every SECONDS] [--report DIR] [--keep]
#
# Ctrl-C ends it in order, with a report. Exit code 1 after a violation; then DIR/soak-evidence has logs and ledgers.
# `tests/soak.sh --minutes 30 --report docs` makes the report that the repository has.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
engines=mysql,mariadb
arguments=("$@")
while (($#)); do
    case $1 in
        --engine) engines=${2:-} && shift ;;
        --engine=*) engines=${1#*=} ;;
    esac
    shift
done
if [[ $engines == both ]]; then engines=mysql,mariadb; fi
bash "$repository/deploy/setup.sh" --engines "$engines" --dev
PYTHONPATH=$repository exec "$repository/.venv/bin/python" -m tests.soak "${arguments[@]}"
