"""Replays: what a restart does with a log that settled transactions have gone through.

Two such logs. In `many`, as many transactions as asked for have gone through with 64 clients at a time, with
checkpoints as the coordinator orders them; in `single`, one client at a time, so that nearly every record has
a frame of its own, the costliest log to read. Both end just before a checkpoint is due: no log is longer when
a restart finds it. They are read from the page cache, as after a crash of the process alone.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from coordinator.bench.appends import COORDINATOR_ID, NUMBERS, PARTICIPANTS
from coordinator.codec import encode
from coordinator.core.coordinator import Coordinator
from coordinator.core.records import CommitRecord, EndRecord, PrepareRecord, Record
from coordinator.core.settings import Settings
from coordinator.journal import Opened, open_log, start_epoch
from dtp import Gtrid
from wal import Log, Options, SystemFiles, read

_BEGUN = 1.7e9  # seconds; what the clock says makes no difference to a restart
_NONCE = 1
_CHUNK = 10_000


class UnflushedFiles(SystemFiles):
    """For making a log to be read: nothing that it promises is at stake, so nothing waits for the disk."""

    def fdatasync(self, fd: int) -> None:
        """Not now."""

    def sync_directory(self, directory: Path) -> None:
        """Not now."""


@dataclass(frozen=True, slots=True)
class Restart:
    """What a restart with a log took.

    Attributes:
        transactions: that have gone through it; `records` and `frames` are still in it.
        read_seconds: to read it and judge it, without looking into the records.
        open_seconds: the same, and to replay the records.
        start_seconds: then to make the new epoch durable in a fresh segment.
    """

    transactions: int
    checkpoints: int
    records: int
    frames: int
    read_seconds: float
    open_seconds: float
    start_seconds: float


class Filler:
    """Writes settled transactions into a log, and checkpoints when they are due."""

    def __init__(self, directory: Path, options: Options) -> None:
        opened = _open(directory, options, UnflushedFiles())
        self._core = _start(opened)
        self._log: Log = opened.log
        self._log.tend()
        self._counter = 0
        self.checkpoints = 0

    @property
    def transactions(self) -> int:
        """How many have gone through."""
        return self._counter

    def run(self, transactions: int, clients: int, progress: Callable[[int], None]) -> None:
        """At least so many, and then more, until the next checkpoint would be due."""
        told = 0
        while True:
            due = self._log.should_rotate()
            if due and self._counter >= transactions:
                break
            if due and self._log.rotate([encode(record) for record in self._core.checkpoint()]):
                self.checkpoints += 1
            self._wave(clients)
            self._log.tend()
            if self._counter - told >= _CHUNK:
                told = self._counter
                progress(told)
        self._log.close()

    def _wave(self, clients: int) -> None:
        """As many transactions at once: a frame of PREPAREs, one of COMMITs; ENDs go with the next frame."""
        ids = []
        for _ in range(clients):
            self._counter += 1
            random_bits = self._counter * 40503 & 0xFFFF
            ids.append(Gtrid.make(COORDINATOR_ID, self._core.epoch, self._counter, random_bits))
        at = _BEGUN + self._counter * 1e-3
        self._write([PrepareRecord(id_, NUMBERS, at) for id_ in ids], flush=True)
        self._write([CommitRecord(id_, NUMBERS, at, at + 2e-3) for id_ in ids], flush=True)
        self._write([EndRecord(id_, at + 3e-3, True) for id_ in ids], flush=False)

    def _write(self, records: list[Record], *, flush: bool) -> None:
        for record in records:
            entry = encode(record)
            self._log.append(entry.kind, entry.epoch, entry.sequence, entry.payload, kick=False)
        while flush and self._log.step():
            pass


def restart(directory: Path, options: Options, filler: Filler, times: int) -> Restart:
    """Restart with the log in `directory`: read it and replay it so many times (the medians), start once."""
    read_seconds: list[float] = []
    open_seconds: list[float] = []
    for _ in range(times):
        with _timed(read_seconds):
            found = read(directory)
        records, frames = len(found.entries), sum(segment.frames for segment in found.segments)
        del found
        with _timed(open_seconds):
            opened = _open(directory, options, SystemFiles())
        opened.log.close()
    start_seconds: list[float] = []
    opened = _open(directory, options, SystemFiles())
    with _timed(start_seconds):
        _start(opened)
    opened.log.close()
    return Restart(
        filler.transactions,
        filler.checkpoints,
        records,
        frames,
        median(read_seconds),
        median(open_seconds),
        start_seconds[0],
    )


def _open(directory: Path, options: Options, files: SystemFiles) -> Opened:
    return open_log(
        directory,
        options,
        on_durable=lambda lsn: None,
        on_failure=lambda error: None,
        files=files,
        threaded=False,
    )


def _start(opened: Opened) -> Coordinator:
    nonce = opened.replayed.epoch + _NONCE
    return start_epoch(opened, Settings(COORDINATOR_ID), PARTICIPANTS, nonce, time.time())


@contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    gc.collect()
    before = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - before)
