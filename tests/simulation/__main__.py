"""`python -m tests.simulation`: one seed with its trace, or many with what happened in them."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import click

from tests.simulation.runner import Result, run

_CHUNK = 25


def run_some(seeds: list[int]) -> list[Result]:
    """Several seeds in one go."""
    return [run(seed) for seed in seeds]


def run_many(seeds: range, jobs: int) -> Iterator[Result]:
    """Many seeds in processes, in no order."""
    chunks = [list(seeds[i : i + _CHUNK]) for i in range(0, len(seeds), _CHUNK)]
    if jobs == 1:
        for chunk in chunks:
            yield from run_some(chunk)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for results in pool.map(run_some, chunks):
            yield from results


def show_one(seed: int, trace: bool) -> int:
    """Run one seed; 1 where a promise was broken."""
    result = run(seed, keep=trace)
    for line in result.lines:
        print(line)
    for violation in result.violations:
        print(f"seed {seed}: {violation}")
    if not result.violations:
        print(f"seed {seed}: nothing to object to; {dict(sorted(result.counters.items()))}")
    return int(bool(result.violations))


def show_many(first: int, last: int, jobs: int) -> int:
    """Run many seeds and say what happened; 1 where a promise was broken."""
    counters: Counter[str] = Counter()
    broken, done, started = 0, 0, time.monotonic()
    for result in run_many(range(first, last + 1), jobs):
        done += 1
        counters += result.counters
        broken += bool(result.violations)
        for violation in result.violations:
            print(f"seed {result.seed}: {violation}", flush=True)
        if done % 500 == 0:
            rate = done / (time.monotonic() - started)
            print(f"{done:,} seeds, {rate:.1f}/s, {broken} broken", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    for name, count in sorted(counters.items()):
        print(f"{count:>12,}  {name}")
    print(f"{done:,} seeds in {seconds:.0f} s, {done / seconds:.1f}/s, {broken} with violations")
    return int(bool(broken))


@click.command()
@click.option("--seed", type=int, help="Run this one.")
@click.option("--trace", is_flag=True, help="With --seed: print everything that happens.")
@click.option("--seeds", help="A..B: run these.")
@click.option("--jobs", default=2, help="Processes.")
def main(seed: int | None, trace: bool, seeds: str | None, jobs: int) -> None:
    """Run the simulation."""
    if seed is not None:
        sys.exit(show_one(seed, trace))
    if seeds is None:
        raise click.UsageError("give --seed N or --seeds A..B")
    first, _, last = seeds.partition("..")
    sys.exit(show_many(int(first), int(last), jobs))


if __name__ == "__main__":
    main()
