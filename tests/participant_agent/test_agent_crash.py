"""Crashes: the agent, its server, its connections; and who may speak for a participant."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from deploy.private_servers import PrivateServer
from participant_agent.v1 import participant_agent_pb2 as pb
from tests.participant_agent.agent_support import (
    COMMITTED,
    ROLLED_BACK,
    AgentProcess,
    Coordinator,
    bump,
    coordinating,
    read_lock,
    reason,
    statement,
    v,
)
from tests.participant_agent.conftest import open_shop


@pytest.fixture
def own_server(new_server: Callable[..., PrivateServer]) -> PrivateServer:
    """A server that may be killed."""
    server = new_server()
    open_shop(server)
    return server


async def eventually(check: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def held_before_prepare(agent: AgentProcess, c: Coordinator, gtrid: str) -> Any:
    """The branch is at XA PREPARE, behind the witness row, which would wait for a read lock, too."""
    await c.execute(gtrid, bump(1))
    voting = c.ask(gtrid, prepare=pb.Prepare(participants=[7]))
    await eventually((agent.directory / "before_prepare.hit").exists)
    return voting


async def let_it_prepare(agent: AgentProcess, shop: PrivateServer) -> None:
    (agent.directory / "before_prepare.go").touch()
    await eventually(lambda: preparing(shop))


def test_agent_killed_while_prepare_waits_for_a_lock(shop: PrivateServer, new_agent: Any) -> None:
    """The server goes on with XA PREPARE after its client died; the next agent ends it before it serves."""
    agent = new_agent(shop, extra="[sessions]\nlock_wait_seconds = 20\n")
    agent.start(failpoints="before_prepare=pause")

    async def play() -> None:
        before = v(shop, 1)
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            voting = await held_before_prepare(agent, c, gtrid)
            with read_lock(shop):
                await let_it_prepare(agent, shop)
                agent.kill()
                await asyncio.sleep(0.2)
                assert await asyncio.to_thread(preparing, shop)  # the zombie
                agent.start()
            voting.cancel()
        async with coordinating(agent, coordinator_id=c.id, epoch=2) as c2:
            await asyncio.sleep(0.3)
            assert await c2.prepared() == set()
            assert (await c2.rollback(gtrid)).state == ROLLED_BACK
            assert v(shop, 1) == before

    asyncio.run(play())


def preparing(shop: PrivateServer) -> bool:
    running = shop.sql("SELECT INFO FROM information_schema.PROCESSLIST WHERE COMMAND = 'Query'")
    return any(str(info).startswith("XA PREPARE") for (info,) in running)


@pytest.mark.parametrize("ended_by", ["time-out", "rollback"])
def test_prepare_under_a_global_read_lock(ended_by: str, shop: PrivateServer, new_agent: Any) -> None:
    agent = new_agent(shop, extra="[sessions]\nlock_wait_seconds = 1\n")
    agent.start(failpoints="before_prepare=pause")

    async def play() -> None:
        before = v(shop, 1)
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            voting = await held_before_prepare(agent, c, gtrid)
            with read_lock(shop):
                await let_it_prepare(agent, shop)
                if ended_by == "rollback":
                    started = time.monotonic()
                    rolling_back = asyncio.ensure_future(c.rollback(gtrid))
                voted = await voting
                if ended_by == "rollback":
                    assert (await rolling_back).state == ROLLED_BACK
                    assert time.monotonic() - started < 0.8
                else:
                    assert (voted.failure.reason, voted.failure.errno) == ("LOCK_TIMEOUT", 1205)
                assert voted.vote == pb.VOTE_ROLLBACK
            await asyncio.sleep(0.3)
            assert await c.prepared() == set()
            assert (await c.rollback(gtrid)).state == ROLLED_BACK
            assert v(shop, 1) == before

    asyncio.run(play())


@pytest.mark.parametrize("point", ["before_prepare", "after_prepare", "before_commit", "after_commit"])
def test_agent_killed_at(point: str, shop: PrivateServer, new_agent: Any) -> None:
    """The branch is finished by the next agent, as the coordinator decides by what it heard."""
    agent = new_agent(shop)
    agent.start(failpoints=f"{point}=kill")

    async def play() -> None:
        before = v(shop, 2)
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            asking = c.ask(
                gtrid, run=pb.Run(statements=[bump(2)], participants=[7], remaining_milliseconds=9000)
            )
            if point.endswith("commit"):
                assert (await asking).vote == pb.VOTE_OK
                c.post(gtrid, commit=pb.Commit())
            await asyncio.to_thread(agent.process.wait, 10)
        agent.start()
        async with coordinating(agent, coordinator_id=c.id, epoch=2) as c2:
            assert await c2.prepared() == ({gtrid} if point in ("after_prepare", "before_commit") else set())
            if point.endswith("commit"):
                assert (await c2.commit(gtrid)).state == COMMITTED
                assert (await c2.lookup(gtrid)) == [pb.EVIDENCE_STATE_COMMITTED]
                assert v(shop, 2) == before + 1
            else:
                assert (await c2.rollback(gtrid)).state == ROLLED_BACK
                assert (await c2.lookup(gtrid)) == [pb.EVIDENCE_STATE_NOT_COMMITTED]
                assert v(shop, 2) == before

    asyncio.run(play())


def test_one_phase_commit_whose_answer_is_lost(shop: PrivateServer, new_agent: Any) -> None:
    agent = new_agent(shop)

    async def play(point: str, expected: int, change: int) -> None:
        agent.start(failpoints=f"{point}=kill")
        before = v(shop, 3)
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            run = pb.Run(statements=[bump(3)], participants=[7], remaining_milliseconds=9000, one_phase=True)
            c.post(gtrid, run=run)
            await asyncio.to_thread(agent.process.wait, 10)
        agent.start()
        async with coordinating(agent, coordinator_id=c.id, epoch=2) as c2:
            assert (await c2.commit(gtrid, one_phase=True)).state == expected
            assert v(shop, 3) == before + change
        agent.kill()

    two_steps = shop.engine == "mariadb"  # it is prepared first there, and what is prepared is committed
    asyncio.run(play("before_end", ROLLED_BACK, 0))
    if two_steps:
        asyncio.run(play("before_prepare", ROLLED_BACK, 0))
        asyncio.run(play("after_prepare", COMMITTED, 1))
        asyncio.run(play("before_commit_one_phase", COMMITTED, 1))
    else:
        asyncio.run(play("before_commit_one_phase", ROLLED_BACK, 0))
    asyncio.run(play("after_commit_one_phase", COMMITTED, 1))


def test_server_killed_and_back(own_server: PrivateServer, new_agent: Any) -> None:
    """Prepared branches survive and are finished; active ones vote ROLLBACK; the agent stays up."""
    agent = new_agent(own_server)
    agent.start()

    async def play() -> None:
        async with coordinating(agent) as c:
            prepared, active = c.gtrid(), c.gtrid()
            assert (await c.run(prepared, bump(1))).vote == pb.VOTE_OK
            await c.execute(active, bump(2))
            own_server.kill()
            await eventually(lambda: not agent.healthy())
            with pytest.raises(grpc.RpcError) as down:
                await c.execute(c.gtrid(), bump(3))
            assert reason(down.value) == "SERVER_UNAVAILABLE"
            await asyncio.to_thread(own_server.start)
            await asyncio.to_thread(agent.wait_ready)
            await c.fence()
            await c.attach()
            assert await c.prepared() == {prepared}
            assert (await c.prepare(active)).vote == pb.VOTE_ROLLBACK
            assert (await c.commit(prepared)).state == COMMITTED
            assert (v(own_server, 1), v(own_server, 2)) == (1, 0)

    asyncio.run(play())


def test_server_frozen_during_prepare_and_commit(own_server: PrivateServer, new_agent: Any) -> None:
    """No answer within the client's time-out: the vote is ROLLBACK, what was prepared late is rolled back."""
    extra = "[sessions]\nlock_wait_seconds = 1\nstatement_timeout_seconds = 1.2\n"
    agent = new_agent(own_server, extra=extra)
    agent.start(failpoints="before_prepare:2=pause")

    async def play() -> None:
        async with coordinating(agent) as c:
            committing, preparing = c.gtrid(), c.gtrid()
            assert (await c.run(committing, bump(1))).vote == pb.VOTE_OK
            voting = asyncio.ensure_future(c.run(preparing, bump(2)))
            await eventually((agent.directory / "before_prepare.hit").exists)
            own_server.pause()
            (agent.directory / "before_prepare.go").touch()
            await asyncio.sleep(2)
            own_server.resume()
            assert (await voting).vote == pb.VOTE_ROLLBACK
            await asyncio.to_thread(agent.wait_ready)
            deadline = time.monotonic() + 10
            while await c.prepared() != {committing}:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            assert (await c.commit_for_ever(committing)).state == COMMITTED

    asyncio.run(play())


