"""The log as its owner sees it: opened, started, appended to, rotated, closed.

Life of a log, with what a crash at each point leaves:

1. `open` takes the lock, reads and judges everything, and changes nothing.
2. `start` writes the live state to a fresh segment of a new epoch (R3) and makes it durable *before*
   anyone acts on what was read. Cut before its rename: the next open reads the same as this one.
   Cut after: it reads the fresh segment, and older ones are leftovers.
3. The watermark, then the threads; older segments are retired in the background.
4. `append` until `close`, which flushes what is queued and ends the log with a CLOSE frame.

One thread, the owner, calls everything here. The writer thread calls `on_durable`; the writer or
the housekeeper calls `on_failure`, once, after which the log takes nothing more (R2).
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from wal.directory import take
from wal.entry import Entry
from wal.errors import LogError, LogFailed, LogFull
from wal.files import Files, SystemFiles
from wal.format import ENTRY, MAX_PAYLOAD
from wal.housekeeper import Housekeeper, WatermarkFile
from wal.options import Options
from wal.recovered import Recovered
from wal.room import Room
from wal.segment import checkpoint_bound
from wal.start import begin_anew
from wal.status import LogStatus
from wal.survey import Survey, survey
from wal.writer import FlushObserver, Rotation, Writer, record_cost


class Log:
    """A write-ahead log. Made by `Log.open`."""

    def __init__(
        self,
        files: Files,
        directory: Path,
        options: Options,
        lock: int,
        found: Survey,
        identity: bytes,
        *,
        threaded: bool,
    ) -> None:
        self._files = files
        self._directory = directory
        self._options = options
        self._lock_fd: int | None = lock
        self._found = found
        self._identity = identity
        self._threaded = threaded
        self._on_durable: Callable[[int], None] = lambda lsn: None
        self._on_failure: Callable[[BaseException], None] = lambda error: None
        self._observer: FlushObserver | None = None
        self._next_lsn = found.next_lsn
        self._epoch = 0
        self._failure: BaseException | None = None
        self._failing = threading.Lock()
        self._closed = False
        self._refusing = False
        self._max_payload = min(MAX_PAYLOAD, options.segment_bytes // 4 - 2 * options.alignment)
        self._room: Room | None = None
        self._writer: Writer | None = None
        self._housekeeper: Housekeeper | None = None
        self._mark: WatermarkFile | None = None
        self._threads: list[threading.Thread] = []

    @classmethod
    def open(
        cls,
        directory: Path,
        options: Options = Options(),  # noqa: B008 (immutable)
        *,
        on_durable: Callable[[int], None],
        on_failure: Callable[[BaseException], None],
        flush_observer: FlushObserver | None = None,
        create: bool = True,
        files: Files | None = None,
        threaded: bool = True,
    ) -> tuple[Log, Recovered]:
        """Takes the lock and reads the log. Existing segments are not changed.

        Arguments:
            directory: where the log is; made, with mode 0700, if it is absent and `create` is set.
            on_durable: called from the writer thread with an lsn: everything up to it is durable.
            on_failure: called once, from a thread of the log, when writing has failed.
            flush_observer: called from the writer thread after each flush with its duration in
                seconds, the number of records and of bytes written.
            files: the operating system; a simulated one in tests.
            threaded: False leaves it to the caller to call `step` and `tend`.

        Raises:
            LogLocked, LogUnsafe, LogMissing, LogCorrupt, LogTooNew; OSError when reading fails.
        """
        files = files if files is not None else SystemFiles()
        lock = take(files, directory, create=create, allow_unsafe_filesystem=options.allow_unsafe_filesystem)
        try:
            found = survey(files, directory)
            recovered = found.recovered()
        except BaseException:
            files.close(lock)
            raise
        if recovered.created:
            recovered = replace(recovered, identity=files.entropy(16))
        log = cls(files, directory, options, lock, found, recovered.identity, threaded=threaded)
        log._on_durable = on_durable
        log._on_failure = on_failure
        log._observer = flush_observer
        return log, recovered

    def start(self, epoch: int, checkpoint: Sequence[Entry]) -> int:
        """Makes the live state durable in a fresh segment and begins to take records (R3).

        Arguments:
            epoch: higher than the one recovered; at least 1.
            checkpoint: the live state: what, together with the records to come, a later reader needs.

        Returns:
            The last lsn that was read and is now surely durable.

        Raises:
            LogFull: no room for the segment. OSError: writing failed. In both cases the log is as it was.
        """
        if self._writer is not None or self._lock_fd is None:
            raise LogError("the log was started before, or is closed; open it again")
        if not self._found.epoch < epoch < 1 << 32:
            raise ValueError(
                f"epoch {epoch} must be above {self._found.epoch}, the highest so far, and below 2**32"
            )
        checkpoint = tuple(checkpoint)
        size = checkpoint_bound(checkpoint, self._options.alignment)
        segment = begin_anew(self._files, self._options, self._found, self._identity, epoch, checkpoint)
        self._epoch = epoch
        last_mark = self._found.watermark
        if last_mark is not None and last_mark.identity != self._identity:
            last_mark = None
        room = Room(self._options, segment, size)
        writer = Writer(self._files, self._options, room, segment, self._on_durable, self._observer)
        self._mark = WatermarkFile(self._files, self._directory, self._identity, last_mark)
        housekeeper = Housekeeper(self._files, self._directory, self._options, room, writer, self._mark)
        housekeeper.save_watermark()
        writer.on_room_changed = housekeeper.kick
        self._room, self._writer, self._housekeeper = room, writer, housekeeper
        self._found.blocks.clear()
        if self._threaded:
            for name, run in (("wal-writer", writer.run), ("wal-housekeeper", housekeeper.run)):
                thread = threading.Thread(target=self._guard, args=(run,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return writer.durable_lsn

    def append(
        self, kind: int, epoch: int, sequence: int, payload: bytes, flags: int = 0, *, kick: bool
    ) -> int:
        """Queues a record.

        Arguments:
            kind, epoch, sequence, payload, flags: see `Entry`.
            kick: wake the writer. Without it the record goes with the next batch, or with the next tick.

        Returns:
            The record's lsn: one more than the last.

        Raises:
            LogFailed: the log has failed or is closed. ValueError: a field is out of range; nothing changed.
        """
        writer, room = self._writer, self._room
        if self._refusing or writer is None or room is None:
            raise self._refusal()
        size = len(payload)
        if size > self._max_payload:
            raise ValueError(f"a record may have {self._max_payload} bytes, this one has {size}")
        try:
            head = ENTRY.pack(sequence, epoch, kind, flags, size)
        except struct.error as error:
            raise ValueError(f"record field out of range: {error}") from None
        cost = record_cost(size, self._options.alignment)
        room.add(cost, ENTRY.size + size)
        lsn = self._next_lsn
        self._next_lsn = lsn + 1
        writer.queue.append((head, bytes(payload), cost))
        if kick:
            writer.kick()
        return lsn

    @property
    def next_lsn(self) -> int:
        """What the next record will get."""
        return self._next_lsn

    @property
    def durable_lsn(self) -> int:
        """Everything up to it is on disk."""
        return self._writer.durable_lsn if self._writer is not None else self._found.next_lsn - 1

    def should_rotate(self) -> bool:
        """Whether the owner should call `rotate` now. Cheap; asked after appends."""
        return self._room is not None and not self._refusing and self._room.wants_rotation()

    def rotate(self, checkpoint: Sequence[Entry]) -> bool:
        """Replaces all records appended so far by a checkpoint, in a new segment.

        It is carried out by the writer, behind what is queued; then older segments are retired.

        Arguments:
            checkpoint: the live state after everything appended so far.

        Returns:
            False when it was not taken on, because the checkpoint would use up reserved room or
            no segment is ready for it. Nothing is lost by that; `should_rotate` will ask again.
        """
        writer, room = self._started()
        checkpoint = tuple(checkpoint)
        plan = room.plan_rotation(checkpoint_bound(checkpoint, self._options.alignment))
        if plan is None:
            if self._housekeeper is not None:
                self._housekeeper.kick()
            return False
        writer.queue.append(Rotation(checkpoint, plan.size, room.content, plan.in_place))
        writer.kick()
        return True

    def cost(self, payload_len: int) -> int:
        """Bytes to reserve for a record with a payload of so many bytes."""
        return record_cost(payload_len, self._options.alignment)

    def reserve(self, size: int) -> bool:
        """Sets bytes aside for records to come (R11); False, and nothing changed, when they may not be there.

        Release them at the same time as the record is appended, or when it will not be.
        """
        return self._started()[1].reserve(size)

    def release(self, size: int) -> None:
        """Gives back reserved bytes."""
        self._started()[1].release(size)

    def status(self) -> LogStatus:
        """A snapshot; may be called from any thread."""
        writer, room, housekeeper = self._writer, self._room, self._housekeeper
        started = writer.flush_started if writer else None
        return LogStatus(
            identity=self._identity.hex(),
            epoch=self._epoch,
            directory=str(self._directory),
            segments=len(housekeeper.segments) if housekeeper else len(self._found.segments),
            bytes=writer.segment.offset if writer else 0,
            durable_lsn=self.durable_lsn,
            next_lsn=self._next_lsn,
            queued=self._next_lsn - 1 - self.durable_lsn,
            reserved=room.reserved if room else 0,
            spare_ready=room is not None and room.spare is not None,
            last_flush_seconds=writer.last_flush_seconds if writer else 0.0,
            running_flush_seconds=max(0.0, self._files.monotonic() - started) if started is not None else 0.0,
            room_ok=housekeeper is None or housekeeper.room_ok,
            blocked=writer is not None and writer.blocked,
            failed=self._failure is not None,
        )

    def close(self) -> None:
        """Writes what is queued and a CLOSE frame, ends the threads, gives the lock back. May be repeated.

        Raises:
            LogFailed: that did not work; what was not reported durable may be lost.
        """
        if self._closed:
            return
        self._closed = self._refusing = True
        failed_before = self._failure is not None
        writer, housekeeper = self._writer, self._housekeeper
        try:
            if writer is not None and housekeeper is not None:
                writer.stop()
                housekeeper.stop()
                for thread in self._threads:
                    if thread is not threading.current_thread():
                        thread.join()
                self._guard(lambda: self._finish(writer, housekeeper))
        finally:
            self._give_back()
        if self._failure is not None and not failed_before:
            raise self._refusal()

    # without threads

    def step(self) -> bool:
        """One step of the writer (see `Writer.step`); only for a log that has no threads."""
        writer, _ = self._started()
        more = False

        def run() -> None:
            nonlocal more
            more = writer.step()

        self._guard(run)
        return more

    def tend(self) -> None:
        """One round of the housekeeper; only for a log that has no threads."""
        self._started()
        if self._housekeeper is not None:
            self._guard(self._housekeeper.tend)

    # inside

    def _started(self) -> tuple[Writer, Room]:
        if self._refusing or self._writer is None or self._room is None:
            raise self._refusal()
        return self._writer, self._room

    def _refusal(self) -> LogError:
        if self._failure is not None:
            error = LogFailed(
                f"{self._directory}: writing has failed ({self._failure}); restart, which reads the log anew"
            )
            error.__cause__ = self._failure
            return error
        if self._closed:
            return LogFailed(f"{self._directory}: the log is closed")
        return LogError(f"{self._directory}: the log was not started")

    def _guard(self, run: Callable[[], None]) -> None:
        """Runs a part of the log; its first exception is the log's failure."""
        if self._failure is not None:
            return
        try:
            run()
        except Exception as error:
            with self._failing:
                if self._failure is not None:
                    return
                self._failure = error
                self._refusing = True
            if self._writer is not None:
                self._writer.halt()
            if self._housekeeper is not None:
                self._housekeeper.stop()
            self._on_failure(error)

    def _finish(self, writer: Writer, housekeeper: Housekeeper) -> None:
        while writer.queue:
            before = len(writer.queue)
            writer.step()
            if len(writer.queue) == before:
                housekeeper.tend(closing=True)
            if len(writer.queue) == before and self._room is not None and self._room.spare is None:
                raise LogFull(
                    f"{before} records found no room when the log was closed; make room and restart"
                )
        writer.write_close()
        housekeeper.save_watermark()

    def _give_back(self) -> None:
        fds = [self._writer.segment.fd] if self._writer is not None else []
        if self._room is not None and self._room.spare is not None:
            fds.append(self._room.spare.fd)
        if self._lock_fd is not None:
            fds.append(self._lock_fd)
            self._lock_fd = None
        if self._mark is not None:
            with contextlib.suppress(OSError):
                self._mark.close()
        for fd in fds:
            with contextlib.suppress(OSError):
                self._files.close(fd)
