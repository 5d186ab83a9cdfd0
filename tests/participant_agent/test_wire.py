"""How much of an answer has arrived: every prefix of drawn answers is told apart from the whole."""

from __future__ import annotations

import asyncio
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from participant_agent.poller import HUNG_UP, Poller
from participant_agent.wire import There, look

MORE = 0x0008
LONG = 1 << 14


def packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number & 0xFF]) + payload


def length_encoded(value: int) -> bytes:
    if value < 0xFB:
        return bytes([value])
    for first, width in ((0xFC, 2), (0xFD, 3), (0xFE, 8)):
        if value < 1 << (8 * width):
            return bytes([first]) + value.to_bytes(width, "little")
    raise AssertionError


def ok(number: int, more: bool, rows: int, insert_id: int, info: bytes, flags: int) -> bytes:
    status = (flags & ~MORE) | (MORE if more else 0)
    body = b"\x00" + length_encoded(rows) + length_encoded(insert_id) + status.to_bytes(2, "little")
    return packet(number, body + b"\x00\x00" + info)


def error(number: int, message: bytes) -> bytes:
    return packet(number, b"\xff\x19\x04#42000" + message)


NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, 1 << 63))
OKS = st.tuples(NUMBERS, NUMBERS, st.binary(max_size=300), st.integers(0, 0xFFFF))


@settings(max_examples=100, deadline=None)
@given(st.lists(OKS, min_size=1, max_size=6), st.none() | st.binary(max_size=80))
def test_all_of_it_is_told_from_every_part(
    oks: list[tuple[int, int, bytes, int]], failed: bytes | None
) -> None:
    answers = [ok(n + 1, n + 1 < len(oks) or failed is not None, *values) for n, values in enumerate(oks)]
    if failed is not None:
        answers.append(error(len(answers) + 1, failed))
    whole = b"".join(answers)
    for size in range(len(whole)):
        # What lies behind in the buffer is of another answer.
        assert look(bytearray(whole[:size] + b"\x00" * 40), size, len(answers), LONG) is There.PART
    assert look(bytearray(whole), len(whole), len(answers), LONG) is There.ALL
    # More results than were asked for are somebody's trick: not read on the event loop.
    if len(answers) > 1:
        assert look(bytearray(whole), len(whole), len(answers) - 1, LONG) is There.ROWS


@given(OKS, st.integers(1, 250))
def test_rows_behind_something_are_seen(before: tuple[int, int, bytes, int], columns: int) -> None:
    behind = ok(1, True, *before) + packet(2, bytes([columns]))
    assert look(bytearray(behind), len(behind), 3, LONG) is There.ROWS


def eof(number: int, more: bool) -> bytes:
    return packet(number, b"\xfe\x01\x00" + (MORE if more else 0).to_bytes(2, "little"))


CELLS = st.one_of(st.binary(max_size=30), st.binary(min_size=251, max_size=400), st.none())


def row(number: int, cells: list[bytes | None]) -> bytes:
    parts = (b"\xfb" if cell is None else length_encoded(len(cell)) + cell for cell in cells)
    return packet(number, b"".join(parts))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(min_size=3, max_size=60), min_size=1, max_size=3),
    st.data(),
    st.sampled_from(["classic", "without the first EOF"]),
    st.sampled_from(["end", "more behind", "error"]),
)
def test_a_result_with_rows_is_told_from_every_part(
    columns: list[bytes], data: st.DataObject, form: str, ending: str
) -> None:
    cells = st.lists(CELLS, min_size=len(columns), max_size=len(columns))
    rows = data.draw(st.lists(cells, max_size=4))
    answers = [packet(1, bytes([len(columns)])), *(packet(2, b"\x03def" + name) for name in columns)]
    if form == "classic":
        answers.append(eof(3, ending == "more behind"))
    answers += [row(4, cells) for cells in rows]
    if ending == "error":
        answers.append(error(5, b"in the middle"))
    elif form == "classic":
        answers.append(eof(5, ending == "more behind"))
    else:
        end = ok(5, ending == "more behind", 0, 0, b"", 0)
        answers.append(end[:4] + b"\xfe" + end[5:])
    whole = b"".join(answers)
    for size in range(len(whole)):
        assert look(bytearray(whole[:size] + b"\xfe" * 40), size, 1, LONG) is There.PART
    expected = There.ROWS if ending == "more behind" else There.WHOLE
    assert look(bytearray(whole), len(whole), 1, LONG) is expected
    assert look(bytearray(whole), len(whole), 1, len(whole)) is There.ROWS, "long ones are not looked through"


def test_an_arrival_is_told_once_and_a_hang_up_is_seen() -> None:
    async def test() -> list[int]:
        heard: list[int] = []
        here, there = socket.socketpair()
        poller = Poller.of(asyncio.get_running_loop())
        assert Poller.of(asyncio.get_running_loop()) is poller
        with here, there:
            poller.add(here.fileno(), heard.append)
            there.send(b"one")
            await asyncio.sleep(0.02)
            assert len(heard) == 1, "nobody has read it, and it is not told again"
            there.send(b"two")
            await asyncio.sleep(0.02)
            assert len(heard) == 2
            assert not heard[-1] & HUNG_UP
            there.close()
            await asyncio.sleep(0.02)
            assert heard[-1] & HUNG_UP
            told = len(heard)
            poller.remove(here.fileno())
            poller.remove(here.fileno())
            await asyncio.sleep(0.02)
            assert len(heard) == told
        return heard

    assert asyncio.run(test())
