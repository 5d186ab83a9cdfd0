#!/usr/bin/env bash
# Installs what is needed (deploy/setup.sh) and soaks the system: real processes, a fault every few seconds, the
# invariants judged all along. The report is DIR/soak.md with DIR/soak.svg.
#
#   tests/soak.sh [--minutes N] [--engine mysql|mariadb|both] [--seed S] [--every SECONDS] [--report DIR] [--keep]
#
#   --minutes N       for all of it (default: 5)
#   --engine ENGINE   mysql, mariadb, or both side by side (default: both)
#   --seed S          which faults, in which order (default: a new one)
#   --every SECONDS   from fault to fault on average (default: 20)
#   --report DIR      where soak.md and soak.svg go (default: a new temporary directory)
#   --keep            keep logs and ledgers without a violation, too
#
# Ctrl-C ends it in order, with a report. Exit code 1 after a violation; then DIR/soak-evidence has logs and ledgers.
# `tests/soak.sh --minutes 30 --report docs` makes the report that the repository has.

set -euo pipefail

usage() { sed -nE '2,/^$/s/^# ?//p' "${BASH_SOURCE[0]}"; }
refuse() {
    echo "tests/soak.sh: $1 (--help says more)" >&2
    exit 2
}

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
engines=both
arguments=("$@")
while (($#)); do
    case $1 in
        -h | --help) usage && exit ;;
        --keep) ;;
        --engine=*) engines=${1#*=} ;;
        --minutes=* | --seed=* | --every=* | --report=*) ;;
        --engine | --minutes | --seed | --every | --report)
            [[ -n ${2:-} && $2 != --* ]] || refuse "$1 needs a value"
            if [[ $1 == --engine ]]; then engines=$2; fi
            shift
            ;;
        *) refuse "unknown argument $1" ;;
    esac
    shift
done
case $engines in
    both) engines=mysql,mariadb ;;
    mysql | mariadb) ;;
    *) refuse "--engine '$engines': it must be mysql, mariadb or both" ;;
esac
bash "$repository/deploy/setup.sh" --engines "$engines" --dev
PYTHONPATH=$repository exec "$repository/.venv/bin/python" -m tests.soak "${arguments[@]}"
