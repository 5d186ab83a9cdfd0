"""The crash matrix by hand: `python -m tests.crash_matrix --engine mysql --runs 1000 --seed 7`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import get_args

from deploy.engines import Engine
from deploy.interruption import Interrupted, interruptible
from tests.command import positive
from tests.crash_matrix.matrix import work
from tests.crash_matrix.places import choose, choose_only
from tests.crash_matrix.run import Report


def main(arguments: list[str]) -> int:
    """Run; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash_matrix", description=__doc__)
    parser.add_argument("--engine", choices=get_args(Engine), default="mysql")
    parser.add_argument("--runs", type=positive, default=250)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="cells whose name has this in it")
    parsed = parser.parse_args(arguments)
    if parsed.only:
        cells = choose_only(parsed.runs, parsed.seed, parsed.only)
        if not cells:
            parser.error(
                f"no cell has {parsed.only!r} in its name; one is called {choose(1, parsed.seed)[0]}"
            )
    else:
        cells = choose(parsed.runs, parsed.seed)
    reports: list[Report] = []

    def tell(report: Report) -> None:
        reports.append(report)
        print(f"{'ok  ' if report.good else 'BAD '} {report.seconds:5.2f} s  {report.cell}", flush=True)
        if not report.good:
            print("\n".join(report.violations), report.error, report.tails, sep="\n", flush=True)

    started = time.monotonic()
    status = 0
    with interruptible():
        try:
            work(parsed.engine, cells, parsed.seed, tell)
        except Interrupted as interruption:
            status = interruption.status
    bad = [report for report in reports if not report.good]
    ran = f"interrupted: {len(reports)} of {len(cells)}" if status else str(len(reports))
    print(f"{ran} runs, {len(bad)} bad, {time.monotonic() - started:.0f} s")
    for report in bad:
        print(f"BAD {report.cell}")
    return status or int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
