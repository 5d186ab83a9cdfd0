"""Tables, return codes, outcomes and reasons: each is total, and says what the standard says."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtp import BranchEvent, BranchState, Decision, Outcome, Reason, ReturnClass, ReturnCode, XacoordError
from dtp.branch import TRANSITIONS, next_branch_state
from dtp.errors import INDEFINITE, RETRYABLE, STATUS
from dtp.outcome import combine

# Branches


@given(st.sampled_from(BranchState), st.sampled_from(BranchEvent))
def test_each_branch_event_is_in_the_table_or_refused(state: BranchState, event: BranchEvent) -> None:
    after = next_branch_state(state, event)
    assert after == TRANSITIONS[state].get(event)
    assert (event in TRANSITIONS[state]) == (after is not None)


def test_a_branch_is_prepared_and_committed_by_one_way_only() -> None:
    ways = [(s, e, after) for s, events in TRANSITIONS.items() for e, after in events.items()]
    assert set(TRANSITIONS) == set(BranchState)
    assert [s for s, _, after in ways if after is BranchState.PREPARED] == [BranchState.IDLE]
    assert [s for s, e, _ in ways if e is BranchEvent.COMMITTED] == [BranchState.PREPARED]
    assert [s for s, e, _ in ways if e is BranchEvent.COMMITTED_ONE_PHASE] == [BranchState.IDLE]
    assert list(TRANSITIONS[BranchState.ROLLBACK_ONLY]) == [BranchEvent.ROLLED_BACK]
    assert list(TRANSITIONS[BranchState.HEURISTICALLY_COMPLETED]) == [BranchEvent.FORGOTTEN]
    assert {e for _, e, _ in ways} == set(BranchEvent)


# Return codes (XA specification, chapter 4.3)


@pytest.mark.parametrize("code", ReturnCode)
def test_return_codes_have_the_class_that_their_name_says(code: ReturnCode) -> None:
    expected = {
        "XA_RB": ReturnClass.ROLLBACK,
        "XA_HE": ReturnClass.HEURISTIC,
        "XAER_": ReturnClass.ERROR,
        "XA_RE": ReturnClass.RETRY,
    }
    assert code.return_class is expected.get(code.name[:5], ReturnClass.OK)
    assert (code < 0) == code.name.startswith("XAER_")


@given(st.integers(0, 5000))
def test_errnos_of_xa_are_known_and_no_others(errno: int) -> None:
    known = {
        1397: "XAER_NOTA",
        1398: "XAER_INVAL",
        1399: "XAER_RMFAIL",
        1400: "XAER_OUTSIDE",
        1401: "XAER_RMERR",
        1402: "XA_RBROLLBACK",
        1440: "XAER_DUPID",
        1613: "XA_RBTIMEOUT",
        1614: "XA_RBDEADLOCK",
    }
    code = ReturnCode.from_errno(errno)
    assert (code.name if code else None) == known.get(errno)
    for number, name in known.items():
        assert ReturnCode.from_errno(number) is ReturnCode[name]


# Outcomes

ends = st.sampled_from([outcome for outcome in Outcome if outcome is not Outcome.UNKNOWN])
COMMITTED, ROLLED_BACK = Outcome.COMMITTED, Outcome.ROLLED_BACK
HEURISTIC_COMMIT, HEURISTIC_ROLLBACK = Outcome.HEURISTIC_COMMIT, Outcome.HEURISTIC_ROLLBACK
MIXED, HAZARD = Outcome.HEURISTIC_MIXED, Outcome.HEURISTIC_HAZARD


@pytest.mark.parametrize(
    ("decision", "branches", "expected"),
    [
        (Decision.COMMIT, [], COMMITTED),
        (Decision.COMMIT, [COMMITTED, COMMITTED], COMMITTED),
        (Decision.COMMIT, [COMMITTED, HEURISTIC_ROLLBACK], MIXED),
        (Decision.COMMIT, [HEURISTIC_ROLLBACK, HEURISTIC_ROLLBACK], HEURISTIC_ROLLBACK),
        (Decision.COMMIT, [HEURISTIC_COMMIT, COMMITTED], COMMITTED),
        (Decision.COMMIT, [COMMITTED, HAZARD], HAZARD),
        (Decision.COMMIT, [HEURISTIC_ROLLBACK, HAZARD], HAZARD),
        (Decision.COMMIT, [COMMITTED, HEURISTIC_ROLLBACK, HAZARD], MIXED),
        (Decision.ROLLBACK, [], ROLLED_BACK),
        (Decision.ROLLBACK, [ROLLED_BACK], ROLLED_BACK),
        (Decision.ROLLBACK, [HEURISTIC_COMMIT, ROLLED_BACK], MIXED),
        (Decision.ROLLBACK, [HEURISTIC_COMMIT], HEURISTIC_COMMIT),
        (Decision.ROLLBACK, [HEURISTIC_ROLLBACK], ROLLED_BACK),
        (Decision.ROLLBACK, [HAZARD], HAZARD),
    ],
)
def test_outcomes_are_combined(decision: Decision, branches: list[Outcome], expected: Outcome) -> None:
    assert combine(decision, branches) is expected


@given(st.sampled_from(Decision), st.lists(ends))
def test_a_combined_outcome_hides_nothing(decision: Decision, branches: list[Outcome]) -> None:
    found = combine(decision, branches)
    assert found is combine(decision, reversed(branches))
    assert found is combine(decision, branches + branches)
    assert found is not Outcome.UNKNOWN
    if any(outcome.heuristic for outcome in branches):
        committed = {COMMITTED, HEURISTIC_COMMIT, MIXED} & set(branches)
        rolled_back = {ROLLED_BACK, HEURISTIC_ROLLBACK, MIXED} & set(branches)
        assert (found is MIXED) == bool(committed and rolled_back)
        if HAZARD in branches:
            assert found in (MIXED, HAZARD)
    else:
        assert found is (COMMITTED if decision is Decision.COMMIT else ROLLED_BACK)


# Reasons


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_has_a_status_and_says_whether_it_is_definite(reason: Reason) -> None:
    error = XacoordError(reason, "why", gtrid="g")
    assert reason.value == reason.name
    assert hasattr(grpc.StatusCode, error.status)
    assert error.status != "OK"
    assert error.definite == (reason not in INDEFINITE)
    assert error.retryable == (reason in RETRYABLE)
    assert str(error) == f"{reason.name}: why"


def test_what_is_not_definite_is_never_offered_for_a_retry() -> None:
    assert set(STATUS) == set(Reason)
    assert not INDEFINITE & RETRYABLE
    assert {Reason.OUTCOME_UNKNOWN, Reason.LOG_FAILED, Reason.INTERNAL} == INDEFINITE


def test_each_error_has_its_own_metadata() -> None:
    one, two = XacoordError(Reason.INTERNAL, ""), XacoordError(Reason.INTERNAL, "")
    one.metadata["a"] = "b"
    assert two.metadata == {}
