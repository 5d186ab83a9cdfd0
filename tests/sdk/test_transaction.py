"""The `with` block: what is sent, and what its ways out mean."""

# What leaving a transaction's block raises is tested around the whole block.
# ruff: noqa: PT012

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from coordinator.v1 import coordinator_pb2 as pb
from dtp import Outcome, Reason
from tests.sdk.fakes import World, answer, hang, lost_after, lost_before, refuse, transport
from xacoord import (
    AlreadyCommitted,
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


def work(tm: TransactionManager, **options: Any) -> Transaction:
    """A transaction with one statement at `orders`, committed by leaving its block."""
    with tm.transaction(**options) as tx:
        tx.branch("orders").execute("UPDATE t SET a = 1")
    return tx


def test_block_commits_everywhere(tm: TransactionManager, world: World) -> None:
    with tm.transaction(timeout=7) as tx:
        result = tx.branch("orders").execute("SELECT %s, %s", (1, Decimal("2.50")), expect_rows=1)
        tx.branch("stock", read_only=True).execute("SELECT 1", min_rows=3)
        assert world.coordinator.methods() == ["Begin"]
        assert tx.outcome is Outcome.UNKNOWN
    assert world.coordinator.methods() == ["Begin", "Commit"]
    assert (tx.outcome, tx.completed) == (Outcome.COMMITTED, True)
    assert world.coordinator.outcome(tx.gtrid) == "OUTCOME_COMMITTED"
    assert world.coordinator.requests("Begin")[0].timeout.seconds == 7
    assert result.one() == (1, Decimal("2.50"))
    assert (result.columns, result.rowcount, result.last_insert_id, result.warnings) == (
        ("c0", "c1"),
        1,
        7,
        2,
    )
    [orders] = world.agents["orders"].requests("Execute")
    assert (orders.gtrid, orders.read_only, orders.statements[0].expect_rows) == (tx.gtrid, False, 1)
    assert not orders.statements[0].HasField("min_rows")
    [stock] = world.agents["stock"].requests("Execute")
    assert (stock.read_only, stock.statements[0].min_rows) == (True, 3)
    assert not stock.statements[0].HasField("expect_rows")


# The servers hear a unary call's deadline; a stream's calls are cancelled by the client (test_stream.py).
@pytest.mark.parametrize("tm", ["unary"], indirect=True)
def test_each_call_has_the_transactions_time_and_grace(tm: TransactionManager, world: World) -> None:
    work(tm, timeout=100)
    assert 90 < world.agents["orders"].time_left["Execute"] < 101
    assert 90 < world.coordinator.time_left["Commit"] < 101
    assert world.coordinator.time_left["Begin"] < 1


def test_batch_is_one_call(tm: TransactionManager, world: World) -> None:
    with tm.transaction() as tx:
        results = tx.branch("orders").execute_many(
            ["SELECT 1", ("SELECT %s", (5,)), Statement("SELECT %s", (6,), expect_rows=1)]
        )
    assert [list(result) for result in results] == [[], [(5,)], [(6,)]]
    assert len(world.agents["orders"].requests("Execute")) == 1


def test_result_access(tm: TransactionManager) -> None:
    with tm.transaction() as tx:
        empty, one = tx.branch("orders").execute_many(["DELETE FROM t", ("SELECT %s", ("x",))])
    assert one.scalar() == "x"
    assert len(one) == 1
    assert len(empty) == 0
    assert "x" not in repr(one)
    with pytest.raises(LookupError, match="there are 0"):
        empty.one()


@pytest.mark.parametrize("raised", [KeyError("mine"), KeyboardInterrupt()])
def test_exception_in_block_rolls_back_and_is_kept(
    tm: TransactionManager, world: World, raised: BaseException
) -> None:
    with pytest.raises(type(raised)) as caught, tm.transaction() as tx:
        tx.branch("orders").execute("UPDATE t SET a = 1")
        raise raised
    assert caught.value is raised
    assert world.coordinator.methods() == ["Begin", "Rollback"]
    assert tx.outcome is Outcome.ROLLED_BACK


@pytest.mark.parametrize("action", [lost_before(), refuse(Reason.NOT_READY), hang(1)])
def test_failing_rollback_keeps_the_users_exception(
    tm: TransactionManager, world: World, action: Any
) -> None:
    world.coordinator.on("Rollback", action)
    with pytest.raises(KeyError, match="mine"), tm.transaction():
        raise KeyError("mine")


def test_rollback_after_exception_tells_of_a_heuristic_end(tm: TransactionManager, world: World) -> None:
    world.coordinator.on(
        "Rollback", answer(pb.RollbackResponse(outcome=pb.OUTCOME_HEURISTIC_COMMIT, completed=True))
    )
    with pytest.raises(KeyError) as caught, tm.transaction() as tx:
        raise KeyError("mine")
    assert "HEURISTIC_COMMIT" in caught.value.__notes__[0]
    assert tx.outcome is Outcome.HEURISTIC_COMMIT


def test_explicit_rollback_leaves_silently(tm: TransactionManager, world: World) -> None:
    with tm.transaction() as tx:
        tx.set_rollback_only("overtaken by the next line")
        tx.rollback()
        tx.rollback()
        with pytest.raises(InvalidRequest, match="has ended"):
            tx.branch("orders").execute("SELECT 1")
    assert world.coordinator.methods() == ["Begin", "Rollback"]


def test_explicit_rollback_survives_a_lost_connection(tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Rollback", lost_before())
    with tm.transaction() as tx:
        tx.rollback()
    assert tx.outcome is Outcome.ROLLED_BACK


@pytest.mark.parametrize(
    ("action", "error", "outcome"),
    [
        (
            answer(pb.RollbackResponse(outcome=pb.OUTCOME_HEURISTIC_MIXED)),
            HeuristicMixed,
            Outcome.HEURISTIC_MIXED,
        ),
        (
            answer(pb.RollbackResponse(outcome=pb.OUTCOME_COMMITTED)),
            AlreadyCommitted,
            Outcome.COMMITTED,
        ),
        (refuse(Reason.ALREADY_COMMITTED), AlreadyCommitted, Outcome.COMMITTED),
        (refuse(Reason.DECISION_CONTRADICTED), AlreadyCommitted, Outcome.COMMITTED),
        (refuse(Reason.TRANSACTION_NOT_ACTIVE), InDoubt, Outcome.UNKNOWN),
    ],
)
def test_explicit_rollback_that_came_too_late(
    tm: TransactionManager, world: World, action: Any, error: type[Exception], outcome: Outcome
) -> None:
    world.coordinator.on("Rollback", action)
    tx = tm.transaction().begin()
    with pytest.raises(error):
        tx.rollback()
    assert tx.outcome is outcome


def test_explicit_commit(tm: TransactionManager, world: World) -> None:
    with tm.transaction() as tx:
        tx.branch("orders").execute("SELECT 1")
        tx.commit()
        with pytest.raises(InvalidRequest) as caught:
            tx.commit()
        assert caught.value.reason == Reason.TRANSACTION_NOT_ACTIVE
        with pytest.raises(InvalidRequest):
            tx.set_rollback_only("too late")
    assert world.coordinator.methods() == ["Begin", "Commit"]


def test_use_before_begin_is_refused(tm: TransactionManager, world: World) -> None:
    tx = tm.transaction()
    for use in (tx.commit, tx.rollback, lambda: tx.branch("orders").execute("SELECT 1")):
        with pytest.raises(InvalidRequest, match="has not begun"):
            use()
    assert world.coordinator.methods() == []


def test_set_rollback_only(tm: TransactionManager, world: World) -> None:
    ran: list[str] = []
    with pytest.raises(RolledBack, match="out of stock") as caught, tm.transaction() as tx:
        tx.on_commit(lambda: ran.append("hook"))
        tx.set_rollback_only("out of stock")
        tx.set_rollback_only("a later reason does not replace the first")
    assert caught.value.reason == Reason.ROLLED_BACK_BY_REQUEST
    assert caught.value.gtrid == tx.gtrid
    assert world.coordinator.methods() == ["Begin", "Rollback"]
    assert ran == []


def test_on_commit(tm: TransactionManager, world: World, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []

    def fail() -> None:
        ran.append("fail")
        raise RuntimeError("hook is broken")

    with tm.transaction() as tx:
        tx.on_commit(lambda: ran.append(world.coordinator.outcome(tx.gtrid)))
        tx.on_commit(fail)
        tx.on_commit(lambda: ran.append("last"))
        assert ran == []
    assert ran == ["OUTCOME_COMMITTED", "fail", "last"]
    assert tx.outcome is Outcome.COMMITTED
    assert "hook is broken" in caplog.text


def test_on_commit_is_not_run_in_doubt(tm: TransactionManager, world: World) -> None:
    world.coordinator.always("Commit", lost_before())
    world.coordinator.always("Get", lost_before())
    ran: list[str] = []
    with pytest.raises(InDoubt), tm.transaction() as tx:
        tx.on_commit(lambda: ran.append("hook"))
    assert ran == []


def test_decided(tm: TransactionManager, world: World) -> None:
    tx = work(tm, wait_for="decided")
    assert world.coordinator.requests("Commit")[0].wait_for == pb.WAIT_FOR_DECIDED
    assert (tx.outcome, tx.completed) == (Outcome.COMMITTED, False)
    work(tm)
    assert world.coordinator.requests("Commit")[1].wait_for == pb.WAIT_FOR_COMPLETED


def test_already_committed_does_not_enter_the_block(tm: TransactionManager, world: World) -> None:
    world.coordinator.keys["order:1"] = "k1test00010000000077"
    entered = False
    with pytest.raises(AlreadyCommitted) as caught, tm.transaction(idempotency_key="order:1"):
        entered = True
    assert caught.value.gtrid == "k1test00010000000077"
    assert not entered
    assert world.coordinator.methods() == ["Begin"]


def test_key_and_fingerprint_are_sent(tm: TransactionManager, world: World) -> None:
    work(tm, idempotency_key="order:2", fingerprint=b"\x01" * 32)
    request = world.coordinator.requests("Begin")[0]
    assert (request.idempotency_key, request.fingerprint) == ("order:2", b"\x01" * 32)


@pytest.mark.parametrize(
    ("action", "error", "reason", "retryable"),
    [
        (refuse(Reason.IDEMPOTENCY_MISMATCH), IdempotencyMismatch, "IDEMPOTENCY_MISMATCH", False),
        (refuse(Reason.IDEMPOTENCY_IN_PROGRESS), IdempotencyInProgress, "IDEMPOTENCY_IN_PROGRESS", True),
        (refuse(Reason.ALREADY_COMMITTED, gtrid="k1x"), AlreadyCommitted, "ALREADY_COMMITTED", False),
        (refuse(Reason.TIMEOUT_OUT_OF_RANGE), InvalidRequest, "TIMEOUT_OUT_OF_RANGE", False),
        (refuse(Reason.INVALID_REQUEST), InvalidRequest, "INVALID_REQUEST", False),
        (refuse(Reason.NOT_READY), Unavailable, "NOT_READY", True),
        (refuse(Reason.DRAINING), Unavailable, "DRAINING", True),
        (refuse(Reason.LOG_FULL), Unavailable, "LOG_FULL", True),
        (refuse(Reason.OVERLOADED), Unavailable, "OVERLOADED", True),
        (refuse(Reason.INTERNAL), Unavailable, "INTERNAL", False),
        (refuse("FROM_THE_FUTURE", status="INVALID_ARGUMENT"), InvalidRequest, "FROM_THE_FUTURE", False),
        (refuse("FROM_THE_FUTURE", status="UNAVAILABLE"), Unavailable, "FROM_THE_FUTURE", False),
        (lost_before(), Unavailable, "COORDINATOR_UNAVAILABLE", True),
        (lost_after("CANCELLED"), Unavailable, "COORDINATOR_UNAVAILABLE", True),
        (hang(1), Unavailable, "COORDINATOR_UNAVAILABLE", True),
        (transport("PERMISSION_DENIED", False), InvalidRequest, "INVALID_REQUEST", False),
    ],
)
def test_begin_errors(
    tm: TransactionManager, world: World, action: Any, error: type[Exception], reason: str, retryable: bool
) -> None:
    world.coordinator.on("Begin", action)
    with pytest.raises(error) as caught, tm.transaction():
        pytest.fail("the block must not be entered")
    assert type(caught.value) is error
    assert (caught.value.reason, caught.value.retryable) == (reason, retryable)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("action", "reason", "retryable", "statement", "errno"),
    [
        (refuse(Reason.DEADLOCK, statement="1", errno="1213"), "DEADLOCK", True, 1, 1213),
        (refuse(Reason.EXPECTATION_FAILED, statement="0"), "EXPECTATION_FAILED", False, 0, 0),
        (refuse(Reason.INVALID_REQUEST), "INVALID_REQUEST", False, None, 0),
        (refuse(Reason.UNKNOWN_TRANSACTION), "UNKNOWN_TRANSACTION", True, None, 0),
        (refuse(Reason.INTERNAL), "INTERNAL", False, None, 0),
        (lost_before(), "PARTICIPANT_UNAVAILABLE", True, None, 0),
        (lost_after("CANCELLED"), "PARTICIPANT_UNAVAILABLE", True, None, 0),
        (hang(1.5), "PARTICIPANT_UNAVAILABLE", True, None, 0),
    ],
)
def test_failed_statement_rolls_back_everywhere(
    tm: TransactionManager,
    world: World,
    action: Any,
    reason: str,
    retryable: bool,
    statement: int | None,
    errno: int,
) -> None:
    world.agents["stock"].on("Execute", action)
    with pytest.raises(RolledBack) as caught, tm.transaction(timeout=0.1) as tx:
        tx.branch("orders").execute("UPDATE t SET a = 1")
        tx.branch("stock").execute_many(["UPDATE t SET a = 1", "UPDATE t SET a = 2"])
        pytest.fail("the statement must raise")
    error = caught.value
    assert (error.reason, error.retryable, error.statement, error.errno) == (
        reason,
        retryable,
        statement,
        errno,
    )
    assert (error.participant, error.gtrid) == ("stock", tx.gtrid)
    assert world.coordinator.methods() == ["Begin", "Rollback"]
    assert tx.outcome is Outcome.ROLLED_BACK


def test_swallowed_failure_comes_back_at_the_end_of_the_block(tm: TransactionManager, world: World) -> None:
    world.agents["orders"].on("Execute", refuse(Reason.DEADLOCK))
    with pytest.raises(RolledBack) as caught, tm.transaction() as tx:
        with pytest.raises(RolledBack):
            tx.branch("orders").execute("UPDATE t SET a = 1")
        with pytest.raises(RolledBack):
            tx.branch("stock").execute("UPDATE t SET a = 1")
    assert caught.value.reason == "DEADLOCK"
    assert world.agents["stock"].methods() == []
    assert world.coordinator.methods() == ["Begin", "Rollback"]


DEADLOCK = pb.RollbackResponse(
    outcome=pb.OUTCOME_ROLLED_BACK,
    completed=True,
    rejection=pb.Rejection(reason="DEADLOCK", message="a circle", participant="stock", retryable=True),
)


@pytest.mark.parametrize("reason", ["BRANCH_DOOMED", "ALREADY_ROLLED_BACK", "TRANSACTION_NOT_ACTIVE"])
def test_where_the_agent_knows_no_reason_the_coordinators_is_told(
    tm: TransactionManager, world: World, reason: str
) -> None:
    world.agents["orders"].on("Execute", refuse(reason))
    world.coordinator.on("Rollback", answer(DEADLOCK))
    with pytest.raises(RolledBack, match="a circle") as caught, tm.transaction() as tx:
        tx.branch("orders").execute("UPDATE t SET a = 1")
    assert (caught.value.reason, caught.value.retryable) == ("DEADLOCK", True)
    assert (caught.value.participant, caught.value.gtrid) == ("stock", tx.gtrid)
    assert tx.outcome is Outcome.ROLLED_BACK


def test_a_statements_own_failure_says_more(tm: TransactionManager, world: World) -> None:
    world.agents["orders"].on("Execute", refuse(Reason.EXPECTATION_FAILED))
    world.coordinator.on("Rollback", answer(DEADLOCK))
    with pytest.raises(RolledBack, match="EXPECTATION_FAILED"), tm.transaction() as tx:
        tx.branch("orders").execute("UPDATE t SET a = 1")


def test_a_rollback_that_was_done_before_is_a_rollback(tm: TransactionManager, world: World) -> None:
    world.coordinator.on("Rollback", answer(DEADLOCK), answer(DEADLOCK))
    with tm.transaction() as tx:
        tx.rollback()
    assert tx.outcome is Outcome.ROLLED_BACK
    with pytest.raises(ZeroDivisionError) as caught, tm.transaction():
        raise ZeroDivisionError
    assert not getattr(caught.value, "__notes__", [])


def test_failed_statement_and_lost_rollback(tm: TransactionManager, world: World) -> None:
    world.agents["orders"].on("Execute", refuse(Reason.LOCK_TIMEOUT))
    world.coordinator.on("Rollback", lost_before())
    with pytest.raises(RolledBack, match="LOCK_TIMEOUT"), tm.transaction() as tx:
        tx.branch("orders").execute("UPDATE t SET a = 1")


@pytest.mark.parametrize(
    "wrong", [{"params": "ab"}, {"params": {"a": 1}}, {"params": 5}, {"params": [object()]}]
)
def test_wrong_parameters_are_refused_before_sending(
    tm: TransactionManager, world: World, wrong: dict[str, Any]
) -> None:
    with tm.transaction() as tx, pytest.raises(TypeError):
        tx.branch("orders").execute("SELECT %s", **wrong)
    assert world.agents["orders"].methods() == []
    assert tx.outcome is Outcome.COMMITTED


def test_wrong_calls_are_refused(tm: TransactionManager) -> None:
    with pytest.raises(ValueError, match="wait_for"):
        tm.transaction(wait_for="soon")  # type: ignore[arg-type]
    with tm.transaction() as tx:
        with pytest.raises(TypeError, match="list of statements"):
            tx.branch("orders").execute_many("SELECT 1")
        with pytest.raises(TypeError, match="Statement"):
            tx.branch("orders").execute_many([5])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="expect_rows"):
            tx.branch("orders").execute("SELECT 1", expect_rows=-1)
    with pytest.raises(ValueError, match="finite"):
        tm.transaction(timeout=float("inf")).begin()
    with pytest.raises(InvalidRequest, match="only once"):
        tx.begin()


def test_interrupted_statement_must_not_commit(
    tm: TransactionManager, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RolledBack, match="interrupted"), tm.transaction() as tx:
        tx.branch("orders").execute("UPDATE t SET a = 1")
        with monkeypatch.context() as patch:
            patch.setattr(tm._session.driver, "drive", _raise(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                tx.branch("orders").execute("UPDATE t SET a = 2")
    assert world.coordinator.methods() == ["Begin", "Rollback"]


def test_unencodable_result_does_not_spoil_the_commit(tm: TransactionManager, world: World) -> None:
    response = pb.RunResponse(gtrid="k1x", outcome=pb.OUTCOME_COMMITTED, completed=True)
    response.results.add(participant="orders").results.add().rows.add().values.add()
    world.coordinator.on("Run", answer(response))
    result = tm.run([])
    assert result.outcome is Outcome.COMMITTED
    with pytest.raises(ValueError, match="update the SDK"):
        result.results["orders"][0].one()


def test_many_threads_share_one_manager(
    tm: TransactionManager, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: dict[int, Any] = {}
    failures: list[BaseException] = []
    start = threading.Barrier(16)
    opened: list[str] = []
    driver = tm._session.driver
    open_channel = driver._open

    def open_slowly(address: str) -> Any:
        opened.append(address)
        time.sleep(0.05)
        return open_channel(address)

    monkeypatch.setattr(driver, "_open", open_slowly)

    def transact(number: int) -> None:
        try:
            start.wait(5)
            for _ in range(5):
                with tm.transaction() as tx:
                    tx.branch("stock").execute("SELECT 1")
                    results[number] = tx.branch("orders").execute("SELECT %s", (number,)).scalar()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=transact, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert failures == []
    assert results == {number: number for number in range(16)}
    assert world.coordinator.methods().count("Commit") == 80
    # One channel an address, however many threads met there first.
    assert sorted(opened) == sorted([world.address, *world.coordinator.directory.values()])


def test_threads_of_one_transaction_hear_of_its_failure(tm: TransactionManager, world: World) -> None:
    world.agents["stock"].on("Execute", hang(0.2), refuse(Reason.DEADLOCK))
    world.agents["orders"].on("Execute", refuse(Reason.LOCK_TIMEOUT))
    heard: list[str] = []

    def execute(tx: Transaction, participant: str) -> None:
        try:
            tx.branch(participant).execute("UPDATE t SET a = 1")
            tx.branch(participant).execute("UPDATE t SET a = 1")
        except RolledBack as error:
            heard.append(error.reason)

    with pytest.raises(RolledBack), tm.transaction() as tx:
        threads = [threading.Thread(target=execute, args=(tx, name)) for name in ("stock", "orders")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
    assert heard == ["LOCK_TIMEOUT", "LOCK_TIMEOUT"]
    assert world.coordinator.methods() == ["Begin", "Rollback"]


def _raise(error: type[BaseException]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise error

    return function
