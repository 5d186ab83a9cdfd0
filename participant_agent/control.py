"""Control: the one connection that makes this agent the participant's agent.

It holds the participant's user lock; XA RECOVER, KILL, witness and fence queries go through it, one at a
time. When it is lost the agent is not the participant's agent any more: it stops serving, reconnects with
backoff, takes the lock again, ends every session that is left from before (core/sessions.take_over) and only
then serves again.

Silence ends it on both sides: it is used every BEAT_SECONDS, so the agent notices a server that does not
answer, and the server closes it after SILENCE_SECONDS without a query (wait_timeout). An agent whose host has
vanished would otherwise hold the participant for the hours that servers wait by default.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

from participant_agent.core import preflight, sessions
from participant_agent.core.effects import (
    Answers,
    Batch,
    Lost,
    Ok,
    OnControl,
    Procedure,
    Query,
    Result,
    Sleep,
    number,
)
from participant_agent.core.preflight import Server
from participant_agent.session import Connect, ConnectError, Session, Target
from shell.failpoints import Failpoints

T = TypeVar("T")

BEAT_SECONDS = 4.0
SILENCE_SECONDS = 15

_FIRST_BACKOFF_SECONDS = 0.05
_LONGEST_BACKOFF_SECONDS = 1.0


class StartError(Exception):
    """The agent cannot become the participant's agent; the message says why."""


