"""The manager: addresses, channels, status, errors as values, the cost of importing."""

# What leaving a transaction's block raises is tested around the whole block.
# ruff: noqa: PT012

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from coordinator.v1 import coordinator_pb2 as pb
from dtp import Outcome, Reason
from dtp.errors import STATUS
from tests.sdk.fakes import World, error_info_trailers, lost_before, refuse
from xacoord import (
    AlreadyCommitted,
    HeuristicMixed,
    InDoubt,
    InvalidRequest,
    RolledBack,
    TransactionError,
    TransactionManager,
    Unavailable,
    errors,
)
from xacoord.faults import STATUS_KEY, make_fault
from xacoord.status import decode_outcome
from xacoord.verdict import INVALID_REASONS, ROLLED_BACK_REASONS, error_of


def test_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XACOORD_ADDRESS", raising=False)
    assert TransactionManager.connect().address == "127.0.0.1:7420"
    monkeypatch.setenv("XACOORD_ADDRESS", "tm.example:1")
    assert TransactionManager.connect().address == "tm.example:1"
    assert TransactionManager.connect("other:2").address == "other:2"


@pytest.mark.parametrize("grace", [0, -1, float("inf"), float("nan")])
def test_grace_must_be_positive(grace: float) -> None:
    with pytest.raises(ValueError, match="grace"):
        TransactionManager.connect(grace=grace)


def test_channels_and_directory_are_kept(tm: TransactionManager, world: World) -> None:
    for _ in range(3):
        with tm.transaction() as tx:
            tx.branch("orders").execute("SELECT 1")
            tx.branch("orders").execute("SELECT 1")
    assert [request.directory for request in world.coordinator.requests("Begin")] == [True, False, False]
    assert set(tm._session.driver._lines) == {"", world.coordinator.directory["orders"]}


def test_new_participant_is_looked_up(tm: TransactionManager, world: World) -> None:
    with tm.transaction() as tx:
        tx.branch("orders").execute("SELECT 1")
    world.add_agent("billing")
    with tm.transaction() as tx:
        tx.branch("billing").execute("SELECT 1")
    # The look-up's own transaction is rolled back, and the user's is not.
    assert world.coordinator.methods() == ["Begin", "Commit", "Begin", "Begin", "Rollback", "Commit"]
    assert world.coordinator.requests("Rollback")[0].gtrid != tx.gtrid
    assert world.coordinator.outcome(tx.gtrid) == "OUTCOME_COMMITTED"


def test_unknown_participant(tm: TransactionManager, world: World) -> None:
    with pytest.raises(InvalidRequest, match="'nowhere'") as caught, tm.transaction() as tx:
        tx.branch("nowhere").execute("SELECT 1")
    assert caught.value.reason == Reason.UNKNOWN_PARTICIPANT
    assert world.coordinator.outcome(tx.gtrid) == "OUTCOME_ROLLED_BACK"


def test_directory_that_cannot_be_read(tm: TransactionManager, world: World) -> None:
    with pytest.raises(Unavailable), tm.transaction() as tx:
        world.coordinator.on("Begin", refuse(Reason.OVERLOADED))
        tx.branch("nowhere").execute("SELECT 1")


def test_moved_agent_is_found_by_the_next_transaction(tm: TransactionManager, world: World) -> None:
    with tm.transaction() as tx:
        tx.branch("orders").execute("SELECT 1")
    world.agents["orders"].always("Execute", lost_before())
    moved = world.add_agent("orders")
    with pytest.raises(RolledBack, match="PARTICIPANT_UNAVAILABLE"), tm.transaction() as tx:
        tx.branch("orders").execute("SELECT 1")
    with tm.transaction() as tx:
        tx.branch("orders").execute("SELECT 1")
    assert moved.methods() == ["Execute"]


