"""Recovery: what the server knows about prepared branches, and the durable fence. Nothing here ends a branch.

Fence: a row per (coordinator id, participant) keeps number, log identity, epoch and the epoch's nonce.
 1. insert the row where there is none (first contact is accepted);
 2. raise it, in one atomic statement, only where number and identity agree and what it remembers is in the
    coordinator's history (docs/decisions/0004): a log restored from a backup gives the same epochs again, but
    not the same nonces;
 3. read it back and compare, so that of two coordinators that raise at the same time one is told.
A crash between the write and the answer leaves a raised fence, which is harmless.

Purge: `purged_to` is stored durably before the first witness row below it is deleted. Otherwise a crash
between the two would make a missing row look like the proof that its branch did not commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from dtp import Gtrid, Reason, XacoordError, Xid, format_bqual
from dtp.xid import MAGIC

from .effects import Ok, OnControl, Procedure, Query, Result, Row, Sleep, Verb, number, text
from .engine import Engine
from .errors import describe

# The joins may be slow where many sessions wait; the server itself ends them before the agent would give its
# control session up.
# MySQL has to be told to begin with the waits: it believes that there are few transactions, and would go
# through all pairs of them, which takes seconds where thousands of branches are in doubt.
_BLOCKED_SQL = {
    Engine.MYSQL: """
SELECT /*+ MAX_EXECUTION_TIME(2000) JOIN_ORDER(w, l, r, b, p) */
       r.trx_mysql_thread_id, p.PROCESSLIST_USER, TIMESTAMPDIFF(SECOND, r.trx_wait_started, NOW()),
       CONCAT(l.OBJECT_SCHEMA, '.', l.OBJECT_NAME)
FROM performance_schema.data_lock_waits w
JOIN performance_schema.data_locks l ON l.ENGINE_LOCK_ID = w.REQUESTING_ENGINE_LOCK_ID AND l.ENGINE = w.ENGINE
JOIN information_schema.innodb_trx r ON r.trx_id = w.REQUESTING_ENGINE_TRANSACTION_ID
JOIN information_schema.innodb_trx b ON b.trx_id = w.BLOCKING_ENGINE_TRANSACTION_ID
LEFT JOIN performance_schema.threads p ON p.PROCESSLIST_ID = r.trx_mysql_thread_id
WHERE b.trx_mysql_thread_id = 0 LIMIT 1000""",
    Engine.MARIADB: """
SET STATEMENT max_statement_time = 2 FOR
SELECT r.trx_mysql_thread_id, p.USER, TIMESTAMPDIFF(SECOND, r.trx_wait_started, NOW()),
       REPLACE(l.lock_table, '`', '')
FROM information_schema.INNODB_LOCK_WAITS w
JOIN information_schema.INNODB_LOCKS l ON l.lock_id = w.requested_lock_id
JOIN information_schema.INNODB_TRX r ON r.trx_id = w.requesting_trx_id
JOIN information_schema.INNODB_TRX b ON b.trx_id = w.blocking_trx_id
LEFT JOIN information_schema.PROCESSLIST p ON p.ID = r.trx_mysql_thread_id
WHERE b.trx_mysql_thread_id = 0{owners} LIMIT 1000""",
}
_GHOSTS_SQL = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = 0"
_PURGE_BATCH = 500
_NO_SCHEMA = (1049, 1146)  # unknown database, no such table
_LOOK_AGAIN_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Blocked:
    """A session that waits for a lock that a prepared branch holds."""

    connection_id: int
    user: str
    waited_seconds: int
    table: str


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a scan saw. `unseen` names what the account may not look at."""

    prepared: tuple[Xid, ...]
    ghosts: int
    blocked: tuple[Blocked, ...]
    unseen: tuple[str, ...] = ()


def scan(engine: Engine, owners: tuple[int, ...] = ()) -> Procedure[Scanned]:
    """List prepared XIDs, ghosts and blocked sessions.

    Args:
        engine: the server's.
        owners: connection ids of sessions that hold a prepared branch (MariaDB).

    Raises:
        XacoordError: SERVER_UNAVAILABLE where XA RECOVER fails: an empty answer would be a lie.
    """
    unseen = []
    ghosts_answer = yield OnControl(Query(_GHOSTS_SQL))
    listed = yield OnControl(Query(engine.recover_sql))
    if not isinstance(listed, Ok):
        raise unavailable(listed, "XA RECOVER")
    prepared = tuple(engine.prepared(listed.rows))
    transactions = 0
    if isinstance(ghosts_answer, Ok):
        transactions = number(ghosts_answer.rows[0][0])
    else:
        unseen.append("information_schema.innodb_trx")
    sql = _BLOCKED_SQL[engine]
    also = f" OR b.trx_mysql_thread_id IN ({', '.join(map(str, owners))})" if owners else ""
    answer = yield OnControl(Query(sql.replace("{owners}", also)))
    blocked: tuple[Blocked, ...] = ()
    if isinstance(answer, Ok):
        blocked = tuple(_blocked(row) for row in answer.rows)
    else:
        unseen.append("lock waits")
    return Scanned(prepared, max(0, transactions - len(prepared)), blocked, tuple(unseen))


