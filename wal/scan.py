"""Reads one segment and says how it ends.

A log is cut short by every crash, so its end is judged, not trusted. Let F be the first position
where no sound frame begins. R1 (one write in flight) means that at most the frame at F was never
acknowledged; R5 and R6 mean that a sector of zeros was never written. Hence:

    a) everything from F on is zero: clean end (CLOSED when the last frame is a CLOSE).
    b) a sound frame header behind F: F had been acknowledged before that was written: corrupt.
    c) what has to agree does not (file size, identity, epoch, lsn, chain, lengths): corrupt.
    d) F's header is sound: with something written behind its extent, corrupt; with some sector of
       its extent all zero, torn; with none, corrupt (all of it was written, and then changed).
    e) F's header is not sound: with the first sector all zero, torn, unless something was written
       farther away than a frame can reach; else corrupt.

Rule f (the watermark) and the rules between segments are in `wal.survey`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from wal.block import Block
from wal.errors import LogCorrupt, LogError, LogTooNew
from wal.files import Files
from wal.format import (
    FRAME_HEADER,
    FRAME_MAGIC,
    MAX_BODY,
    SECTOR,
    U32,
    U64,
    ZERO_SECTOR,
    FrameHeader,
    FrameType,
    HeaderInvalid,
    HeaderTooNew,
    SegmentFlag,
    SegmentHeader,
    apply_mask,
    body_is_sound,
    crc,
    decode_frame_header,
    decode_segment_header,
    frame_size,
    segment_seq,
)

_CHUNK = bytes(1 << 20)
_MAGIC = U32.pack(FRAME_MAGIC)
_DATA = int(FrameType.DATA)
_OF_RECORDS = (_DATA, int(FrameType.CHECKPOINT))


class TailState(enum.Enum):
    """How a log ends."""

    CLEAN = "clean"
    CLOSED = "closed"
    TORN = "torn"


@dataclass(slots=True)
class SegmentScan:
    """What one segment holds.

    Attributes:
        header: None when it cannot be read; then `problem` says why.
        blocks: what a reader has to replay: everything, or, if the segment has a complete
            checkpoint (`has_checkpoint`), its last one and what follows.
        end, chain, next_lsn: where the sound part ends, and what would come there.
        reach: end of what was written; equal to `end` unless the tail is torn or damaged.
        problem: why the segment cannot be trusted behind `end`, None if it can.
    """

    name: str
    size: int
    header: SegmentHeader | None = None
    blocks: list[Block] = field(default_factory=list)
    has_checkpoint: bool = False
    frames: int = 0
    records: int = 0
    end: int = 0
    reach: int = 0
    chain: int = 0
    next_lsn: int = 0
    tail: TailState = TailState.CLEAN
    problem: LogError | None = None


def scan_segment(files: Files, path: Path) -> SegmentScan:
    """Reads a segment file.

    Arguments:
        path: the file; a name that is not a segment's is not compared with the header.

    Raises:
        OSError: the file cannot be read (damage is not raised but reported in `problem`).
    """
    fd = files.open(path)
    try:
        data = files.pread(fd, files.size(fd) + 1, 0)
    finally:
        files.close(fd)
    return _Scanner(path, data).run()


class _Scanner:
    """Walks through the frames; `result` is always a truthful account of what was read so far."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.result = SegmentScan(path.name, len(data))
        self.checkpoint: list[Block] | None = None
        self.closed = False

    def run(self) -> SegmentScan:
        result = self.result
        header = self._read_header()
        if header is None:
            return result
        result.header = header
        result.end = result.reach = header.alignment
        result.chain = seed = header.chain_seed
        result.next_lsn = header.first_lsn
        while result.problem is None:
            frame = decode_frame_header(self.data, result.end, seed)
            if frame is None or not self._take(header, frame):
                break
        if result.problem is None:
            self._judge_tail(header, decode_frame_header(self.data, result.end, seed))
        return result

    def _corrupt(self, offset: int, reason: str) -> None:
        self.result.problem = LogCorrupt(str(self.path), offset, self.result.next_lsn, reason)

    def _read_header(self) -> SegmentHeader | None:
        try:
            header = decode_segment_header(self.data[:4096])
        except HeaderInvalid as error:
            self._corrupt(0, str(error))
            return None
        except HeaderTooNew as error:
            self.result.problem = LogTooNew(
                f"{self.path}: {error}; start the version that wrote it, or a newer one"
            )
            return None
        if segment_seq(self.path.name) not in (None, header.seq):
            self._corrupt(0, f"the file's name does not fit its header, which says {header.name}")
            return None
        if len(self.data) != header.size:
            self._corrupt(0, f"the file has {len(self.data)} bytes, its header says {header.size}")
            return None
        return header

    def _take(self, segment: SegmentHeader, frame: FrameHeader) -> bool:
        """Takes in the frame at the end; False when its body is not sound."""
        result, start = self.result, self.result.end
        if frame.chain_prev != result.chain:
            self._corrupt(start, "the frame does not follow the one before it")
            return False
        if frame.lsn != result.next_lsn or frame.epoch != segment.epoch:
            self._corrupt(
                start, f"the frame has lsn {frame.lsn} and epoch {frame.epoch}, which do not fit here"
            )
            return False
        first = start + FRAME_HEADER.size
        body = self.data[first : first + frame.body_len]
        if len(body) != frame.body_len or crc(frame.chain_prev, body) != frame.body_crc:
            return False
        if not self._interpret(frame, apply_mask(body, frame.mask) if frame.mask else body):
            return False
        result.end += frame_size(frame.body_len, segment.alignment)
        result.reach = result.end
        result.chain = frame.body_crc
        result.frames += 1
        return True

    def _interpret(self, frame: FrameHeader, body: bytes) -> bool:
        """Files the frame's records; False when the frame is refused."""
        result, start = self.result, self.result.end
        sound = frame.type not in _OF_RECORDS or body_is_sound(body, frame.records)
        if frame.type == _DATA and sound and not self.closed and self.checkpoint is None:
            result.blocks.append(Block(body, frame.records, frame.lsn, 1))
            result.next_lsn += frame.records
            result.records += frame.records
            return True
        if self.closed:
            self._corrupt(start, "a frame follows the one that closed the log")
        elif not sound:
            self._corrupt(start, "the lengths of the records do not add up")
        elif self.checkpoint is not None and frame.type not in (
            FrameType.CHECKPOINT,
            FrameType.CHECKPOINT_END,
        ):
            self._corrupt(start, "a frame interrupts a checkpoint")
        elif frame.type == FrameType.CHECKPOINT:
            self.checkpoint = [*(self.checkpoint or []), Block(body, frame.records, max(frame.lsn - 1, 0), 0)]
        elif frame.type == FrameType.CHECKPOINT_END:
            self._end_checkpoint(body)
        elif frame.type == FrameType.CLOSE:
            self.closed = True
        else:
            result.problem = LogTooNew(
                f"{self.path}: offset {start}: frame type {frame.type} is not known; start the version that "
                "wrote the log, or a newer one"
            )
        return result.problem is None

    def _end_checkpoint(self, body: bytes) -> None:
        blocks = self.checkpoint or []
        if len(body) != U64.size or U64.unpack(body)[0] != sum(block.records for block in blocks):
            self._corrupt(self.result.end, "the checkpoint does not have as many entries as its end says")
            return
        self.result.blocks = blocks
        self.result.has_checkpoint = True
        self.checkpoint = None

    def _judge_tail(self, segment: SegmentHeader, frame: FrameHeader | None) -> None:
        result, start = self.result, self.result.end
        result.reach = max(start, last_written(self.data))
        if result.reach <= start:
            result.tail = TailState.CLOSED if self.closed else TailState.CLEAN
        elif frame is not None:
            extent = start + frame_size(frame.body_len, segment.alignment)
            if result.reach > extent:
                self._corrupt(
                    start, "a frame is damaged that had been acknowledged: more was written behind it"
                )
            elif self._has_zero_sector(start, extent):
                result.tail = TailState.TORN
            else:
                self._corrupt(start, "the last frame was written completely and is damaged")
        elif self._frame_behind(segment, start):
            self._corrupt(start, "there is no frame here, but one behind it")
        elif self.data[start : start + SECTOR] != ZERO_SECTOR:
            self._corrupt(start, "there is neither a frame nor an end of the log here")
        elif result.reach > start + frame_size(MAX_BODY, segment.alignment):
            self._corrupt(start, "something was written far behind the end of the log")
        else:
            result.tail = TailState.TORN
        if not self._head_is_complete(segment):
            self._corrupt(start, "the checkpoint at the head of the segment is not complete")

    def _head_is_complete(self, segment: SegmentHeader) -> bool:
        """A segment gets its name only when its head is durable, so no crash can leave half of one."""
        return bool(segment.flags & SegmentFlag.CONTINUES) or self.result.has_checkpoint

    def _has_zero_sector(self, start: int, end: int) -> bool:
        return any(
            self.data[at : at + SECTOR] == ZERO_SECTOR
            for at in range(start, min(end, len(self.data)), SECTOR)
        )

    def _frame_behind(self, segment: SegmentHeader, start: int) -> bool:
        at = self.data.find(_MAGIC, start + 1)
        while at >= 0:
            if (
                at % segment.alignment == 0
                and decode_frame_header(self.data, at, segment.chain_seed) is not None
            ):
                return True
            at = self.data.find(_MAGIC, at + 1)
        return False


def last_written(data: bytes) -> int:
    """Offset behind the last byte that is not zero."""
    end = len(data)
    while end > 0:
        start = max(0, end - len(_CHUNK))
        part = data[start:end]
        if part != _CHUNK[: end - start]:
            return start + len(part.rstrip(b"\0"))
        end = start
    return 0
