"""Session streams that do not keep to the rules, or go away: a call is refused as the unary one, a stream
that cannot be understood is ended, and everybody else is served on."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import ModuleType
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc
from dtp import Reason
from dtp.framing import entry
from participant_agent.v1 import participant_agent_pb2 as agent_pb
from participant_agent.v1 import participant_agent_pb2_grpc as agent_rpc
from tests.bad_input.support import INSERT, NAMES, System, check_text, resident, seconds, statement
from tests.bad_input.test_cancelled import check_even

SECONDS = 30.0
MAX = 4 << 20
GTRID = "k10001" + "0" * 14
ROUNDS = 40
TIMEOUT = seconds(1.5)


class Stream:
    """A raw Session stream."""

    def __init__(self, stub: Any, module: Any) -> None:
        self.module = module
        self.call = stub.Session()
        self.last_id = 0
        self.answers: dict[int, Any] = {}
        self.heard = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for response in self.call:
            self.answers.update({answer.id: answer for answer in response.answers})
            self.heard.set()

    async def send(self, *requests: Any, cancelled: tuple[int, ...] = ()) -> int:
        """The id of the last one."""
        message = self.module.SessionRequest(cancelled=cancelled)
        for request in requests:
            self.last_id += 1
            name = type(request).__name__.removesuffix("Request").lower()
            message.calls.add(id=self.last_id, **{name: request})
        await self.call.write(message)
        return self.last_id

    async def answer(self, identifier: int) -> Any:
        while identifier not in self.answers:
            self.heard.clear()
            await asyncio.wait_for(self.heard.wait(), SECONDS)
        return self.answers[identifier]

    async def ask(self, request: Any) -> Any:
        """The response to a request."""
        answer = await self.answer(await self.send(request))
        kind = answer.WhichOneof("response")
        assert kind != "status", status_pb2.Status.FromString(answer.status)
        return getattr(answer, kind)

    async def end(self) -> grpc.aio.AioRpcError:
        """The error that the server ends it with."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(self.reading, SECONDS)
        return caught.value


