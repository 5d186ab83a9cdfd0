"""Sessions that end in the middle: a caller that goes away must not leave its answer to the next one, a
server that does must not take another session's place with it."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from deploy.private_servers import PrivateServer
from participant_agent.control import Control
from participant_agent.core.effects import Lost, Ok, Query
from participant_agent.pool import with_raw_cells
from participant_agent.session import Session, Target


def _target(server: PrivateServer) -> Target:
    arguments = {"unix_socket": str(server.socket), "user": "root", "connect_timeout": 5}
    return Target(arguments, (), 10.0, 1_000, 1_000_000)


async def _cancelled(query: object) -> None:
    task = asyncio.ensure_future(query)  # type: ignore[call-overload]
    await asyncio.sleep(0.1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_the_control_connection_answers_each_query_with_its_own_answer(shop: PrivateServer) -> None:
    async def play() -> None:
        log = structlog.get_logger()
        control = Control(with_raw_cells(_target(shop), 10.0), "cancelled", 1.0, None, log)
        await control.connect()
        try:
            await _cancelled(control.query(Query("SELECT 1, SLEEP(0.5)")))
            answer = await control.query(Query("SELECT 42"))
            assert isinstance(answer, Ok), answer
            assert answer.rows == ((b"42",),)
        finally:
            control.close()

    asyncio.run(play())


def test_a_session_whose_query_was_cancelled_is_dead(shop: PrivateServer) -> None:
    async def play() -> None:
        session = await Session.open(_target(shop))
        await _cancelled(session.query(Query("SELECT 1, SLEEP(0.5)")))
        assert session.dead
        assert isinstance(await session.query(Query("SELECT 42")), Lost)

    asyncio.run(play())


def test_a_session_that_is_killed_while_the_library_waits(shop: PrivateServer) -> None:
    """The library closes its own socket then, before the session hears of it."""

    async def play() -> None:
        session = await Session.open(_target(shop))
        told: list[bool] = []
        session.on_death = lambda: told.append(session.dead)
        shop.sql(f"KILL {session.connection_id}")  # and the loop has not heard of it when the batch begins
        results = await session.batch((Query("DO 1"), Query("DO 2")))
        assert isinstance(results[-1], Lost)
        assert session.dead
        assert told == [True]
        other = await Session.open(_target(shop))
        assert isinstance(await other.query(Query("SELECT 42")), Ok)
        other.close()

    asyncio.run(play())
