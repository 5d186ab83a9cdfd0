"""Clients that go away at any moment: whatever they had asked for ends, the same on both servers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc
from participant_agent.v1 import participant_agent_pb2 as agent_pb
from participant_agent.v1 import participant_agent_pb2_grpc as agent_rpc
from tests.bad_input.support import INSERT, NAMES, System, seconds, statement

ROUNDS = 40
TIMEOUT = seconds(1.5)


class Client:
    """Stubs of one channel each, which `cut` can break altogether."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.random = random.Random(11)
        self.channels = [grpc.aio.insecure_channel(system.cluster.address)]
        self.coordinator = coordinator_pb2_grpc.CoordinatorStub(self.channels[0])
        self.agents = {}
        for name, site in system.cluster.sites.items():
            self.channels.append(grpc.aio.insecure_channel(site.address))
            self.agents[name] = agent_rpc.ParticipantAgentStub(self.channels[-1])

    async def cancelled(self, call: Any, longest: float) -> bool:
        """Cancel a call after a random moment; whether it was still running then."""
        await asyncio.sleep(self.random.uniform(0, longest))
        cancelled = bool(call.cancel())
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await call
        return cancelled

    async def work(self, gtrid: str, row: int) -> None:
        for name in NAMES:
            request = agent_pb.ExecuteRequest(gtrid=gtrid, statements=[statement(INSERT, row, 1)])
            await self.agents[name].Execute(request, timeout=10)

    async def begin(self) -> str:
        return (await self.coordinator.Begin(pb.BeginRequest(timeout=TIMEOUT), timeout=10)).gtrid

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()


