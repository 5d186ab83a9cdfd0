"""Damage larger than a bit to logs in every moment of their life: cuts, zeros, sectors, frames, files.

The verdict is `tests.wal.oracle`'s. A log may come back shorter only where what is missing is above the
watermark and then only for damage that looks like a crash: zeros at the end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.wal import oracle
from tests.wal.owner import DIRECTORY, SMALL, Owner, segment_names, small_log
from tests.wal.simulated_files import SECTOR, SimulatedFiles
from tests.wal.specimens import NAMES, WATERMARK, Author, Specimen, as_records, contents, make, specimen
from wal import Entry, Options, TailState
from wal.format import WATERMARK_NAME
from wal.survey import survey

Changes = dict[str, bytes | None]


@pytest.fixture(scope="module", params=NAMES)
def any_log(request: pytest.FixtureRequest) -> Specimen:
    return make(request.param)


def lost(log: Specimen, changes: Changes, *, like_a_crash: bool = False) -> int:
    """How many records were given up in silence: 0, unless the damage is like a crash's."""
    recovered = log.read(changes)
    if recovered is None:
        return 0
    found, last = as_records(recovered), recovered.next_lsn - 1
    if found == log.records and recovered.next_lsn == log.next_lsn:
        return 0
    assert like_a_crash, "a silent loss, or a changed record"
    assert log.watermark <= last < log.next_lsn, "an acknowledged record below the watermark is missing"
    assert contents(found) in log.states[last], "a changed record"
    return log.next_lsn - recovered.next_lsn


def test_cut_at_every_byte(any_log: Specimen) -> None:
    """A file shorter or longer than its header says was not left by a crash: size is made before use."""
    for name in any_log.segments:
        image = any_log.images[name]
        end = oracle.frames(image)[-1].end
        for length in (*range(end), *range(end, len(image), 5)):
            assert any_log.read({name: image[:length]}) is None, (name, length)
        for more in (b"\0", bytes(len(image)), image):
            assert any_log.read({name: image + more}) is None


def test_zeroed_from_every_byte(any_log: Specimen) -> None:
    """Looks like a crash that came before the flush. Never noticed above the watermark, always below."""
    worst = 0
    for name in any_log.segments:
        image = any_log.images[name]
        for start in range(oracle.frames(image)[-1].end):
            zeroed = image[:start] + bytes(len(image) - start)
            worst = max(worst, lost(any_log, {name: zeroed}, like_a_crash=name == any_log.last))
    assert worst == oracle.window(any_log.images[any_log.last], any_log.next_lsn, any_log.watermark)


def sectors(log: Specimen) -> Iterator[tuple[str, int]]:
    for name in (*log.segments, WATERMARK):
        for start in range(0, len(log.images[name]), SECTOR):
            yield name, start


def replaced(image: bytes, start: int, piece: bytes) -> bytes:
    return image[:start] + piece + image[start + len(piece) :]


@pytest.mark.parametrize("what", ["random", "ones", "text"])
def test_each_sector_overwritten(any_log: Specimen, what: str) -> None:
    source = random.Random(1)
    for name, start in sectors(any_log):
        piece = {
            "random": source.randbytes(SECTOR),
            "ones": b"\xff" * SECTOR,
            "text": b"somebody else's data\n".ljust(SECTOR, b"."),
        }[what]
        assert lost(any_log, {name: replaced(any_log.images[name], start, piece)}) == 0, (name, start)


def test_each_sector_zeroed(any_log: Specimen) -> None:
    """One sector of zeros costs the last frame at most, and that only above the watermark."""
    last = oracle.frames(any_log.images[any_log.last])[-1]
    for name, start in sectors(any_log):
        zeroed = replaced(any_log.images[name], start, bytes(SECTOR))
        in_last_frame = name == any_log.last and last.start <= start < last.end
        assert lost(any_log, {name: zeroed}, like_a_crash=in_last_frame) in (0, last.count), (name, start)


