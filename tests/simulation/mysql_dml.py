"""SELECT, INSERT, UPDATE and DELETE of the simulation's MySQL, in the forms that the agent and a bank need.

Rows are found by conditions on columns joined with AND; where these name the whole key, nothing else is
read and only those rows are locked. A change of rows that are not found by their key is not supported: a
server would lock what it reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

from participant_agent.core.effects import Ok, ServerError
from participant_agent.core.engine import Engine
from participant_agent.v1 import statement_pb2
from tests.simulation.mysql_steps import Blocked, Later, Step
from tests.simulation.mysql_tables import BINARY, INTEGER, Key, Row, Table, Transaction
from tests.simulation.mysql_xa import State

if TYPE_CHECKING:
    from tests.simulation.mysql_connection import Connection

Parameters: TypeAlias = tuple[object, ...]
Plan: TypeAlias = "Callable[[Connection, Parameters], Step]"

_LITERAL = r"(?:X'[0-9a-fA-F]*'|'[^']*'|-?\d+|%s)"
_VALUE = re.compile(_LITERAL)
_SELECT = re.compile(
    r"SELECT (?P<columns>.+?) FROM (?P<table>[\w.`]+)(?: WHERE (?P<where>.+?))?"
    r"(?: ORDER BY (?P<order>\w+)(?P<desc> DESC)?)?(?: LIMIT (?P<limit>\d+))?"
    r"(?P<lock> FOR UPDATE| FOR SHARE)?",
    re.DOTALL,
)
_EITHER = re.compile(r"\(\((?P<one>.*)\) OR \((?P<other>.*)\)\)")
_INSERT = re.compile(
    r"INSERT INTO (?P<table>[\w.`]+) \((?P<columns>[^)]*)\) "
    r"(?:VALUES \((?P<values>[^()]*)\)(?P<keep> ON DUPLICATE KEY UPDATE (\w+) = \5)?"
    r"|VALUES \((?P<sealed>[^()]*)IF\(IS_USED_LOCK\('(?P<lock>[^']*)'\) = CONNECTION_ID\(\), "
    r"(?P<names>'[^']*'), \(SELECT 1 UNION ALL SELECT 2\)\)\))"
)
_UPDATE = re.compile(r"UPDATE (?P<table>[\w.`]+) SET (?P<set>.+?) WHERE (?P<where>.+)", re.DOTALL)
_DELETE = re.compile(r"DELETE FROM (?P<table>[\w.`]+) WHERE (?P<where>.+)", re.DOTALL)
_ASSIGNMENT = re.compile(rf"(\w+) = (?:(GREATEST)\(\w+, )?(?:\w+ ([+-]) )?({_LITERAL})\)?(?:, |$)")
_CONDITION = re.compile(
    rf"(?:(?P<false>FALSE)|\((?P<pair>\w+, \w+)\) IN \((?P<pairs>.+?\))\)|"
    rf"(?P<column>\w+) (?:(?P<compare>>=|<=|=|<|>) (?P<with>{_LITERAL})|"
    rf"BETWEEN (?P<low>{_LITERAL}) AND (?P<high>{_LITERAL})|IN \((?P<in>[^)]*)\)|LIKE '(?P<like>[^']*)'))"
    r"(?: AND |$)"
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: bool(a == b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}


_READ_ONLY = ServerError(1792, "Cannot execute statement in a READ ONLY transaction.")


def plain(value: object) -> object:
    """A parameter as Python has it."""
    if isinstance(value, statement_pb2.Value):
        kind = value.WhichOneof("kind")
        return None if kind in (None, "null") else getattr(value, kind)
    return value


def cell(value: object, raw: bool) -> object:
    """A value as the session hands it out."""
    if isinstance(value, int):
        return b"%d" % value
    return value.encode() if raw and isinstance(value, str) else value


def typed(value: object, kind: int) -> object:
    """A value as a column of this type keeps it."""
    if value is None:
        return None
    if kind == INTEGER:
        return int(str(value))
    if kind == BINARY:
        return value
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _constant(text: str) -> object:
    if text[0] == "X":
        return bytes.fromhex(text[2:-1])
    return text[1:-1] if text[0] == "'" else int(text)


class _Values:
    """The literals of a text, in order: constants and places of parameters."""

    def __init__(self) -> None:
        self._parameters = 0

    def read(self, text: str) -> Callable[[Parameters], object]:
        """What gives a literal's value."""
        if text == "%s":
            place = self._parameters
            self._parameters += 1
            return lambda parameters: plain(parameters[place])
        value = _constant(text)
        return lambda parameters: value


