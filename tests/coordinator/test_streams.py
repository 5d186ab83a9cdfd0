"""Session streams on the server's side, behind the daemons' interceptor, with methods that tests steer."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc as rpc
from dtp import Reason, XacoordError
from shell import streams
from shell.status import ErrorInterceptor
from shell.streams import Streams

MAX_ANSWER = 3 << 20
SECONDS = 10.0


class Toy(rpc.CoordinatorServicer):
    """Commits wait until they are let go, runs echo their key, and the rest fails in its own way."""

    def __init__(self) -> None:
        methods = {"begin": self.Begin, "run": self.Run, "commit": self.Commit, "rollback": self.Rollback}
        self.streams = Streams(pb.Answer, methods, MAX_ANSWER)
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.cancelled: list[str] = []
        self.changed = asyncio.Event()

    async def Session(self, requests: AsyncIterator[pb.SessionRequest], context: Any) -> Any:
        async for message in self.streams.serve(requests):
            yield message

    async def Begin(self, request: pb.BeginRequest, context: Any) -> pb.BeginResponse:
        raise XacoordError(Reason.NOT_READY, "not\x1bready", gtrid="k1", metadata={"statement": "3"})

    async def Run(self, request: pb.RunRequest, context: Any) -> pb.RunResponse:
        return pb.RunResponse(gtrid=request.idempotency_key)

    async def Commit(self, request: pb.CommitRequest, context: Any) -> pb.CommitResponse:
        future = self.waiting[request.gtrid] = asyncio.get_running_loop().create_future()
        self.changed.set()
        try:
            await future
        except asyncio.CancelledError:
            self.cancelled.append(request.gtrid)
            self.changed.set()
            raise
        return pb.CommitResponse(outcome=pb.OUTCOME_COMMITTED)

    async def Rollback(self, request: pb.RollbackRequest, context: Any) -> pb.RollbackResponse:
        raise ZeroDivisionError

    async def until(self, fact: Callable[[], bool]) -> None:
        while not fact():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), SECONDS)


class Client:
    """A raw client: one channel, and what has been answered on its stream."""

    def __init__(self, toy: Toy, address: str) -> None:
        self.toy = toy
        options = [("grpc.max_receive_message_length", -1)]
        self.channel = grpc.aio.insecure_channel(address, options=options)
        self.stub: Any = rpc.CoordinatorStub(self.channel)
        self.stream = self.stub.Session()
        self.last_id = 0

    async def hello(self) -> None:
        assert await asyncio.wait_for(self.stream.read(), SECONDS) == pb.SessionResponse()

    async def send(self, *requests: Any, cancelled: tuple[int, ...] = ()) -> None:
        message = pb.SessionRequest(cancelled=cancelled)
        for request in requests:
            self.last_id += 1
            name = type(request).__name__.removesuffix("Request").lower()
            message.calls.add(id=self.last_id, **{name: request})
        await self.stream.write(message)

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""
        return await asyncio.wait_for(self.stream.read(), SECONDS)

    async def answers(self, count: int) -> dict[int, pb.Answer]:
        found: dict[int, pb.Answer] = {}
        while len(found) < count:
            found |= {answer.id: answer for answer in (await self.read()).answers}
        return found

    async def end(self) -> grpc.aio.AioRpcError:
        """The error that the stream ends with."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await drain(self.stream)
        return caught.value


