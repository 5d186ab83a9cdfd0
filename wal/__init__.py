"""A write-ahead log of bytes, for one writing process. It knows no transactions.

What it guarantees, on a local file system whose fdatasync tells the truth and whose sectors are
written whole or not at all:

1. A record reported durable is there after any crash of the process, the system or the power, until
   a checkpoint replaces it.
2. A reader sees a prefix of what was appended: never a later record without an earlier one, never
   part of a frame, never a frame that was changed.
3. What only a crash can have left, an unfinished last frame, is cut off. Everything else that does not
   fit is refused, with file, offset and reason: no acknowledged record is dropped in silence. (A last frame
   that a disk turned into zeros looks like one that was never written; the watermark, at most about
   a second old, bounds that.)
4. A failed write or flush is final: nothing more is taken or acknowledged.
5. Room that was reserved is there, also when the file system is full.

Usage: `Log.open` -> look at `Recovered` -> `Log.start` -> `append` ... `rotate` ... `close`.
The format is in `wal.format` and docs/wal-format.md.
"""

from __future__ import annotations

from wal.block import Block, Entries
from wal.entry import Entry
from wal.errors import (
    LogCorrupt,
    LogError,
    LogFailed,
    LogFull,
    LogLocked,
    LogMissing,
    LogTooNew,
    LogUnsafe,
    RepairRefused,
)
from wal.files import Files, SystemFiles
from wal.log import Log
from wal.options import Options
from wal.recovered import Recovered, SegmentInfo, Tail
from wal.repair import repair
from wal.scan import TailState
from wal.status import LogStatus
from wal.verify import Report, read, verify

__all__ = [
    "Block",
    "Entries",
    "Entry",
    "Files",
    "Log",
    "LogCorrupt",
    "LogError",
    "LogFailed",
    "LogFull",
    "LogLocked",
    "LogMissing",
    "LogStatus",
    "LogTooNew",
    "LogUnsafe",
    "Options",
    "Recovered",
    "RepairRefused",
    "Report",
    "SegmentInfo",
    "SystemFiles",
    "Tail",
    "TailState",
    "read",
    "repair",
    "verify",
]
