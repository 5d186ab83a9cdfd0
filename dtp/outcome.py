"""Outcome: what became of a transaction or of one branch."""

from __future__ import annotations

from collections.abc import Iterable

from dtp.decision import Decision
from dtp.term import Term


class Outcome(Term):
    """UNKNOWN means just that: ask again. It is never replaced by a guess.

    The heuristic ones say that someone else ended a prepared branch against or without the
    decision: HEURISTIC_COMMIT and HEURISTIC_ROLLBACK name what was done everywhere,
    HEURISTIC_MIXED that branches differ, HEURISTIC_HAZARD that a branch is gone and no proof
    of its end exists.
    """

    UNKNOWN = "UNKNOWN"
    COMMITTED = "COMMITTED"
    ROLLED_BACK = "ROLLED_BACK"
    HEURISTIC_COMMIT = "HEURISTIC_COMMIT"
    HEURISTIC_ROLLBACK = "HEURISTIC_ROLLBACK"
    HEURISTIC_MIXED = "HEURISTIC_MIXED"
    HEURISTIC_HAZARD = "HEURISTIC_HAZARD"

    @property
    def heuristic(self) -> bool:
        """True where someone other than the coordinator decided."""
        return self in _HEURISTIC


_HEURISTIC = frozenset(outcome for outcome in Outcome if outcome.name.startswith("HEURISTIC"))
_AS_DECIDED = {Decision.COMMIT: Outcome.COMMITTED, Decision.ROLLBACK: Outcome.ROLLED_BACK}
_AGAINST = {Decision.COMMIT: Outcome.HEURISTIC_ROLLBACK, Decision.ROLLBACK: Outcome.HEURISTIC_COMMIT}


def combine(decision: Decision, branches: Iterable[Outcome]) -> Outcome:
    """The transaction's outcome from its branches'.

    A branch ended as decided is COMMITTED or ROLLED_BACK, one ended by someone else is
    HEURISTIC_COMMIT or HEURISTIC_ROLLBACK, one without proof is HEURISTIC_HAZARD.
    """
    seen = set(branches)
    if not any(outcome.heuristic for outcome in seen):
        return _AS_DECIDED[decision]
    committed = bool(seen & {Outcome.COMMITTED, Outcome.HEURISTIC_COMMIT, Outcome.HEURISTIC_MIXED})
    rolled_back = bool(seen & {Outcome.ROLLED_BACK, Outcome.HEURISTIC_ROLLBACK, Outcome.HEURISTIC_MIXED})
    if committed and rolled_back:
        return Outcome.HEURISTIC_MIXED
    if Outcome.HEURISTIC_HAZARD in seen:
        return Outcome.HEURISTIC_HAZARD
    return _AGAINST[decision] if (decision is Decision.COMMIT) == rolled_back else _AS_DECIDED[decision]