def _blocked(row: Row) -> Blocked:
    return Blocked(number(row[0]), text(row[1]), max(0, number(row[2])), text(row[3]))


def unavailable(answer: Result, doing: str) -> XacoordError:
    """The error for a server that did not do what the agent itself needs."""
    message, errno = describe(answer)
    if errno in _NO_SCHEMA:
        message += "; the agent's schema was dropped: docs/operations.md#the-agents-schema-was-dropped"
    return XacoordError(
        Reason.SERVER_UNAVAILABLE, f"{doing}: {message}", metadata={"errno": str(errno)} if errno else None
    )


@dataclass(frozen=True, slots=True)
class Fenced:
    """One row of the coordinator table.

    Attributes:
        nonce: the epoch's, by which a log that gives the same epoch again is noticed.
    """

    coordinator_id: str
    number: int
    epoch: int
    log_identity: bytes
    nonce: int
    purged_to: str = ""


_COLUMNS = "coordinator_id, number, epoch, HEX(log_identity), nonce, purged_to"


def _fenced(row: Row) -> Fenced:
    return Fenced(
        text(row[0]),
        number(row[1]),
        number(row[2]),
        bytes.fromhex(text(row[3])),
        number(row[4]),
        text(row[5]),
    )


def load_fences(schema: str, participant: str) -> Procedure[dict[str, Fenced]]:
    """Every coordinator that this participant knows."""
    answer = yield OnControl(
        Query(f"SELECT {_COLUMNS} FROM {schema}.coordinator WHERE participant = %s", (participant,))
    )
    if not isinstance(answer, Ok):
        raise unavailable(answer, "reading the coordinator table")
    return {fence.coordinator_id: fence for fence in map(_fenced, answer.rows)}


@dataclass(frozen=True, slots=True)
class Takeover:
    """What the row must say for a coordinator without the log to take it over: exactly what it was told."""

    epoch: int
    nonce: int
    log_identity: bytes


def fence(
    schema: str,
    participant: str,
    wanted: Fenced,
    history: dict[int, int],
    takeover: Takeover | None = None,
) -> Procedure[Fenced]:
    """Raise the durable fence to `wanted`, or refuse.

    Args:
        schema, participant: where the row is.
        wanted: what the row shall be; its `purged_to` is a lower bound.
        history: the coordinator's epochs with their nonces, `wanted`'s among them.
        takeover: from an operator who works the outcomes out without the log (docs/decisions/0011).

    Raises:
        XacoordError: what `contradiction` says of the remembered row; SERVER_UNAVAILABLE where the row cannot
            be written.
    """
    identity = f"X'{wanted.log_identity.hex()}'"
    row = (wanted.coordinator_id, participant)
    values = (wanted.number, wanted.epoch, wanted.nonce, wanted.purged_to)
    written = yield OnControl(
        Query(
            f"INSERT INTO {schema}.coordinator "
            "(coordinator_id, participant, number, epoch, nonce, purged_to, log_identity) "
            f"VALUES (%s, %s, %s, %s, %s, %s, {identity}) ON DUPLICATE KEY UPDATE number = number",
            (*row, *values),
            Verb.FENCE,
        )
    )
    if not isinstance(written, Ok):
        raise unavailable(written, "writing the fence")
    # The check is the WHERE of the write: between the two no other fence can come.
    known = ", ".join(f"({epoch}, {nonce})" for epoch, nonce in history.items() if epoch <= wanted.epoch)
    sets, may = "", f"log_identity = {identity} AND (epoch, nonce) IN ({known})"
    if takeover is not None:
        sets = f", log_identity = {identity}"
        may = (
            f"(({may}) OR (log_identity = X'{takeover.log_identity.hex()}' AND epoch = {takeover.epoch} "
            f"AND nonce = {takeover.nonce} AND epoch < {wanted.epoch}))"
        )
    raised = yield OnControl(
        Query(
            f"UPDATE {schema}.coordinator SET number = %s, epoch = %s, nonce = %s, "
            f"purged_to = GREATEST(purged_to, %s){sets} WHERE coordinator_id = %s AND participant = %s "
            f"AND number = %s AND {may}",
            (*values, *row, wanted.number),
            Verb.FENCE,
        )
    )
    if not isinstance(raised, Ok):
        raise unavailable(raised, "writing the fence")
    answer = yield OnControl(
        Query(
            f"SELECT {_COLUMNS} FROM {schema}.coordinator WHERE coordinator_id = %s AND participant = %s", row
        )
    )
    if not isinstance(answer, Ok) or len(answer.rows) != 1:
        raise unavailable(answer, "reading the fence back")
    remembered = _fenced(answer.rows[0])
    refusal = contradiction(remembered, wanted, history)
    if refusal is not None:
        raise refusal
    if remembered.epoch != wanted.epoch:
        raise XacoordError(Reason.SERVER_UNAVAILABLE, "the fence was not written; fence again")
    return remembered


