"""The bytes of the log. Every struct is in this file; docs/wal-format.md tells the same at length.

All integers are little endian. A *sector* is 512 bytes, the unit that a disk writes whole or not
at all. Frames begin at multiples of the *alignment* (512 or 4096). CRC is CRC-32C.

Segment `wal-<seq, 16 hexadecimal digits>.log`: made under a temporary name, allocated, filled with
zeros, given its header (and checkpoint), flushed, renamed, directory flushed. Never used twice
(R5). So a sector of zeros inside a segment was never written, which is what lets a torn write be
told from damage. For the same reason no written sector may be all zero (R6): padding is 0xA5, and a
body that would leave a sector of zeros is masked (below).

Segment header, 96 bytes, padded with 0xA5 to the alignment:

    magic 8s, version u16, header length u16 (the CRC is the last 4 of these bytes in every version),
    alignment u32, log identity 16s, seq u64, first lsn u64, epoch u64, created_ns u64 (for people),
    segment size u64, prev_end u64 and prev_chain u32 (where and with which chain value the segment
    before ended), flags u32, chain seed u32 (CRC of everything before it), CRC u32

Frame = one group commit, header of 48 bytes:

    0 magic u32, 4 body length u32, 8 lsn u64 of the first record, 16 epoch u64, 24 record count u32,
    28 type u16, 30 mask u16, 32 chain_prev u32, 36 body CRC u32 (seed: chain_prev),
    40 header CRC u32 over bytes 0..39 (seed: the segment's chain seed), 44 zero u32, 48 body, padding

Seeding the header's CRC makes a frame belong to its segment: the image of a frame inside a payload,
from another segment, another log or a backup, does not pass for a frame.

Body, by columns: `count` entries of 20 bytes (sequence u64, epoch u32, kind u16, flags u16, payload
length u32), then the payloads. DATA and CHECKPOINT bodies look so. Records of a checkpoint take no
lsn: they all stand "as of" the record before the frame's lsn. CHECKPOINT_END's body is the number of
entries of the checkpoint (u64) and its count is 0; CLOSE's body is the wall clock in ns (u64).

Mask: 0 as a rule. If some sector of the frame would be all zero, the body is written exclusive-or'ed
with a 16-bit word that no such sector consists of; a frame has fewer sectors than there are words.

Watermark file: two slots of one sector each, written in turn: magic 8s, identity 16s, counter u64,
durable lsn u64, epoch u64, newest segment's seq u64, CRC u32.
"""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import google_crc32c

from wal.entry import Entry

VERSION = 1
SECTOR = 512
SEGMENT_MAGIC = b"xacowal\n"
FRAME_MAGIC = 0x4D524657  # "WFRM"
WATERMARK_MAGIC = b"xacomark"
PAD = b"\xa5"
ZERO_SECTOR = bytes(SECTOR)

SEGMENT_HEADER = Struct("<8sHHI16sQQQQQQIIII")
FRAME_HEADER = Struct("<IIQQIHHIIII")
FRAME_COVERED = Struct("<IIQQIHHII")
ENTRY = Struct("<QIHHI")
WATERMARK = Struct("<8s16sQQQQI")
U64 = Struct("<Q")
U32 = Struct("<I")
assert SEGMENT_HEADER.size == 96
assert FRAME_HEADER.size == 48
assert FRAME_COVERED.size == 40
assert ENTRY.size == 20
assert WATERMARK.size == 60 <= SECTOR

MAX_PAYLOAD = 8 << 20
MAX_BATCH = 4 << 20
MAX_BODY = 16 << 20
CHECKPOINT_BODY = 256 << 10
assert MAX_BATCH + MAX_PAYLOAD + 2 * ENTRY.size < MAX_BODY
assert (MAX_BODY + FRAME_HEADER.size) // SECTOR < 0xFFFF, "there must be a mask for every body"

SEGMENT_NAME = re.compile(r"wal-([0-9a-f]{16})\.log")
TEMPORARY_SUFFIX = ".tmp"
WATERMARK_NAME = "watermark"
LOCK_NAME = "lock"


class FrameType(enum.IntEnum):
    """What a frame holds."""

    DATA = 1
    CHECKPOINT = 2
    CHECKPOINT_END = 3
    CLOSE = 4


