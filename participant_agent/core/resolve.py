"""Resolve: what became of a branch when the server's answer does not say.

XAER_NOTA (1397) can mean committed, rolled back, never prepared, held by another session or just being
committed. A lost connection can mean anything. The proof is made in this order, and the order matters:
 1. no session works on the branch any more (the caller ended it, `sessions.end_session`);
 2. XA RECOVER does not list it (listed: it is prepared, or a commit is in flight: ask again);
 3. the witness row, written inside the branch: present = committed, absent = rolled back.
Without witness rows nothing proves the end of a branch that wrote.
"""

from __future__ import annotations

from dataclasses import dataclass

from dtp import Xid
from dtp.term import Term

from .effects import Ok, OnControl, Procedure, Query, Sleep, number
from .engine import Engine

_LOOK_AGAIN_SECONDS = 0.05


class Proof(Term):
    """What is known about a branch that no session works on."""

    PREPARED = "XA RECOVER lists it"
    COMMITTED = "its witness row is there"
    NO_WITNESS = "not prepared, and its witness row is not there"
    NOTHING = "not prepared, and it would have no witness row"
    UNREACHABLE = "the server could not be asked"


@dataclass(frozen=True, slots=True)
class Evidence:
    """How evidence is kept.

    Attributes:
        table: the witness table as SQL, None where branches write no witness rows.
        purged_to: witness rows of gtrids below this one may be gone; "" where none was purged.
    """

    table: str | None
    purged_to: str = ""

    def provable(self, xid: Xid) -> bool:
        """True where the absence of the witness row proves that the branch did not commit."""
        return self.table is not None and xid.gtrid >= self.purged_to.encode()


def is_prepared(engine: Engine, xid: Xid) -> Procedure[bool | None]:
    """Whether XA RECOVER lists the branch; None where the server cannot be asked."""
    listed = yield OnControl(Query(engine.recover_sql))
    if not isinstance(listed, Ok):
        return None
    return xid in engine.prepared(listed.rows)


def has_witness(evidence: Evidence, xid: Xid) -> Procedure[bool | None]:
    """Whether the branch's witness row is there; None where the server cannot be asked."""
    found = yield OnControl(
        Query(
            f"SELECT COUNT(*) FROM {evidence.table} "
            f"WHERE gtrid = X'{xid.gtrid.hex()}' AND bqual = X'{xid.bqual.hex()}'"
        )
    )
    if not isinstance(found, Ok):
        return None
    return number(found.rows[0][0]) > 0


def resolve(engine: Engine, evidence: Evidence, xid: Xid) -> Procedure[Proof]:
    """What became of a branch that no session works on.

    A missing row is looked for twice, a moment apart: what follows from it is an alarm or a rollback for
    good.
    """
    for attempt in range(2):
        prepared = yield from is_prepared(engine, xid)
        if prepared is None:
            return Proof.UNREACHABLE
        if prepared:
            return Proof.PREPARED
        if evidence.table is None:
            return Proof.NOTHING
        witness = yield from has_witness(evidence, xid)
        if witness is None:
            return Proof.UNREACHABLE
        if witness:
            return Proof.COMMITTED
        if attempt == 0:
            yield Sleep(_LOOK_AGAIN_SECONDS)
    return Proof.NO_WITNESS if evidence.provable(xid) else Proof.NOTHING
