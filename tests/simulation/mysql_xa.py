"""XA of the simulation's MySQL: the states of a branch, and every verb in every state, as both engines
have it.

MySQL detaches a branch when it is prepared: from then on anybody may finish it, and the session is free.
MariaDB keeps it in its session until that ends; before, others are told 1397. Where a verb has to become
durable, its effect comes later (mysql_connection.py); a branch whose end is under way is `busy`: on MySQL
others wait for it, on MariaDB they are told 1397 at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from dtp import Xid
from participant_agent.core.effects import Ok, ServerError
from participant_agent.core.engine import Engine
from tests.simulation.mysql_steps import Blocked, Later, Step
from tests.simulation.mysql_tables import Transaction

if TYPE_CHECKING:
    from tests.simulation.mysql import Server
    from tests.simulation.mysql_connection import Connection
    from tests.simulation.mysql_locks import RowLock

VERB = re.compile(
    r"XA (START|BEGIN|END|PREPARE|COMMIT|ROLLBACK) "
    r"X'([0-9a-fA-F]*)'(?:,X'([0-9a-fA-F]*)'(?:,(\d+))?)?(?: ([A-Z ]+))?"
)
_DONE = Ok()
_NOTA = ServerError(1397, "XAER_NOTA: Unknown XID")
_INVAL = ServerError(1398, "XAER_INVAL: Invalid arguments (or unsupported command)")
_OUTSIDE = ServerError(1400, "XAER_OUTSIDE: Some work is done outside global transaction")
_DUPID = ServerError(1440, "XAER_DUPID: The XID already exists")
_RBROLLBACK = ServerError(1402, "XA_RBROLLBACK: Transaction branch was rolled back")
RBDEADLOCK = ServerError(1614, "XA_RBDEADLOCK: Transaction branch was rolled back: deadlock was detected")


class State(Enum):
    """Where a branch is; the value is the server's word for it."""

    ACTIVE = "ACTIVE"
    IDLE = "IDLE"
    PREPARED = "PREPARED"
    ROLLBACK_ONLY = "ROLLBACK ONLY"


class Branch:
    """A branch.

    Attributes:
        owner: the session that has it; None where it has none.
        error: why the server has rolled it back already, told to whoever asks.
        busy: the session that is just ending it.
        queue: sessions that wait for that (MySQL).
    """

    def __init__(self, server: Server, xid: Xid, owner: Connection, transaction: Transaction) -> None:
        self._server = server
        self.xid = xid
        self.name = (xid.gtrid, xid.bqual)
        self.state = State.ACTIVE
        self.owner: Connection | None = owner
        self.transaction = transaction
        self.error: ServerError | None = None
        self.busy: Connection | None = None
        self.queue: list[tuple[Connection, object]] = []

    def is_named(self, xid: Xid) -> bool:
        """MariaDB does not look at the formatID."""
        return self.xid == xid or (
            self._server.engine is Engine.MARIADB and self.name == (xid.gtrid, xid.bqual)
        )

    def rolled_back_already(self) -> ServerError | None:
        """The error of a branch that the server has rolled back; from now on it is ROLLBACK ONLY."""
        if self.error is not None:
            self.state = State.ROLLBACK_ONLY
        return self.error

    def refuses(self) -> ServerError:
        """1399 with the state."""
        return rmfail(self.state.value)

    def prepared(self) -> None:
        """It is prepared: MySQL detaches it, and both give back what a prepared branch does not lock."""
        server, transaction, owner = self._server, self.transaction, self.owner
        assert owner is not None
        self.state = State.PREPARED
        if server.engine is Engine.MYSQL:
            transaction.owner = self.owner = None
            owner.branch = owner.transaction = None
            if not transaction.changed:
                server.locks.release(transaction)
        else:
            server.locks.release(transaction, keep=lambda lock, exclusive: exclusive)
        if transaction.changed:
            server.flushed()

    def session_ended(self) -> None:
        """The session is gone: what is prepared stays."""
        if self.state is not State.PREPARED:
            self.forget()
            self._server.roll_back(self.transaction)
            return
        self.owner = self.transaction.owner = None
        if not self.transaction.changed:  # MariaDB: the engine knows nothing of it
            self.error = None if self.transaction.marked else _RBROLLBACK
            self._server.roll_back(self.transaction)

    def orphan(self) -> None:
        """The server was started anew and has found the branch prepared."""
        self.state = State.PREPARED
        self.owner = self.transaction.owner = self.busy = None
        self.error = None
        self.queue.clear()

    def keeps_after_restart(self, lock: RowLock, exclusive: bool) -> bool:
        """After a restart only the rows that were changed are locked."""
        return lock.where in {(table.name, key) for table, key in self.transaction.rows}

    def forget(self) -> None:
        """The XID is free again."""
        self._server.branches.pop(self.name, None)
        if self.owner is not None and self.owner.branch is self:
            self.owner.branch = self.owner.transaction = None

    def not_busy(self) -> None:
        """What was under way is over: who waited goes on."""
        self.busy = None
        waiting, self.queue = self.queue, []
        for connection, begun in waiting:
            self._server.soon(connection.try_again, begun)


def rmfail(state: str) -> ServerError:
    """1399."""
    return ServerError(
        1399, f"XAER_RMFAIL: The command cannot be executed when global transaction is in the  {state} state"
    )


def verb(connection: Connection, sql: str) -> Callable[[], Step]:
    """An XA statement, but XA RECOVER."""
    found = VERB.fullmatch(sql)
    if found is None:
        return lambda: ServerError(1064, "You have an error in your SQL syntax")
    name, gtrid, bqual, format_id, option = found.groups()
    xid = Xid(int(format_id or 1), bytes.fromhex(gtrid), bytes.fromhex(bqual or ""))
    return lambda: _VERBS[name](connection, xid, option or "")


