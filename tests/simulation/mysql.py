"""The twin of a MySQL or MariaDB server: sessions, transactions, XA, locks, and how it dies.

It follows docs/agent.md and is compared with the real servers by tests/fidelity. Fault model:
 1. kill: every session is lost; what is committed or prepared and changed something survives. A PREPARE,
    COMMIT or ROLLBACK that was being flushed has happened or has not. Prepared branches without changes
    vanish. On MariaDB a rollback or a commit in one phase that was answered, and after which nothing was
    flushed, may be undone: the branch is prepared again.
 2. a clean restart: as kill, without its doubts.
 3. stall: verbs hang. A full disk holds them until there is room again, and KILL does not end them; a
    global read lock lets them wait for lock_wait_timeout, and KILL ends them. Their client may be gone
    when they go on.
 4. a client that vanished: what its session is doing goes on; then ACTIVE and IDLE are rolled back.
 5. sessions take a while to end; their user locks are held until then.
mysql_xa.py has the verbs, mysql_sql.py the other statements, mysql_locks.py the row locks, mysql_tables.py
the rows. Every callback runs outside of any simulated process.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from dtp import Xid
from participant_agent.core.effects import Ok, ServerError
from participant_agent.core.engine import Engine
from participant_agent.session import ConnectError
from tests.simulation import mysql_xa
from tests.simulation.mysql_connection import Connection
from tests.simulation.mysql_locks import Locks, RowLock
from tests.simulation.mysql_steps import Answer
from tests.simulation.mysql_tables import SHAPES, Key, Row, Table, Transaction
from tests.simulation.mysql_waits import Views
from tests.simulation.mysql_xa import Branch, State

_UNFLUSHED_SECONDS = 1.0


@dataclass
class Timing:
    """How long things take, in seconds, and how often rare things happen.

    Attributes:
        flush: shortest and longest time of what is made durable.
        end: the same for the end of a session whose client is gone.
        slow_end: the share of sessions that take up to `longest_end` (a large transaction is rolled back).
        returns: the chance that an unflushed end of a branch is undone by a kill (MariaDB).
    """

    flush: tuple[float, float] = (0.0001, 0.001)
    end: tuple[float, float] = (0.0001, 0.002)
    slow_end: float = 0.02
    longest_end: float = 1.0
    returns: float = 0.3


INSTANT = Timing((0.0, 0.0), (0.0, 0.0), 0.0, 0.0, 0.0)


@dataclass
class _Unflushed:
    """An end of a branch that MariaDB has answered and not flushed.

    Attributes:
        rows: (table, key, what it was before, what the branch makes of it).
    """

    when: float
    branch: Branch
    rows: list[tuple[Table, Key, Row | None, Row | None]]


class Server:
    """One server.

    Attributes:
        running: it accepts connections.
        branches: (gtrid, bqual) -> every branch that it knows. The formatID is no part of a name.
        stalled: verbs that hang: prepare, commit, rollback, one_phase, autocommit, write.
        stalled_by_disk: they hang for good, KILL or not.
    """

    engine: Engine

    def __init__(self, engine: Engine, name: str, random: Random, timing: Timing | None = None) -> None:
        self.engine = engine
        self.name = name
        self.random = random
        self.timing = timing or Timing()
        self.running = True
        self.tables: dict[str, Table] = {name: Table(name) for name in ("account", "transfer")}
        self.branches: dict[tuple[bytes, bytes], Branch] = {}
        self.connections: dict[int, Connection] = {}
        self.user_locks: dict[str, Connection] = {}
        self.stalled: frozenset[str] = frozenset()
        self.stalled_by_disk = False
        self.locks = Locks(self._victim, self._granted)
        self.views = Views(self)
        self.context = contextvars.Context()
        self.commits = 0
        self.queries = 0
        self._parked: list[Connection] = []
        self._unflushed: list[_Unflushed] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._first_id = 8 if engine is Engine.MYSQL else 3
        self._next_id = self._first_id
        self._started = 0.0

    # -- sessions

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the simulation runs on."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return self.loop.time() - self._started

    def connect(self, raw: bool = False) -> Connection:
        """A new session; `raw`: all cells are bytes. Raises ConnectError."""
        if not self.running:
            raise ConnectError(2003, f"Can't connect to server on {self.name!r}")
        connection = Connection(self, self._next_id, raw)
        self._next_id += 1
        self.connections[connection.id] = connection
        return connection

    def later(self, seconds: float, callback: Callable[..., None], *arguments: Any) -> asyncio.Handle | None:
        """Call back, at once where it takes no time."""
        if seconds <= 0:
            callback(*arguments)
            return None
        return self.loop.call_later(seconds, callback, *arguments, context=self.context)

    def soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Call back after what runs now."""
        self.loop.call_soon(callback, *arguments, context=self.context)

    def flush_seconds(self) -> float:
        """How long a flush takes this time."""
        low, high = self.timing.flush
        return self.random.uniform(low, high) if high else 0.0

    def end_seconds(self) -> float:
        """How long a session takes to end this time."""
        low, high = self.timing.end
        if self.timing.slow_end and self.random.random() < self.timing.slow_end:
            high = self.timing.longest_end
        return self.random.uniform(low, high) if high else 0.0

    def kill_session(self, connection_id: int, query_only: bool = False) -> Ok | ServerError:
        """KILL, or KILL QUERY."""
        connection = self.connections.get(connection_id)
        if connection is None:
            return ServerError(1094, f"Unknown thread id: {connection_id}")
        if query_only:
            connection.be_interrupted()
        else:
            connection.be_killed()
        return Ok()

    def _victim(self, transaction: Transaction) -> None:
        assert transaction.owner is not None
        transaction.owner.deadlocked()

    def _granted(self, transaction: Transaction) -> None:
        if transaction.owner is not None:
            transaction.owner.lock_granted()

    # -- transactions

    def commit(self, transaction: Transaction) -> None:
        """Commit for good."""
        if transaction.undo:
            self.commits += 1
            transaction.apply(self.commits)
            self.flushed()
        self.locks.release(transaction)

    def roll_back(self, transaction: Transaction) -> None:
        """Undo everything."""
        transaction.undo_to(0)
        transaction.savepoints.clear()
        self.locks.release(transaction)

    def release_undone(self, transaction: Transaction, everything: bool) -> None:
        """After a part was undone: a row that is not there any more is not locked."""

        def there(lock: RowLock, exclusive: bool) -> bool:
            name, key = lock.where
            table = self.tables[name]
            return not everything and (table.newest(key) is not None or key in table.pending)

        self.locks.release(transaction, keep=there)

    def flushed(self) -> None:
        """Something was made durable, and everything before it, too."""
        self._unflushed.clear()

    def remember_rollback(self, branch: Branch) -> None:
        """A prepared branch is going to be rolled back: MariaDB does not flush that."""
        if self.engine is Engine.MARIADB and branch.transaction.changed:
            self._unflushed.append(self._end_of(branch))

    def commit_one_phase(self, branch: Branch) -> None:
        """Commit. MariaDB flushes only that the branch is prepared, and with it what was before."""
        end = self._end_of(branch)
        self.commit(branch.transaction)
        if self.engine is Engine.MARIADB and end.rows:
            self._unflushed.append(end)

    def _end_of(self, branch: Branch) -> _Unflushed:
        rows = [
            (table, key, table.rows.get(key), table.pending[key][1])
            for table, key in branch.transaction.rows
            if key in table.pending
        ]
        return _Unflushed(self.loop.time(), branch, rows)

    # -- faults

    def stall(self, *verbs: str, disk_full: bool = True) -> None:
        """Let verbs hang from now on; see the fault model."""
        self.stalled, self.stalled_by_disk = frozenset(verbs), disk_full

    def release(self) -> None:
        """What hangs goes on."""
        self.stalled = frozenset()
        parked, self._parked = self._parked, []
        for connection in parked:
            connection.go_on()

    def park(self, connection: Connection) -> None:
        """The connection's statement hangs."""
        self._parked.append(connection)

    def unpark(self, connection: Connection) -> None:
        """It does not hang any more."""
        self._parked.remove(connection)

    def kill(self) -> None:
        """kill -9."""
        if self.running:
            for connection in list(self.connections.values()):
                connection.decide_in_flight()
            self._crash()
            self._undo_unflushed()
            self._unflushed.clear()

    def stop(self) -> None:
        """A clean stop."""
        if self.running:
            for connection in list(self.connections.values()):
                connection.finish_in_flight()
            self._crash()
            self._unflushed.clear()

    def start(self) -> None:
        """Start it again."""
        if not self.running:
            self.running = True
            self._started = self.loop.time()

    def _crash(self) -> None:
        self.running = False
        connections = list(self.connections.values())
        self.connections.clear()
        self.user_locks.clear()
        self.stalled = frozenset()
        self._parked.clear()
        self._next_id = self._first_id
        for connection in connections:
            connection.lose_server()
        for name, branch in list(self.branches.items()):
            if branch.state is State.PREPARED and branch.transaction.changed:
                branch.orphan()
                self.locks.release(branch.transaction, keep=branch.keeps_after_restart)
            else:
                del self.branches[name]
                self.roll_back(branch.transaction)

    def _undo_unflushed(self) -> None:
        """The log ends somewhere: what it has not is undone, and those branches are prepared again."""
        lost = False
        for end in self._unflushed:
            lost = lost or self.random.random() < self.timing.returns
            recent = self.loop.time() - end.when < _UNFLUSHED_SECONDS
            if not lost or not recent or end.branch.name in self.branches:
                continue
            transaction = end.branch.transaction
            for table, key, before, after in end.rows:
                if table.rows.get(key) != before:
                    table.commit(key, before, self.commits)
                self.locks.take(transaction, table, key)
                transaction.write(table, key, after)
            end.branch.orphan()
            self.branches[end.branch.name] = end.branch

    # -- what oracles and operators do, beside all sessions

    def load(self, table: str, rows: Iterable[Row]) -> None:
        """Rows that a table has from the beginning."""
        self.table(table).load(rows)

    def table(self, name: str) -> Table:
        """A table, created where it is missing."""
        found = self.tables.get(name)
        if found is None:
            assert name.rpartition(".")[2] in SHAPES, f"the simulation has no table {name!r}"
            found = self.tables[name] = Table(name)
        return found

    def committed_rows(self, table: str) -> list[Row]:
        """The committed rows, in the order of their keys; none where there is no such table."""
        found = self.tables.get(table)
        return [found.rows[key] for key in sorted(found.rows, key=repr)] if found is not None else []

    def prepared_xids(self) -> list[Xid]:
        """What XA RECOVER lists."""
        return [b.xid for b in self.branches.values() if b.state is State.PREPARED]

    def root_commit(self, xid: Xid) -> Answer:
        """XA COMMIT by an operator, done in no time. On MariaDB the owner has to be gone."""
        return mysql_xa.finish_from_outside(self, xid, commit=True)

    def root_rollback(self, xid: Xid) -> Answer:
        """XA ROLLBACK by an operator."""
        return mysql_xa.finish_from_outside(self, xid, commit=False)

    def locked_rows(self) -> list[tuple[str, tuple[object, ...], int]]:
        """(table, key, connection id or 0) of each row lock that is held."""
        return [
            (table, key, holder.owner.id if holder.owner is not None else 0)
            for (table, key), holder in self.locks.held()
        ]
