"""The twin of participant_agent.session.Session: the agent's connection to the simulation's server.

Fault model:
 1. every query and every answer takes a while on the network.
 2. cut_before: the connection breaks before the query has arrived.
 3. cut_after: it breaks when the server has carried the query out, and the answer is lost.
 4. silence: the answer never comes; the client gives up after its time-out, and the server knows nothing
    of that. These three with a chance for each query, or aimed at the next query of one verb.
 5. a partition: nothing gets through in either direction. What was sent is delivered when it ends,
    however late that is, and after it the news that the client has gone.
 6. the agent's process dies: nothing that it does reaches the server any more. What it had sent arrives;
    then the server sees the connection close, at once or after a while.
 7. several queries in one packet: one message there, one back; the server goes through them to the first
    that fails, whether its client lives or not. What happens to one of them on the network happens to all.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from participant_agent.core.effects import Lost, Query, Result, Verb
from participant_agent.session import Connect, ConnectError, Session, Target
from tests.simulation.mysql import Server
from tests.simulation.mysql_connection import Connection
from tests.simulation.process import CURRENT, Process, place


@dataclass
class Conditions:
    """The network between one agent and its server. The world changes them while the simulation runs.

    Attributes:
        latency: shortest and longest time of one direction.
        cut_before, cut_after, silence: chances for each query; see the fault model.
        drop_delay: the longest time after which the server sees that a dead process is gone.
        parted: a partition.
        aims: what happens to the next query of a verb.
        counters: of answers that were lost.
    """

    random: Random
    latency: tuple[float, float] = (0.0001, 0.001)
    cut_before: float = 0.0
    cut_after: float = 0.0
    silence: float = 0.0
    drop_delay: float = 0.0
    parted: bool = False
    aims: list[tuple[Verb, str]] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    _held: list[Callable[[], None]] = field(default_factory=list)

    def part(self) -> None:
        """Begin a partition."""
        self.parted = True

    def heal(self) -> None:
        """End it; what was held is delivered in order."""
        self.parted = False
        held, self._held = self._held, []
        for deliver in held:
            deliver()

    def seconds(self) -> float:
        """The time of one direction, now."""
        low, high = self.latency
        return self.random.uniform(low, high)

    def fault(self, verb: Verb) -> str:
        """What happens to the next query."""
        for aim in self.aims:
            if aim[0] is verb:
                self.aims.remove(aim)
                return aim[1]
        chance = self.random.random()
        for name in ("cut_before", "cut_after", "silence"):
            chance -= getattr(self, name)
            if chance < 0:
                return name
        return ""

    def through(self, deliver: Callable[[], None]) -> None:
        """Deliver now, or when the partition ends."""
        if self.parted:
            self._held.append(deliver)
        else:
            deliver()


def connector(server: Server, conditions: Conditions) -> Connect:
    """What the agent opens its sessions with: `Agent(config, None, log, connector(server, conditions))`."""
    processes: set[Process] = set()
    sessions: dict[SimulatedSession, None] = {}

    async def open_session(target: Target) -> Session:
        place("connect")
        process = CURRENT.get()
        if process is not None and process not in processes:
            processes.add(process)
            process.on_end.append(partial(_process_ended, sessions))
        if conditions.parted:
            await asyncio.sleep(float(target.arguments.get("connect_timeout", 5)))
            raise ConnectError(2003, f"cannot reach {server.name}")
        await asyncio.sleep(conditions.seconds())
        connection = server.connect(target.raw)
        try:
            for sql in target.set_up:
                await connection.execute(sql)
            session = SimulatedSession(server, connection, target, conditions, sessions)
            await asyncio.sleep(conditions.seconds())
        except BaseException:
            connection.drop()
            raise
        return session

    return open_session


def _process_ended(sessions: dict[SimulatedSession, None]) -> None:
    for session in list(sessions):
        session.process_ended()


class SimulatedSession(Session):
    """One connection, as the agent has it."""

    def __init__(
        self,
        server: Server,
        connection: Connection,
        target: Target,
        conditions: Conditions,
        sessions: dict[SimulatedSession, None],
    ) -> None:
        self._server = server
        self._link = connection
        self._target = target
        self._conditions = conditions
        self._sessions = sessions
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._answer: asyncio.Future[tuple[Result, ...]] | None = None
        self._sending = False
        self._gone = False  # our side is closed, as far as the server will ever hear
        self._process_is_dead = False
        self.connection_id = connection.id
        self.lock = ""
        self.dead = False
        self.condemned = False
        self.on_death = None
        self.net_buffer_length = 1024
        self.batches = True
        connection.on_lost = self._server_hung_up
        sessions[self] = None

    def begin_call(self) -> None:
        """Results are not limited here."""

    # -- the agent's side

    async def query(self, query: Query) -> Result:
        """Run one query, as Session does."""
        return (await self.batch((query,)))[0]

    async def batch(self, queries: tuple[Query, ...]) -> tuple[Result, ...]:
        """Run several, as Session does."""
        place(f"before query {queries[0].verb.value}")
        if self.dead or self._process_is_dead:
            return (Lost(),)
        if self._answer is not None:
            raise AssertionError("two queries at once on one session")
        answer: asyncio.Future[tuple[Result, ...]] = self._loop.create_future()
        self._answer = answer
        self._send(queries, answer)
        timer = self._loop.call_later(self._target.timeout_seconds, self._timed_out)
        try:
            return await answer
        except asyncio.CancelledError:
            self._die(Lost("the query was cancelled"))
            raise
        finally:
            timer.cancel()
            self._answer = None
            place(f"after query {queries[-1].verb.value}")

    def _timed_out(self) -> None:
        self._die(Lost(f"no answer within {self._target.timeout_seconds:g} s", timed_out=True))

    def _send(self, queries: tuple[Query, ...], answer: asyncio.Future[tuple[Result, ...]]) -> None:
        faults = [(query.verb, fault) for query in queries if (fault := self._conditions.fault(query.verb))]
        self._sending = True
        self._after_latency(lambda: self._arrive(queries, answer, *(faults or [(Verb.OTHER, "")])[0]))

    def _die(self, *results: Result) -> None:
        if self.dead:
            return
        self.dead = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(results)
        self._leave(0.0)
        if self.on_death is not None:
            self.on_death()

    def process_ended(self) -> None:
        """The agent's process is dead."""
        self._process_is_dead = True
        self._leave(self._conditions.random.uniform(0.0, self._conditions.drop_delay))

    def _leave(self, delay: float) -> None:
        """The server will see our side close, after what was sent before."""
        if not self._gone:
            self._gone = True
            self._sessions.pop(self, None)
            self._after_latency(self._close_arrives, delay)

    # -- on the wire and at the server: outside of the agent's process

    def _after_latency(self, deliver: Callable[[], None], delay: float = 0.0) -> None:
        seconds = delay + self._conditions.seconds()
        self._loop.call_later(seconds, self._conditions.through, deliver, context=self._server.context)

    def _arrive(
        self,
        queries: tuple[Query, ...],
        answer: asyncio.Future[tuple[Result, ...]],
        verb: Verb,
        fault: str,
    ) -> None:
        self._sending = False
        if fault == "cut_before":
            self._link.drop()
            self._back(self._hear, answer, (Lost(),))
            return

        def done(results: tuple[Result, ...]) -> None:
            if fault:
                self._conditions.counters[f"answer lost: {verb.value}"] += 1
            if fault == "cut_after":
                self._link.drop()
                self._back(self._hear, answer, (Lost(),))
            elif fault != "silence":
                self._back(self._hear, answer, results)

        self._link.submit_all([(query.sql, query.parameters) for query in queries], done)
        if self._gone_early:
            self._link.drop()

    def _close_arrives(self) -> None:
        if self._sending:
            self._gone_early = True
        else:
            self._link.drop()

    _gone_early = False

    def _server_hung_up(self) -> None:
        self._back(self._die, Lost())

    def _back(self, callback: Callable[..., None], *arguments: Any) -> None:
        """The way back to the agent's process."""

        def deliver() -> None:
            self._loop.call_soon(callback, *arguments, context=self._context)

        self._after_latency(deliver)

    # -- back in the agent's process

    def _hear(self, answer: asyncio.Future[tuple[Result, ...]], results: tuple[Result, ...]) -> None:
        if self.dead:
            return
        if (
            isinstance(results[-1], Lost) or self._answer is not answer
        ):  # lost, or nobody waits for it any more
            self._die(*results)
        elif not answer.done():
            answer.set_result(results)
