"""The bytes: what is encoded is decoded, and no written sector is all zero."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from wal import Entry
from wal.format import (
    FRAME_HEADER,
    MAX_BODY,
    SECTOR,
    FrameType,
    Watermark,
    apply_mask,
    body_is_sound,
    crc,
    decode_entries,
    decode_frame_header,
    decode_watermark,
    encode_entries,
    encode_frame,
    encode_watermark,
    frame_size,
)
from wal.segment import checkpoint_bound, checkpoint_frames

runs = st.lists(
    st.tuples(st.sampled_from([b"\0", b"\0\0\0\1", b"\xa5", b"\xa5\xa5\0\0", b"z"]), st.integers(0, 1400)),
    max_size=5,
).map(lambda parts: b"".join(piece * count for piece, count in parts))
entries = st.builds(
    Entry,
    kind=st.integers(0, 2**16 - 1),
    epoch=st.integers(0, 2**32 - 1),
    sequence=st.integers(0, 2**64 - 1),
    payload=runs,
    flags=st.integers(0, 2**16 - 1),
    lsn=st.just(0),
)


@given(st.lists(entries, max_size=6), st.sampled_from([512, 4096]), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_a_frame_is_read_as_written(written: list[Entry], alignment: int, seed: int) -> None:
    body = encode_entries(written)
    frame, chain = encode_frame(
        FrameType.DATA, lsn=7, epoch=3, count=len(written), body=body, chain=5, seed=seed, alignment=alignment
    )
    assert len(frame) == frame_size(len(body), alignment)
    assert all(frame[at : at + SECTOR] != bytes(SECTOR) for at in range(0, len(frame), SECTOR))
    header = decode_frame_header(frame, 0, seed)
    assert header is not None
    assert (header.lsn, header.epoch, header.records, header.chain_prev, header.body_crc) == (
        7,
        3,
        len(written),
        5,
        chain,
    )
    stored = frame[FRAME_HEADER.size : FRAME_HEADER.size + header.body_len]
    assert crc(5, stored) == chain
    plain = apply_mask(stored, header.mask) if header.mask else stored
    assert body_is_sound(plain, len(written))
    read = [
        Entry(e.kind, e.epoch, e.sequence, e.payload, e.flags)
        for e in decode_entries(plain, len(written), 7, 1)
    ]
    assert read == written
    assert decode_frame_header(frame, 0, seed ^ 1) is None, "a frame belongs to its segment"


@given(st.binary(max_size=80), st.integers(0, 6))
def test_lengths_that_do_not_add_up_are_seen(body: bytes, count: int) -> None:
    if body_is_sound(body, count):
        assert sum(len(entry.payload) + 20 for entry in decode_entries(body, count, 1, 1)) == len(body)


def test_there_is_a_mask_for_the_worst_body() -> None:
    """Every sector of the longest body excludes another word."""
    start = 0xA5A5
    words = [((start + n) & 0xFFFF).to_bytes(2, "little") for n in range(MAX_BODY // SECTOR - 1)]
    body = bytes(464) + b"".join(word * 256 for word in words) + bytes(SECTOR)
    frame, _ = encode_frame(
        FrameType.DATA, lsn=1, epoch=1, count=0, body=body, chain=0, seed=0, alignment=512
    )
    assert all(frame[at : at + SECTOR] != bytes(SECTOR) for at in range(0, len(frame), SECTOR))


@given(st.lists(st.binary(max_size=30).map(lambda payload: Entry(1, 1, 1, payload)), max_size=50))
def test_a_checkpoint_is_within_its_bound(state: list[Entry]) -> None:
    state = state * 40 + [Entry(1, 1, 1, b"b" * 300_000)] * (len(state) % 4)
    for alignment in (512, 4096):
        frames = list(checkpoint_frames(state))
        assert sum(frame_size(len(body), alignment) for _, _, body in frames) <= checkpoint_bound(
            state, alignment
        )
        assert sum(count for _, count, _ in frames) == len(state)


@given(st.integers(0, 2**64 - 1), st.integers(0, 8 * 60 - 1))
def test_watermark(lsn: int, bit: int) -> None:
    mark = Watermark(b"i" * 16, 1, lsn, 2, 3)
    slot = bytearray(encode_watermark(mark))
    assert len(slot) == SECTOR
    assert decode_watermark(bytes(slot)) == mark
    slot[bit // 8] ^= 1 << bit % 8
    assert decode_watermark(bytes(slot)) is None
