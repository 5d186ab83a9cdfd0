"""Framing: protobuf's wire format, as far as both ends of a Session stream put messages together by hand.

A stream's message holds many calls or answers, each of them serialised already where it was made. Building
the outer message from message objects would copy, parse and serialise all of them once more.

    a field's key:                 varint(number << 3 | wire type); one byte for the numbers 1 to 15
    an id, fixed64:                key with wire type 1, 8 bytes, the lowest first
    a message, bytes, packed ids:  key with wire type 2, varint(length), the content
    varint:                        7 bits a byte, the lowest first; the 8th says that more follow
"""

from __future__ import annotations

from collections.abc import Iterable

_KEY_OF_ENTRY = bytes((1 << 3 | 2,))
_KEY_OF_ID = bytes((1 << 3 | 1,))


def entry(number: int, identifier: int, payload: bytes) -> bytes:
    """A call or an answer as an element of field 1: its id is field 1, its content field `number`.

    Args:
        number: 1 to 15.
        identifier: 0 to 2^64 - 1.
        payload: the content, serialised.
    """
    key = bytes((number << 3 | 2,))
    head = _KEY_OF_ID + identifier.to_bytes(8, "little") + key + _varint(len(payload))
    return b"".join((_KEY_OF_ENTRY, _varint(len(head) + len(payload)), head, payload))


def packed(number: int, identifiers: Iterable[int]) -> bytes:
    """Field `number` (1 to 15) with ids; nothing where there are none."""
    data = b"".join([identifier.to_bytes(8, "little") for identifier in identifiers])
    return bytes((number << 3 | 2,)) + _varint(len(data)) + data if data else b""


def _varint(value: int) -> bytes:
    if value < 0x4000:
        return bytes((value,)) if value < 0x80 else bytes((value & 0x7F | 0x80, value >> 7))
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
