"""Hot: one process of clients that all want the same few rows: `python -m deploy.bench.contention.hot`.

It talks as `load.py` does, and its clients make the same transactions; but half of them go through the
servers the other way round, and who is rolled back begins again at once, until it has committed.

What is told besides how each attempt ended: `in_time`, transactions that committed in the part of the slot
that counts; `stuck`, those that had been under way for longer than a second at its end; and for each attempt
that was rolled back, why. The latency of a transaction is from the beginning of its first attempt. One that
has not ended with the slot counts with what it has taken so far: without it, who waits for ever would not be
seen.

`PROBE` is two clients that make deadlocks on purpose, on a row that nobody else wants, and measure how long
each lasts, whatever ends it: from the moment at which both have asked for the other's row until one of them
is rolled back. Their transactions may take longer than the lock wait time-out, so a deadlock that is not
found lasts until that comes, and counts with its time.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from deploy.bench import raw
from deploy.bench.load import Done, Job, Slot, Threads
from deploy.bench.ours import Interactive, OneShot
from deploy.bench.plan import INTERACTIVE, ONE_SHOT, RAW
from deploy.bench.servers import ROWS, Target
from deploy.bench.work import UPDATE, Client, Told, Work, change
from xacoord import RolledBack, TransactionManager

PROBE = "probe"
# Statements that still wait when raw's slot is over are killed: their clients would come home much later.
ENDED_WITH_THE_SLOT = "ended with the slot"
# What ends the deadlocks that are found.
ACROSS = "deadlock across servers"
# How long the one client of a probe waits for the other, besides the time that a transaction may take.
_PARTNER_SECONDS = 20.0
_STUCK_SECONDS = 1.0


@dataclass(frozen=True)
class HotJob(Job):
    """What a process is.

    Attributes:
        rows: that everybody wants.
        lock_wait_seconds: of the raw side's sessions.
        timeout_seconds: of the transactions of the others.
    """

    rows: int = 100
    lock_wait_seconds: int = 50
    timeout_seconds: int = 70


class HotWork(Work):
    """One row of the few in each branch. `order`: the servers' places, as this client goes through them."""

    def __init__(self, order: Sequence[int], rows: int, seed: int) -> None:
        super().__init__(len(order), read_only=False, seed=seed)
        self._order = tuple(order)
        self._rows = rows

    def parameters(self) -> list[tuple[int, ...]]:
        """See `Work`."""
        return [(change(place), 1 + int(self._draw() * self._rows)) for place in self._order]


class HotRaw(raw.Raw):
    """By hand, with a lock wait time-out of its own."""

    def __init__(self, targets: Sequence[Target], work: Work, name: str, lock_wait_seconds: int) -> None:
        self._lock_wait_seconds = lock_wait_seconds
        super().__init__(targets, work, name)

    def _connect(self, target: Target) -> Any:
        connection = super()._connect(target)
        connection.query(f"SET SESSION innodb_lock_wait_timeout = {self._lock_wait_seconds}".encode())
        return connection


_WORDS = {
    "1213": "deadlock at one server",
    "DEADLOCK": "deadlock at one server",
    "1205": "lock wait time-out",
    "LOCK_TIMEOUT": "lock wait time-out",
    "DEADLINE_PASSED": "deadline passed",
    "1317": ENDED_WITH_THE_SLOT,
}


def why(reason: str) -> str:
    """Why an attempt was rolled back, in one of a few words."""
    if ACROSS in reason:
        return ACROSS
    return _WORDS.get(re.split(r"\W", reason, maxsplit=1)[0], "other")


