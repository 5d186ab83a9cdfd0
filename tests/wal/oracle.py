"""The oracle of the damage tests: what a log must say, worked out without a line of `wal/`.

What was acknowledged is in the author's ledger (`tests.wal.specimens`); nothing is read back for it. Where
the frames lie is read here from the bytes, by the tables of docs/wal-format.md and a CRC of our own.

    the same records   right, unless the damage lies in bytes that a checksum covers and a reader needs
    refused            always safe: an operator decides
    a shorter log      only where the damage looks like a crash, and all that is lost is above the watermark
    anything else      a silent loss or a changed record
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

DATA, CHECKPOINT, CHECKPOINT_END, CLOSE = 1, 2, 3, 4
HEADER_BYTES = 96
Record = tuple[int, int, int, bytes, int, int]  # kind, epoch, sequence, payload, flags, lsn

_FRAME = struct.Struct("<IIQQIHHIII4x")
_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    _TABLE.append(_byte)


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame in a segment's image: `covered` bytes from `start` on are under a checksum."""

    start: int
    covered: int
    end: int
    kind: int
    lsn: int
    count: int


def crc32c(seed: int, data: bytes) -> int:
    """CRC-32C (Castagnoli), continued from `seed`."""
    value = seed ^ 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def frames(image: bytes) -> list[Frame]:
    """The frames of a sound segment, in order; fails on a segment that is not as the page describes it."""
    magic, version, length, alignment = struct.unpack_from("<8sHHI", image)
    assert (magic, version, length) == (b"xacowal\n", 1, HEADER_BYTES)
    seed, check = struct.unpack_from("<II", image, 88)
    assert (seed, check) == (crc32c(0, image[:88]), crc32c(0, image[:92]))
    found: list[Frame] = []
    at, chain = alignment, seed
    while at < len(image) and image[at : at + 4] == b"WFRM":
        _, size, lsn, _, count, kind, _, previous, body_crc, header_crc = _FRAME.unpack_from(image, at)
        covered = _FRAME.size + size
        assert header_crc == crc32c(seed, image[at : at + 40])
        assert (previous, body_crc) == (chain, crc32c(chain, image[at + _FRAME.size : at + covered]))
        end = at + -(-covered // alignment) * alignment
        assert image[at + covered : end] == b"\xa5" * (end - at - covered)
        found.append(Frame(at, covered, end, kind, lsn, count))
        at, chain = end, body_crc
    assert not any(image[at:]), "everything behind the last frame is zero"
    return found


def needed(images: Sequence[bytes]) -> list[list[range]]:
    """For each segment, oldest first: the bytes under a checksum without which the records cannot be told.

    That is the newest segment with a complete checkpoint, from that checkpoint on, and all that follows.
    """
    parsed = [frames(image) for image in images]
    newest = max(index for index, found in enumerate(parsed) if any(f.kind == CHECKPOINT_END for f in found))
    result: list[list[range]] = [[] for _ in images]
    for index in range(newest, len(images)):
        found, first = parsed[index], 0
        if index == newest:
            first = max(at for at, frame in enumerate(found) if frame.kind == CHECKPOINT_END)
            while first > 0 and found[first - 1].kind == CHECKPOINT:
                first -= 1
        result[index] = [range(HEADER_BYTES)]
        result[index] += [range(frame.start, frame.start + frame.covered) for frame in found[first:]]
    return result


def window(last: bytes, next_lsn: int, watermark: int) -> int:
    """How many of the newest records zeros at the end of the newest segment can hide, at worst.

    Those in it that are above the watermark: an older segment is sealed, or the newest stands for it.
    """
    data = [frame.lsn for frame in frames(last) if frame.kind == DATA]
    return next_lsn - max(watermark + 1, min(data, default=next_lsn))
