"""Wire: how much of an answer has arrived, told from the bytes of the client/server protocol.

    packet    = length (3 bytes, little endian), number (1 byte), payload
    OK        = 0x00, affected rows, last insert id (length-encoded integers), status flags (2 bytes), ...
    ERR       = 0xff, ...: the last one
    otherwise = the number of columns; then as many packets, EOF, a packet for each row, EOF
    EOF       = 0xfe, warnings (2 bytes), status flags (2 bytes)

Newer clients and servers leave out the first EOF, and have an OK that begins with 0xfe for the second one.

https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_ok_packet.html
https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_query_response_text_resultset.html
"""

from __future__ import annotations

from dtp.term import Term

_HEADER = 4
_OK, _NULL, _EOF, _ERR = 0x00, 0xFB, 0xFE, 0xFF
_EOF_LENGTH = 5
_HUGE = 0xFFFFFF  # a packet of that length goes on in the next; only such a row can begin like an EOF
_MORE_RESULTS = 0x0008
_WIDTHS = {0xFC: 3, 0xFD: 4, 0xFE: 9}  # of a length-encoded integer, by its first byte


class There(Term):
    """What has arrived of an answer."""

    PART = "not all of it"
    ALL = "all of it, and there are no rows in it"
    WHOLE = "one result with rows, all of it"
    ROWS = "a result with rows, or a part of one, that is long or has others behind it"


def look(data: bytearray, size: int, most: int, long: int) -> There:
    """Look at the first `size` bytes of `data`.

    Args:
        most: how many results are expected at most; more than that count as rows, whoever made them.
        long: from so many bytes on, rows are not waited for.
    """
    place = 0
    for _ in range(most):
        if place + _HEADER >= size:
            return There.PART
        end = place + _HEADER + (data[place] | data[place + 1] << 8 | data[place + 2] << 16)
        kind = data[place + _HEADER]
        if kind not in (_OK, _ERR):
            if place or size >= long:
                return There.ROWS
            return _look_at_rows(data, size)
        if end > size:
            return There.PART
        if kind == _ERR:
            return There.ALL
        if not _status_of_ok(data, place) & _MORE_RESULTS:
            return There.ALL
        place = end
    return There.ROWS


def _status_of_ok(data: bytearray, place: int) -> int:
    """The low byte of the status flags of the OK that begins at `place`."""
    status = place + _HEADER + 1
    status += _WIDTHS.get(data[status], 1)
    status += _WIDTHS.get(data[status], 1)
    return data[status]


def _look_at_rows(data: bytearray, size: int) -> There:
    """The same for an answer that begins with the head of a result with rows."""
    head = data[_HEADER]
    if head == _NULL:  # the server asks for a file: the library refuses
        return There.ROWS
    columns = head if head < min(_WIDTHS) else data[_HEADER + 1] | data[_HEADER + 2] << 8
    place, packets = 0, 0
    while place + _HEADER < size:
        length = data[place] | data[place + 1] << 8 | data[place + 2] << 16
        kind, end = data[place + _HEADER], place + _HEADER + length
        if end > size:
            return There.PART
        if kind == _ERR and packets > columns:
            return There.WHOLE
        if kind == _EOF and packets > columns and length < _HUGE:
            if length != _EOF_LENGTH:
                status = _status_of_ok(data, place)
            elif packets == columns + 1:  # behind the columns
                status = None
            else:
                status = data[place + _HEADER + 3]
            if status is not None:
                return There.ROWS if status & _MORE_RESULTS else There.WHOLE
        place, packets = end, packets + 1
    return There.PART