def test_read_only_branch_lost_at_restart_counts_as_committed(
    own_server: PrivateServer, new_agent: Any
) -> None:
    """A branch that only read votes READ_ONLY, so nothing of it can be lost by a crash of the server."""
    agent = new_agent(own_server)
    agent.start()

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            assert (await c.run(gtrid, statement("SELECT * FROM a"))).vote == pb.VOTE_READ_ONLY
            own_server.kill()
            await asyncio.to_thread(own_server.start)
            await asyncio.to_thread(agent.wait_ready)
            await c.attach()
            assert await c.prepared() == set()
            assert (await c.commit(gtrid)).state == COMMITTED

    asyncio.run(play())


def test_second_agent_of_a_participant_refuses(
    shop: PrivateServer, new_agent: Any, agent_directory: Any
) -> None:
    first = new_agent(shop, "contended")
    first.start()
    second = AgentProcess(shop, agent_directory / "contended-2", "contended", take_over_seconds=1)
    second.start(ready=False)
    assert second.process.wait(30) == 69
    log = second.log.read_text()
    (holder,) = shop.sql("SELECT IS_USED_LOCK('xacoord.contended')")[0]
    assert "another agent speaks for participant" in log
    assert str(holder) in log
    assert first.healthy()


def test_control_connection_lost(shop: PrivateServer, new_agent: Any) -> None:
    """Without the lock it does not serve; it takes it again and ends what was active."""
    agent = new_agent(shop, "controlled")
    agent.start()

    async def play() -> None:
        async with coordinating(agent) as c:
            active, prepared = c.gtrid(), c.gtrid()
            await c.execute(active, bump(1))
            assert (await c.run(prepared, bump(2))).vote == pb.VOTE_OK
            (control,) = shop.sql("SELECT IS_USED_LOCK('xacoord.controlled')")[0]
            shop.sql(f"KILL {control}")
            await eventually(
                lambda: shop.sql("SELECT IS_USED_LOCK('xacoord.controlled')")[0][0] not in (None, control)
            )
            await asyncio.to_thread(agent.wait_ready)
            await c.attach()
            assert (await c.prepare(active)).vote == pb.VOTE_ROLLBACK
            assert (await c.commit_for_ever(prepared)).state == COMMITTED

    asyncio.run(play())


