"""Commit and Run when answers are refused or lost: never a wrong word about the outcome."""

# What leaving a transaction's block raises is tested around the whole block.
# ruff: noqa: PT012

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc as pb_grpc
from dtp import Outcome, Reason
from tests.sdk.fakes import Action, World, answer, hang, lost_after, lost_before, refuse, transport
from xacoord import (
    Branch,
    HeuristicMixed,
    IdempotencyInProgress,
    IdempotencyMismatch,
    InDoubt,
    InvalidRequest,
    RolledBack,
    Statement,
    Transaction,
    TransactionManager,
    Unavailable,
)

BRANCHES = [
    Branch("orders", [Statement("INSERT INTO t VALUES (%s)", (1,), expect_rows=1)]),
    Branch("stock", ["SELECT 1", ("SELECT %s", (2,))], read_only=True),
]
REJECTION = pb.Rejection(
    reason="EXPECTATION_FAILED",
    message="0 rows, 1 expected",
    participant="stock",
    retryable=False,
    errno=0,
    statement=3,
)
LOSSES = ["UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED"]
HEURISTICS = ["HEURISTIC_COMMIT", "HEURISTIC_ROLLBACK", "HEURISTIC_MIXED", "HEURISTIC_HAZARD"]


def commit(tm: TransactionManager, timeout: float | None = None) -> Transaction:
    """Begin, work, commit."""
    tx = tm.transaction(timeout=timeout).begin()
    tx.branch("orders").execute("UPDATE t SET a = 1")
    try:
        tx.commit()
    except Exception as error:
        error.tx = tx  # type: ignore[attr-defined]
        raise
    return tx


def become(world: World, state: int, outcome: int, **fields: Any) -> Action:
    """Answer, having put the transaction into another state first."""

    def action(request: Any, context: Any, work: Any) -> Any:
        world.coordinator.set(request.gtrid, state, outcome, **fields)
        return work()

    return action


# Commit


def test_commit_answered_with_rollback(tm: TransactionManager, world: World) -> None:
    world.coordinator.on(
        "Commit", answer(pb.CommitResponse(outcome=pb.OUTCOME_ROLLED_BACK, rejection=REJECTION))
    )
    with pytest.raises(RolledBack) as caught:
        commit(tm)
    error = caught.value
    assert (error.reason, error.participant, error.statement) == ("EXPECTATION_FAILED", "stock", 3)
    assert error.definite
    assert error.tx.outcome is Outcome.ROLLED_BACK  # type: ignore[attr-defined]
    assert world.coordinator.methods() == ["Begin", "Commit"]


@pytest.mark.parametrize("name", HEURISTICS)
def test_commit_answered_with_heuristic(tm: TransactionManager, world: World, name: str) -> None:
    world.coordinator.on("Commit", answer(pb.CommitResponse(outcome=pb.Outcome.Value(f"OUTCOME_{name}"))))
    with pytest.raises(HeuristicMixed) as caught:
        commit(tm)
    assert (caught.value.outcome, caught.value.reason) == (Outcome(name), name)
    assert caught.value.tx.outcome is Outcome(name)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reason", "retryable", "rollback"),
    [
        (Reason.ALREADY_ROLLED_BACK, False, False),
        (Reason.DEADLINE_PASSED, True, False),
        (Reason.ROLLED_BACK_BY_OPERATOR, False, False),
        (Reason.PREPARE_FAILED, True, False),
        (Reason.DEADLOCK, True, False),
        (Reason.UNKNOWN_TRANSACTION, True, True),
        (Reason.NO_BRANCHES, False, True),
        (Reason.LOG_FULL, True, True),
        (Reason.NOT_READY, True, True),
        (Reason.PARTICIPANT_HELD, False, True),
    ],
)
def test_definite_refusal_of_the_first_commit(
    tm: TransactionManager, world: World, reason: Reason, retryable: bool, rollback: bool
) -> None:
    world.coordinator.on("Commit", refuse(reason))
    with pytest.raises(RolledBack) as caught:
        commit(tm)
    assert (caught.value.reason, caught.value.retryable) == (reason, retryable)
    assert world.coordinator.methods() == ["Begin", "Commit"] + ["Rollback"] * rollback


