"""Appenders: N owners of a log on one event loop, each of which waits for its record before the next.

They use the journal as the coordinator does: a COMMIT record of two participants is encoded, appended and the
writer woken; the writer's thread reports what is durable to the loop; after every input the journal is asked
whether it wants a checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from coordinator.core.records import CommitRecord
from coordinator.core.settings import Settings
from coordinator.journal import LogJournal, open_log, start_epoch
from dtp import Gtrid
from wal import LogError, Options

COORDINATOR_ID = "0001"
PARTICIPANTS = ("one", "two")
NUMBERS = (1, 2)
_WARM_UP = 0.1  # of a slot, not counted
_NONCE = 1


@dataclass(frozen=True, slots=True)
class Slot:
    """What N appenders did: the seconds that each append took, and those of all together."""

    latencies: list[float]
    seconds: float


class Started:
    """A journal that was opened and started, as the coordinator's is, on the running event loop."""

    def __init__(self, directory: Path, options: Options) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = loop.create_future()
        opened = open_log(
            directory,
            options,
            on_durable=lambda lsn: self.journal.durable_from_thread(lsn),
            on_failure=self._failed_in_thread,
        )
        self.log = opened.log
        self.journal = LogJournal(opened.log, opened.recovered.identity, loop)
        try:
            self.core = start_epoch(opened, Settings(COORDINATOR_ID), PARTICIPANTS, _NONCE, time.time())
        except BaseException:
            opened.log.close()
            raise

    def _failed_in_thread(self, error: BaseException) -> None:
        self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    async def until_spare(self) -> None:
        """Wait until the log has its second segment: making it is no part of what is measured."""
        while not self.journal.status().spare_ready and not self.failed.done():
            await asyncio.sleep(0.01)

    def rotate(self) -> None:
        """Write a checkpoint where one is due; what the driver does after each input."""
        if self.journal.should_rotate():
            self.journal.rotate(self.core.checkpoint())


class Appenders:
    """Runs appenders over one journal, slot after slot."""

    def __init__(self, started: Started) -> None:
        self._started = started
        self._journal = started.journal
        self._journal.on_durable = self._durable
        self._number = 0
        self._counter = 0
        self._waiting: deque[tuple[int, float, CommitRecord]] = deque()
        self._latencies: list[float] = []
        self._until = 0.0
        self._idle = asyncio.Event()

    async def run(self, appenders: int, seconds: float) -> Slot:
        """Let so many append for so long."""
        await self._run(appenders, seconds * _WARM_UP)
        return await self._run(appenders, seconds)

    async def _run(self, appenders: int, seconds: float) -> Slot:
        latencies: list[float] = []
        self._latencies = latencies
        self._idle.clear()
        before = time.perf_counter()
        self._until = before + seconds
        for _ in range(appenders):
            self._counter += 1
            id_ = Gtrid.make(COORDINATOR_ID, self._started.core.epoch, self._counter, 0)
            self._append(CommitRecord(id_, NUMBERS, time.time(), time.time()))
        idle = asyncio.ensure_future(self._idle.wait())
        try:
            await asyncio.wait((idle, self._started.failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()
            self._until = 0.0  # interrupted: what is still to become durable appends nothing more
        if self._started.failed.done():
            self._started.failed.result()
        return Slot(latencies, time.perf_counter() - before)

    def _append(self, record: CommitRecord) -> None:
        self._number += 1
        self._waiting.append((self._number, time.perf_counter(), record))
        self._journal.append(record, self._number, kick=True)
        self._started.rotate()

    def _durable(self, number: int) -> None:
        now = time.perf_counter()
        woken = []
        while self._waiting and self._waiting[0][0] <= number:
            _, since, record = self._waiting.popleft()
            self._latencies.append(now - since)
            woken.append(record)
        if now < self._until:
            # A log that has failed says so itself; one that was closed meanwhile was interrupted.
            with contextlib.suppress(LogError):
                for record in woken:
                    self._append(record)
        elif not self._waiting:
            self._idle.set()
