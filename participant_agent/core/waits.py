"""Waits: who waits for whose row locks at this server, and what that says about branches.

 1. `look` asks the server: waits between its transactions, the connection of each, who is behind connections
    that are not ours, and which branch a transaction without a connection is.
 2. `waits_of` turns that into the waits of branches, with what the agent knows of its own sessions.

A prepared branch has left its session on MySQL, and no view names its XID. Its witness row does: a read that
skips locked rows makes the row's implicit lock visible in data_locks, with transaction and key.

docs/decisions/0014 has the whole.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from dtp.xid import is_gtrid

from .effects import Cell, Ok, Procedure, Query, Result, Row, number, text
from .engine import Engine
from .errors import describe

MAX_ROWS = 10_000
_MAX_CANDIDATES = 500
_MAX_ACCOUNTS = 100
_MAX_ACCOUNT = 128

# The server ends a question itself before the agent gives the session up.
_WAITS_SQL = {
    Engine.MYSQL: "SELECT /*+ MAX_EXECUTION_TIME(1000) */ REQUESTING_ENGINE_TRANSACTION_ID, "
    "BLOCKING_ENGINE_TRANSACTION_ID, REQUESTING_ENGINE_LOCK_ID, BLOCKING_ENGINE_LOCK_ID "
    f"FROM performance_schema.data_lock_waits LIMIT {MAX_ROWS}",
    Engine.MARIADB: "SET STATEMENT max_statement_time = 1 FOR SELECT requesting_trx_id, blocking_trx_id, "
    f"requested_lock_id, blocking_lock_id FROM information_schema.INNODB_LOCK_WAITS LIMIT {MAX_ROWS}",
}
_CONNECTIONS_SQL = (
    "SELECT trx_id, trx_mysql_thread_id, trx_requested_lock_id FROM information_schema.innodb_trx "
    "WHERE trx_id IN "
)
_ACCOUNTS_SQL = {
    Engine.MYSQL: "SELECT PROCESSLIST_ID, PROCESSLIST_USER, PROCESSLIST_HOST FROM performance_schema.threads "
    "WHERE PROCESSLIST_ID IN ",
    Engine.MARIADB: "SELECT ID, USER, HOST FROM information_schema.PROCESSLIST WHERE ID IN ",
}
_ROWS_OF_SQL = (
    "SELECT /*+ MAX_EXECUTION_TIME(1000) */ ENGINE_TRANSACTION_ID, LOCK_DATA "
    "FROM performance_schema.data_locks WHERE LOCK_TYPE = 'RECORD' "
    "AND OBJECT_SCHEMA = '{schema}' AND OBJECT_NAME = '{table}' AND ENGINE_TRANSACTION_ID IN "
)
_ROW_KEY = re.compile(r"'([0-9a-z]{20})', '[0-9a-z]{4}'")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the server says. Transactions go by the server's own numbers for them.

    Attributes:
        blockers: who waits -> for whom. Where somebody has the lock the rest of the queue is left out, and
            one of it is enough where nobody has: they wait for the same, and a row that a thousand wait for
            would have half a million edges.
        connections: transaction -> connection id, 0 where it has none.
        accounts: connection id -> user@host, as far as they were asked for and may be seen.
        detached: transaction without a connection -> gtrid.
        unseen: what could not be asked, and why; "" where everything was.
    """

    blockers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    connections: Mapping[str, int] = field(default_factory=dict)
    accounts: Mapping[int, str] = field(default_factory=dict)
    detached: Mapping[str, str] = field(default_factory=dict)
    unseen: str = ""


def look(
    engine: Engine, table: str | None, ours: Collection[int], known: Mapping[str, str]
) -> Procedure[Seen]:
    """Ask the server; `Query` needs a session in no transaction.

    Args:
        table: the witness table, None where branches write no rows.
        ours: connection ids of the agent's own sessions.
        known: what an earlier look found out about detached transactions.
    """
    answer = yield Query(_WAITS_SQL[engine])
    if not isinstance(answer, Ok):
        return Seen(unseen=_refused("lock waits", answer))
    told = answer.rows
    if not told:
        return Seen()
    answer = yield Query(_CONNECTIONS_SQL + _list({text(cell) for row in told for cell in row[:2]}))
    if not isinstance(answer, Ok):
        return Seen(unseen=_refused("information_schema.innodb_trx", answer))
    connections = {text(row[0]): number(row[1]) for row in answer.rows}
    blockers = _blockers(told, {row[2] for row in answer.rows})
    blocking = {one for some in blockers.values() for one in some}
    strangers = {connections.get(blocker, 0) for blocker in blocking} - {0, *ours}
    accounts = yield from _accounts(engine, strangers)
    alone = {blocker for blocker in blocking if connections.get(blocker) == 0}
    detached = {blocker: known[blocker] for blocker in alone if blocker in known}
    unnamed = alone - set(detached)
    unseen = ""
    if unnamed and table is not None and engine.detaches:
        unseen = yield from _name(engine, table, unnamed, detached)
    return Seen(blockers, connections, accounts, detached, unseen)


def _blockers(rows: tuple[Row, ...], requested: set[Cell]) -> dict[str, tuple[str, ...]]:
    """See `Seen.blockers`.

    Args:
        rows: who waits, who blocks, and the lock of each of the two.
        requested: locks that transactions wait for, also of those whose rows were cut.
    """
    waiting = {row[2] for row in rows} | requested
    holders: dict[Cell, dict[Cell, None]] = {}
    queues: dict[Cell, Cell] = {}
    for waiter, blocker, _, lock in rows:
        if lock in waiting:
            queues.setdefault(waiter, blocker)
        else:
            holders.setdefault(waiter, {})[blocker] = None
    found = {text(waiter): (text(blocker),) for waiter, blocker in queues.items()}
    return found | {text(waiter): tuple(map(text, some)) for waiter, some in holders.items()}


