"""The twin of `wal.files.SystemFiles`: files in memory, on a disk that can be cut off.

Fault model:

- Sectors of 512 bytes are written whole or not at all. What was written and not flushed is in the
  page cache: everyone reads it, and a power cut keeps any subset of its sectors (`power_cut` is
  given a chooser). A flush makes the file's content durable.
- Names (create, rename, unlink) are durable once the directory is flushed; a power cut keeps a
  prefix of the unflushed ones, in order, as a journalling file system does.
- A process crash (`process_crash`) loses handles and locks, nothing else.
- `crash_at`: the n-th changing operation ends in `PowerCut` instead of returning; a write is then
  in the page cache, a flush may or may not have happened (a chooser decides), as may a rename.
- `fail_at`: the n-th changing operation raises the OSError given. A failed flush marks the pages
  clean (fsyncgate): they are read back, and a power cut loses them.
- `capacity`: bytes; allocating beyond it raises ENOSPC.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from wal.files import DirectoryFacts

SECTOR = 512


class PowerCut(BaseException):
    """The machine is off. Not an Exception: nothing in the program may handle it."""


class Inode:
    def __init__(self) -> None:
        self.cache = bytearray()
        self.disk = bytearray()
        self.dirty: set[int] = set()


class SimulatedFiles:
    def __init__(self) -> None:
        self.cached_names: dict[str, Inode] = {}
        self.durable_names: dict[str, Inode] = {}
        self.pending_names: list[tuple[str, str, str]] = []
        self._created: dict[str, Inode] = {}
        self.handles: dict[int, Inode] = {}
        self.next_fd = 3
        self.locked: int | None = None
        self.exists = False
        self.operations = 0
        self.log: list[str] = []
        self.crash_at: int | None = None
        self.crash_applies: Callable[[], bool] = lambda: True
        self.fail_at: int | None = None
        self.fail_with: OSError = OSError(errno.EIO, "simulated")
        self.capacity: int | None = None
        self.clock = 0.0
        self.identities = 0

    # faults

    def _operate(self, what: str, apply: Callable[[], None]) -> None:
        self.operations += 1
        self.log.append(what)
        if self.operations == self.crash_at:
            if self.crash_applies():
                apply()
            raise PowerCut(what)
        if self.operations == self.fail_at:
            raise self.fail_with
        apply()

    def created(self, token: str) -> Inode:
        """The file that a pending creation made."""
        return self._created[token]

    def process_crash(self) -> None:
        self.handles.clear()
        self.locked = None
        self.crash_at = self.fail_at = None

    def power_cut(self, keep_sector: Callable[[int], bool], keep_names: Callable[[int], int]) -> None:
        """Turns the power off and on: what was not flushed is kept as the choosers say."""
        self.process_crash()
        for old, new, kind in self.pending_names[: keep_names(len(self.pending_names))]:
            _apply_name(self.durable_names, self._created, old, new, kind)
        self.pending_names.clear()
        for inode in set(self.durable_names.values()):
            inode.disk.extend(bytes(len(inode.cache) - len(inode.disk)))
            for sector in sorted(inode.dirty):
                if keep_sector(sector):
                    piece = slice(sector * SECTOR, (sector + 1) * SECTOR)
                    inode.disk[piece] = inode.cache[piece]
            inode.cache = bytearray(inode.disk)
            inode.dirty.clear()
        self.cached_names = dict(self.durable_names)

    # the port

    def facts(self, directory: Path) -> DirectoryFacts:
        return DirectoryFacts(self.exists, filesystem="ext4")

    def make_directory(self, directory: Path) -> None:
        self.exists = True

    def sync_directory(self, directory: Path) -> None:
        def apply() -> None:
            for old, new, kind in self.pending_names:
                _apply_name(self.durable_names, self._created, old, new, kind)
            self.pending_names.clear()

        self._operate("sync_directory", apply)

    def names(self, directory: Path) -> list[str]:
        return sorted(self.cached_names)

    def create(self, path: Path) -> int:
        if path.name in self.cached_names:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        inode = Inode()
        token = f"{path.name}#{self.next_fd}"
        self._created[token] = inode

        def apply() -> None:
            self.cached_names[path.name] = inode
            self.pending_names.append((token, path.name, "create"))

        self._operate(f"create {path.name}", apply)
        return self._handle(inode)

    def open(self, path: Path, *, write: bool = False) -> int:
        if path.name not in self.cached_names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self._handle(self.cached_names[path.name])

    def _handle(self, inode: Inode) -> int:
        self.next_fd += 1
        self.handles[self.next_fd] = inode
        return self.next_fd

    def close(self, fd: int) -> None:
        if fd == self.locked:
            self.locked = None
            return
        del self.handles[fd]

    def size(self, fd: int) -> int:
        return len(self.handles[fd].cache)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return bytes(self.handles[fd].cache[offset : offset + size])

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        inode = self.handles[fd]

        def apply() -> None:
            if len(inode.cache) < offset + len(data):
                inode.cache.extend(bytes(offset + len(data) - len(inode.cache)))
            inode.cache[offset : offset + len(data)] = data
            inode.dirty.update(range(offset // SECTOR, (offset + len(data) - 1) // SECTOR + 1))

        self._operate("pwrite", apply)

    def fdatasync(self, fd: int) -> None:
        inode = self.handles[fd]

        def apply() -> None:
            inode.disk.extend(bytes(len(inode.cache) - len(inode.disk)))
            for sector in inode.dirty:
                piece = slice(sector * SECTOR, (sector + 1) * SECTOR)
                inode.disk[piece] = inode.cache[piece]
            inode.dirty.clear()

        try:
            self._operate("fdatasync", apply)
        except OSError:
            inode.dirty.clear()
            raise

    def allocate(self, fd: int, size: int) -> None:
        used = sum(len(inode.cache) for inode in self.cached_names.values())
        if self.capacity is not None and used + size > self.capacity:
            raise OSError(errno.ENOSPC, "simulated: no space left")
        inode = self.handles[fd]
        self._operate("allocate", lambda: inode.cache.extend(bytes(size - len(inode.cache))))

    def rename(self, old: Path, new: Path) -> None:
        def apply() -> None:
            self.cached_names[new.name] = self.cached_names.pop(old.name)
            self.pending_names.append((old.name, new.name, "rename"))

        self._operate(f"rename {new.name}", apply)

    def unlink(self, path: Path) -> None:
        if path.name not in self.cached_names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))

        def apply() -> None:
            del self.cached_names[path.name]
            self.pending_names.append((path.name, "", "unlink"))

        self._operate(f"unlink {path.name}", apply)

    def lock(self, path: Path) -> int:
        if self.locked is not None:
            raise BlockingIOError(errno.EAGAIN, "locked")
        self.next_fd += 1
        self.locked = self.next_fd
        return self.locked

    def entropy(self, size: int) -> bytes:
        self.identities += 1
        return self.identities.to_bytes(size, "big")

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000

    def monotonic(self) -> float:
        self.clock += 0.001
        return self.clock


def _apply_name(names: dict[str, Inode], created: dict[str, Inode], old: str, new: str, kind: str) -> None:
    if kind == "create":
        names[new] = created[old]
    elif kind == "rename":
        names[new] = names.pop(old)
    else:
        names.pop(old, None)
