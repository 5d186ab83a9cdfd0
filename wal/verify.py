"""Looks at a log from outside: without the lock, without changing anything, also while it is written.

A live writer's last frame may be half there when it is read, and a segment may be retired between
listing and reading. So a verdict other than sound is only believed when it is found again a moment
later, a few times over.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wal.entry import Entry
from wal.errors import LogCorrupt, LogError, LogMissing
from wal.files import Files, SystemFiles
from wal.recovered import Recovered, SegmentInfo, Tail
from wal.scan import TailState
from wal.survey import Survey, segment_infos, survey

ATTEMPTS = 4
PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Report:
    """A log as found.

    Attributes:
        problem: why the log cannot be trusted, None if it can.
        entries: number of records that can be read (live state and what follows it).
        next_lsn: where the readable part ends; a repair can keep everything below it.
        watermark_lsn: the log must reach at least this far; 0 if nothing is known.
    """

    directory: str
    identity: str
    epoch: int
    next_lsn: int
    watermark_lsn: int
    entries: int
    tail: Tail
    segments: Sequence[SegmentInfo]
    superseded: Sequence[str]
    repaired: bool
    problem: LogError | None = None

    @property
    def verdict(self) -> str:
        """clean, closed, torn, corrupt or unreadable (a newer format)."""
        if self.problem is None:
            return self.tail.state.value
        return "corrupt" if isinstance(self.problem, LogCorrupt) else "unreadable"


def verify(directory: Path, files: Files | None = None) -> Report:
    """Checks everything in a log's directory, and changes nothing.

    Raises:
        LogMissing: there is no such directory, or no log in it. OSError: a file cannot be read.
    """
    return make_report(look(directory, files or SystemFiles()))


def read(directory: Path, files: Files | None = None) -> Recovered:
    """Reads a log without its lock, and changes nothing.

    Raises:
        LogMissing, LogCorrupt, LogTooNew; OSError when a file cannot be read.
    """
    return look(directory, files or SystemFiles()).recovered()


def read_what_is_there(directory: Path, files: Files | None = None) -> tuple[list[Entry], Report]:
    """The entries up to the first problem, for people to look at; the report says what the problem is."""
    found = look(directory, files or SystemFiles())
    return found.entries(), make_report(found)


def look(directory: Path, files: Files) -> Survey:
    """A survey that a live writer does not disturb."""
    if not files.facts(directory).exists:
        raise LogMissing(f"{directory}: there is no such directory; name the directory of a log")
    for attempt in range(ATTEMPTS):
        try:
            found = survey(files, directory)
        except FileNotFoundError:
            if attempt == ATTEMPTS - 1:
                raise
        else:
            sound = found.problem is None and found.tail.state is not TailState.TORN
            if sound or attempt == ATTEMPTS - 1:
                break
        time.sleep(PAUSE_SECONDS)
    if not found.segments and found.problem is None:
        raise LogMissing(f"{directory}: there is no log in this directory; name the directory of a log")
    return found


def make_report(found: Survey) -> Report:
    return Report(
        directory=str(found.directory),
        identity=found.identity.hex(),
        epoch=found.epoch,
        next_lsn=found.next_lsn,
        watermark_lsn=found.watermark.lsn if found.watermark else 0,
        entries=sum(block.records for block in found.blocks),
        tail=found.tail,
        segments=segment_infos(found.segments),
        superseded=found.superseded,
        repaired=found.repaired,
        problem=found.problem,
    )
