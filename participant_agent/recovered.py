"""Recovered: commits of branches that another process prepared, several in a packet.

A coordinator that recovers asks for them by the hundred, and no session holds them: alone, each would cost a
round trip and a wake-up of everybody on its way.

 1. `commit` queues a branch; a lane takes up to eight that wait, on one session of the finishers' pool. What
    comes alone goes at once, alone.
 2. Each that the server says OK to is committed.
 3. The first that it does not, and those behind it, which it did not come to, are for the usual procedure
    (core/finish.py), one by one: only that can tell what an answer means. A session that gave no answer may
    still be at any of them, so they keep its name as `unended`, and it is ended before anything else.

Only where a witness row will prove what became of a branch: one lost answer puts eight in doubt.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from dtp import XacoordError, Xid
from participant_agent.control import Control
from participant_agent.core.effects import Lost, Ok, Query, Result, ServerError, Verb, together
from participant_agent.core.finish import Branch
from participant_agent.core.registry import Entry
from participant_agent.pool import Pool

_AT_ONCE = 8
_LANES = 12  # of the finishers' sessions; the others are for what cannot wait behind these

Waiting: TypeAlias = tuple[Entry, Xid, asyncio.Future[bool]]


def takes(entry: Entry, branch: Branch) -> bool:
    """Whether a branch is one of these: nothing is known of it here, and it has a witness row."""
    unknown = entry.work is None and entry.session is None and entry.unended is None
    return unknown and branch.evidence.provable(branch.xid)


class Recovered:
    """`await commit(entry, xid)`.

    Args:
        control: the control connection.
        finishers: the sessions.
        spawn: runs a coroutine in the background.
    """

    def __init__(
        self, control: Control, finishers: Pool, spawn: Callable[[Coroutine[Any, Any, None]], object]
    ) -> None:
        self._control = control
        self._finishers = finishers
        self._spawn = spawn
        self._waiting: deque[Waiting] = deque()
        self._lanes = 0

    async def commit(self, entry: Entry, xid: Xid) -> bool:
        """Whether the server has said that it is committed; else nothing is known, and `entry.unended` comes
        first."""
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, xid, told))
        self._open_lane()
        return await told

    def _open_lane(self) -> None:
        if self._waiting and self._lanes < _LANES:
            self._lanes += 1
            self._spawn(self._lane())

    async def _lane(self) -> None:
        """Until nothing waits."""
        try:
            while self._waiting:
                await self._packet(
                    [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
                )
        finally:
            self._lanes -= 1
            self._open_lane()  # after an error of ours, for those behind

    async def _packet(self, some: list[Waiting]) -> None:
        done = 0
        try:
            done = await self._commit([entry for entry, _, _ in some], [xid for _, xid, _ in some])
        finally:
            for index, (_, _, told) in enumerate(some):
                if not told.done():
                    told.set_result(index < done)

    async def _commit(self, entries: list[Entry], xids: list[Xid]) -> int:
        """How many of them, from the first, are committed."""
        try:
            session = await self._finishers.acquire()
        except XacoordError:
            return 0
        if any(entry.dropped for entry in entries):  # by a fence, while we waited
            self._finishers.release(session)
            return 0
        for entry in entries:
            entry.session = session  # a fence ends it there
        results: tuple[Result, ...] = (Lost(),)
        try:
            queries = (Query(f"XA COMMIT {xid.sql()}", verb=Verb.COMMIT) for xid in xids)
            results = await self._control.drive(together(*queries), session)
        finally:
            done = sum(isinstance(result, Ok) for result in results)
            silent = not isinstance(results[-1], Ok | ServerError)
            for index, entry in enumerate(entries):
                entry.session = None
                if silent and index >= done:
                    entry.unended = session.known_as
            (self._finishers.release if done == len(entries) else self._finishers.discard)(session)
        return done
