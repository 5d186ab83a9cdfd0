"""The account of bytes by itself: what counts as room, and what counts against it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.wal.simulated_files import SimulatedFiles
from wal.format import SegmentHeader
from wal.options import Options
from wal.room import Room
from wal.segment import Blank, Segment

OPTIONS = Options(segment_bytes=16384)
SPARE = Blank(Path("spare"), 1, 16384)  # 15360 bytes of it are for frames


def make_room(free: int) -> Room:
    header = SegmentHeader(b"i" * 16, 1, 1, 1, 0, free + 1024, 512)
    segment = Segment(SimulatedFiles(), Path("wal"), 2, header)
    assert segment.free == free
    return Room(OPTIONS, segment, 0)


def test_the_end_of_a_segment_may_stay_unused() -> None:
    room = make_room(2048)
    room.put_spare(SPARE)
    assert room.reserve(4096)
    assert not room.reserve(2048)
    assert room.reserve(1024)


def test_a_rotation_under_way_gives_up_the_current_segment() -> None:
    room = make_room(100 * 1024)
    room.put_spare(SPARE)
    assert room.plan_rotation(8192) is not None
    assert room.plan_rotation(8192) is None, "one at a time"
    assert not room.reserve(8192)
    assert room.reserve(2048)
    room.take_spare()
    room.rotated(15360 - 8192, 8192, 0)
    assert not room.reserve(512)


def test_a_rotation_does_not_use_up_what_is_reserved() -> None:
    room = make_room(100 * 1024)
    room.put_spare(SPARE)
    assert room.reserve(14 * 1024)
    assert room.plan_rotation(4096) is None
    assert not room.wants_rotation()
    room.release(14 * 1024)
    assert room.plan_rotation(4096) is not None


def test_a_dropped_rotation_is_over() -> None:
    room = make_room(2048)
    room.put_spare(SPARE)
    assert room.wants_rotation()
    assert room.plan_rotation(1024) is not None
    assert not room.wants_rotation()
    room.dropped()
    assert room.wants_rotation()


def test_a_checkpoint_that_does_not_fit_asks_for_a_larger_spare() -> None:
    room = make_room(2048)
    room.put_spare(SPARE)
    assert room.plan_rotation(20_000) is None
    assert room.spare_wanted >= 20_000 + 16384
    assert not room.wants_rotation(), "not again with the same spare"
    assert room.put_spare(Blank(Path("larger"), 3, room.spare_wanted)) is SPARE
    assert room.wants_rotation()
    assert room.plan_rotation(20_000) is not None


def test_only_what_is_reserved_can_be_released() -> None:
    room = make_room(8192)
    assert room.reserve(512)
    for size in (513, -1):
        with pytest.raises(ValueError, match="cannot release"):
            room.release(size)
    with pytest.raises(ValueError, match="cannot reserve"):
        room.reserve(-1)
