"""Random sequences: mostly what makes sense next, and now and then anything at all.

The twin is asked while a sequence is made, because what makes sense depends on the state that a session is
in, and a session that waits for a lock can do nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from dtp import Xid
from participant_agent.core.engine import Engine
from tests.fidelity.steps import ACCOUNTS, SESSIONS, TRANSFERS, Outcome, Step
from tests.fidelity.twin import TwinSide
from tests.simulation.mysql_locks import least_changed
from tests.simulation.mysql_tables import Transaction
from tests.simulation.mysql_xa import State

XIDS = (Xid(1, b"g1", b"b1"), Xid(1, b"g1", b"b2"), Xid(1, b"\xff\x00g2", b"b1"))
_OTHER_FORMAT = Xid(2, b"g1", b"b1")
_Options: TypeAlias = tuple[tuple[str, float], ...]
_FREE_SESSION: _Options = (
    ("XA START {}", 10),
    ("XA COMMIT {}", 3),
    ("XA ROLLBACK {}", 2),
    ("UPDATE", 1),
    ("INSERT", 1),
    ("BEGIN", 0.5),
)
_NEXT: dict[State, _Options] = {
    State.ACTIVE: (
        ("XA END {}", 6),
        ("UPDATE", 6),
        ("INSERT", 5),
        ("SELECT", 2),
        ("LOCK", 1),
        ("SAVEPOINT s", 0.5),
    ),
    State.IDLE: (("XA PREPARE {}", 8), ("XA COMMIT {} ONE PHASE", 2), ("XA ROLLBACK {}", 1)),
    State.PREPARED: (("XA COMMIT {}", 4), ("XA ROLLBACK {}", 2), ("drop", 2)),
    State.ROLLBACK_ONLY: (("XA END {}", 2), ("XA ROLLBACK {}", 4), ("XA COMMIT {}", 1), ("UPDATE", 1)),
}
_LOCAL: _Options = (("UPDATE", 3), ("INSERT", 3), ("SELECT", 2), ("COMMIT", 2), ("ROLLBACK", 2))
_ANYTHING = (
    "XA START {}",
    "XA START {} JOIN",
    "XA START {} RESUME",
    "XA END {}",
    "XA END {} SUSPEND",
    "XA PREPARE {}",
    "XA COMMIT {}",
    "XA COMMIT {} ONE PHASE",
    "XA ROLLBACK {}",
    "UPDATE",
    "INSERT",
    "SELECT",
    "LOCK",
    "SELECT 1",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "RELEASE SAVEPOINT s",
    "SELEC 1",
    "drop",
    "kill",
)


@dataclass(frozen=True)
class Kind:
    """What may occur in a sequence, beside the ordinary.

    Attributes:
        crashes: kill -9 and start.
        time_outs: lock waits end after a second; else nobody's does.
    """

    crashes: bool = False
    time_outs: bool = False


@dataclass
class Sequence:
    """A sequence and what the twin said to it; `deadlocks` has the steps where there was one."""

    seed: int
    kind: Kind
    steps: list[Step]
    outcomes: list[Outcome]
    deadlocks: list[int] = field(default_factory=list)


def make(
    engine: Engine, seed: int, kind: Kind, length: int, other_victims: frozenset[int] = frozenset()
) -> Sequence:
    """A sequence.

    Args:
        other_victims: numbers of the deadlocks in which the server chooses the other transaction as victim.
    """
    maker = _Maker(engine, seed, kind, other_victims)
    try:
        while len(maker.sequence.steps) < length:
            maker.add()
    finally:
        maker.twin.close()
    return maker.sequence


class _Maker:
    def __init__(self, engine: Engine, seed: int, kind: Kind, other_victims: frozenset[int]) -> None:
        self._random = Random(seed)
        self._kind = kind
        self.twin = TwinSide(engine, 1 if kind.time_outs else 50)
        self.sequence = Sequence(seed, kind, [], [])
        self._opened = 0
        self._other_victims = other_victims
        self.twin.server.locks.choose_victim = self._victim

    def _victim(self, circle: list[Transaction], asking: Transaction) -> Transaction:
        number = len(self.sequence.deadlocks)
        self.sequence.deadlocks.append(len(self.sequence.steps) - 1)
        chosen = least_changed(circle, asking)
        if number in self._other_victims:
            chosen = next(one for one in circle if one is not chosen)
        return chosen

    def _open(self, name: str) -> None:
        self._do(Step("open", name, number=self._opened))
        self._opened += 1

    def _do(self, step: Step) -> None:
        self.sequence.steps.append(step)
        self.sequence.outcomes.append(self.twin.do(step))

    def add(self) -> None:
        """Add a step."""
        twin, random = self.twin, self._random
        for name in SESSIONS:
            if name not in twin.sessions:
                self._open(name)
                return
        if self._kind.crashes and random.random() < 0.08:
            self._do(Step("crash"))
            return
        if twin.blocked and self._kind.time_outs and random.random() < 0.3:
            self._do(Step("wait"))
            return
        free = [name for name in SESSIONS if name not in twin.blocked]
        if twin.blocked and (not free or random.random() < 0.15):
            name = random.choice(sorted(twin.blocked))
            self._do(Step(random.choice(("drop", "kill", "kill_query")), name))
            return
        name = random.choice(free)
        if random.random() < 0.01 and self._begin_read_only(name):
            return
        self._do(self._step(name))

    def _begin_read_only(self, name: str) -> bool:
        """SET TRANSACTION READ ONLY and XA START, where that will succeed."""
        taken = self.twin.server.branches
        unused = [xid for xid in XIDS if (xid.gtrid, xid.bqual) not in taken]
        if self.twin.sessions[name].transaction is not None or not unused:
            return False
        for sql in ("SET TRANSACTION READ ONLY", f"XA START {self._random.choice(unused).sql()}"):
            self._do(Step("query", name, sql))
        return True

    def _step(self, name: str) -> Step:
        text = self._text(name)
        if text in ("drop", "kill"):
            return Step(text, name)
        if text == "INSERT":
            row = (self._random.choice(TRANSFERS), self._random.randint(1, 9))
            return Step("query", name, "INSERT INTO transfer (id, amount) VALUES (%s, %s)", row)
        account = self._random.choice(ACCOUNTS if self._random.random() < 0.95 else (9,))
        if text == "UPDATE":
            amount = self._random.choice((-2, -1, 0, 1, 2, 3))
            sql = "UPDATE account SET balance = balance + %s WHERE id = %s"
            return Step("query", name, sql, (amount, self._random.choice(ACCOUNTS)))
        if text == "SELECT":
            return Step("query", name, "SELECT balance FROM account WHERE id = %s", (account,))
        if text == "LOCK":
            sql = "SELECT balance FROM account WHERE id = %s FOR UPDATE"
            return Step("query", name, sql, (self._random.choice(ACCOUNTS),))
        return Step("query", name, text)

    def _text(self, name: str) -> str:
        random, connection = self._random, self.twin.sessions[name]
        if random.random() < 0.15:
            return random.choice(_ANYTHING).replace("{}", self._any_xid().sql())
        branch = connection.branch
        options = _FREE_SESSION if connection.transaction is None else _LOCAL
        xid = self._any_xid()
        if branch is not None:
            options, xid = _NEXT[branch.state], branch.xid
        texts, weights = zip(*options, strict=True)
        text: str = random.choices(texts, weights)[0]
        return text.replace("{}", xid.sql())

    def _any_xid(self) -> Xid:
        if not self._kind.crashes and self._random.random() < 0.05:
            return _OTHER_FORMAT
        return self._random.choice(XIDS)
