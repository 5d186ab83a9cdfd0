"""What can go wrong with a log, told in terms of what the operator does next.

Every error says whether it is *definite*: True means that the operation certainly did not
happen; False means that only the next reader of the log can tell (rule R4). `exit_status` is
what a process that meets the error at start, or a command, ends with (sysexits.h).
"""

from __future__ import annotations

from typing import ClassVar


class LogError(Exception):
    """Base of everything that this package raises on purpose."""

    definite: ClassVar[bool] = True
    exit_status: ClassVar[int] = 1


class LogFailed(LogError):
    """A write or a flush failed: the log takes nothing more and is never retried (R2)."""

    definite = False
    exit_status = 74


class LogFull(LogError):
    """There is no room on the file system for a segment that is needed now."""

    exit_status = 74


class LogLocked(LogError):
    """Another process has the log open."""

    exit_status = 75


class LogMissing(LogError):
    """There is no log where one was expected."""

    exit_status = 65


class LogUnsafe(LogError):
    """The directory cannot keep what it is told (network or memory file system, world-writable, a link)."""

    exit_status = 78


class LogTooNew(LogError):
    """The log was written in a format that this program does not know."""

    exit_status = 78


class LogCorrupt(LogError):
    """The log holds something that no crash can explain, so an acknowledged record may be lost (R8).

    Arguments:
        file: name of the file, with its directory.
        offset: where in the file, in bytes.
        lsn: the sequence number expected there; 0 when it is not known.
        reason: what is wrong, one phrase.
    """

    exit_status = 78

    def __init__(self, file: str, offset: int, lsn: int, reason: str) -> None:
        self.file = file
        self.offset = offset
        self.lsn = lsn
        self.reason = reason
        directory = file.rpartition("/")[0] or "."
        super().__init__(
            f"{file}: offset {offset}, lsn {lsn}: {reason}; nothing was changed and nothing is resolved; "
            f"inspect with `coordctl wal verify {directory}`"
        )


class RepairRefused(LogError):
    """A repair was not carried out, because it was not confirmed or would not do what was asked."""

    exit_status = 1