def test_block_without_work_commits(tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Commit", refuse(Reason.NO_BRANCHES))
    with tm.transaction() as tx:
        pass
    assert tx.outcome is Outcome.COMMITTED


@pytest.mark.parametrize("status", LOSSES)
@pytest.mark.parametrize("lose", [lost_before, lost_after])
def test_lost_commit_is_found_out(tm: TransactionManager, world: World, lose: Any, status: str) -> None:
    world.coordinator.on("Commit", lose(status))
    tx = commit(tm)
    assert tx.outcome is Outcome.COMMITTED
    again = ["Commit"] if lose is lost_before else []
    assert world.coordinator.methods() == ["Begin", "Commit", "Get", *again]


@pytest.mark.parametrize("reason", [Reason.OUTCOME_UNKNOWN, Reason.LOG_FAILED, Reason.INTERNAL])
def test_indefinite_error_is_asked_about(tm: TransactionManager, world: World, reason: Reason) -> None:
    world.coordinator.on("Commit", refuse(reason))
    world.coordinator.on("Get", become(world, pb.STATE_COMMITTED, pb.OUTCOME_COMMITTED))
    assert commit(tm).outcome is Outcome.COMMITTED
    assert world.coordinator.methods() == ["Begin", "Commit", "Get"]


def test_the_servers_word_on_definite_counts(tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Commit", refuse(Reason.OVERLOADED, definite="false"))
    assert commit(tm).outcome is Outcome.COMMITTED
    assert world.coordinator.methods() == ["Begin", "Commit", "Get", "Commit"]


@pytest.mark.parametrize("reason", [Reason.TRANSACTION_NOT_ACTIVE, Reason.DECISION_CONTRADICTED])
def test_refusals_that_leave_the_outcome_open(tm: TransactionManager, world: World, reason: Reason) -> None:
    world.coordinator.on("Commit", refuse(reason))
    world.coordinator.on(
        "Get", become(world, pb.STATE_ROLLED_BACK, pb.OUTCOME_ROLLED_BACK, rejection=REJECTION)
    )
    with pytest.raises(RolledBack, match="0 rows"):
        commit(tm)


def test_already_committed_is_committed(tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Commit", refuse(Reason.ALREADY_COMMITTED))
    assert commit(tm).outcome is Outcome.COMMITTED


def test_lost_commit_that_was_rolled_back(tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Commit", lost_before())
    world.coordinator.on("Get", become(world, pb.STATE_ROLLED_BACK, pb.OUTCOME_ROLLED_BACK))
    with pytest.raises(RolledBack) as caught:
        commit(tm)
    assert caught.value.reason == Reason.ALREADY_ROLLED_BACK


@pytest.mark.parametrize("name", HEURISTICS)
def test_lost_commit_with_heuristic_end(tm: TransactionManager, world: World, name: str) -> None:
    world.coordinator.on("Commit", lost_before())
    outcome = pb.Outcome.Value(f"OUTCOME_{name}")
    world.coordinator.on("Get", become(world, pb.STATE_HEURISTIC, outcome))
    with pytest.raises(HeuristicMixed):
        commit(tm)


def test_asking_goes_on_while_the_transaction_is_under_way(tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Commit", lost_before())
    world.coordinator.on(
        "Get",
        become(world, pb.STATE_PREPARING, pb.OUTCOME_UNKNOWN),
        lost_before(),
        refuse(Reason.NOT_READY),
        become(world, pb.STATE_COMMITTING, pb.OUTCOME_COMMITTED),
    )
    tx = commit(tm)
    assert (tx.outcome, tx.completed) == (Outcome.COMMITTED, False)
    assert world.coordinator.methods() == ["Begin", "Commit", "Get", "Get", "Get", "Get"]


@pytest.mark.parametrize(
    "get",
    [
        lost_before(),
        refuse(Reason.UNKNOWN_TRANSACTION),
        refuse(Reason.NOT_READY),
        answer(pb.GetResponse()),
        answer(
            pb.GetResponse(transaction=pb.Transaction(state=pb.STATE_PREPARING, outcome=pb.OUTCOME_UNKNOWN))
        ),
        hang(2),
    ],
)
def test_open_outcome_is_in_doubt(tm: TransactionManager, world: World, get: Action) -> None:
    world.coordinator.on("Commit", lost_before())
    world.coordinator.always("Get", get)
    began = time.monotonic()
    with pytest.raises(InDoubt, match=r"tm\.status") as caught:
        commit(tm)
    assert 0.2 < time.monotonic() - began < 5
    error = caught.value
    assert error.gtrid == error.tx.gtrid != ""  # type: ignore[attr-defined]
    assert not error.definite
    assert not error.retryable
    assert error.tx.outcome is Outcome.UNKNOWN  # type: ignore[attr-defined]
    assert "Rollback" not in world.coordinator.methods()


def test_definite_refusal_of_a_repeated_commit_says_nothing_about_the_first(
    tm: TransactionManager, world: World
) -> None:
    world.coordinator.on("Commit", lost_before())
    world.coordinator.always("Commit", refuse(Reason.NOT_READY))
    with pytest.raises(InDoubt):
        commit(tm)
    assert "Rollback" not in world.coordinator.methods()


def test_late_answer_is_asked_for(tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Commit", hang(2))
    tx = commit(tm, timeout=0.1)
    assert tx.outcome is Outcome.COMMITTED
    assert world.coordinator.methods() == ["Begin", "Commit", "Get"]


def test_connection_cut_during_commit(tm: TransactionManager, world: World) -> None:
    """A real cut: the server dies with the Commit inside it, and another takes its place."""
    inside = threading.Event()

    def take(request: Any, context: Any, work: Any) -> Any:
        response = work()
        inside.set()
        time.sleep(0.5)
        return response

    def replace() -> None:
        inside.wait(5)
        world.coordinator_server.stop(0).wait()
        world.servers.serve(
            lambda server: pb_grpc.add_CoordinatorServicer_to_server(world.coordinator, server), world.address
        )

    world.coordinator.on("Commit", take)
    with TransactionManager.connect(world.address, grace=5) as patient:
        thread = threading.Thread(target=replace)
        thread.start()
        tx = commit(patient)
        thread.join()
    assert tx.outcome is Outcome.COMMITTED
    assert world.coordinator.methods()[:3] == ["Begin", "Commit", "Get"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_interrupted_commit_is_not_called_rolled_back(
    tm: TransactionManager, world: World, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupt(step: Any) -> Any:
        raise error

    with pytest.raises(error) as caught, tm.transaction() as tx:
        tx.branch("orders").execute("UPDATE t SET a = 1")
        monkeypatch.setattr(tm._session.driver, "_perform", interrupt)
    assert tx.gtrid in caught.value.__notes__[0]
    assert tx.outcome is Outcome.UNKNOWN
    assert "Rollback" not in world.coordinator.methods()


def test_explicit_commit_interrupted_in_the_block(
    tm: TransactionManager, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(step: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), tm.transaction() as tx, monkeypatch.context() as patch:
        patch.setattr(tm._session.driver, "_perform", interrupt)
        tx.commit()
    assert world.coordinator.methods() == ["Begin"]


# Run


def test_run(tm: TransactionManager, world: World) -> None:
    result = tm.run(BRANCHES, timeout=2.5, wait_for="decided", in_order=True)
    assert (result.outcome, result.replayed, result.completed) == (Outcome.COMMITTED, False, True)
    assert result.results["orders"][0].one() == (1,)
    assert [list(each) for each in result.results["stock"]] == [[], [(2,)]]
    [request] = world.coordinator.requests("Run")
    assert (request.timeout.seconds, request.timeout.nanos) == (2, 500_000_000)
    assert (request.wait_for, request.in_order) == (pb.WAIT_FOR_DECIDED, True)
    assert [branch.read_only for branch in request.branches] == [False, True]
    assert request.branches[0].statements[0].expect_rows == 1
    assert world.coordinator.methods() == ["Run"]


@pytest.mark.parametrize("tm", ["unary"], indirect=True)
def test_run_has_the_transactions_time_and_grace(tm: TransactionManager, world: World) -> None:
    tm.run(BRANCHES, timeout=2.5)
    assert 2.5 < world.coordinator.time_left["Run"] < 3.2


def test_default_timeout(world: World) -> None:
    with TransactionManager.connect(world.address, timeout=9) as tm:
        tm.run(BRANCHES)
        commit(tm)
    assert world.coordinator.requests("Run")[0].timeout.seconds == 9
    assert world.coordinator.requests("Begin")[0].timeout.seconds == 9


def test_run_replayed(tm: TransactionManager) -> None:
    first = tm.run(BRANCHES, idempotency_key="k")
    again = tm.run(BRANCHES, idempotency_key="k")
    assert (again.gtrid, again.replayed, dict(again.results)) == (first.gtrid, True, {})


def test_run_answered_with_rollback(tm: TransactionManager, world: World) -> None:
    world.coordinator.on(
        "Run", answer(pb.RunResponse(gtrid="k1x", outcome=pb.OUTCOME_ROLLED_BACK, rejection=REJECTION))
    )
    with pytest.raises(RolledBack) as caught:
        tm.run(BRANCHES)
    assert (caught.value.gtrid, caught.value.participant) == ("k1x", "stock")


@pytest.mark.parametrize("name", HEURISTICS)
def test_run_answered_with_heuristic(tm: TransactionManager, world: World, name: str) -> None:
    outcome = pb.Outcome.Value(f"OUTCOME_{name}")
    world.coordinator.on("Run", answer(pb.RunResponse(gtrid="k1x", outcome=outcome)))
    with pytest.raises(HeuristicMixed):
        tm.run(BRANCHES)


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize(
    ("action", "error"),
    [
        (refuse(Reason.IDEMPOTENCY_MISMATCH), IdempotencyMismatch),
        (refuse(Reason.IDEMPOTENCY_IN_PROGRESS), IdempotencyInProgress),
        (refuse(Reason.UNKNOWN_PARTICIPANT), InvalidRequest),
        (refuse(Reason.NO_BRANCHES), InvalidRequest),
        (refuse(Reason.OVERLOADED), Unavailable),
        (refuse(Reason.PARTICIPANT_UNAVAILABLE), Unavailable),
        (refuse(Reason.DEADLOCK), RolledBack),
        (transport("UNAUTHENTICATED", False), InvalidRequest),
    ],
)
def test_definite_refusal_of_the_first_run(
    tm: TransactionManager, world: World, action: Action, error: type[Exception], key: str | None
) -> None:
    world.coordinator.on("Run", action)
    with pytest.raises(error):
        tm.run(BRANCHES, idempotency_key=key)
    assert world.coordinator.methods() == ["Run"]


@pytest.mark.parametrize("status", LOSSES)
@pytest.mark.parametrize("lose", [lost_before, lost_after])
def test_lost_run_with_key_is_done_once(tm: TransactionManager, world: World, lose: Any, status: str) -> None:
    world.coordinator.on("Run", lose(status))
    result = tm.run(BRANCHES, idempotency_key="k")
    assert result.replayed == (lose is lost_after)
    assert world.coordinator.count == 1
    assert [request.idempotency_key for request in world.coordinator.requests("Run")] == ["k", "k"]


@pytest.mark.parametrize("status", LOSSES)
@pytest.mark.parametrize("lose", [lost_before, lost_after])
def test_lost_run_without_key_is_in_doubt_and_not_repeated(
    tm: TransactionManager, world: World, lose: Any, status: str
) -> None:
    world.coordinator.on("Run", lose(status))
    with pytest.raises(InDoubt, match="idempotency key") as caught:
        tm.run(BRANCHES)
    assert caught.value.gtrid == ""
    assert world.coordinator.methods() == ["Run"]


def test_lost_run_with_key_stays_in_doubt(tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Run", lost_after())
    # Definite only about the repeated call, not about the first.
    world.coordinator.always("Run", refuse(Reason.NOT_READY))
    with pytest.raises(InDoubt, match="same idempotency key"):
        tm.run(BRANCHES, idempotency_key="k")
    assert len(world.coordinator.requests("Run")) > 2


def test_repeated_run_that_was_rolled_back(tm: TransactionManager, world: World) -> None:
    world.coordinator.on(
        "Run", lost_before(), refuse(Reason.IDEMPOTENCY_IN_PROGRESS), refuse(Reason.DEADLOCK)
    )
    with pytest.raises(RolledBack, match="DEADLOCK"):
        tm.run(BRANCHES, idempotency_key="k")


def test_repeated_run_with_foreign_key(tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Run", lost_before(), refuse(Reason.IDEMPOTENCY_MISMATCH))
    with pytest.raises(IdempotencyMismatch):
        tm.run(BRANCHES, idempotency_key="k")


@pytest.mark.parametrize("key", [None, "k"])
def test_run_with_open_outcome_and_known_gtrid_is_asked_about(
    tm: TransactionManager, world: World, key: str | None
) -> None:
    gtrid = world.coordinator.new_gtrid()
    world.coordinator.on("Run", refuse(Reason.OUTCOME_UNKNOWN, gtrid=gtrid))
    world.coordinator.on(
        "Get",
        become(world, pb.STATE_ACTIVE, pb.OUTCOME_UNKNOWN),
        become(world, pb.STATE_COMMITTED, pb.OUTCOME_COMMITTED),
    )
    result = tm.run(BRANCHES, idempotency_key=key)
    assert (result.gtrid, result.outcome, result.completed) == (gtrid, Outcome.COMMITTED, True)
    assert world.coordinator.methods() == ["Run", "Get", "Get"]


def test_run_answered_with_unknown_is_asked_about(tm: TransactionManager, world: World) -> None:
    gtrid = world.coordinator.new_gtrid()
    world.coordinator.always("Run", answer(pb.RunResponse(gtrid=gtrid, outcome=pb.OUTCOME_UNKNOWN)))
    with pytest.raises(InDoubt) as caught:
        tm.run(BRANCHES)
    assert caught.value.gtrid == gtrid
    world.coordinator.set(gtrid, pb.STATE_COMMITTED, pb.OUTCOME_COMMITTED)
    assert tm.run(BRANCHES).outcome is Outcome.COMMITTED
