"""Values survive the way to the protocol and back; what SQL cannot express is refused."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from participant_agent.v1 import statement_pb2 as pb
from xacoord.values import decode_value, encode_value

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**65), max_value=10**65),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    st.dates(),
    st.datetimes(),
    st.timedeltas(),
)


@given(VALUES)
def test_round_trip(value: object) -> None:
    wire = pb.Value.FromString(encode_value(value).SerializeToString())
    back = decode_value(wire)
    assert back == value
    assert type(back) is type(value)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**65), max_value=10**65))
def test_decimals_travel_without_an_exponent(value: Decimal) -> None:
    text = encode_value(value).decimal
    assert set(text) <= set("0123456789.-")
    assert Decimal(text) == value


@pytest.mark.parametrize(
    ("value", "back"),
    [
        (True, 1),
        (bytearray(b"a\0"), b"a\0"),
        (memoryview(b"b"), b"b"),
        (time(1, 2, 3, 40), timedelta(hours=1, minutes=2, seconds=3, microseconds=40)),
        (StrEnum("Colour", ["RED"]).RED, "red"),
        (IntEnum("Size", ["XL"]).XL, 1),
    ],
)
def test_convenient_types(value: object, back: object) -> None:
    decoded = decode_value(encode_value(value))
    assert decoded == back
    assert type(decoded) is type(back)


@pytest.mark.parametrize(
    ("wire", "value"),
    [
        (pb.Value(null=False), None),
        (pb.Value(date="0000-00-00"), "0000-00-00"),
        (pb.Value(date="2024-02-00"), "2024-02-00"),
        (pb.Value(datetime="0000-00-00 00:00:00"), "0000-00-00 00:00:00"),
        (pb.Value(datetime="2024-02-29 23:59:59.5"), datetime(2024, 2, 29, 23, 59, 59, 500000)),
        (pb.Value(datetime="2024-02-29 23:59:59.12"), datetime(2024, 2, 29, 23, 59, 59, 120000)),
        (pb.Value(time="-838:59:59.5"), -timedelta(hours=838, minutes=59, seconds=59.5)),
        (pb.Value(time="00:00:00.000001"), timedelta(microseconds=1)),
    ],
)
def test_what_servers_send(wire: pb.Value, value: object) -> None:
    assert decode_value(wire) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (timedelta(hours=-100, minutes=-1), "-100:01:00"),
        (timedelta(seconds=1.5), "00:00:01.500000"),
        (datetime(999, 1, 2, 3, 4, 5), "0999-01-02 03:04:05"),
        (Decimal("-12.50"), "-12.50"),
        (Decimal("1E+3"), "1000"),
    ],
)
def test_text_forms(value: object, text: str) -> None:
    wire = encode_value(value)
    assert getattr(wire, wire.WhichOneof("kind")) == text


@pytest.mark.parametrize("value", [uuid4(), [1], {"a": 1}, object(), 1j, {1}])
def test_types_without_counterpart_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no SQL counterpart"):
        encode_value(value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (2**64, "2\\^64"),
        (-(2**63) - 1, "2\\^63"),
        (float("nan"), "nan"),
        (float("-inf"), "inf"),
        (Decimal("NaN"), "NaN"),
        (Decimal("1E+999999"), "exponent"),
        (Decimal("1E-999999"), "exponent"),
        (datetime(2024, 1, 1, tzinfo=UTC), "naive"),
        (time(1, tzinfo=UTC), "naive"),
        ("\ud800", "Unicode"),
    ],
)
def test_values_that_sql_cannot_express_are_refused(value: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        encode_value(value)


def test_unknown_kind_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="update the SDK"):
        decode_value(pb.Value())


def test_date_is_not_taken_for_datetime() -> None:
    assert encode_value(date(2024, 1, 2)).WhichOneof("kind") == "date"
    assert encode_value(datetime(2024, 1, 2)).WhichOneof("kind") == "datetime"
