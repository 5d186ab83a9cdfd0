"""Sessions for the fake servers: a Session stream whose calls are carried out as the servers' unary methods.

`always` makes an SDK of this process send all that it can over streams.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status

from xacoord import line
from xacoord.faults import STATUS_KEY
from xacoord.line import Line

PATIENCE_SECONDS = 10.0
_OPENING_SECONDS = 0.3  # where nobody answers


def until(fact: Callable[[], bool]) -> None:
    """Wait for a fact; fails where it does not come."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not fact():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def readers() -> int:
    """How many streams this process has."""
    return sum(thread.name == "xacoord-stream" for thread in threading.enumerate())


class Aborted(Exception):
    """The end of a call with an error, as `context.abort` makes it."""


class Context:
    """What the scripted actions ask of a call's context."""

    def __init__(self) -> None:
        self.trailers: dict[str, bytes] = {}
        self.status: Status | None = None

    def time_remaining(self) -> None:
        """A stream's calls carry no deadline: the client cancels them."""

    def set_trailing_metadata(self, trailers: Any) -> None:
        self.trailers = dict(trailers)

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.status = Status.FromString(self.trailers.get(STATUS_KEY, b""))
        self.status.code = code.value[0]
        self.status.message = details
        raise Aborted


class Session:
    """A servicer's Session method. `module` has the service's messages.

    Attributes:
        streamed: methods called over a stream, in order.
        cancelled: ids that clients have cancelled.
        messages: how many messages with calls have come.
        talk: what takes the requests and gives the responses, where a test wants another one.
    """

    module: Any

    def __init__(self) -> None:
        super().__init__()
        self.streamed: list[str] = []
        self.cancelled: list[int] = []
        self.messages = 0
        self.talk = self._talk

    def Session(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        yield self.module.SessionResponse()
        yield from self.talk(requests, context)

    def _talk(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        answers: SimpleQueue[Any] = SimpleQueue()
        context.add_callback(lambda: answers.put(None))
        threading.Thread(target=self._take, args=(requests, answers), daemon=True).start()
        while (answer := answers.get()) is not None:
            yield self.module.SessionResponse(answers=[answer])

    def _take(self, requests: Iterator[Any], answers: SimpleQueue[Any]) -> None:
        with ThreadPoolExecutor(64) as threads:
            try:
                for message in requests:
                    self.messages += 1
                    self.cancelled.extend(message.cancelled)
                    for call in message.calls:
                        threads.submit(self._carry_out, call, answers)
            except grpc.RpcError:
                pass  # the client has gone
        answers.put(None)

    def _carry_out(self, call: Any, answers: SimpleQueue[Any]) -> None:
        name = call.WhichOneof("request")
        self.streamed.append(name)
        context = Context()
        try:
            response = getattr(self, name.capitalize())(getattr(call, name), context)
            answers.put(self.module.Answer(id=call.id, **{name: response}))
        except Aborted:
            assert context.status is not None
            answers.put(self.module.Answer(id=call.id, status=context.status.SerializeToString()))


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the SDK goes over a stream where one can be opened; it is waited for."""
    call = Line.call

    def patient(self: Line, method: str, request: Any, timeout_seconds: float) -> Any:
        until = time.monotonic() + min(timeout_seconds, _OPENING_SECONDS)
        while time.monotonic() < until:
            stream = self._stream or self._open_stream()
            if stream is None or stream.usable:
                break
            time.sleep(0.002)
        return call(self, method, request, timeout_seconds)

    monkeypatch.setattr(line, "CALLS_BEFORE_A_STREAM", 0)
    monkeypatch.setattr(Line, "call", patient)
