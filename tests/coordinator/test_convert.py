"""What is told of a transaction: never a decision that a crash could still take back."""

from __future__ import annotations

import pytest

from coordinator import convert
from coordinator.core import inputs
from coordinator.core.effects import Decided, Refused, Rejection, Reply
from coordinator.core.states import State
from coordinator.core.transaction import Branch, Transaction
from coordinator.v1 import coordinator_pb2 as pb
from dtp import BranchState, Decision, Gtrid, Outcome, Reason, Vote
from tests.coordinator.transactions import begin, decide, deliver, make_durable, world_that_is_up
from tests.core.world import World


def transaction(state: State, decision: Decision | None, **fields: object) -> Transaction:
    id_ = Gtrid.make("test", 1, 1, 0)
    made = Transaction(str(id_), id_, 0.0, 9.0, 0.0, state=state, decision=decision)
    for name, value in fields.items():
        setattr(made, name, value)
    made.branches = {
        "a": Branch("a", 1, BranchState.PREPARED, Vote.OK),
        "b": Branch("b", 2, BranchState.PREPARED, Vote.OK),
    }
    return made


def told(world: World, found: Transaction) -> pb.Transaction:
    return convert.transaction_message(world.core, found, world.now)


def words(message: pb.Transaction) -> list[str]:
    return [event.what for event in message.timeline]


def test_a_decision_is_told_when_it_is_on_disk_and_not_before() -> None:
    world = world_that_is_up()
    found = begin(world)
    decide(world, found)
    assert found.state is State.COMMITTING
    assert found.decision is Decision.COMMIT
    message = told(world, found)
    assert (message.state, message.outcome) == (pb.STATE_PREPARING, pb.OUTCOME_UNKNOWN)
    assert message.in_doubt
    assert "COMMITTING" not in words(message)
    assert words(message)[-1] == "voted OK"
    make_durable(world)
    message = told(world, found)
    assert (message.state, message.outcome) == (pb.STATE_COMMITTING, pb.OUTCOME_COMMITTED)
    assert words(message)[-2:] == ["COMMITTING", "decision durable"]


def test_a_rollback_that_comes_before_the_flush_does_not_hear_of_the_decision() -> None:
    world = world_that_is_up()
    found = begin(world)
    decide(world, found)

    def refused() -> Reason:
        (effect,) = world.feed(inputs.RollbackRequested(world.new_ticket(found.gtrid), found.gtrid))
        assert isinstance(effect, Reply)
        assert isinstance(effect.answer, Refused)
        return effect.answer.reason

    assert refused() is Reason.TRANSACTION_NOT_ACTIVE
    make_durable(world)
    assert refused() is Reason.ALREADY_COMMITTED


def test_a_heuristic_outcome_is_told_when_it_is_on_disk() -> None:
    world = world_that_is_up()
    found = begin(world)
    decide(world, found)
    make_durable(world)
    world.servers["p1"].interfere(found.gtrid, "rolled_back")
    world.interfered.add(found.gtrid)
    deliver(world, "p1")
    message = told(world, found)
    assert (message.state, message.outcome) == (pb.STATE_COMMITTING, pb.OUTCOME_UNKNOWN)
    deliver(world, "p2")
    assert found.state is State.HEURISTIC
    assert told(world, found).outcome == pb.OUTCOME_UNKNOWN
    assert world.waiting, "nobody has been answered"
    make_durable(world)
    message = told(world, found)
    assert (message.state, message.outcome) == (pb.STATE_HEURISTIC, pb.OUTCOME_HEURISTIC_MIXED)
    assert not world.waiting


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("decision", [None, *Decision])
@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.COMMITTED, Outcome.HEURISTIC_MIXED])
def test_nothing_undurable_is_told_in_any_state(
    state: State, decision: Decision | None, outcome: Outcome
) -> None:
    undurable = transaction(state, decision, durable=False, outcome=outcome)
    undurable.note(1.0, "begun")
    undurable.note(2.0, "COMMITTING")
    assert convert.known_outcome(undurable, may_tell=True) is Outcome.UNKNOWN
    message = convert.transaction_of(undurable, 3.0, blocked=False, may_tell=True)
    assert message.outcome == pb.OUTCOME_UNKNOWN
    assert message.state != pb.STATE_COMMITTING
    assert words(message) == ["begun"]
    if state is not State.COMMITTING:
        assert message.state == convert.STATES[state]
    durable = transaction(state, decision, outcome=outcome)
    assert convert.transaction_of(durable, 3.0, blocked=False, may_tell=True).state == convert.STATES[state]
    assert (convert.known_outcome(durable, may_tell=True) is Outcome.UNKNOWN) == (decision is None)
    assert convert.known_outcome(durable, may_tell=False) is Outcome.UNKNOWN


