"""What the simulation has found and can be said in a few lines. A seed's meaning changes with the generator,
these stay; docs/track-record.md has the whole list.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest
import structlog

from dtp import Reason, XacoordError
from participant_agent.control import Control
from participant_agent.core.effects import Ok, Query
from participant_agent.core.engine import Engine
from participant_agent.pool import Pool, with_raw_cells
from participant_agent.session import Connect, Target
from tests.simulation.loop import SimulatedLoop
from tests.simulation.mysql import Server
from tests.simulation.session import Conditions, connector

_TARGET = Target({"connect_timeout": 5}, (), 10.0, 1_000, 1_000_000)


def play(story: Coroutine[Any, Any, None]) -> None:
    """Run it on the simulation's clock."""
    loop = SimulatedLoop()
    try:
        loop.run_until_complete(story)
        assert loop.errors == []
    finally:
        loop.close()


def control_of(connect: Connect) -> Control:
    log = structlog.get_logger()
    return Control(with_raw_cells(_TARGET, 10.0), "p", 1.0, None, log, connect)


def connecting(server: Server) -> Connect:
    return connector(server, Conditions(Random(1)))


@pytest.mark.parametrize("make", list(Engine))
def test_an_agent_that_slept_through_a_restart_of_its_server_opens_no_session(make: Engine) -> None:
    """Connection ids begin anew at a restart, so its successor's control connection had the id of its own."""

    async def story() -> None:
        server = Server(make, "s", Random(1))
        connect = connecting(server)
        sleeper, successor = control_of(connect), control_of(connecting(server))
        await sleeper.connect()
        await sleeper.take_over()
        pool = Pool(_TARGET, "p", 0, 4, 1, 1.0, connect)
        pool.retarget(sleeper.connection_id, sleeper.token_lock, 1024, "")
        pool.release(await pool.acquire())
        same = sleeper.connection_id
        server.kill()
        server.start()
        await successor.connect()
        await successor.take_over()
        assert successor.connection_id == same, "the case that matters"
        with pytest.raises(XacoordError) as refused:
            await pool.acquire()
        assert refused.value.reason is Reason.SERVER_UNAVAILABLE

    play(story())


def test_the_answer_to_a_cancelled_query_is_nobody_elses() -> None:
    """The control connection gave it to the next query: XA RECOVER could be answered by a count."""

    async def story() -> None:
        server = Server(Engine.MYSQL, "s", Random(1))
        control = control_of(connecting(server))
        await control.connect()
        cancelled = asyncio.ensure_future(control.query(Query("SELECT VERSION()")))
        await asyncio.sleep(0)
        cancelled.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled
        answer = await control.query(Query("XA RECOVER CONVERT XID"))
        assert isinstance(answer, Ok)
        assert answer.rows == ()

    play(story())