def test_nobody_listens() -> None:
    """Pins gRPC's words for a call that was never sent: such a `run` is certainly not done."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with TransactionManager.connect(address, grace=2) as tm:
        for call in (lambda: tm.run([]), tm.transaction().begin, lambda: tm.status("k1")):
            with pytest.raises(Unavailable) as caught:
                call()
            assert caught.value.reason == Reason.COORDINATOR_UNAVAILABLE
            assert caught.value.retryable


def test_closed_manager(world: World) -> None:
    tm = TransactionManager.connect(world.address)
    with tm:
        tm.run([])
    tm.close()
    with pytest.raises(RuntimeError, match="closed"):
        tm.run([])


def test_another_process_is_refused(tm: TransactionManager, monkeypatch: pytest.MonkeyPatch) -> None:
    tm.run([])
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="fork"):
        tm.run([])


def test_status(tm: TransactionManager, world: World) -> None:
    gtrid = world.coordinator.new_gtrid()
    transaction = world.coordinator.transactions[gtrid]
    transaction.state = pb.STATE_COMMITTING
    transaction.outcome = pb.OUTCOME_COMMITTED
    transaction.in_doubt = transaction.blocked = True
    transaction.begun_at.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, 600000))
    transaction.age.FromMilliseconds(1500)
    transaction.rejection.reason = "DEADLOCK"
    transaction.branches.add(
        participant="orders",
        state=pb.BRANCH_STATE_PREPARED,
        outcome=pb.OUTCOME_UNKNOWN,
        attempts=3,
        last_error="down",
    )
    status = tm.status(gtrid)
    assert (status.gtrid, status.state, status.outcome) == (gtrid, "COMMITTING", Outcome.COMMITTED)
    assert (status.in_doubt, status.blocked, status.evidence, status.recovered) == (True, True, "live", False)
    assert status.begun_at == datetime(2026, 1, 2, 3, 4, 5, 600000, UTC)
    assert status.age_seconds == 1.5
    [branch] = status.branches
    assert (branch.participant, branch.state, branch.outcome) == ("orders", "PREPARED", Outcome.UNKNOWN)
    assert (branch.attempts, branch.last_error) == (3, "down")
    assert status.rejection is not None
    assert (status.rejection.reason, status.rejection.statement) == ("DEADLOCK", None)


def test_status_errors(tm: TransactionManager, world: World) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tm.status("k1none")
    assert (caught.value.reason, caught.value.gtrid) == (Reason.UNKNOWN_TRANSACTION, "k1none")
    world.coordinator.on("Get", lost_before())
    with pytest.raises(Unavailable):
        tm.status("k1none")


def test_newer_enumeration_values_are_unknown() -> None:
    assert decode_outcome(99) is Outcome.UNKNOWN
    assert decode_outcome(pb.OUTCOME_UNSPECIFIED) is Outcome.UNKNOWN


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_class(reason: Reason) -> None:
    fault = make_fault(STATUS[reason], "m", error_info_trailers(reason, gtrid="k1x"))
    error = error_of(fault)
    assert (error.reason, error.gtrid) == (reason, "k1x")
    assert not isinstance(error, InDoubt)
    assert isinstance(error, RolledBack) == (reason in ROLLED_BACK_REASONS)
    assert isinstance(error, InvalidRequest) == (reason in INVALID_REASONS)


@pytest.mark.parametrize(
    "trailers",
    [
        (),
        ((STATUS_KEY, b"\xff\xff"),),
        (("other", b""),),
        error_info_trailers("DEADLOCK", domain="example.com"),
        error_info_trailers(""),
    ],
)
def test_what_is_not_ours_is_transport(trailers: Any) -> None:
    fault = make_fault("UNAVAILABLE", "Socket closed", trailers)
    assert fault.transport
    assert not fault.definite


def test_fault_fields() -> None:
    trailers = error_info_trailers("DEADLOCK", statement="2", errno="1213", retryable="false")
    fault = make_fault("ABORTED", "m", trailers)
    assert (fault.statement, fault.errno, fault.retryable, fault.definite) == (2, 1213, False, True)
    odd = make_fault("ABORTED", "m", error_info_trailers("FROM_THE_FUTURE", statement="x", errno="-1"))
    assert (odd.statement, odd.errno, odd.retryable, odd.definite) == (None, 0, False, False)


@pytest.mark.parametrize(
    "error",
    [
        RolledBack("DEADLOCK", "m", "k1", True, "orders", 3, 1213),
        InDoubt("m", "k1"),
        HeuristicMixed(Outcome.HEURISTIC_MIXED, "m", "k1"),
        AlreadyCommitted("k1"),
        errors.IdempotencyMismatch("IDEMPOTENCY_MISMATCH", "m"),
        errors.IdempotencyInProgress("IDEMPOTENCY_IN_PROGRESS", "m", retryable=True),
        Unavailable("NOT_READY", "m", retryable=True),
        InvalidRequest("INVALID_REQUEST", "m"),
    ],
)
def test_errors_travel_between_processes(error: TransactionError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert str(back) == str(error)
    assert back.reason in str(back)


def test_import_is_light() -> None:
    """No driver, no ORM, and grpc only at connect(). The time is shown, not judged."""
    code = (
        "import sys, time; t = time.perf_counter(); import xacoord; s = time.perf_counter() - t; "
        "print(f'{s * 1000:.0f} ms'); print(' '.join(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    took, modules = output.splitlines()
    print(f"import xacoord: {took}")
    loaded = {name.split(".")[0] for name in modules.split()}
    assert "xacoord" in loaded
    assert not loaded & {"MySQLdb", "sqlalchemy", "django", "pymysql", "asyncio", "grpc", "click", "rich"}
    ours = {name for name in modules.split() if name.startswith(("coordinator.", "participant_agent."))}
    assert {name.split(".")[1] for name in ours} == {"v1"}
