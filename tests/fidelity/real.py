"""The real server's side of a sequence. The twin's outcome is known: it says what is worth waiting for."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace

from deploy.private_servers import PrivateServer
from dtp import Xid
from participant_agent.core.effects import Ok, Query, Result, text
from participant_agent.core.engine import Engine
from participant_agent.session import Session, Target
from tests.fidelity.sequences import Kind, Sequence
from tests.fidelity.steps import (
    ACCOUNTS,
    BALANCE,
    BLOCKED,
    OTHER_TRANSFERS,
    TABLES,
    Outcome,
    Step,
    answer_of,
    names,
)

_ANSWER_SECONDS = 20.0
_STILL_BLOCKED_SECONDS = 0.01
_DATABASE = "fidelity"


class RealSide:
    """A real server and its sessions."""

    def __init__(self, server: PrivateServer) -> None:
        self._server = server
        self._engine = Engine(server.engine)
        self._target = Target(
            {"user": "root", "unix_socket": str(server.socket), "database": _DATABASE}, (), 60, 1000, 10**6
        )
        self._sessions: dict[str, Session] = {}
        self._opened: dict[int, Session] = {}
        self._running: dict[str, asyncio.Task[Result]] = {}
        self._locks = 0
        self._row_wait_seconds = 50
        self._root: Session | None = None

    async def prepare(self) -> None:
        """Create the tables."""
        self._server.sql(f"CREATE DATABASE {_DATABASE}")
        self._root = await Session.open(replace(self._target, raw=True))
        for sql in TABLES:
            await self._ask(sql)
        await self._ask("INSERT INTO tick VALUES (1, 0)")

    async def begin(self, kind: Kind) -> None:
        """Everything as it was at the beginning."""
        self._row_wait_seconds = 1 if kind.time_outs else 50
        for session in self._opened.values():
            await self._ask(f"KILL {session.connection_id}", may_fail=True)
            await self._until_gone(session)
        self._opened.clear()
        for task in self._running.values():
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._sessions.clear()
        self._running.clear()
        await self._finish_prepared()
        if kind.crashes and self._engine is Engine.MYSQL:
            # It reads the whole last file after a crash, where XIDs with other formatIDs mislead it
            # (docs/agent.md), those of former sequences, too.
            await self._ask("FLUSH BINARY LOGS")
        await self._ask("BEGIN")
        await self._ask("DELETE FROM transfer")
        await self._ask("DELETE FROM account")
        rows = ", ".join(f"('{name}', 0)" for name in OTHER_TRANSFERS)
        await self._ask(f"INSERT INTO transfer (id, amount) VALUES {rows}")
        rows = ", ".join(f"({number}, {BALANCE})" for number in ACCOUNTS)
        await self._ask(f"INSERT INTO account (id, balance) VALUES {rows}")
        await self._ask("COMMIT")

    async def _finish_prepared(self) -> None:
        for xid in await self._prepared():
            await self._ask(f"XA ROLLBACK {xid.sql()}", may_fail=True)
        left = await self._prepared()
        assert not left, left

    async def _ask(self, sql: str, *parameters: object, may_fail: bool = False) -> Ok:
        assert self._root is not None
        answer = await self._root.query(Query(sql, parameters))
        if may_fail and not isinstance(answer, Ok):
            return Ok()
        assert isinstance(answer, Ok), (sql, answer)
        return answer

    async def _prepared(self) -> list[Xid]:
        return self._engine.prepared((await self._ask(self._engine.recover_sql)).rows)

    async def _until_gone(self, session: Session) -> None:
        """Wait until the server's side of a session has ended."""
        while (await self._ask("SELECT IS_USED_LOCK(%s)", session.lock)).rows[0][0] is not None:
            await asyncio.sleep(0.0005)

    async def do(self, step: Step, expected: Outcome) -> Outcome:
        """Do one step."""
        session = self._sessions.get(step.session)
        if step.what == "query":
            assert session is not None
            query = Query(step.sql, step.parameters)
            self._running[step.session] = asyncio.get_running_loop().create_task(session.query(query))
        elif step.what == "open":
            await self._open(step)
        elif step.what == "crash":
            await self._crash()
        elif step.what == "wait":
            pass
        elif session is not None:
            await self._end(step, session)
        return await self._look(expected)

    async def _open(self, step: Step) -> None:
        session = await Session.open(self._target)
        self._sessions[step.session] = self._opened[step.number] = session
        self._locks += 1
        session.lock = f"fidelity.{self._locks}"
        sql = "SELECT GET_LOCK(%s, 0)"
        assert isinstance(await session.query(Query(sql, (session.lock,))), Ok)
        set_up = f"SET SESSION innodb_lock_wait_timeout = {self._row_wait_seconds}"
        assert isinstance(await session.query(Query(set_up)), Ok)

    async def _end(self, step: Step, session: Session) -> None:
        if step.what == "kill_query":
            await self._ask(f"KILL QUERY {session.connection_id}")
            return
        del self._sessions[step.session]
        running = self._running.get(step.session)
        if step.what == "drop":
            session.close()
            if running is not None:
                del self._running[step.session]
                await running
        else:
            await self._ask(f"KILL {session.connection_id}")

    async def _crash(self) -> None:
        # What MariaDB has not flushed comes back: that is not to be compared here.
        await self._ask("UPDATE tick SET at = at + 1")
        assert self._root is not None
        self._server.kill()
        self._server.start()
        self._root.close()
        self._sessions.clear()
        self._root = await Session.open(replace(self._target, raw=True))

    async def _look(self, expected: Outcome) -> Outcome:
        """What is known now: answers that the twin has are waited for."""
        answers = {}
        for name, answer in expected.answers.items():
            if answer != BLOCKED:
                with contextlib.suppress(TimeoutError, KeyError):
                    await asyncio.wait_for(asyncio.shield(self._running[name]), _ANSWER_SECONDS)
        for number in expected.ended:
            await self._until_gone(self._opened.pop(number))
        if BLOCKED in expected.answers.values():
            await asyncio.sleep(_STILL_BLOCKED_SECONDS)
        for name, task in list(self._running.items()):
            if task.done():
                answers[name] = answer_of(task.result())
                del self._running[name]
            elif name in expected.answers:
                answers[name] = BLOCKED
        return Outcome(
            answers,
            names(await self._prepared()),
            await self._rows("SELECT id, balance FROM account ORDER BY id", int),
            await self._rows("SELECT id, amount FROM transfer ORDER BY id", str),
        )

    async def _rows(self, sql: str, kind: type) -> tuple[tuple[object, ...], ...]:
        rows = (await self._ask(sql)).rows
        return tuple((kind(text(row[0])), int(text(row[1]))) for row in rows)

    async def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            session.close()
        if self._root is not None:
            self._root.close()


@dataclass
class Disagreement:
    """At which step, and how it came about."""

    step: int
    story: str


async def compare(real: RealSide, sequence: Sequence) -> Disagreement | None:
    """Replay a sequence; the first disagreement, None where there is none."""
    await real.begin(sequence.kind)
    lines = []
    for step, expected in zip(sequence.steps, sequence.outcomes, strict=True):
        found = await real.do(step, expected)
        lines.append(f"{step}  ->  {expected.answers.get(step.session, '')}")
        if found != expected:
            story = "\n".join([*lines, f"the twin:   {expected}", f"the server: {found}"])
            return Disagreement(len(lines) - 1, story)
    return None