def test_each_pair_of_sectors_swapped(any_log: Specimen) -> None:
    """A misdirected write, also between files. Zeros that arrive at the end may look like a crash."""
    last = oracle.frames(any_log.images[any_log.last])[-1]
    places = list(sectors(any_log))
    for index, (name, start) in enumerate(places):
        for other, at in places[index + 1 :: 3]:
            images: dict[str, bytes] = {name: any_log.images[name], other: any_log.images[other]}
            one, two = images[name][start : start + SECTOR], images[other][at : at + SECTOR]
            if one == two:
                continue
            images[name] = replaced(images[name], start, two)
            images[other] = replaced(images[other], at, one)
            touched = [p for n, p in ((name, start), (other, at)) if n == any_log.last]
            like_a_crash = any(last.start <= p < last.end for p in touched) and not (any(one) and any(two))
            assert lost(any_log, dict(images), like_a_crash=like_a_crash) in (0, last.count)


def test_a_stale_sector(any_log: Specimen) -> None:
    """A write that was acknowledged and lost. Segments are never used twice: what was there is zeros."""
    last = oracle.frames(any_log.images[any_log.last])[-1]
    for name in any_log.segments:
        image = any_log.images[name]
        for frame in oracle.frames(image):
            like_a_crash = name == any_log.last and frame == last
            for start in range(frame.start, frame.end, SECTOR):
                torn = replaced(image, start, bytes(frame.end - start))
                assert lost(any_log, {name: torn}, like_a_crash=like_a_crash) in (0, last.count)


def test_each_frame_twice(any_log: Specimen) -> None:
    """Again behind itself (the rest moved on), in place of the next one, and at the end."""
    for name in any_log.segments:
        image = any_log.images[name]
        found = oracle.frames(image)
        for frame in found:
            copy = image[frame.start : frame.end]
            moved = (image[: frame.end] + copy + image[frame.end :])[: len(image)]
            over = replaced(image, frame.end, copy)[: len(image)]
            at_the_end = replaced(image, found[-1].end, copy)[: len(image)]
            for damaged in (moved, over, at_the_end):
                assert damaged == image or lost(any_log, {name: damaged}) == 0, (name, frame)


def test_each_frame_left_out(any_log: Specimen) -> None:
    """What follows moves up; only the last frame can be missed, above the watermark."""
    for name in any_log.segments:
        image = any_log.images[name]
        found = oracle.frames(image)
        for frame in found:
            damaged = (image[: frame.start] + image[frame.end :]).ljust(len(image), b"\0")
            like_a_crash = name == any_log.last and frame == found[-1]
            assert lost(any_log, {name: damaged}, like_a_crash=like_a_crash) in (0, frame.count), (
                name,
                frame,
            )


# Files


def test_segment_files_missing_empty_swapped_or_renamed(any_log: Specimen) -> None:
    names = any_log.segments
    newer = "wal-00000000000000ff.log"
    for name in names:
        image = any_log.images[name]
        assert any_log.read({name: b""}) is None
        assert any_log.read({name: bytes(len(image))}) is None
        assert any_log.read({name: None, newer: image}) is None
        assert any_log.read({newer: image}) is None
    if len(names) == 2:
        first, second = names
        assert lost(any_log, {first: None}) == 0
        images = any_log.images
        assert any_log.read({first: images[second], second: images[first]}) is None
    # The newest file gone: noticed as soon as the watermark has been saved since it was begun.
    window = oracle.window(any_log.images[any_log.last], any_log.next_lsn, any_log.watermark)
    unknown = any_log.name in ("sealed", "in place", "rotation")
    assert lost(any_log, {any_log.last: None}, like_a_crash=unknown) == (window if unknown else 0)


def test_everything_missing_but_the_watermark(any_log: Specimen) -> None:
    assert any_log.read(dict.fromkeys(any_log.segments)) is None


def test_files_of_another_log(any_log: Specimen) -> None:
    """One file of another log among ours, whichever: refused."""

    def same(author: Author) -> None:
        author.files.identities += 40
        author.append(b"same" * 100)
        author.tend()
        author.append(b"same" * 50)

    author = Author(identities=99)
    author.begin()
    same(author)
    author.kill()
    foreign = {name: bytes(inode.cache) for name, inode in author.files.cached_names.items()}
    (segment,) = (name for name in foreign if name.endswith(".log"))
    for name in any_log.segments:
        assert any_log.read({name: foreign[segment]}) is None
    assert any_log.read({WATERMARK: foreign[WATERMARK]}) is None


