"""Load: one process of clients. `python -m deploy.bench.load`, started by `crew.py`; the same for every side.

One JSON document a line. The first says what to be (`Job`); the answer is {"ready": true}. Every further line
is a slot, {"begin", "measure", "end"} on the machine's monotonic clock: clients work from `begin` to `end`,
and what ends from `measure` on counts. The answer has the latencies of what counts, and how everything ended.
The end of standard input is the end. What cannot go on is answered with {"failed": why}.

Clients are threads. Connections are made once and kept, so that a slot costs no start.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from deploy.bench.plan import INTERACTIVE, ONE_SHOT, RAW, RAW_FAST
from deploy.bench.servers import Target
from deploy.bench.work import Client, Told, Work
from xacoord import TransactionManager

_REASONS_KEPT = 3


@dataclass(frozen=True)
class Job:
    """What a process is.

    Attributes:
        kind: the side's.
        clients: threads.
        first: the number of the first client among all of the side's.
        read_only: what they do.
        name: 4 characters of [0-9a-z], the run's and the side's own: in the XIDs of raw sides.
        targets: the servers, one a branch; for raw sides.
        participants: the same for the others.
        coordinators: their addresses; clients share them in turn.
    """

    kind: str
    clients: int
    first: int
    branches: int
    read_only: bool
    name: str
    targets: list[dict[str, Any]] = field(default_factory=list)
    participants: list[str] = field(default_factory=list)
    coordinators: list[str] = field(default_factory=list)

    def line(self) -> str:
        """As the process reads it."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Slot:
    """From when to when, and from when on it counts; seconds of the monotonic clock."""

    begin: float
    measure: float
    end: float


@dataclass
class Done:
    """What was done in a slot: latencies of what counts, in microseconds; how everything ended, and why.

    Attributes:
        lasted: microseconds of what was measured besides, by what ended it (contention's deadlocks).
    """

    latencies: list[int] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)
    failed: str = ""
    lasted: dict[str, list[int]] = field(default_factory=dict)

    def add(self, other: Done) -> None:
        """Both together."""
        self.latencies += other.latencies
        self.told += other.told
        self.reasons = list(dict.fromkeys(self.reasons + other.reasons))[:_REASONS_KEPT]
        self.failed = self.failed or other.failed
        for end, durations in other.lasted.items():
            self.lasted.setdefault(end, []).extend(durations)

    def document(self) -> dict[str, Any]:
        """As JSON; the fields are its keys."""
        return {**vars(self), "told": dict(self.told)}


def work_through(client: Client, slot: Slot) -> Done:
    """One client in one slot."""
    done = Done()
    clock = time.monotonic
    time.sleep(max(0.0, slot.begin - clock()))
    began = clock()
    while began < slot.end:
        told, reason = client.transact()
        ended = clock()
        done.told[told.value] += 1
        if told is not Told.COMMITTED:
            done.add(Done(reasons=[reason]))
        elif slot.measure <= ended < slot.end:
            done.latencies.append(round((ended - began) * 1e6))
        began = ended
    return done


class Threads:
    """The clients of this process, each with a thread of its own.

    Args:
        makers: make a client each; it has `close`.
        work: what a client does in a slot.
    """

    def __init__(
        self, makers: Sequence[Callable[[], Any]], work: Callable[[Any, Slot], Done] = work_through
    ) -> None:
        self._work = work
        self._slots: list[queue.SimpleQueue[Slot | None]] = [queue.SimpleQueue() for _ in makers]
        self._answers: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._live, args=pair) for pair in zip(makers, self._slots, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def ready(self) -> Done:
        """Wait until every client is connected."""
        return self._collect()

    def run(self, slot: Slot) -> Done:
        """One slot, all clients."""
        for slots in self._slots:
            slots.put(slot)
        return self._collect()

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        """Let them end, and wait for it."""
        for slots in self._slots:
            slots.put(None)
        for thread in self._threads:
            thread.join()

    def _collect(self) -> Done:
        total = Done()
        for _ in self._threads:
            total.add(self._answers.get())
        return total

    def _live(self, make: Callable[[], Any], slots: queue.SimpleQueue[Slot | None]) -> None:
        client: Any = None
        try:
            client = make()
            self._answers.put(Done())
            while (slot := slots.get()) is not None:
                self._answers.put(self._work(client, slot))
        except Exception as error:
            self._answers.put(Done(failed=f"{type(error).__name__}: {error}"))
            while slots.get() is not None:
                self._answers.put(Done(failed="this client has ended before"))
        finally:
            if client is not None:
                client.close()


def makers(job: Job, managers: Sequence[TransactionManager]) -> list[Callable[[], Client]]:
    """What makes each client of a job, in its own thread."""
    return [partial(_make, job, job.first + number, managers) for number in range(job.clients)]


def _make(job: Job, number: int, managers: Sequence[TransactionManager]) -> Client:
    work = Work(job.branches, job.read_only, seed=number)
    if job.kind in (RAW, RAW_FAST):
        from deploy.bench.raw import Raw, RawFast

        targets = [Target(**target) for target in job.targets]
        return (Raw if job.kind == RAW else RawFast)(targets, work, f"{job.name}{number:04d}")
    from deploy.bench.ours import Interactive, OneShot

    side = {ONE_SHOT: OneShot, INTERACTIVE: Interactive}[job.kind]
    return side(managers[number % len(managers)], job.participants, work)


def main() -> int:
    """Be what the first line says, until the end of standard input."""
    line = sys.stdin.readline()
    if not line:
        return 0
    job = Job(**json.loads(line))
    with contextlib.ExitStack() as stack:
        managers = [stack.enter_context(TransactionManager.connect(it)) for it in job.coordinators]
        threads = stack.enter_context(Threads(makers(job, managers)))
        ready = threads.ready()
        _say({"failed": ready.failed} if ready.failed else {"ready": True})
        for line in sys.stdin:
            _say(threads.run(Slot(**json.loads(line))).document())
    return 0


def _say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    sys.exit(main())
