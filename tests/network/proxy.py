"""Proxy: stands between two parts of the system and breaks what goes through.

Fault model. Each direction (`Way`) of a proxy, for the connections it has and those it will get, can be

 1. cut: bytes are accepted, acknowledged to the sender and kept, like a black hole. A new connection gets no
    answer, because a connection needs both directions;
 2. delayed by some seconds, each byte, in order;
 3. half-closed: the receiver sees the end of the stream, the other direction goes on;
and the whole proxy can
 4. refuse: new connections are reset;
 5. reset: present connections are reset, and what was kept for them is lost;
 6. strand: present connections become black holes while new ones work: the sender's host has vanished, and
    the receiver has not noticed;
 7. hold: the first packet that contains a text, and everything behind it on its connection, waits until it is
    released, or lost (`Hold`). For the MySQL protocol packets are recognised however TCP has cut them, so
    that `XA PREPARE` is held whole and what was sent before it is not.

The end of a stream is kept like bytes: the server sees a connection alive whose client was killed.

`heal` ends 1, 2 and 4: what was kept is delivered, late and in order (as TCP does when a link comes back
before the senders give up), or lost with its connections (as when they had given up).

Why not real packet drops? Network namespaces and packet filters need root and a kernel that lends them; a
bare container has neither, and a proof that runs only on some machines is none. The difference: a dropped
packet is sent again by the sender's kernel, which gives up after minutes and says so; here the kernel was
told that all went well. All our time-outs (deadlines, HTTP/2 pings, read time-outs of MySQL sessions) are
shorter than the kernel's and see the same in both cases: silence. Not covered is what only the kernel would
have noticed (ETIMEDOUT, EHOSTUNREACH); the code takes both for any other lost connection, and `reset` makes
those.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

UNIX = "unix:"
_CHUNK = 65_536
_HEADER = 4  # of a packet of MySQL: 3 bytes length, 1 byte number


class Way(enum.Enum):
    """A direction. THERE: from the side that connects to the side that listens; BACK: its answers."""

    THERE = "there"
    BACK = "back"


class Background:
    """The thread and event loop in which proxies run. `close` ends it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self.loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        """Run it there; its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def call(self, function: Callable[[], object]) -> None:
        """Call it there, and wait until it has been."""

        async def called() -> None:
            function()

        self.run(called())

    def close(self) -> None:
        """End all proxies and the thread."""

        async def cancel_all() -> None:
            for server in self.servers:
                server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(3):  # the loop closes sockets when it comes round
                await asyncio.sleep(0)

        self.run(cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Hold:
    """Waits for packets that contain `text`; `times` of them, each on its connection."""

    def __init__(self, background: Background, text: bytes, way: Way, times: int) -> None:
        self.text = text
        self.way = way
        self.hits = 0
        self._background = background
        self._left = times
        self._hit = threading.Event()
        self._released = asyncio.Event()
        self._lost = False

    async def pass_by(self, packet: bytes) -> bool:
        """Let a packet by, now or later; False: it is lost, and its connection with it."""
        if not self._left or self.text not in packet:
            return True
        self._left -= 1
        self.hits += 1
        self._hit.set()
        await self._released.wait()
        return not self._lost

    def wait(self, timeout_seconds: float = 10.0) -> None:
        """Until a packet is held."""
        assert self._hit.wait(timeout_seconds), f"no packet with {self.text!r} within {timeout_seconds:g} s"

    def release(self, *, lose: bool = False) -> None:
        """Deliver what is held, or lose it; nothing is held from now on."""

        def released() -> None:
            self._left = 0
            self._lost = lose
            self._released.set()

        self._background.call(released)


class _Connection:
    """One connection through the proxy: two pumps."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = (reader, writer)
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.stranded: asyncio.Event | None = None  # set: the strand is over
        self.kept = 0  # pieces that have not been delivered
        self._ended: set[Way] = set()

    async def run(self) -> None:
        for way in Way:
            await self._proxy.opened[way].wait()
        try:
            self._server = await self._proxy.connect_on()
        except OSError:
            self.abort()
            return
        ends = {Way.THERE: (self._client[0], self._server[1]), Way.BACK: (self._server[0], self._client[1])}
        for way, (reader, writer) in ends.items():
            queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
            self._tasks.append(asyncio.create_task(self._read(way, reader, queue)))
            self._tasks.append(asyncio.create_task(self._write(way, writer, queue)))
        try:
            await asyncio.gather(*self._tasks)
        except (OSError, asyncio.CancelledError):
            self.abort()
            return
        for _, writer in (self._client, self._server):
            writer.close()

    async def _read(self, way: Way, reader: asyncio.StreamReader, queue: Any) -> None:
        packets = _Packets() if self._proxy.mysql and way is Way.THERE else None
        while True:
            try:
                data = await reader.read(_CHUNK)
            except ConnectionError:
                data = b""
            pieces = list(packets.feed(data)) if packets is not None and data else [data]
            for piece in pieces:
                self.kept += 1
                queue.put_nowait((time.monotonic() + self._proxy.delays[way], piece))
            if not data:
                return

    async def _write(self, way: Way, writer: asyncio.StreamWriter, queue: Any) -> None:
        proxy = self._proxy
        while True:
            due, piece = await queue.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            for hold in list(proxy.holds):
                if hold.way is way and piece and not await hold.pass_by(piece):
                    raise ConnectionAbortedError("lost")
            await proxy.opened[way].wait()
            if self.stranded is not None:
                await self.stranded.wait()
            self.kept -= 1
            if not piece:
                self.end(way)
                return
            if way in self._ended:
                continue
            proxy.passed[way] += len(piece)
            writer.write(piece)
            with contextlib.suppress(ConnectionError):  # goes on until the end of the stream
                await writer.drain()

    def end(self, way: Way) -> None:
        """Half-close: the receiver of `way` sees the end of the stream."""
        self._ended.add(way)
        receiver = self._server if way is Way.THERE else self._client
        if receiver is not None:
            with contextlib.suppress(OSError, RuntimeError):  # it has gone already
                receiver[1].write_eof()

    def abort(self) -> None:
        """Reset both sides."""
        for task in self._tasks:
            task.cancel()
        for side in (self._client, self._server):
            if side is not None:
                _reset(side[1])


