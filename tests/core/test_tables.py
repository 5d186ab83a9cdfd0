"""The tables: every (state, trigger) is legal or changes nothing; ends are empty."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.context import Context
from coordinator.core.effects import Changed
from coordinator.core.settings import Settings
from coordinator.core.states import (
    ENDS,
    PARTICIPANT_TRANSITIONS,
    TRANSITIONS,
    ParticipantState,
    ParticipantTrigger,
    State,
    Trigger,
    next_participant_state,
    next_state,
)
from coordinator.core.transaction import Transaction
from dtp import Gtrid


@given(st.sampled_from(State), st.sampled_from(Trigger))
def test_each_trigger_is_in_the_table_or_changes_nothing(state: State, trigger: Trigger) -> None:
    context = Context(Settings("test"), 1)
    id_ = Gtrid("test", 1, 1)
    transaction = Transaction(str(id_), id_, begun_at=0.0, deadline=30.0, entered_at=1.0, state=state)
    expected = next_state(state, trigger)
    moved = context.move(transaction, trigger, 3.0)
    assert moved == (expected is not None)
    if expected is None or expected is state:
        assert transaction.state is state
        assert context.effects == []
        assert transaction.entered_at == 1.0
        assert transaction.timeline == []
    else:
        assert transaction.state is expected
        assert context.effects == [Changed(str(id_), state, expected, 2.0)]


def test_ends_are_present_and_empty() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {State.COMMITTED, State.ROLLED_BACK, State.HEURISTIC} == ENDS
    assert all(not TRANSITIONS[state] for state in ENDS)
    assert {trigger for ways in TRANSITIONS.values() for trigger in ways} == set(Trigger)


def test_nothing_leads_from_one_decision_to_the_other() -> None:
    def reachable(state: State) -> set[State]:
        found: set[State] = set()
        todo = [state]
        while todo:
            new = set(TRANSITIONS[todo.pop()].values()) - found
            found |= new
            todo += new
        return found

    assert not {State.ROLLING_BACK, State.ROLLED_BACK, State.ACTIVE, State.PREPARING} & reachable(
        State.COMMITTING
    )
    assert not {State.COMMITTING, State.COMMITTED, State.ACTIVE, State.PREPARING} & reachable(
        State.ROLLING_BACK
    )
    assert reachable(State.ACTIVE) == set(State)


@given(st.sampled_from(ParticipantState), st.sampled_from(ParticipantTrigger))
def test_each_participant_trigger_is_in_the_table_or_refused(
    state: ParticipantState, trigger: ParticipantTrigger
) -> None:
    assert next_participant_state(state, trigger) == PARTICIPANT_TRANSITIONS[state].get(trigger)


def test_a_participant_comes_up_only_by_fence_and_scan() -> None:
    ways = [(s, t, after) for s, triggers in PARTICIPANT_TRANSITIONS.items() for t, after in triggers.items()]
    new = {(s, t) for s, t, after in ways if after is ParticipantState.UP and s is not after}
    assert new == {(ParticipantState.SCANNING, ParticipantTrigger.SCANNED)}
    scanning = {(s, t) for s, t, after in ways if after is ParticipantState.SCANNING}
    assert scanning == {(ParticipantState.FENCING, ParticipantTrigger.FENCED)}
    assert set(PARTICIPANT_TRANSITIONS) == set(ParticipantState)
    assert {t for _, t, _ in ways} == set(ParticipantTrigger)
