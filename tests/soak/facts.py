"""Facts: what a soak has written down, and nothing else. Judges, report and plot read only these.

Times are the wall clock in seconds, as in the clients' ledgers. `Checks` is the tally of the invariants:
an invariant that was never checked is not one that held.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from deploy.engines import Engine


@dataclass(frozen=True)
class Told:
    """What a client was told of one transaction."""

    at: float
    outcome: str
    seconds: float
    gtrid: str
    intent: str


@dataclass
class Fault:
    """One fault.

    `ended`: nothing is frozen or locked, the last dead process was started, dead servers answer again. What
    comes after that is ours. `up`: the coordinator has every participant up.
    """

    kind: str
    targets: str
    began: float
    ended: float = 0.0
    up: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One process at one moment of one of its lives. `age`: seconds since it was started."""

    at: float
    process: str
    pid: int
    age: float
    rss_bytes: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Probe:
    """A one-row transaction straight on a server: how fast the machine is at this moment."""

    at: float
    seconds: float


@dataclass(frozen=True)
class Load:
    """How many cores others have kept busy in the two seconds until `at`."""

    at: float
    foreign: float


@dataclass
class Calm:
    """A checkpoint of calm."""

    began: float
    ended: float = 0.0
    seconds_until_clean: float = 0.0
    log_bytes: int = 0
    log_files: int = 0
    witness_rows: int = 0
    witness_allowed: int = 0
    fence_rows: int = 0
    epoch: int = 0


_lock = threading.Lock()


class Checks:
    """Invariant -> how often it was checked, and what was wrong."""

    def __init__(self) -> None:
        self.numbers: Counter[str] = Counter()
        self.violations: dict[str, list[str]] = defaultdict(list)

    def passed(self, invariant: str, number: int = 1) -> None:
        """Count checks, whatever they found."""
        with _lock:
            self.numbers[invariant] += number

    def violated(self, invariant: str, what: str) -> None:
        """Write down a violation."""
        with _lock:
            self.violations[invariant].append(what)

    def judged(self, invariant: str, number: int, problems: Iterable[str]) -> None:
        """Both."""
        self.passed(invariant, number)
        for problem in problems:
            self.violated(invariant, problem)

    @property
    def count(self) -> int:
        """All violations."""
        with _lock:
            return sum(len(found) for found in self.violations.values())


@dataclass
class Facts:
    """Everything about one engine's soak."""

    engine: Engine
    version: str
    began: float
    normal_until: float = 0.0
    ended: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    calms: list[Calm] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    cores: int = os.cpu_count() or 1
    loads: list[Load] = field(default_factory=list)
    log_bytes: list[int] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    asked: int = 0
    found_in_the_end: Counter[str] = field(default_factory=Counter)
    checks: Checks = field(default_factory=Checks)


def read_ledgers(paths: Iterable[Path]) -> tuple[int, list[Told]]:
    """(transfers asked for, what was told, in order of time) of some ledgers.

    A last line without its end is one that a client was writing when it was killed.
    """
    asked = 0
    told = []
    for path in paths:
        intents: dict[int, str] = {}
        for line in path.read_bytes().split(b"\n")[:-1]:
            entry = json.loads(line)
            if entry["event"] == "asking":
                asked += 1
                intents[entry["id"]] = entry["intent"]
            elif entry["event"] == "told":
                intent = intents.get(entry["id"], "none")
                told.append(Told(entry["at"], entry["outcome"], entry["seconds"], entry["gtrid"], intent))
    told.sort(key=lambda item: item.at)
    return asked, told
