"""What goes wrong in a branch on real servers: each row of the decision table, seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import pytest

from deploy.private_servers import PrivateServer
from participant_agent.v1 import participant_agent_pb2 as pb
from tests.participant_agent.agent_support import (
    COMMITTED,
    RETRY,
    ROLLED_BACK,
    AgentProcess,
    Coordinator,
    bump,
    coordinating,
    info,
    read_lock,
    reason,
    sessions_of,
    statement,
    v,
    waits_for_a_lock,
    witnesses,
    xid,
)


def test_deadlock(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            first, second = c.gtrid(), c.gtrid()
            await asyncio.gather(c.execute(first, bump(1)), c.execute(second, bump(2)))
            outcomes = await asyncio.gather(
                c.execute(first, bump(2)), c.execute(second, bump(1)), return_exceptions=True
            )
            failed = [o for o in outcomes if isinstance(o, grpc.RpcError)]
            assert [reason(error) for error in failed] == ["DEADLOCK"]
            assert info(failed[0]).metadata["retryable"] == "true"
            loser, winner = (first, second) if isinstance(outcomes[0], grpc.RpcError) else (second, first)
            assert (await c.prepare(loser)).failure.reason == "DEADLOCK"
            assert (await c.prepare(winner)).vote == pb.VOTE_OK
            assert (await c.rollback(winner)).state == ROLLED_BACK

    asyncio.run(play())


def test_lock_wait_and_busy_and_rollback_that_kills(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            holder = c.gtrid()
            await c.execute(holder, bump(1))
            # The deadline comes before the lock wait's own time-out, here, and after it below.
            late = await c.run(c.gtrid(), bump(1), seconds=0.3)
            assert (late.vote, late.failure.reason) == (pb.VOTE_ROLLBACK, "DEADLINE_PASSED")
            voted = await c.run(c.gtrid(), bump(1))
            assert (voted.failure.reason, voted.failure.errno) == ("LOCK_TIMEOUT", 1205)

            waiting = c.gtrid()
            call = asyncio.ensure_future(c.execute(waiting, bump(2), bump(1)))
            await waits_for_a_lock(shop)
            with pytest.raises(grpc.RpcError) as busy:
                await c.execute(waiting, bump(3))
            assert reason(busy.value) == "BRANCH_BUSY"
            started = asyncio.get_running_loop().time()
            assert (await c.rollback(waiting)).state == ROLLED_BACK
            # Killed, not timed out: servers look at waiting locks once a second.
            assert asyncio.get_running_loop().time() - started < 0.9
            with pytest.raises(grpc.RpcError):
                await call
            # Its locks are free.
            free = c.gtrid()
            assert (await c.run(free, bump(2))).vote == pb.VOTE_OK
            assert (await c.rollback(free)).state == ROLLED_BACK

            busy_branch = c.gtrid()
            call = asyncio.ensure_future(c.execute(busy_branch, bump(1)))
            await waits_for_a_lock(shop)
            voted = await c.prepare(busy_branch)
            assert (voted.vote, voted.failure.reason) == (pb.VOTE_ROLLBACK, "BRANCH_BUSY")
            with pytest.raises(grpc.RpcError):
                await call
            assert (await c.rollback(holder)).state == ROLLED_BACK

    asyncio.run(play())


def test_cancelled_call_dooms_the_branch(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            await c.execute(gtrid, bump(5))
            call = asyncio.ensure_future(c.execute(gtrid, statement("SELECT SLEEP(5)")))
            await asyncio.sleep(0.2)
            call.cancel()
            await asyncio.sleep(0.3)
            voted = await c.prepare(gtrid)
            assert voted.vote == pb.VOTE_ROLLBACK
            probe = c.gtrid()
            assert (await c.run(probe, bump(5), seconds=0.5)).vote == pb.VOTE_OK
            await c.rollback(probe)

    asyncio.run(play())


def test_duplicate_xid(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            with contextlib.closing(shop.root_connect()) as other:
                other.cursor().execute(f"XA START {xid(gtrid)}")
                voted = await c.run(gtrid, bump(1))
            assert (voted.vote, voted.failure.errno) == (pb.VOTE_ROLLBACK, 1440)

    asyncio.run(play())


def test_witness_under_a_global_read_lock_votes_rollback(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid, killed = c.gtrid(), c.gtrid()
            await c.execute(gtrid, bump(1))
            await c.execute(killed, bump(2))
            with read_lock(shop):
                voting = asyncio.ensure_future(c.prepare(gtrid))
                other = asyncio.ensure_future(c.prepare(killed))
                await asyncio.sleep(0.3)
                # A rollback does not wait behind the lock; the session is killed, no zombie prepares later.
                assert (await c.rollback(killed)).state == ROLLED_BACK
                assert (await other).vote == pb.VOTE_ROLLBACK
                voted = await voting
            assert (voted.vote, voted.failure.reason, voted.failure.errno) == (
                pb.VOTE_ROLLBACK,
                "LOCK_TIMEOUT",
                1205,
            )
            await asyncio.sleep(0.2)
            assert await c.prepared() == set()

    asyncio.run(play())


def test_commit_under_a_global_read_lock_is_retried(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            before, gtrid = v(shop, 1), c.gtrid()
            assert (await c.run(gtrid, bump(1))).vote == pb.VOTE_OK
            with read_lock(shop):
                refused = await c.commit(gtrid)
                assert (refused.state, refused.failure.errno) == (RETRY, 1205)
                assert await c.prepared() == {gtrid}
            assert (await c.commit(gtrid)).state == COMMITTED
            assert v(shop, 1) == before + 1

    asyncio.run(play())


def test_owner_session_killed_after_prepare(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            assert (await c.run(gtrid, bump(1))).vote == pb.VOTE_OK
            for (connection,) in sessions_of(shop, agent):
                shop.sql(f"KILL {connection}")
            await asyncio.sleep(0.1)
            assert (await c.commit_for_ever(gtrid)).state == COMMITTED

    asyncio.run(play())


def test_session_killed_while_active(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            await c.execute(gtrid, bump(1))
            for (connection,) in sessions_of(shop, agent):
                shop.sql(f"KILL {connection}")
            await asyncio.sleep(0.1)
            with pytest.raises(grpc.RpcError) as lost:
                await c.execute(gtrid, bump(1))
            assert reason(lost.value) == "BRANCH_LOST"
            assert (await c.prepare(gtrid)).vote == pb.VOTE_ROLLBACK

    asyncio.run(play())


def test_heuristics_by_a_person(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            rolled_back, committed = c.gtrid(), c.gtrid()
            for gtrid, key in ((rolled_back, 1), (committed, 2)):
                assert (await c.run(gtrid, bump(key))).vote == pb.VOTE_OK
            for (connection,) in sessions_of(shop, agent) if shop.engine == "mariadb" else []:
                shop.sql(f"KILL {connection}")  # MariaDB lets others finish a branch only then
            await asyncio.sleep(0.1)
            shop.sql(f"XA ROLLBACK {xid(rolled_back)}")
            shop.sql(f"XA COMMIT {xid(committed)}")
            finished = await c.commit(rolled_back)
            assert (finished.state, finished.failure.errno) == (pb.FINISHED_STATE_HEURISTIC_ROLLBACK, 1397)
            assert (await c.rollback(committed)).state == pb.FINISHED_STATE_HEURISTIC_COMMIT
            # Committed by someone else as it was to be: the witness proves it.
            gtrid = c.gtrid()
            assert (await c.run(gtrid, bump(3))).vote == pb.VOTE_OK
            for (connection,) in sessions_of(shop, agent) if shop.engine == "mariadb" else []:
                shop.sql(f"KILL {connection}")
            await asyncio.sleep(0.1)
            shop.sql(f"XA COMMIT {xid(gtrid)}")
            assert (await c.commit(gtrid)).state == COMMITTED

    asyncio.run(play())


def test_branch_that_another_session_holds_prepared_is_retried(
    agent: AgentProcess, shop: PrivateServer
) -> None:
    """MariaDB says NOTA while the owner is connected; that must not become an outcome."""

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            with contextlib.closing(shop.root_connect()) as owner:
                cursor = owner.cursor()
                for sql in (f"XA START {xid(gtrid)}", "UPDATE shop.a SET v = v + 1 WHERE id = 4"):
                    cursor.execute(sql)
                cursor.execute(f"XA END {xid(gtrid)}")
                cursor.execute(f"XA PREPARE {xid(gtrid)}")
                if shop.engine == "mariadb":
                    assert (await c.commit(gtrid)).state == RETRY
                    assert (await c.rollback(gtrid)).state == RETRY
            await asyncio.sleep(0.1)
            assert (await c.commit(gtrid)).state == COMMITTED

    asyncio.run(play())


def test_write_less_branch_without_witness(shop: PrivateServer, new_agent: Any) -> None:
    """Without witness rows a branch that is gone is a hazard, never an invented outcome."""
    agent = new_agent(shop, extra="[witness]\nenabled = false\n")
    agent.start()

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            assert (await c.run(gtrid, bump(1))).vote == pb.VOTE_OK
            assert (await c.commit(gtrid)).state == COMMITTED
            assert witnesses(shop, gtrid) == 0
            assert (await c.commit(c.gtrid())).state == pb.FINISHED_STATE_HEURISTIC_HAZARD
            assert (await c.commit(c.gtrid(), one_phase=True)).state == pb.FINISHED_STATE_HEURISTIC_HAZARD
            assert (await c.rollback(c.gtrid())).state == ROLLED_BACK
            assert await c.lookup(gtrid) == [pb.EVIDENCE_STATE_NONE]

    asyncio.run(play())


def _let_go(shop: PrivateServer) -> pb.Statement:
    shop.sql("DROP FUNCTION IF EXISTS shop.let_go")
    shop.sql("CREATE FUNCTION shop.let_go() RETURNS INT DETERMINISTIC NO SQL RETURN RELEASE_ALL_LOCKS()")
    return statement("SELECT let_go()")


def test_a_session_without_its_lock_prepares_nothing(agent: AgentProcess, shop: PrivateServer) -> None:
    """A function that releases all user locks takes the proof away that its session has ended."""
    let_go = _let_go(shop)

    async def play() -> None:
        async with coordinating(agent) as c:
            before = v(shop, 1)
            for one_phase in (False, True):
                gtrid = c.gtrid()
                answer = await c.run(gtrid, let_go, bump(1), one_phase=one_phase)
                assert answer.failure.reason == "BRANCH_LOST"
                assert "RELEASE_ALL_LOCKS" in answer.failure.message
                assert answer.state == ROLLED_BACK if one_phase else answer.vote == pb.VOTE_ROLLBACK
                assert (v(shop, 1), witnesses(shop, gtrid)) == (before, 0)
            await _nobody_else_gets_its_session(c, let_go)
            assert v(shop, 1) == before + 3

    asyncio.run(play())


async def _nobody_else_gets_its_session(c: Coordinator, let_go: pb.Statement) -> None:
    """Branches that write nothing, or are rolled back: each is followed by one that the lock is asked for."""
    assert (await c.run(c.gtrid(), let_go)).vote == pb.VOTE_READ_ONLY
    assert (await c.run(c.gtrid(), bump(1), one_phase=True)).state == COMMITTED
    assert (await c.run(c.gtrid(), let_go, one_phase=True)).state == COMMITTED
    assert (await c.run(c.gtrid(), bump(1), one_phase=True)).state == COMMITTED
    gtrid = c.gtrid()
    await c.execute(gtrid, let_go)
    assert (await c.rollback(gtrid)).state == ROLLED_BACK
    assert (await c.run(c.gtrid(), bump(1), one_phase=True)).state == COMMITTED


def test_without_witness_rows_a_session_is_asked_for_its_lock(shop: PrivateServer, new_agent: Any) -> None:
    agent = new_agent(shop, extra="[witness]\nenabled = false\n")
    agent.start()
    let_go = _let_go(shop)

    async def play() -> None:
        async with coordinating(agent) as c:
            before = v(shop, 1)
            for one_phase in (False, True):
                answer = await c.run(c.gtrid(), let_go, bump(1), one_phase=one_phase)
                assert answer.failure.reason == "BRANCH_LOST"
                assert "RELEASE_ALL_LOCKS" in answer.failure.message
                assert answer.state == ROLLED_BACK if one_phase else answer.vote == pb.VOTE_ROLLBACK
            assert v(shop, 1) == before
            await _nobody_else_gets_its_session(c, let_go)
            assert v(shop, 1) == before + 3

    asyncio.run(play())


def test_unknown_branches(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            voted = await c.prepare(c.gtrid())
            assert (voted.vote, voted.failure.reason) == (pb.VOTE_ROLLBACK, "BRANCH_LOST")
            assert (await c.rollback(c.gtrid())).state == ROLLED_BACK
            finished = await c.commit(c.gtrid())
            assert finished.state == pb.FINISHED_STATE_HEURISTIC_ROLLBACK

    asyncio.run(play())


def test_a_late_command_cannot_resurrect_a_branch(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            assert (await c.rollback(gtrid)).state == ROLLED_BACK
            assert (await c.run(gtrid, bump(1))).vote == pb.VOTE_ROLLBACK
            assert (await c.prepare(gtrid)).vote == pb.VOTE_ROLLBACK
            with pytest.raises(grpc.RpcError) as refused:
                await c.execute(gtrid, bump(1))
            assert reason(refused.value) == "BRANCH_DOOMED"
            assert (await c.run(gtrid, bump(1), one_phase=True)).state == ROLLED_BACK

    asyncio.run(play())


def test_deadline_of_an_active_branch(agent: AgentProcess, shop: PrivateServer) -> None:
    """Rolled back without being told: remaining time and two seconds of grace."""

    async def play() -> None:
        async with coordinating(agent) as c:
            c.remaining_milliseconds = 1
            gtrid, other = c.gtrid(), c.gtrid()
            await c.execute(gtrid, bump(1))
            await c.detach()
            await asyncio.sleep(2.6)
            await c.attach()
            c.remaining_milliseconds = 30_000
            await c.execute(other, bump(1))
            assert (await c.prepare(gtrid)).failure.reason == "DEADLINE_PASSED"
            await c.rollback(other)

    asyncio.run(play())