def _accounts(engine: Engine, connection_ids: set[int]) -> Procedure[dict[int, str]]:
    """Whose they are; what may not be seen stays unknown, because nothing depends on it."""
    if not connection_ids:
        return {}
    wanted = sorted(connection_ids)[:_MAX_ACCOUNTS]
    answer = yield Query(_ACCOUNTS_SQL[engine] + _list(map(str, wanted)))
    if not isinstance(answer, Ok):
        return {}
    return {number(row[0]): _account(text(row[1]), text(row[2])) for row in answer.rows}


def _account(user: str, host: str) -> str:
    host = host.partition(":")[0]  # MariaDB adds the port
    return f"{user}@{host}"[:_MAX_ACCOUNT] if user else ""


def _name(engine: Engine, table: str, unnamed: set[str], detached: dict[str, str]) -> Procedure[str]:
    """Add to `detached` which branches they are; returns what could not be asked."""
    listed = yield Query(engine.recover_sql)
    if not isinstance(listed, Ok):
        return _refused("XA RECOVER", listed)
    prepared = [xid for xid in engine.prepared(listed.rows) if xid.ours() is not None]
    # The newest: old ones in doubt, however many, must not stand in the way of those that run now.
    prepared = sorted(prepared, key=lambda xid: xid.gtrid, reverse=True)[:_MAX_CANDIDATES]
    if not prepared:
        return ""
    gtrids = ", ".join(sorted({f"X'{xid.gtrid.hex()}'" for xid in prepared}))
    bquals = ", ".join(sorted({f"X'{xid.bqual.hex()}'" for xid in prepared}))
    touched = yield Query(
        f"SELECT gtrid FROM {table} WHERE gtrid IN ({gtrids}) AND bqual IN ({bquals}) FOR SHARE SKIP LOCKED"
    )
    if not isinstance(touched, Ok):
        return _refused("witness rows of prepared branches", touched)
    schema, _, name = table.rpartition(".")
    held = yield Query(_ROWS_OF_SQL.format(schema=schema, table=name) + _list(unnamed))
    if not isinstance(held, Ok):
        return _refused("performance_schema.data_locks", held)
    for row in held.rows:
        key = _ROW_KEY.fullmatch(text(row[1]))
        if key is not None and is_gtrid(key[1]):
            detached[text(row[0])] = key[1]
    return ""


def _list(numbers: Collection[str] | Iterator[str]) -> str:
    """What follows IN; the server's own numbers need no quotes."""
    return f"({', '.join(sorted(one for one in numbers if one.isdigit())) or '0'})"


def _refused(what: str, answer: Result) -> str:
    return f"{what}: {describe(answer)[0]}"


@dataclass(frozen=True, slots=True)
class Held:
    """The branch that one of the agent's sessions works on.

    Attributes:
        waits: its command has been under way for a while; only then is its wait told.
    """

    gtrid: str
    coordinator_id: str
    prepared: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """A branch waits. For what the fields mean see Wait in participant_agent.proto."""

    gtrid: str
    blocker: str = ""
    prepared: bool = False
    connection_id: int = 0
    account: str = ""


def waits_of(seen: Seen, sessions: Mapping[int, Held]) -> dict[str, tuple[Wait, ...]]:
    """Coordinator id -> the waits of its branches. `sessions`: connection id -> what it works on."""
    view = _View(seen, sessions)
    found: dict[str, dict[tuple[str, str, int], Wait]] = {}
    for transaction in seen.blockers:
        held = sessions.get(seen.connections.get(transaction, 0))
        if held is None or not held.waits:
            continue
        for wait in view.of(transaction, held):
            key = wait.gtrid, wait.blocker, wait.connection_id if not wait.blocker else 0
            found.setdefault(held.coordinator_id, {}).setdefault(key, wait)
    return {coordinator_id: tuple(waits.values()) for coordinator_id, waits in found.items()}


class _View:
    """What the server says, with what the sessions work on."""

    def __init__(self, seen: Seen, sessions: Mapping[int, Held]) -> None:
        self._seen = seen
        self._sessions = sessions

    def of(self, transaction: str, held: Held) -> Iterator[Wait]:
        """The waits of a branch: for each that blocks it, and through those that are not its coordinator's,
        for those that they wait for."""
        reached = {transaction}
        # (transaction, the session that stands between, 0: none)
        ahead = [(blocker, 0) for blocker in self._seen.blockers[transaction]]
        while ahead:
            blocker, between = ahead.pop()
            connection = self._seen.connections.get(blocker)
            if blocker in reached or connection is None:  # it has ended meanwhile
                continue
            reached.add(blocker)
            gtrid, prepared = self._branch(blocker, connection)
            if gtrid == held.gtrid:
                continue
            if gtrid[2:6] == held.coordinator_id:
                yield Wait(held.gtrid, gtrid, prepared, between, self._seen.accounts.get(between, ""))
                continue
            if not between:
                stranger = 0 if gtrid else connection
                account = self._seen.accounts.get(stranger, "")
                yield Wait(held.gtrid, gtrid, prepared, stranger, account)
            ahead += [(other, between or connection) for other in self._seen.blockers.get(blocker, ())]

    def _branch(self, transaction: str, connection: int) -> tuple[str, bool]:
        """(gtrid or "", whether it is prepared) of a transaction that blocks."""
        if not connection:
            return self._seen.detached.get(transaction, ""), True
        held = self._sessions.get(connection)
        return (held.gtrid, held.prepared) if held is not None else ("", False)