def contradiction(remembered: Fenced, wanted: Fenced, history: dict[int, int]) -> XacoordError | None:
    """The error that says in what `remembered` contradicts `wanted`; None where the fence may be raised.

    It is what the WHERE in `fence` decides, said in words: PARTICIPANT_MISMATCH, LOG_IDENTITY_CHANGED or
    STALE_EPOCH, with what is remembered as metadata.
    """
    metadata = {
        "remembered_epoch": str(remembered.epoch),
        "remembered_log_identity": remembered.log_identity.hex(),
        "remembered_number": str(remembered.number),
    }
    name = f"coordinator {wanted.coordinator_id}"
    if remembered.number != wanted.number:
        return XacoordError(
            Reason.PARTICIPANT_MISMATCH,
            f"{name} gave this participant number {remembered.number} before, now {wanted.number}; "
            "numbers are given once",
            metadata=metadata,
        )
    if remembered.log_identity != wanted.log_identity:
        return XacoordError(
            Reason.LOG_IDENTITY_CHANGED,
            f"{name} had another log before; was its log directory replaced?",
            metadata=metadata,
        )
    if remembered.epoch > wanted.epoch:
        return XacoordError(
            Reason.STALE_EPOCH,
            f"epoch {wanted.epoch} of {name} is over: {remembered.epoch} began",
            metadata=metadata,
        )
    if history.get(remembered.epoch) != remembered.nonce:
        return XacoordError(
            Reason.LOG_IDENTITY_CHANGED,
            f"the log of {name} is not the one that began epoch {remembered.epoch}: it was lost, or restored "
            "from a backup",
            metadata=metadata,
        )
    return None


class Lookup(StrEnum):
    """The words of participant_agent.v1.EvidenceState."""

    COMMITTED = "COMMITTED"
    NOT_COMMITTED = "NOT_COMMITTED"
    UNDECIDED = "UNDECIDED"
    NONE = "NONE"


def last_committed(table: str | None, coordinator_id: str, bqual_number: int) -> Procedure[str]:
    """The highest gtrid whose witness row names several participants, or one twice, "" where there is none.

    Such a row exists only if the coordinator's log had a record of the transaction: a log that has none up to
    it has lost decisions. (A branch that was committed in one phase leaves no record.)
    """
    if table is None:
        return ""
    found = yield OnControl(
        Query(
            f"SELECT gtrid FROM {table} WHERE bqual = '{format_bqual(bqual_number)}' "
            f"AND gtrid BETWEEN '{MAGIC}{coordinator_id}' AND '{MAGIC}{coordinator_id}zzzzzzzzzzzzzz' "
            "AND participants LIKE '%,%' ORDER BY gtrid DESC LIMIT 1"
        )
    )
    if not isinstance(found, Ok):
        raise unavailable(found, "reading witness rows")
    return text(found.rows[0][0]) if found.rows else ""


