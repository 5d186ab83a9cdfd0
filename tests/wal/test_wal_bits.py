"""Every bit of a log flipped, one at a time: the log is refused, or it says exactly what it said before.

Of the segments every bit of what was written, and here and there a bit in the zeros behind it; of the
watermark every bit. A flip under a checksum that a reader needs must be refused.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tiers import count
from tests.wal import oracle
from tests.wal.simulated_files import SECTOR
from tests.wal.specimens import NAMES, WATERMARK, Specimen, make


def flips(start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Positions and masks: all bits from `start` to a little behind `end`, then one in every seventh byte."""
    near = min(end + 50, size)
    for position in range(start, near):
        for bit in range(8):
            yield position, 1 << bit
    for position in range(near, size, 7):
        yield position, 1 << position % 8


def flip_all(specimen: Specimen, name: str, places: Iterator[tuple[int, int]], needed: list[range]) -> int:
    """Flip and open; the number of flips that were refused."""
    covered = {position for part in needed for position in part}
    image = bytearray(specimen.images[name])
    changes: dict[str, bytes | None] = {name: image}  # type: ignore[dict-item]
    done = refused = 0
    for position, mask in places:
        image[position] ^= mask
        found = specimen.found(changes)
        image[position] ^= mask
        done += 1
        if found is None:
            refused += 1
        else:
            assert found == specimen.records, (name, position, mask)
            assert position not in covered, (name, position, mask)
    assert specimen.found(changes) == specimen.records
    count("log: bit flips", done)
    return refused


@pytest.mark.parametrize("name", NAMES)
def test_every_bit_of_the_segments(name: str) -> None:
    specimen = make(name)
    needed = oracle.needed([specimen.images[segment] for segment in specimen.segments])
    for segment, ranges in zip(specimen.segments, needed, strict=True):
        image = specimen.images[segment]
        end = oracle.frames(image)[-1].end
        start = 0
        if name in (
            "in place",
            "restart",
        ):  # what stands before a checkpoint is flipped through in the others
            start = ranges[1].start if ranges else end
        refused = flip_all(specimen, segment, flips(start, end, len(image)), ranges)
        assert refused >= 8 * sum(len(part) for part in ranges if part.start >= start)


@pytest.mark.parametrize("name", ["many frames", "closed"])
def test_every_bit_of_the_watermark(name: str) -> None:
    """Its loss costs no record by itself: the other slot, which says less, takes over."""
    specimen = make(name)
    size = len(specimen.images[WATERMARK])
    assert size == 2 * SECTOR
    flip_all(specimen, WATERMARK, flips(0, size, size), [])
