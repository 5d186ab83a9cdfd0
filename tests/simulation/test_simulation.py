"""The product keeps its promises over thousands of seeds, and the same seed is the same run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiers
from tests.simulation import run
from tests.simulation.__main__ import run_many
from tests.simulation.plan import FAULTS

SEEDS = range(3_000)
JOBS = 2
SAME = (3, 7, 42)

_KEPT = Path(__file__).with_name("seeds.txt")


def kept() -> Iterator[int]:
    for line in _KEPT.read_text().splitlines():
        if line and not line.startswith("#"):
            yield int(line.split()[0])


@pytest.mark.parametrize("seed", list(kept()))
def test_a_seed_that_once_found_something(seed: int) -> None:
    assert run(seed).violations == []


def test_many_seeds() -> None:
    happened: Counter[str] = Counter()
    broken = []
    for result in run_many(SEEDS, JOBS):
        happened += result.counters
        tiers.count("simulation: seeds")
        if result.violations:
            broken.append((result.seed, result.violations))
    assert not broken, "\n".join(f"python -m tests.simulation --trace --seed {s}: {v}" for s, v in broken)
    never = [kind for kind in FAULTS if not happened[f"fault: {kind}"]]
    assert not never, f"these faults never happened: {never}"
    # A run in which nothing commits, nothing is rolled back or nobody is left in doubt proves little.
    answers = ("told COMMITTED", "told ROLLED_BACK", "told UNKNOWN")
    for what in (*answers, "alert HEURISTIC", "alert ORPHAN", "rotations", "deadlocks across servers"):
        assert happened[what] > 10, (what, happened[what])
    # After these nobody knows an outcome until it has been asked for.
    for verb, least in (("commit", 300), ("commit_one_phase", 40), ("prepare", 100), ("rollback", 100)):
        assert happened[f"answer lost: {verb}"] > least, (verb, happened[f"answer lost: {verb}"])


def _digests_elsewhere(hash_seed: str) -> list[str]:
    """The same runs in another process, whose sets and dictionaries of strings have another order."""
    program = f"from tests.simulation import run\nfor seed in {SAME}: print(run(seed, trace=True).digest)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_the_same_seed_is_the_same_run() -> None:
    here = [run(seed, trace=True).digest for seed in SAME]
    assert len(set(here)) == len(SAME)
    assert [run(seed, trace=True).digest for seed in SAME] == here
    assert _digests_elsewhere("1") == here
    assert _digests_elsewhere("2") == here
