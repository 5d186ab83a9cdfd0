"""Session: one connection to the server, driven by the event loop. The only file that imports MySQLdb.

A query is sent with `send_query`, and its answer read when the socket becomes readable, so that hundreds of
sessions need no threads. What could block the loop is done in a thread: connecting, and reading results that
are not complete in the socket's buffer (larger than the server's net_buffer_length, or several results of a
CALL).

Errors of the client library are asked for by number and text (`errno()`, `error()`), never read from the
exception: for a text that is not UTF-8 the library leaves a hole in the exception's arguments, and touching
it ends the process.

Every query has a client-side time-out. A session that lost its connection, timed out or was told too much is
dead: the answer is `Lost` or `TooLarge`, its socket is closed, and it is never used again. That the server's
side ended too is for core/sessions.py to prove.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import gc
import termios
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

from MySQLdb import _exceptions, _mysql
from MySQLdb.constants import CLIENT, FIELD_TYPE, FLAG

from participant_agent.core import sessions as names
from participant_agent.core.effects import Lost, Ok, Query, Result, ServerError, TooLarge, Verb
from participant_agent.core.errors import LOST_ERRNOS
from participant_agent.values import render

_FETCH_ROWS = 500

# What a row, a cell and a column take on the wire beside their content, at most.
_ROW_BYTES = 6
_CELL_BYTES = 10
_COLUMN_BYTES = 6

_UNKNOWN_ERROR = 2000
_SERVER_GONE = 2006

# Apart, so that a server that does not answer connects holds up no reader.
_connecting = ThreadPoolExecutor(max_workers=8, thread_name_prefix="connect")
_reading = ThreadPoolExecutor(max_workers=8, thread_name_prefix="read")

# Text columns come as str, binary ones as bytes; everything else as the bytes of its text form.
_TEXT_OR_BYTES = ((FLAG.BINARY, bytes), (None, str))
_CONVERTERS: dict[int, Any] = {
    kind: _TEXT_OR_BYTES
    for kind in (
        FIELD_TYPE.STRING,
        FIELD_TYPE.VAR_STRING,
        FIELD_TYPE.VARCHAR,
        FIELD_TYPE.TINY_BLOB,
        FIELD_TYPE.MEDIUM_BLOB,
        FIELD_TYPE.LONG_BLOB,
        FIELD_TYPE.BLOB,
    )
} | {FIELD_TYPE.JSON: str, FIELD_TYPE.ENUM: str, FIELD_TYPE.SET: str}


@dataclass(frozen=True, slots=True)
class Target:
    """How to reach the server, and what to set up there."""

    arguments: dict[str, Any]
    set_up: tuple[str, ...]
    timeout_seconds: float
    result_rows: int
    result_bytes: int
    raw: bool = False


class ConnectError(Exception):
    """The server could not be reached or did not accept us. `errno` is the server's or the client
    library's."""

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno = errno


def _connect(target: Target) -> Any:
    """Connect and set up; blocks, so it runs in a thread."""
    try:
        connection = _mysql.connect(
            client_flag=CLIENT.MULTI_RESULTS,
            conv={} if target.raw else dict(_CONVERTERS),
            read_timeout=max(1, int(target.timeout_seconds)),
            write_timeout=max(1, int(target.timeout_seconds)),
            **target.arguments,
        )
    except _exceptions.MySQLError as error:
        raise ConnectError(*_why_not_connected(error)) from None
    try:
        connection.set_character_set("utf8mb4")
        connection.autocommit(True)
        for sql in target.set_up:
            connection.query(sql.encode())
            connection.store_result()
    except _exceptions.MySQLError:
        errno, message = _error_of(connection)
        connection.close()
        raise ConnectError(errno, message) from None
    return connection


def _error_of(connection: Any) -> tuple[int, str]:
    """Number and text of the connection's last error."""
    try:
        errno = connection.errno() or _UNKNOWN_ERROR
    except _exceptions.MySQLError:
        return _SERVER_GONE, "the connection is closed"
    try:
        return errno, connection.error()
    except UnicodeDecodeError:
        return errno, "the server's message is no UTF-8 text"


def _why_not_connected(error: Exception) -> tuple[int, str]:
    """The same where there is no connection to ask: what the garbage collector finds in the arguments is no
    hole."""
    found = gc.get_referents(error.args)
    errno = next((item for item in found if isinstance(item, int)), _UNKNOWN_ERROR)
    return errno, next(
        (item for item in found if isinstance(item, str)), "the server's message is no UTF-8 text"
    )


def _unreadable(error: Exception) -> Lost:
    return Lost(f"the server's answer could not be read ({type(error).__name__})")


def _size(cell: object) -> int:
    """Bytes of a cell as UTF-8."""
    if isinstance(cell, str):
        return len(cell) if cell.isascii() else len(cell.encode("utf-8", "surrogatepass"))
    return len(cell) if isinstance(cell, bytes) else 0


