"""The SDK's streams: many threads on one, and all the ways in which a stream or a call on it can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc as pb_grpc
from dtp import Reason
from tests.sdk import streaming
from tests.sdk.fakes import World, hang, refuse
from xacoord import Branch, InDoubt, Statement, TransactionManager, Unavailable, line
from xacoord.faults import Fault
from xacoord.stream import LARGEST_REQUEST_BYTES, MESSAGE_BYTES, NotSent, Stream

FIELD = pb.Call.DESCRIPTOR.fields_by_name["run"].number
PATIENCE_SECONDS = 10.0


def until(fact: Callable[[], bool]) -> None:
    """Wait for a fact; fails where it does not come."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not fact():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "xacoord-stream"]


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


# Lines: gRPC, and the fake servers


def run(tm: TransactionManager, key: str | None = None) -> Any:
    return tm.run([Branch("orders", [Statement("SELECT %s", (key or "",))])], idempotency_key=key)


@pytest.fixture
def streaming_tm(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[TransactionManager]:
    """A manager whose calls all go over streams."""
    streaming.always(monkeypatch)
    with TransactionManager.connect(world.address, grace=2.0) as tm:
        yield tm


def test_many_threads_hear_their_own_answers(world: World) -> None:
    """On streams as they are opened by themselves, at the coordinator and at the agents."""
    with TransactionManager.connect(world.address) as tm, ThreadPoolExecutor(32) as pool:

        def work(number: int) -> None:
            for turn in range(10):
                key = f"{number}-{turn}"
                result = run(tm, key)
                assert result.results["orders"][0].scalar() == key
                with tm.transaction() as tx:
                    assert tx.branch("stock").execute("SELECT %s", (key,)).scalar() == key
                assert world.coordinator.outcome(tx.gtrid) == "OUTCOME_COMMITTED"

        list(pool.map(work, range(32)))
    assert len(world.coordinator.streamed) > 32
    assert world.coordinator.messages < len(world.coordinator.streamed)
    assert world.agents["stock"].streamed


def test_few_calls_need_no_stream(world: World) -> None:
    with TransactionManager.connect(world.address) as tm:
        for _ in range(line.CALLS_BEFORE_A_STREAM):
            run(tm)
        assert threads() == []
        until(lambda: run(tm).gtrid != "" and bool(world.coordinator.streamed))
    assert world.agents["orders"].streamed == []


def test_without_sessions_calls_are_unary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(streaming.Session, "Session")
    monkeypatch.setattr(line, "CALLS_BEFORE_A_STREAM", 0)
    other = World()
    try:
        with TransactionManager.connect(other.address) as tm:
            for _ in range(50):
                run(tm)
            until(lambda: threads() == [])
            opened = tm._session.driver._lines[""]._no_stream_before - time.monotonic()
            assert opened > 10, "it is not tried again all the time"
    finally:
        other.servers.stop()
    assert len(other.coordinator.methods()) == 50


def test_a_large_request_goes_by_itself(streaming_tm: TransactionManager, world: World) -> None:
    run(streaming_tm)
    statement = Statement("SELECT %s", ("x" * LARGEST_REQUEST_BYTES,))
    result = streaming_tm.run([Branch("orders", [statement])])
    assert len(result.results["orders"][0].scalar()) == LARGEST_REQUEST_BYTES
    assert world.coordinator.streamed == ["run"]


def test_a_deadline_reaches_the_server(streaming_tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Get", hang(5))
    gtrid = world.coordinator.new_gtrid()
    started = time.monotonic()
    with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
        streaming_tm.status(gtrid)
    assert 1.9 < time.monotonic() - started < 4
    until(lambda: world.coordinator.cancelled == [1])
    assert streaming_tm.status(gtrid).state == "ACTIVE"
    assert world.coordinator.streamed == ["get", "get"]


def test_an_interrupted_run_is_cancelled(streaming_tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Run", hang(2))
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run(streaming_tm)
    until(lambda: world.coordinator.cancelled == [1])


def test_the_servers_end_breaks_calls_under_way(streaming_tm: TransactionManager, world: World) -> None:
    """A Run without a key is then in doubt; nothing hangs; a server that is back is found again."""
    world.coordinator.always("Run", hang(1.0))
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(run, streaming_tm) for _ in range(8)]
        until(lambda: len(world.coordinator.streamed) == 8)
        world.coordinator_server.stop(None)
        assert {type(call.exception(PATIENCE_SECONDS)) for call in calls} == {InDoubt}
    world.coordinator.script["Run"].clear()
    world.servers.serve(
        lambda server: pb_grpc.add_CoordinatorServicer_to_server(world.coordinator, server), world.address
    )
    gtrid = world.coordinator.new_gtrid()

    def asks() -> bool:
        try:
            return bool(streaming_tm.status(gtrid).gtrid)
        except Unavailable:
            return False

    until(asks)
    until(lambda: run(streaming_tm).gtrid != "" and len(world.coordinator.streamed) > 10)


def test_what_an_end_in_order_left_is_called_again(streaming_tm: TransactionManager, world: World) -> None:
    """The server stops between two messages: a call that it has not taken is made again, once, by itself."""

    def deaf(requests: Any, context: Any) -> Iterator[Any]:
        next(requests)
        yield from ()

    world.coordinator.talk = deaf
    assert run(streaming_tm, "key").replayed is False
    assert world.coordinator.methods() == ["Run"]
    assert world.coordinator.streamed == []


def test_an_answer_of_another_kind_is_no_answer(streaming_tm: TransactionManager, world: World) -> None:
    def wrong(requests: Any, context: Any) -> Iterator[Any]:
        for message in requests:
            for call in message.calls:
                answers = [pb.Answer(id=call.id, commit=pb.CommitResponse()), pb.Answer(id=call.id + 1)]
                yield pb.SessionResponse(answers=answers)

    world.coordinator.talk = wrong
    with pytest.raises(InDoubt, match="answered by commit"):
        run(streaming_tm)
    with pytest.raises(InDoubt, match="run was answered by"):
        run(streaming_tm)


def test_an_error_that_cannot_be_read(streaming_tm: TransactionManager, world: World) -> None:
    def wrong(requests: Any, context: Any) -> Iterator[Any]:
        for message in requests:
            yield pb.SessionResponse(answers=[pb.Answer(id=c.id, status=b"\xff") for c in message.calls])

    world.coordinator.talk = wrong
    with pytest.raises(InDoubt, match="cannot be read"):
        run(streaming_tm)


def test_an_error_of_the_stream_is_not_the_calls(streaming_tm: TransactionManager, world: World) -> None:
    """The stream's own status says nothing of what its calls did, however definite it sounds."""

    def broken(requests: Any, context: Any) -> Iterator[Any]:
        next(requests)
        refuse(Reason.INVALID_REQUEST)(None, context, lambda: None)
        yield from ()

    world.coordinator.talk = broken
    with pytest.raises(InDoubt):
        run(streaming_tm)


def test_close_ends_threads_and_calls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    streaming.always(monkeypatch)
    world.coordinator.on("Run", hang(1.0))
    tm = TransactionManager.connect(world.address)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(run, tm)
        until(lambda: world.coordinator.streamed == ["run"])
        tm.close()
        assert isinstance(call.exception(PATIENCE_SECONDS), InDoubt)
    until(lambda: threads() == [])
    tm.close()
    with pytest.raises(RuntimeError, match="closed"):
        run(tm)


def test_lost_connections_do_not_pile_up_threads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "CALLS_BEFORE_A_STREAM", 0)
    with TransactionManager.connect(world.address, grace=0.2) as tm:
        world.coordinator_server.stop(None)
        for _ in range(50):
            with pytest.raises(Exception, match="COORDINATOR_UNAVAILABLE"):
                tm.status("k1")
        assert len(threads()) <= 1


# Processes

_SERVER = """
import sys
sys.path.insert(0, {root!r})
from tests.sdk.fakes import World
world = World()
print(world.address, flush=True)
sys.stdin.read()
world.servers.stop()
"""

_CLIENT = """
import os, signal, sys, threading, time
sys.path.insert(0, {root!r})
from xacoord import Branch, Statement, TransactionManager, line
line.CALLS_BEFORE_A_STREAM = 0
tm = TransactionManager.connect(sys.argv[1], grace=1.0)
def run():
    tm.run([Branch("orders", [Statement("SELECT 1")])], timeout=2)
while not tm._session.driver._lines or not getattr(tm._session.driver._lines[""]._stream, "usable", False):
    run()
run()
{then}
print("the end", flush=True)
"""


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    code = _SERVER.format(root=os.getcwd())
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "then",
    [
        "",  # ends without close()
        "tm.close()",
        "del tm; import gc; gc.collect()",
        # The server is frozen, also with calls under way; the first is awaited, the others are not.
        "os.kill(int(sys.argv[2]), signal.SIGSTOP)",
        "os.kill(int(sys.argv[2]), signal.SIGSTOP)\n"
        "for _ in range(5): threading.Thread(target=run, daemon=True).start()\n"
        "time.sleep(0.3)",
        "os.kill(int(sys.argv[2]), signal.SIGSTOP)\n"
        "threading.Thread(target=run, daemon=True).start(); time.sleep(0.3); tm.close()",
        # A child that is forked while the stream stands ends as its parent does.
        "child = os.fork()\n"
        "if child == 0: sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "run()",
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try: run()\n"
        "    except RuntimeError as error: assert 'fork' in str(error)\n"
        "    tm.close(); sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "run()",
    ],
)
def test_a_process_ends_whatever_becomes_of_its_stream(server: subprocess.Popen[str], then: str) -> None:
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    code = _CLIENT.format(root=os.getcwd(), then=then)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, address, str(server.pid)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS + 10,
    )
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr
    assert "Traceback" not in done.stderr
