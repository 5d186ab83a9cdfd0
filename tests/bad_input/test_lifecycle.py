"""Right requests at the wrong time: the transaction's state decides, and nothing is half done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from coordinator.v1 import coordinator_pb2 as pb
from dtp import Reason
from tests.bad_input.support import INSERT, NAMES, System, check_refusal, error_info, refused, statement

R = Reason


def test_commit_before_any_work(system: System) -> None:
    gtrid = system.begin()
    assert system.commit(gtrid) == "COMMITTED"
    with system.nothing_changes():
        assert system.commit(gtrid) == "COMMITTED"
        refused(lambda: system.work(gtrid), R.TRANSACTION_NOT_ACTIVE, R.BRANCH_DOOMED)


def test_commit_twice(system: System) -> None:
    gtrid = system.begin()
    row = system.work(gtrid)
    assert [system.commit(gtrid) for _ in range(3)] == ["COMMITTED"] * 3
    refused(lambda: system.rollback(gtrid), R.ALREADY_COMMITTED)
    refused(lambda: system.work(gtrid), R.TRANSACTION_NOT_ACTIVE)
    assert system.where(row) == list(NAMES)


def test_commit_after_rollback(system: System) -> None:
    gtrid = system.begin()
    row = system.work(gtrid)
    assert [system.rollback(gtrid) for _ in range(3)] == ["ROLLED_BACK"] * 3
    assert system.commit(gtrid) == "ROLLED_BACK"
    refused(lambda: system.work(gtrid), R.TRANSACTION_NOT_ACTIVE, R.BRANCH_DOOMED)
    assert system.where(row) == []


def test_commit_by_many_clients_at_once(system: System) -> None:
    with ThreadPoolExecutor(16) as threads:
        for _ in range(5):
            gtrid = system.begin()
            row = system.work(gtrid)
            assert set(threads.map(system.commit, [gtrid] * 16)) == {"COMMITTED"}
            assert system.where(row) == list(NAMES)


def test_commit_and_rollback_at_once(system: System) -> None:
    """Whoever comes first; all who hear something hear the same."""

    def told(call: Callable[[], str]) -> str:
        try:
            return call()
        except grpc.RpcError as error:
            info = check_refusal(error, R.ALREADY_COMMITTED, R.TRANSACTION_NOT_ACTIVE)
            return "COMMITTED" if info.reason == R.ALREADY_COMMITTED else "COMMITTING"

    with ThreadPoolExecutor(8) as threads:
        for turn in range(8):
            gtrid = system.begin()
            row = system.work(gtrid)
            calls = [lambda g=gtrid: system.commit(g), lambda g=gtrid: system.rollback(g)] * 4
            answers = set(threads.map(told, calls if turn % 2 else calls[::-1])) - {"COMMITTING"}
            assert len(answers) == 1, answers
            assert system.where(row) == (list(NAMES) if answers == {"COMMITTED"} else [])


def test_after_the_deadline(system: System) -> None:
    gtrid = system.begin(timeout=0.4)
    row = system.work(gtrid)
    time.sleep(0.6)
    response = system.coordinator.Commit(pb.CommitRequest(gtrid=gtrid), timeout=10)
    assert response.outcome == pb.OUTCOME_ROLLED_BACK
    assert response.rejection.reason == R.DEADLINE_PASSED
    assert response.rejection.retryable
    late = lambda: system.execute("orders", gtrid, statement(INSERT, row, 1))  # noqa: E731
    refused(late, R.TRANSACTION_NOT_ACTIVE, R.BRANCH_DOOMED)
    assert system.where(row) == []


def test_work_that_begins_after_the_deadline(system: System) -> None:
    gtrid = system.begin(timeout=0.05)
    time.sleep(0.2)
    refused(lambda: system.work(gtrid), R.TRANSACTION_NOT_ACTIVE, R.BRANCH_DOOMED)
    assert system.commit(gtrid) == "ROLLED_BACK"


@pytest.mark.parametrize("names", [("orders",), NAMES])
def test_one_shot_is_over(system: System, names: tuple[str, ...]) -> None:
    row = system.new_row()
    gtrid = system.run(row, names).gtrid
    assert system.commit(gtrid) == "COMMITTED"
    refused(lambda: system.rollback(gtrid), R.ALREADY_COMMITTED)
    refused(lambda: system.work(gtrid), R.TRANSACTION_NOT_ACTIVE, R.BRANCH_DOOMED)
    assert system.where(row) == list(names)


def test_one_shot_that_was_rejected(system: System) -> None:
    row = system.new_row()
    system.run(row, ("orders",))
    response = system.run(row)  # the row is there: a duplicate key at orders
    assert response.outcome == pb.OUTCOME_ROLLED_BACK
    assert response.rejection.reason == R.STATEMENT_FAILED
    assert response.rejection.errno == 1062
    assert system.commit(response.gtrid) == "ROLLED_BACK"
    assert system.rollback(response.gtrid) == "ROLLED_BACK"
    assert system.where(row) == ["orders"]


def test_execute_at_the_wrong_agent(system: System) -> None:
    """The other participant has no such table: the branch there fails, and with it the transaction."""
    server = system.cluster.sites["orders"].server
    server.sql("CREATE TABLE IF NOT EXISTS orders.only_here (id INT PRIMARY KEY)")
    gtrid, row = system.begin(), system.new_row()
    insert = statement("INSERT INTO only_here VALUES (%s)", row)
    system.execute("orders", gtrid, insert)
    info = refused(lambda: system.execute("payments", gtrid, insert), R.STATEMENT_FAILED)
    assert info.metadata["errno"] == "1146"
    assert system.commit(gtrid) == "ROLLED_BACK"
    assert server.sql(f"SELECT * FROM orders.only_here WHERE id = {row}") == []


def _at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """What each call returned or raised; all start together."""
    barrier = threading.Barrier(len(calls))

    def one(call: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return call()
        except grpc.RpcError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(one, calls))


def test_execute_that_names_another_participant(system: System) -> None:
    """The client has an old address: the agent there refuses, and the transaction goes on without it."""
    gtrid = system.begin()
    row = system.work(gtrid)
    for name in ("payments", "nobody", "Orders", "x" * 100_000, "\x1b[2J", "';DROP"):
        call = lambda name=name: system.execute("orders", gtrid, statement("DO 1"), participant=name)  # noqa: E731
        refused(call, R.PARTICIPANT_MISMATCH, R.INVALID_REQUEST)
    system.execute("orders", gtrid, statement("DO 1"), participant="orders")
    assert system.commit(gtrid) == "COMMITTED"
    assert system.where(row) == list(NAMES)


def test_execute_twice_at_once(system: System) -> None:
    """One call works, the other hears BRANCH_BUSY; what the transaction then has is what was answered."""
    for _ in range(4):
        gtrid, rows = system.begin(), [system.new_row(), system.new_row()]
        calls = []
        for row in rows:
            work = [statement(INSERT, row, 1), statement("DO SLEEP(0.1)")]
            calls.append(lambda work=work, gtrid=gtrid: system.execute("orders", gtrid, *work))
        answers = _at_once(calls)
        failed = [isinstance(answer, grpc.RpcError) for answer in answers]
        assert sum(failed) == 1, answers
        check_refusal(answers[failed.index(True)], R.BRANCH_BUSY)
        assert system.commit(gtrid) == "COMMITTED"
        assert [system.where(row) for row in rows] == [[] if bad else ["orders"] for bad in failed]


def test_execute_while_commit_runs(system: System) -> None:
    """The row is there or not as Commit and Execute said, whichever came first."""
    for _ in range(6):
        gtrid = system.begin()
        first = system.work(gtrid)
        late = system.new_row()
        executed, committed = _at_once(
            [
                lambda g=gtrid, r=late: system.execute("orders", g, statement(INSERT, r, 1)),
                lambda g=gtrid: system.commit(g),
            ]
        )
        assert committed in ("COMMITTED", "ROLLED_BACK")
        if isinstance(executed, grpc.RpcError):
            error_info(executed)
        worked = not isinstance(executed, grpc.RpcError)
        assert system.where(first) == (list(NAMES) if committed == "COMMITTED" else [])
        assert (late in system.rows("orders")) == (worked and committed == "COMMITTED")


def test_rollback_while_a_statement_runs(system: System) -> None:
    gtrid, row = system.begin(), system.new_row()
    slow = [statement(INSERT, row, 1), statement("SELECT SLEEP(5)")]
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(system.execute, "orders", gtrid, *slow)
        time.sleep(0.3)
        began = time.monotonic()
        assert system.rollback(gtrid) == "ROLLED_BACK"
        assert time.monotonic() - began < 3
        error = running.exception(timeout=5)
        assert isinstance(error, grpc.RpcError)
        check_refusal(error)
    assert system.where(row) == []


def test_gtrid_that_begin_never_gave_at_an_agent(system: System) -> None:
    """The agent asks the coordinator before the branch counts: a guessed id is refused and leaves nothing."""
    real = system.begin()
    guesses = [real[:-1] + c for c in "0z" if c != real[-1]] + [real[:-5] + "zzzzz", real[:10] + "z" * 10]
    row = system.new_row()
    for guessed in guesses:
        with system.nothing_changes():
            work = lambda g=guessed: system.execute("orders", g, statement(INSERT, row, 1))  # noqa: E731
            refused(work, R.TRANSACTION_NOT_ACTIVE)
            refused(work, R.TRANSACTION_NOT_ACTIVE, R.BRANCH_DOOMED)
    assert system.rollback(real) == "ROLLED_BACK"


def test_eight_transactions_of_one_row(system: System) -> None:
    """All want the same row: one gets it, the others hear a retryable lock time-out, none waits for ever."""
    row = system.new_row()
    system.run(row, ("orders",))
    gtrids = [system.begin(timeout=15) for _ in range(8)]
    update = statement("UPDATE ledger SET amount = amount + 1 WHERE id = %s", row)
    answers = _at_once([lambda g=g: system.execute("orders", g, update) for g in gtrids])
    failed = [isinstance(answer, grpc.RpcError) for answer in answers]
    assert sum(failed) == 7
    for answer in (answer for answer, bad in zip(answers, failed, strict=True) if bad):
        check_refusal(answer, R.LOCK_TIMEOUT, R.DEADLOCK)
    outcomes = [system.commit(gtrid) for gtrid in gtrids]
    assert outcomes == ["ROLLED_BACK" if bad else "COMMITTED" for bad in failed]
    assert system.cluster.sites["orders"].server.sql(f"SELECT amount FROM orders.ledger WHERE id={row}") == [
        (2,)
    ]
