"""Runs tests/wal/victim.py under strace and reads what strace wrote.

strace replaces a system call by a failure (`error=`) or kills at its entry (`signal=KILL`); everything else
is the real kernel. Where it may not trace (no ptrace), the run fails and says so: a test that did not run
has not passed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.wal.victim import PADS, broken

ROOT = Path(__file__).resolve().parents[2]
THREADS = ("main", "writer", "housekeeper")
_UNFINISHED = " <unfinished ...>"
_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")


@dataclass(frozen=True, slots=True)
class Call:
    """A call; two where others came in between, of which the second (`resumed`) has all the text."""

    thread: str
    name: str
    resumed: bool
    text: str

    @property
    def injected(self) -> bool:
        return self.text.endswith("(INJECTED)")


@dataclass
class Run:
    """One case after its run: exit status (negative: a signal), lsns as they were acknowledged, calls."""

    case: dict[str, Any]
    status: int
    acknowledged: list[int] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    @property
    def injected(self) -> int | None:
        """Where in `calls` the broken one is."""
        return next((at for at, call in enumerate(self.calls) if call.injected), None)

    def counts(self) -> Counter[tuple[str, str]]:
        """How often each thread made each call."""
        return Counter((call.thread, call.name) for call in self.calls if not call.resumed)


def run(directory: Path, fault: str, cases: Sequence[dict[str, Any]]) -> list[Run]:
    """Run the cases one after the other under one strace.

    Args:
        directory: for the output.
        fault: what strace does to the call that a case names: error=EIO, signal=KILL; "" for nothing.
    """
    strace = shutil.which("strace")
    if strace is None:
        pytest.fail("strace is not installed; run deploy/setup.sh --dev")
    trace, results = directory / "trace", directory / "results"
    # Stop only at the calls of interest; strace 6.1 forgets to kill when told so.
    faster = [] if "signal" in fault else ["--seccomp-bpf"]
    command = [
        strace,
        "-f",
        *faster,
        "-s",
        "8",
        "-o",
        str(trace),
        "-e",
        f"trace=?access,?faccessat,?faccessat2,{','.join(PADS)}",
    ]
    for call in PADS if fault else ():
        command += ["-e", f"inject={call}:{fault}:when={broken(call)}"]
    done = subprocess.run(
        [*command, sys.executable, str(ROOT / "tests/wal/victim.py"), str(results)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if done.returncode or not results.exists():
        pytest.fail(
            f"strace could not run the victim (is ptrace allowed here?)\n{done.stdout}\n{done.stderr}"
        )
    statuses = json.loads(results.read_text())
    runs = [Run(case, status) for case, status in zip(cases, statuses, strict=True)]
    for line in Path(f"{results}.acks").read_text().splitlines():
        number, lsn = map(int, line.split())
        runs[number].acknowledged.append(lsn)
    _read_trace(trace.read_text(errors="replace").splitlines(), runs)
    return runs


def _read_trace(lines: list[str], runs: list[Run]) -> None:
    """Give each run its calls, from the mark behind its padding on."""
    current: Run | None = None
    threads: dict[str, str] = {}
    padded: set[str] = set()
    begun: dict[str, str] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue  # signals and exits
        thread, resumed, name, text = match.groups()
        if name in ("access", "faccessat", "faccessat2"):
            mark = text.partition('"')[2].partition('"')[0]
            if mark.startswith("case "):
                current, threads, padded = runs[int(mark[5:])], {}, set()
            elif mark == "padded":
                padded.add(thread)
            elif mark.startswith("thread "):
                threads[thread] = mark[7:]
        elif current is not None and thread in padded:
            if resumed and thread not in begun:
                continue  # the end of a mark
            if resumed:
                text = begun.pop(thread) + text
            elif text.endswith(_UNFINISHED):
                begun[thread] = text.removesuffix(_UNFINISHED)
            current.calls.append(Call(threads[thread], resumed or name, resumed is not None, text))
