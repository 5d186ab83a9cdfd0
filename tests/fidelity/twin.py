"""The twin's side of a sequence: what it says to each step."""

from __future__ import annotations

import asyncio
from random import Random

from participant_agent.core.effects import Result
from participant_agent.core.engine import Engine
from tests.fidelity.steps import (
    ACCOUNTS,
    BALANCE,
    BLOCKED,
    OTHER_TRANSFERS,
    Outcome,
    Step,
    answer_of,
    names,
)
from tests.simulation.loop import SimulatedLoop
from tests.simulation.mysql import INSTANT, Server
from tests.simulation.mysql_connection import Connection

_SETTLE_SECONDS = 0.001


class TwinSide:
    """A server of the simulation and its sessions."""

    def __init__(self, engine: Engine, row_wait_seconds: int) -> None:
        self._loop = SimulatedLoop()
        self._row_wait_seconds = row_wait_seconds
        self.server = Server(engine, "twin", Random(0), INSTANT)
        self.server.load("account", [(number, BALANCE) for number in ACCOUNTS])
        self.server.load("transfer", [(name, 0) for name in OTHER_TRANSFERS])
        self.sessions: dict[str, Connection] = {}
        self.blocked: set[str] = set()
        self._answers: dict[str, Result] = {}
        self._opened: dict[int, Connection] = {}

    def do(self, step: Step) -> Outcome:
        """Do one step."""
        return self._loop.run_until_complete(self._do(step))

    async def _do(self, step: Step) -> Outcome:
        if step.what == "query":
            self.blocked.add(step.session)
            self.sessions[step.session].submit(
                step.sql, step.parameters, lambda result: self._hear(step.session, result)
            )
        elif step.what == "drop":
            self.sessions.pop(step.session).drop()
            self.blocked.discard(step.session)
        elif step.what == "open":
            connection = self.sessions[step.session] = self.server.connect()
            self._opened[step.number] = connection
            connection.row_wait_seconds = self._row_wait_seconds
        elif step.what == "kill":
            self.server.kill_session(self.sessions.pop(step.session).id)
        elif step.what == "kill_query":
            self.server.kill_session(self.sessions[step.session].id, query_only=True)
        elif step.what == "crash":
            self.server.kill()
            self.server.start()
            self.sessions.clear()
        else:
            await asyncio.sleep(self._row_wait_seconds + 1)
        await asyncio.sleep(_SETTLE_SECONDS)
        return self._look(step)

    def _hear(self, session: str, result: Result) -> None:
        self._answers[session] = result
        self.blocked.discard(session)

    def _look(self, step: Step) -> Outcome:
        answers = {session: answer_of(result) for session, result in self._answers.items()}
        self._answers.clear()
        if step.what == "query" and step.session not in answers:
            answers[step.session] = BLOCKED
        server = self.server
        return Outcome(
            answers,
            names(server.prepared_xids()),
            tuple(server.committed_rows("account")),
            tuple(server.committed_rows("transfer")),
            self._ended(),
        )

    def _ended(self) -> tuple[int, ...]:
        ended = tuple(number for number, session in self._opened.items() if not session.alive)
        for number in ended:
            del self._opened[number]
        return ended

    def close(self) -> None:
        self._loop.close()
