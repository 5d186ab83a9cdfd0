"""Reads a log's directory and judges it as a whole, without changing anything.

1. List the segments by number. Each is read on its own first (`wal.scan`).
2. Between segments: numbers without a gap, one identity, epochs and lsns that never decrease. A
   segment whose predecessor was *sealed* (rotation, roll-over) says where that one ended and with
   which chain value: it must end exactly there. A segment made at a start says the same, but binds
   nothing: the start may have read a last frame that was in the page cache and not on disk, and a
   power cut may have taken that frame since. No harm: the new segment begins with a checkpoint of
   all that was read (R3), and the old one only waits to be removed.
3. Replay, oldest first: a complete checkpoint replaces everything before it.
4. Rule f: the log must reach at least as far as the watermark says, in lsn, segment and epoch.
5. Segments older than one made by a repair are the log as it was before; they are passed over.

`survey` always returns what could be read; `problem` says why the rest could not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from wal.block import Block, Entries
from wal.entry import Entry
from wal.errors import LogCorrupt, LogError
from wal.files import Files
from wal.format import (
    SECTOR,
    WATERMARK_NAME,
    SegmentFlag,
    Watermark,
    decode_watermark,
    segment_seq,
)
from wal.recovered import Recovered, SegmentInfo, Tail
from wal.scan import SegmentScan, TailState, scan_segment

_BOUND = SegmentFlag.SEALED | SegmentFlag.CONTINUES


@dataclass(slots=True)
class Survey:
    """Everything known about a directory.

    Attributes:
        segments: all that belong to the log, oldest first, as far as they could be read.
        superseded: names of segments that a repair has replaced.
        blocks: what is to be replayed, up to `problem` if there is one.
        complete: whether `blocks` begins with a checkpoint, as it must.
    """

    directory: Path
    segments: list[SegmentScan] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    complete: bool = False
    identity: bytes = b""
    epoch: int = 0
    next_lsn: int = 1
    tail: Tail = field(default_factory=lambda: Tail(TailState.CLEAN))
    watermark: Watermark | None = None
    repaired: bool = False
    problem: LogError | None = None

    @property
    def last(self) -> SegmentScan | None:
        return self.segments[-1] if self.segments else None

    def entries(self) -> list[Entry]:
        return list(Entries(self.blocks))

    def recovered(self) -> Recovered:
        """The survey as a result.

        Raises:
            LogError: `problem`, if there is one.
        """
        if self.problem is not None:
            raise self.problem
        return Recovered(
            identity=self.identity,
            epoch=self.epoch,
            entries=Entries(self.blocks),
            next_lsn=self.next_lsn,
            tail=self.tail,
            segments=tuple(segment_infos(self.segments)),
            created=not self.segments,
            repaired=self.repaired,
        )


def survey(files: Files, directory: Path) -> Survey:
    """Reads the log in a directory.

    Raises:
        OSError: a file cannot be read. (Damage is not raised; it is in `problem`.)
    """
    result = Survey(directory)
    names = files.names(directory)
    scans = [scan_segment(files, directory / name) for name in names if segment_seq(name) is not None]
    result.segments, result.superseded = _since_repair(scans)
    if result.last is not None and result.last.header is not None:
        result.repaired = bool(result.last.header.flags & SegmentFlag.REPAIRED)
    result.watermark, mark_problem = _read_watermark(files, directory, names)
    result.epoch = max(
        [scan.header.epoch for scan in result.segments if scan.header]
        + [result.watermark.epoch if result.watermark else 0]
    )
    _replay(result)
    if result.problem is None:
        result.problem = mark_problem or _check_watermark(result)
    return result


def segment_infos(scans: Iterable[SegmentScan]) -> list[SegmentInfo]:
    return [
        SegmentInfo(
            name=scan.name,
            seq=scan.header.seq,
            epoch=scan.header.epoch,
            first_lsn=scan.header.first_lsn,
            next_lsn=scan.next_lsn,
            created_ns=scan.header.created_ns,
            frames=scan.frames,
            records=scan.records,
            end=scan.end,
            size=scan.size,
        )
        for scan in scans
        if scan.header is not None
    ]


def _since_repair(scans: list[SegmentScan]) -> tuple[list[SegmentScan], list[str]]:
    """Splits off what a repair has replaced: older segments of another identity."""
    for index in range(len(scans) - 1, -1, -1):
        header = scans[index].header
        if header is not None and header.flags & SegmentFlag.REPAIRED:
            kept = [scan for scan in scans[:index] if scan.header and scan.header.identity == header.identity]
            return kept + scans[index:], [scan.name for scan in scans[:index] if scan not in kept]
    return scans, []


def _replay(result: Survey) -> None:
    """Goes through the segments as far as they can be trusted."""
    before: SegmentScan | None = None
    for position, scan in enumerate(result.segments):
        result.problem = _check_joint(result, before, scan)
        if result.problem is not None or scan.header is None:
            return
        result.identity = scan.header.identity
        if scan.has_checkpoint:
            result.blocks = list(scan.blocks)
            result.complete = True
        else:
            result.blocks += scan.blocks
        result.next_lsn = scan.next_lsn
        result.tail = Tail(scan.tail, scan.name, scan.end)
        if scan.problem is not None and not _is_replaced(result.segments, position):
            result.problem = scan.problem
            return
        before = scan
    if result.segments and not result.complete:
        first = result.segments[0]
        result.problem = _corrupt(result, first.name, 0, "the segment continues one that is missing")


def _is_replaced(scans: list[SegmentScan], position: int) -> bool:
    """Whether the segment's tail does not matter, because a start has begun anew behind it."""
    if position + 1 == len(scans):
        return False
    after = scans[position + 1].header
    return after is not None and not after.flags & _BOUND


