"""A segment being written, and the only way to make one.

Life of a segment, with what a power cut leaves at each point:

1. `create_blank`: a temporary file is allocated, filled with zeros and flushed. Cut: a `*.tmp`
   file, which the next start removes.
2. `publish` writes its header and its checkpoint, and flushes. Cut: the same.
3. `publish` renames it. Cut: the old name or the new one; the content is complete in either case,
   and nothing was acknowledged from it.
4. `publish` flushes the directory. From here on the name is durable, and frames may be
   acknowledged from this segment and older segments removed.

Frames are filled into it by one thread, one write and one flush at a time (R1). It is never
written a second time (R5).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wal.entry import Entry
from wal.files import Files
from wal.format import (
    CHECKPOINT_BODY,
    ENTRY,
    U64,
    FrameType,
    SegmentFlag,
    SegmentHeader,
    encode_entries,
    encode_frame,
    frame_size,
)

_FILL = bytes(1 << 20)
_FILLS_PER_FLUSH = 4


class Interrupted(Exception):
    """The making of a blank was given up because the log is being closed."""


@dataclass(frozen=True, slots=True)
class Blank:
    """A file full of zeros, durable, under a temporary name."""

    path: Path
    fd: int
    size: int


class Segment:
    """The segment that frames go to.

    Attributes:
        offset: where the next frame goes, in bytes.
        chain: what the next frame is chained to.
    """

    def __init__(self, files: Files, path: Path, fd: int, header: SegmentHeader) -> None:
        self.files = files
        self.path = path
        self.fd = fd
        self.header = header
        self.seed = header.chain_seed
        self.offset = header.alignment
        self.chain = self.seed

    @property
    def free(self) -> int:
        """Bytes left for frames; the one that closes the log has its own."""
        return self.header.size - self.offset - self.header.alignment

    def write(self, kind: FrameType, lsn: int, count: int, body: bytes) -> int:
        """Writes a frame, without flushing it. Returns its size in bytes."""
        frame, chain = encode_frame(
            kind,
            lsn=lsn,
            epoch=self.header.epoch,
            count=count,
            body=body,
            chain=self.chain,
            seed=self.seed,
            alignment=self.header.alignment,
        )
        self.files.pwrite(self.fd, frame, self.offset)
        self.offset += len(frame)
        self.chain = chain
        return len(frame)


def create_blank(
    files: Files, path: Path, size: int, interrupted: Callable[[], bool] = lambda: False
) -> Blank:
    """Makes a file of zeros, flushed piece by piece: flushes of the log shall not wait long behind it.

    Arguments:
        path: a temporary name.
        size: in bytes.
        interrupted: asked now and then; once it says True the file is removed again.

    Raises:
        Interrupted; OSError, after the file was removed.
    """
    fd = files.create(path)
    try:
        files.allocate(fd, size)
        for number, offset in enumerate(range(0, size, len(_FILL))):
            if interrupted():
                raise Interrupted
            files.pwrite(fd, _FILL[: size - offset], offset)
            if number % _FILLS_PER_FLUSH == _FILLS_PER_FLUSH - 1:
                files.fdatasync(fd)
        files.fdatasync(fd)
    except (OSError, Interrupted):
        files.close(fd)
        with contextlib.suppress(OSError):
            files.unlink(path)
        raise
    return Blank(path, fd, size)


def publish(files: Files, blank: Blank, header: SegmentHeader, checkpoint: Sequence[Entry]) -> Segment:
    """Turns a blank into a segment of the log; when this returns it is durable under its name.

    Arguments:
        header: whose size and alignment fit the blank.
        checkpoint: what it begins with; not written when the header says CONTINUES.
    """
    files.pwrite(blank.fd, header.encode(), 0)
    directory = blank.path.parent
    segment = Segment(files, directory / header.name, blank.fd, header)
    if not header.flags & SegmentFlag.CONTINUES:
        for kind, count, body in checkpoint_frames(checkpoint):
            segment.write(kind, header.first_lsn, count, body)
    files.fdatasync(blank.fd)
    files.rename(blank.path, segment.path)
    files.sync_directory(directory)
    return segment


def checkpoint_frames(entries: Sequence[Entry]) -> Iterator[tuple[FrameType, int, bytes]]:
    """The frames of a checkpoint: type, count and body of each."""
    start = size = 0
    for index, entry in enumerate(entries):
        size += ENTRY.size + len(entry.payload)
        if size >= CHECKPOINT_BODY:
            yield FrameType.CHECKPOINT, index + 1 - start, encode_entries(entries[start : index + 1])
            start, size = index + 1, 0
    if start < len(entries):
        yield FrameType.CHECKPOINT, len(entries) - start, encode_entries(entries[start:])
    yield FrameType.CHECKPOINT_END, 0, U64.pack(len(entries))


def checkpoint_bound(entries: Sequence[Entry], alignment: int) -> int:
    """Bytes that a checkpoint of these entries takes at most."""
    return checkpoint_bound_of(sum(ENTRY.size + len(entry.payload) for entry in entries), alignment)


def checkpoint_bound_of(content: int, alignment: int) -> int:
    """The same, for so many bytes of entries."""
    frames = content // CHECKPOINT_BODY + 1
    return content + frames * frame_size(0, alignment) * 2 + frame_size(U64.size, alignment)


def segment_size_for(checkpoint: int, segment_bytes: int, alignment: int) -> int:
    """Size of a segment that is to begin with a checkpoint of so many bytes."""
    if checkpoint <= segment_bytes // 4:
        return segment_bytes
    return frame_size(segment_bytes + checkpoint, alignment)
