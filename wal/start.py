"""Beginning anew after a log was read (R3).

What was read may be in the page cache and not on disk: a frame between its write and its flush when
the process was killed. To act on it and then lose power would commit one branch and presume abort
for the other. So the live state is made durable first, in a segment of its own:

1. Remove unfinished files (temporary names). Set aside what a repair has replaced.
2. Keep a copy of a torn tail, for people. Best effort.
3. Make the fresh segment: blank, header of the new epoch, checkpoint, flush, rename, flush the directory.

Cut before the rename is durable: the next open reads what this one read, or, if the frame in
flight is gone, what it read less that frame, which nobody has acted on. Cut after: it reads the
fresh segment. Nothing is written to existing segments; they are retired later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from wal.entry import Entry
from wal.errors import LogFull
from wal.files import NO_ROOM, Files
from wal.format import TEMPORARY_SUFFIX, SegmentHeader
from wal.options import Options
from wal.scan import SegmentScan, TailState
from wal.segment import Segment, checkpoint_bound, create_blank, publish, segment_size_for
from wal.survey import Survey

DAMAGED_SUFFIX = ".damaged"
TORN_SUFFIX = ".torn"


def begin_anew(
    files: Files, options: Options, found: Survey, identity: bytes, epoch: int, checkpoint: Sequence[Entry]
) -> Segment:
    """Makes the fresh segment of a start; when this returns it is durable.

    Arguments:
        found: the log as read.
        epoch: the new one.

    Raises:
        LogFull: no room for the segment. OSError: writing failed.
    """
    directory, last = found.directory, found.last
    _clear_away(files, found)
    if found.tail.state is TailState.TORN and last is not None:
        _keep_torn_tail(files, found, last)
    size = checkpoint_bound(checkpoint, options.alignment)
    header = SegmentHeader(
        identity=identity,
        seq=last.header.seq + 1 if last is not None and last.header is not None else 1,
        first_lsn=found.next_lsn,
        epoch=epoch,
        created_ns=files.wall_ns(),
        size=segment_size_for(size, options.segment_bytes, options.alignment),
        alignment=options.alignment,
        prev_end=last.end if last is not None else 0,
        prev_chain=last.chain if last is not None else 0,
    )
    try:
        blank = create_blank(files, directory / f"fresh{TEMPORARY_SUFFIX}", header.size)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise LogFull(
            f"{directory}: no room for a segment of {header.size} bytes; make room and start again"
        ) from error
    return publish(files, blank, header, checkpoint)


def _clear_away(files: Files, found: Survey) -> None:
    for name in files.names(found.directory):
        if name.endswith(TEMPORARY_SUFFIX):
            files.unlink(found.directory / name)
    for name in found.superseded:
        files.rename(found.directory / name, found.directory / (name + DAMAGED_SUFFIX))


def _keep_torn_tail(files: Files, found: Survey, last: SegmentScan) -> None:
    path = found.directory / f"{last.name}-{last.end:x}{TORN_SUFFIX}"
    with contextlib.suppress(FileExistsError):
        copy = files.create(path)
        source = files.open(found.directory / last.name)
        try:
            files.pwrite(copy, files.pread(source, last.reach - last.end, last.end), 0)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
        finally:
            files.close(copy)
            files.close(source)
