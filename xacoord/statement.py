"""Statement and Branch: the work that a transaction is made of, as the caller writes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

WaitFor: TypeAlias = Literal["decided", "completed"]


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement.

    Attributes:
        sql: one statement; `%s` stands for a parameter, `%%` for a percent sign. Without
            parameters the text is sent as it is.
        params: the parameters, in order.
        expect_rows: exactly so many rows must be affected (or returned), or the transaction is
            rolled back.
        min_rows: at least so many rows must be affected (or returned), or the transaction is
            rolled back.
    """

    sql: str
    params: Sequence[object] = ()
    expect_rows: int | None = None
    min_rows: int | None = None


# A statement without expectations may be written as its text, or as (text, parameters).
StatementLike: TypeAlias = Statement | str | tuple[str, Sequence[object]]


@dataclass(frozen=True, slots=True)
class Branch:
    """The work at one participant, for `TransactionManager.run`.

    Attributes:
        participant: its name.
        statements: run in order; the first that fails rolls the whole transaction back.
        read_only: promises to change nothing, and the server enforces it.
    """

    participant: str
    statements: Iterable[StatementLike]
    read_only: bool = False


def as_statement(statement: StatementLike) -> Statement:
    """`statement` in full.

    Raises:
        TypeError: neither a Statement nor a text nor (text, parameters).
    """
    if isinstance(statement, Statement):
        return statement
    if isinstance(statement, str):
        return Statement(statement)
    if isinstance(statement, tuple) and len(statement) == 2:
        return Statement(*statement)
    raise TypeError(f"give a Statement, a str or (sql, params), not {type(statement).__qualname__}")