Test: TypeAlias = Callable[[Row, Parameters], bool]
Found: TypeAlias = Callable[[Parameters], list[object]]


@dataclass
class _Where:
    """Conditions: `keys` where they name whole keys, `tests` for the rest."""

    table: str
    keys: list[Found] | None
    tests: list[Test]
    nothing: bool = False

    def rows(self, table: Table, parameters: Parameters) -> Iterator[Key]:
        """Keys of rows that may match."""
        if self.nothing:
            return iter(())
        if self.keys is None:
            return iter(table.keys())
        return product(*(dict.fromkeys(values(parameters)) for values in self.keys))

    def matches(self, row: Row, parameters: Parameters) -> bool:
        return all(test(row, parameters) for test in self.tests)


def _where(text: str | None, table: Table, values: _Values) -> _Where:
    named: dict[str, Found] = {}
    where = _Where(table.name, None, [])
    place = 0
    while text and place < len(text):
        either = _EITHER.fullmatch(text, place)
        if either is not None:
            one, other = (_where(either[name], table, values) for name in ("one", "other"))
            where.tests.append(_either(one, other))
            break
        found = _CONDITION.match(text, place)
        assert found is not None, text[place:]
        place = found.end()
        _add_condition(found, table, values, where, named)
    columns = table.shape.columns[: table.shape.key]
    if all(column in named for column in columns):
        where.keys = [named[column] for column in columns]
    return where


def _add_condition(
    found: re.Match[str], table: Table, values: _Values, where: _Where, named: dict[str, Found]
) -> None:
    if found["false"]:
        where.nothing = True
        return
    if found["pair"]:
        first, second = (table.index[name] for name in found["pair"].split(", "))
        pairs = {(int(a), int(b)) for a, b in re.findall(r"\((\d+), (\d+)\)", found["pairs"])}
        where.tests.append(lambda row, parameters: (row[first], row[second]) in pairs)
        return
    place = table.index[found["column"]]
    kind = table.shape.types[place]
    if found["in"] is not None or found["compare"] == "=":
        texts = _VALUE.findall(found["in"] if found["in"] is not None else found["with"])
        options = [values.read(one) for one in texts]

        def chosen(parameters: Parameters) -> list[object]:
            return [typed(option(parameters), kind) for option in options]

        if place < table.shape.key:
            named[found["column"]] = chosen
        where.tests.append(lambda row, parameters: row[place] in chosen(parameters))
    elif found["like"] is not None:
        part = found["like"].strip("%")
        where.tests.append(lambda row, parameters: part in str(row[place]))
    else:
        limits = [(found["compare"], found["with"])] if found["compare"] else []
        limits += [(">=", found["low"]), ("<=", found["high"])] if found["low"] else []
        for sign, text in limits:
            where.tests.append(_limit(_COMPARE[sign], place, kind, values.read(text)))


def _either(one: _Where, other: _Where) -> Test:
    return lambda row, parameters: one.matches(row, parameters) or other.matches(row, parameters)


def _limit(
    compare: Callable[[Any, Any], bool], place: int, kind: int, value: Callable[[Parameters], object]
) -> Test:
    return lambda row, parameters: compare(row[place], typed(value(parameters), kind))


# -- what runs