class Session:
    """One connection. Use: `await Session.open(...)`, `await session.query(...)`, `session.close()`."""

    def __init__(self, connection: Any, target: Target) -> None:
        self._connection = connection
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Result] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._query = Query("")
        self._fd: int = connection.fileno()
        self._rows_left = target.result_rows
        self._bytes_left = target.result_bytes
        self._in_thread = False
        self.connection_id: int = connection.thread_id()
        self.lock = ""
        self.dead = False
        self.condemned = False  # somebody is killing it: it works for nobody else any more
        self.on_death: Callable[[], None] | None = None
        self.net_buffer_length = 1024
        self._loop.add_reader(self._fd, self._readable)

    @classmethod
    async def open(cls, target: Target) -> Session:
        """Connect in a thread. Raises ConnectError."""
        connection = await asyncio.get_running_loop().run_in_executor(_connecting, _connect, target)
        return cls(connection, target)

    @property
    def known_as(self) -> names.Session:
        """How the server knows this session."""
        return names.Session(self.connection_id, self.lock)

    def begin_call(self) -> None:
        """A new call of a client: its results are counted from here."""
        self._rows_left = self._target.result_rows
        self._bytes_left = self._target.result_bytes

    async def query(self, query: Query) -> Result:
        """Run one query; never raises for what the server or the network does."""
        if self.dead:
            return Lost()
        if self._answer is not None:
            raise AssertionError("two queries at once on one session")
        self._answer = self._loop.create_future()
        self._query = query
        try:
            self._connection.send_query(render(query.sql, query.parameters, self._connection.string_literal))
        except _exceptions.MySQLError:
            self._finish(self._error())
        self._timer = self._loop.call_later(self._target.timeout_seconds, self._timed_out)
        try:
            return await self._answer
        except asyncio.CancelledError:
            # The answer will come all the same, and the next query must not take it for its own.
            self._die(Lost("the query was cancelled"))
            raise
        finally:
            self._timer.cancel()
            self._answer = None

    def _settle(self, result: Result) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(result)

    def _timed_out(self) -> None:
        self._die(Lost(f"no answer within {self._target.timeout_seconds:g} s", timed_out=True))

    def _readable(self) -> None:
        if self._answer is None:  # the server has hung up, or says why it will
            self._die(Lost())
            return
        if self._answer.done():
            return
        waiting = array.array("i", [0])
        fcntl.ioctl(self._fd, termios.FIONREAD, waiting)
        try:
            self._connection.read_query_result()
            if self._connection.field_count() == 0 and not self._connection.more_results():
                self._settle(self._without_rows())
                return
            if waiting[0] < self.net_buffer_length and not self._connection.more_results():
                self._settle(self._read_rows())
                return
        except _exceptions.MySQLError:
            self._finish(self._error())
            return
        except Exception as error:
            self._finish(_unreadable(error))
            return
        self._loop.remove_reader(self._fd)
        self._in_thread = True
        self._loop.run_in_executor(_reading, self._read_all).add_done_callback(self._read_in_thread)

    def _read_in_thread(self, reading: asyncio.Future[Result]) -> None:
        self._in_thread = False
        if self.dead:
            self._close_connection()
            return
        self._loop.add_reader(self._fd, self._readable)
        self._finish(reading.result())

    def _without_rows(self) -> Ok:
        connection = self._connection
        return Ok((), connection.affected_rows(), connection.insert_id(), connection.warning_count())

    def _read_all(self) -> Result:
        """In a thread: what the query answers. Errors must not leave it as exceptions: asyncio may print
        them."""
        try:
            return self._read_results()
        except _exceptions.MySQLError:
            return self._error()
        except Exception as error:
            return _unreadable(error)

    def _read_results(self) -> Result:
        """The first result with rows, and the end of the others."""
        kept: Result | None = None
        while True:
            if self._connection.field_count():
                result = self._read_rows()
                if isinstance(result, TooLarge):
                    return result
                kept = kept or result
            elif kept is None and not self._connection.more_results():
                return self._without_rows()
            if self._connection.next_result() != 0:
                break
        return kept or self._without_rows()

    def _read_rows(self) -> Result:
        connection = self._connection
        result = connection.use_result()
        description, rows = result.describe(), []
        limited = self._query.verb is Verb.STATEMENT
        if limited:
            self._bytes_left -= sum(_size(column[0]) + _COLUMN_BYTES for column in description)
        while batch := result.fetch_row(_FETCH_ROWS):
            if limited:
                self._rows_left -= len(batch)
                self._bytes_left -= len(batch) * (_ROW_BYTES + _CELL_BYTES * len(description))
                self._bytes_left -= sum(_size(cell) for row in batch for cell in row)
                if self._rows_left < 0 or self._bytes_left < 0:
                    return TooLarge(
                        f"the call returns more than {self._target.result_rows} rows or "
                        f"{self._target.result_bytes} bytes; ask for less"
                    )
            rows.extend(batch)
        columns = tuple((column[0], column[1]) for column in description)
        return Ok(tuple(rows), len(rows), 0, connection.warning_count(), columns)

    def _error(self) -> Result:
        """The connection's last error as a result."""
        errno, message = _error_of(self._connection)
        return Lost(f"({errno}) {message}") if errno in LOST_ERRNOS else ServerError(errno, message)

    def _finish(self, result: Result) -> None:
        if isinstance(result, Lost | TooLarge):
            self._die(result)
        self._settle(result)

    def _die(self, result: Result) -> None:
        if self.dead:
            return
        self.dead = True
        self._settle(result)
        if not self._in_thread:
            self._loop.remove_reader(self._fd)
            self._close_connection()
        if self.on_death is not None:
            self.on_death()

    def _close_connection(self) -> None:
        with contextlib.suppress(_exceptions.MySQLError):
            self._connection.close()

    def close(self) -> None:
        """Close our side. The server rolls back what is active and keeps what is prepared."""
        self.on_death = None
        self._die(Lost("the session was closed"))


Connect: TypeAlias = Callable[[Target], Awaitable[Session]]
"""How a session is opened: `Session.open`, or what the simulation has in its place."""
