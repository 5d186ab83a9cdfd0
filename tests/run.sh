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

# Two lanes, one a core: what works in memory, and what starts servers. The second is everything that the first
# does not name, so that no folder can be forgotten.
in_memory=(tests/core tests/dtp tests/mutations tests/scenarios tests/simulation tests/wal)
elsewhere=()
for path in "${in_memory[@]}"; do elsewhere+=("--ignore=$path"); done

scratch=$(mktemp -d)
memory=
# A lane in the background does not hear Ctrl-C.
trap '[[ -z $memory ]] || kill "$memory" 2>/dev/null || true; rm -rf "$scratch"' EXIT
export XACOORD_TALLY=$scratch/tally
touch "$XACOORD_TALLY"
colour=no
if [[ -t 1 ]]; then colour=yes; fi

# pytest's last line, "=== 12 passed in 3.45s ===", without colours and rules.
counts() { tail -n 1 "$1" | sed -E 's/\x1b\[[0-9;]*m//g; s/^=+ | =+$//g'; }

step "pytest, two lanes: in memory (shown when it ends) and on servers"
pytest --color="$colour" -p no:cacheprovider "${in_memory[@]}" >"$scratch/memory" 2>&1 &
memory=$!
status=0
pytest --color="$colour" "${elsewhere[@]}" tests 2>&1 | tee "$scratch/servers" || status=$?
step "on servers: $(counts "$scratch/servers")"
wait "$memory" || status=$?
memory=
cat "$scratch/memory"
step "in memory: $(counts "$scratch/memory")"

python -m tests.tiers "$XACOORD_TALLY" || status=$?
if ((status)); then
    step "FAILED ($checks passed)"
else
    step "passed ($checks passed)"
fi
exit "$status"
