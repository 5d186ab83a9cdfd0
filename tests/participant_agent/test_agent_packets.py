"""Packets of several statements: what does not belong in one, and what is said when one goes wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from deploy.private_servers import PrivateServer
from participant_agent.core.effects import Ok, Query
from participant_agent.session import Session, Target
from participant_agent.v1 import participant_agent_pb2 as pb
from tests.participant_agent.agent_support import (
    COMMITTED,
    ROLLED_BACK,
    AgentProcess,
    bump,
    coordinating,
    info,
    reason,
    rows,
    statement,
    v,
)


@pytest.mark.engines("mariadb")
def test_returning(agent: AgentProcess, shop: PrivateServer) -> None:
    shop.sql("CREATE TABLE IF NOT EXISTS shop.r (id INT PRIMARY KEY AUTO_INCREMENT, v INT)")

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            for value in (5, 6):
                made = await c.execute(gtrid, statement("INSERT INTO r (v) VALUES (%s) RETURNING v", value))
                assert [rows(result) for result in made] == [[(value,)]]
            assert (await c.prepare(gtrid)).vote == pb.VOTE_OK
            assert (await c.commit(gtrid)).state == COMMITTED
            nothing = statement("DELETE FROM r WHERE id = %s RETURNING id", 999_999, expect=1)
            with pytest.raises(grpc.RpcError) as unmet:
                await c.execute(c.gtrid(), nothing)
            assert reason(unmet.value) == "EXPECTATION_FAILED"
            assert (await c.run(c.gtrid(), nothing, one_phase=True)).state == ROLLED_BACK
            gtrid = c.gtrid()
            voted = await c.run(gtrid, statement("INSERT INTO r (v) VALUES (7) RETURNING id"))
            assert voted.vote == pb.VOTE_OK
            assert len(rows(voted.results[0])) == 1
            assert (await c.commit(gtrid)).state == COMMITTED

    asyncio.run(play())


def test_a_read_only_branch_that_calls(agent: AgentProcess, shop: PrivateServer) -> None:
    shop.sql("CREATE OR REPLACE PROCEDURE shop.peep() SELECT 1" if shop.engine == "mariadb" else "DO 1")
    if shop.engine == "mysql":
        shop.sql("DROP PROCEDURE IF EXISTS shop.peep")
        shop.sql("CREATE PROCEDURE shop.peep() SELECT 1")

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            await c.execute(gtrid, statement("CALL peep()"), read_only=True)
            assert (await c.prepare(gtrid)).vote == pb.VOTE_READ_ONLY

    asyncio.run(play())


@pytest.mark.parametrize("statements", [1, 17])
def test_a_late_call_does_not_touch_what_is_prepared(
    shop: PrivateServer, new_agent: Any, statements: int
) -> None:
    """The agent was started again, and knows nothing of the branch. 17 statements go one by one."""
    agent = new_agent(shop)
    agent.start()

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid, before = c.gtrid(), v(shop, 1)
            await c.execute(gtrid, bump(1))
            assert (await c.prepare(gtrid)).vote == pb.VOTE_OK
            agent.kill()
            await asyncio.to_thread(agent.start)
            await c.fence()
            await c.attach()
            c.accept, c.refusal = False, "TRANSACTION_NOT_ACTIVE"
            with pytest.raises(grpc.RpcError) as late:
                await c.execute(gtrid, *[bump(2)] * statements)
            assert reason(late.value) == "BRANCH_BUSY"
            assert await c.prepared() == {gtrid}
            assert (await c.commit(gtrid)).state == COMMITTED
            assert v(shop, 1) == before + 1

    asyncio.run(play())


def test_each_statement_has_its_time(shop: PrivateServer, new_agent: Any) -> None:
    agent = new_agent(shop, extra="[sessions]\nlock_wait_seconds = 1\nstatement_timeout_seconds = 2.0\n")
    agent.start()
    slow = "UPDATE a SET v = v + 1 WHERE id = %s AND SLEEP(%s) = 0"

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            voted = await c.run(gtrid, statement(slow, 1, "1.3"), statement(slow, 2, "1.3"))
            assert voted.vote == pb.VOTE_OK, voted
            assert (await c.rollback(gtrid)).state == ROLLED_BACK
            voted = await c.run(c.gtrid(), statement(slow, 1, "9"))
            assert (voted.vote, voted.failure.reason) == (pb.VOTE_ROLLBACK, "STATEMENT_FAILED")
            assert voted.failure.message == "no answer within 2 s"

    asyncio.run(play())


def test_together_they_may_be_longer_than_a_packet(new_server: Any, new_agent: Any) -> None:
    own = new_server(options={"max_allowed_packet": "1M"})
    for sql in ("CREATE DATABASE shop", "CREATE TABLE shop.long_ones (t LONGTEXT)"):
        own.sql(sql)
    agent = new_agent(own)
    agent.start()

    async def play() -> None:
        async with coordinating(agent) as c:
            long = statement("INSERT INTO long_ones VALUES (%s)", "x" * 600_000)
            assert (await c.run(c.gtrid(), long, long)).vote == pb.VOTE_OK

    asyncio.run(play())


def test_errors_show_the_clients_statement_only(agent: AgentProcess) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            voted = await c.run(c.gtrid(), statement("UPDATE a SETT v = 1"))
            assert voted.vote == pb.VOTE_ROLLBACK
            assert "near 'v = 1'" in voted.failure.message or "near 'SETT v = 1'" in voted.failure.message
            assert "xacoord" not in voted.failure.message
            with pytest.raises(grpc.RpcError) as wrong:
                await c.execute(c.gtrid(), statement("UPDATE a SET"))
            assert "XA" not in (wrong.value.details() or "")
            assert info(wrong.value).metadata["errno"] == "1064"

    asyncio.run(play())


@asynccontextmanager
async def _session(target: Target) -> AsyncIterator[Session]:
    session = await Session.open(target)
    try:
        yield session
    finally:
        session.close()


def test_encrypted_answers_of_every_size(shop: PrivateServer) -> None:
    """What is encrypted must not be read as if it were the protocol's packets."""
    authority = shop.data_directory / "ca.pem"
    if shop.engine == "mysql":
        encryption: dict[str, Any] = {"ssl": {"ca": str(authority)}}
        assert authority.exists()
    else:
        encryption = {}  # its private server has no certificate
    shop.sql("CREATE USER IF NOT EXISTS sizes@'%' IDENTIFIED BY 'x'")
    shop.sql("GRANT ALL ON *.* TO sizes@'%'")
    where = {"host": "127.0.0.1", "port": shop.port, "user": "sizes", "password": "x", **encryption}

    async def play() -> None:
        async with _session(Target(where, (), 5.0, 1000, 10**6)) as session:
            assert session.batches is (shop.engine == "mariadb")
            for size in range(0, 600):
                answer = await session.query(Query(f"SELECT REPEAT('x', {size})"))
                assert isinstance(answer, Ok), (size, answer)
                assert len(str(answer.rows[0][0])) == size

    asyncio.run(play())


@pytest.mark.engines("mariadb")
def test_a_server_that_hangs_does_not_hold_up_the_loop(new_server: Any) -> None:
    own = new_server()
    slowest = 0.0

    async def beat() -> None:
        nonlocal slowest
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            slowest, last = max(slowest, time.monotonic() - last), time.monotonic()

    async def play() -> None:
        async with _session(Target({"unix_socket": str(own.socket), "user": "root"}, (), 3.0, 9, 9)) as one:
            assert isinstance(await one.query(Query("SELECT 1")), Ok)
            beating = asyncio.ensure_future(beat())
            own.pause()
            try:
                asked = asyncio.ensure_future(one.query(Query("SELECT LENGTH(%s)", ("x" * 900_000,))))
                await asyncio.sleep(1.5)
                assert not asked.done()
            finally:
                own.resume()
            answer = await asked
            beating.cancel()
            assert isinstance(answer, Ok), answer

    asyncio.run(play())
    assert slowest < 1.0, f"the loop stood still for {slowest:.1f} s of 1.5"
