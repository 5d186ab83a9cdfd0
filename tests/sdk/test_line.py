"""Lines: streams of real gRPC to the fake servers, and unary calls where there is none."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from coordinator.config import CoordinatorSection
from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc as pb_grpc
from dtp import Reason
from tests.sdk import streaming
from tests.sdk.fakes import World, hang, refuse
from tests.sdk.streaming import PATIENCE_SECONDS, readers, until
from xacoord import Branch, InDoubt, Statement, TransactionManager, Unavailable, line
from xacoord.stream import LARGEST_REQUEST_BYTES, MESSAGE_BYTES


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
        assert readers() == 0
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
            until(lambda: readers() == 0)
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
    until(lambda: readers() == 0)
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
        assert readers() <= 1


def test_no_server_has_a_limit_below_a_streams_message() -> None:
    """It would break the stream, and with it everybody's calls."""
    with pytest.raises(ValueError, match="max_message_bytes"):
        CoordinatorSection("0001", "data", max_message_bytes=MESSAGE_BYTES)
