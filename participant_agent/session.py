"""Session: one connection to the server, driven by the event loop. The only file that imports MySQLdb.

A query is sent with `send_query`, and its answer read when all of it has arrived, so that hundreds of
sessions need no threads. The library would wait for what is not there yet; so what has arrived is looked at
first (wire.py). What could block the loop is done in a thread (Threads): connecting, sending what a server
that has stopped reading would not take at once, and reading results that are not complete in the socket's
buffer (larger than the server's net_buffer_length, several results of a CALL, all that is encrypted).

Several statements in one packet are allowed only while such a packet is sent; a client's statement in which
anything could hide a second one (guard.py) is sent while they are not.

Errors of the client library are asked for by number and text (`errno()`, `error()`), never read from the
exception: for a text that is not UTF-8 the library leaves a hole in the exception's arguments, and touching
it ends the process.

Every query has a client-side time-out. A session that lost its connection, timed out or was told too much is
dead: the answer is `Lost` or `TooLarge`, its socket is closed, and it is never used again. That the server's
side ended too is for core/sessions.py to prove.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from MySQLdb import _exceptions, _mysql
from MySQLdb.constants import CLIENT, FIELD_TYPE, FLAG

from participant_agent.core import sessions as names
from participant_agent.core.effects import Lost, Ok, Query, Result, ServerError, TooLarge, Verb
from participant_agent.core.errors import LOST_ERRNOS
from participant_agent.poller import HUNG_UP, Poller
from participant_agent.values import render
from participant_agent.wire import There, look

_FETCH_ROWS = 500

# What has arrived is looked at here before it is read; one for all sessions, which have their turns one after
# the other. Longer answers are read in a thread.
_PEEKED = bytearray(1 << 16)

# Between the statements of a packet. What a server quotes of one in an error may go on with the next one's.
_BETWEEN = b"\n;"

# What a row, a cell and a column take on the wire beside their content, at most.
_ROW_BYTES = 6
_CELL_BYTES = 10
_COLUMN_BYTES = 6

_UNKNOWN_ERROR = 2000
_SERVER_GONE = 2006

# What the buffer of any socket takes, so that sending it does not wait for the server.
_SENT_AT_ONCE = 1 << 15

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


class Threads:
    """Of one agent, for what blocks: a server that hangs holds up nobody else's. Each kind has its own, so
    that slow readers keep nobody from connecting."""

    def __init__(self) -> None:
        self.connecting = ThreadPoolExecutor(max_workers=8, thread_name_prefix="connect")
        self.sending = ThreadPoolExecutor(max_workers=8, thread_name_prefix="send")
        self.reading = ThreadPoolExecutor(max_workers=8, thread_name_prefix="read")


@dataclass(frozen=True, slots=True)
class Target:
    """How to reach the server, and what to set up there."""

    arguments: dict[str, Any]
    set_up: tuple[str, ...]
    timeout_seconds: float
    result_rows: int
    result_bytes: int
    raw: bool = False
    threads: Threads = field(default_factory=Threads, compare=False, repr=False)


class ConnectError(Exception):
    """The server could not be reached or did not accept us. `errno` is the server's or the client
    library's."""

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno = errno


