"""What a reader of the log is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wal.block import Entries
from wal.scan import TailState


@dataclass(frozen=True, slots=True)
class Tail:
    """How and where the log ends: `file` is a name in the log's directory, `offset` is in bytes."""

    state: TailState
    file: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One segment file; `end` is where its sound part ends, `size` its length, both in bytes."""

    name: str
    seq: int
    epoch: int
    first_lsn: int
    next_lsn: int
    created_ns: int
    frames: int
    records: int
    end: int
    size: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """The state of a log as read.

    Attributes:
        identity: 16 bytes that name this log and no other; a repaired log gets new ones.
        epoch: highest epoch of any segment, 0 for a new log.
        entries: the newest complete checkpoint, then every record after it, in lsn order; taken apart when
            they are asked for.
        next_lsn: what the next record would get; the first is 1.
        tail: CLEAN, CLOSED (shut down cleanly) or TORN (a frame that was never acknowledged is cut off).
        segments: the segments, oldest first.
        created: there was no log; this is a new one.
        repaired: the log was repaired since it was last started, so records may be missing.
    """

    identity: bytes
    epoch: int
    entries: Entries
    next_lsn: int
    tail: Tail
    segments: Sequence[SegmentInfo]
    created: bool = False
    repaired: bool = False
