"""Branches on real servers: what each row of the decision table does, seen from the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from deploy.private_servers import PrivateServer
from participant_agent.v1 import participant_agent_pb2 as pb
from tests.participant_agent.agent_support import (
    AgentProcess,
    Coordinator,
    coordinating,
    info,
    reason,
    rows,
    statement,
)

COMMITTED = pb.FINISHED_STATE_COMMITTED
ROLLED_BACK = pb.FINISHED_STATE_ROLLED_BACK
RETRY = pb.FINISHED_STATE_RETRY


def v(shop: PrivateServer, key: int) -> int:
    return int(shop.sql("SELECT v FROM shop.a WHERE id = %s", (key,))[0][0])


def witnesses(shop: PrivateServer, gtrid: str) -> int:
    return int(shop.sql("SELECT COUNT(*) FROM xacoord.witness WHERE gtrid = %s", (gtrid,))[0][0])


def bump(key: int) -> Any:
    return statement("UPDATE a SET v = v + 1 WHERE id = %s", key, expect=1)


@contextlib.contextmanager
def read_lock(shop: PrivateServer) -> Iterator[Any]:
    """FLUSH TABLES WITH READ LOCK: nothing commits or prepares."""
    connection = shop.root_connect()
    cursor = connection.cursor()
    cursor.execute("FLUSH TABLES WITH READ LOCK")
    try:
        yield lambda: cursor.execute("UNLOCK TABLES")
    finally:
        connection.close()


def xid(gtrid: str, number: int = 7) -> str:
    return f"X'{gtrid.encode().hex()}',X'{f'{number:04d}'.encode().hex()}',1"


def test_run_prepare_commit_is_idempotent_and_leaves_a_witness(
    agent: AgentProcess, shop: PrivateServer
) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            before, gtrid = v(shop, 1), c.gtrid()
            voted = await c.run(gtrid, bump(1), statement("SELECT id, v FROM a WHERE id = 1"))
            assert voted.vote == pb.VOTE_OK
            assert voted.results[0].row_count == 1
            assert rows(voted.results[1]) == [(1, before + 1)]
            assert await c.prepared() == {gtrid}
            assert v(shop, 1) == before
            assert [(await c.commit(gtrid)).state for _ in range(2)] == [COMMITTED, COMMITTED]
            assert v(shop, 1) == before + 1
            assert witnesses(shop, gtrid) == 1
            assert await c.prepared() == set()

    asyncio.run(play())


def test_prepared_branch_rolls_back(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            before, gtrid = v(shop, 1), c.gtrid()
            assert (await c.run(gtrid, bump(1))).vote == pb.VOTE_OK
            assert (await c.rollback(gtrid)).state == ROLLED_BACK
            assert (await c.rollback(gtrid)).state == ROLLED_BACK
            assert v(shop, 1) == before
            assert witnesses(shop, gtrid) == 0

    asyncio.run(play())


def test_one_phase_run_commits(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            before, gtrid = v(shop, 1), c.gtrid()
            finished = await c.run(gtrid, bump(1), one_phase=True)
            assert finished.state == COMMITTED
            assert finished.results[0].row_count == 1
            assert v(shop, 1) == before + 1
            # Asked again, as after a lost answer.
            assert (await c.commit(gtrid, one_phase=True)).state == COMMITTED

    asyncio.run(play())


def test_clients_work_over_several_calls(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            before, gtrid = v(shop, 2), c.gtrid()
            await c.execute(gtrid, bump(2))
            results = await c.execute(gtrid, statement("SELECT v FROM a WHERE id = 2"))
            assert rows(results[0]) == [(before + 1,)]
            assert c.enlisted == [gtrid]
            assert (await c.prepare(gtrid)).vote == pb.VOTE_OK
            assert (await c.prepare(gtrid)).vote == pb.VOTE_OK
            with pytest.raises(grpc.RpcError) as refused:
                await c.execute(gtrid, bump(2))
            assert reason(refused.value) == "TRANSACTION_NOT_ACTIVE"
            assert (await c.commit(gtrid)).state == COMMITTED
            assert v(shop, 2) == before + 1
            with pytest.raises(grpc.RpcError) as refused:
                await c.execute(gtrid, bump(2))
            assert reason(refused.value) == "TRANSACTION_NOT_ACTIVE"

            gtrid = c.gtrid()
            await c.execute(gtrid, bump(2))
            assert (await c.commit(gtrid)).state == RETRY  # it was never prepared
            assert (await c.commit(gtrid, one_phase=True)).state == COMMITTED
            assert v(shop, 2) == before + 2
            assert witnesses(shop, gtrid) == 1

    asyncio.run(play())


@pytest.mark.parametrize(
    ("sql", "expected", "errno"),
    [
        ("INSERT INTO a VALUES (1, 1)", "STATEMENT_FAILED", 1062),
        ("SELECT nonsense FROM a", "STATEMENT_FAILED", 1054),
        ("UPDATE nowhere SET v = 1", "STATEMENT_FAILED", 1146),
    ],
)
def test_a_failed_statement_dooms_the_branch(
    agent: AgentProcess, shop: PrivateServer, sql: str, expected: str, errno: int
) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            before, gtrid = v(shop, 3), c.gtrid()
            voted = await c.run(gtrid, bump(3), statement(sql))
            assert voted.vote == pb.VOTE_ROLLBACK
            assert (voted.failure.reason, voted.failure.errno, voted.failure.statement) == (
                expected,
                errno,
                1,
            )
            assert (await c.rollback(gtrid)).state == ROLLED_BACK

            gtrid = c.gtrid()
            with pytest.raises(grpc.RpcError) as failed:
                await c.execute(gtrid, bump(3), statement(sql))
            metadata = info(failed.value).metadata
            assert (reason(failed.value), metadata["errno"], metadata["statement"]) == (
                expected,
                str(errno),
                "1",
            )
            with pytest.raises(grpc.RpcError) as failed:
                await c.execute(gtrid, bump(3))
            assert reason(failed.value) == "BRANCH_DOOMED"
            voted = await c.prepare(gtrid)
            assert (voted.vote, voted.failure.reason) == (pb.VOTE_ROLLBACK, expected)
            assert v(shop, 3) == before

    asyncio.run(play())


def test_expectations(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            before = v(shop, 3)
            for unmet in (
                statement("UPDATE a SET v = 9 WHERE id = 77", expect=1),
                statement("SELECT * FROM a WHERE id = 77", at_least=1),
                statement("UPDATE a SET v = v + 1 WHERE id < 3", expect=1),
            ):
                voted = await c.run(c.gtrid(), bump(3), unmet)
                assert (voted.failure.reason, voted.failure.statement) == ("EXPECTATION_FAILED", 1)
            assert v(shop, 3) == before
            met = statement("SELECT * FROM a WHERE id < 3", expect=2, at_least=1)
            assert (await c.run(c.gtrid(), met)).vote == pb.VOTE_READ_ONLY

    asyncio.run(play())


def test_reads_vote_read_only_only_where_nothing_was_written(
    agent: AgentProcess, shop: PrivateServer
) -> None:
    shop.sql("DROP FUNCTION IF EXISTS shop.sneaky")
    shop.sql(
        "CREATE FUNCTION shop.sneaky() RETURNS INT DETERMINISTIC MODIFIES SQL DATA "
        "BEGIN UPDATE shop.a SET v = v + 1 WHERE id = 4; RETURN 1; END"
    )

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            assert (await c.run(gtrid, statement("SELECT * FROM a"))).vote == pb.VOTE_READ_ONLY
            assert (await c.prepare(gtrid)).vote == pb.VOTE_READ_ONLY
            assert (await c.commit(gtrid)).state == COMMITTED
            gtrid = c.gtrid()
            await c.execute(gtrid, statement("SELECT * FROM a FOR UPDATE"))
            assert (await c.prepare(gtrid)).vote == pb.VOTE_READ_ONLY
            before, gtrid = v(shop, 4), c.gtrid()
            assert (await c.run(gtrid, statement("SELECT sneaky()"))).vote == pb.VOTE_OK
            assert (await c.commit(gtrid)).state == COMMITTED
            assert v(shop, 4) == before + 1

    asyncio.run(play())


def test_read_only_is_enforced_by_the_server(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            assert (await c.run(c.gtrid(), statement("SELECT 1"), read_only=True)).vote == pb.VOTE_READ_ONLY
            voted = await c.run(c.gtrid(), bump(1), read_only=True)
            assert (voted.failure.reason, voted.failure.errno) == ("STATEMENT_FAILED", 1792)
            # The session's next branch writes again.
            gtrid = c.gtrid()
            assert (await c.run(gtrid, bump(1))).vote == pb.VOTE_OK
            assert (await c.rollback(gtrid)).state == ROLLED_BACK

    asyncio.run(play())


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
            await asyncio.sleep(0.2)
            with pytest.raises(grpc.RpcError) as busy:
                await c.execute(waiting, bump(3))
            assert reason(busy.value) == "BRANCH_BUSY"
            started = asyncio.get_running_loop().time()
            assert (await c.rollback(waiting)).state == ROLLED_BACK
            assert asyncio.get_running_loop().time() - started < 0.5
            with pytest.raises(grpc.RpcError):
                await call
            # Its locks are free.
            free = c.gtrid()
            assert (await c.run(free, bump(2))).vote == pb.VOTE_OK
            assert (await c.rollback(free)).state == ROLLED_BACK

            busy_branch = c.gtrid()
            call = asyncio.ensure_future(c.execute(busy_branch, bump(1)))
            await asyncio.sleep(0.2)
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


def test_ddl_and_temporary_tables_inside_a_branch(agent: AgentProcess, shop: PrivateServer) -> None:
    shop.sql("DROP PROCEDURE IF EXISTS shop.ddl")
    shop.sql("CREATE PROCEDURE shop.ddl() CREATE TABLE shop.made_inside (i INT)")
    shop.sql("DROP PROCEDURE IF EXISTS shop.temporary")
    shop.sql("CREATE PROCEDURE shop.temporary() CREATE TEMPORARY TABLE shop.tt (i INT)")

    async def play() -> None:
        async with coordinating(agent) as c:
            voted = await c.run(c.gtrid(), bump(1), statement("CALL ddl()"))
            assert (voted.vote, voted.failure.errno) == (pb.VOTE_ROLLBACK, 1399)
            gtrid = c.gtrid()
            voted = await c.run(gtrid, bump(1), statement("CALL temporary()"))
            if shop.engine == "mysql":
                assert (voted.vote, voted.failure.errno) == (pb.VOTE_ROLLBACK, 4091)
            else:
                assert voted.vote == pb.VOTE_OK
            assert (await c.rollback(gtrid)).state == ROLLED_BACK

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
            for (connection,) in _sessions_of(shop, agent):
                shop.sql(f"KILL {connection}")
            await asyncio.sleep(0.1)
            assert (await c.commit_for_ever(gtrid)).state == COMMITTED

    asyncio.run(play())


def _sessions_of(shop: PrivateServer, agent: AgentProcess) -> list[tuple[int]]:
    """Connections that hold one of the agent's slots."""
    slots = ", ".join(f"IS_USED_LOCK('xacoord.{agent.participant}.{n}')" for n in range(90))
    return [(connection,) for connection in shop.sql(f"SELECT {slots}")[0] if connection]


