"""The twin of gRPC: unary calls and streams of protobuf messages on the network's connections.

The stubs, the servicers, the serializers and the interceptor are the daemons' own. Fault model: that of
network.py, and a place before and after each message that is sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from tests.simulation.network import Connection, Network, error, host_of, unavailable
from tests.simulation.process import CURRENT, Process, place

_REFUSED_AGAIN_SECONDS = 0.25
_WILD = "/Attach"  # the stream whose parts may come late, twice or not at all (network.py, 5)


def channel(network: Network, address: str, keepalive: bool = False) -> Channel:
    """What grpc.aio.insecure_channel would make."""
    process = CURRENT.get()
    assert process is not None
    return Channel(network, process, address, keepalive)


class Channel:
    """The client's side: what the generated stubs are made from."""

    def __init__(self, network: Network, process: Process, address: str, keepalive: bool) -> None:
        self._network = network
        self._process = process
        self._address = address
        self._keepalive = keepalive
        self._connection: Connection | None = None
        self._closed = False

    async def channel_ready(self) -> None:
        """Until there is a connection; a refused one is tried again."""
        while not await self._connect():
            await asyncio.sleep(_REFUSED_AGAIN_SECONDS)

    async def _connect(self) -> bool:
        network, connection = self._network, self._connection
        if connection is not None and connection.client_open:
            return True
        source, target = self._process.host, host_of(self._address)
        while network.is_cut(source, target) or network.is_cut(target, source):
            await asyncio.sleep(_REFUSED_AGAIN_SECONDS)
        await asyncio.sleep(network.latency() + network.latency())
        if self._connection is not connection and self._connection is not None:
            return self._connection.client_open  # another call has connected
        listener = network.listeners.get(self._address)
        if listener is None or self._closed or network.is_cut(source, target):
            return False
        self._connection = Connection(network, self._process, listener, self._keepalive)
        network.trace(self._process.name, "connected", listener.process.name)
        return True

    async def close(self, grace: float | None = None) -> None:
        self._closed = True
        if self._connection is not None:
            self._connection.break_client("channel closed")

    def unary_unary(
        self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[..., Any]:
        async def call(request: Any, timeout: float | None = None) -> Any:
            if self._network.trace.on:
                whom, method = host_of(self._address), path.rpartition("/")[2]
                self._network.trace(self._process.name, f"asks {whom} to {method}", _short(request))
            return await self._call(path, request_serializer(request), response_deserializer, timeout)

        return call

    async def _call(self, path: str, request: bytes, read: Any, timeout: float | None) -> Any:
        # Not asyncio.timeout: the call's own cancellation must reach the server.
        deadline = None if timeout is None else self._network.loop.time() + timeout
        try:
            if not await asyncio.wait_for(self._connect(), timeout):
                raise unavailable("failed to connect: connection refused")
        except TimeoutError:
            raise error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        assert self._connection is not None
        call = ClientCall(self._connection, path, read, deadline)
        call.write(request, last=True)
        try:
            response = await call.read()
        except asyncio.CancelledError:
            call.cancel()
            raise
        self._told(path, response)
        return response

    def _told(self, path: str, response: Any) -> None:
        for observer in self._network.observers:
            observer(self._process.name, path, response)

    def unary_stream(self, path: str, **_: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"not simulated: {path}")

        return call

    def stream_unary(self, path: str, **_: Any) -> Callable[..., Any]:
        return self.unary_stream(path)

    def stream_stream(
        self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[[], StreamCall]:
        def call() -> StreamCall:
            if self._connection is None or not self._connection.client_open:
                raise unavailable("not connected")
            inner = ClientCall(self._connection, path, response_deserializer, None)
            return StreamCall(inner, request_serializer)

        return call


class ClientCall:
    """A call as its client sees it."""

    def __init__(self, connection: Connection, path: str, read: Any, deadline: float | None) -> None:
        self._connection = connection
        self.network = network = connection.network
        self._read = read
        self._arrived: deque[bytes] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._error: grpc.aio.AioRpcError | None = None
        self._ended = False
        self.path = path
        self.server = ServerCall(self, connection, path, deadline)
        connection.calls.append(self)
        self._timer = None if deadline is None else network.loop.call_at(deadline, self._expired)

    def _expired(self) -> None:
        if not self._ended and self._error is None:
            self.cancel()
            self.fail(error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))

    @property
    def client_name(self) -> str:
        return self._connection.client.name

    @property
    def server_name(self) -> str:
        return self._connection.server.name

    def write_late(self, data: bytes) -> None:
        """A part of a message that was overtaken, or comes twice."""
        if self._error is None and not self._ended:
            self.write(data)

    def write(self, data: bytes, last: bool = False) -> None:
        """Send a message. Raises where the call is over."""
        if self._error is not None:
            raise self._error
        place("before send")
        server = self.server
        self._connection.to_server(lambda: server.receive(data, last))
        place("after send")

    async def read(self) -> Any:
        """The next message, None at the end of the stream."""
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._waiting = self.network.loop.create_future()
            await self._waiting
        return self._read(self._arrived.popleft())

    def cancel(self) -> None:
        """Nobody waits any more: the server is told."""
        self._over()
        if self._connection.client_open:
            self._connection.to_server(self.server.cancel)

    def deliver(self, data: bytes) -> None:
        if self._error is None and not self._ended:
            self._arrived.append(data)
            self._wake()

    def end(self) -> None:
        self._ended = True
        self._over()
        self._wake()

    def fail(self, why: grpc.aio.AioRpcError) -> None:
        if self._error is None and not self._ended:
            self._error = why
            self._over()
            self._wake()

    def _over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self in self._connection.calls:
            self._connection.calls.remove(self)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class StreamCall:
    """A bidirectional call, as AgentLink and clients use it."""

    def __init__(self, call: ClientCall, serialize: Any) -> None:
        self._call = call
        self._serialize = serialize

    async def write(self, message: Any) -> None:
        network = self._call.network
        if network.trace.on:
            network.trace(self._call.client_name, f"sends to {self._call.server_name}", _short(message))
        if not self._call.path.endswith(_WILD):
            self._call.write(self._serialize(message))
            return
        for delay, part in network.scatter(message, "commands"):
            if delay:
                network.later(delay, self._call.write_late, self._serialize(part))
            else:
                self._call.write(self._serialize(part))

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            while (message := await self._call.read()) is not None:
                yield message
        except asyncio.CancelledError:
            self._call.cancel()
            raise


class Context:
    """What a servicer may ask of its call."""

    def __init__(self, call: ServerCall) -> None:
        self._call = call

    async def send_initial_metadata(self, metadata: Any) -> None:
        pass

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        self._call.failure = error(code, details, trailing_metadata)
        raise grpc.aio.AbortError


class ServerCall:
    """A call as its server sees it."""

    def __init__(self, client: ClientCall, connection: Connection, path: str, deadline: float | None) -> None:
        self._client = client
        self._connection = connection
        self._deadline = deadline
        self._handler: Any = None
        self._arrived: deque[bytes | None] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._task: Any = None
        self._cancelled = False
        self.path = path
        self.failure: grpc.aio.AioRpcError | None = None

    def receive(self, data: bytes, last: bool) -> None:
        """A message has arrived; the first one starts the handler."""
        if self._cancelled:
            return
        self._arrived.append(data)
        if last:
            self._arrived.append(None)
        if self._task is None:
            self._start()
        elif self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _start(self) -> None:
        connection = self._connection
        self._handler = connection.methods.get(self.path)
        if self._handler is None:
            why = error(grpc.StatusCode.UNIMPLEMENTED, f"no such method: {self.path}")
            connection.to_client(lambda: self._client.fail(why))
            return
        connection.handlers.append(self)
        stream = self._handler.stream_stream is not None
        self._task = connection.server.spawn(self._stream() if stream else self._unary())
        if self._deadline is not None and not stream:
            connection.network.later(max(0.0, self._deadline - connection.network.loop.time()), self._late)

    def _late(self) -> None:
        if not self._task.done():
            self.cancel()

    def cancel(self) -> None:
        """The client has gone, or the connection."""
        self._cancelled = True
        if self in self._connection.handlers:
            self._connection.handlers.remove(self)
        if self._task is not None and not self._task.done() and self._connection.server.alive:
            self._task.cancel()

    async def _unary(self) -> None:
        data = self._arrived.popleft()
        request = self._handler.request_deserializer(data)
        try:
            response = await self._handler.unary_unary(request, Context(self))
        except grpc.aio.AbortError:
            self._fail()
            return
        self._send(response)
        self._end()

    async def _stream(self) -> None:
        try:
            async for response in self._handler.stream_stream(self._requests(), Context(self)):
                if self._cancelled:
                    return
                self._send(response)
        except grpc.aio.AbortError:
            self._fail()
            return
        self._end()

    async def _requests(self) -> AsyncIterator[Any]:
        while True:
            while not self._arrived:
                self._waiting = self._connection.network.loop.create_future()
                await self._waiting
            data = self._arrived.popleft()
            if data is None:
                return
            yield self._handler.request_deserializer(data)

    def _send(self, response: Any) -> None:
        network = self._connection.network
        if network.trace.on:
            answers = f"answers {self._connection.client.name}"
            network.trace(self._connection.server.name, answers, _short(response))
        if not self.path.endswith(_WILD):
            self._send_now(response)
            return
        for delay, part in network.scatter(response, "reports"):
            if delay:
                network.later(delay, self._send_now, part)
            else:
                self._send_now(part)

    def _send_now(self, response: Any) -> None:
        place("before answer")
        data, client = self._handler.response_serializer(response), self._client
        self._connection.to_client(lambda: client.deliver(data))
        place("after answer")

    def _fail(self) -> None:
        why, client = self.failure, self._client
        assert why is not None
        self._connection.to_client(lambda: client.fail(why))
        self._over()

    def _end(self) -> None:
        client = self._client
        self._connection.to_client(client.end)
        self._over()

    def _over(self) -> None:
        if self in self._connection.handlers:
            self._connection.handlers.remove(self)


def _short(message: Any) -> str:
    """A message on one line, for the trace."""
    if isinstance(message, bytes):
        return f"{len(message)} bytes"
    return type(message).__name__ + "{" + " ".join(str(message).split()) + "}"