class Keen:
    """A client that begins again until it has committed."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def work(self, slot: Slot) -> Done:
        """One slot."""
        done, clock = Done(), time.monotonic
        time.sleep(max(0.0, slot.begin - clock()))
        while (began := clock()) < slot.end:
            told = self._until_committed(slot, done)
            ended = clock()
            if told is not Told.COMMITTED or ended >= slot.end:
                so_far = slot.end - began
                done.told["stuck"] += so_far > _STUCK_SECONDS
                done.latencies.append(round(so_far * 1e6))
            elif ended >= slot.measure:
                done.told["in_time"] += 1
                done.latencies.append(round((ended - began) * 1e6))
        return done

    def _until_committed(self, slot: Slot, done: Done) -> Told:
        while True:
            told, reason = self._client.transact()
            done.told[told.value] += 1
            if told is Told.COMMITTED:
                return told
            done.add(Done(reasons=[reason]))
            if told is Told.ROLLED_BACK:
                done.told[why(reason)] += 1
            if told is Told.UNKNOWN or time.monotonic() >= slot.end:
                return told

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


class Pair:
    """What the two clients of a probe share."""

    def __init__(self) -> None:
        self.slot = Slot(0.0, 0.0, 0.0)
        self.going = False
        self.begin = threading.Barrier(2, self._decide)
        self.cross = threading.Barrier(2)
        self._lock = threading.Lock()
        self._locked = False

    def _decide(self) -> None:
        """Both go on, or neither."""
        self.going = self._locked = time.monotonic() < self.slot.end

    def ends(self) -> bool:
        """Whether who is rolled back now has ended the deadlock; later the other one may be, too."""
        with self._lock:
            first, self._locked = self._locked, False
        return first


class Probe:
    """One of the two: it changes its own server's row first, then the other's."""

    def __init__(
        self,
        pair: Pair,
        manager: TransactionManager,
        participants: Sequence[str],
        order: Sequence[int],
        patience_seconds: float,
    ) -> None:
        self._pair = pair
        self._patience_seconds = patience_seconds
        self._manager = manager
        self._steps = [(participants[place], (change(place), ROWS)) for place in order]

    def work(self, slot: Slot) -> Done:
        """One slot; `lasted` is how long deadlocks did."""
        done, pair = Done(), self._pair
        pair.slot = slot
        time.sleep(max(0.0, slot.begin - time.monotonic()))
        while True:
            pair.begin.wait(self._patience_seconds)
            if not pair.going:
                return done
            self._meet(done)

    def _meet(self, done: Done) -> None:
        (first, own), (second, other) = self._steps
        pair = self._pair
        transaction = self._manager.transaction().begin()
        transaction.branch(first).execute(UPDATE, own)
        pair.cross.wait(self._patience_seconds)
        began = time.monotonic()
        try:
            transaction.branch(second).execute(UPDATE, other)
            transaction.commit()
            done.told[Told.COMMITTED.value] += 1
        except RolledBack as error:
            microseconds = round((time.monotonic() - began) * 1e6)
            reason = f"{error.reason}: {error.message}"
            done.told[Told.ROLLED_BACK.value] += 1
            done.told[why(reason)] += 1
            done.add(Done(reasons=[reason], lasted={why(reason): [microseconds]} if pair.ends() else {}))

    def close(self) -> None:
        """The manager is its process's."""
        self._pair.begin.abort()
        self._pair.cross.abort()


def makers(job: HotJob, managers: Sequence[TransactionManager]) -> list[Callable[[], Keen | Probe]]:
    """What makes each client of a job, in its own thread."""
    pair = Pair()
    return [partial(_make, job, job.first + number, managers, pair) for number in range(job.clients)]


def _make(job: HotJob, number: int, managers: Sequence[TransactionManager], pair: Pair) -> Keen | Probe:
    order = list(range(job.branches))
    if number % 2:
        order.reverse()
    work = HotWork(order, job.rows, seed=number)
    if job.kind == RAW:
        targets = [Target(**job.targets[place]) for place in order]
        return Keen(HotRaw(targets, work, f"{job.name}{number:04d}", job.lock_wait_seconds))
    manager = managers[number % len(managers)]
    if job.kind == PROBE:
        patience = job.timeout_seconds + _PARTNER_SECONDS
        return Probe(pair, manager, job.participants, order, patience)
    side = {ONE_SHOT: OneShot, INTERACTIVE: Interactive}[job.kind]
    return Keen(side(manager, [job.participants[place] for place in order], work))


def main() -> int:
    """Be what the first line says, until the end of standard input."""
    line = sys.stdin.readline()
    if not line:
        return 0
    job = HotJob(**json.loads(line))
    with contextlib.ExitStack() as stack:
        managers = [
            stack.enter_context(TransactionManager.connect(it, timeout=job.timeout_seconds))
            for it in job.coordinators
        ]
        threads = stack.enter_context(Threads(makers(job, managers), lambda client, slot: client.work(slot)))
        ready = threads.ready()
        _say({"failed": ready.failed} if ready.failed else {"ready": True})
        for line in sys.stdin:
            _say(threads.run(Slot(**json.loads(line))).document())
    return 0


def _say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    sys.exit(main())
