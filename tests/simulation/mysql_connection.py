"""A session of the simulation's MySQL: one statement at a time, through the places where it may have to
wait.

A statement is checked and carried out at once, unless
 1. its verb is stalled (mysql.py): then it is parked until the stall is over, or its time or its session
    ends;
 2. another transaction has a row that it needs: then it is begun again when the row is free;
 3. it makes something durable: then it takes a flush's time and has its effect at the end of it. Who
    kills the server in between gets to know later whether it did.
Its client's end does not end it; KILL does, except where a full disk holds it. Of several statements in one
packet the next one begins when the one before has succeeded, and its client's end does not end that either.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from participant_agent.core.effects import Lost, Ok, ServerError
from participant_agent.core.engine import Engine
from tests.simulation import mysql_sql
from tests.simulation.mysql_steps import Answer, Blocked, Deadlock, Done, Later, Step
from tests.simulation.mysql_tables import Transaction
from tests.simulation.mysql_xa import RBDEADLOCK, Branch, State

if TYPE_CHECKING:
    from tests.simulation.mysql import Server


class Connection:
    """One session.

    Attributes:
        id: its number.
        raw: cells are bytes.
        on_lost: called when the server closes the connection.
        transaction: the local one, or the branch's.
        branch: what XA START began and nobody finished; on MariaDB also after XA PREPARE.
    """

    def __init__(self, server: Server, connection_id: int, raw: bool) -> None:
        self.server: Server = server
        self.id: int = connection_id
        self.raw = raw
        self.on_lost: Callable[[], None] | None = None
        self.transaction: Transaction | None = None
        self.branch: Branch | None = None
        self.isolation = "REPEATABLE READ"
        self.sql_mode: str = mysql_sql.DEFAULT_SQL_MODE[server.engine]
        self.row_wait_seconds = 50.0
        self.metadata_wait_seconds = 86400.0
        self.idle_seconds = 0.0  # wait_timeout, where it was set
        self.implicit = False  # the transaction is the statement's own
        self.read_only = False  # the next transaction
        self.handler_writes = 0
        self.locks: set[str] = set()
        self.waits_since = 0.0
        self.alive = True  # as a session of the server
        self._client = True
        self._killed = False
        self._done: Done | None = None
        self._rest: deque[tuple[str, tuple[object, ...]]] = deque()  # of the packet
        self._results: list[Answer] = []
        self._begin: Callable[[], Step] | None = None
        self._later: Later | None = None
        self._timer: asyncio.Handle | None = None
        self._answered_at = 0.0
        self._idle_watch = False
        self._flushing = False
        self._parked = False
        self._waiting = False

    @property
    def begun(self) -> object:
        """The statement that is being executed."""
        return self._begin

    async def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> Answer:
        """Run one statement, without any network."""
        answer = self.server.loop.create_future()
        self.submit(sql, parameters, lambda result: None if answer.done() else answer.set_result(result))
        result: Answer = await answer
        return result

    def submit(self, sql: str, parameters: tuple[object, ...], done: Callable[[Answer], None]) -> None:
        """One statement arrives; as `submit_all`."""
        self.submit_all([(sql, parameters)], lambda results: done(results[-1]))

    def submit_all(self, statements: Iterable[tuple[str, tuple[object, ...]]], done: Done) -> None:
        """A packet arrives; `done` hears the answers up to the first that is not Ok, or Lost, or nothing
        where the client is gone."""
        if not self.alive or self._killed:
            done((Lost(),))
            return
        assert self._begin is None, "two statements at once"
        assert not self._rest, "two packets at once"
        self._done = done
        self._results = []
        self._rest.extend(statements)
        self._next()

    def _next(self) -> None:
        """The packet's next statement, unless the session was killed before it began."""
        if self._rest:
            self.server.queries += 1
            self._begin = mysql_sql.statement(self, *self._rest.popleft())
            self._attempt(self._begin)

    def _attempt(self, step: Callable[[], Step]) -> None:
        try:
            result = step()
        except Blocked as blocked:
            self._waiting, self.waits_since = True, self.server.loop.time()
            seconds = self.row_wait_seconds if blocked.for_row else self.metadata_wait_seconds
            self._timer = self.server.later(seconds, self._wait_over)
            return
        except Deadlock:
            result = self._roll_back_deadlocked()
        if isinstance(result, Later):
            self._later = result
            self._pass_stall()
        else:
            self._answer(result)

    def _pass_stall(self) -> None:
        server, later = self.server, self._later
        assert later is not None
        if later.verb in server.stalled:
            self._parked = True
            server.park(self)
            if not server.stalled_by_disk:
                self._timer = server.later(self.metadata_wait_seconds, self._metadata_wait_over)
        elif later.flushes:
            self._flushing = True
            self._timer = server.later(server.flush_seconds(), self._take_effect)
        else:
            self._take_effect()

    def go_on(self) -> None:
        """The stall is over."""
        self._parked = False
        self._stop_timer()
        self._pass_stall()

    def lock_granted(self) -> None:
        """A row that the statement waits for is its transaction's now."""
        if self._waiting:
            self.server.soon(self.try_again, self._begin)

    def try_again(self, begun: object) -> None:
        """What the statement waited for has changed: it is begun anew, if it still waits."""
        if self._waiting and begun is self._begin and self._begin is not None:
            self._waiting = False
            self._stop_timer()
            self._attempt(self._begin)

    def _take_effect(self) -> None:
        later, self._later = self._later, None
        assert later is not None
        self._flushing = False
        self._attempt(later.effect)

    def _answer(self, result: Answer) -> None:
        self._begin = self._later = None
        self._stop_timer()
        self._results.append(result)
        if self._rest and isinstance(result, Ok) and not self._killed:
            self.server.soon(self._next)
            return
        self._rest.clear()
        done, self._done = self._done, None
        if not self._client or self._killed:
            self._begin_to_end()
        if self.idle_seconds and not self._killed:
            self._watch_idleness()
        if done is not None and self._client and not self._killed:
            done(tuple(self._results))

    def _watch_idleness(self) -> None:
        self._answered_at = self.server.loop.time()
        if not self._idle_watch:
            self._idle_watch = True
            self.server.later(self.idle_seconds, self._has_been_idle)

    def _has_been_idle(self) -> None:
        """Nobody has asked for wait_timeout seconds: the server closes the connection."""
        self._idle_watch = False
        left = self._answered_at + self.idle_seconds - self.server.loop.time()
        if not self.alive or self._killed:
            return
        if self._begin is None and left <= 0:
            self.be_killed()
        else:
            self._idle_watch = True
            self.server.later(left if left > 0 else self.idle_seconds, self._has_been_idle)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- transactions

    def begin(self) -> Transaction:
        """Begin a transaction."""
        self.transaction = Transaction(self, self.read_only)
        self.read_only = False
        return self.transaction

    def end_statement(self, failed: bool) -> None:
        """The statement is over: with it a transaction of its own."""
        if self.implicit and self.transaction is not None:
            transaction, self.transaction, self.implicit = self.transaction, None, False
            if failed:
                self.server.roll_back(transaction)
            else:
                self.server.commit(transaction)

    def _roll_back_deadlocked(self) -> ServerError:
        """The session's transaction is the victim of a deadlock; in a branch, that is what is left of it."""
        assert self.transaction is not None
        self.server.roll_back(self.transaction)
        if self.branch is None:
            self.transaction, self.implicit = None, False
        else:
            self.branch.error = RBDEADLOCK
            if self.server.engine is Engine.MARIADB:
                self.branch.state = State.ROLLBACK_ONLY
        return ServerError(1213, "Deadlock found when trying to get lock; try restarting transaction")

    # -- waits that end without success

    def _wait_over(self) -> None:
        self._timer = None
        if self._waiting:
            self._stop_waiting(ServerError(1205, "Lock wait timeout exceeded; try restarting transaction"))

    def _stop_waiting(self, error: ServerError) -> None:
        self._waiting = False
        if self.transaction is not None:
            self.server.locks.give_up(self.transaction)
        self.end_statement(failed=True)
        self._answer(error)

    def deadlocked(self) -> None:
        """Another session's wait closed a circle, and this session's transaction has to go."""
        self._waiting = False
        self._stop_timer()
        self._answer(self._roll_back_deadlocked())

    def _metadata_wait_over(self) -> None:
        self._timer = None
        if self._parked:
            self._leave_stall(ServerError(1205, "Lock wait timeout exceeded; try restarting transaction"))

    def _leave_stall(self, error: ServerError) -> None:
        later = self._later
        assert later is not None
        self._parked = False
        self.server.unpark(self)
        later.interrupted()
        self._answer(error)

    # -- ends

    def drop(self) -> None:
        """The client is gone. What is being executed goes on; nobody hears how it ends."""
        if self._client and self.alive:
            self._client = False
            self._done = self.on_lost = None
            if self._begin is None and not self._rest and not self._killed:
                self._begin_to_end()

    def be_killed(self) -> None:
        """KILL: the connection is closed at once, the session ends when it can."""
        if not self._killed:
            self._killed = True
            self._tell_client()
            between = bool(self._rest) and self._begin is None
            self._rest.clear()
            if self._begin is None and (self._client or between):
                self._begin_to_end()
            else:
                self.be_interrupted()

    def be_interrupted(self) -> None:
        """KILL QUERY: waits end, but not for a full disk."""
        if self._waiting:
            self._stop_waiting(ServerError(1317, "Query execution was interrupted"))
        elif self._parked and not self.server.stalled_by_disk:
            self._leave_stall(ServerError(1317, "Query execution was interrupted"))

    def _tell_client(self) -> None:
        done, self._done = self._done, None
        lost, self.on_lost = self.on_lost, None
        if self._client:
            if done is not None:
                done((Lost(),))
            elif lost is not None:
                lost()

    def _begin_to_end(self) -> None:
        if self.alive:
            self.server.later(self.server.end_seconds(), self._end)

    def _end(self) -> None:
        """The session's thread ends: first its transaction, then its user locks."""
        if not self.alive:
            return
        self.alive = False
        if self.branch is not None:
            self.branch.session_ended()
        elif self.transaction is not None:
            self.server.roll_back(self.transaction)
        self.branch = self.transaction = None
        for lock in self.locks:
            del self.server.user_locks[lock]
        self.locks.clear()
        del self.server.connections[self.id]

    def finish_in_flight(self) -> None:
        """The server stops cleanly: what is being flushed is done."""
        if self._flushing:
            self._stop_timer()
            self._take_effect()

    def decide_in_flight(self) -> None:
        """The server is killed: what was being flushed happened, or did not."""
        held_by_disk = self._parked and self.server.stalled_by_disk
        if (self._flushing or held_by_disk) and self._later is not None and self.server.random.random() < 0.5:
            self._stop_timer()
            later, self._later = self._later, None
            later.effect()

    def lose_server(self) -> None:
        """The server is gone."""
        self.alive = False
        self._stop_timer()
        self._waiting = self._parked = self._flushing = False
        transaction = self.transaction
        if transaction is not None and self.branch is None:
            self.server.roll_back(transaction)
        self.branch = self.transaction = self._begin = self._later = None
        self._rest.clear()
        self._tell_client()
