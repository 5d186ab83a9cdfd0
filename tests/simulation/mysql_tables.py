"""Tables and transactions of the simulation's MySQL: what is committed, what is pending, what may come
back.

Rows have versions, so that a plain read sees what InnoDB shows it: its own writes, else the snapshot of
its first read (REPEATABLE READ), the newest committed row (READ COMMITTED), or the newest row of anybody
(READ UNCOMMITTED). Only the holder of a row's exclusive lock writes it, so a row has at most one pending
version.

Left out: gaps. A twin's UPDATE of a row that is not there locks nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from tests.simulation.mysql_connection import Connection
    from tests.simulation.mysql_locks import RowLock, Wait

Key: TypeAlias = tuple[object, ...]
Row: TypeAlias = tuple[object, ...]

INTEGER, TEXT, BINARY = 8, 253, 254  # the protocol's column types, as far as clients look at them


@dataclass(frozen=True)
class Shape:
    """Columns of a table with their types and defaults; the first `key` of them are its primary key."""

    columns: tuple[str, ...]
    types: tuple[int, ...]
    key: int
    defaults: Row


SHAPES = {
    "witness": Shape(("gtrid", "bqual", "participants"), (TEXT, TEXT, TEXT), 2, ("", "", "")),
    "coordinator": Shape(
        ("coordinator_id", "participant", "number", "epoch", "nonce", "log_identity", "purged_to"),
        (TEXT, TEXT, INTEGER, INTEGER, INTEGER, BINARY, TEXT),
        2,
        ("", "", 0, 0, 0, b"", ""),
    ),
    "transfer": Shape(("id", "amount"), (TEXT, INTEGER), 1, ("", 0)),
    "account": Shape(("id", "balance"), (INTEGER, INTEGER), 1, (0, 0)),
}


class Table:
    """One table.

    Attributes:
        rows: what is committed.
        pending: key -> the transaction that has changed the row, and to what (None: deleted).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.shape = SHAPES[name.rpartition(".")[2]]
        self.index = {column: place for place, column in enumerate(self.shape.columns)}
        self.rows: dict[Key, Row] = {}
        self.pending: dict[Key, tuple[Transaction, Row | None]] = {}
        self._versions: dict[Key, list[tuple[int, Row | None]]] = {}

    def commit(self, key: Key, row: Row | None, number: int) -> None:
        """Make a version of a row the committed one. `number` counts the server's commits."""
        self._versions.setdefault(key, [(0, self.rows.get(key))]).append((number, row))
        if row is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = row
        self.pending.pop(key, None)

    def load(self, rows: Iterable[Row]) -> None:
        """Committed rows that were there from the beginning."""
        for row in rows:
            self.rows[row[: self.shape.key]] = row

    def newest(self, key: Key) -> Row | None:
        """The row as its writer sees it."""
        changed = self.pending.get(key)
        return changed[1] if changed is not None else self.rows.get(key)

    def visible(self, key: Key, reader: Transaction | None, uncommitted: bool) -> Row | None:
        """The row as a plain read sees it; a reader without a snapshot sees what is committed."""
        changed = self.pending.get(key)
        if changed is not None and (uncommitted or changed[0] is reader):
            return changed[1]
        if reader is not None and reader.snapshot is not None:
            versions = self._versions.get(key)
            if versions is not None:
                return next(row for number, row in reversed(versions) if number <= reader.snapshot)
        return self.rows.get(key)

    def keys(self) -> list[Key]:
        """Of every row that anybody may see, in order."""
        return sorted({*self.rows, *self.pending, *self._versions}, key=repr)


@dataclass(eq=False)
class Transaction:
    """A transaction of the engine.

    Attributes:
        owner: the session that works on it; None for a prepared branch that has none.
        undo: (table, key, whether the row was pending before, and what it was), oldest first.
        savepoints: how much was to be undone then, and whether it had begun.
        begun: it has looked at a table.
        marked: the server counts it as one that writes, also where nothing was changed.
        changed: it has a log of its own to roll back by, so that it survives once it is prepared.
        snapshot: the commit that plain reads see, once there was one.
    """

    owner: Connection | None
    read_only: bool = False
    undo: list[tuple[Table, Key, bool, Row | None]] = field(default_factory=list)
    savepoints: dict[str, tuple[int, bool]] = field(default_factory=dict)
    locks: dict[RowLock, None] = field(default_factory=dict)
    wait: Wait | None = None
    begun: bool = False
    marked: bool = False
    changed: bool = False
    snapshot: int | None = None

    def write(self, table: Table, key: Key, row: Row | None) -> None:
        """Change a row whose exclusive lock is held."""
        before = table.pending.get(key)
        self.undo.append((table, key, before is not None, before[1] if before else None))
        table.pending[key] = (self, row)
        self.changed = True

    def undo_to(self, length: int) -> None:
        """Undo everything but the first `length` changes."""
        while len(self.undo) > length:
            table, key, was_pending, row = self.undo.pop()
            if was_pending:
                table.pending[key] = (self, row)
            else:
                del table.pending[key]

    def apply(self, number: int) -> None:
        """Commit: what is pending is what everybody sees."""
        for table, key, _, _ in self.undo:
            changed = table.pending.get(key)
            if changed is not None:
                table.commit(key, changed[1], number)
        self.undo.clear()

    @property
    def rows(self) -> list[tuple[Table, Key]]:
        """The rows that it has changed."""
        return list(dict.fromkeys((table, key) for table, key, _, _ in self.undo))
