"""Preflight: is this server fit to take part? Each check has a name, what was found, and what to do about it.

*refuse*: transactions could be lost or torn; the daemon does not start (exit code 78). *warn*: something is
weaker than it could be. Sources: the manuals of both engines and the experiments listed in docs/agent.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dtp import FORMAT_ID

from .effects import Ok, OnControl, Procedure, Query, Result, text
from .engine import Engine, engine_of, version_numbers
from .errors import describe


class Severity(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `fix` is the SQL or the setting that mends it, "" where nothing is to be mended."""

    name: str
    severity: Severity
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """What the server says about itself."""

    engine: Engine
    version: str
    identity: str
    sql_mode: str
    net_buffer_length: int


def ask(sql: str) -> Procedure[str | None]:
    """One value, or None where the server refuses (it has no such variable, or no privilege is held)."""
    answer = yield OnControl(Query(sql))
    return text(answer.rows[0][0]) if isinstance(answer, Ok) and answer.rows else None


def identify() -> Procedure[Server | None]:
    """Which server this is; None where it cannot be asked."""
    version = yield from ask("SELECT VERSION()")
    if version is None:
        return None
    engine = engine_of(version)
    identity = yield from ask(engine.identity_sql)
    sql_mode = yield from ask("SELECT @@session.sql_mode")
    net_buffer_length = yield from ask("SELECT @@net_buffer_length")
    return Server(engine, version, identity or "", sql_mode or "", int(net_buffer_length or "1024"))


def preflight(server: Server, schema: str, witness: bool, allow: tuple[str, ...]) -> Procedure[list[Check]]:
    """All checks, in the order of docs/agent.md.

    Args:
        server: what `identify` found.
        schema: the agent's schema.
        witness: branches write witness rows.
        allow: names of refusals that the operator accepts; they become warnings.
    """
    checks = [_version(server)]
    checks += yield from _settings(server)
    checks += yield from _binary_log(server, witness)
    account = quoted_account((yield from ask("SELECT CURRENT_USER()")) or "")
    checks += yield from _recover(server, account)
    checks += yield from _performance_schema(server, account)
    checks += yield from _privileges(schema, account)
    return [
        Check(check.name, Severity.WARN, f"{check.found} (allowed by preflight.allow)", check.fix)
        if check.severity is Severity.REFUSE and check.name in allow
        else check
        for check in checks
    ]


def _version(server: Server) -> Check:
    numbers = version_numbers(server.version)
    if server.engine is Engine.MARIADB:
        if numbers < (10, 5, 2):
            return Check(
                "version", Severity.REFUSE, server.version, "upgrade to MariaDB 10.5.2 or later (MDEV-742)"
            )
    elif numbers < (5, 7, 7):
        return Check("version", Severity.REFUSE, server.version, "upgrade to MySQL 8.0.30 or later")
    elif numbers < (8, 0, 30):
        fix = "upgrade: XA is not crash-safe with the binary log before 8.0.30; or allow mysql-before-8.0.30"
        return Check("mysql-before-8.0.30", Severity.REFUSE, server.version, fix)
    return Check("version", Severity.OK, server.version)


# variable -> (engines, accepted values, severity, what mends it)
_SETTINGS: dict[str, tuple[tuple[Engine, ...], tuple[str, ...], Severity, str]] = {
    "xa_detach_on_prepare": (
        (Engine.MYSQL,),
        ("1",),
        Severity.REFUSE,
        "SET PERSIST xa_detach_on_prepare = ON",
    ),
    "innodb_flush_log_at_trx_commit": (
        (Engine.MYSQL, Engine.MARIADB),
        ("1",),
        Severity.REFUSE,
        "SET GLOBAL innodb_flush_log_at_trx_commit = 1, and in the server's configuration",
    ),
    "wsrep_on": (
        (Engine.MARIADB,),
        ("0",),
        Severity.REFUSE,
        "Galera does not support XA: use a server without wsrep",
    ),
    "read_only": (
        (Engine.MYSQL, Engine.MARIADB),
        ("0", "OFF"),
        Severity.WARN,
        "SET GLOBAL read_only = OFF, or point the agent at the primary",
    ),
    "default_storage_engine": (
        (Engine.MYSQL, Engine.MARIADB),
        ("InnoDB",),
        Severity.WARN,
        "SET GLOBAL default_storage_engine = InnoDB; tables of other engines are not rolled back",
    ),
}


def _settings(server: Server) -> Procedure[list[Check]]:
    checks = []
    for variable, (engines, accepted, severity, fix) in _SETTINGS.items():
        if server.engine not in engines:
            continue
        found = yield from ask(f"SELECT @@global.{variable}")
        if found is None:
            checks.append(Check(variable, Severity.OK, "this version has no such variable"))
        elif found in accepted:
            checks.append(Check(variable, Severity.OK, found))
        else:
            checks.append(Check(variable, severity, found, fix))
    return checks


