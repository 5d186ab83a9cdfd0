"""A server in memory, for races that a real one shows once in a thousand runs.

Fault model:
 1. hang: the next query of a verb gets no answer (the client's time-out), and the server goes on with it only
    when the test says `go_on`, or never where the session could be killed before;
 2. immune: KILL does not end a session that hangs (a full disk), so its user lock stays held;
 3. hold: a query waits until the test lets it go, and then succeeds;
 4. away: the control connection answers nothing.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import structlog

from dtp import Xid
from participant_agent.branches import Branches
from participant_agent.control import Control
from participant_agent.core.effects import Lost, Ok, Query, Result, ServerError, Verb
from participant_agent.core.engine import Engine
from participant_agent.core.finish import Finished, names_of
from participant_agent.core.resolve import Evidence
from participant_agent.core.sessions import lock_query, slot_lock
from participant_agent.core.work import Voted
from participant_agent.session import Session, Target

NUMBER = 7


class FakeSession(Session):
    """One connection to the server in memory."""

    def __init__(self, server: FakeServer, connection_id: int, lock: str) -> None:
        self.server = server
        self.connection_id = connection_id
        self.lock = lock
        self.dead = False
        self.condemned = False
        self.on_death = None
        self.net_buffer_length = 1024
        self.batches = False
        self.branch = ""

    def begin_call(self) -> None:
        pass

    async def query(self, query: Query) -> Result:
        return Lost() if self.dead else await self.server.perform(self, query)

    def close(self) -> None:
        self.dead = True
        self.server.closed(self)


class FakeServer:
    """MySQL's rules for XA, as far as the agent's branches need them.

    Attributes:
        prepared, committed: gtrids.
        live: connection id -> the sessions whose thread still lives.
        log: (verb, gtrid) of each query that ends a branch, in order.
    """

    def __init__(self) -> None:
        self.prepared: set[str] = set()
        self.committed: set[str] = set()
        self.live: dict[int, FakeSession] = {}
        self.log: list[tuple[Verb, str]] = []
        self.hang: set[Verb] = set()
        self.hold: dict[Verb, asyncio.Event] = {}
        self.immune = False
        self.away = False
        self._hung: dict[int, Query] = {}
        self._next_id = 10

    def open(self, slot: int) -> FakeSession:
        self._next_id += 1
        session = FakeSession(self, self._next_id, slot_lock("p", slot))
        self.live[session.connection_id] = session
        return session

    def closed(self, session: FakeSession) -> None:
        """Our side is closed; the thread ends unless it is in the middle of something."""
        if session.connection_id not in self._hung:
            self.live.pop(session.connection_id, None)

    def go_on(self) -> None:
        """What hung is carried out after all, and its sessions end."""
        for connection_id, query in list(self._hung.items()):
            self._carry_out(self.live[connection_id], query)
            del self._hung[connection_id], self.live[connection_id]

    async def perform(self, session: FakeSession, query: Query) -> Result:
        if query.verb in self.hold:
            await self.hold[query.verb].wait()
            if session.dead or session.connection_id not in self.live:
                return Lost()
        if query.verb in self.hang:
            self.hang.discard(query.verb)
            self._hung[session.connection_id] = query
            session.dead = True
            return Lost("no answer", timed_out=True)
        return self._carry_out(session, query)

    def _carry_out(self, session: FakeSession, query: Query) -> Result:
        if query.sql == lock_query(session.known_as).sql:
            return Ok(((1,),), 1)
        found = re.search(r"^XA \w+ X'([0-9a-f]+)'", query.sql)
        gtrid = bytes.fromhex(found[1]).decode() if found else ""
        if query.verb in (Verb.PREPARE, Verb.COMMIT, Verb.COMMIT_ONE_PHASE, Verb.ROLLBACK):
            self.log.append((query.verb, gtrid))
        if query.verb is Verb.START:
            session.branch = gtrid
        elif query.verb is Verb.PREPARE:
            session.branch = ""
            self.prepared.add(gtrid)
        elif query.verb is Verb.COMMIT_ONE_PHASE:
            session.branch = ""
            self.committed.add(gtrid)
        elif query.verb in (Verb.COMMIT, Verb.ROLLBACK):
            if gtrid not in self.prepared and session.branch != gtrid:
                return ServerError(1397, "XAER_NOTA: Unknown XID")
            session.branch = ""
            self.prepared.discard(gtrid)
            if query.verb is Verb.COMMIT:
                self.committed.add(gtrid)
        return Ok((), 1)

    def control(self, query: Query) -> Result:
        """A query of the control connection."""
        if self.away:
            return Lost()
        if query.sql.startswith("KILL"):
            victim = int(query.sql.split()[1])
            if not (self.immune and victim in self._hung):
                self._hung.pop(victim, None)
                session = self.live.pop(victim, None)
                if session is not None:
                    session.dead = True
            return Ok()
        if "IS_USED_LOCK" in query.sql:
            holders = [s.connection_id for s in self.live.values() if s.lock == query.parameters[0]]
            return Ok(((holders[0] if holders else None,),), 1)
        if query.sql.startswith("XA RECOVER"):
            raw = [Xid.of(gtrid, NUMBER) for gtrid in self.prepared]
            return Ok(tuple((1, 20, 4, "0x" + (x.gtrid + x.bqual).hex()) for x in raw), len(raw))
        assert "witness" in query.sql, query.sql
        hexadecimal = re.search(r"gtrid = X'([0-9a-f]+)'", query.sql)
        assert hexadecimal is not None
        return Ok(((int(bytes.fromhex(hexadecimal[1]).decode() in self.committed),),), 1)


class FakeControl(Control):
    """The control connection to a server in memory."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(Target({}, (), 1, 1, 1), "p", 1, None, structlog.get_logger())
        self._fake = server

    async def query(self, query: Query) -> Result:
        await asyncio.sleep(0)
        return self._fake.control(query)


