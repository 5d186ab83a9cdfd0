"""Branches that a former agent prepared and a recovering coordinator commits all at once, several in a
packet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, cast

import MySQLdb

from deploy.private_servers import PrivateServer
from dtp import Gtrid, Reason, XacoordError, Xid
from participant_agent.control import Control
from participant_agent.core.effects import Batch, Lost, Ok, Result, ServerError
from participant_agent.core.registry import Entry
from participant_agent.core.sessions import Session
from participant_agent.pool import Pool
from participant_agent.recovered import Recovered
from participant_agent.v1 import participant_agent_pb2 as pb
from tests.participant_agent.agent_support import (
    COMMITTED,
    AgentProcess,
    Coordinator,
    coordinating,
    read_lock,
    statement,
    xid,
)

_COUNT = 40
_FIRST = 1_000


async def _prepare(c: Coordinator) -> list[str]:
    gtrids = [c.gtrid() for _ in range(_COUNT)]
    for row, gtrid in enumerate(gtrids, _FIRST):
        voted = await c.run(gtrid, statement("INSERT INTO a VALUES (%s, 0)", row), participants=[c.number, 9])
        assert voted.vote == pb.VOTE_OK
    return gtrids


def _rows(shop: PrivateServer) -> set[int]:
    return {int(row[0]) - _FIRST for row in shop.sql(f"SELECT id FROM shop.a WHERE id >= {_FIRST}")}


def _recover(
    shop: PrivateServer,
    agent: AgentProcess,
    meanwhile: Callable[[list[str]], None],
    ask: Callable[[Coordinator, list[str]], Any],
) -> None:
    """Prepare, kill the agent, do something, start it again and `ask` it."""

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrids = await _prepare(c)
        agent.kill()
        await asyncio.to_thread(meanwhile, gtrids)
        await asyncio.to_thread(agent.start)
        async with coordinating(agent, coordinator_id=c.id, epoch=2) as c2:
            await ask(c2, gtrids)
            assert await c2.prepared() == set()

    agent.start()
    try:
        asyncio.run(play())
    finally:
        shop.sql(f"DELETE FROM shop.a WHERE id >= {_FIRST}")


def test_all_are_committed_but_what_a_person_rolled_back(shop: PrivateServer, new_agent: Any) -> None:
    by_hand = {3, 17}

    def roll_back(gtrids: list[str]) -> None:
        for index in by_hand:
            while any(row[1] == gtrids[index].encode() for row in shop.prepared()):
                _try(shop, f"XA ROLLBACK {xid(gtrids[index])}")

    async def ask(c: Coordinator, gtrids: list[str]) -> None:
        told = [answer.state for answer in await asyncio.gather(*map(c.commit, gtrids))]
        heuristic = pb.FINISHED_STATE_HEURISTIC_ROLLBACK
        assert told == [heuristic if index in by_hand else COMMITTED for index in range(_COUNT)]
        assert _rows(shop) == set(range(_COUNT)) - by_hand

    _recover(shop, new_agent(shop), roll_back, ask)


def test_sessions_that_are_killed_in_the_middle(shop: PrivateServer, new_agent: Any) -> None:
    async def ask(c: Coordinator, gtrids: list[str]) -> None:
        with read_lock(shop) as release:  # no commit ends
            asked = asyncio.gather(*map(c.commit_for_ever, gtrids))
            while not (waiting := _committing(shop)):
                await asyncio.sleep(0.05)
            for connection in waiting:
                _try(shop, f"KILL {connection}")
            release()
        assert {answer.state for answer in await asked} == {COMMITTED}
        assert _rows(shop) == set(range(_COUNT))

    _recover(shop, new_agent(shop), lambda gtrids: None, ask)


def _committing(shop: PrivateServer) -> list[int]:
    return [
        row[0]
        for row in shop.sql("SELECT ID FROM information_schema.PROCESSLIST WHERE INFO LIKE 'XA COMMIT%'")
    ]


def _try(shop: PrivateServer, sql: str) -> None:
    with contextlib.suppress(MySQLdb.Error):
        shop.sql(sql)


# --- The packets, without a server ---


class FakeSession:
    """Knows what it is called."""

    known_as = Session(7, "lock")


class FakePool:
    """One session; counts what becomes of it."""

    def __init__(self) -> None:
        self.session = FakeSession()
        self.released = self.discarded = 0
        self.full = False

    async def acquire(self) -> FakeSession:
        if self.full:
            raise XacoordError(Reason.POOL_EXHAUSTED, "full")
        return self.session

    def release(self, session: FakeSession) -> None:
        self.released += 1

    def discard(self, session: FakeSession) -> None:
        self.discarded += 1


class FakeControl:
    """Answers packets."""

    def __init__(self, answer: Callable[[int], tuple[Result, ...]]) -> None:
        self.answer = answer
        self.packets: list[int] = []

    async def drive(self, procedure: Any, session: FakeSession) -> Any:
        batch = next(procedure)
        assert isinstance(batch, Batch)
        self.packets.append(len(batch.queries))
        await asyncio.sleep(0)
        return self.answer(len(batch.queries))


def _play(
    answer: Callable[[int], tuple[Result, ...]], count: int, pool: FakePool | None = None
) -> tuple[FakeControl, FakePool, list[Entry], list[bool]]:
    control, pool = FakeControl(answer), pool or FakePool()
    entries = [Entry(str(Gtrid.make("0001", 1, n + 1, 0)), "0001", 1) for n in range(count)]

    async def play() -> list[bool]:
        tasks: set[asyncio.Task[None]] = set()
        recovered = Recovered(
            cast("Control", control),
            cast("Pool", pool),
            lambda lane: tasks.add(asyncio.get_running_loop().create_task(lane)),
        )
        return await asyncio.gather(*(recovered.commit(e, Xid.of(e.gtrid, 1)) for e in entries))

    return control, pool, entries, asyncio.run(play())


def test_many_go_in_few_packets() -> None:
    control, pool, entries, told = _play(lambda size: (Ok(),) * size, 100)
    assert told == [True] * 100
    assert sum(control.packets) == 100
    assert max(control.packets) == 8
    assert pool.released == len(control.packets) <= 14
    assert all(entry.session is None and entry.unended is None for entry in entries)


def test_a_refusal_leaves_it_and_those_behind_to_others() -> None:
    _, pool, entries, told = _play(lambda size: (Ok(), ServerError(1397, "XAER_NOTA")), 4)
    assert told == [True, False, False, False]
    assert (pool.released, pool.discarded) == (0, 1)
    assert all(entry.session is None and entry.unended is None for entry in entries)


def test_a_session_that_does_not_answer_has_to_end_first() -> None:
    _, pool, entries, told = _play(lambda size: (Ok(), Ok(), Lost()), 4)
    assert told == [True, True, False, False]
    assert (pool.released, pool.discarded) == (0, 1)
    assert [entry.unended for entry in entries] == [None, None, FakeSession.known_as, FakeSession.known_as]


def test_without_a_session_everything_is_left_to_others() -> None:
    pool = FakePool()
    pool.full = True
    control, _, entries, told = _play(lambda size: (Ok(),) * size, 3, pool)
    assert told == [False] * 3
    assert control.packets == []
    assert all(entry.session is None and entry.unended is None for entry in entries)
