"""The states of a global transaction, as a table.

ACTIVE branches work; PREPARING branches are voting; COMMITTING and ROLLING_BACK are decided and
repeat phase 2 until every branch has answered. COMMITTED, ROLLED_BACK and HEURISTIC are ends;
HEURISTIC stays listed until an operator says FORGET.

What is absent from the table is refused and changes nothing. Retry is a counter, time-out an
input, a reason a field: none is a state.
"""

from __future__ import annotations

from dtp.term import Term


class State(Term):
    """Where a transaction is."""

    ACTIVE = "ACTIVE"
    PREPARING = "PREPARING"
    COMMITTING = "COMMITTING"
    ROLLING_BACK = "ROLLING_BACK"
    COMMITTED = "COMMITTED"
    ROLLED_BACK = "ROLLED_BACK"
    HEURISTIC = "HEURISTIC"


class Trigger(Term):
    """What moves a transaction; every name is in the past."""

    ENLISTED = "ENLISTED"
    COMMIT_REQUESTED = "COMMIT_REQUESTED"
    ROLLBACK_REQUESTED = "ROLLBACK_REQUESTED"
    REJECTED = "REJECTED"
    ALL_VOTED_OK = "ALL_VOTED_OK"
    ALL_READ_ONLY = "ALL_READ_ONLY"
    ONE_PHASE_COMMITTED = "ONE_PHASE_COMMITTED"
    ONE_PHASE_ROLLED_BACK = "ONE_PHASE_ROLLED_BACK"
    ALL_FINISHED = "ALL_FINISHED"
    FINISHED_BY_OTHERS = "FINISHED_BY_OTHERS"


_S, _T = State, Trigger

TRANSITIONS: dict[State, dict[Trigger, State]] = {
    _S.ACTIVE: {
        _T.ENLISTED: _S.ACTIVE,
        _T.COMMIT_REQUESTED: _S.PREPARING,
        _T.ROLLBACK_REQUESTED: _S.ROLLING_BACK,
        _T.REJECTED: _S.ROLLING_BACK,
    },
    _S.PREPARING: {
        _T.ALL_VOTED_OK: _S.COMMITTING,
        _T.ALL_READ_ONLY: _S.COMMITTED,
        _T.ONE_PHASE_COMMITTED: _S.COMMITTED,
        _T.ONE_PHASE_ROLLED_BACK: _S.ROLLED_BACK,
        _T.FINISHED_BY_OTHERS: _S.HEURISTIC,
        _T.ROLLBACK_REQUESTED: _S.ROLLING_BACK,
        _T.REJECTED: _S.ROLLING_BACK,
    },
    _S.COMMITTING: {
        _T.ALL_FINISHED: _S.COMMITTED,
        _T.FINISHED_BY_OTHERS: _S.HEURISTIC,
    },
    _S.ROLLING_BACK: {
        _T.ALL_FINISHED: _S.ROLLED_BACK,
        _T.FINISHED_BY_OTHERS: _S.HEURISTIC,
    },
    _S.COMMITTED: {},
    _S.ROLLED_BACK: {},
    _S.HEURISTIC: {},
}

ENDS = frozenset(state for state, ways in TRANSITIONS.items() if not ways)


def next_state(state: State, trigger: Trigger) -> State | None:
    """The state after `trigger`, or None where the table has no such transition."""
    return TRANSITIONS[state].get(trigger)


class ParticipantState(Term):
    """How far the coordinator is with one participant's agent.

    HOLD: an agent remembers a higher epoch, another log or a decision that our log lacks, so our log is
    not the one that took the last decisions: nothing is rolled back there, and nothing new begins.
    """

    UNREACHABLE = "UNREACHABLE"
    FENCING = "FENCING"
    SCANNING = "SCANNING"
    UP = "UP"
    HOLD = "HOLD"


class ParticipantTrigger(Term):
    """What moves a participant; every name is in the past."""

    CONNECTED = "CONNECTED"
    FENCED = "FENCED"
    SCANNED = "SCANNED"
    HELD = "HELD"
    LOST = "LOST"


_P, _PT = ParticipantState, ParticipantTrigger

PARTICIPANT_TRANSITIONS: dict[ParticipantState, dict[ParticipantTrigger, ParticipantState]] = {
    _P.UNREACHABLE: {_PT.CONNECTED: _P.FENCING, _PT.LOST: _P.UNREACHABLE},
    _P.FENCING: {_PT.FENCED: _P.SCANNING, _PT.HELD: _P.HOLD, _PT.LOST: _P.UNREACHABLE},
    _P.SCANNING: {_PT.SCANNED: _P.UP, _PT.HELD: _P.HOLD, _PT.LOST: _P.UNREACHABLE},
    _P.UP: {_PT.SCANNED: _P.UP, _PT.HELD: _P.HOLD, _PT.LOST: _P.UNREACHABLE},
    _P.HOLD: {_PT.SCANNED: _P.HOLD, _PT.LOST: _P.HOLD, _PT.CONNECTED: _P.FENCING},
}


def next_participant_state(state: ParticipantState, trigger: ParticipantTrigger) -> ParticipantState | None:
    """The participant's state after `trigger`, or None where the table has no such transition."""
    return PARTICIPANT_TRANSITIONS[state].get(trigger)