class SegmentFlag(enum.IntFlag):
    """How a segment came to be."""

    CONTINUES = 1  # no checkpoint at its head: it needs the segment before it
    SEALED = 2  # everything up to prev_end was durable when this segment was made
    REPAIRED = 4  # made by a repair: older segments and the watermark belong to the log as it was


NO_FLAGS = SegmentFlag(0)


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first block of a segment; the fields are described above."""

    identity: bytes
    seq: int
    first_lsn: int
    epoch: int
    created_ns: int
    size: int
    alignment: int
    prev_end: int = 0
    prev_chain: int = 0
    flags: SegmentFlag = NO_FLAGS

    @property
    def chain_seed(self) -> int:
        return crc(0, self._fields(0, 0)[:-8])

    @property
    def name(self) -> str:
        return segment_name(self.seq)

    def _fields(self, seed: int, check: int) -> bytes:
        return SEGMENT_HEADER.pack(
            SEGMENT_MAGIC, VERSION, SEGMENT_HEADER.size, self.alignment, self.identity, self.seq,
            self.first_lsn, self.epoch, self.created_ns, self.size, self.prev_end, self.prev_chain,
            self.flags, seed, check,
        )  # fmt: skip

    def encode(self) -> bytes:
        """The header with its padding, `alignment` bytes."""
        covered = self._fields(self.chain_seed, 0)[:-4]
        return (covered + U32.pack(crc(0, covered))).ljust(self.alignment, PAD)


class FrameHeader(NamedTuple):
    """The first 48 bytes of a frame, after its CRC was found right."""

    body_len: int
    lsn: int
    epoch: int
    records: int
    type: int
    mask: int
    chain_prev: int
    body_crc: int


@dataclass(frozen=True, slots=True)
class Watermark:
    """A lower bound of what is durable; `counter` tells the newer of the two slots."""

    identity: bytes
    counter: int
    lsn: int
    epoch: int
    seq: int


class HeaderInvalid(Exception):
    """A segment header that is none."""


class HeaderTooNew(Exception):
    """A sound segment header of a version that this program does not know."""


# Not wrapped: a log of small frames is read at the speed of this call.
crc: Callable[[int, bytes], int] = google_crc32c.extend


def segment_name(seq: int) -> str:
    return f"wal-{seq:016x}.log"


def segment_seq(name: str) -> int | None:
    """The number in a segment's file name, None for other files."""
    match = SEGMENT_NAME.fullmatch(name)
    return int(match[1], 16) if match else None