SURE = [
    (Decision.COMMIT, None, None, Outcome.COMMITTED),
    (Decision.ROLLBACK, None, None, Outcome.ROLLED_BACK),
    (Decision.COMMIT, Outcome.COMMITTED, None, Outcome.COMMITTED),
    (Decision.COMMIT, Outcome.HEURISTIC_ROLLBACK, None, Outcome.UNKNOWN),
    (Decision.COMMIT, None, Outcome.HEURISTIC_ROLLBACK, Outcome.UNKNOWN),
    (Decision.ROLLBACK, Outcome.HEURISTIC_COMMIT, None, Outcome.UNKNOWN),
    (Decision.COMMIT, Outcome.HEURISTIC_HAZARD, None, Outcome.UNKNOWN),
    (Decision.ROLLBACK, Outcome.HEURISTIC_HAZARD, None, Outcome.UNKNOWN),
    (Decision.COMMIT, Outcome.HEURISTIC_ROLLBACK, Outcome.COMMITTED, Outcome.HEURISTIC_MIXED),
    (Decision.COMMIT, Outcome.HEURISTIC_ROLLBACK, Outcome.HEURISTIC_ROLLBACK, Outcome.HEURISTIC_ROLLBACK),
]


@pytest.mark.parametrize(("decision", "first", "second", "expected"), SURE)
def test_how_a_heuristic_outcome_ends_is_unknown_while_a_branch_is_open(
    decision: Decision, first: Outcome | None, second: Outcome | None, expected: Outcome
) -> None:
    found = transaction(State.COMMITTING, decision)
    found.branches["a"].outcome, found.branches["b"].outcome = first, second
    assert found.sure_outcome is expected
    assert convert.known_outcome(found, may_tell=True) is expected


def test_the_rest_of_the_message() -> None:
    found = transaction(State.ROLLING_BACK, Decision.ROLLBACK, recovered=True)
    found.rejection = Rejection(Reason.DEADLOCK, "deadlock", "a", 1213, 0)
    failure = inputs.Failure(Reason.SERVER_UNAVAILABLE, "gone")
    found.branches["b"].last_failure = failure
    found.branches["b"].attempts = 3
    message = convert.transaction_of(found, -1.0, blocked=True, may_tell=True)
    assert (message.age.seconds, message.recovered, message.blocked) == (0, True, True)
    assert message.rejection.retryable
    assert (message.rejection.errno, message.rejection.HasField("statement")) == (1213, True)
    assert [b.last_error for b in message.branches] == ["", "SERVER_UNAVAILABLE: gone"]
    assert message.branches[1].attempts == 3
    assert [b.outcome for b in message.branches] == [pb.OUTCOME_UNKNOWN] * 2


def test_answers() -> None:
    answer = Decided(
        "g", Outcome.ROLLED_BACK, completed=False, rejection=Rejection(Reason.PREPARE_FAILED, "no")
    )
    assert convert.commit_response(answer).outcome == pb.OUTCOME_ROLLED_BACK
    assert not convert.run_response(answer).completed
    assert not convert.run_response(answer).rejection.HasField("statement")
    assert convert.rejection(None) is None
