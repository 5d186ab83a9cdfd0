"""The twin of xacoord/line.py and xacoord/stream.py: a client's calls over streams, in the event loop.

The rules are the SDK's, the server's side is the product's own (shell/streams.py). Fault model: that of the
connection that the stream shares with the client's unary calls; a client that gives up while its call is
waiting, sent, or just answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from google.rpc import status_pb2

from dtp.framing import entry, packed
from tests.simulation.network import Network, error, unavailable
from tests.simulation.process import Process

_PAUSE_SECONDS = 1.0


class NotSent(Exception):
    """The call was certainly not carried out."""


class StreamingStub:
    """A stub whose calls go over a stream while one stands, and by themselves otherwise."""

    def __init__(self, network: Network, process: Process, stub: Any, module: Any) -> None:
        self._network = network
        self._process = process
        self._stub = stub
        self._module = module
        self._fields = {field.name: field.number for field in module.Call.DESCRIPTOR.fields}
        self._stream: Stream | None = None
        self._no_stream_before = 0.0

    def __getattr__(self, method: str) -> Callable[..., Any]:
        async def call(request: Any, timeout: float) -> Any:
            return await self._call(method, request, timeout)

        return call

    async def _call(self, method: str, request: Any, timeout: float) -> Any:
        until = self._network.loop.time() + timeout
        name, stream = method.lower(), self._stream
        if stream is None:
            self._open()
        elif stream.usable:
            try:
                answer = await stream.call(self._fields[name], request.SerializeToString(), timeout)
            except NotSent:
                self._network.counters["calls not sent"] += 1
            else:
                self._network.counters["calls streamed"] += 1
                return _decode(answer, name)
        return await getattr(self._stub, method)(
            request, timeout=max(0.001, until - self._network.loop.time())
        )

    def _open(self) -> None:
        if self._network.loop.time() < self._no_stream_before:
            return
        try:
            call = self._stub.Session()
        except grpc.aio.AioRpcError:
            return  # there is no connection yet; a unary call makes it
        self._network.counters["streams"] += 1
        self._stream = Stream(self._network, self._process, call, self._module.SessionRequest, self._ended)

    def _ended(self) -> None:
        self._stream = None
        self._no_stream_before = self._network.loop.time() + _PAUSE_SECONDS


class Stream:
    """One life of a stream."""

    def __init__(
        self, network: Network, process: Process, call: Any, message: Any, ended: Callable[[], None]
    ) -> None:
        self._network = network
        self._process = process
        self._call = call
        self._message = message
        self._ended = ended
        self._outbox: list[tuple[int, bytes, asyncio.Future[Any]]] = []
        self._under_way: dict[int, asyncio.Future[Any]] = {}
        self._cancelled: list[int] = []
        self._last_id = 0
        self._writing = False
        self.usable = False
        process.spawn(self._read())
        self._wake_writer()  # gRPC's streams begin with their first message here

    async def call(self, field: int, payload: bytes, timeout: float) -> Any:
        """The Answer. Raises NotSent or a gRPC error."""
        future: asyncio.Future[Any] = self._network.loop.create_future()
        self._outbox.append((field, payload, future))
        self._wake_writer()
        try:
            return await asyncio.wait_for(asyncio.shield(future), timeout)
        except TimeoutError:
            self._give_up(future)
            raise error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        except asyncio.CancelledError:
            self._give_up(future)
            raise

    def _give_up(self, future: asyncio.Future[Any]) -> None:
        future.cancel()
        self._outbox = [waiting for waiting in self._outbox if waiting[2] is not future]
        for identifier, other in self._under_way.items():
            if other is future:
                del self._under_way[identifier]
                self._cancelled.append(identifier)
                self._wake_writer()
                return

    def _wake_writer(self) -> None:
        if not self._writing:
            self._writing = True
            self._process.spawn(self._write())

    async def _write(self) -> None:
        self._writing = False
        data = b""
        for field, payload, future in self._outbox:
            self._last_id += 1
            self._under_way[self._last_id] = future
            data += entry(field, self._last_id, payload)
        data += packed(2, self._cancelled)
        self._outbox, self._cancelled = [], []
        with contextlib.suppress(grpc.aio.AioRpcError):  # the reader hears it
            await self._call.write(self._message.FromString(data))

    async def _read(self) -> None:
        why: Exception = NotSent()
        try:
            async for response in self._call:
                self.usable = True
                for answer in response.answers:
                    future = self._under_way.pop(answer.id, None)
                    if future is not None and not future.done():
                        future.set_result(answer)
        except grpc.aio.AioRpcError as broken:
            why = unavailable(f"the stream broke: {broken.details()}")
            self._network.counters["streams broken"] += 1
        self.usable = False
        self._ended()
        lost, self._under_way = self._under_way, {}
        for future in lost.values():
            _fail(future, why)
        for _, _, future in self._outbox:
            _fail(future, NotSent())
        self._outbox = []


def _fail(future: asyncio.Future[Any], why: Exception) -> None:
    if not future.done():
        future.set_exception(why)
        future.exception()  # it may be that nobody waits any more


def _decode(answer: Any, name: str) -> Any:
    kind = answer.WhichOneof("response")
    if kind == name:
        return getattr(answer, name)
    assert kind == "status", f"{name} was answered by {kind}"
    status = status_pb2.Status.FromString(answer.status)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    raise error(code, status.message, (("grpc-status-details-bin", answer.status),))