def frame_size(body_len: int, alignment: int) -> int:
    """Bytes that a frame takes on disk."""
    return -(-(FRAME_HEADER.size + body_len) // alignment) * alignment


def decode_segment_header(block: bytes) -> SegmentHeader:
    """Reads a segment header.

    Raises:
        HeaderInvalid: not a header, or damaged. HeaderTooNew: a sound one of another version.
    """
    if len(block) < SEGMENT_HEADER.size or block[:8] != SEGMENT_MAGIC:
        raise HeaderInvalid("this is no segment header")
    length = int.from_bytes(block[10:12], "little")
    if not 16 <= length <= len(block) or crc(0, block[: length - 4]) != U32.unpack_from(block, length - 4)[0]:
        raise HeaderInvalid("the checksum of the segment header is wrong")
    version = int.from_bytes(block[8:10], "little")
    if version != VERSION:
        raise HeaderTooNew(f"the segment has format version {version}, this program knows {VERSION}")
    fields = SEGMENT_HEADER.unpack_from(block)
    alignment, identity, seq, first_lsn, epoch, created_ns, size, prev_end, prev_chain, flags, seed = fields[
        3:14
    ]
    if flags & ~int(SegmentFlag.CONTINUES | SegmentFlag.SEALED | SegmentFlag.REPAIRED):
        raise HeaderTooNew(f"the segment has flags {flags:#x}, which this program does not know")
    header = SegmentHeader(
        identity, seq, first_lsn, epoch, created_ns, size, alignment, prev_end, prev_chain, SegmentFlag(flags)
    )
    if header.chain_seed != seed or alignment not in (SECTOR, 4096) or length != SEGMENT_HEADER.size:
        raise HeaderInvalid("the segment header contradicts itself")
    return header


def encode_frame(
    kind: FrameType, *, lsn: int, epoch: int, count: int, body: bytes, chain: int, seed: int, alignment: int
) -> tuple[bytes, int]:
    """Builds a frame.

    Arguments:
        chain: body CRC of the frame before, or the segment's chain seed.
        seed: the segment's chain seed.

    Returns:
        The bytes to write and the new chain value.
    """
    mask = 0
    if ZERO_SECTOR in body:
        mask = _choose_mask(body)
        body = apply_mask(body, mask)
    body_crc = crc(chain, body)
    covered = FRAME_COVERED.pack(FRAME_MAGIC, len(body), lsn, epoch, count, kind, mask, chain, body_crc)
    head = covered + U32.pack(crc(seed, covered)) + bytes(4)
    return (head + body).ljust(frame_size(len(body), alignment), PAD), body_crc


def decode_frame_header(data: bytes, offset: int, seed: int) -> FrameHeader | None:
    """The frame header at `offset`, None when there is no sound one."""
    if offset + FRAME_HEADER.size > len(data):
        return None
    fields = FRAME_HEADER.unpack_from(data, offset)
    if fields[0] != FRAME_MAGIC or crc(seed, data[offset : offset + FRAME_COVERED.size]) != fields[9]:
        return None
    if fields[10] != 0 or fields[1] > MAX_BODY:
        return None
    return FrameHeader._make(fields[1:9])


def encode_entries(entries: Iterable[Entry]) -> bytes:
    """The body of a DATA or CHECKPOINT frame."""
    heads: list[bytes] = []
    payloads: list[bytes] = []
    for entry in entries:
        heads.append(ENTRY.pack(entry.sequence, entry.epoch, entry.kind, entry.flags, len(entry.payload)))
        payloads.append(entry.payload)
    return b"".join(heads + payloads)


def decode_entries(body: bytes, count: int, lsn: int, step: int) -> Iterator[Entry]:
    """The entries of a body that `body_is_sound` approved; `step` is 1, or 0 in a checkpoint."""
    offset = count * ENTRY.size
    for sequence, epoch, kind, flags, length in ENTRY.iter_unpack(body[:offset]):
        end = offset + length
        yield Entry(kind, epoch, sequence, body[offset:end], flags, lsn)
        offset = end
        lsn += step


def body_is_sound(body: bytes, count: int) -> bool:
    """Whether the lengths of the entries add up to the body."""
    heads = count * ENTRY.size
    if heads > len(body):
        return False
    lengths = U32.unpack_from(body, ENTRY.size - U32.size) if count == 1 else _lengths(body, heads)
    return heads + sum(lengths) == len(body)


def _lengths(body: bytes, heads: int) -> Iterable[int]:
    """The lengths of the payloads: the last of the five words of each head."""
    if sys.byteorder == "little":
        return memoryview(body)[:heads].cast("I")[4::5]
    return (head[4] for head in ENTRY.iter_unpack(body[:heads]))


def _choose_mask(body: bytes) -> int:
    first = -FRAME_HEADER.size % SECTOR
    taken = set()
    for start in range(first, len(body) - SECTOR + 1, SECTOR):
        word = body[start : start + 2]
        if word * (SECTOR // 2) == body[start : start + SECTOR]:
            taken.add(int.from_bytes(word, "little"))
    return (
        next(mask for mask in range(0xA5A5, 0x1A5A5) if mask & 0xFFFF not in taken and mask & 0xFFFF) & 0xFFFF
    )


def apply_mask(body: bytes, mask: int) -> bytes:
    """Exclusive-or of the body with a repeated 16-bit word; its own inverse."""
    size = len(body)
    pattern = (mask.to_bytes(2, "little") * (size // 2 + 1))[:size]
    return (int.from_bytes(body, "little") ^ int.from_bytes(pattern, "little")).to_bytes(size, "little")


def encode_watermark(mark: Watermark) -> bytes:
    """One slot, a sector long."""
    fields = WATERMARK.pack(WATERMARK_MAGIC, mark.identity, mark.counter, mark.lsn, mark.epoch, mark.seq, 0)[
        :-4
    ]
    return (fields + U32.pack(crc(0, fields))).ljust(SECTOR, PAD)


def decode_watermark(slot: bytes) -> Watermark | None:
    """The watermark in a slot, None when it is not sound."""
    if len(slot) < WATERMARK.size:
        return None
    magic, identity, counter, lsn, epoch, seq, check = WATERMARK.unpack_from(slot)
    if magic != WATERMARK_MAGIC or crc(0, slot[: WATERMARK.size - 4]) != check:
        return None
    return Watermark(identity, counter, lsn, epoch, seq)
