"""Steps of a sequence, and what is compared after each: the same for the twin and for the real server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from dtp import Xid
from participant_agent.core.effects import Lost, Ok, Result, ServerError

SESSIONS = ("A", "B")
ACCOUNTS = (1, 2, 3)
TRANSFERS = ("t1", "t2", "t3")
BALANCE = 100
# Between those that sequences insert, so that no gap is shared: the twin has no gap locks.
OTHER_TRANSFERS = ("t0", "t15", "t25", "t35")
TABLES = (
    "CREATE TABLE account (id INT PRIMARY KEY, balance BIGINT NOT NULL) ENGINE = InnoDB",
    "CREATE TABLE transfer (id VARCHAR(64) PRIMARY KEY, amount BIGINT NOT NULL) ENGINE = InnoDB",
    "CREATE TABLE tick (id INT PRIMARY KEY, at BIGINT NOT NULL) ENGINE = InnoDB",
)

Answer: TypeAlias = tuple[object, ...]
BLOCKED: Answer = ("blocked",)

_STATE = re.compile(r"in the +(.*) state")


@dataclass(frozen=True)
class Step:
    """One thing that is done.

    Attributes:
        what: query, drop (the client vanishes), open, kill (KILL), kill_query, crash, wait (until waits end).
        session: whose.
        number: of an open, counted from 0: names the session that it opens.
    """

    what: str
    session: str = ""
    sql: str = ""
    parameters: tuple[object, ...] = ()
    number: int = 0

    def __str__(self) -> str:
        shown = self.sql
        for parameter in self.parameters:
            shown = shown.replace("%s", repr(parameter), 1)
        return f"{self.session or '-':<2}{self.what:<6} {shown}"


@dataclass
class Outcome:
    """What is known after a step.

    Attributes:
        answers: of the step's session, and of those that waited and were answered by now.
        prepared, accounts, transfers: what XA RECOVER lists and what is committed.
        ended: sessions that have ended by now though their clients left before (the twin's alone).
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    prepared: tuple[str, ...] = ()
    accounts: tuple[tuple[object, ...], ...] = ()
    transfers: tuple[tuple[object, ...], ...] = ()
    ended: tuple[int, ...] = field(default=(), compare=False)


def answer_of(result: Result) -> Answer:
    """An answer without what may differ: texts, but the state in a 1399."""
    if isinstance(result, Ok):
        return ("ok", result.row_count, *(tuple(map(_shown, row)) for row in result.rows))
    if isinstance(result, ServerError):
        state = _STATE.search(result.message) if result.errno == 1399 else None
        return ("error", result.errno, *([state[1]] if state else []))
    assert isinstance(result, Lost), result
    return ("lost",)


def _shown(cell: object) -> object:
    return cell.decode() if isinstance(cell, bytes) else cell


def names(xids: list[Xid]) -> tuple[str, ...]:
    """XIDs in an order, to be compared."""
    return tuple(sorted(map(str, xids)))
