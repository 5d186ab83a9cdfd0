"""Statements of the simulation's MySQL: those that the agent asks, and those of a small application.

No parser: a text is cut by a few regular expressions into a plan, and plans are remembered by their text.
A text that has no plan is an error of the twin and raises AssertionError, so that nobody takes it for an
answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeAlias

from participant_agent.core.effects import Ok, ServerError
from participant_agent.core.engine import Engine
from tests.simulation import mysql_dml, mysql_questions, mysql_waits, mysql_xa
from tests.simulation.mysql_steps import Step
from tests.simulation.mysql_xa import State

if TYPE_CHECKING:
    from tests.simulation.mysql_connection import Connection

Parameters: TypeAlias = tuple[object, ...]
Plan: TypeAlias = "Callable[[Connection, Parameters], Step]"

DEFAULT_SQL_MODE = {
    Engine.MYSQL: "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION",
    Engine.MARIADB: "STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION",
}
_DONE = Ok()
_SETTING = re.compile(r"(\w+) = (?:'([^']*)'|(%s)|([\d.]+))")
_SAVEPOINT = re.compile(r"(SAVEPOINT|ROLLBACK TO|RELEASE SAVEPOINT) (\w+)")
_CREATE_TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS ([\w.]+)")
_KILL = re.compile(r"KILL (QUERY )?(\d+)")


def statement(connection: Connection, sql: str, parameters: Parameters) -> Callable[[], Step]:
    """What carries a statement out; it may be called again after a wait."""
    if sql.startswith("XA ") and not sql.startswith("XA RECOVER"):
        return mysql_xa.verb(connection, sql)
    return partial(_plan(sql), connection, parameters)


@lru_cache(maxsize=2048)
def _plan(sql: str) -> Plan:
    exact = _EXACT.get(sql) or mysql_questions.plan(sql) or mysql_waits.plan(sql)
    if exact is not None:
        return exact
    word = sql.split(None, 1)[0]
    if word in ("SELECT", "INSERT", "UPDATE", "DELETE"):
        return mysql_dml.plan(sql)
    if word == "SET":
        return partial(_set, sql)
    if word == "CREATE":
        return _committing(partial(_create, sql))
    if word == "KILL":
        return partial(_kill, sql)
    if _SAVEPOINT.fullmatch(sql):
        return partial(_savepoint, sql)
    return lambda connection, parameters: ServerError(1064, "You have an error in your SQL syntax")


def _committing(plan: Plan) -> Plan:
    """Statements that commit what is open, which a branch does not allow."""

    def run(connection: Connection, parameters: Parameters) -> Step:
        if connection.branch is not None:
            return connection.branch.refuses()
        transaction, connection.transaction = connection.transaction, None
        if transaction is not None:
            connection.server.commit(transaction)
        return plan(connection, parameters)

    return run


def _begin(connection: Connection, parameters: Parameters) -> Step:
    connection.begin()
    return _DONE


def _rollback(connection: Connection, parameters: Parameters) -> Step:
    if connection.branch is not None:
        return connection.branch.refuses()
    transaction, connection.transaction, connection.read_only = connection.transaction, None, False
    if transaction is not None:
        connection.server.roll_back(transaction)
    return _DONE


def _savepoint(sql: str, connection: Connection, parameters: Parameters) -> Step:
    found = _SAVEPOINT.fullmatch(sql)
    assert found is not None
    verb, name = found.groups()
    transaction = connection.transaction
    unknown = transaction is None or name not in transaction.savepoints
    if verb != "SAVEPOINT" and unknown:
        return ServerError(1305, f"SAVEPOINT {name} does not exist")
    branch = connection.branch
    if branch is not None and branch.state is not State.ACTIVE:
        mariadb = connection.server.engine is Engine.MARIADB
        if mariadb and verb == "SAVEPOINT" and branch.state is State.ROLLBACK_ONLY:
            return _DONE  # there is no transaction any more
        if not (mariadb and verb == "RELEASE SAVEPOINT"):
            return branch.refuses()
    if transaction is None:
        return _DONE
    if verb == "SAVEPOINT":
        transaction.savepoints[name] = len(transaction.undo), transaction.begun
        return _DONE
    if verb == "ROLLBACK TO":
        length, begun = transaction.savepoints[name]
        transaction.undo_to(length)
        if not begun:  # the engines took no part in it then, so they end theirs
            transaction.begun = transaction.marked = transaction.changed = False
        connection.server.release_undone(transaction, everything=not begun)
    else:
        del transaction.savepoints[name]
    return _DONE


def _create(sql: str, connection: Connection, parameters: Parameters) -> Step:
    found = _CREATE_TABLE.match(sql)
    if found is not None:
        connection.server.table(found[1])
        return _DONE
    assert sql.startswith("CREATE DATABASE IF NOT EXISTS "), sql
    return Ok(row_count=1)


def _kill(sql: str, connection: Connection, parameters: Parameters) -> Step:
    found = _KILL.fullmatch(sql)
    assert found is not None, sql
    return connection.server.kill_session(int(found[2]), query_only=bool(found[1]))


def _set(sql: str, connection: Connection, parameters: Parameters) -> Step:
    if sql.startswith("SET SESSION TRANSACTION ISOLATION LEVEL "):
        connection.isolation = sql.removeprefix("SET SESSION TRANSACTION ISOLATION LEVEL ")
        return _DONE
    if sql.startswith("SET TRANSACTION "):
        if connection.transaction is not None:
            return ServerError(1568, "Transaction characteristics can't be changed in a transaction")
        assert sql == "SET TRANSACTION READ ONLY", sql
        connection.read_only = True
        return _DONE
    rest = iter(parameters)
    for name, quoted, placeholder, number in _SETTING.findall(sql):
        value = next(rest) if placeholder else number or quoted
        if name == "innodb_lock_wait_timeout":
            connection.row_wait_seconds = float(str(value))
        elif name == "lock_wait_timeout":
            connection.metadata_wait_seconds = float(str(value))
        elif name == "wait_timeout":
            connection.idle_seconds = float(str(value))
        elif name == "sql_mode":
            connection.sql_mode = str(value)
    return _DONE


def _commit(connection: Connection, parameters: Parameters) -> Step:
    connection.read_only = False
    return _DONE


_EXACT: dict[str, Plan] = {
    "BEGIN": _committing(_begin),
    "START TRANSACTION": _committing(_begin),
    "COMMIT": _committing(_commit),
    "ROLLBACK": _rollback,
}