def refusal(connection: Connection, reads_tables: bool = True) -> ServerError | None:
    """Why a statement that reads or writes tables is refused in this state of the session."""
    branch = connection.branch
    if branch is None:
        return None
    if branch.state is not State.ACTIVE:
        mysql = connection.server.engine is Engine.MYSQL
        return (branch.error if mysql else None) or branch.refuses()
    return branch.rolled_back_already() if reads_tables else None


def plan(sql: str) -> Plan:
    """The plan of a statement."""
    for pattern, make in ((_SELECT, _select), (_INSERT, _insert), (_UPDATE, _update), (_DELETE, _delete)):
        found = pattern.fullmatch(sql)
        if found is not None:
            name = found["table"].replace("`", "")
            work = make(found, Table(name))
            return lambda connection, parameters: _perform(connection, parameters, name, work)
    raise AssertionError(f"the simulation does not know {sql!r}")


Work: TypeAlias = "Callable[[Connection, Table, Parameters, Transaction | None], Ok | ServerError]"


@dataclass
class _Work:
    run: Work
    locks: bool = True
    writes: bool = True


def _perform(connection: Connection, parameters: Parameters, name: str, work: _Work) -> Step:
    server = connection.server
    read_only = work.locks and (connection.transaction or connection).read_only
    if read_only and server.engine is Engine.MYSQL:
        return _READ_ONLY
    refused = refusal(connection)
    if refused is not None:
        return refused
    if read_only:
        return _READ_ONLY
    table = server.tables.get(name)
    if table is None:
        return ServerError(1146, f"Table '{name}' doesn't exist")
    if work.locks and "write" in server.stalled:
        return Later(
            "write", lambda: _perform(connection, parameters, name, work), lambda: None, flushes=False
        )
    if connection.transaction is None:
        if not work.locks:
            connection.read_only = False
            return work.run(connection, table, parameters, None)
        connection.begin()
        connection.implicit = True
    assert connection.transaction is not None
    return _in_transaction(connection, connection.transaction, table, parameters, work)


def _in_transaction(
    connection: Connection, transaction: Transaction, table: Table, parameters: Parameters, work: _Work
) -> Step:
    before = len(transaction.undo)
    transaction.begun = True
    try:
        result = work.run(connection, table, parameters, transaction)
    except Blocked:
        transaction.undo_to(before)  # it is begun again
        raise
    failed = isinstance(result, ServerError)
    transaction.marked |= work.writes and not failed
    if failed:
        transaction.undo_to(before)
    if not connection.implicit:
        return result
    if failed or not transaction.undo:
        connection.end_statement(failed)
        return result

    def effect() -> Step:
        connection.end_statement(failed=False)
        return result

    return Later("autocommit", effect, lambda: connection.end_statement(failed=True))


def _select(found: re.Match[str], table: Table) -> _Work:
    where = _where(found["where"], table, _Values())
    columns = [_column(text.strip(), table) for text in found["columns"].split(", ")]
    counts = found["columns"] == "COUNT(*)"
    order = table.index[found["order"]] if found["order"] else None
    limit = int(found["limit"]) if found["limit"] else None
    described = tuple((name, kind) for name, kind, _ in columns)

    def run(
        connection: Connection, table: Table, parameters: Parameters, transaction: Transaction | None
    ) -> Ok:
        read = _reader(connection, table, transaction, found["lock"])
        rows = []
        for key in where.rows(table, parameters):
            row = read(key)
            if row is not None and where.matches(row, parameters):
                rows.append(row)
        if order is not None:
            rows.sort(key=lambda row: str(row[order]), reverse=bool(found["desc"]))
        rows = rows[:limit]
        if counts:
            return Ok(((cell(len(rows), connection.raw),),), 1, columns=described)
        cells = tuple(tuple(cell(get(row), connection.raw) for _, _, get in columns) for row in rows)
        return Ok(cells, len(cells), columns=described)

    return _Work(run, locks=bool(found["lock"]), writes=False)