def _connect(target: Target) -> tuple[Any, bool]:
    """Connect and set up; blocks, so it runs in a thread. The connection, and whether it may be encrypted."""
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
        connection.query(b"SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        cipher = connection.store_result().fetch_row()
    except _exceptions.MySQLError:
        errno, message = _error_of(connection)
        connection.close()
        raise ConnectError(errno, message) from None
    return connection, not cipher or bool(cipher[0][1])


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
    """One connection. Use: `await Session.open(...)`, `await session.query(...)`, `session.close()`.

    Attributes:
        batches: `batch` may be used. Not on an encrypted connection, whose answers cannot be counted on the
            wire.
    """

    def __init__(self, connection: Any, target: Target, *, encrypted: bool) -> None:
        self._connection = connection
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._poller = Poller.of(self._loop)
        self._answer: asyncio.Future[tuple[Result, ...]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._queries: tuple[Query, ...] = ()
        # Ours, and polled: the library closes its own when it likes, and the next one to open something,
        # perhaps another session, is given that number.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._rows_left = target.result_rows
        self._bytes_left = target.result_bytes
        self._seconds = target.timeout_seconds
        self._in_thread = False
        self._hung_up = False
        self._takes_several = False
        self.batches = not encrypted
        self.connection_id: int = connection.thread_id()
        self.lock = ""
        self.dead = False
        self.condemned = False  # somebody is killing it: it works for nobody else any more
        self.on_death: Callable[[], None] | None = None
        self.net_buffer_length = 1024
        self._poller.add(self._socket.fileno(), self._arrived)

    @classmethod
    async def open(cls, target: Target) -> Session:
        """Connect in a thread. Raises ConnectError."""
        loop = asyncio.get_running_loop()
        connection, encrypted = await loop.run_in_executor(target.threads.connecting, _connect, target)
        return cls(connection, target, encrypted=encrypted)

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
        return (await self._perform((query,), several=self._takes_several and not query.alone))[0]

    async def batch(self, queries: tuple[Query, ...]) -> tuple[Result, ...]:
        """Run queries that are sent as one packet and return no rows; the results up to the first that is not
        Ok."""
        return await self._perform(queries, several=True)

    async def _perform(self, queries: tuple[Query, ...], *, several: bool) -> tuple[Result, ...]:
        if self.dead:
            return (Lost(),)
        if self._answer is not None:
            raise AssertionError("two queries at once on one session")
        self._answer = self._loop.create_future()
        self._queries = queries
        statements = sum(query.verb is Verb.STATEMENT for query in queries)
        self._seconds = self._target.timeout_seconds * max(1, statements)
        self._timer = self._loop.call_later(self._seconds, self._timed_out)
        try:
            if several is self._takes_several:
                self._send()
            else:
                self._change_over(several)
            return await self._answer
        except asyncio.CancelledError:
            # The answer will come all the same, and the next query must not take it for its own.
            self._die(Lost("the query was cancelled"))
            raise
        finally:
            self._timer.cancel()
            self._answer = None

    def _send(self) -> None:
        quote = self._connection.string_literal
        texts = [render(query.sql, query.parameters, quote) for query in self._queries]
        packet = texts[0] if len(texts) == 1 else _BETWEEN.join(texts)
        if len(packet) > _SENT_AT_ONCE:
            self._in_sending_thread(lambda: self._connection.send_query(packet), self._look)
            return
        try:
            self._connection.send_query(packet)
        except _exceptions.MySQLError:
            self._finish(self._error())

    def _change_over(self, several: bool) -> None:
        """Tell the server how many statements a packet may have, then send."""

        def changed() -> None:
            self._takes_several = several
            self._send()

        self._in_sending_thread(lambda: self._connection.set_server_option(0 if several else 1), changed)

    def _in_sending_thread(self, work: Callable[[], object], then: Callable[[], None]) -> None:
        def perform() -> Result:
            try:
                work()
            except _exceptions.MySQLError:
                return self._error()
            return Ok()

        def performed(performing: asyncio.Future[Result]) -> None:
            self._in_thread = False
            result = performing.result()
            if self.dead:
                self._close_connection()
            elif isinstance(result, Ok):
                then()
            else:
                self._finish(result)

        self._in_thread = True
        self._loop.run_in_executor(self._target.threads.sending, perform).add_done_callback(performed)

    def _settle(self, *results: Result) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(results)

    def _timed_out(self) -> None:
        self._die(Lost(f"no answer within {self._seconds:g} s", timed_out=True))

    def _arrived(self, events: int) -> None:
        """Something has come. It may be what was read before this was heard, or a part of an answer."""
        if events & HUNG_UP:
            self._hung_up = True
        if self._in_thread or (self._answer is not None and self._answer.done()):
            return
        self._look()

    def _look(self) -> None:
        """Read what is there, if it is a whole answer."""
        try:
            size = self._socket.recv_into(_PEEKED, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size == 0 or self._answer is None:  # the server has hung up, or says why it will
            self._die(Lost())
            return
        if not self.batches:  # what is encrypted cannot be looked at
            self._read_in_thread(whole=False)
            return
        there = look(_PEEKED, size, len(self._queries), self.net_buffer_length)
        if there is There.PART:
            if self._hung_up:  # the rest will not come
                self._die(Lost())
        elif there is There.ALL:
            self._read_without_rows()
        elif len(self._queries) > 1:  # whatever it is, it is not what was asked for
            self._die(Lost("the server's answers are not those to what it was asked"))
        else:
            self._read_with_rows(whole=there is There.WHOLE)

    def _read_with_rows(self, *, whole: bool) -> None:
        """The head of a result is there, and where it is `whole`, the first one."""
        try:
            self._connection.read_query_result()
            if whole and not self._connection.more_results():
                self._finish(self._read_rows() if self._connection.field_count() else self._without_rows())
                return
        except _exceptions.MySQLError:
            self._finish(self._error())
            return
        except Exception as error:
            self._finish(_unreadable(error))
            return
        self._read_in_thread(whole=True)

    def _read_in_thread(self, *, whole: bool) -> None:
        """Read the rest, or with `whole` false all of the answer."""

        def read(reading: asyncio.Future[Result]) -> None:
            self._in_thread = False
            if self.dead:
                self._close_connection()
                return
            self._finish(reading.result())

        self._in_thread = True
        work = self._loop.run_in_executor(self._target.threads.reading, self._read_all, not whole)
        work.add_done_callback(read)

    def _read_without_rows(self) -> None:
        """All answers are there, and none has rows."""
        results: list[Result] = []
        try:
            self._connection.read_query_result()
            results.append(self._without_rows())
            while self._connection.more_results():
                self._connection.next_result()
                results.append(self._without_rows())
        except _exceptions.MySQLError:
            results.append(self._error())
        self._finish(*results)

    def _without_rows(self) -> Ok:
        connection = self._connection
        return Ok((), connection.affected_rows(), connection.insert_id(), connection.warning_count())

    def _read_all(self, from_its_head: bool) -> Result:
        """In a thread: what the query answers. Errors must not leave it as exceptions: asyncio may print
        them."""
        try:
            if from_its_head:
                self._connection.read_query_result()
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
        limited = self._queries[0].verb is Verb.STATEMENT
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
        own, rest, _ = message.partition(_BETWEEN.decode())
        if rest and len(self._queries) > 1:
            message = f"{own}'"
        return Lost(f"({errno}) {message}") if errno in LOST_ERRNOS else ServerError(errno, message)

    def _finish(self, *results: Result) -> None:
        if self._hung_up or isinstance(results[-1], Lost | TooLarge):  # this was its last answer
            self._die(*results)
        else:
            self._settle(*results)

    def _die(self, *results: Result) -> None:
        if self.dead:
            return
        self.dead = True
        self._settle(*results)
        if not self._in_thread:
            self._close_connection()
        if self.on_death is not None:
            self.on_death()

    def _close_connection(self) -> None:
        self._poller.remove(self._socket.fileno())
        self._socket.close()
        with contextlib.suppress(_exceptions.MySQLError):
            self._connection.close()

    def close(self) -> None:
        """Close our side. The server rolls back what is active and keeps what is prepared."""
        self.on_death = None
        self._die(Lost("the session was closed"))


Connect: TypeAlias = Callable[[Target], Awaitable[Session]]
"""How a session is opened: `Session.open`, or what the simulation has in its place."""
