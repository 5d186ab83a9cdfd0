"""The life of a branch on real servers, seen from the coordinator and from clients."""

from __future__ import annotations

import asyncio
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
    reason,
    rows,
    statement,
    v,
    witnesses,
)


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


def test_what_a_procedure_changes_in_its_session_ends_with_the_branch(
    shop: PrivateServer, new_agent: Any
) -> None:
    """And the client's parameters are never read in another charset than they are written in."""
    agent = new_agent(shop, extra="[sessions]\nmax = 1\nwarm = 1\n")
    agent.start()
    shop.sql("DROP PROCEDURE IF EXISTS shop.meddles")
    shop.sql(
        "CREATE PROCEDURE shop.meddles() BEGIN SET NAMES gbk; SET SESSION innodb_lock_wait_timeout = 40; "
        "SET SESSION time_zone = '+09:00'; DO GET_LOCK('meddled', 0); SELECT 5; END"
    )
    look = (
        "SELECT %s, @@character_set_client, @@innodb_lock_wait_timeout, @@time_zone, IS_FREE_LOCK('meddled')"
    )

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            results = await c.execute(gtrid, statement("CALL meddles()"), statement(look, "\u20ac' \\"))
            assert rows(results[0]) == [(5,)]
            assert rows(results[1])[0][:3] == ("\u20ac' \\", "utf8mb4", 40)
            assert (await c.prepare(gtrid)).vote == pb.VOTE_OK
            assert (await c.commit(gtrid)).state == COMMITTED
            results = await c.execute(c.gtrid(), statement(look, "\u20ac' \\"))
            assert rows(results[0]) == [("\u20ac' \\", "utf8mb4", 3, "+00:00", 1)]

    asyncio.run(play())


def test_literals_are_read_as_the_guard_reads_them(shop: PrivateServer, new_agent: Any) -> None:
    """Whatever the server's sql_mode becomes while the agent runs."""
    agent = new_agent(shop)
    agent.start()
    (mode,) = shop.sql("SELECT @@GLOBAL.sql_mode")[0]

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            results = await c.execute(gtrid, statement('SELECT @@sql_mode, "id" FROM a WHERE id = 1'))
            assert rows(results[0]) == [(mode, "id")]
            await c.rollback(gtrid)

    shop.sql("SET GLOBAL sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'")
    try:
        asyncio.run(play())
    finally:
        shop.sql("SET GLOBAL sql_mode = %s", (mode,))