class Streams:
    """Streams of one client, each on a channel of its own."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.channels: list[grpc.aio.Channel] = []
        self.streams: list[Stream] = []

    def stub(self, name: str = "") -> Any:
        """Of the coordinator, or of an agent."""
        address = self.system.cluster.sites[name].address if name else self.system.cluster.address
        options = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
        channel = grpc.aio.insecure_channel(address, options=options)
        self.channels.append(channel)
        make: Any = agent_rpc.ParticipantAgentStub if name else coordinator_pb2_grpc.CoordinatorStub
        return make(channel)

    def stream(self, name: str = "") -> Stream:
        module: ModuleType = agent_pb if name else pb
        made = Stream(self.stub(name), module)
        self.streams.append(made)
        return made

    async def close(self) -> None:
        for stream in self.streams:
            stream.call.cancel()
        for stream in self.streams:
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await stream.reading
        for channel in self.channels:
            await channel.close()


def with_streams(system: System, work: Callable[[Streams], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        streams = Streams(system)
        try:
            return await work(streams)
        finally:
            await streams.close()

    return asyncio.run(run())


def reason_of(status: bytes) -> str:
    """Of a proper refusal."""
    found = status_pb2.Status.FromString(status)
    check_text(found.message)
    info = error_details_pb2.ErrorInfo()
    assert len(found.details) == 1
    assert found.details[0].Unpack(info)
    assert info.domain == "xacoord"
    return info.reason


# What is asked -> the participant whose agent is asked, or "" for the coordinator.
REFUSED: dict[str, tuple[str, Any]] = {
    "no gtrid": ("", pb.CommitRequest()),
    "another's gtrid": ("", pb.GetRequest(gtrid="k1zzzz" + "0" * 14)),
    "not given": ("", pb.RollbackRequest(gtrid=GTRID[:-1] + "z")),
    "control": ("", pb.CommitRequest(gtrid=GTRID[:-1] + "\x1b")),
    "no branch": ("", pb.RunRequest()),
    "unknown": ("", pb.RunRequest(branches=[pb.RunBranch(participant="x", statements=[statement("DO 1")])])),
    "wait_for 9": ("", pb.CommitRequest(gtrid=GTRID, wait_for=9)),
    "time": ("", pb.BeginRequest(timeout=seconds(1e6))),
    "fingerprint": ("", pb.BeginRequest(fingerprint=b"x" * 99)),
    "no statement": ("orders", agent_pb.ExecuteRequest(gtrid=GTRID)),
    "wrong agent": ("orders", agent_pb.ExecuteRequest(gtrid=GTRID, participant="payments")),
    "no SQL": ("orders", agent_pb.ExecuteRequest(gtrid=GTRID, statements=[statement("")])),
    "XA": ("orders", agent_pb.ExecuteRequest(gtrid=GTRID, statements=[statement("XA RECOVER")])),
}


def test_refusals_are_the_unary_ones(system: System) -> None:
    async def work(streams: Streams) -> None:
        open_streams = {name: streams.stream(name) for name in ("", "orders")}
        stubs = {name: streams.stub(name) for name in ("", "orders")}
        for case, (name, request) in REFUSED.items():
            method = getattr(stubs[name], type(request).__name__.removesuffix("Request"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(request, timeout=10)
            told = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
            stream = open_streams[name]
            answer = await stream.answer(await stream.send(request))
            assert answer.status == told, case
            assert reason_of(answer.status)

    with system.nothing_changes():
        with_streams(system, work)


@pytest.mark.parametrize("name", ["", "orders"])
def test_a_call_that_is_unknown(system: System, name: str) -> None:
    """Of a newer client: refused, and the calls beside it are answered."""

    async def work(streams: Streams) -> None:
        same = lambda given: given  # noqa: E731
        path = "participant_agent.v1.ParticipantAgent" if name else "coordinator.v1.Coordinator"
        module: Any = agent_pb if name else pb
        streams.stub(name)
        raw = streams.channels[-1].stream_stream(f"/{path}/Session", same, same)()
        known = agent_pb.ExecuteRequest() if name else pb.GetRequest(gtrid="x")
        field = module.Call.DESCRIPTOR.fields_by_name["execute" if name else "get"].number
        calls = [
            entry(14, 1, b"new"),
            b"\x0a\x09\x09" + bytes([2, 0, 0, 0, 0, 0, 0, 0]),
            entry(field, 3, known.SerializeToString()),
        ]
        await raw.write(b"".join(calls))
        answers = {}
        while len(answers) < 3:
            data = await asyncio.wait_for(raw.read(), SECONDS)
            answers |= {answer.id: answer for answer in module.SessionResponse.FromString(data).answers}
        assert reason_of(answers[1].status) == Reason.INVALID_REQUEST
        assert reason_of(answers[2].status) == Reason.INVALID_REQUEST
        assert reason_of(answers[3].status) in (Reason.INVALID_GTRID, Reason.INVALID_REQUEST)
        raw.cancel()

    with_streams(system, work)


@pytest.mark.parametrize("name", ["", "orders"])
@pytest.mark.parametrize("ids", [(0,), (1, 1), (5, 4), (2**64 - 1, 2**64 - 1)])
def test_ids_that_do_not_grow(system: System, name: str, ids: tuple[int, ...]) -> None:
    async def work(streams: Streams) -> None:
        stream = streams.stream(name)
        request = {"execute": agent_pb.ExecuteRequest()} if name else {"get": pb.GetRequest()}
        calls = [stream.module.Call(id=identifier, **request) for identifier in ids]
        await stream.call.write(stream.module.SessionRequest(calls=calls))
        error = await stream.end()
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        told = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
        assert reason_of(told) == Reason.INVALID_REQUEST

    with_streams(system, work)


BROKEN = {
    "cut": b"\x0a\x05\x08",
    "an open group": b"\x7b",
    "a request that is none": entry(6, 1, b"\x0a\x14k1"),
    "a gtrid that is not UTF-8": entry(6, 1, b"\x0a\x02\xff\xfe"),
    "an id that is none": b"\x0a\x05\x09" + b"\xff" * 4,
    "noise": random.Random(6).randbytes(3000),
}


@pytest.mark.parametrize("case", BROKEN)
def test_no_protobuf(system: System, case: str) -> None:
    async def work(streams: Streams) -> None:
        same = lambda given: given  # noqa: E731
        streams.stub()
        raw = streams.channels[-1].stream_stream("/coordinator.v1.Coordinator/Session", same, same)()
        await raw.write(BROKEN[case])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _drain(raw)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    with system.nothing_changes():
        with_streams(system, work)


async def _drain(call: Any) -> None:
    while await asyncio.wait_for(call.read(), SECONDS) is not grpc.aio.EOF:
        pass


@pytest.mark.parametrize("name", ["", "orders"])
def test_a_message_that_is_too_large(system: System, name: str) -> None:
    """It ends its stream, as gRPC wants it, and nothing of it is done."""

    async def work(streams: Streams) -> None:
        stream = streams.stream(name)
        big = statement("SELECT %s", "x" * MAX)
        request: Any = agent_pb.ExecuteRequest(gtrid=GTRID, statements=[big])
        if not name:
            request = pb.RunRequest(branches=[pb.RunBranch(participant="orders", statements=[big])])
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await stream.send(request)
        assert (await stream.end()).code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    with system.nothing_changes():
        with_streams(system, work)


# --- Too much ---


@pytest.mark.parametrize("name", ["", "orders"])
def test_a_hundred_thousand_calls(system: System, name: str) -> None:
    """All in a few messages: each is answered, and other clients are served meanwhile."""
    count = 100_000

    def some(start: int) -> Any:
        if name:
            calls = [
                agent_pb.Call(id=i, execute=agent_pb.ExecuteRequest()) for i in range(start, start + 50_000)
            ]
            return agent_pb.SessionRequest(calls=calls)
        return pb.SessionRequest(
            calls=[pb.Call(id=i, get=pb.GetRequest(gtrid="x")) for i in range(start, start + 50_000)]
        )

    async def work(streams: Streams) -> None:
        stream = streams.stream(name)
        for start in range(1, count, 50_000):
            await stream.call.write(some(start))
        response = await asyncio.to_thread(system.run, system.new_row())
        assert response.outcome == pb.OUTCOME_COMMITTED
        await stream.answer(count)
        while len(stream.answers) < count:
            await asyncio.sleep(0.05)

    before = [resident(process.pid) for process in system.processes]
    with_streams(system, work)
    grown = [resident(process.pid) - size for process, size in zip(system.processes, before, strict=True)]
    assert max(grown) < 200 << 20, grown


def test_more_calls_under_way_than_a_stream_may_have(system: System) -> None:
    """Of 6,000 calls that all wait for the same rows, those beyond the bound are refused by name at once."""
    gtrid, row = system.begin(timeout=5), system.new_row()

    async def work(streams: Streams) -> Counter[str]:
        stream = streams.stream("orders")
        slow = agent_pb.ExecuteRequest(
            gtrid=gtrid, statements=[statement(INSERT, row, 1), statement("DO SLEEP(1)")]
        )
        first = await stream.send(slow)
        coordinator = streams.stream()
        # Each of these waits for the first one: a transaction with a statement under way cannot be decided.
        last = await coordinator.send(*[pb.CommitRequest(gtrid=gtrid)] * 6_000)
        await stream.answer(first)
        await coordinator.answer(last)
        while len(coordinator.answers) < last:
            await asyncio.sleep(0.05)
        return Counter(
            reason_of(a.status) if a.WhichOneof("response") == "status" else pb.Outcome.Name(a.commit.outcome)
            for a in coordinator.answers.values()
        )

    heard = with_streams(system, work)
    assert heard.total() == 6_000
    assert set(heard) <= {
        "OUTCOME_COMMITTED",
        "OUTCOME_ROLLED_BACK",
        Reason.OVERLOADED,
        Reason.NO_BRANCHES,
    }, heard
    assert len({outcome for outcome in heard if outcome.startswith("OUTCOME")}) <= 1, heard
    system.wait_until_clean()


def test_ids_that_were_never_called_are_cancelled(system: System) -> None:
    async def work(streams: Streams) -> None:
        for name in ("", "orders"):
            stream = streams.stream(name)
            await stream.send(cancelled=tuple(range(1, 100_000)))
            await stream.send(cancelled=(0, 2**64 - 1))
            request = agent_pb.ExecuteRequest() if name else pb.GetRequest(gtrid="x")
            answer = await stream.answer(await stream.send(request))
            assert reason_of(answer.status)

    with_streams(system, work)


def test_messages_without_calls(system: System) -> None:
    async def work(streams: Streams) -> None:
        for name in ("", "orders"):
            stream = streams.stream(name)
            for _ in range(1_000):
                await stream.call.write(stream.module.SessionRequest())
            request = agent_pb.ExecuteRequest() if name else pb.GetRequest(gtrid="x")
            assert reason_of((await stream.answer(await stream.send(request))).status)

    with_streams(system, work)


def test_many_silent_streams(system: System) -> None:
    async def work(streams: Streams) -> None:
        for name in ("", "orders"):
            stub = streams.stub(name)
            calls = [stub.Session() for _ in range(500)]
            await asyncio.sleep(0.3)
            response = await asyncio.to_thread(system.run, system.new_row())
            assert response.outcome == pb.OUTCOME_COMMITTED
            for call in calls[:250]:
                await call.done_writing()
            for call in calls[250:]:
                call.cancel()

    with_streams(system, work)


# --- Clients that go away ---


async def rounds(streams: Streams) -> AsyncIterator[tuple[Stream, dict[str, Stream], random.Random]]:
    """Streams for each round; every fifth time they are new ones, and the old ones are broken."""
    choice = random.Random(12)
    coordinator, agents = streams.stream(), {name: streams.stream(name) for name in NAMES}
    for number in range(ROUNDS):
        if number % 5 == 4:
            for stream in (coordinator, *agents.values()):
                stream.call.cancel()
            coordinator, agents = streams.stream(), {name: streams.stream(name) for name in NAMES}
        yield coordinator, agents, choice


def test_cancelled_runs(system: System) -> None:
    rows: Iterator[int] = iter(all_rows := [system.new_row() for _ in range(ROUNDS)])

    async def work(streams: Streams) -> None:
        async for coordinator, _, choice in rounds(streams):
            identifier = await coordinator.send(system.run_request(next(rows), timeout=TIMEOUT))
            await asyncio.sleep(choice.uniform(0, 0.012))
            if choice.random() < 0.7:
                await coordinator.send(cancelled=(identifier,))

    with_streams(system, work)
    check_even(system, all_rows)


def test_cancelled_statements(system: System) -> None:
    """The branch of a statement that was cancelled is never committed."""
    all_rows = [system.new_row() for _ in range(ROUNDS)]
    rows = iter(all_rows)
    told: dict[int, str] = {}

    async def work(streams: Streams) -> None:
        async for coordinator, agents, choice in rounds(streams):
            row = next(rows)
            gtrid = (await coordinator.ask(pb.BeginRequest(timeout=TIMEOUT))).gtrid
            insert = [statement(INSERT, row, 1)]
            await agents["payments"].ask(agent_pb.ExecuteRequest(gtrid=gtrid, statements=insert))
            slow = [*insert, statement("DO SLEEP(0.02)")]
            identifier = await agents["orders"].send(agent_pb.ExecuteRequest(gtrid=gtrid, statements=slow))
            await asyncio.sleep(choice.uniform(0, 0.04))
            if identifier in agents["orders"].answers:
                assert agents["orders"].answers[identifier].HasField("execute")
                told[row] = pb.Outcome.Name((await coordinator.ask(pb.CommitRequest(gtrid=gtrid))).outcome)[
                    8:
                ]
                assert told[row] == "COMMITTED"
            elif choice.random() < 0.5:
                await agents["orders"].send(cancelled=(identifier,))

    with_streams(system, work)
    committed = check_even(system, all_rows, told)
    assert committed == list(told)
    assert 0 < len(committed) < ROUNDS


def test_cancelled_commits(system: System) -> None:
    """Afterwards Get says what the servers have."""
    all_rows = [system.new_row() for _ in range(ROUNDS)]
    rows = iter(all_rows)
    gtrids: dict[int, str] = {}

    async def work(streams: Streams) -> None:
        async for coordinator, agents, choice in rounds(streams):
            row = next(rows)
            gtrid = gtrids[row] = (await coordinator.ask(pb.BeginRequest(timeout=TIMEOUT))).gtrid
            for agent in agents.values():
                request = agent_pb.ExecuteRequest(gtrid=gtrid, statements=[statement(INSERT, row, 1)])
                await agent.ask(request)
            identifier = await coordinator.send(pb.CommitRequest(gtrid=gtrid))
            await asyncio.sleep(choice.uniform(0, 0.01))
            await coordinator.send(cancelled=(identifier,))

    with_streams(system, work)
    system.wait_until_clean()
    told = {row: pb.Outcome.Name(system.get(gtrid).outcome)[8:] for row, gtrid in gtrids.items()}
    assert check_even(system, all_rows, told), "no transaction at all has committed"
