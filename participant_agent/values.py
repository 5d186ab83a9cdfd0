"""Values: typed SQL values on the wire, as SQL literals and as cells of rows.

To the server: parameters are put into the text as literals, each in the one form that loses nothing (decimals
as exact numbers, bytes as _binary). From the server: cells arrive as text and are typed by their column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from dtp import Reason, XacoordError
from participant_agent.core.effects import Ok
from participant_agent.core.errors import Failure
from participant_agent.core.work import Statement
from participant_agent.guard import MAX_PARAMETERS, OWN_SCHEMA, guard
from participant_agent.v1 import statement_pb2 as pb

# Numbers of the client/server protocol's column types.
_INTEGERS = frozenset({1, 2, 3, 8, 9, 13})
_REALS = frozenset({4, 5})
_DECIMALS = frozenset({0, 246})
_DATES = frozenset({10, 14})
_DATETIMES = frozenset({7, 12})
_TIME = 11
_BIT = 16
_GEOMETRY = 255

# Not \d, which matches digits of every script: what is not quoted would be read as a name.
_DECIMAL = re.compile(r"[+-]?([0-9]{1,65}(\.[0-9]{0,38})?|\.[0-9]{1,38})")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DATETIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?")
_TIME_TEXT = re.compile(r"-?[0-9]{2,3}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?")
_PLACEHOLDER = re.compile(r"%(.?)", re.DOTALL)

Quote = Callable[[bytes], bytes]


def _invalid(message: str) -> XacoordError:
    return XacoordError(Reason.INVALID_REQUEST, message)


def check_value(value: pb.Value) -> None:
    """Raise INVALID_REQUEST where a parameter has no SQL form."""
    kind = value.WhichOneof("kind")
    if kind is None:
        raise _invalid("a parameter has no value; use null for NULL")
    if kind == "real" and not math.isfinite(value.real):
        raise _invalid("a real parameter is not finite; SQL has no infinity and no NaN")
    pattern = {"decimal": _DECIMAL, "date": _DATE, "datetime": _DATETIME, "time": _TIME_TEXT}.get(kind)
    if pattern is not None and not pattern.fullmatch(getattr(value, kind)):
        raise _invalid(f"a {kind} parameter has not the form that statement.proto gives for it")


def literal(value: pb.Value, quote: Quote) -> bytes:
    """`value` as SQL. `quote` escapes and quotes bytes for the session's charset and sql_mode."""
    kind = value.WhichOneof("kind")
    if kind == "null":
        return b"NULL"
    if kind in ("integer", "unsigned_integer"):
        return b"%d" % getattr(value, kind)
    if kind == "real":
        return repr(value.real).encode() if "e" in repr(value.real) else f"{value.real!r}e0".encode()
    if kind == "decimal":
        return value.decimal.encode()
    if kind == "blob":
        return b"_binary" + quote(value.blob)
    return quote(str(getattr(value, kind or "text")).encode("utf-8"))


def render(sql: str, parameters: Sequence[object], quote: Quote) -> bytes:
    """The statement to send: `%s` replaced in order, `%%` by a percent sign; as it is without parameters."""
    if not parameters:
        return sql.encode("utf-8")
    rest = iter(parameters)
    parts: list[bytes] = []
    place = 0
    for found in _PLACEHOLDER.finditer(sql):
        parts.append(sql[place : found.start()].encode("utf-8"))
        parts.append(_own_or_client(next(rest), quote) if found[1] == "s" else b"%")
        place = found.end() if found[1] in ("s", "%") else found.start() + 1
    parts.append(sql[place:].encode("utf-8"))
    return b"".join(parts)


def _own_or_client(value: object, quote: Quote) -> bytes:
    if isinstance(value, pb.Value):
        return literal(value, quote)
    if isinstance(value, int):
        return b"%d" % value
    return quote(str(value).encode("utf-8"))


def read_statements(
    statements: Sequence[pb.Statement],
    backslash_escapes: bool = True,
    ansi_quotes: bool = False,
    schema: str = OWN_SCHEMA,
) -> tuple[Statement, ...]:
    """Check and read the statements of a call. How literals are read is the sql_mode's (guard.py).

    Raises:
        XacoordError: STATEMENT_REFUSED or INVALID_REQUEST, with the statement's index as metadata.
    """
    if not 1 <= len(statements) <= 256:
        raise _invalid(f"{len(statements)} statements; a call has 1 to 256")
    result = []
    for index, statement in enumerate(statements):
        try:
            result.append(_read_statement(statement, (backslash_escapes, ansi_quotes, schema)))
        except XacoordError as error:
            error.metadata["statement"] = str(index)
            raise
    return tuple(result)


def _read_statement(statement: pb.Statement, reading: tuple[bool, bool, str]) -> Statement:
    count = len(statement.parameters)
    if count > MAX_PARAMETERS:
        raise _invalid(f"{count} parameters; a statement has at most {MAX_PARAMETERS}")
    guarded = guard(statement.sql, *reading)
    if count and guarded.placeholders != count:
        raise _invalid(f"{count} parameters for {guarded.placeholders} placeholders (%s)")
    if count and guarded.quoted_placeholder:
        raise _invalid(
            "a %s inside quotes or a comment; leave out the quotes, or write %%s for the characters"
        )
    for value in statement.parameters:
        check_value(value)
    return Statement(
        statement.sql,
        tuple(statement.parameters),
        guarded.plain_read,
        statement.expect_rows if statement.HasField("expect_rows") else None,
        statement.min_rows if statement.HasField("min_rows") else None,
        guarded.calls,
        guarded.simple,
        statement.ByteSize(),
    )


def refusal(error: XacoordError) -> Failure:
    """A refusal as the failure of a branch."""
    statement = error.metadata.get("statement")
    return Failure(error.reason, error.message, 0, int(statement) if statement is not None else None)


def result_message(result: Ok) -> pb.StatementResult:
    """What a statement returned, for the client."""
    message = pb.StatementResult(
        row_count=max(0, result.row_count), last_insert_id=result.last_insert_id, warnings=result.warnings
    )
    columns: Any = result.columns
    if columns:
        message.columns.extend(pb.Column(name=name) for name, _ in columns)
        kinds = [kind for _, kind in columns]
        for row in result.rows:
            cells = zip(row, kinds, strict=True)
            message.rows.add().values.extend(cell_value(cell, kind) for cell, kind in cells)
    return message


def cell_value(cell: object, kind: int) -> pb.Value:
    """One cell of a row, typed by its column's type number."""
    if cell is None:
        return pb.Value(null=True)
    if kind in _INTEGERS:
        integer = int(cell if isinstance(cell, str) else bytes(cell).decode("ascii"))  # type: ignore[call-overload]
        return pb.Value(integer=integer) if integer < 1 << 63 else pb.Value(unsigned_integer=integer)
    if isinstance(cell, bytes) and (kind in (_BIT, _GEOMETRY) or not _is_textual(kind)):
        return pb.Value(blob=cell)
    shown = cell if isinstance(cell, str) else bytes(cell).decode("utf-8")  # type: ignore[call-overload]
    if kind in _REALS:
        return pb.Value(real=float(shown))
    if kind in _DECIMALS:
        return pb.Value(decimal=shown)
    if kind in _DATES:
        return pb.Value(date=shown)
    if kind in _DATETIMES:
        return pb.Value(datetime=shown)
    if kind == _TIME:
        return pb.Value(time=shown)
    return pb.Value(text=shown)


def _is_textual(kind: int) -> bool:
    return kind in _REALS or kind in _DECIMALS or kind in _DATES or kind in _DATETIMES or kind == _TIME