class _Packets:
    """Cuts the bytes of MySQL's clients into packets."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        while len(self._buffer) >= _HEADER:
            end = _HEADER + int.from_bytes(self._buffer[:3], "little")
            if len(self._buffer) < end:
                return
            packet, self._buffer = self._buffer[:end], self._buffer[end:]
            yield packet


class Proxy:
    """A proxy for one address. Everything public may be called from any thread.

    Args:
        background: where it runs.
        target: "host:port" or "unix:/path"; need not listen yet.
        listen: "unix:/path", or "" for a port of 127.0.0.1.
        mysql: the bytes are those of MySQL's protocol.
    """

    def __init__(self, background: Background, target: str, listen: str = "", *, mysql: bool = False) -> None:
        self.target = target
        self.mysql = mysql
        self.opened = {way: asyncio.Event() for way in Way}
        self.delays = dict.fromkeys(Way, 0.0)
        self.passed = dict.fromkeys(Way, 0)
        self.holds: list[Hold] = []
        self._background = background
        self._refusing = False
        self._connections: set[_Connection] = set()
        for event in self.opened.values():
            event.set()
        self._server: asyncio.Server = background.run(self._listen(listen))
        self.address = listen or _name(self._server)

    async def _listen(self, listen: str) -> asyncio.Server:
        if listen:
            server = await asyncio.start_unix_server(self._accept, listen.removeprefix(UNIX))
        else:
            server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._background.servers.append(server)
        return server

    async def connect_on(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the target."""
        if self.target.startswith(UNIX):
            return await asyncio.open_unix_connection(self.target.removeprefix(UNIX))
        host, _, port = self.target.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(writer)
            return
        connection = _Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            await connection.run()
        except asyncio.CancelledError:  # the proxy ends; asyncio would log it
            connection.abort()
        finally:
            self._connections.discard(connection)

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    def cut(self, *ways: Way) -> None:
        """A black hole in these directions (none given: both)."""
        for way in ways or Way:
            self._background.call(self.opened[way].clear)

    def delay(self, seconds: float, *ways: Way) -> None:
        """Everything takes so much longer in these directions (none given: both)."""
        self.delays.update(dict.fromkeys(ways or Way, seconds))

    def heal(self, *, lose: bool = False) -> None:
        """No cut, no delay, no refusal. `lose`: connections with undelivered bytes are reset instead."""

        def healed() -> None:
            self._refusing = False
            self.delays.update(dict.fromkeys(Way, 0.0))
            if lose:
                for connection in [c for c in self._connections if c.kept]:
                    connection.abort()
            for event in self.opened.values():
                event.set()

        self._background.call(healed)

    def refuse(self) -> None:
        """New connections are reset."""
        self._refusing = True

    def reset(self) -> None:
        """Reset the present connections."""
        self._background.call(lambda: [connection.abort() for connection in list(self._connections)])

    def half_close(self, way: Way) -> None:
        """The receivers of `way` see the end of the stream on all present connections."""
        self._background.call(lambda: [connection.end(way) for connection in list(self._connections)])

    def strand(self) -> Callable[[], None]:
        """Make the present connections black holes; new ones work. Call the result to deliver what is
        kept."""
        over = asyncio.Event()

        def stranded() -> None:
            for connection in self._connections:
                connection.stranded = over

        self._background.call(stranded)
        return lambda: self._background.call(over.set)

    def hold(self, text: bytes, way: Way = Way.THERE, times: int = 1) -> Hold:
        """Hold the next packets that contain `text`."""
        hold = Hold(self._background, text, way, times)
        self._background.call(lambda: self.holds.append(hold))
        return hold

    def clear(self) -> None:
        """Everything as at the beginning: what is held or kept is lost with its connection."""
        for hold in self.holds:
            hold.release(lose=True)
        self._background.call(self.holds.clear)
        self.heal(lose=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset instead of an orderly end."""
    found = writer.get_extra_info("socket")
    if found is not None and found.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _name(server: asyncio.Server) -> str:
    host, port = server.sockets[0].getsockname()
    return f"{host}:{port}"


def unix(path: Path) -> str:
    """The address of a unix socket."""
    return f"{UNIX}{path}"
