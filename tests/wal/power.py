"""Power cuts: every state of the disk that one moment of a live log can leave.

Fault model. Of what was not flushed when the power went, any part may be on disk:

- any subset of the sectors of 512 bytes that were written and not flushed; a sector is whole or old;
- the new size of a file, or the old one, and then nothing behind it;
- any subset of the creations, renames and removals since the directory was flushed, in their order.
  (A journalling file system keeps a prefix; we do not rely on it.)

The content of files with a temporary name is not varied: nothing reads them. Where there are more than
`LIMIT` states in a moment they are sampled: nothing, everything, each part alone, each part missing, and
random ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import product

from tests.wal.simulated_files import SECTOR, Inode, SimulatedFiles

LIMIT = 1 << 10
Part = tuple[Inode, int]  # sector number; -1 is the size of the file
State = dict[str, bytearray]


class FilmedFiles(SimulatedFiles):
    """Calls `after` behind each operation that changes something."""

    def __init__(self) -> None:
        super().__init__()
        self.after: Callable[[], None] = lambda: None

    def _operate(self, what: str, apply: Callable[[], None]) -> None:
        super()._operate(what, apply)
        self.after()


def files_of(state: State) -> SimulatedFiles:
    """A machine that was switched on again: the state is on its disk and in its cache."""
    files = SimulatedFiles()
    files.exists = True
    for name, image in state.items():
        inode = Inode()
        inode.cache, inode.disk = image, bytearray(image)
        files.cached_names[name] = inode
    files.durable_names = dict(files.cached_names)
    files.identities = 100
    return files


def states(files: SimulatedFiles, source: random.Random, limit: int = LIMIT) -> Iterator[State]:
    """All states that a power cut can leave now, or a sample of `limit` where there are more."""
    directories = list(_directories(files, source))
    for names in directories:
        parts = _parts(names)
        share = max(1, limit // len(directories))
        for kept in _subsets(parts, source, share):
            yield _state(names, kept)


def one_state(files: SimulatedFiles, source: random.Random) -> State:
    """A random one of them."""
    names = source.choice(list(_directories(files, source)))
    return _state(names, {part for part in _parts(names) if source.random() < 0.5})


def _directories(files: SimulatedFiles, source: random.Random) -> Iterator[dict[str, Inode]]:
    """What the directory can hold: each subset of the pending operations, in their order."""
    full = dict(files.durable_names)
    steps: list[tuple[str, str, Inode | None]] = []
    for old, new, kind in files.pending_names:
        if kind == "unlink":
            full.pop(old, None)
            steps.append((old, "", None))
        else:
            inode = files.created(old) if kind == "create" else full.pop(old)
            full[new] = inode
            steps.append((old if kind == "rename" else "", new, inode))
    count = len(steps)
    choices: list[tuple[bool, ...]] = list(product((False, True), repeat=min(count, 4)))
    if count > 4:
        choices = [tuple(at < length for at in range(count)) for length in range(count + 1)]
        choices += [tuple(source.random() < 0.5 for _ in range(count)) for _ in range(8)]
    for choice in choices:
        names = dict(files.durable_names)
        for chosen, (old, new, inode) in zip(choice, steps, strict=True):
            if chosen:
                names.pop(old, None)
                if inode is not None:
                    names[new] = inode
        yield names


def _parts(names: dict[str, Inode]) -> list[Part]:
    """What of the files' content is not on disk for sure. A sector that would not change is none."""
    parts: list[Part] = []
    for name in sorted(names):
        inode = names[name]
        if name.endswith(".tmp"):
            continue
        if len(inode.disk) < len(inode.cache):
            parts.append((inode, -1))
        for sector in sorted(inode.dirty):
            piece = slice(sector * SECTOR, (sector + 1) * SECTOR)
            if inode.disk[piece].ljust(SECTOR, b"\0") != inode.cache[piece].ljust(SECTOR, b"\0"):
                parts.append((inode, sector))
    return parts


def _subsets(parts: list[Part], source: random.Random, limit: int) -> Iterator[set[Part]]:
    count = len(parts)
    if 1 << count <= limit:
        for subset in range(1 << count):
            yield {part for at, part in enumerate(parts) if subset >> at & 1}
        return
    yield set()
    yield set(parts)
    for part in parts:
        yield {part}
        yield set(parts) - {part}
    for _ in range(limit - 2 - 2 * count):
        yield {part for part in parts if source.random() < 0.5}


def _state(names: dict[str, Inode], kept: set[Part]) -> State:
    state: State = {}
    for name, inode in names.items():
        image = bytearray(inode.disk)
        if (inode, -1) in kept:
            image.extend(bytes(len(inode.cache) - len(image)))
        for owner, sector in kept:
            piece = slice(sector * SECTOR, (sector + 1) * SECTOR)
            if owner is inode and sector >= 0 and piece.stop <= len(image):
                image[piece] = inode.cache[piece]
        state[name] = image
    return state