def _reader(
    connection: Connection, table: Table, transaction: Transaction | None, lock: str | None
) -> Callable[[Key], Row | None]:
    if lock and transaction is not None:
        locking = transaction

        def locked(key: Key) -> Row | None:
            connection.server.locks.take(locking, table, key, exclusive=lock == " FOR UPDATE")
            return table.newest(key)

        return locked
    if connection.isolation == "REPEATABLE READ" and transaction is not None and transaction.snapshot is None:
        transaction.snapshot = connection.server.commits
    uncommitted = connection.isolation == "READ UNCOMMITTED"
    return lambda key: table.visible(key, transaction, uncommitted)


def _column(text: str, table: Table) -> tuple[str, int, Callable[[Row], object]]:
    if text == "COUNT(*)":
        return text, INTEGER, lambda row: 1
    if text.startswith("HEX("):
        place = table.index[text[4:-1]]
        return text, 253, lambda row: _hex(row[place])
    place = table.index[text]
    return text, table.shape.types[place], lambda row: row[place]


def _hex(value: object) -> str:
    return (value if isinstance(value, bytes) else str(value).encode()).hex().upper()


def _insert(found: re.Match[str], table: Table) -> _Work:
    values = _Values()
    shape = table.shape
    places = [table.index[name.strip()] for name in found["columns"].split(",")]
    texts = found["values"] or found["sealed"] + found["names"]
    literals = [values.read(text) for text in _VALUE.findall(texts)]
    assert len(places) == len(literals), found[0]
    keeps = bool(found["keep"])

    def run(
        connection: Connection, table: Table, parameters: Parameters, transaction: Transaction | None
    ) -> Ok | ServerError:
        assert transaction is not None
        if found["lock"] and connection.server.user_locks.get(found["lock"]) is not connection:
            return ServerError(1242, "Subquery returns more than 1 row")
        row = list(shape.defaults)
        for place, literal in zip(places, literals, strict=True):
            row[place] = typed(literal(parameters), shape.types[place])
        key = tuple(row[: shape.key])
        locks = connection.server.locks
        connection.handler_writes += 1
        if table.newest(key) is not None:
            locks.take(transaction, table, key, exclusive=keeps)
        if table.newest(key) is not None:
            if keeps:
                return Ok()
            return ServerError(1062, f"Duplicate entry '{key[0]}' for key 'PRIMARY'")
        locks.take(transaction, table, key)
        transaction.write(table, key, tuple(row))
        return Ok(row_count=1)

    return _Work(run)


def _changing(where: _Where, change: Callable[[Row, Parameters], Row | None]) -> _Work:
    assert where.keys is not None, "rows are changed by their keys only"

    def run(
        connection: Connection, table: Table, parameters: Parameters, transaction: Transaction | None
    ) -> Ok:
        assert transaction is not None
        changed = 0
        for key in where.rows(table, parameters):
            if table.newest(key) is None and key not in table.pending:
                continue
            connection.server.locks.take(transaction, table, key)
            row = table.newest(key)
            if row is None or not where.matches(row, parameters):
                continue
            after = change(row, parameters)
            if after != row:
                connection.handler_writes += 1
                transaction.write(table, key, after)
                changed += 1
        return Ok(row_count=changed)

    return _Work(run)


def _update(found: re.Match[str], table: Table) -> _Work:
    values = _Values()
    changes = [
        (table.index[column], greatest, sign, values.read(text))
        for column, greatest, sign, text in _ASSIGNMENT.findall(found["set"])
    ]
    where = _where(found["where"], table, values)

    def change(row: Row, parameters: Parameters) -> Row:
        after: list[Any] = list(row)
        for place, greatest, sign, literal in changes:
            value: Any = typed(literal(parameters), table.shape.types[place])
            if greatest:
                value = max(after[place], value)
            elif sign:
                value = after[place] + (value if sign == "+" else -value)
            after[place] = value
        return tuple(after)

    return _changing(where, change)


def _delete(found: re.Match[str], table: Table) -> _Work:
    return _changing(_where(found["where"], table, _Values()), lambda row, parameters: None)
