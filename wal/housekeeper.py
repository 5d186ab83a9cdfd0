"""What need not be done at once: the watermark, removing old segments, keeping a spare ready (R7).

`tend` does one round, in this order: removing makes room for the spare. A thread does a round per
tick, and whenever the writer has taken the spare or retired something.

- The watermark is a lower bound of the durable lsn in a file of its own: two slots written in turn, so
  that a torn one leaves the other. A log that ends before it has lost what was acknowledged (rule f).
- Segments are removed oldest first, the directory flushed after each, so that no crash makes a gap.
- A spare that cannot be made for lack of room is not a failure: `room_ok` says so, the next tick tries
  again, and what is reserved has its room already. Any other error is one (R2).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from wal.files import NO_ROOM, Files
from wal.format import SECTOR, TEMPORARY_SUFFIX, WATERMARK_NAME, Watermark, encode_watermark, segment_seq
from wal.options import Options
from wal.room import Room
from wal.segment import Interrupted, create_blank
from wal.writer import Writer

RETIRED_SUFFIX = ".retired"


class Housekeeper:
    """Tends one log.

    Attributes:
        room_ok: False while there is no room for a spare segment.
        segments: names of the segments that are still there, as of the last round.
    """

    def __init__(
        self, files: Files, directory: Path, options: Options, room: Room, writer: Writer, mark: WatermarkFile
    ) -> None:
        self._files = files
        self._directory = directory
        self._options = options
        self._room = room
        self._writer = writer
        self._mark = mark
        self._wake = threading.Event()
        self._stopping = False
        self._spares = 0
        self.room_ok = True
        self.segments = tuple(name for name in files.names(directory) if segment_seq(name) is not None)

    def tend(self, *, closing: bool = False) -> None:
        """One round.

        Arguments:
            closing: provide a spare even though `stop` was called: records still wait for one.

        Raises:
            OSError: the log has failed.
        """
        self.save_watermark()
        self._retire()
        if closing or not self._stopping:
            self._provide_spare(lambda: self._stopping and not closing)

    def save_watermark(self) -> None:
        """Records how far the log is durable, if that has changed."""
        header = self._writer.segment.header
        self._mark.save(self._writer.durable_lsn, header.epoch, header.seq)

    def kick(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """The thread's loop: until `stop`, or an exception out of `tend`."""
        while not self._stopping:
            self.tend()
            if self._writer.blocked and self._room.spare is not None:
                self._writer.kick()
            self._wake.wait(self._options.tick_seconds)
            self._wake.clear()

    def _retire(self) -> None:
        names = self._files.names(self._directory)
        segments = [name for name in names if segment_seq(name) is not None]
        old = [name for name in segments if (segment_seq(name) or 0) < self._writer.retire_below]
        retired = [name for name in names if name.endswith(RETIRED_SUFFIX)]
        for name in old:
            path = self._directory / name
            if self._options.keep_retired > 0:
                kept = path.with_suffix(RETIRED_SUFFIX)
                self._files.rename(path, kept)
                retired.append(kept.name)
            else:
                self._files.unlink(path)
            self._files.sync_directory(self._directory)
        for name in retired[: max(0, len(retired) - self._options.keep_retired)]:
            with contextlib.suppress(FileNotFoundError):
                self._files.unlink(self._directory / name)
        self.segments = tuple(name for name in segments if name not in old)

    def _provide_spare(self, interrupted: Callable[[], bool]) -> None:
        wanted = self._room.spare_wanted
        spare = self._room.spare
        if spare is not None and spare.size >= wanted:
            return
        # A name of its own each time: the writer may be about to rename the one before.
        self._spares += 1
        path = self._directory / f"spare-{self._spares}{TEMPORARY_SUFFIX}"
        try:
            blank = create_blank(self._files, path, wanted, interrupted)
        except Interrupted:
            return
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self.room_ok = False
            return
        old = self._room.put_spare(blank)
        self.room_ok = True
        if old is not None:
            self._files.close(old.fd)
            self._files.unlink(old.path)


class WatermarkFile:
    """The watermark, open for writing.

    Arguments:
        last: what the file said when it was read; None if it is absent or of another log.
    """

    def __init__(self, files: Files, directory: Path, identity: bytes, last: Watermark | None) -> None:
        self._files = files
        self._directory = directory
        self._identity = identity
        self._last = last or Watermark(identity, 0, 0, 0, 0)
        self._fd: int | None = None

    def save(self, lsn: int, epoch: int, seq: int) -> None:
        """Writes the older slot and flushes it; does nothing when nothing has changed."""
        last = self._last
        if (last.lsn, last.epoch, last.seq) == (lsn, epoch, seq):
            return
        mark = Watermark(self._identity, last.counter + 1, lsn, epoch, seq)
        if self._fd is None:
            self._fd = self._open()
        self._files.pwrite(self._fd, encode_watermark(mark), mark.counter % 2 * SECTOR)
        self._files.fdatasync(self._fd)
        self._last = mark

    def close(self) -> None:
        if self._fd is not None:
            self._files.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        """Opens the file; one that is new gets its size and is given its name only then."""
        path = self._directory / WATERMARK_NAME
        if WATERMARK_NAME in self._files.names(self._directory) and self._last.counter > 0:
            return self._files.open(path, write=True)
        new = path.with_suffix(".tmp")
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(new)
        fd = self._files.create(new)
        self._files.pwrite(fd, bytes(2 * SECTOR), 0)
        self._files.fdatasync(fd)
        self._files.rename(new, path)
        self._files.sync_directory(self._directory)
        return fd
