"""Damage of every small kind to acknowledged records, and every cut of a frame in flight."""

from __future__ import annotations

import random

import pytest

from tests.wal.owner import DIRECTORY, SMALL, Owner, segment_names, small_log
from tests.wal.simulated_files import SECTOR, SimulatedFiles
from wal import Entry, LogCorrupt, LogError, Options, TailState
from wal.format import WATERMARK_NAME
from wal.survey import survey

PAYLOADS = [[b"a" * 100, b"b" * 30], [b"c" * 700], [bytes(1200), b"d"], [b"e" * 900]]


class Subject:
    """A small log whose one segment can be damaged and read over and over."""

    def __init__(self, *, watermark: bool) -> None:
        self.files, owner = small_log(PAYLOADS)
        if watermark:
            owner.log.tend()
        else:
            self.files.cached_names.pop(WATERMARK_NAME)
        self.files.process_crash()
        self.inode = self.files.cached_names[segment_names(self.files)[0]]
        self.original = bytes(self.inode.cache)
        found = survey(self.files, DIRECTORY)
        assert found.problem is None
        self.entries = found.entries()
        self.end = found.tail.offset
        assert len(self.entries) == 6

    def read(self, data: bytes | bytearray) -> list[Entry] | None:
        """The records, or None when the log is refused."""
        self.inode.cache = data  # type: ignore[assignment]
        found = survey(self.files, DIRECTORY)
        if found.problem is None:
            return found.entries()
        assert isinstance(found.problem, LogError)
        return None

    def last_frame_start(self) -> int:
        return self.end - 2 * SECTOR


@pytest.fixture(scope="module")
def bare() -> Subject:
    return Subject(watermark=False)


@pytest.fixture(scope="module")
def marked() -> Subject:
    return Subject(watermark=True)


def test_every_bit_flipped(bare: Subject) -> None:
    """Each bit of what was written and one bit of each byte behind it: refused, or everything is there."""
    refused = 0
    for position in range(len(bare.original)):
        for bit in range(8) if position < bare.end else (position % 8,):
            data = bytearray(bare.original)
            data[position] ^= 1 << bit
            entries = bare.read(bytes(data))
            refused += entries is None
            assert entries is None or entries == bare.entries, (position, bit)
    assert refused > bare.end * 8 // 2


def test_cut_at_every_byte(bare: Subject) -> None:
    for length in range(len(bare.original)):
        assert bare.read(bare.original[:length]) is None, length
    assert bare.read(bare.original + b"\0") is None
    assert bare.read(bare.original) == bare.entries


def test_zeroed_from_every_byte(bare: Subject, marked: Subject) -> None:
    """Zeros may look like a crash, and then leave a prefix; with a watermark they never cost a record."""
    size = len(bare.original)
    for start in range(size):
        entries = bare.read(bare.original[:start] + bytes(size - start))
        assert entries is None or entries == bare.entries[: len(entries)], start
        entries = marked.read(marked.original[:start] + bytes(size - start))
        assert entries is None or entries == marked.entries, start


@pytest.mark.parametrize("what", ["zero", "random", "ones"])
def test_each_sector_replaced(bare: Subject, marked: Subject, what: str) -> None:
    source = random.Random(1)
    for start in range(0, len(bare.original), SECTOR):
        piece = {"zero": bytes(SECTOR), "random": source.randbytes(SECTOR), "ones": b"\xff" * SECTOR}[what]
        for subject in (bare, marked):
            entries = subject.read(subject.original[:start] + piece + subject.original[start + SECTOR :])
            if entries is None or entries == subject.entries:
                continue
            in_last_frame = subject.last_frame_start() <= start < subject.end
            assert what == "zero", start
            assert subject is bare, "the watermark must notice"
            assert in_last_frame, start
            assert entries == subject.entries[:-1]


def in_flight(
    sectors: int, payload: bytes, options: Options
) -> tuple[SimulatedFiles, bytes, int, list[Entry]]:
    """A log, its segment without the last frame, where that starts, and the records with it."""
    files, owner = small_log([[b"first" * 50], [payload]], options)
    files.process_crash()
    found = survey(files, DIRECTORY)
    inode = files.cached_names[segment_names(files)[0]]
    start = found.tail.offset - sectors * SECTOR
    assert owner.acknowledged == 2
    return files, bytes(inode.cache), start, found.entries()


@pytest.mark.parametrize("alignment", [512, 4096])
@pytest.mark.parametrize("fill", [b"x", b"\0", b"\xa5"])
def test_every_subset_of_the_frame_in_flight(fill: bytes, alignment: int) -> None:
    """Whatever a power cut leaves of the frame in flight: never refused, and all of the frame or nothing."""
    options = Options(segment_bytes=64 * alignment, alignment=alignment)
    for sectors in (1, 2, 3, 5, 8) if alignment == 512 else (8,):
        payload = fill * (sectors * SECTOR - 48 - 20 - 7)
        files, full, start, entries = in_flight(sectors, payload, options)
        files.cached_names.pop(WATERMARK_NAME)
        inode = files.cached_names[segment_names(files)[0]]
        for subset in range(1 << sectors):
            data = bytearray(full)
            for sector in range(sectors):
                if not subset >> sector & 1:
                    at = start + sector * SECTOR
                    assert data[at : at + SECTOR] != bytes(SECTOR), "a written sector is all zero (R6)"
                    data[at : at + SECTOR] = bytes(SECTOR)
            inode.cache = data
            found = survey(files, DIRECTORY)
            assert found.problem is None, (sectors, subset, found.problem)
            complete = subset == (1 << sectors) - 1
            assert found.entries() == (entries if complete else entries[:-1])
            assert (found.tail.state is TailState.TORN) == (subset > 0 and not complete)


def test_an_acknowledged_frame_is_never_taken_for_torn() -> None:
    """Rule b: zeros in a frame that another one follows are damage, in whichever sector they are."""
    files, _ = small_log(PAYLOADS)
    files.process_crash()
    files.cached_names.pop(WATERMARK_NAME)
    inode = files.cached_names[segment_names(files)[0]]
    original = bytes(inode.cache)
    end = survey(files, DIRECTORY).tail.offset - 2 * SECTOR
    for start in range(SECTOR, end, SECTOR):
        inode.cache = bytearray(original[:start] + bytes(SECTOR) + original[start + SECTOR :])
        assert isinstance(survey(files, DIRECTORY).problem, LogCorrupt), start


def test_image_of_a_frame_in_a_payload_is_no_frame() -> None:
    """A payload that holds frames of another log does not make a torn frame look acknowledged."""
    other, _ = small_log([[b"x" * 400], [b"y" * 400]])
    image = bytes(other.cached_names[segment_names(other)[0]].cache[512 : 512 * 4])
    files = SimulatedFiles()
    files.identities = 7
    owner = Owner(files, options=SMALL)
    owner.begin()
    owner.append(1, b"z" * (464 - 20) + image)
    owner.drain()
    files.process_crash()
    files.cached_names.pop(WATERMARK_NAME)
    inode = files.cached_names[segment_names(files)[0]]
    start = inode.cache.find(b"WFRM", 1024)
    assert start % SECTOR == 0
    inode.cache[start : start + SECTOR] = bytes(SECTOR)
    found = survey(files, DIRECTORY)
    assert found.problem is None
    assert found.tail.state is TailState.TORN
