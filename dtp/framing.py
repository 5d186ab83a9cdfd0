"""Framing: protobuf's wire format, as far as both ends of a Session stream put messages together by hand.

A stream's message holds many calls or answers, each of them serialised already where it was made. Building
the outer message from message objects would copy, parse and serialise all of them once more.

    a field's key:                 varint(number << 3 | wire type); one byte for the numbers 1 to 15
    an id, fixed64:                key with wire type 1, 8 bytes, the lowest first
    a message, bytes, packed ids:  key with wire type 2, varint(length), the content
    varint:                        7 bits a byte, the lowest first; the 8th says that more follow
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_KEY_OF_ENTRY = 1 << 3 | 2
_KEY_OF_ID = 1 << 3 | 1
_SHORT = struct.Struct("<BBBQBB")  # key, length; key, id; key, length
_ID_AND_KEY = struct.Struct("<BQB")
_HEAD_BYTES = 11  # of an entry with a short payload, behind its own key and length


def entry(number: int, identifier: int, payload: bytes) -> bytes:
    """A call or an answer as an element of field 1: its id is field 1, its content field `number`.

    Args:
        number: 1 to 15.
        identifier: 0 to 2^64 - 1.
        payload: the content, serialised.
    """
    size, key = len(payload), number << 3 | 2
    if size + _HEAD_BYTES < 0x80:
        return _SHORT.pack(_KEY_OF_ENTRY, size + _HEAD_BYTES, _KEY_OF_ID, identifier, key, size) + payload
    length = _varint(size)
    whole = _varint(size + len(length) + _ID_AND_KEY.size)
    head = _ID_AND_KEY.pack(_KEY_OF_ID, identifier, key)
    return b"".join((b"\x0a", whole, head, length, payload))


def packed(number: int, identifiers: Sequence[int]) -> bytes:
    """Field `number` (1 to 15) with ids; nothing where there are none."""
    if not identifiers:
        return b""
    data = struct.pack(f"<{len(identifiers)}Q", *identifiers)
    return bytes((number << 3 | 2,)) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    if value < 0x4000:
        return bytes((value,)) if value < 0x80 else bytes((value & 0x7F | 0x80, value >> 7))
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