async def drain(stream: Any) -> None:
    """Read to the end."""
    while await asyncio.wait_for(stream.read(), SECONDS) is not grpc.aio.EOF:
        pass


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Toy, Client]]:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    toy = Toy()
    rpc.add_CoordinatorServicer_to_server(toy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = Client(toy, f"127.0.0.1:{port}")
    try:
        await client.hello()
        yield toy, client
    finally:
        await client.channel.close()
        await server.stop(None)


def play(story: Callable[[Toy, Client], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a story about one server and one client."""

    @functools.wraps(story)
    def test(**fixtures: Any) -> None:
        async def run() -> None:
            async with serving() as (toy, client):
                await story(toy, client, **fixtures)

        asyncio.run(run())

    # pytest asks for the fixtures behind the first two arguments.
    test.__signature__ = _without_first_two(story)  # type: ignore[attr-defined]
    return test


def _without_first_two(story: Callable[..., Any]) -> Any:
    signature = inspect.signature(story)
    return signature.replace(parameters=list(signature.parameters.values())[2:])


def run(key: str) -> pb.RunRequest:
    return pb.RunRequest(idempotency_key=key)


def commit(gtrid: str) -> pb.CommitRequest:
    return pb.CommitRequest(gtrid=gtrid)


def reason(answer: pb.Answer) -> str:
    """Of the ErrorInfo in a refusal."""
    info = error_details_pb2.ErrorInfo()
    assert answer.WhichOneof("response") == "status"
    assert status_pb2.Status.FromString(answer.status).details[0].Unpack(info)
    return info.reason


@play
async def test_answers_come_together_and_to_the_right_call(toy: Toy, client: Client) -> None:
    await client.send(*(run(f"k{number}") for number in range(1, 201)))
    message = await client.read()
    found = {answer.id: answer.run.gtrid for answer in message.answers}
    while len(found) < 200:
        found |= {answer.id: answer.run.gtrid for answer in (await client.read()).answers}
    assert found == {number: f"k{number}" for number in range(1, 201)}
    assert len(message.answers) > 1, "answers that are there together go out together"


@play
async def test_order_of_answers_is_free(toy: Toy, client: Client) -> None:
    await client.send(commit("a"), commit("b"), run("c"))
    assert set(await client.answers(1)) == {3}
    toy.waiting["b"].set_result(None)
    assert set(await client.answers(1)) == {2}
    toy.waiting["a"].set_result(None)
    assert (await client.answers(1))[1].commit.outcome == pb.OUTCOME_COMMITTED


@play
async def test_a_refusal_is_the_unary_ones_status(toy: Toy, client: Client) -> None:
    await client.send(pb.BeginRequest())
    status = (await client.answers(1))[1].status
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.stub.Begin(pb.BeginRequest())
    assert status == dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert status_pb2.Status.FromString(status).message == caught.value.details()


@play
async def test_one_bad_call_leaves_the_others_alone(
    toy: Toy, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    await client.send(commit("a"))
    await client.stream.write(pb.SessionRequest(calls=[pb.Call(id=2)]))
    client.last_id = 2
    await client.send(pb.RollbackRequest(), pb.GetRequest())  # the toy has no Get
    answers = await client.answers(3)
    assert reason(answers[2]) == Reason.INVALID_REQUEST
    assert reason(answers[3]) == Reason.INTERNAL
    assert reason(answers[4]) == Reason.INVALID_REQUEST
    toy.waiting["a"].set_result(None)
    assert (await client.answers(1))[1].HasField("commit")
    assert "ZeroDivisionError" in "".join(capfd.readouterr())


@play
async def test_messages_without_anything(toy: Toy, client: Client) -> None:
    for _ in range(3):
        await client.stream.write(pb.SessionRequest())
    await client.send(run("k"))
    assert (await client.answers(1))[1].run.gtrid == "k"


@pytest.mark.parametrize("second", [0, 1, 2])
@play
async def test_ids_must_grow(toy: Toy, client: Client, second: int) -> None:
    await client.stream.write(pb.SessionRequest(calls=[pb.Call(id=2, commit=commit("a"))]))
    await toy.until(lambda: "a" in toy.waiting)
    await client.stream.write(pb.SessionRequest(calls=[pb.Call(id=second, commit=commit("b"))]))
    error = await client.end()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "ids must grow" in (error.details() or "")
    await toy.until(lambda: toy.cancelled == ["a"])
    assert "b" not in toy.waiting


@play
async def test_no_message_at_all(toy: Toy, client: Client) -> None:
    same = lambda given: given  # noqa: E731
    raw = client.channel.stream_stream("/coordinator.v1.Coordinator/Session", same, same)()
    await raw.write(b"\x0a\x05\x08")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await drain(raw)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@play
async def test_a_cancelled_call_is_cancelled_and_not_answered(toy: Toy, client: Client) -> None:
    await client.send(commit("a"), commit("b"))
    await toy.until(lambda: len(toy.waiting) == 2)
    await client.send(cancelled=(1, 1, 77, 2**64 - 1))
    await toy.until(lambda: toy.cancelled == ["a"])
    toy.waiting["b"].set_result(None)
    await client.stream.done_writing()
    assert set(await client.answers(1)) == {2}
    assert await client.read() is grpc.aio.EOF


@play
async def test_a_call_and_its_cancellation_in_one_message(toy: Toy, client: Client) -> None:
    await client.send(commit("a"), run("k"), cancelled=(1,))
    assert set(await client.answers(1)) == {2}
    await client.stream.done_writing()
    assert await client.read() is grpc.aio.EOF


@play
async def test_calls_beyond_the_bound_are_refused(
    toy: Toy, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_CALLS", 3)
    await client.send(*(commit(f"g{number}") for number in range(5)))
    answers = await client.answers(2)
    assert {number: reason(answer) for number, answer in answers.items()} == dict.fromkeys(
        (4, 5), "OVERLOADED"
    )
    toy.waiting["g0"].set_result(None)
    await client.answers(1)
    await client.send(run("again"))
    assert (await client.answers(1))[6].run.gtrid == "again"


@play
async def test_a_client_that_reads_nothing_is_not_read(
    toy: Toy, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_UNSENT", 20)
    key = "x" * 100_000
    writing = asyncio.create_task(_write_runs(client, key, 2_000))
    before = -1
    while before != len(toy.streams._open) + client.last_id:
        before = len(toy.streams._open) + client.last_id
        await asyncio.sleep(0.3)
    assert client.last_id < 1_000, "the writer is held up"
    found: dict[int, str] = {}
    while len(found) < 2_000:
        found |= {answer.id: answer.run.gtrid for answer in (await client.read()).answers}
    assert set(found.values()) == {key}
    await writing


async def _write_runs(client: Client, key: str, count: int) -> None:
    for _ in range(count):
        await client.send(run(key))


@play
async def test_half_closed_stream_answers_first(toy: Toy, client: Client) -> None:
    await client.send(commit("a"))
    await client.stream.done_writing()
    await toy.until(lambda: "a" in toy.waiting)
    toy.waiting["a"].set_result(None)
    assert set(await client.answers(1)) == {1}
    assert await client.read() is grpc.aio.EOF
    assert await client.stream.code() is grpc.StatusCode.OK


@play
async def test_the_daemons_end_answers_what_was_taken(toy: Toy, client: Client) -> None:
    await client.send(commit("a"))
    await toy.until(lambda: "a" in toy.waiting)
    toy.streams.end()
    await client.send(commit("late"))
    await asyncio.sleep(0.1)
    toy.waiting["a"].set_result(None)
    assert set(await client.answers(1)) == {1}
    assert await client.read() is grpc.aio.EOF
    assert await client.stream.code() is grpc.StatusCode.OK
    assert "late" not in toy.waiting, "a call without an answer was not carried out"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.stub.Session().read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("way", ["cancel", "close"])
@play
async def test_calls_of_a_broken_stream_are_cancelled(toy: Toy, client: Client, way: str) -> None:
    await client.send(commit("a"), commit("b"))
    await toy.until(lambda: len(toy.waiting) == 2)
    if way == "cancel":
        client.stream.cancel()
    else:
        await client.channel.close()
    await toy.until(lambda: sorted(toy.cancelled) == ["a", "b"])
    assert not toy.streams._open


@play
async def test_a_stream_that_breaks_while_the_server_writes(toy: Toy, client: Client) -> None:
    await client.send(commit("a"))
    writing = asyncio.create_task(_write_runs(client, "x" * 1_000_000, 100))
    await asyncio.sleep(0.3)
    writing.cancel()
    client.stream.cancel()
    await toy.until(lambda: toy.cancelled == ["a"])
    assert not toy.streams._open


@play
async def test_large_answers_get_messages_of_their_own(toy: Toy, client: Client) -> None:
    keys = ["s", "m" * 200_000, "n" * 100_000, "l" * 1_000_000, "t"]
    await client.send(*map(run, keys))
    messages = []
    while sum(len(message.answers) for message in messages) < len(keys):
        messages.append(await client.read())
    assert {a.id: a.run.gtrid for m in messages for a in m.answers} == dict(enumerate(keys, start=1))
    assert [[a.id for a in m.answers] for m in messages] == [[1, 2], [3], [4], [5]]


@play
async def test_an_answer_that_no_message_can_hold(toy: Toy, client: Client) -> None:
    toy.streams._open.copy().pop()._max_answer_bytes = 1_000
    await client.send(run("x" * 2_000), run("k"))
    answers = await client.answers(2)
    status = status_pb2.Status.FromString(answers[1].status)
    assert (status.code, len(status.details)) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], 0)
    assert answers[2].run.gtrid == "k"
