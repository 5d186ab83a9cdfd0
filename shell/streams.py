"""Streams: a service's Session streams: many calls on each, every one answered as its unary method would.

    message ─► each call: its method, in a task ─► answer ─► outbox ─► one message of all that has gathered

A unary call costs a server more than what it asks for; a stream's message costs half of that, and carries as
many calls as have come together. Batching is natural: answers gather while a message is written.

Rules (docs/decisions/0015-session-streams.md):

1. The first message is empty and goes out at once: the client knows that the stream stands.
2. Ids grow. A message that breaks this, or is none, ends the stream with INVALID_REQUEST: nobody could tell
   any more which answer belongs to which call. What concerns one call only is refused for that call.
3. At most MAX_CALLS are under way; more are refused with OVERLOADED. A client that does not read its answers
   is not read either.
4. A cancelled call, and every call under way when the stream breaks, is cancelled as gRPC cancels a unary
   one.
5. A stream that ends with status OK has answered all that it has taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import status_pb2

from dtp import Reason, XacoordError
from dtp.framing import entry
from shell.status import to_status, unexpected

MAX_CALLS = 4_096
MAX_UNSENT = 4_096
_PACE = 64  # calls or ids of one message that are taken before others have their turn
# A result that somebody keeps keeps the message it came in: not too much beside it.
_MESSAGE_BYTES = 256 << 10
# What a message adds to its only answer, at most.
ANSWER_OVERHEAD = 64

Method: TypeAlias = Callable[[Any, Any], Coroutine[Any, Any, Message]]
"""A unary method: request, context (None here: what a stream carries needs none) -> response."""


class Streams:
    """The open Session streams of one service.

    Args:
        answer: the service's Answer message.
        methods: what carries out a call, by the name of its field in Call; the response's field in Answer
            has the same name.
        max_answer_bytes: a larger answer would break the stream; the caller hears RESOURCE_EXHAUSTED instead.
    """

    def __init__(self, answer: type[Message], methods: Mapping[str, Method], max_answer_bytes: int) -> None:
        fields = answer.DESCRIPTOR.fields_by_name
        self._methods = {name: (method, fields[name].number) for name, method in methods.items()}
        self._status_field = fields["status"].number
        self._max_answer_bytes = max_answer_bytes
        self._open: set[_Stream] = set()
        self._ended = False

    async def serve(self, requests: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        """A stream's messages to its client, serialised, until it ends.

        Raises:
            XacoordError: DRAINING, or INVALID_REQUEST where the client does not keep to the rules.
        """
        if self._ended:
            raise XacoordError(Reason.DRAINING, "this daemon is stopping; retry when it is back")
        stream = _Stream(self._methods, self._status_field, self._max_answer_bytes)
        self._open.add(stream)
        stream.start(requests)
        try:
            async for message in stream.messages():
                yield message
        finally:
            self._open.discard(stream)
            stream.drop()

    def end(self) -> None:
        """Take no more calls; each stream ends when what it has taken is answered. Not to be undone."""
        self._ended = True
        for stream in list(self._open):
            stream.finish()


class _Stream:
    def __init__(
        self, methods: Mapping[str, tuple[Method, int]], status_field: int, max_answer_bytes: int
    ) -> None:
        self._methods = methods
        self._status_field = status_field
        self._max_answer_bytes = max_answer_bytes
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._last_id = 0
        self._outbox: list[bytes] = []
        self._filled = asyncio.Event()
        self._sent = asyncio.Event()
        self._finishing = False
        self._failure: XacoordError | None = None

    def start(self, requests: AsyncIterator[Any]) -> None:
        self._reading = self._loop.create_task(self._read(requests))

    def finish(self) -> None:
        """Take no more calls; end when all that were taken are answered."""
        self._finishing = True
        self._filled.set()
        if self._reading is not None:
            self._reading.cancel()

    def drop(self) -> None:
        """Nobody hears the answers any more."""
        if self._reading is not None:
            self._reading.cancel()
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()

    # answers

    async def messages(self) -> AsyncIterator[bytes]:
        yield b""
        while True:
            await self._filled.wait()
            self._filled.clear()
            if self._failure is not None:
                raise self._failure
            answers, self._outbox = self._outbox, []
            for message in _joined(answers):
                yield message
            self._sent.set()
            if self._finishing and not self._tasks and not self._outbox:
                return

    def _put(self, identifier: int, field: int, payload: bytes) -> None:
        self._outbox.append(entry(field, identifier, payload))
        self._filled.set()

    def _refuse(self, identifier: int, error: XacoordError) -> None:
        self._put(identifier, self._status_field, to_status(error).SerializeToString())

    # calls

    async def _read(self, requests: AsyncIterator[Any]) -> None:
        try:
            async for message in requests:
                await self._take(message)
        except XacoordError as error:
            self._failure = error
        except grpc.aio.UsageError:  # the stream is over
            pass
        except Exception:
            self._failure = unexpected("Session")
        self._finishing = True
        self._filled.set()

    async def _take(self, message: Any) -> None:
        """Start a message's calls, and cancel what it says."""
        turn = 0
        for call in message.calls:
            self._begin(call)
            turn += 1
            if turn % _PACE == 0:
                await asyncio.sleep(0)
        for identifier in message.cancelled:
            task = self._tasks.pop(identifier, None)
            if task is not None:
                task.cancel()
            turn += 1
            if turn % _PACE == 0:
                await asyncio.sleep(0)
        while len(self._outbox) > MAX_UNSENT:
            self._sent.clear()
            await self._sent.wait()

    def _begin(self, call: Any) -> None:
        identifier: int = call.id
        if identifier <= self._last_id:
            raise XacoordError(
                Reason.INVALID_REQUEST, f"call {identifier} follows call {self._last_id}: ids must grow"
            )
        self._last_id = identifier
        name = call.WhichOneof("request")
        known = self._methods.get(name)
        if known is None:
            self._refuse(
                identifier, XacoordError(Reason.INVALID_REQUEST, "a call without a request known here")
            )
        elif len(self._tasks) >= MAX_CALLS:
            message = f"{MAX_CALLS} calls are under way on this stream; try again when some are answered"
            self._refuse(identifier, XacoordError(Reason.OVERLOADED, message))
        else:
            work = self._carry_out(identifier, name, known[0], known[1], getattr(call, name))
            self._tasks[identifier] = self._loop.create_task(work)

    async def _carry_out(self, identifier: int, name: str, method: Method, field: int, request: Any) -> None:
        failure = None
        try:
            payload = (await method(request, None)).SerializeToString()
            if len(payload) > self._max_answer_bytes:
                field, payload = self._status_field, _too_large(len(payload), self._max_answer_bytes)
        except XacoordError as error:
            failure = error
        except asyncio.CancelledError:
            if identifier not in self._tasks:
                raise  # by the client, or with the stream
            failure = XacoordError(Reason.INTERNAL, "the call was cancelled by the daemon")
        except Exception:
            failure = unexpected(name)
        if failure is not None:
            field, payload = self._status_field, to_status(failure).SerializeToString()
        self._tasks.pop(identifier, None)
        self._put(identifier, field, payload)


def _joined(answers: list[bytes]) -> Iterator[bytes]:
    """The answers, joined to messages of at most _MESSAGE_BYTES, or of one answer."""
    size, start = 0, 0
    for index, answer in enumerate(answers):
        if size and size + len(answer) > _MESSAGE_BYTES:
            yield b"".join(answers[start:index])
            size, start = 0, index
        size += len(answer)
    if size:
        yield b"".join(answers[start:])


def _too_large(size: int, most: int) -> bytes:
    """What gRPC itself would say: no reason of ours, because nothing is known of what was done."""
    code: int = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    message = f"the answer has {size} bytes; at most {most} can be sent"
    data: bytes = status_pb2.Status(code=code, message=message).SerializeToString()
    return data
