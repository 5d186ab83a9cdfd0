"""The port to the operating system: every byte that the log reads or writes goes through here.

It exists so that a twin can take its place (tests/wal/simulated_files.py: power cuts, torn writes,
EIO, a full disk). It adds no policy: no buffering, no retry, and a short write is an error.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SECTOR = 512
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class DirectoryFacts:
    """What `wal.directory` needs to know before it trusts a directory."""

    exists: bool
    is_link: bool = False
    world_writable: bool = False
    filesystem: str = ""


class Files(Protocol):
    """What the log asks of an operating system. Every failure is an OSError."""

    def facts(self, directory: Path) -> DirectoryFacts: ...
    def make_directory(self, directory: Path) -> None: ...
    def sync_directory(self, directory: Path) -> None: ...
    def names(self, directory: Path) -> list[str]: ...
    def create(self, path: Path) -> int: ...
    def open(self, path: Path, *, write: bool = False) -> int: ...
    def close(self, fd: int) -> None: ...
    def size(self, fd: int) -> int: ...
    def pread(self, fd: int, size: int, offset: int) -> bytes: ...
    def pwrite(self, fd: int, data: bytes, offset: int) -> None: ...
    def fdatasync(self, fd: int) -> None: ...
    def allocate(self, fd: int, size: int) -> None: ...
    def rename(self, old: Path, new: Path) -> None: ...
    def unlink(self, path: Path) -> None: ...
    def lock(self, path: Path) -> int: ...
    def entropy(self, size: int) -> bytes: ...
    def wall_ns(self) -> int: ...
    def monotonic(self) -> float: ...


class SystemFiles:
    """The real thing."""

    def facts(self, directory: Path) -> DirectoryFacts:
        try:
            status = os.lstat(directory)
        except FileNotFoundError:
            return DirectoryFacts(exists=False)
        link = stat.S_ISLNK(status.st_mode)
        if not link and not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(directory))
        return DirectoryFacts(True, link, bool(status.st_mode & stat.S_IWOTH), _filesystem(status.st_dev))

    def make_directory(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True)
        self.sync_directory(directory.parent)

    def sync_directory(self, directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def names(self, directory: Path) -> list[str]:
        return sorted(os.listdir(directory))

    def create(self, path: Path) -> int:
        return os.open(path, _FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def open(self, path: Path, *, write: bool = False) -> int:
        return os.open(path, _FLAGS | (os.O_RDWR if write else os.O_RDONLY))

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            part = os.pread(fd, size, offset)
            if not part:
                break
            parts.append(part)
            size -= len(part)
            offset += len(part)
        return b"".join(parts)

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        written = os.pwrite(fd, data, offset)
        if written != len(data):
            _take_back_part_of_a_sector(fd, offset, written)
            raise OSError(errno.EIO, f"short write: {written} of {len(data)} bytes")

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def allocate(self, fd: int, size: int) -> None:
        os.posix_fallocate(fd, 0, size)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def lock(self, path: Path) -> int:
        """Takes the lock for as long as the handle is open.

        Raises:
            BlockingIOError: someone else has it.
        """
        fd = os.open(path, _FLAGS | os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def entropy(self, size: int) -> bytes:
        return os.urandom(size)

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()


def _take_back_part_of_a_sector(fd: int, offset: int, written: int) -> None:
    """Zeros over the last sector of a short write, if only part of it was written.

    A disk writes a sector whole or not at all; a short write can end inside one, and the next reader would
    take that for damage and refuse to start. This is no retry (R2): nothing becomes valid by it, and nothing
    is flushed.
    """
    end = offset + written
    part = min(end % _SECTOR, written)
    with contextlib.suppress(OSError):
        os.pwrite(fd, bytes(part), end - part)


def _filesystem(device: int) -> str:
    """Type of the file system with this device number, "" when the system does not tell."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        if len(fields) > 6 and fields[2] == wanted and "-" in fields:
            return fields[fields.index("-") + 1]
    return ""