def test_session_killed_while_active(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            await c.execute(gtrid, bump(1))
            for (connection,) in _sessions_of(shop, agent):
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
            for (connection,) in _sessions_of(shop, agent) if shop.engine == "mariadb" else []:
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
            for (connection,) in _sessions_of(shop, agent) if shop.engine == "mariadb" else []:
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


def test_enlisting(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            c.accept = False
            before, gtrid = v(shop, 1), c.gtrid()
            with pytest.raises(grpc.RpcError) as refused:
                await c.execute(gtrid, bump(1))
            assert reason(refused.value) == "DEADLINE_PASSED"
            assert v(shop, 1) == before
            assert (await c.prepare(gtrid)).vote == pb.VOTE_ROLLBACK

            c.accept, c.silent = True, True
            gtrid = c.gtrid()
            call = asyncio.ensure_future(c.execute(gtrid, bump(1)))
            await asyncio.sleep(0.2)
            assert not call.done()
            await c.detach()
            with pytest.raises(grpc.RpcError) as lost:
                await call
            assert reason(lost.value) == "COORDINATOR_UNAVAILABLE"
            with pytest.raises(grpc.RpcError) as absent:
                await c.execute(c.gtrid(), bump(1))
            assert reason(absent.value) == "COORDINATOR_UNAVAILABLE"

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


def test_branches_outlive_the_stream(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            active, prepared = c.gtrid(), c.gtrid()
            await c.execute(active, bump(1))
            assert (await c.run(prepared, bump(2))).vote == pb.VOTE_OK
            await c.detach()
            await c.attach()
            assert (await c.prepare(active)).vote == pb.VOTE_OK
            for gtrid in (active, prepared):
                assert (await c.commit(gtrid)).state == COMMITTED

    asyncio.run(play())


def test_many_branches_at_once(agent: AgentProcess, shop: PrivateServer) -> None:
    """More than there are sessions; each is on its own row."""
    shop.sql("CREATE TABLE IF NOT EXISTS shop.many (id INT PRIMARY KEY, v INT NOT NULL)")
    shop.sql("REPLACE INTO shop.many VALUES " + ", ".join(f"({n}, 0)" for n in range(60)))

    async def one(c: Coordinator, key: int) -> None:
        for _ in range(3):
            gtrid = c.gtrid()
            voted = await c.run(gtrid, statement("UPDATE many SET v = v + 1 WHERE id = %s", key))
            assert voted.vote == pb.VOTE_OK, voted
            assert (await c.commit(gtrid)).state == COMMITTED

    async def play() -> None:
        async with coordinating(agent) as c:
            await asyncio.gather(*(one(c, key) for key in range(60)))
        assert shop.sql("SELECT MIN(v), MAX(v) FROM shop.many") == [(3, 3)]

    asyncio.run(play())
