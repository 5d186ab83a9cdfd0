"""`python -m tests.simulation`: one seed with its trace, or many with what happened in them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children

import click

from deploy.interruption import Interrupted, interruptible
from tests.command import span
from tests.simulation.runner import Result, run

_CHUNK = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WORKS = (
    "A work is one change that a client wants, in one transaction or, repeated with its key, in several.\n"
    "Done: its rows were found on the servers at the end, whatever the client was told."
)
# How a counter begins -> the line of the summary.
_GROUPS = {"fault: ": "faults", "told ": "told", "xa ": "XA", "alert ": "alerts"}


def run_some(seeds: list[int]) -> list[Result]:
    """Several seeds in one go."""
    return [run(seed) for seed in seeds]


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def run_many(seeds: range, jobs: int) -> Generator[Result, None, None]:
    """Many seeds in processes, in order."""
    if jobs == 1:
        for seed in seeds:
            yield run(seed)
        return
    chunks = [list(seeds[i : i + _CHUNK]) for i in range(0, len(seeds), _CHUNK)]
    others = set(active_children())
    pool = ProcessPoolExecutor(jobs, initializer=_leave_signals_to_the_parent)
    try:
        # What is raised while a process is forked is lost: Python's own hooks around a fork swallow it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            found = pool.map(run_some, chunks)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        for results in found:
            yield from results
    except BaseException:  # interrupted: nobody wants the rest
        for child in set(active_children()) - others:
            child.kill()
        pool.shutdown(wait=False, cancel_futures=True)  # it may be half started
        raise
    pool.shutdown()


def summary(result: Result) -> str:
    """One run's counters, for people."""
    counters = result.counters
    verdict = f"{len(result.violations)} violations" if result.violations else "no violation"
    lines = [f"seed {result.seed}: {verdict}, {counters['virtual seconds']} simulated seconds"]
    works = f"{counters['works']}: {counters['works done']} done, {counters['works not done']} not done"
    rows = {"works": [works]}
    for name, count in sorted(counters.items()):
        if name.startswith("works") or name == "virtual seconds":
            continue
        start = next((start for start in _GROUPS if name.startswith(start)), "")
        rows.setdefault(_GROUPS.get(start, "others"), []).append(f"{name.removeprefix(start)} {count}")
    lines += [f"  {title:<7} {', '.join(found)}" for title, found in rows.items()]
    return "\n".join([*lines, _WORKS])


def show_one(seed: int, trace: bool) -> int:
    """Run one seed; 1 where a promise was broken."""
    result = run(seed, keep=trace)
    for line in result.lines:
        print(line)
    for violation in result.violations:
        print(f"seed {seed}: {violation}")
    print(summary(result))
    return int(bool(result.violations))


def show_many(seeds: range, jobs: int) -> int:
    """Run many seeds and say what happened; 1 where a promise was broken."""
    counters: Counter[str] = Counter()
    broken, done, started = 0, 0, time.monotonic()
    status = 0
    try:
        with contextlib.closing(run_many(seeds, jobs)) as results:
            for result in results:
                done += 1
                counters += result.counters
                broken += bool(result.violations)
                for violation in result.violations:
                    print(f"seed {result.seed}: {violation}", flush=True)
                if done % 500 == 0:
                    rate = done / (time.monotonic() - started)
                    print(f"{done:,} seeds, {rate:.1f}/s, {broken} broken", file=sys.stderr, flush=True)
    except Interrupted as interruption:
        status = interruption.status
    seconds = time.monotonic() - started
    for name, count in sorted(counters.items()):
        print(f"{count:>12,}  {name}")
    if counters:
        print(_WORKS)
    ran = f"interrupted: {done:,} of {len(seeds):,}" if status else f"{done:,}"
    print(f"{ran} seeds in {seconds:.0f} s, {done / seconds:.1f}/s, {broken} with violations")
    return status or int(bool(broken))


def _span(context: click.Context, parameter: click.Parameter, text: str | None) -> range | None:
    try:
        return None if text is None else span(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option("--seed", type=click.IntRange(min=0), help="Run this one.")
@click.option("--trace", is_flag=True, help="With --seed: print everything that happens.")
@click.option("--seeds", metavar="A..B", callback=_span, help="Run these, B among them.")
@click.option("--jobs", type=click.IntRange(min=1), help="With --seeds: processes (default: 2).")
def main(seed: int | None, trace: bool, seeds: range | None, jobs: int | None) -> None:
    """Run the simulation."""
    if (seed is None) == (seeds is None):
        raise click.UsageError("give one of --seed N and --seeds A..B")
    if seeds is not None and trace:
        raise click.UsageError("--trace goes with --seed, not with --seeds")
    if seed is not None and jobs is not None:
        raise click.UsageError("--jobs goes with --seeds, not with --seed")
    with interruptible():
        try:
            status = show_one(seed, trace) if seed is not None else show_many(seeds or range(0), jobs or 2)
        except Interrupted as interruption:
            print("interrupted", file=sys.stderr)
            status = interruption.status
    sys.stdout.flush()
    sys.stderr.flush()
    if status > 1:  # interrupted: what is left of half a run is not worth unwinding
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
