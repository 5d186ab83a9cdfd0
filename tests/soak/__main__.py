"""The soak's command line; tests/soak.sh sets everything up and calls it.

    python -m tests.soak --minutes N [--engine mysql|mariadb|both] [--seed S] [--every SECONDS] [--report DIR]

Writes soak.md and soak.svg into DIR (a new temporary directory if none is given). With `both` the engines run
side by side with half of the load each: two cores are too few for more, and it takes half of the time. Ctrl-C
ends it in order, with a report of what was done until then; a second Ctrl-C at once.

After a violation, or with --keep, DIR/soak-evidence has what is needed to look into it: logs of all
processes, ledgers, the coordinator's log directory, and every fault with its times. Exit code: 0, or 1 after
a violation.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from deploy.engines import Engine
from deploy.processes import spawn
from tests.bank.bank import client_environ
from tests.command import positive_seconds, writable
from tests.soak import plot, report
from tests.soak.facts import Facts
from tests.soak.one import FACTS, load
from tests.soak.soak import Plan

_POLL_SECONDS = 0.5
_THREADS = 4  # of each client, with one engine
EVIDENCE = "soak-evidence"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests/soak.sh", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=positive_seconds, default=5.0, help="for all of it (default: 5)")
    parser.add_argument("--engine", choices=(*get_args(Engine), "both"), default="both")
    parser.add_argument("--seed", type=int, help="which faults, in which order (default: a new one)")
    parser.add_argument("--every", type=positive_seconds, default=20.0, help="between faults (default: 20)")
    parser.add_argument("--report", type=writable, metavar="DIR", help="where soak.md and soak.svg go")
    parser.add_argument("--keep", action="store_true", help="keep logs and ledgers without a violation, too")
    return parser.parse_args(arguments)


def run(engines: Sequence[Engine], plan: Plan, work: Path) -> list[Facts]:
    """Soak the engines side by side, each in a process of its own, and print what they print."""
    children = {}
    for engine in engines:
        command = [sys.executable, "-m", "tests.soak.one", str(work / engine), engine]
        command.append(json.dumps(dataclasses.asdict(plan)))
        children[engine] = spawn(command, _output(work, engine), client_environ({}))
    read = dict.fromkeys(engines, 0)
    with interruptible(list(children.values())):
        running = True
        while running:
            running = any(child.poll() is None for child in children.values())
            for engine in engines:
                with _output(work, engine).open() as file:
                    file.seek(read[engine])
                    print(file.read(), end="", flush=True)
                    read[engine] = file.tell()
            time.sleep(_POLL_SECONDS)
    return [_facts(work, engine) for engine in engines]


def _output(work: Path, engine: Engine) -> Path:
    return work / f"{engine}.log"


def _facts(work: Path, engine: Engine) -> Facts:
    """What a process has left; one that has left nothing is a violation."""
    try:
        return load(work / engine)
    except FileNotFoundError:
        facts = Facts(engine, "", time.time(), ended=time.time())
        facts.checks.violated("harness", _output(work, engine).read_text(errors="replace")[-2000:])
        return facts


@contextlib.contextmanager
def interruptible(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends in order. The second ends at once: the kernel kills our children."""
    interrupted: list[bool] = []

    def handle(*_: object) -> None:
        if interrupted:
            os._exit(130)
        interrupted.append(True)
        print("interrupted: a last checkpoint, then the report", flush=True)
        for child in children:
            child.terminate()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_evidence(work: Path, runs: Sequence[Facts], target: Path) -> None:
    """Everything but the servers' data."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        work, target, ignore=shutil.ignore_patterns("data", "*.sock", "*.sock.lock", "*.pid", FACTS)
    )
    for facts in runs:
        document: dict[str, Any] = {
            "violations": facts.checks.violations,
            "began": facts.began,
            "faults": [dataclasses.asdict(fault) for fault in facts.faults],
            "calms": [dataclasses.asdict(calm) for calm in facts.calms],
            "samples": [dataclasses.asdict(sample) for sample in facts.samples],
            "loads": [dataclasses.asdict(load) for load in facts.loads],
            "probes": [dataclasses.asdict(probe) for probe in facts.probes],
        }
        (target / f"{facts.engine}.json").write_text(json.dumps(document, indent=1))


def main(arguments: Sequence[str]) -> int:
    """Run it; the exit code."""
    parsed = parse(arguments)
    engines: list[Engine] = list(get_args(Engine)) if parsed.engine == "both" else [parsed.engine]
    seed = random.randrange(10**6) if parsed.seed is None else parsed.seed
    plan = Plan(60 * parsed.minutes, parsed.every, seed, max(1, _THREADS // len(engines)))
    directory = parsed.report or Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"soak of {' and '.join(engines)}: {parsed.minutes:g} minutes, seed {seed}", flush=True)
    work = Path(tempfile.mkdtemp(prefix="xacoord-soak-"))
    try:
        runs = run(engines, plan, work)
        violations = sum(facts.checks.count for facts in runs)
        if violations or parsed.keep:
            keep_evidence(work, runs, directory / EVIDENCE)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    plot.draw(runs, directory / "soak.svg")
    report.write(runs, plan, directory / "soak.md", "soak.svg")
    for facts in runs:
        for name, found in facts.checks.violations.items():
            for text in found:
                print(f"VIOLATION {facts.engine} {name}: {text}", flush=True)
    print(f"{violations} violations; the report is {directory / 'soak.md'}", flush=True)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
