"""What the simulation's MySQL says of itself: variables, user locks, prepared branches, waiting sessions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from participant_agent.core.effects import Ok, ServerError
from participant_agent.core.engine import Engine
from tests.simulation.mysql_dml import cell, plain, refusal
from tests.simulation.mysql_steps import Step
from tests.simulation.mysql_tables import INTEGER, TEXT
from tests.simulation.mysql_xa import State

if TYPE_CHECKING:
    from tests.simulation.mysql_connection import Connection

Parameters: TypeAlias = tuple[object, ...]
Plan: TypeAlias = "Callable[[Connection, Parameters], Step]"

_VERSIONS = {Engine.MYSQL: "9.7.4", Engine.MARIADB: "10.11.19-MariaDB"}
_GLOBALS: dict[str, object] = {
    "innodb_flush_log_at_trx_commit": 1,
    "read_only": 0,
    "default_storage_engine": "InnoDB",
    "log_bin": 1,
    "sync_binlog": 1,
    "binlog_format": "ROW",
}
_OWN_GLOBALS: dict[Engine, dict[str, object]] = {
    Engine.MYSQL: {"xa_detach_on_prepare": 1, "performance_schema": 1},
    Engine.MARIADB: {"wsrep_on": 0},
}


def plan(sql: str) -> Plan | None:
    """The plan of a question, None where it is none."""
    if sql in _QUESTIONS:
        return _QUESTIONS[sql]
    if sql.startswith("SELECT @@global."):
        return partial(_global, sql.removeprefix("SELECT @@global."))
    for beginning, question in _BEGINNINGS.items():
        if sql.startswith(beginning):
            return partial(question, sql)
    return None


def answer(connection: Connection, *rows: tuple[object, ...]) -> Ok:
    """Rows as the session hands them out."""
    columns = tuple(("", INTEGER if isinstance(one, int) else TEXT) for one in rows[0]) if rows else ()
    cells = tuple(tuple(cell(one, connection.raw) for one in row) for row in rows)
    return Ok(cells, len(rows), columns=columns)


def _global(name: str, connection: Connection, parameters: Parameters) -> Step:
    known = _GLOBALS | _OWN_GLOBALS[connection.server.engine]
    if name not in known:
        return ServerError(1193, f"Unknown system variable '{name}'")
    return answer(connection, (known[name],))


def _identity(engine: Engine, connection: Connection, parameters: Parameters) -> Step:
    if engine is not connection.server.engine:
        return ServerError(1193, "Unknown system variable")
    return answer(connection, (f"identity of {connection.server.name}",))


def _used(connection: Connection, name: object) -> int | None:
    holder = connection.server.user_locks.get(str(name))
    return holder.id if holder is not None else None


def _get_lock(connection: Connection, name: str) -> int:
    holder = connection.server.user_locks.setdefault(name, connection)
    if holder is not connection:
        return 0
    connection.locks.add(name)
    return 1


def _get_and_used(connection: Connection, parameters: Parameters) -> Step:
    wanted, asked = map(plain, parameters)
    got = _get_lock(connection, str(wanted))
    return answer(connection, (got, _used(connection, asked)))


def _has_lock(sql: str, connection: Connection, parameters: Parameters) -> Step:
    holder = _used(connection, sql.split("'")[1])
    return refusal(connection, reads_tables=False) or answer(
        connection, (None if holder is None else int(holder == connection.id),)
    )


def _needs_lock(sql: str, connection: Connection, parameters: Parameters) -> Step:
    if _used(connection, sql.split("'")[1]) == connection.id:
        return refusal(connection, reads_tables=False) or Ok()
    return ServerError(1242, "Subquery returns more than 1 row")


def _slots(sql: str, connection: Connection, parameters: Parameters) -> Step:
    count, prefix, _ = map(plain, parameters)
    found = []
    for name, holder in connection.server.user_locks.items():
        slot = name.removeprefix(str(prefix))
        if slot != name and slot.isdigit() and int(slot) < int(str(count)):
            found.append((int(slot), holder.id))
    return answer(connection, *sorted(found))


def _recover(engine: Engine, connection: Connection, parameters: Parameters) -> Step:
    server = connection.server
    if engine is not server.engine:
        return ServerError(1064, "You have an error in your SQL syntax")
    rows = []
    for branch in server.branches.values():
        if branch.state is State.PREPARED:
            xid, data = branch.xid, branch.xid.gtrid + branch.xid.bqual
            shown: object = "0x" + data.hex().upper() if engine is Engine.MYSQL else data
            if engine is Engine.MARIADB and not connection.raw:
                shown = data.decode("utf-8", "replace")
            rows.append((xid.format_id, len(xid.gtrid), len(xid.bqual), shown))
    return answer(connection, *rows)


def _detached(connection: Connection, parameters: Parameters) -> Step:
    branches = connection.server.branches.values()
    found = [b for b in branches if b.state is State.PREPARED and b.owner is None and b.transaction.changed]
    return answer(connection, (len(found),))


def _blocked(sql: str, connection: Connection, parameters: Parameters) -> Step:
    server, owners = connection.server, set()
    if " IN (" in sql:
        owners = {int(one) for one in sql.rpartition(" IN (")[2].partition(")")[0].split(",")}
    rows = []
    for wait in server.locks.waits():
        ids = {other.owner.id if other.owner else 0 for other in wait.lock.in_the_way(wait)}
        waiter = wait.transaction.owner
        if waiter is not None and ids & {0, *owners}:
            waited = int(server.loop.time() - waiter.waits_since)
            rows.append((waiter.id, "agent", waited, wait.lock.where[0]))
    return answer(connection, *rows)


def _writes(sql: str, connection: Connection, parameters: Parameters) -> Step:
    refused = refusal(connection, reads_tables=False)
    if refused is not None:
        return refused
    counts = (("Handler_delete", "0"), ("Handler_update", "0"))
    return answer(connection, *counts, ("Handler_write", str(connection.handler_writes)))


_QUESTIONS: dict[str, Plan] = {
    "SELECT 1": lambda c, p: answer(c, (1,)),
    "SELECT VERSION()": lambda c, p: answer(c, (_VERSIONS[c.server.engine],)),
    "SELECT CURRENT_USER()": lambda c, p: answer(c, ("agent@%",)),
    "SELECT CONNECTION_ID()": lambda c, p: answer(c, (c.id,)),
    "SELECT @@server_uuid": partial(_identity, Engine.MYSQL),
    "SELECT @@server_uid": partial(_identity, Engine.MARIADB),
    "SELECT @@session.sql_mode": lambda c, p: answer(c, (c.sql_mode,)),
    "SELECT @@net_buffer_length": lambda c, p: answer(c, (16384,)),
    "SELECT GET_LOCK(%s, 0), IS_USED_LOCK(%s)": _get_and_used,
    "SELECT GET_LOCK(%s, 0)": lambda c, p: answer(c, (_get_lock(c, str(plain(p[0]))),)),
    "SELECT IS_USED_LOCK(%s)": lambda c, p: answer(c, (_used(c, plain(p[0])),)),
    "SHOW GLOBAL STATUS LIKE 'Uptime'": lambda c, p: answer(c, ("Uptime", str(int(c.server.uptime)))),
    "XA RECOVER CONVERT XID": partial(_recover, Engine.MYSQL),
    "XA RECOVER FORMAT='RAW'": partial(_recover, Engine.MARIADB),
    "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = 0": _detached,
    "SELECT COUNT(*) FROM performance_schema.data_lock_waits WHERE FALSE": lambda c, p: answer(c, (0,)),
}
_BEGINNINGS: dict[str, Callable[[str, Connection, Parameters], Step]] = {
    "WITH RECURSIVE slot ": _slots,
    "SELECT IS_USED_LOCK('": _has_lock,
    "SHOW SESSION STATUS ": _writes,
    "SET @xacoord = IF(IS_USED_LOCK('": _needs_lock,
    "\nSELECT /*+ MAX_EXECUTION_TIME": _blocked,
    "\nSET STATEMENT max_statement_time": _blocked,
}
