"""The twin of the operating system's files, for a coordinator whose process and machine can die.

Fault model: that of tests/wal/simulated_files.py (page cache, sectors, names, fsyncgate, a full disk), and
 1. every changing operation has a place before and after it where the process may die (process.py);
 2. `fail_next`: the next write, flush or allocation answers EIO;
 3. what a dead process still had to do is not done: its handles and its lock are gone.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random

from tests.simulation.loop import SimulatedLoop
from tests.simulation.process import Killed, place
from tests.wal.simulated_files import SECTOR, Inode, SimulatedFiles, _apply_name


class Disk(SimulatedFiles):
    """The log's disk of one coordinator. It outlives processes."""

    def __init__(self, loop: SimulatedLoop, random: Random) -> None:
        super().__init__()
        self._loop = loop
        self._random = random
        self.fail_next = False
        self.failures = 0

    def _operate(self, what: str, apply: Callable[[], None]) -> None:
        place(f"before {what}")
        if self.fail_next:
            self.fail_next = False
            self.failures += 1
            raise OSError(errno.EIO, "simulated")
        apply()
        place(f"after {what}")

    @property
    def used(self) -> int:
        """Bytes that files take."""
        return sum(len(inode.cache) for inode in self.cached_names.values())

    def cut_power(self) -> None:
        """The machine goes off and on: each unflushed sector is kept or lost, and of unflushed names the last
        ones."""
        self.process_crash()
        random = self._random
        kept = random.randint(0, len(self.pending_names))
        for old, new, kind in self.pending_names[:kept]:
            _apply_name(self.durable_names, self._created, old, new, kind)
        self.pending_names.clear()
        share = random.choice((0.0, 0.5, 0.5, 1.0))
        for name in sorted(self.durable_names):
            inode = self.durable_names[name]
            inode.disk.extend(bytes(len(inode.cache) - len(inode.disk)))
            for sector in sorted(inode.dirty):
                if random.random() < share:
                    piece = slice(sector * SECTOR, (sector + 1) * SECTOR)
                    inode.disk[piece] = inode.cache[piece]
            inode.cache = bytearray(inode.disk)
            inode.dirty.clear()
        self.cached_names = dict(self.durable_names)

    def copy(self) -> dict[str, bytes]:
        """A backup of what the files say."""
        return {name: bytes(inode.cache) for name, inode in self.cached_names.items()}

    def restore(self, backup: dict[str, bytes]) -> None:
        """An operator puts a backup in place of the files."""
        self.process_crash()
        self.pending_names.clear()
        self.durable_names = {}
        for name, content in backup.items():
            inode = Inode()
            inode.cache, inode.disk = bytearray(content), bytearray(content)
            self.durable_names[name] = inode
        self.cached_names = dict(self.durable_names)

    def durable_bytes(self) -> list[bytearray]:
        """What a power cut now would leave at least, file by file."""
        return [inode.disk for inode in self.durable_names.values()]

    def close(self, fd: int) -> None:
        if fd not in self.handles and fd != self.locked:
            raise Killed("its handles are closed already")
        super().close(fd)

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000 + int(self._loop.time() * 1e9)

    def monotonic(self) -> float:
        return self._loop.time()

    def entropy(self, size: int) -> bytes:
        return self._random.randbytes(size)