def in_loop(system: System, work: Callable[[Client], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        client = Client(system)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


def check_even(system: System, rows: list[int], told: dict[int, str] | None = None) -> list[int]:
    """Everything has ended; each row is on both servers or on none, as was told. Those that are there."""
    system.wait_until_clean()
    there = {name: system.rows(name) for name in NAMES}
    for row in rows:
        found = [row in there[name] for name in NAMES]
        assert found[0] == found[1], f"row {row}: {found}"
        if told and row in told:
            assert found[0] == (told[row] == "COMMITTED"), (row, told[row])
    return [row for row in rows if row in there["orders"]]


def test_begin(system: System) -> None:
    """What was begun for nobody ends with its time-out."""

    async def work(client: Client) -> None:
        for _ in range(ROUNDS):
            call = client.coordinator.Begin(pb.BeginRequest(timeout=TIMEOUT), timeout=10)
            await client.cancelled(call, 0.002)

    in_loop(system, work)
    check_even(system, [])


def test_run(system: System) -> None:
    rows = [system.new_row() for _ in range(ROUNDS)]

    async def work(client: Client) -> None:
        for row in rows:
            call = client.coordinator.Run(system.run_request(row, timeout=TIMEOUT), timeout=10)
            await client.cancelled(call, 0.012)

    in_loop(system, work)
    check_even(system, rows)


def test_commit(system: System) -> None:
    """Afterwards Get says what the servers have, and asking again for it is harmless."""
    rows = [system.new_row() for _ in range(ROUNDS)]
    gtrids: dict[int, str] = {}

    async def work(client: Client) -> None:
        for row in rows:
            gtrids[row] = await client.begin()
            await client.work(gtrids[row], row)
            call = client.coordinator.Commit(pb.CommitRequest(gtrid=gtrids[row]), timeout=10)
            await client.cancelled(call, 0.01)

    in_loop(system, work)
    system.wait_until_clean()
    told = {row: system.commit(gtrid) for row, gtrid in gtrids.items()}
    assert told == {row: pb.Outcome.Name(system.get(g).outcome)[8:] for row, g in gtrids.items()}
    assert check_even(system, rows, told), "no transaction at all has committed"


def test_execute(system: System) -> None:
    """A cancelled statement's branch is never committed: its client doesn't know what of it was done."""
    rows = [system.new_row() for _ in range(ROUNDS)]
    cancelled: dict[int, bool] = {}
    told: dict[int, str] = {}

    async def work(client: Client) -> None:
        for row in rows:
            gtrid = await client.begin()
            await client.agents["payments"].Execute(
                agent_pb.ExecuteRequest(gtrid=gtrid, statements=[statement(INSERT, row, 1)]), timeout=10
            )
            slow = [statement(INSERT, row, 1), statement("DO SLEEP(0.02)")]
            call = client.agents["orders"].Execute(
                agent_pb.ExecuteRequest(gtrid=gtrid, statements=slow), timeout=10
            )
            cancelled[row] = await client.cancelled(call, 0.04)
            if not cancelled[row]:
                response = await client.coordinator.Commit(pb.CommitRequest(gtrid=gtrid), timeout=10)
                told[row] = pb.Outcome.Name(response.outcome)[8:]
                assert told[row] == "COMMITTED"
            elif row % 2:
                await client.coordinator.Rollback(pb.RollbackRequest(gtrid=gtrid), timeout=10)

    in_loop(system, work)
    committed = check_even(system, rows, told)
    assert set(committed) == {row for row, was in cancelled.items() if not was}
    assert 0 < len(committed) < ROUNDS


def test_commit_after_a_cancelled_execute(system: System) -> None:
    """The client goes on after it has cancelled a statement: all of it on both servers, or nothing."""
    rows = [system.new_row() for _ in range(ROUNDS // 2)]
    told: dict[int, str] = {}

    async def work(client: Client) -> None:
        for row in rows:
            gtrid = await client.begin()
            await client.work(gtrid, row)
            slow = [statement("UPDATE ledger SET amount = 2 WHERE id = %s", row), statement("DO SLEEP(0.02)")]
            call = client.agents["orders"].Execute(
                agent_pb.ExecuteRequest(gtrid=gtrid, statements=slow), timeout=10
            )
            was = await client.cancelled(call, 0.03)
            response = await client.coordinator.Commit(pb.CommitRequest(gtrid=gtrid), timeout=10)
            told[row] = pb.Outcome.Name(response.outcome)[8:]
            assert not was or told[row] in ("ROLLED_BACK", "COMMITTED")

    in_loop(system, work)
    committed = check_even(system, rows, told)
    server = system.cluster.sites["orders"].server
    for row in committed:
        assert server.sql(f"SELECT amount FROM orders.ledger WHERE id = {row}")[0][0] in (1, 2)


def test_watch_and_attach(system: System) -> None:
    """Streams that are cancelled, half-closed or cut with their connection."""

    async def work(client: Client) -> None:
        gtrid = await client.begin()
        for turn in range(ROUNDS):
            watch = client.coordinator.Watch(pb.WatchRequest(gtrid=gtrid), timeout=10)
            attach = client.agents["orders"].Attach(timeout=10)
            if turn % 2:
                await watch.read()
            if turn % 3:
                await attach.done_writing()
            await asyncio.sleep(client.random.uniform(0, 0.003))
            watch.cancel()
            attach.cancel()
            if turn % 10 == 9:
                await client.close()
                client.__init__(system)  # type: ignore[misc]
        await client.coordinator.Rollback(pb.RollbackRequest(gtrid=gtrid), timeout=10)

    in_loop(system, work)
    check_even(system, [])


def test_connections_cut_under_load(system: System) -> None:
    """Clients whose whole connection goes away with calls of every kind under way."""
    rows = [system.new_row() for _ in range(60)]

    async def one(row: int) -> None:
        client = Client(system)

        async def everything() -> None:
            gtrid = await client.begin()
            await client.work(gtrid, row)
            await client.coordinator.Commit(pb.CommitRequest(gtrid=gtrid), timeout=10)

        task = asyncio.ensure_future(everything())
        await asyncio.sleep(random.Random(row).uniform(0, 0.15))
        await client.close()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError, grpc.aio.UsageError):
            await task

    async def all_of_them() -> None:
        for start in range(0, len(rows), 10):
            await asyncio.gather(*(one(row) for row in rows[start : start + 10]))

    asyncio.run(all_of_them())
    check_even(system, rows)