def test_an_agent_whose_lock_was_taken_stops_serving(
    shop: PrivateServer, new_agent: Any, agent_directory: Any
) -> None:
    """A second agent takes over a participant whose agent is frozen; the first never works beside it."""
    first = new_agent(shop, "stolen")
    first.start()
    second = AgentProcess(shop, agent_directory / "stolen-2", "stolen")
    first.process.send_signal(signal.SIGSTOP)
    try:
        (control,) = shop.sql("SELECT IS_USED_LOCK('xacoord.stolen')")[0]
        shop.sql(f"KILL {control}")
        second.start()
        first.process.send_signal(signal.SIGCONT)

        async def play() -> None:
            await eventually(lambda: not first.healthy())
            async with coordinating(second) as c:
                gtrid = c.gtrid()
                assert (await c.run(gtrid, bump(1))).vote == pb.VOTE_OK
                assert (await c.commit(gtrid)).state == COMMITTED
            c1 = Coordinator(first)
            with pytest.raises(grpc.RpcError) as refused:
                await c1.fence()
            assert reason(refused.value) == "SERVER_UNAVAILABLE"
            await c1.channel.close()

        asyncio.run(play())
    finally:
        first.process.send_signal(signal.SIGCONT)
        second.stop()


def test_sigterm_rolls_back_what_is_active(shop: PrivateServer, new_agent: Any) -> None:
    agent = new_agent(shop)
    agent.start()

    async def play() -> str:
        async with coordinating(agent) as c:
            active, prepared = c.gtrid(), c.gtrid()
            await c.execute(active, bump(1))
            assert (await c.run(prepared, bump(2))).vote == pb.VOTE_OK
            before = v(shop, 1)
            assert await asyncio.to_thread(agent.terminate) == 0
            listed = str(shop.sql(_recover(shop))).lower()
            assert prepared in listed or prepared.encode().hex() in listed
            shop.sql("UPDATE shop.a SET v = v WHERE id = 1")  # its lock is free
            assert v(shop, 1) == before
        agent.start()
        async with coordinating(agent, coordinator_id=c.id, epoch=2) as c2:
            assert (await c2.commit_for_ever(prepared)).state == COMMITTED
        return prepared

    asyncio.run(play())


def _recover(shop: PrivateServer) -> str:
    return "XA RECOVER CONVERT XID" if shop.engine == "mysql" else "XA RECOVER FORMAT='SQL'"
