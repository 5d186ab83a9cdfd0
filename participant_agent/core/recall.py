"""Recall: all that a participant knows of transactions whose coordinator has lost its log.

XA RECOVER is read before the witness rows (a branch that commits in between is found by its row), committed
rows before dirty ones. The row of a branch that is only prepared is seen at READ UNCOMMITTED: it was written
in the branch, and names all participants of the transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dtp import Xid

from .effects import Ok, Procedure, Query
from .engine import Engine
from .recovery import Lookup, listed_and_committed, read_rows, rows_of, unavailable


@dataclass(frozen=True, slots=True)
class Recollection:
    """What is known of one transaction here; `participants`: whom its row names, empty: none was found."""

    state: Lookup
    prepared: bool
    participants: tuple[int, ...] = ()


def recall(
    engine: Engine,
    table: str | None,
    purged_to: Callable[[], str],
    bqual_number: int,
    gtrids: tuple[str, ...],
) -> Procedure[dict[str, Recollection]]:
    """Evidence about `gtrids`; `Query` needs a session in no transaction, whose isolation is left as it was.

    `purged_to` is asked after the rows were read: what a purge deletes meanwhile, it has announced before.
    """
    wanted = rows_of(table, bqual_number, gtrids)
    prepared, committed = yield from listed_and_committed(engine, bqual_number, wanted)
    dirty: dict[str, str] = {}
    if wanted is not None:
        # For the next statement only; nothing is left behind.
        relaxed = yield Query("SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
        if not isinstance(relaxed, Ok):
            raise unavailable(relaxed, "reading witness rows of prepared branches")
        dirty = yield from read_rows(wanted)
    unprovable = purged_to()
    found: dict[str, Recollection] = {}
    for gtrid in gtrids:
        is_prepared = Xid.of(gtrid, bqual_number) in prepared
        if gtrid in committed:
            state = Lookup.COMMITTED
        elif is_prepared or gtrid in dirty:  # a row that is not committed: somebody's work is still open
            state = Lookup.UNDECIDED
        else:
            provable = table is not None and gtrid >= unprovable
            state = Lookup.NOT_COMMITTED if provable else Lookup.NONE
        names = committed.get(gtrid) or dirty.get(gtrid) or ""
        found[gtrid] = Recollection(state, is_prepared and gtrid not in committed, _numbers(names))
    return found


def _numbers(named: str) -> tuple[int, ...]:
    """The participants of a row; a row that somebody has made unreadable names nobody."""
    try:
        return tuple(sorted({int(part, 36) for part in named.split(",")}))
    except ValueError:
        return ()