def _binary_log(server: Server, witness: bool) -> Procedure[list[Check]]:
    if (yield from ask("SELECT @@global.log_bin")) != "1":
        return []
    sync = yield from ask("SELECT @@global.sync_binlog")
    severity = Severity.OK if sync == "1" else Severity.WARN
    checks = [Check("sync_binlog", severity, str(sync), "" if sync == "1" else "SET GLOBAL sync_binlog = 1")]
    # None: a version that knows rows only.
    if witness and (yield from ask("SELECT @@global.binlog_format")) == "STATEMENT":
        fix = (
            "set binlog_format to ROW or MIXED (SET GLOBAL, and in the server's configuration), or switch "
            "witness rows off ([witness] enabled = false): a replica would get no witness rows, and after a "
            "failover to it committed branches would seem rolled back"
        )
        checks.append(Check("binlog_format", Severity.REFUSE, "STATEMENT", fix))
    if server.engine is Engine.MARIADB:
        fix = "replicas and point-in-time recovery may miss branches after a crash (MDEV-21469)"
        checks.append(Check("mariadb-binlog", Severity.WARN, "log_bin is on", fix))
    return checks


def quoted_account(account: str) -> str:
    """`user@host` as the server says it, as SQL takes it: what a DBA can paste."""
    user, _, host = account.rpartition("@")
    return f"'{user}'@'{host}'" if user and host else "the agent's account"


_UNSEEN = "deadlocks across servers and blocked sessions are not seen without it"


def _performance_schema(server: Server, account: str) -> Procedure[list[Check]]:
    """Who waits for whose locks is in performance_schema on MySQL."""
    if server.engine is not Engine.MYSQL:
        return []
    if (yield from ask("SELECT @@global.performance_schema")) == "0":
        fix = f"performance_schema = ON in the server's configuration; {_UNSEEN}"
        return [Check("performance_schema", Severity.WARN, "OFF", fix)]
    answer = yield OnControl(Query("SELECT COUNT(*) FROM performance_schema.data_lock_waits WHERE FALSE"))
    if isinstance(answer, Ok):
        return [Check("performance_schema", Severity.OK, "readable")]
    fix = f"GRANT SELECT ON performance_schema.* TO {account}; {_UNSEEN}"
    return [Check("performance_schema", Severity.WARN, describe(answer)[0], fix)]


def _recover(server: Server, account: str) -> Procedure[list[Check]]:
    listed = yield OnControl(Query(server.engine.recover_sql))
    if not isinstance(listed, Ok):
        return [_denied("xa_recover", listed, f"GRANT XA_RECOVER_ADMIN ON *.* TO {account}")]
    prepared = server.engine.prepared(listed.rows)
    checks = [Check("xa_recover", Severity.OK, f"{len(prepared)} prepared")]
    foreign = sum(xid.format_id != FORMAT_ID for xid in prepared)
    if server.engine is Engine.MYSQL and version_numbers(server.version) >= (8, 0, 30) and foreign:
        fix = "finish them: beside other formatIDs MySQL may drop prepared branches at restart (bug #120125)"
        checks.append(
            Check("foreign-format-ids", Severity.WARN, f"{foreign} XIDs with a formatID other than 1", fix)
        )
    transactions = yield from ask(
        "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = 0"
    )
    if transactions is None:
        fix = f"GRANT PROCESS ON *.* TO {account}; {_UNSEEN}"
        return [*checks, Check("process", Severity.WARN, "no PROCESS privilege", fix)]
    checks.append(Check("process", Severity.OK, "granted"))
    ghosts = int(transactions) - len(prepared)
    if ghosts > 0:
        fix = "they hold locks without session or XID: restart the server, then finish what XA RECOVER lists"
        checks.append(Check("ghosts", Severity.WARN, str(ghosts), fix))
    return checks


def _privileges(schema: str, account: str) -> Procedure[list[Check]]:
    for sql in (
        f"SELECT COUNT(*) FROM {schema}.coordinator WHERE FALSE",
        f"SELECT COUNT(*) FROM {schema}.witness WHERE FALSE",
    ):
        answer = yield OnControl(Query(sql))
        if not isinstance(answer, Ok):
            return [
                _denied(
                    "schema",
                    answer,
                    f"GRANT CREATE, SELECT, INSERT, UPDATE, DELETE ON {schema}.* TO {account}",
                )
            ]
    return [Check("schema", Severity.OK, schema)]


def _denied(name: str, answer: Result, fix: str) -> Check:
    message, _ = describe(answer)
    return Check(name, Severity.REFUSE, message, fix)
