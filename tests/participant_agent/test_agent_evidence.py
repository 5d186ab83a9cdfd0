"""Evidence is as good as its reading: isolation, purges that run meanwhile, branches in flight.

Fault model:
 1. the isolation level of clients' sessions, or the server's default, lets a query see uncommitted rows;
 2. a purge announces its bound and deletes rows while they are being asked for;
 3. a branch commits, or is rolled back, between XA RECOVER and the reading of its row;
 4. a prepared branch of which the agent's memory knows nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from deploy.private_servers import PrivateServer
from dtp import XacoordError, Xid
from participant_agent.core.effects import Lost, Ok, OnControl, Query, Result, Sleep
from participant_agent.core.engine import Engine
from participant_agent.core.recall import recall
from participant_agent.core.recovery import Lookup, lookup
from participant_agent.v1 import participant_agent_pb2 as pb
from tests.participant_agent.agent_support import COMMITTED, ROLLED_BACK, AgentProcess, coordinating
from tests.participant_agent.conftest import open_shop
from tests.participant_agent.test_agent_recall import prepare, told
from tests.participant_agent.test_agent_recall import recall as ask_recall

TABLE = "xacoord.witness"
GTRID = "k1test00010000000001"
BOUND = "k1test00010000000002"


# --- On real servers ---


async def _tells_no_dirty_row_as_committed(agent: AgentProcess) -> None:
    async with coordinating(agent) as c:
        older, prepared, absent = (c.gtrid() for _ in range(3))
        await prepare(c, older, 2)
        assert (await c.commit(older)).state == COMMITTED
        await prepare(c, prepared, 1)
        answer = await ask_recall(c, older, prepared, absent)
        assert told(answer) == [
            ("COMMITTED", False, [3, 7]),
            ("UNDECIDED", True, [3, 7]),
            ("NOT_COMMITTED", False, []),
        ]
        assert answer.last_committed == older
        assert (await c.fence()).last_committed == older
        states = [pb.EVIDENCE_STATE_COMMITTED, pb.EVIDENCE_STATE_UNDECIDED, pb.EVIDENCE_STATE_NOT_COMMITTED]
        assert await c.lookup(older, prepared, absent) == states
        assert (await c.rollback(prepared)).state == ROLLED_BACK
        assert await c.lookup(prepared) == [pb.EVIDENCE_STATE_NOT_COMMITTED]


@pytest.mark.parametrize("isolation", ["READ-UNCOMMITTED", "READ-COMMITTED", "SERIALIZABLE"])
def test_the_isolation_of_clients_is_not_that_of_evidence(
    shop: PrivateServer, new_agent: Callable[..., AgentProcess], isolation: str
) -> None:
    agent = new_agent(shop, extra=f'[sessions]\nisolation = "{isolation}"\n')
    agent.start()
    asyncio.run(_tells_no_dirty_row_as_committed(agent))


def test_the_default_isolation_of_a_server_is_not_that_of_evidence(
    new_server: Callable[..., PrivateServer], new_agent: Callable[..., AgentProcess]
) -> None:
    server = new_server()
    open_shop(server)
    server.sql("SET GLOBAL TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
    agent = new_agent(server)
    agent.start()
    asyncio.run(_tells_no_dirty_row_as_committed(agent))


# --- Against scripted answers ---


class Script:
    """A server whose nth answers are given; `purge` is announced while it answers row query `purge_at`.

    Attributes:
        listed, rows: one a reading (the last one stays); a row is there or not.
        purged_to: what the agent remembers.
    """

    def __init__(self, engine: Engine, listed: list[bool], rows: list[bool], purge_at: int = 0) -> None:
        self._engine, self._listed, self._rows, self._purge_at = engine, listed, rows, purge_at
        self.readings = 0
        self.purged_to = ""

    def perform(self, procedure: Any) -> Any:
        try:
            effect = next(procedure)
            while True:
                effect = procedure.send(self._answer(effect))
        except StopIteration as stop:
            return stop.value

    def _answer(self, effect: Any) -> Result:
        if isinstance(effect, Sleep):
            return Ok()
        query = effect.query if isinstance(effect, OnControl) else effect
        assert isinstance(query, Query)
        if query.sql == self._engine.recover_sql:
            raw = Xid.of(GTRID, 7).gtrid + Xid.of(GTRID, 7).bqual
            data = raw if self._engine is Engine.MARIADB else f"0x{raw.hex()}"
            listed = self._listed.pop(0) if len(self._listed) > 1 else self._listed[0]
            return Ok(((1, 20, 4, data),) if listed else ())
        if query.sql.startswith("SET TRANSACTION"):
            return Ok()
        self.readings += 1
        if self.readings == self._purge_at:
            self.purged_to = BOUND
        there = self._rows.pop(0) if len(self._rows) > 1 else self._rows[0]
        return Ok(((GTRID, "3,7"),) if there else ())


def _looked_up(engine: Engine, script: Script) -> Lookup:
    found = script.perform(lookup(engine, TABLE, lambda: script.purged_to, 7, (GTRID,)))
    return found[GTRID]  # type: ignore[no-any-return]


def _recalled(engine: Engine, script: Script) -> Lookup:
    found = script.perform(recall(engine, TABLE, lambda: script.purged_to, 7, (GTRID,)))
    return found[GTRID].state  # type: ignore[no-any-return]


READERS = pytest.mark.parametrize("read", [_looked_up, _recalled])
ENGINES = pytest.mark.parametrize("make", list(Engine))


@READERS
@ENGINES
def test_what_a_purge_deletes_meanwhile_did_not_roll_back(read: Any, make: Engine) -> None:
    assert read(make, Script(make, [False], [False])) is Lookup.NOT_COMMITTED
    script = Script(make, [False], [False])
    assert read(make, script) is Lookup.NOT_COMMITTED
    for reading in range(1, script.readings + 1):
        assert read(make, Script(make, [False], [False], purge_at=reading)) is Lookup.NONE


@READERS
@ENGINES
def test_a_branch_that_is_only_listed_is_undecided(read: Any, make: Engine) -> None:
    assert read(make, Script(make, [True], [False])) is Lookup.UNDECIDED


@READERS
@ENGINES
def test_a_branch_that_is_listed_and_has_a_row_is_read_again(read: Any, make: Engine) -> None:
    assert read(make, Script(make, [True], [True])) is Lookup.UNDECIDED
    assert read(make, Script(make, [True, False], [True])) is Lookup.COMMITTED
    assert read(make, Script(make, [True, False], [True, False])) is Lookup.NOT_COMMITTED
    assert read(make, Script(make, [True, True], [True, False])) is Lookup.UNDECIDED


@READERS
@ENGINES
def test_no_answer_is_no_evidence(read: Any, make: Engine) -> None:
    for unanswered in range(1, 5):
        script, count = Script(make, [True], [True]), 0
        answer = script._answer

        def mute(effect: Any, answer: Any = answer, unanswered: int = unanswered) -> Result:
            nonlocal count
            count += not isinstance(effect, Sleep)
            return Lost() if count == unanswered else answer(effect)

        script._answer = mute  # type: ignore[method-assign]
        with pytest.raises(XacoordError):
            read(make, script)
