"""Tiers: how much of each kind of proof a full run must have done, and how much it did.

A test calls `count("failed system calls")` once a case has been run and judged. `python -m tests.tiers FILE`
prints the table and fails where a tier did less than its floor: a loop that has quietly become empty is red.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

# What a full run does at least.
FLOORS = {
    "simulation: seeds": 3_000,
    "fidelity: sequences, mysql": 200,
    "fidelity: sequences, mariadb": 200,
    "log: bit flips": 262_000,
    "log: power-cut states": 50_000,
    "log: failed system calls": 1_000,
    "crash matrix: runs": 280,
    "network: cases": 60,
    "mutations caught": 23,
}

_FILE = "XACOORD_TALLY"


def count(tier: str, number: int = 1) -> None:
    """Add to what a tier has done. Without XACOORD_TALLY (a run by hand) nothing is kept."""
    assert tier in FLOORS, f"{tier!r} has no floor in tests/tiers.py"
    path = os.environ.get(_FILE)
    if path:
        with Path(path).open("a") as file:  # one short line: appended in one write
            file.write(json.dumps([tier, number]) + "\n")


def read(path: Path) -> Counter[str]:
    """What was counted."""
    found: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        tier, number = json.loads(line)
        found[tier] += number
    return found


def main(path: Path) -> int:
    """Print the table; 1 where a tier did too little."""
    found = read(path)
    print(f"{'tier':<36}{'ran':>10}{'at least':>10}")
    for tier, floor in FLOORS.items():
        mark = "" if found[tier] >= floor else "   TOO FEW"
        print(f"{tier:<36}{found[tier]:>10,}{floor:>10,}{mark}")
    return int(any(found[tier] < floor for tier, floor in FLOORS.items()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
