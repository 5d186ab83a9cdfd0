"""Journal: the port through which the coordinator remembers, and its embedded form, a local log.

A journal is opened once a process: it says what was known (`Replayed`), gets the live state of the
new epoch, and from then on takes records. Nothing outside this file knows that it is a file: another
journal (a replicated one) offers the same methods.

Start (R3 of docs/wal-format.md): read -> add the new epoch and new participants -> write all of it
to a fresh segment, flushed, before anything is acted on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coordinator.codec import coordinator_id_of, decode_all, encode
from coordinator.core.coordinator import Coordinator
from coordinator.core.records import Record
from coordinator.core.replay import Replayed, replay
from coordinator.core.settings import Settings
from coordinator.settled import unsettled
from dtp.xid import MAX_EPOCH
from wal import Entries, Log, LogStatus, Options, Recovered
from wal.files import Files

# Room for what a transaction may still write: PREPARE, COMMIT and END, each in a frame of its own.
# The payload bound: 64 participants, an idempotency key of 128 bytes and its fingerprint of 32.
_RECORDS_PER_TRANSACTION = 3
_PAYLOAD_BOUND = 640


class JournalError(Exception):
    """The journal cannot be used; the message says what to do."""


class Journal(Protocol):
    """What the driver needs of a journal."""

    def append(self, record: Record, number: int | None, *, kick: bool) -> None:
        """Queue a record; `number` is given back through on_durable when it is on disk."""

    def reserve(self) -> bool:
        """Set aside room for one transaction's records; False where there is none."""

    def release(self) -> None:
        """Give one transaction's room back."""

    def should_rotate(self) -> bool:
        """Whether `rotate` is due."""

    def rotate(self, checkpoint: Iterable[Record]) -> None:
        """Replace everything so far by the live state."""

    def status(self) -> LogStatus:
        """For people."""

    def close(self) -> None:
        """Flush and end."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A journal that has been read but not started."""

    log: Log
    recovered: Recovered
    replayed: Replayed


class LogJournal:
    """The journal in a local write-ahead log."""

    def __init__(self, log: Log, identity: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self._log = log
        self._loop = loop
        self._numbers: deque[tuple[int, int]] = deque()
        self._size = _RECORDS_PER_TRANSACTION * log.cost(_PAYLOAD_BOUND)
        self.identity = identity
        self.on_durable: Callable[[int], None] = lambda number: None

    def append(self, record: Record, number: int | None, *, kick: bool) -> None:
        """Queue a record; `number` is given back through on_durable when it is on disk."""
        entry = encode(record)
        lsn = self._log.append(entry.kind, entry.epoch, entry.sequence, entry.payload, kick=kick)
        if number is not None:
            self._numbers.append((lsn, number))

    def durable_from_thread(self, lsn: int) -> None:
        """The log's callback, from its writer thread."""
        self._loop.call_soon_threadsafe(self._durable, lsn)

    def _durable(self, lsn: int) -> None:
        number = 0
        while self._numbers and self._numbers[0][0] <= lsn:
            number = self._numbers.popleft()[1]
        if number:
            self.on_durable(number)

    def reserve(self) -> bool:
        """Set aside room for one transaction's records; False where there is none."""
        return self._log.reserve(self._size)

    def release(self) -> None:
        """Give one transaction's room back."""
        self._log.release(self._size)

    def should_rotate(self) -> bool:
        """Whether `rotate` is due."""
        return self._log.should_rotate()

    def rotate(self, checkpoint: Iterable[Record]) -> None:
        """Replace everything so far by the live state."""
        self._log.rotate([encode(record) for record in checkpoint])

    def status(self) -> LogStatus:
        """For people."""
        return self._log.status()

    def close(self) -> None:
        """Flush and end."""
        self._log.close()


FlushObserver = Callable[[float, int, int], None]


def open_log(
    directory: Path,
    options: Options,
    *,
    on_durable: Callable[[int], None],
    on_failure: Callable[[BaseException], None],
    flush_observer: FlushObserver | None = None,
    files: Files | None = None,
    threaded: bool = True,
) -> Opened:
    """Take the log's lock and read it.

    Args:
        directory, options, on_durable, on_failure, flush_observer, files, threaded: those of wal.Log.open;
            the simulation has files of its own and no threads.

    Raises:
        wal.LogError: it is locked, corrupt, unsafe or too new; LogContradiction, UnknownRecord.
    """
    log, recovered = Log.open(
        directory,
        options,
        on_durable=on_durable,
        on_failure=on_failure,
        flush_observer=flush_observer,
        files=files,
        threaded=threaded,
    )
    try:
        return Opened(log, recovered, replay_entries(recovered.entries))
    except BaseException:
        log.close()
        raise


def replay_entries(entries: Entries) -> Replayed:
    """Fold a log's entries.

    Raises:
        LogContradiction, UnknownRecord.
    """
    kept, marks = unsettled(entries)
    return replay(decode_all(coordinator_id_of(kept), kept), marks)


def start_epoch(
    opened: Opened, settings: Settings, participants: Iterable[str], nonce: int, now: float
) -> Coordinator:
    """Begin a new epoch: number new participants, make the live state durable, return the core.

    Raises:
        JournalError: the log belongs to another coordinator id. wal.LogError, OSError: not written.
    """
    replayed = opened.replayed
    if replayed.coordinator_id not in ("", settings.coordinator_id):
        raise JournalError(
            f"the log belongs to coordinator {replayed.coordinator_id!r}, the configuration says "
            f"{settings.coordinator_id!r}: set [coordinator] id or data_dir right"
        )
    names = list(participants)
    epoch = max(replayed.epoch, opened.recovered.epoch) + 1
    if epoch > MAX_EPOCH:
        raise JournalError("this coordinator id has used up its epochs; give it a new [coordinator] id")
    for name in names:
        number = max(replayed.numbers.values(), default=0) + 1
        replayed.numbers.setdefault(name, number)
    replayed.nonces[epoch] = nonce
    core = Coordinator(settings, epoch, replayed, names, now)
    opened.log.start(epoch, [encode(record) for record in core.checkpoint()])
    return core
