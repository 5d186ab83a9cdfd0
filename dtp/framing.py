"""Framing: protobuf's wire format, as far as both ends of a Session stream put messages together by hand.

A stream's message holds many calls or answers, each of them serialised already where it was made. Building
the outer message from message objects would copy, parse and serialise all of them once more.

    key of field n of wire type w: varint(n << 3 | w)      varint: 7 bits a byte, the lowest first
    a nested message or bytes:     key with w = 2, varint(length), the bytes
"""

from __future__ import annotations

from collections.abc import Iterable


def entry(number: int, identifier: int, payload: bytes) -> bytes:
    """A call or an answer as an element of field 1: its id is field 1, its content field `number`.

    Args:
        number: 1 to 15.
        identifier: 1 to 2^64 - 1.
        payload: the content, serialised.
    """
    head = b"\x08" + varint(identifier) + bytes((number << 3 | 2,)) + varint(len(payload))
    return b"\x0a" + varint(len(head) + len(payload)) + head + payload


def packed(number: int, values: Iterable[int]) -> bytes:
    """Field `number` (1 to 15) with the unsigned `values`; nothing where there are none."""
    data = b"".join(map(varint, values))
    return bytes((number << 3 | 2,)) + varint(len(data)) + data if data else b""


def varint(value: int) -> bytes:
    """An unsigned integer."""
    if value < 0x80:
        return _SHORT[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


_SHORT = tuple(bytes((value,)) for value in range(0x80))
