"""The power goes at every moment of a live log, twice: what was acknowledged is there, nothing is invented.

Each moment (behind each write, flush, rename, removal, directory flush, allocation) leaves many states of
the disk (`tests.wal.power`). Each of them is opened and judged. Then the log starts from it (R3), and the
power goes again at a random moment of that start or of the first writes after it: opened and judged again.
"""

from __future__ import annotations

import random

import pytest

from tests.tiers import count
from tests.wal.owner import Owner
from tests.wal.power import FilmedFiles, State, files_of, one_state, states
from tests.wal.simulated_files import PowerCut, SimulatedFiles
from wal import LogCorrupt

SEEDS = range(22)


class Judge:
    """Opens every state that a moment of the owner's log leaves."""

    def __init__(self, owner: Owner, files: SimulatedFiles, source: random.Random) -> None:
        self.owner = owner
        self.files = files
        self.source = source
        self.number = 0

    def moment(self) -> None:
        for state in states(self.files, self.source):
            self.number += 2
            self.twice(state)

    def twice(self, state: State) -> None:
        files = files_of(state)
        heir = self.owner.heir(files)
        recovered = heir.open()
        files.crash_at = files.operations + self.source.randrange(1, 24)
        applies = self.source.random() < 0.5
        files.crash_applies = lambda: applies
        try:
            heir.start(recovered)  # from here on all that was read has to last
            heir.log.tend()
            heir.append(99, b"after the first cut" * 40)
            heir.drain()
            heir.log.close()
        except PowerCut:
            pass
        files.process_crash()
        last = heir.heir(files_of(one_state(files, self.source)))
        last.begin()
        last.log.close()


def life(owner: Owner, source: random.Random) -> None:
    """Frames of one to ten sectors, a watermark, spares, roll-overs, rotations, retirement, a full disk."""
    owner.begin()
    for number in range(source.randrange(9, 13)):
        for _ in range(source.choice((1, 1, 2))):
            fill = source.choice((b"\0", b"\xa5", bytes([number])))
            owner.append(source.randrange(6), fill * source.choice((0, 20, 444, 900, 1700, 2400)), kick=True)
        if source.random() < 0.8:
            owner.drain()
        act = source.random()
        if act < 0.3:
            owner.log.tend()
        elif act < 0.45 or owner.log.should_rotate():
            owner.rotate()
        elif act < 0.5 and isinstance(owner.files, FilmedFiles):
            owner.files.capacity = source.choice((0, None))
    owner.files.capacity = None
    owner.drain()


@pytest.mark.parametrize("seed", SEEDS)
def test_power_cut_at_every_moment(seed: int) -> None:
    source = random.Random(seed)
    files = FilmedFiles()
    owner = Owner(files)
    judge = Judge(owner, files, source)
    files.after = judge.moment
    life(owner, source)
    if seed % 2:
        owner.log.close()
    else:
        files.process_crash()  # the cache survives: what the next start reads is not on disk yet
    life(owner, source)
    assert judge.number > 500
    count("log: power-cut states", judge.number)


@pytest.mark.parametrize("lie", ["fdatasync", "sync_directory"])
def test_a_flush_that_does_nothing_is_noticed(lie: str) -> None:
    """The states are worth something: without a flush, records are lost in them."""
    source = random.Random(1)
    files = FilmedFiles()
    setattr(files, lie, lambda handle: None)
    owner = Owner(files)
    files.after = Judge(owner, files, source).moment
    with pytest.raises((AssertionError, LogCorrupt), match=r"acknowledged up to|nothing was changed"):
        life(owner, source)
