"""Names of branches: what is ours comes back as it was, what is not ours is left as it is."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dtp import FORMAT_ID, Gtrid, Reason, XacoordError, Xid, format_bqual, parse_bqual
from dtp.xid import (
    GTRID_LENGTH,
    MAX_COUNTER,
    MAX_EPOCH,
    MAX_PARTICIPANT_NUMBER,
    RANDOM_BITS,
    SEQUENCE_LENGTH,
    is_coordinator_id,
)

coordinator_ids = st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=4, max_size=4)
epochs = st.integers(0, MAX_EPOCH)
counters = st.integers(0, MAX_COUNTER)
bits = st.integers(0, 2**RANDOM_BITS - 1)
gtrids = st.builds(Gtrid.make, coordinator_ids, epochs, counters, bits)
numbers = st.integers(0, MAX_PARTICIPANT_NUMBER)
parts = st.binary(max_size=64)


@given(gtrids, counters, bits)
def test_a_gtrid_comes_back(gtrid: Gtrid, counter: int, random_bits: int) -> None:
    text = str(gtrid)
    assert re.fullmatch(r"k1[0-9a-z]{18}", text)
    assert len(text) == GTRID_LENGTH == 20
    assert Gtrid.parse(text) == gtrid
    again = Gtrid.make(gtrid.coordinator_id, gtrid.epoch, counter, random_bits)
    assert again.counter == counter
    assert again.sequence & (2**RANDOM_BITS - 1) == random_bits


def test_the_last_counter_fits() -> None:
    last = Gtrid.make("zzzz", MAX_EPOCH, MAX_COUNTER, 2**RANDOM_BITS - 1)
    assert last.sequence == 36**SEQUENCE_LENGTH - 1
    assert Gtrid.parse(str(last)) == last
    with pytest.raises(XacoordError) as caught:
        Gtrid.make("zzzz", MAX_EPOCH, MAX_COUNTER + 1, 0)
    assert caught.value.reason is Reason.EPOCH_EXHAUSTED


@given(coordinator_ids, epochs, epochs, counters, counters, bits, bits)
def test_strings_are_ordered_as_epoch_and_sequence(
    coordinator_id: str, epoch: int, epoch2: int, counter: int, counter2: int, some: int, others: int
) -> None:
    one = Gtrid.make(coordinator_id, epoch, counter, some)
    two = Gtrid.make(coordinator_id, epoch2, counter2, others)
    by_number = (one.epoch, one.sequence) < (two.epoch, two.sequence)
    assert (str(one) < str(two)) == by_number
    assert (one < two) == by_number


@given(st.text(max_size=24))
@example("")
@example("k1test00010000001ekG")
@example("k2test00010000001ekg")
@example("k1test00010000001ekg\n")
@example("k1test0001000000\u06611ekg")
@example("'; DROP TABLE accounts")
@example("k1test00010000001ek\ud800")
def test_any_other_text_is_refused_politely(text: str) -> None:
    if re.fullmatch(r"k1[0-9a-z]{18}", text):
        assert str(Gtrid.parse(text)) == text
        return
    with pytest.raises(XacoordError) as caught:
        Gtrid.parse(text)
    assert caught.value.reason is Reason.INVALID_GTRID
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()


@given(numbers)
def test_a_bqual_comes_back(number: int) -> None:
    text = format_bqual(number)
    assert re.fullmatch(r"[0-9a-z]{4}", text)
    assert parse_bqual(text.encode()) == number


@pytest.mark.parametrize("number", [-1, MAX_PARTICIPANT_NUMBER + 1])
def test_a_number_out_of_range_has_no_bqual(number: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        format_bqual(number)


@given(parts)
@example(b"00A1")
@example(b"+001")
@example(b"0_01")
@example("000\u0661".encode())
def test_bytes_of_another_shape_are_no_bqual(bqual: bytes) -> None:
    is_ours = re.fullmatch(rb"[0-9a-z]{4}", bqual) is not None
    assert (parse_bqual(bqual) is not None) == is_ours


@given(gtrids, numbers)
def test_our_xid_says_whose_it_is(gtrid: Gtrid, number: int) -> None:
    xid = Xid.of(str(gtrid), number)
    assert xid.format_id == FORMAT_ID == 1
    assert xid.ours() == gtrid
    assert xid.number == number
    assert str(xid) == f"{gtrid}.{format_bqual(number)}:1"


@given(st.integers(-1, 2**31 - 1), parts, parts)
@example(1, b"", b"")
@example(1, b"k1test00010000001ekg", b"")
@example(7, b"k1test00010000001ekg", b"0001")
@example(1, b"k1test00010000001ekg", b"0001\x00")
@example(1, b"k1\xff\xfe\x00st00010000001", b"0001")
def test_foreign_xids_may_hold_any_bytes(format_id: int, gtrid: bytes, bqual: bytes) -> None:
    xid = Xid(format_id, gtrid, bqual)
    shaped = re.fullmatch(rb"k1[0-9a-z]{18}", gtrid) and re.fullmatch(rb"[0-9a-z]{4}", bqual)
    assert (xid.ours() is not None) == bool(shaped and format_id == 1)
    assert str(xid).isascii()
    assert str(xid).isprintable()


@given(st.integers(0, 2**31 - 1), parts, parts)
def test_sql_is_hexadecimal_and_says_all(format_id: int, gtrid: bytes, bqual: bytes) -> None:
    sql = Xid(format_id, gtrid, bqual).sql()
    found = re.fullmatch(r"X'([0-9a-f]*)',X'([0-9a-f]*)',(\d+)", sql)
    assert found is not None
    assert bytes.fromhex(found[1]) == gtrid
    assert bytes.fromhex(found[2]) == bqual
    assert int(found[3]) == format_id


@pytest.mark.parametrize(("gtrid", "bqual"), [(b"x" * 65, b""), (b"", b"x" * 65)])
def test_parts_have_at_most_64_bytes(gtrid: bytes, bqual: bytes) -> None:
    with pytest.raises(ValueError, match="64"):
        Xid(1, gtrid, bqual)


@given(st.text(max_size=6))
@example("test")
@example("te\u0161t")
def test_coordinator_ids(text: str) -> None:
    assert is_coordinator_id(text) == (re.fullmatch(r"[0-9a-z]{4}", text) is not None)