def _start(connection: Connection, xid: Xid, option: str) -> Step:
    branch, server = connection.branch, connection.server
    if branch is not None and branch.state is State.IDLE and option == "RESUME":
        if not branch.is_named(xid):
            return _NOTA
        branch.state = State.ACTIVE
        return _DONE
    if option or (server.engine is Engine.MARIADB and not xid.gtrid):
        return _INVAL
    if branch is not None:
        return branch.refuses()
    if connection.transaction is not None:
        return _OUTSIDE
    if (xid.gtrid, xid.bqual) in server.branches:
        return _DUPID
    connection.branch = Branch(server, xid, connection, connection.begin())
    server.branches[connection.branch.name] = connection.branch
    return _DONE


def _end(connection: Connection, xid: Xid, option: str) -> Step:
    branch = connection.branch
    if option:
        return _INVAL
    mysql = connection.server.engine is Engine.MYSQL
    if branch is None:
        return rmfail("NON-EXISTING")
    if branch.state is not State.ACTIVE and not (mysql and branch.error is not None):
        return branch.refuses()
    if not branch.is_named(xid):
        return _NOTA
    error = branch.rolled_back_already()
    if error is not None:
        return error
    branch.state = State.IDLE
    return _DONE


def _prepare(connection: Connection, xid: Xid, option: str) -> Step:
    branch, server = connection.branch, connection.server
    if branch is None or branch.state is not State.IDLE:
        return branch.refuses() if branch is not None else rmfail("NON-EXISTING")
    if not branch.is_named(xid):
        return _NOTA

    def effect() -> Ok:
        branch.prepared()
        return _DONE

    def interrupted() -> None:
        branch.forget()
        server.roll_back(branch.transaction)

    return Later("prepare", effect, interrupted, flushes=branch.transaction.changed)


def _commit(connection: Connection, xid: Xid, option: str) -> Step:
    branch, server = connection.branch, connection.server
    one_phase = option == "ONE PHASE"
    if branch is None or not branch.is_named(xid):
        return _finish_detached(connection, xid, True, one_phase)
    error = branch.rolled_back_already()
    if error is not None or branch.state is State.ROLLBACK_ONLY:
        branch.forget()
        server.roll_back(branch.transaction)
        return error or _RBROLLBACK
    if branch.state is State.IDLE and one_phase:
        return _end_branch(connection, branch, "one_phase", commit=True)
    if branch.state is State.PREPARED:  # MariaDB
        return _INVAL if one_phase else _end_branch(connection, branch, "commit", commit=True)
    return branch.refuses()


def _rollback(connection: Connection, xid: Xid, option: str) -> Step:
    branch = connection.branch
    if branch is None or not branch.is_named(xid):
        return _finish_detached(connection, xid, False, False)
    if branch.state is State.ACTIVE:
        return branch.refuses()
    if branch.state is State.PREPARED:
        return _end_branch(connection, branch, "rollback", commit=False)
    branch.forget()
    connection.server.roll_back(branch.transaction)
    return _DONE


def _finish_detached(connection: Connection, xid: Xid, commit: bool, one_phase: bool) -> Step:
    """XA COMMIT or XA ROLLBACK of a branch that is not the session's own."""
    server, mysql = connection.server, connection.server.engine is Engine.MYSQL
    if mysql and connection.branch is not None:
        return connection.branch.refuses()
    if connection.transaction is not None:
        return rmfail("NON-EXISTING") if mysql else _OUTSIDE
    if one_phase and not mysql:
        return _INVAL
    branch = server.branches.get((xid.gtrid, xid.bqual))
    if branch is None or branch.state is not State.PREPARED or branch.owner is not None:
        return _NOTA
    if not branch.is_named(xid):
        return _NOTA
    if branch.busy is not None:
        return _wait_for(branch, connection) if mysql else _NOTA
    if branch.error is not None:
        branch.forget()
        return branch.error
    return _end_branch(connection, branch, "commit" if commit else "rollback", commit)


def _wait_for(branch: Branch, connection: Connection) -> Step:
    branch.queue.append((connection, connection.begun))
    raise Blocked(for_row=False)


def _end_branch(connection: Connection, branch: Branch, name: str, commit: bool) -> Step:
    """The end of a branch that may be ended, once it is durable."""
    server = connection.server
    branch.busy = connection

    def effect() -> Ok:
        branch.forget()
        if not commit:
            server.remember_rollback(branch)
            server.roll_back(branch.transaction)
        elif name == "one_phase":
            server.commit_one_phase(branch)
        else:
            server.commit(branch.transaction)
        branch.not_busy()
        return _DONE

    def interrupted() -> None:
        if name == "one_phase":
            branch.forget()
            server.roll_back(branch.transaction)
        branch.not_busy()

    return Later(name, effect, interrupted, flushes=branch.transaction.changed)


def finish_from_outside(server: Server, xid: Xid, commit: bool) -> Ok | ServerError:
    """XA COMMIT or XA ROLLBACK by an operator's session, in no time."""
    branch = server.branches.get((xid.gtrid, xid.bqual))
    if branch is None or not branch.is_named(xid) or branch.state is not State.PREPARED:
        return _NOTA
    if branch.owner is not None or branch.busy is not None:
        return _NOTA
    branch.forget()
    if branch.error is not None:
        return branch.error
    if commit:
        server.commit(branch.transaction)
    else:
        server.remember_rollback(branch)
        server.roll_back(branch.transaction)
    return _DONE


_VERBS = {
    "START": _start,
    "BEGIN": _start,
    "END": _end,
    "PREPARE": _prepare,
    "COMMIT": _commit,
    "ROLLBACK": _rollback,
}
