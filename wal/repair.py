"""Makes a log that was refused readable again, at the price of what is cut off.

The repaired log is another log: it gets a new identity, which is how agents notice that decisions
may be missing, and the next open says so (R9: the coordinator then holds until an operator decides).

1. Take the lock; read as far as possible.
2. Write what is kept, as a checkpoint, to a fresh segment with the new identity, flagged REPAIRED.
   Cut before its rename: nothing happened. Cut after: open passes over the older segments and over
   the watermark of the old identity; the repair is done, only the tidying is not.
3. Rename every older segment and the watermark aside, to `*.damaged`. Nothing is ever deleted.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from wal.directory import take
from wal.errors import LogMissing, LogTooNew, RepairRefused
from wal.files import Files, SystemFiles
from wal.format import WATERMARK_NAME, SegmentFlag, SegmentHeader, segment_seq
from wal.options import Options
from wal.segment import checkpoint_bound, create_blank, publish, segment_size_for
from wal.start import DAMAGED_SUFFIX
from wal.survey import Survey, survey
from wal.verify import Report, make_report


def repair(
    directory: Path,
    truncate_at_lsn: int,
    accept_loss: bool,
    options: Options = Options(),  # noqa: B008 (immutable)
    files: Files | None = None,
) -> Report:
    """Keeps the records below an lsn and gives up everything from it on.

    Arguments:
        truncate_at_lsn: the first lsn that is given up. At most the `next_lsn` of `verify`'s report, and
            above the last record of the checkpoint, which cannot be divided. 0 gives up everything.
        accept_loss: confirms that acknowledged records may be lost by it.

    Returns:
        The report on the repaired log.

    Raises:
        RepairRefused: not confirmed, or not possible. LogLocked, LogMissing, LogUnsafe, LogTooNew. OSError.
    """
    files = files or SystemFiles()
    lock = take(files, directory, create=False, allow_unsafe_filesystem=options.allow_unsafe_filesystem)
    try:
        found = survey(files, directory)
        _check(found, truncate_at_lsn, accept_loss)
        _rewrite(files, found, truncate_at_lsn, options)
        return make_report(survey(files, directory))
    finally:
        files.close(lock)


def _check(found: Survey, truncate_at_lsn: int, accept_loss: bool) -> None:
    if isinstance(found.problem, LogTooNew):
        raise found.problem
    if not found.segments and found.watermark is None:
        raise LogMissing(f"{found.directory}: there is no log in this directory; name the directory of a log")
    lowest = found.blocks[0].lsn + 1 if found.complete and found.blocks and found.blocks[0].step == 0 else 1
    readable = found.next_lsn if found.complete else 0
    if truncate_at_lsn != 0 and not lowest <= truncate_at_lsn <= readable:
        choice = f"choose {lowest} to {readable}, or 0" if readable else "nothing can be read: choose 0"
        raise RepairRefused(
            f"{found.directory}: cannot cut at lsn {truncate_at_lsn}; {choice} to give up everything"
        )
    if not accept_loss:
        raise RepairRefused(
            f"{found.directory}: cutting at lsn {truncate_at_lsn} gives up everything from there on, even "
            "what was acknowledged; nothing was changed; confirm with --accept-loss"
        )


def _rewrite(files: Files, found: Survey, truncate_at_lsn: int, options: Options) -> None:
    directory = found.directory
    names = files.names(directory)
    kept = [entry for entry in found.entries() if entry.lsn < truncate_at_lsn] if truncate_at_lsn else []
    size = checkpoint_bound(kept, options.alignment)
    header = SegmentHeader(
        identity=files.entropy(16),
        seq=max((segment_seq(name) or 0 for name in names), default=0) + 1,
        first_lsn=max(truncate_at_lsn, 1),
        epoch=found.epoch,
        created_ns=files.wall_ns(),
        size=segment_size_for(size, options.segment_bytes, options.alignment),
        alignment=options.alignment,
        flags=SegmentFlag.REPAIRED,
    )
    path = directory / "repaired.tmp"
    with contextlib.suppress(FileNotFoundError):
        files.unlink(path)
    segment = publish(files, create_blank(files, path, header.size), header, kept)
    files.close(segment.fd)
    for name in names:
        if segment_seq(name) is not None or name == WATERMARK_NAME:
            files.rename(directory / name, directory / (name + DAMAGED_SUFFIX))
    files.sync_directory(directory)
