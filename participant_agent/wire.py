"""Wire: how much of an answer has arrived, told from the bytes of the client/server protocol.

    packet    = length (3 bytes, little endian), number (1 byte), payload
    OK        = 0x00, affected rows, last insert id (length-encoded integers), status flags (2 bytes), ...
    ERR       = 0xff, ...: the last one
    otherwise = the head of a result with rows

https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_ok_packet.html
"""

from __future__ import annotations

from enum import Enum

_HEADER = 4
_OK, _ERR = 0x00, 0xFF
_MORE_RESULTS = 0x0008
_WIDTHS = {0xFC: 3, 0xFD: 4, 0xFE: 9}  # of a length-encoded integer, by its first byte


class There(Enum):
    """What has arrived of an answer."""

    PART = "not all of it"
    ALL = "all of it, and there are no rows in it"
    ROWS = "a result with rows, or a part of one"


def look(data: bytearray, size: int, most: int) -> There:
    """Look at the first `size` bytes of `data`.

    Args:
        most: how many results are expected at most; more than that count as rows, whoever made them.
    """
    place = 0
    for _ in range(most):
        if place + _HEADER >= size:
            return There.PART
        end = place + _HEADER + (data[place] | data[place + 1] << 8 | data[place + 2] << 16)
        kind = data[place + _HEADER]
        if kind not in (_OK, _ERR):
            return There.ROWS
        if end > size:
            return There.PART
        if kind == _ERR:
            return There.ALL
        status = place + _HEADER + 1
        status += _WIDTHS.get(data[status], 1)
        status += _WIDTHS.get(data[status], 1)
        if not data[status] & _MORE_RESULTS:
            return There.ALL
        place = end
    return There.ROWS