def lookup(
    engine: Engine,
    table: str | None,
    purged_to: Callable[[], str],
    bqual_number: int,
    gtrids: tuple[str, ...],
) -> Procedure[dict[str, Lookup]]:
    """What witness rows say about `gtrids`; the caller checks before and after that no session works on them.

    `purged_to` is asked after the rows were read: what a purge deletes meanwhile, it has announced before.
    """
    wanted = rows_of(table, bqual_number, gtrids)
    prepared, committed = yield from listed_and_committed(
        engine, bqual_number, OnControl(wanted) if wanted is not None else None
    )
    evidence: dict[str, Lookup] = {}
    unprovable = purged_to()
    for gtrid in gtrids:
        if gtrid in committed:
            evidence[gtrid] = Lookup.COMMITTED
        elif Xid.of(gtrid, bqual_number) in prepared:
            evidence[gtrid] = Lookup.UNDECIDED
        else:
            provable = table is not None and gtrid >= unprovable
            evidence[gtrid] = Lookup.NOT_COMMITTED if provable else Lookup.NONE
    return evidence


def rows_of(table: str | None, bqual_number: int, gtrids: tuple[str, ...]) -> Query | None:
    """What asks for the witness rows of `gtrids`; None where there can be none."""
    if table is None or not gtrids:
        return None
    names = ", ".join(f"X'{gtrid.encode().hex()}'" for gtrid in gtrids)
    return Query(
        f"SELECT gtrid, participants FROM {table} "
        f"WHERE bqual = '{format_bqual(bqual_number)}' AND gtrid IN ({names})"
    )


def read_rows(wanted: Query | OnControl | None) -> Procedure[dict[str, str]]:
    """gtrid -> the participants that its witness row names."""
    if wanted is None:
        return {}
    found = yield wanted
    if not isinstance(found, Ok):
        raise unavailable(found, "reading witness rows")
    return {text(row[0]): text(row[1]) for row in found.rows}


def listed_and_committed(
    engine: Engine, bqual_number: int, wanted: Query | OnControl | None
) -> Procedure[tuple[set[Xid], dict[str, str]]]:
    """What XA RECOVER lists, and the rows of branches that have committed.

    XA RECOVER is read before the rows: a branch that commits in between is found by its row. One that is
    listed *and* has a row is read again; where it still is both, the row does not count: it is seen at an
    isolation that proves nothing, or its commit is in flight.
    """
    for attempt in range(2):
        listed = yield OnControl(Query(engine.recover_sql))
        if not isinstance(listed, Ok):
            raise unavailable(listed, "XA RECOVER")
        prepared = set(engine.prepared(listed.rows))
        rows = yield from read_rows(wanted)
        both = {gtrid for gtrid in rows if Xid.of(gtrid, bqual_number) in prepared}
        if not both:
            break
        if attempt == 0:
            yield Sleep(_LOOK_AGAIN_SECONDS)
    return prepared, {gtrid: names for gtrid, names in rows.items() if gtrid not in both}


def unprovable_below(coordinator_id: str, epoch: int) -> str:
    """The gtrid below which no row proves anything when witness rows are off in `epoch`."""
    return str(Gtrid(coordinator_id, epoch + 1, 0))


def raise_purged_to(schema: str, participant: str, coordinator_id: str, below: str) -> Procedure[None]:
    """Remember durably that witness rows below `below` may be missing."""
    stored = yield Query(
        f"UPDATE {schema}.coordinator SET purged_to = GREATEST(purged_to, %s) "
        "WHERE coordinator_id = %s AND participant = %s",
        (below, coordinator_id, participant),
        Verb.PURGE,
    )
    if not isinstance(stored, Ok):
        raise unavailable(stored, "storing purged_to")


def purge_batch(table: str, bqual_number: int, coordinator_id: str, below: str) -> Procedure[int]:
    """Delete one batch of witness rows; returns how many. 0: done.

    Rows are found by a read without locks and deleted by their keys, so that a purge never waits for, or
    locks, the row of a branch in doubt beside them.
    """
    bqual = format_bqual(bqual_number)
    found = yield Query(
        f"SELECT gtrid FROM {table} WHERE gtrid >= %s AND gtrid < %s AND bqual = %s LIMIT {_PURGE_BATCH}",
        (f"k1{coordinator_id}", below, bqual),
    )
    if not isinstance(found, Ok):
        raise unavailable(found, "looking for old witness rows")
    if not found.rows:
        return 0
    keys = ", ".join(f"'{text(row[0])}'" for row in found.rows)
    # Not (gtrid, bqual) IN (...): MariaDB reads, and locks, the whole table for that.
    deleted = yield Query(
        f"DELETE FROM {table} WHERE bqual = '{bqual}' AND gtrid IN ({keys})", verb=Verb.PURGE
    )
    if not isinstance(deleted, Ok):
        raise unavailable(deleted, "deleting old witness rows")
    return len(found.rows)
