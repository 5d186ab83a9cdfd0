"""The states of one branch, as a table (XA specification, tables 6-2 to 6-4, reduced to what MySQL has).

What is absent from the table is a protocol error and changes nothing. NON_EXISTENT is where a
branch begins and ends; HEURISTICALLY_COMPLETED is left only by an operator's FORGET.
"""

from __future__ import annotations

from dtp.term import Term


class BranchState(Term):
    """Where a branch is, as its resource manager sees it."""

    NON_EXISTENT = "NON_EXISTENT"
    ACTIVE = "ACTIVE"
    IDLE = "IDLE"
    PREPARED = "PREPARED"
    ROLLBACK_ONLY = "ROLLBACK_ONLY"
    HEURISTICALLY_COMPLETED = "HEURISTICALLY_COMPLETED"


class BranchEvent(Term):
    """What happened to a branch; every name is in the past."""

    STARTED = "STARTED"
    ENDED = "ENDED"
    DOOMED = "DOOMED"
    PREPARED = "PREPARED"
    VOTED_READ_ONLY = "VOTED_READ_ONLY"
    COMMITTED = "COMMITTED"
    COMMITTED_ONE_PHASE = "COMMITTED_ONE_PHASE"
    ROLLED_BACK = "ROLLED_BACK"
    ENDED_BY_OTHERS = "ENDED_BY_OTHERS"
    FORGOTTEN = "FORGOTTEN"


_S, _E = BranchState, BranchEvent

TRANSITIONS: dict[BranchState, dict[BranchEvent, BranchState]] = {
    _S.NON_EXISTENT: {
        _E.STARTED: _S.ACTIVE,
    },
    _S.ACTIVE: {
        _E.ENDED: _S.IDLE,
        _E.DOOMED: _S.ROLLBACK_ONLY,
        _E.ROLLED_BACK: _S.NON_EXISTENT,
    },
    _S.IDLE: {
        _E.PREPARED: _S.PREPARED,
        _E.VOTED_READ_ONLY: _S.NON_EXISTENT,
        _E.COMMITTED_ONE_PHASE: _S.NON_EXISTENT,
        _E.DOOMED: _S.ROLLBACK_ONLY,
        _E.ROLLED_BACK: _S.NON_EXISTENT,
    },
    _S.PREPARED: {
        _E.COMMITTED: _S.NON_EXISTENT,
        _E.ROLLED_BACK: _S.NON_EXISTENT,
        _E.ENDED_BY_OTHERS: _S.HEURISTICALLY_COMPLETED,
    },
    _S.ROLLBACK_ONLY: {
        _E.ROLLED_BACK: _S.NON_EXISTENT,
    },
    _S.HEURISTICALLY_COMPLETED: {
        _E.FORGOTTEN: _S.NON_EXISTENT,
    },
}


def next_branch_state(state: BranchState, event: BranchEvent) -> BranchState | None:
    """The state after `event`, or None where the table has no such transition."""
    return TRANSITIONS[state].get(event)
