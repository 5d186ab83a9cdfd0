"""What the simulation's MySQL says of who waits for whom.

Fault model:
 1. information_schema.innodb_trx, and on MariaDB the waits, too, are a picture that is taken anew only when
    nobody has looked at it for 100 ms: two that ask often enough never see a newer one.
 2. a detached branch's row locks are implicit: MySQL shows them once somebody has run into them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from participant_agent.core.engine import Engine
from tests.simulation.mysql_questions import answer
from tests.simulation.mysql_steps import Step
from tests.simulation.mysql_tables import Key, Transaction

if TYPE_CHECKING:
    from tests.simulation.mysql import Server
    from tests.simulation.mysql_connection import Connection

Parameters: TypeAlias = tuple[object, ...]
Plan: TypeAlias = "Callable[[Connection, Parameters], Step]"

_RENEWED_SECONDS = 0.1
_HEXADECIMAL = re.compile(r"X'([0-9a-f]+)'")


@dataclass(frozen=True)
class Picture:
    """What InnoDB shows: (waiter, blocker, the waiter's lock, the blocker's lock), and whose connections."""

    waits: tuple[tuple[str, str, str, str], ...]
    connections: dict[str, int]


class Views:
    """What a server shows of its locks."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._numbers: dict[Transaction, str] = {}
        self._counter = 0
        self._picture = Picture((), {})
        self._read_at = -1.0
        self.touched: set[Key] = set()  # keys of witness rows that somebody has run into

    def number(self, transaction: Transaction) -> str:
        """The engine's number of a transaction."""
        if transaction not in self._numbers:
            self._counter += 1
            self._numbers[transaction] = str(self._counter)
        return self._numbers[transaction]

    def live(self) -> Picture:
        """As it is."""
        server, waits, connections = self._server, [], {}
        for wait in server.locks.waits():
            waiter = wait.transaction
            row = str(wait.lock.where)
            for other in wait.lock.in_the_way(wait):
                queued = other not in wait.lock.holders
                lock = f"{self.number(other)}:{row}:{'waiting' if queued else 'held'}"
                own = f"{self.number(waiter)}:{row}:waiting"
                waits.append((self.number(waiter), self.number(other), own, lock))
                for one in (waiter, other):
                    connections[self.number(one)] = one.owner.id if one.owner is not None else 0
        for _, holder in server.locks.held():
            connections[self.number(holder)] = holder.owner.id if holder.owner is not None else 0
        return Picture(tuple(waits), connections)

    def cached(self) -> Picture:
        """As InnoDB shows it."""
        now = self._server.loop.time()
        if now - self._read_at > _RENEWED_SECONDS:
            self._picture = self.live()
        self._read_at = now
        return self._picture

    def witness_rows(self, numbers: set[str]) -> list[tuple[int, str]]:
        """(transaction, key of its witness row) of those whose lock can be seen."""
        found = []
        for (table, key), holder in self._server.locks.held():
            number = self.number(holder)
            if table.endswith(".witness") and number in numbers and key in self.touched:
                found.append((int(number), f"'{_text(key[0])}', '{_text(key[1])}'"))
        return found


def _text(cell: object) -> str:
    return cell.decode() if isinstance(cell, bytes) else str(cell)


def plan(sql: str) -> Plan | None:
    """The plan of a question about waits, None where it is none."""
    for beginning, question in _QUESTIONS.items():
        if sql.startswith(beginning):
            return partial(question, sql)
    if sql.startswith("SELECT gtrid FROM ") and sql.endswith(" FOR SHARE SKIP LOCKED"):
        return partial(_touch, sql)
    return None


def _waits(engine: Engine, sql: str, connection: Connection, parameters: Parameters) -> Step:
    assert engine is connection.server.engine
    views = connection.server.views
    return answer(connection, *(views.live() if engine is Engine.MYSQL else views.cached()).waits)


def _numbers(sql: str) -> set[str]:
    return set(sql.rpartition(" IN (")[2].rstrip(")").split(", "))


def _connections(sql: str, connection: Connection, parameters: Parameters) -> Step:
    picture = connection.server.views.cached()
    requested = {waiter: lock for waiter, _, lock, _ in picture.waits}
    found = sorted(_numbers(sql) & set(picture.connections), key=int)
    return answer(connection, *((int(n), picture.connections[n], requested.get(n)) for n in found))


def _accounts(sql: str, connection: Connection, parameters: Parameters) -> Step:
    wanted = {int(one) for one in _numbers(sql)}
    return answer(
        connection, *((i, "app", "host") for i in sorted(wanted & set(connection.server.connections)))
    )


def _touch(sql: str, connection: Connection, parameters: Parameters) -> Step:
    """Rows that are locked are skipped, and their locks can be seen from now on."""
    server = connection.server
    names = {bytes.fromhex(one).decode() for one in _HEXADECIMAL.findall(sql)}
    for (table, key), _ in server.locks.held():
        if table.endswith(".witness") and {_text(key[0]), _text(key[1])} <= names:
            server.views.touched.add(key)
    return answer(connection)


def _rows(sql: str, connection: Connection, parameters: Parameters) -> Step:
    return answer(connection, *connection.server.views.witness_rows(_numbers(sql)))


_QUESTIONS: dict[str, Callable[[str, Connection, Parameters], Step]] = {
    "SELECT /*+ MAX_EXECUTION_TIME(1000) */ REQUESTING": partial(_waits, Engine.MYSQL),
    "SET STATEMENT max_statement_time = 1 FOR SELECT requesting": partial(_waits, Engine.MARIADB),
    "SELECT trx_id, trx_mysql_thread_id, trx_requested_lock_id FROM information_schema": _connections,
    "SELECT PROCESSLIST_ID, PROCESSLIST_USER": _accounts,
    "SELECT ID, USER, HOST FROM information_schema.PROCESSLIST": _accounts,
    "SELECT /*+ MAX_EXECUTION_TIME(1000) */ ENGINE_TRANSACTION_ID, LOCK_DATA": _rows,
}