class FakePool:
    """Sessions to a server in memory; `free` is cleared where all are to be in use."""

    def __init__(self, server: FakeServer, first: int) -> None:
        self._server = server
        self._next = first
        self.free = asyncio.Event()
        self.free.set()
        self.idle: list[FakeSession] = []

    async def acquire(self) -> FakeSession:
        await self.free.wait()
        if self.idle:
            return self.idle.pop()
        self._next += 1
        return self._server.open(self._next)

    def release(self, session: FakeSession) -> None:
        self.discard(session) if session.dead or session.condemned else self.idle.append(session)

    def discard(self, session: FakeSession) -> None:
        session.close()


class World:
    """Branches against a server in memory; `reports` is what the coordinator hears."""

    def __init__(self) -> None:
        self.server = FakeServer()
        self.workers, self.finishers = FakePool(self.server, 0), FakePool(self.server, 500)
        self.reports: list[tuple[str, Voted | Finished]] = []
        names = names_of(lambda: Engine.MYSQL, lambda c: NUMBER, lambda c: Evidence("x.witness"))
        workers: Any = self.workers
        finishers: Any = self.finishers
        self.branches = Branches(
            FakeControl(self.server), workers, finishers, names, self._heard, structlog.get_logger()
        )

    def _heard(self, coordinator_id: str, gtrid: str, result: Voted | Finished) -> None:
        self.reports.append((gtrid, result))

    async def ask(self, gtrid: str, command: Any, seconds: float = 5) -> Any:
        """Send a command and await the next report."""
        count = len(self.reports)
        self.branches.command(gtrid, gtrid[2:6], 1, command)
        until = asyncio.get_running_loop().time() + seconds
        while len(self.reports) == count:
            assert asyncio.get_running_loop().time() < until, "no report"
            await asyncio.sleep(0.001)
        return self.reports[-1][1]
