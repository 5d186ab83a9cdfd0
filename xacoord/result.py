"""Result: what one statement returned; RunResult: what a whole `run` returned.

Rows are decoded when they are first read: a value that cannot be decoded must not make a
committed transaction look failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from dtp import Outcome
from participant_agent.v1 import statement_pb2 as pb
from xacoord.values import SqlValue, decode_value

Row = tuple[SqlValue, ...]


class Result:
    """The rows and counts of one statement. Iterating gives the rows.

    Attributes:
        columns: the columns' names, empty where the statement returns no rows.
        rowcount: rows returned by a query, otherwise rows affected as the server counts them.
        last_insert_id: the AUTO_INCREMENT value made, or 0.
        warnings: how many the server had.
    """

    __slots__ = ("_message", "_rows", "columns", "last_insert_id", "rowcount", "warnings")

    def __init__(self, message: pb.StatementResult) -> None:
        self._message: pb.StatementResult | None = message
        self._rows: tuple[Row, ...] = ()
        self.columns = tuple(column.name for column in message.columns)
        self.rowcount = message.row_count
        self.last_insert_id = message.last_insert_id
        self.warnings = message.warnings

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, as tuples of Python values (see `xacoord.values`).

        Raises:
            ValueError: a value of a kind that this SDK does not know.
        """
        message = self._message
        if message is not None:
            self._rows = tuple(tuple(decode_value(value) for value in row.values) for row in message.rows)
            self._message = None
        return self._rows

    def one(self) -> Row:
        """The only row.

        Raises:
            LookupError: there is none, or more than one.
        """
        if len(self.rows) != 1:
            raise LookupError(f"exactly one row was expected, there are {len(self.rows)}")
        return self.rows[0]

    def scalar(self) -> SqlValue:
        """The only row's first value.

        Raises:
            LookupError: there is no row, or more than one.
        """
        return self.one()[0]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        # No rows: they are data and don't belong in logs.
        return f"<Result columns={self.columns} rowcount={self.rowcount}>"


@dataclass(frozen=True, slots=True)
class RunResult:
    """A `run` that committed.

    Attributes:
        gtrid: the transaction's id.
        outcome: COMMITTED.
        results: participant -> one Result a statement, in order. Empty where `replayed`, and
            where the answer was lost and the outcome had to be asked for.
        replayed: the work was committed by an earlier call with the same idempotency key.
        completed: every branch has acknowledged; otherwise the last ones are on their way.
    """

    gtrid: str
    outcome: Outcome
    completed: bool
    replayed: bool = False
    results: Mapping[str, tuple[Result, ...]] = field(default_factory=lambda: MappingProxyType({}))
