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

# Three lanes side by side: what works in memory fills one core; what starts, kills and awaits servers leaves
# room for another of its kind. The first one is the parts on their own; the last one everything that the
# others do not name, so that no folder can be forgotten.
parts=(tests/core tests/dtp tests/mutations tests/scenarios tests/simulation tests/wal
    tests/fidelity tests/participant_agent)
faults=(tests/crash_matrix tests/heuristics tests/log_loss)
others=(tests)
for path in "${parts[@]}" "${faults[@]}"; do others+=("--ignore=$path"); done

scratch=$(mktemp -d)
declare -A lanes=()
trap 'kill "${lanes[@]}" 2>/dev/null || true; rm -rf "$scratch"' EXIT
export XACOORD_TALLY=$scratch/tally
touch "$XACOORD_TALLY"
colour=no
if [[ -t 1 ]]; then colour=yes; fi

# lane NAME ARGUMENT...: pytest in the background
lane() {
    local name=$1
    shift
    pytest --color="$colour" -p no:cacheprovider "$@" >"$scratch/$name" 2>&1 &
    lanes[$name]=$!
}

# pytest's last line, "=== 12 passed in 3.45s ===", without colours and rules.
counts() { tail -n 1 "$1" | sed -E 's/\x1b\[[0-9;]*m//g; s/^=+ | =+$//g'; }

step "pytest, three lanes: others (shown as it runs), parts and faults (shown when they have ended)"
status=0
lane parts "${parts[@]}"
lane faults "${faults[@]}"
pytest --color="$colour" "${others[@]}" 2>&1 | tee "$scratch/others" || status=$?
step "others: $(counts "$scratch/others")"
for name in parts faults; do
    wait "${lanes[$name]}" || status=$?
    unset "lanes[$name]"
    cat "$scratch/$name"
    step "$name: $(counts "$scratch/$name")"
done

python -m tests.tiers "$XACOORD_TALLY" || status=$?
if ((status)); then
    step "FAILED ($checks passed)"
else
    step "passed ($checks passed)"
fi
exit "$status"
