"""Whose fence a takeover replaces, without a server: the fence's own statements on a table in memory.

SQLite evaluates the condition of the UPDATE as the servers do, after its spelling was changed.
"""

from __future__ import annotations

import re
import sqlite3

import pytest

from dtp import Reason, XacoordError
from participant_agent.core import recovery
from participant_agent.core.effects import Ok, OnControl, Query
from participant_agent.core.recovery import Fenced, Takeover

REMEMBERED = Fenced("0001", 7, 5, b"r" * 16, 55)
NEW = Fenced("0001", 7, 6, b"n" * 16, 66)
_SPELLING = (
    ("ON DUPLICATE KEY UPDATE number = number", "ON CONFLICT DO NOTHING"),
    ("GREATEST(", "MAX("),
    ("IN ((", "IN (VALUES ("),
    ("%s", "?"),
)


class Table:
    """The table of fences, with what is remembered."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:")
        self._connection.execute("ATTACH ':memory:' AS x")
        self._connection.execute(
            "CREATE TABLE x.coordinator (coordinator_id TEXT, participant TEXT, number INT, epoch INT, "
            "nonce INT, log_identity BLOB, purged_to TEXT, PRIMARY KEY (coordinator_id, participant))"
        )
        self.fence(REMEMBERED, None)

    def fence(self, wanted: Fenced, takeover: Takeover | None) -> Fenced:
        procedure = recovery.fence("x", "p", wanted, {wanted.epoch: wanted.nonce}, takeover)
        effect = next(procedure)
        try:
            while True:
                assert isinstance(effect, OnControl)
                effect = procedure.send(self._perform(effect.query))
        except StopIteration as ended:
            found: Fenced = ended.value
            return found

    def _perform(self, query: Query) -> Ok:
        sql = query.sql
        for theirs, ours in _SPELLING:
            sql = sql.replace(theirs, ours)
        assert not re.search("DUPLICATE|GREATEST", sql)
        cursor = self._connection.execute(sql, query.parameters)
        return Ok(tuple(cursor.fetchall()), cursor.rowcount)

    def remembered(self) -> tuple[object, ...]:
        found = self._connection.execute("SELECT number, epoch, nonce, log_identity FROM x.coordinator")
        row: tuple[object, ...]
        [row] = found.fetchall()
        return row


@pytest.mark.parametrize(
    "expected",
    [
        None,
        Takeover(4, 55, b"r" * 16),
        Takeover(5, 56, b"r" * 16),
        Takeover(5, 55, b"f" * 16),
        Takeover(4, 44, b"f" * 16),
    ],
)
def test_a_takeover_replaces_only_what_it_was_told(expected: Takeover | None) -> None:
    table = Table()
    with pytest.raises(XacoordError) as refused:
        table.fence(NEW, expected)
    assert refused.value.reason is Reason.LOG_IDENTITY_CHANGED
    assert table.remembered() == (7, 5, 55, b"r" * 16)


def test_a_takeover_replaces_what_it_was_told() -> None:
    table = Table()
    told = Takeover(5, 55, b"r" * 16)
    for _ in range(2):  # an answer was lost
        assert table.fence(NEW, told).nonce == 66
        assert table.remembered() == (7, 6, 66, b"n" * 16)
    with pytest.raises(XacoordError):
        table.fence(REMEMBERED, None)
    assert table.remembered() == (7, 6, 66, b"n" * 16)
