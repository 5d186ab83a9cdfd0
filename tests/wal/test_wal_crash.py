"""Crashes at every operation and at random ones: nothing acknowledged is lost, nothing wrongly refused."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from tests.wal.owner import Owner
from tests.wal.simulated_files import PowerCut, SimulatedFiles
from wal import LogError, LogFailed, LogFull


def script(owner: Owner) -> None:
    """A short life: start, frames of several sizes, a roll-over, rotations, retirement, close, and again."""
    for _ in range(2):
        owner.begin()
        owner.log.tend()
        for sequence in range(14):
            owner.append(sequence, bytes([sequence]) * (sequence * 170), kick=sequence % 3 > 0)
            if sequence % 2:
                owner.drain()
            if sequence == 11:
                owner.log.tend()
                owner.rotate()
        owner.drain()
        owner.log.tend()
        if owner.log.should_rotate():
            owner.rotate()
        owner.drain()
        owner.log.tend()
        owner.log.close()


CHOOSERS: dict[str, tuple[Callable[[int], bool], Callable[[int], int]]] = {
    "nothing": (lambda sector: False, lambda names: 0),
    "everything": (lambda sector: True, lambda names: names),
    "odd sectors": (lambda sector: sector % 2 == 1, lambda names: names),
    "even sectors": (lambda sector: sector % 2 == 0, lambda names: names // 2),
    "first of four": (lambda sector: sector % 4 == 0, lambda names: 0),
}


def count_operations() -> int:
    files = SimulatedFiles()
    script(Owner(files))
    assert sum("rename wal-" in line for line in files.log) >= 5, "the script must make segments"
    assert sum("unlink wal-" in line for line in files.log) >= 3, "and retire some"
    return files.operations


OPERATIONS = count_operations()


@pytest.mark.parametrize("chooser", CHOOSERS)
@pytest.mark.parametrize("applied", [False, True])
def test_power_cut_at_every_operation(chooser: str, applied: bool) -> None:
    for operation in range(1, OPERATIONS + 1):
        files = SimulatedFiles()
        owner = Owner(files)
        files.crash_at = operation
        files.crash_applies = lambda: applied
        with pytest.raises(PowerCut):
            script(owner)
        files.power_cut(*CHOOSERS[chooser])
        owner.begin()
        owner.append(99, b"after")
        owner.drain()
        files.power_cut(*CHOOSERS["nothing"])
        owner.open()


def test_kill_then_power_cut_at_every_operation() -> None:
    """R3: what a restarted process read from the page cache lasts, even if the power goes next."""
    for operation in range(1, OPERATIONS + 1):
        for applied in (False, True):
            files = SimulatedFiles()
            owner = Owner(files)
            files.crash_at = operation
            files.crash_applies = lambda applied=applied: applied  # type: ignore[misc]
            with pytest.raises(PowerCut):
                script(owner)
            files.process_crash()
            owner.begin()  # from here on everything read counts as acknowledged
            files.power_cut(*CHOOSERS["nothing"])
            owner.begin()
            owner.log.close()


@pytest.mark.parametrize("seed", range(40))
def test_random_lives(seed: int) -> None:
    """Many lives of one log, each ended by a kill or a power cut anywhere, also during recovery."""
    source = random.Random(seed)
    files = SimulatedFiles()
    owner = Owner(files)
    for _ in range(12):
        files.crash_at = files.operations + source.randrange(1, 90)
        files.crash_applies = lambda: source.random() < 0.5
        try:
            recovered = owner.open()
            read = recovered.next_lsn - 1
            owner.start(recovered)
            assert owner.acknowledged == read
            for _ in range(source.randrange(60)):
                _random_act(owner, source)
            owner.log.close()
        except PowerCut:
            pass
        files.crash_at = None
        if source.random() < 0.5:
            files.process_crash()
        else:
            files.power_cut(lambda sector: source.random() < 0.5, lambda names: source.randint(0, names))
    files.process_crash()
    owner.begin()


def _random_act(owner: Owner, source: random.Random) -> None:
    act = source.random()
    if act < 0.5:
        owner.append(source.randrange(8), source.choice((b"\0", b"p")) * source.randrange(3000), kick=True)
    elif act < 0.8:
        owner.log.step()
    elif act < 0.9:
        owner.log.tend()
    elif owner.log.should_rotate() or source.random() < 0.3:
        owner.rotate()


def test_error_at_every_operation() -> None:
    """EIO anywhere: reported once, never retried, nothing acknowledged from then on, or lost."""
    for operation in range(1, OPERATIONS + 1):
        files = SimulatedFiles()
        owner = Owner(files)
        files.fail_at = operation
        try:
            script(owner)
            raised = False
        except (LogFailed, OSError):
            raised = True
        if owner.failures:
            assert len(owner.failures) == 1
            owner.log.close()
            acknowledged = owner.acknowledged
            with pytest.raises(LogFailed):
                owner.append(1, b"more")
            assert owner.acknowledged == acknowledged
        assert raised or owner.failures or "unlink" in files.log[operation - 1]
        files.power_cut(*CHOOSERS["nothing"])
        owner.begin()


def test_short_write_is_a_failure() -> None:
    files = SimulatedFiles()
    owner = Owner(files)
    owner.begin()
    owner.append(1, b"x")
    files.fail_at = files.operations + 1
    files.fail_with = OSError(errno.EIO, "short write: 3 of 512 bytes")
    owner.drain()
    assert owner.acknowledged == 0
    assert len(owner.failures) == 1
    with pytest.raises(LogFailed) as caught:
        owner.append(2, b"y")
    assert not caught.value.definite


def test_failure_of_the_housekeeper_stops_the_writer() -> None:
    files = SimulatedFiles()
    owner = Owner(files)
    owner.begin()
    owner.append(1, b"x")
    files.fail_at = files.operations + 1
    owner.log.tend()
    assert len(owner.failures) == 1
    writer = owner.log._writer
    assert writer is not None
    before = files.operations
    assert not writer.step()
    assert (files.operations, owner.acknowledged) == (before, 0)


def test_full_disk_is_no_failure_and_reserved_records_find_room() -> None:
    """R11: what was reserved before the disk filled up can be written, across the roll-over."""
    for spare_first in (True, False):
        files = SimulatedFiles()
        owner = Owner(files)
        owner.begin()
        if spare_first:
            owner.log.tend()
        files.capacity = 0
        owner.log.tend()
        assert owner.log.status().room_ok == spare_first
        reserved: list[tuple[int, int]] = []
        source = random.Random(3)
        while len(reserved) < 1000:
            size = source.randrange(1500)
            cost = owner.log.cost(size)
            if not owner.log.reserve(cost):
                break
            reserved.append((size, cost))
        assert len(reserved) > (8 if spare_first else 3)
        assert not owner.log.reserve(4096)
        for sequence, (size, cost) in enumerate(reserved):
            owner.log.release(cost)
            owner.append(sequence, b"r" * size)
            owner.drain()  # a frame each: the worst case
            owner.log.tend()
        assert owner.acknowledged == len(reserved)
        assert not owner.failures
        assert owner.log.status().reserved == 0
        assert owner.rotate() or not spare_first, "reserved room includes the next checkpoint"
        owner.drain()
        files.capacity = None
        owner.log.tend()
        assert owner.log.status().room_ok
        assert owner.log.reserve(512)
        files.power_cut(*CHOOSERS["nothing"])
        owner.begin()


@pytest.mark.parametrize("seed", range(30))
def test_reservations_hold_on_a_full_disk(seed: int) -> None:
    """Random work that always reserves first never blocks, whenever the disk is full."""
    source = random.Random(seed)
    files = SimulatedFiles()
    owner = Owner(files)
    owner.begin()
    held: list[int] = []
    done = 0
    for _ in range(400):
        files.capacity = source.choice((0, None, files.capacity))
        act = source.random()
        if act < 0.4:
            size = source.randrange(1200)
            if owner.log.reserve(owner.log.cost(size)):
                held.append(size)
        elif act < 0.7 and held:
            size = held.pop(source.randrange(len(held)))
            owner.log.release(owner.log.cost(size))
            owner.append(source.randrange(4), b"h" * size)
            done += 1
        elif act < 0.85:
            owner.drain()
        elif act < 0.95:
            owner.log.tend()
        if owner.log.should_rotate():
            owner.rotate()
        assert not owner.log.status().blocked
    files.capacity = 0
    owner.drain()
    for size in held:
        owner.log.release(owner.log.cost(size))
        owner.append(5, b"h" * size)
        owner.drain()
        owner.log.tend()
    assert not owner.log.status().blocked
    assert owner.log.status().queued == 0
    assert done > 20


def test_start_on_a_full_disk_is_refused_and_changes_nothing() -> None:
    files = SimulatedFiles()
    owner = Owner(files)
    owner.begin()
    owner.append(1, b"x")
    owner.drain()
    files.process_crash()
    files.capacity = 0
    recovered = owner.open()
    with pytest.raises(LogFull):
        owner.start(recovered)
    owner.log.close()
    files.capacity = None
    owner.begin()
    with pytest.raises(LogError):
        owner.log.start(9, [])