class Control:
    """The control connection and what the server said about itself.

    Attributes:
        make_token: names a take-over like no other.
        token_lock: the user lock of the last one; who holds it is this control connection.
    """

    def __init__(
        self,
        target: Target,
        participant: str,
        patience_seconds: float,
        failpoints: Failpoints | None,
        log: Any,
        connect: Connect = Session.open,
    ) -> None:
        self._target = replace(
            target, set_up=(*target.set_up, f"SET SESSION wait_timeout = {SILENCE_SECONDS}")
        )
        self._connect = connect
        self._participant = participant
        self._attempts = max(1, int(patience_seconds / sessions.LOCK_RETRY_SECONDS))
        self._failpoints = failpoints
        self._log = log
        self._session: Session | None = None
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Future[Result]] = set()
        self._lost = asyncio.Event()
        self._former: tuple[int, float] | None = None
        self.server: Server | None = None
        self.held = False
        self.token_lock = ""
        self.make_token: Callable[[], str] = lambda: f"t{secrets.token_hex(5)}"

    @property
    def connection_id(self) -> int:
        """Of the connection that holds the participant's lock, 0 where none does."""
        return self._session.connection_id if self._session is not None else 0

    async def query(self, query: Query) -> Result:
        """Run a query on the control connection, after those before it.

        It is carried out to its end also where its caller is cancelled: the next query would get its answer.
        """
        running = asyncio.ensure_future(self._in_turn(query))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return await asyncio.shield(running)

    async def _in_turn(self, query: Query) -> Result:
        async with self._turn:
            if self._session is None:
                return Lost("the agent has no connection to the server")
            if self._failpoints is not None:
                await self._failpoints.hit(f"before_{query.verb.value}")
            result = await self._session.query(query)
            if self._failpoints is not None:
                await self._failpoints.hit(f"after_{query.verb.value}")
            return result

    async def drive(self, procedure: Procedure[T], session: Session | None = None) -> T:
        """Perform a procedure's effects: `Query` on `session`, the rest here."""
        try:
            effect = next(procedure)
            while True:
                if isinstance(effect, Query):
                    effect = procedure.send(await self._on_session(session, effect))
                elif isinstance(effect, Batch):
                    answers = await self._batch_on_session(session, effect.queries)
                    effect = procedure.send(cast("Result", answers))
                elif isinstance(effect, OnControl):
                    effect = procedure.send(await self.query(effect.query))
                else:
                    assert isinstance(effect, Sleep)
                    await asyncio.sleep(effect.seconds)
                    effect = procedure.send(Ok())
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _on_session(self, session: Session | None, query: Query) -> Result:
        if session is None:
            return Lost("the branch has no session")
        if self._failpoints is None:
            return await session.query(query)
        await self._failpoints.hit(f"before_{query.verb.value}")
        result = await session.query(query)
        await self._failpoints.hit(f"after_{query.verb.value}")
        return result

    async def _batch_on_session(self, session: Session | None, queries: tuple[Query, ...]) -> Answers:
        if session is not None and session.batches and not self._holds(queries):
            return Answers(await session.batch(queries))
        results: list[Result] = []
        for query in queries:
            results.append(await self._on_session(session, query))
            if not isinstance(results[-1], Ok):
                break
        return Answers(tuple(results))

    def _holds(self, queries: tuple[Query, ...]) -> bool:
        """Whether a failpoint is set between the queries of a batch: then they go one by one."""
        if self._failpoints is None:
            return False
        places = (f"{when}_{query.verb.value}" for query in queries for when in ("before", "after"))
        return any(map(self._failpoints.wants, places))

    async def connect(self) -> None:
        """Connect and find out which server this is. Raises ConnectError."""
        session = await self._connect(self._target)
        self._session = session
        server = await self.drive(preflight.identify())
        if server is None:
            session.close()
            self._session = None
            raise ConnectError(2013, "the server does not answer")
        self.server = server

    async def take_over(self) -> int:
        """Become the participant's agent; returns how many sessions of a former agent were ended.

        Raises:
            StartError: another agent holds the participant, or a former session does not end.
            ConnectError: the connection was lost meanwhile.
        """
        former = await self._own_former_control()
        token = self.make_token()
        taken = await self.drive(sessions.take_over(self._participant, self._attempts, former, token))
        if taken.state is sessions.TakeOver.HELD_BY_OTHER:
            raise StartError(
                f"another agent speaks for participant {self._participant!r}: the server's connection "
                f"{taken.holder} holds its lock; stop that agent, or KILL that connection if its host is gone"
            )
        session = self._session
        if taken.state is sessions.TakeOver.FAILED or session is None or session.dead:
            raise ConnectError(2013, taken.message or "connection lost")
        self.token_lock = sessions.token_lock(self._participant, token)
        self._former = (session.connection_id, asyncio.get_running_loop().time())
        self._lost.clear()
        session.on_death = self._on_death
        self.held = True
        return taken.ended

    async def _own_former_control(self) -> int | None:
        """Our last control connection's id, where the server has been up since: ids begin anew at a
        restart."""
        if self._former is None:
            return None
        connection_id, since = self._former
        answer = await self.query(Query("SHOW GLOBAL STATUS LIKE 'Uptime'"))
        if not isinstance(answer, Ok) or not answer.rows:
            return None
        gone = asyncio.get_running_loop().time() - since
        return connection_id if number(answer.rows[0][1]) > gone else None

    def _on_death(self) -> None:
        self.held = False
        self._session = None
        self._lost.set()

    async def keep(self, lost: Callable[[], None], regained: Callable[[], Awaitable[None]]) -> None:
        """Run for ever: whenever the connection is lost, tell `lost`, get it back, then await `regained`."""
        while True:
            await self._lost.wait()
            lost()
            backoff = _FIRST_BACKOFF_SECONDS
            while not self.held:
                try:
                    await self.connect()
                    ended = await self.take_over()
                    self._log.info("participant taken over again", ended_sessions=ended)
                    await regained()
                except Exception as error:
                    self.close()
                    self._log.warning(
                        "no control connection", error=type(error).__name__, retry_in_seconds=backoff
                    )
                    await asyncio.sleep(backoff)
                    backoff = min(backoff * 2, _LONGEST_BACKOFF_SECONDS)

    async def beat(self) -> None:
        """Run for ever: use the connection now and then; an answer that does not come ends it."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if self.held:
                await self.query(
                    Query("SELECT IS_USED_LOCK(%s)", (sessions.participant_lock(self._participant),))
                )

    def close(self) -> None:
        """Close the connection; the lock is free then."""
        self.held = False
        if self._session is not None:
            self._session.close()
        self._session = None
