"""Python values to SQL values of the protocol, and back.

    None                   NULL
    int, bool              integer (-2^63 .. 2^64-1)
    float                  real (finite)
    Decimal                decimal, exact (finite)
    str                    text
    bytes, bytearray, memoryview   blob
    date                   date; zero and other impossible dates of MySQL come back as str
    datetime (naive)       datetime; likewise
    timedelta, time (naive)   time; comes back as timedelta

An aware datetime is refused: MySQL's DATETIME has no zone, and guessing one corrupts data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from participant_agent.v1 import statement_pb2 as pb

SqlValue = int | Decimal | float | str | bytes | date | datetime | timedelta | None

# Beyond any DECIMAL of MySQL (65 digits), and short enough to write out.
MAX_DECIMAL_EXPONENT = 1000


def encode_value(value: object) -> pb.Value:
    """`value` as the protocol carries it.

    Raises:
        TypeError: a type that has no SQL counterpart.
        ValueError: a value of a good type that SQL cannot express.
    """
    encode = _ENCODERS.get(type(value))
    if encode is not None:
        return encode(value)
    for base, encode in _ENCODERS.items():
        if isinstance(value, base):
            return encode(value)
    raise TypeError(
        f"a parameter of type {type(value).__qualname__} has no SQL counterpart: give None, int, float, "
        "Decimal, str, bytes, date, datetime or timedelta"
    )


def decode_value(value: pb.Value) -> SqlValue:
    """`value` as Python has it.

    Raises:
        ValueError: a kind that this SDK does not know (the agent is newer).
    """
    kind = value.WhichOneof("kind")
    if kind is None:
        raise ValueError("the agent sent a value of a kind that this SDK does not know: update the SDK")
    return _DECODERS[kind](getattr(value, kind))


def _encode_int(value: int) -> pb.Value:
    if -(2**63) <= value < 2**63:
        return pb.Value(integer=int(value))
    if 0 < value < 2**64:
        return pb.Value(unsigned_integer=int(value))
    raise ValueError("an int parameter must lie within -2^63 .. 2^64-1: give a Decimal")


def _encode_float(value: float) -> pb.Value:
    if not math.isfinite(value):
        raise ValueError(f"SQL has no {value}: give None or a finite number")
    return pb.Value(real=value)


def _encode_decimal(value: Decimal) -> pb.Value:
    if not value.is_finite():
        raise ValueError(f"SQL has no {value}: give None or a finite number")
    if abs(int(value.as_tuple().exponent)) > MAX_DECIMAL_EXPONENT:
        raise ValueError(f"a Decimal parameter must have an exponent within +-{MAX_DECIMAL_EXPONENT}")
    return pb.Value(decimal=format(value, "f"))


def encode_text(text: str, what: str) -> str:
    """`text` itself, where UTF-8 can carry it; `what` names it in the error.

    Raises:
        ValueError: the text holds lone surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is not valid Unicode: {error.reason} at position {error.start}") from None
    return str(text)


def _encode_str(value: str) -> pb.Value:
    return pb.Value(text=encode_text(value, "a str parameter"))


def _encode_datetime(value: datetime) -> pb.Value:
    if value.tzinfo is not None:
        raise ValueError("a datetime parameter must be naive: convert it to the zone that the column means")
    return pb.Value(datetime=value.isoformat(sep=" "))


def _encode_timedelta(value: timedelta) -> pb.Value:
    microseconds = value // timedelta(microseconds=1)
    seconds, fraction = divmod(abs(microseconds), 1_000_000)
    sign = "-" if microseconds < 0 else ""
    text = f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return pb.Value(time=f"{text}.{fraction:06d}" if fraction else text)


def _encode_time(value: time) -> pb.Value:
    if value.tzinfo is not None:
        raise ValueError("a time parameter must be naive: MySQL's TIME has no zone")
    return pb.Value(time=value.isoformat())


def _decode_date(text: str) -> date | str:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return text


def _decode_datetime(text: str) -> datetime | str:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


def _decode_time(text: str) -> timedelta:
    negative = text.startswith("-")
    hours, minutes, seconds = text.lstrip("-").split(":")
    seconds, _, fraction = seconds.partition(".")
    whole = timedelta(hours=int(hours), minutes=int(minutes), seconds=int(seconds))
    value = whole + timedelta(microseconds=int(fraction.ljust(6, "0")[:6]))
    return -value if negative else value


# Order matters for subclasses: datetime is a date, bool is an int.
_ENCODERS: dict[type, Callable[[Any], pb.Value]] = {
    type(None): lambda value: pb.Value(null=True),
    int: _encode_int,
    str: _encode_str,
    bytes: lambda value: pb.Value(blob=bytes(value)),
    Decimal: _encode_decimal,
    float: _encode_float,
    datetime: _encode_datetime,
    date: lambda value: pb.Value(date=value.isoformat()),
    timedelta: _encode_timedelta,
    time: _encode_time,
    bytearray: lambda value: pb.Value(blob=bytes(value)),
    memoryview: lambda value: pb.Value(blob=bytes(value)),
}

_DECODERS: dict[str, Callable[[Any], SqlValue]] = {
    "null": lambda value: None,
    "integer": int,
    "unsigned_integer": int,
    "real": float,
    "decimal": Decimal,
    "text": str,
    "blob": bytes,
    "date": _decode_date,
    "datetime": _decode_datetime,
    "time": _decode_time,
}
