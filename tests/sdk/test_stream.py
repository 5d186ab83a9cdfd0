"""One stream, without gRPC: whom an answer goes to, and all the ways in which a stream or a call can end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from coordinator.v1 import coordinator_pb2 as pb
from tests.sdk.streaming import PATIENCE_SECONDS, until
from xacoord.faults import Fault
from xacoord.stream import LARGEST_REQUEST_BYTES, MESSAGE_BYTES, NotSent, Stream

FIELD = pb.Call.DESCRIPTOR.fields_by_name["run"].number


class Transport:
    """Stands for gRPC: what the stream sends is in `sent`; what the test puts into `answers` arrives."""

    def __init__(self, idle_seconds: float = 60.0) -> None:
        self.sent: SimpleQueue[pb.SessionRequest] = SimpleQueue()
        self.answers: SimpleQueue[Any] = SimpleQueue()
        self.ends: list[str] = []
        self.half_closed = threading.Event()
        self.stream = Stream(self.connect, self.ends.append, idle_seconds)

    def connect(self, messages: Iterator[bytes]) -> Iterator[Any]:
        threading.Thread(target=self._write, args=(messages,), daemon=True).start()
        while (response := self.answers.get()) is not None:
            if isinstance(response, Exception):
                raise response
            yield response

    def _write(self, messages: Iterator[bytes]) -> None:
        for message in messages:
            self.sent.put(pb.SessionRequest.FromString(message))
        self.half_closed.set()

    def open(self) -> Transport:
        self.answers.put(pb.SessionResponse())
        until(lambda: self.stream.usable)
        return self

    def answer(self, *identifiers: int) -> None:
        answers = [pb.Answer(id=i, run=pb.RunResponse(gtrid=f"g{i}")) for i in identifiers]
        self.answers.put(pb.SessionResponse(answers=answers))

    def end(self, error: Exception | None = None) -> None:
        self.answers.put(error)
        until(lambda: bool(self.ends))

    def call(self, payload: bytes = b"", timeout_seconds: float = PATIENCE_SECONDS) -> Any:
        return self.stream.call(FIELD, payload, timeout_seconds)


class Broken(grpc.RpcError):
    """How gRPC says that a stream broke."""

    def __init__(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "Socket closed"


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport()
    yield transport
    transport.end()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


# One stream


def test_nothing_is_sent_before_the_server_has_opened_it(transport: Transport) -> None:
    with pytest.raises(NotSent):
        transport.call()
    transport.open()
    assert transport.sent.empty()


def test_answers_in_any_order(transport: Transport, pool: ThreadPoolExecutor) -> None:
    transport.open()
    calls = []
    for number in range(1, 5):
        calls.append(pool.submit(transport.call))
        [call] = transport.sent.get(timeout=PATIENCE_SECONDS).calls
        assert (call.id, call.WhichOneof("request")) == (number, "run")
    transport.answer(3, 99)
    transport.answer(4, 1, 4)
    transport.answer(2)
    assert [call.result(PATIENCE_SECONDS).run.gtrid for call in calls] == ["g1", "g2", "g3", "g4"]


def test_calls_gather_while_a_message_is_written(transport: Transport, pool: ThreadPoolExecutor) -> None:
    transport.open()
    with transport.stream._lock:  # the writer is held up
        calls = [pool.submit(transport.call) for _ in range(20)]
        time.sleep(0.1)
    sizes = []
    while sum(sizes) < 20:
        message = transport.sent.get(timeout=PATIENCE_SECONDS)
        sizes.append(len(message.calls))
        transport.answer(*(call.id for call in message.calls))
    assert {call.result(PATIENCE_SECONDS).run.gtrid for call in calls} == {f"g{i}" for i in range(1, 21)}
    assert len(sizes) < 20


def test_a_message_is_never_larger_than_any_server_takes(
    transport: Transport, pool: ThreadPoolExecutor
) -> None:
    transport.open()
    request = pb.RunRequest(idempotency_key="x" * (LARGEST_REQUEST_BYTES - 4)).SerializeToString()
    assert len(request) == LARGEST_REQUEST_BYTES
    with transport.stream._lock:
        small = [pool.submit(transport.call) for _ in range(10)]
        large = [pool.submit(transport.call, request) for _ in range(5)]
        time.sleep(0.1)
    seen: list[int] = []
    while len(seen) < 15:
        message = transport.sent.get(timeout=PATIENCE_SECONDS)
        assert message.ByteSize() <= MESSAGE_BYTES
        seen.extend(call.id for call in message.calls)
        transport.answer(*(call.id for call in message.calls))
    assert seen == list(range(1, 16))
    assert all(call.result(PATIENCE_SECONDS).HasField("run") for call in small + large)


def test_a_deadline_is_told_to_the_server(transport: Transport) -> None:
    transport.open()
    fault = transport.call(timeout_seconds=0.05)
    assert isinstance(fault, Fault)
    assert (fault.status, fault.reason, fault.definite, fault.retryable) == (
        "DEADLINE_EXCEEDED",
        "",
        False,
        True,
    )
    assert [call.id for call in transport.sent.get().calls] == [1]
    assert transport.sent.get(timeout=PATIENCE_SECONDS) == pb.SessionRequest(cancelled=[1])
    transport.answer(1)  # too late, and nobody's
    assert not transport.stream._under_way


def test_a_call_whose_time_is_up_before_it_is_sent_is_not_sent(transport: Transport) -> None:
    transport.open()
    assert transport.stream._work.acquire(blocking=False) is False
    transport.stream._work = threading.Lock()  # the writer hears nothing
    transport.stream._work.acquire()
    assert transport.call(timeout_seconds=0.05).status == "DEADLINE_EXCEEDED"
    assert not transport.stream._outbox
    assert not transport.stream._cancelled


@pytest.mark.parametrize("end", [Broken(), Broken(grpc.StatusCode.INVALID_ARGUMENT), ValueError("closed")])
def test_a_break_leaves_open_what_became_of_calls(end: Exception, pool: ThreadPoolExecutor) -> None:
    transport = Transport().open()
    call = pool.submit(transport.call)
    transport.sent.get(timeout=PATIENCE_SECONDS)
    transport.end(end)
    fault = call.result(PATIENCE_SECONDS)
    assert (fault.status, fault.reason, fault.definite, fault.retryable) == ("UNAVAILABLE", "", False, True)
    assert transport.ends == ["broken"]
    with pytest.raises(NotSent):
        transport.call()


def test_an_end_in_order_tells_that_nothing_was_done(pool: ThreadPoolExecutor) -> None:
    transport = Transport().open()
    calls = [pool.submit(transport.call) for _ in range(2)]
    sent = 0
    while sent < 2:
        sent += len(transport.sent.get(timeout=PATIENCE_SECONDS).calls)
    transport.answer(1)
    transport.end()
    results = [call.exception(PATIENCE_SECONDS) or call.result() for call in calls]
    assert sorted(type(result).__name__ for result in results) == ["Answer", "NotSent"]
    assert transport.ends == ["in order"]


def test_what_was_never_sent_is_known_not_to_be_done(pool: ThreadPoolExecutor) -> None:
    transport = Transport().open()
    work, transport.stream._work = transport.stream._work, threading.Lock()
    transport.stream._work.acquire()
    call = pool.submit(transport.call)
    until(lambda: bool(transport.stream._outbox))
    transport.end(Broken())
    assert isinstance(call.exception(PATIENCE_SECONDS), NotSent)
    work.release()


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (Broken(grpc.StatusCode.UNIMPLEMENTED), "not served"),
        (Broken(), "never opened"),
        (None, "never opened"),
    ],
)
def test_a_stream_that_is_never_opened(error: Exception | None, end: str) -> None:
    transport = Transport()
    transport.end(error)
    assert transport.ends == [end]


def test_an_idle_stream_is_closed() -> None:
    transport = Transport(idle_seconds=0.05).open()
    assert transport.half_closed.wait(PATIENCE_SECONDS)
    assert not transport.stream.usable
    transport.end()
    assert transport.ends == ["in order"]


def test_a_stream_with_a_call_under_way_is_not_idle(pool: ThreadPoolExecutor) -> None:
    transport = Transport(idle_seconds=0.05).open()
    call = pool.submit(transport.call)
    transport.sent.get(timeout=PATIENCE_SECONDS)
    assert not transport.half_closed.wait(0.3)
    transport.answer(1)
    assert call.result(PATIENCE_SECONDS).run.gtrid == "g1"
    assert transport.half_closed.wait(PATIENCE_SECONDS)
    transport.end()


def test_an_interrupted_caller_cancels_its_call(transport: Transport) -> None:
    transport.open()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        transport.call()
    assert [call.id for call in transport.sent.get().calls] == [1]
    assert transport.sent.get(timeout=PATIENCE_SECONDS).cancelled == [1]