def test_watermark_missing_empty_or_older(any_log: Specimen) -> None:
    """A lower bound that is gone or too low costs no record; it only bounds less."""
    changes: list[Changes] = [{WATERMARK: None}, {WATERMARK: b""}, {WATERMARK: bytes(2 * SECTOR)}]
    image = any_log.images[WATERMARK]
    changes += [{WATERMARK: image[:SECTOR]}, {WATERMARK: bytes(SECTOR) + image[SECTOR:]}]
    for change in changes:
        assert any_log.found(change) in (None, any_log.records)
    assert any_log.found({WATERMARK: None}) == any_log.records
    assert any_log.read({WATERMARK: b"?" * len(image)}) is None, "both slots cannot be torn by a crash"


def test_files_left_behind_do_not_matter(any_log: Specimen) -> None:
    """Unfinished, retired and torn files are for the next start or for people, whatever they hold."""
    image = any_log.images[any_log.last]
    for name in (
        "fresh.tmp",
        "spare-9.tmp",
        "watermark.tmp",
        any_log.last + "-200.torn",
        any_log.last + ".damaged",
    ):
        for content in (b"", b"?" * 700, image, image[:999]):
            assert any_log.found({name: content}) == any_log.records


# A frame in flight


def in_flight(
    frame_sectors: int, payload: bytes, options: Options
) -> tuple[SimulatedFiles, bytes, int, list[Entry]]:
    """A log, its segment without the last frame, where that starts, and the records with it."""
    files, owner = small_log([[b"first" * 50], [payload]], options)
    files.process_crash()
    found = survey(files, DIRECTORY)
    inode = files.cached_names[segment_names(files)[0]]
    start = found.tail.offset - frame_sectors * SECTOR
    assert owner.acknowledged == 2
    return files, bytes(inode.cache), start, found.entries()


@pytest.mark.parametrize("alignment", [512, 4096])
@pytest.mark.parametrize("fill", [b"x", b"\0", b"\xa5"])
def test_every_subset_of_the_frame_in_flight(fill: bytes, alignment: int) -> None:
    """Whatever a power cut leaves of the frame in flight: never refused, and all of the frame or nothing."""
    options = Options(segment_bytes=64 * alignment, alignment=alignment)
    for size in (1, 2, 3, 5, 8) if alignment == 512 else (8,):
        payload = fill * (size * SECTOR - 48 - 20 - 7)
        files, full, start, entries = in_flight(size, payload, options)
        files.cached_names.pop(WATERMARK_NAME)
        inode = files.cached_names[segment_names(files)[0]]
        for subset in range(1 << size):
            data = bytearray(full)
            for sector in range(size):
                if not subset >> sector & 1:
                    at = start + sector * SECTOR
                    assert data[at : at + SECTOR] != bytes(SECTOR), "a written sector is all zero (R6)"
                    data[at : at + SECTOR] = bytes(SECTOR)
            inode.cache = data
            found = survey(files, DIRECTORY)
            assert found.problem is None, (size, subset, found.problem)
            complete = subset == (1 << size) - 1
            assert found.entries() == (entries if complete else entries[:-1])
            assert (found.tail.state is TailState.TORN) == (subset > 0 and not complete)


def test_an_acknowledged_frame_is_never_taken_for_torn() -> None:
    """Rule b: zeros in a frame that another one follows are damage, in whichever sector they are."""
    log = make("many frames")
    image = log.images[log.last]
    last = oracle.frames(image)[-1]
    for start in range(SECTOR, last.start, SECTOR):
        assert log.read({WATERMARK: None, log.last: replaced(image, start, bytes(SECTOR))}) is None, start


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


def test_sectors_of_4096_bytes() -> None:
    """The same rules at the other alignment: each written sector zeroed and overwritten."""

    def write(author: Author) -> None:
        author.append(b"a" * 5000)
        author.tend()
        author.append(b"b" * 100)

    log = specimen("4096", write, Options(segment_bytes=32 * 4096, alignment=4096))
    image = log.images[log.last]
    last = oracle.frames(image)[-1]
    for start in range(0, last.end + 8192, SECTOR):
        for piece in (bytes(SECTOR), b"\xff" * SECTOR):
            damaged = replaced(image, start, piece)
            in_last_frame = last.start <= start < last.end and piece == bytes(SECTOR)
            assert lost(log, {log.last: damaged}, like_a_crash=in_last_frame) in (0, last.count)