def _check_joint(result: Survey, before: SegmentScan | None, scan: SegmentScan) -> LogError | None:
    """Whether a segment fits behind the one before it."""
    header = scan.header
    if header is None:
        return scan.problem
    if before is None or before.header is None:
        return None
    old = before.header
    if header.identity != old.identity:
        return _corrupt(result, scan.name, 0, f"the segment belongs to another log than {before.name}")
    if header.seq != old.seq + 1:
        return _corrupt(result, scan.name, 0, f"segments are missing between {before.name} and this one")
    if header.epoch < old.epoch or header.first_lsn < old.first_lsn:
        return _corrupt(
            result, scan.name, 0, f"the segment is older than {before.name}, which comes before it"
        )
    if not header.flags & _BOUND:
        return None
    if header.epoch != old.epoch:
        return _corrupt(result, scan.name, 0, f"the segment continues {before.name} in another epoch")
    ends = (before.end, before.chain, before.next_lsn)
    if before.tail is not TailState.CLEAN or ends != (header.prev_end, header.prev_chain, header.first_lsn):
        reason = f"the segment ends here, but had ended at offset {header.prev_end}, as {scan.name} says"
        return before.problem or _corrupt(result, before.name, before.end, reason)
    return None


def _read_watermark(
    files: Files, directory: Path, names: list[str]
) -> tuple[Watermark | None, LogError | None]:
    if WATERMARK_NAME not in names:
        return None, None
    path = directory / WATERMARK_NAME
    fd = files.open(path)
    try:
        slots = [files.pread(fd, SECTOR, 0), files.pread(fd, SECTOR, SECTOR)]
    finally:
        files.close(fd)
    marks = [mark for mark in map(decode_watermark, slots) if mark is not None]
    if marks:
        return max(marks, key=lambda mark: mark.counter), None
    if all(slot.strip(b"\0") for slot in slots):
        reason = "both slots of the watermark are damaged; if the segments are sound, remove this file"
        return None, LogCorrupt(str(path), 0, 0, reason)
    return None, None


def _check_watermark(result: Survey) -> LogError | None:
    mark, last = result.watermark, result.last
    if mark is None:
        return None
    if last is None or last.header is None:
        return _corrupt(
            result, WATERMARK_NAME, 0, f"there are no segments, but lsn {mark.lsn} had been acknowledged"
        )
    if mark.identity != result.identity:
        if result.repaired:
            return None
        return _corrupt(result, WATERMARK_NAME, 0, "the watermark belongs to another log than the segments")
    if result.next_lsn - 1 < mark.lsn:
        reason = f"the log ends here, but lsn {mark.lsn} had been acknowledged"
        return _corrupt(result, last.name, last.end, reason)
    if last.header.seq < mark.seq or last.header.epoch < mark.epoch:
        reason = f"this is the newest segment, but there had been number {mark.seq} of epoch {mark.epoch}"
        return _corrupt(result, last.name, 0, reason)
    return None


def _corrupt(result: Survey, name: str, offset: int, reason: str) -> LogCorrupt:
    return LogCorrupt(str(result.directory / name), offset, result.next_lsn, reason)
