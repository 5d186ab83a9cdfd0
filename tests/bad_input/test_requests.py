"""Requests to the coordinator that cannot be right: each is refused by name and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from coordinator.v1 import admin_pb2
from coordinator.v1 import coordinator_pb2 as pb
from dtp import Reason
from participant_agent.v1 import statement_pb2 as sql_pb
from tests.bad_input.support import INSERT, System, refused, seconds, statement

R = Reason
THIS = "{epoch}"  # stands for the coordinator's epoch
GOOD_SHAPE = "k10001" + "0001" + "0" * 10

# What is sent as a gtrid -> the reason.
GTRIDS = {
    "empty": ("", R.INVALID_GTRID),
    "one": ("k", R.INVALID_GTRID),
    "19 bytes": (GOOD_SHAPE[:-1], R.INVALID_GTRID),
    "21 bytes": (GOOD_SHAPE + "0", R.INVALID_GTRID),
    "64 bytes": ("x" * 64, R.INVALID_GTRID),
    "65 bytes": ("k1" + "0" * 63, R.INVALID_GTRID),
    "a million": ("k1" * 500_000, R.INVALID_GTRID),
    "NUL": (GOOD_SHAPE[:-1] + "\0", R.INVALID_GTRID),
    "quotes": ("k10001'\"`0000000000'", R.INVALID_GTRID),
    "drop": ("';DROP TABLE ledger;-", R.INVALID_GTRID),
    "drop in shape": ("k1';DROP TABLE t;-- ", R.INVALID_GTRID),
    "upper case": (GOOD_SHAPE.upper(), R.INVALID_GTRID),
    "other magic": ("k2" + GOOD_SHAPE[2:], R.INVALID_GTRID),
    "Arabic digits": ("k1" + "\u0661" * 18, R.INVALID_GTRID),
    "control": (GOOD_SHAPE[:-1] + "\x1b", R.INVALID_GTRID),
    "newline": (GOOD_SHAPE + "\n", R.INVALID_GTRID),
    "bidi": ("k1\u202e" + "0" * 17, R.INVALID_GTRID),
    "another's": ("k1zzzz" + GOOD_SHAPE[6:], R.UNKNOWN_TRANSACTION),
    "epoch 0": ("k10001" + "0000" + "0000000001", R.UNKNOWN_TRANSACTION),
    "newer epoch": ("k10001" + "zzzz" + "0000000001", R.UNKNOWN_TRANSACTION),
    "counter 0": ("k10001" + THIS + "0" * 10, R.UNKNOWN_TRANSACTION),
    "not given yet": ("k10001" + THIS + "zzzzzzzzzz", R.UNKNOWN_TRANSACTION),
}
CALLS = {
    "Commit": lambda s, g: s.coordinator.Commit(pb.CommitRequest(gtrid=g), timeout=10),
    "Rollback": lambda s, g: s.coordinator.Rollback(pb.RollbackRequest(gtrid=g), timeout=10),
    "Get": lambda s, g: s.coordinator.Get(pb.GetRequest(gtrid=g), timeout=10),
    "Watch": lambda s, g: list(s.coordinator.Watch(pb.WatchRequest(gtrid=g), timeout=10)),
    "Resolve": lambda s, g: s.admin.Resolve(
        admin_pb2.ResolveRequest(gtrid=g, action="rollback", reason="x"), timeout=10
    ),
    "Forget": lambda s, g: s.admin.Forget(admin_pb2.ForgetRequest(gtrid=g), timeout=10),
}


def epoch_of(system: System) -> int:
    """The running coordinator's; below 10 here, so that decimal is base 36."""
    return system.admin.LogStatus(admin_pb2.LogStatusRequest(), timeout=10).epoch


@pytest.mark.parametrize("case", GTRIDS)
def test_gtrid(system: System, case: str) -> None:
    gtrid, reason = GTRIDS[case]
    gtrid = gtrid.replace(THIS, f"{epoch_of(system):04d}")
    with system.nothing_changes():
        for name, call in CALLS.items():
            try:
                refused(lambda call=call: call(system, gtrid), reason)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error


def test_page_token_is_checked(system: System) -> None:
    token = pb.ListRequest(page_token="';DROP TABLE ledger;-")
    refused(lambda: system.coordinator.List(token, timeout=10), R.INVALID_GTRID)


def test_guessed_gtrid_of_this_epoch_never_commits(system: System) -> None:
    """The counter was given, the random bits are wrong: what a guesser would try."""
    real = system.begin()
    row = system.work(real)
    guessed = real[:-1] + ("0" if real[-1] != "0" else "1")
    try:
        assert system.commit(guessed) == "ROLLED_BACK"
    except grpc.RpcError:
        refused(lambda: system.commit(guessed), R.UNKNOWN_TRANSACTION, R.OUTCOME_UNKNOWN)
    assert system.get(real).state == pb.STATE_ACTIVE
    assert system.commit(real) == "COMMITTED"
    assert system.where(row) == ["orders", "payments"]


def test_old_epoch(system: System) -> None:
    """A gtrid of an epoch before this one that nobody remembers: never COMMITTED."""
    if epoch_of(system) == 1:
        system.cluster.coordinator.stop()
        system.cluster.start_coordinator()
        system.pids["coordinator"] = system.cluster.coordinator.pid
    gtrid = "k10001" + "0001" + "000000zzzz"
    with system.nothing_changes():
        assert system.get(gtrid).outcome in (pb.OUTCOME_UNKNOWN, pb.OUTCOME_ROLLED_BACK)
        try:
            assert system.commit(gtrid) == "ROLLED_BACK"
        except grpc.RpcError:
            refused(lambda: system.commit(gtrid), R.OUTCOME_UNKNOWN, R.UNKNOWN_TRANSACTION)


def _run(*names: str, count: int = 1, **arguments: Any) -> pb.RunRequest:
    branch = [statement(INSERT, 999_999, 1)] * count
    branches = [pb.RunBranch(participant=name, statements=branch) for name in names]
    return pb.RunRequest(branches=branches, **arguments)


def _sql(sql: str, *parameters: Any) -> pb.RunRequest:
    branch = pb.RunBranch(participant="orders", statements=[statement(sql, *parameters)])
    return pb.RunRequest(branches=[branch])


_NO_KIND = sql_pb.Value()
RUNS: dict[str, tuple[pb.RunRequest, Reason]] = {
    "no branch": (pb.RunRequest(), R.NO_BRANCHES),
    "65 branches": (_run(*(f"p{n}" for n in range(65))), R.TOO_MANY_BRANCHES),
    "65 times one": (_run(*(["orders"] * 65)), R.TOO_MANY_BRANCHES),
    "64 unknown": (_run(*(f"p{n}" for n in range(64))), R.UNKNOWN_PARTICIPANT),
    "twice": (_run("orders", "payments", "orders"), R.DUPLICATE_BRANCH),
    "unknown": (_run("orders", "nobody"), R.UNKNOWN_PARTICIPANT),
    "40 characters": (_run("x" * 40), R.UNKNOWN_PARTICIPANT),
    "no statements": (_run("orders", count=0), R.INVALID_REQUEST),
    "257 statements": (_run("orders", count=257), R.INVALID_REQUEST),
    "empty SQL": (_sql(""), R.INVALID_REQUEST),
    "blank SQL": (_sql(" \t\r\n\u3000"), R.INVALID_REQUEST),
    "1 MiB and 1 byte": (_sql("DO '" + "x" * ((1 << 20) - 4) + "'"), R.INVALID_REQUEST),
    "1 MiB of 3-byte characters": (_sql("DO '" + "\u20ac" * 349_526 + "'"), R.INVALID_REQUEST),
    "65,536 parameters": (_sql("DO 1", *([1] * 65_536)), R.INVALID_REQUEST),
    "wait_for 3": (_run("orders", wait_for=3), R.INVALID_REQUEST),
    "wait_for -1": (_run("orders", wait_for=-1), R.INVALID_REQUEST),
    "wait_for 2^31-1": (_run("orders", wait_for=2**31 - 1), R.INVALID_REQUEST),
    "key of 129 bytes": (_run("orders", idempotency_key="k" * 129), R.INVALID_REQUEST),
    "key of 43 euros": (_run("orders", idempotency_key="\u20ac" * 43), R.INVALID_REQUEST),
    "key of 1 MB": (_run("orders", idempotency_key="k" * 1_000_000), R.INVALID_REQUEST),
}
NAMES = ["", " ", "Orders", "orders ", " orders", "orders\n", "orders\0", "-x", "\u00f6rders", "a.b", "a/b"]
NAMES += ["x" * 41, "x" * 100_000, "';DROP", "\x1b[31m", "\u202eredro", "..", "%s", "orders,payments"]


@pytest.mark.parametrize("case", RUNS)
def test_run(system: System, case: str) -> None:
    request, reason = RUNS[case]
    with system.nothing_changes():
        refused(lambda: system.coordinator.Run(request, timeout=10), reason)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:10]))
def test_participant_name(system: System, name: str) -> None:
    with system.nothing_changes():
        refused(lambda: system.coordinator.Run(_run(name), timeout=10), R.INVALID_REQUEST)
        request = admin_pb2.RecoverRequest(apply=True, participants=[name])
        refused(lambda: system.admin.Recover(request, timeout=10), R.UNKNOWN_PARTICIPANT, R.INVALID_REQUEST)


RUN_REJECTED: dict[str, tuple[pb.RunRequest, set[Reason]]] = {
    "parameter without kind": (_sql("DO %s", _NO_KIND), {R.INVALID_REQUEST}),
    "a parameter too many": (_sql("DO %s", 1, 2), {R.INVALID_REQUEST}),
    "a parameter too few": (_sql("DO %s + %s", 1), {R.INVALID_REQUEST}),
    "no parameter at all": (_sql("DO %s"), {R.INVALID_REQUEST, R.STATEMENT_FAILED}),
    "COMMIT": (_sql("COMMIT"), {R.STATEMENT_REFUSED}),
}


@pytest.mark.parametrize("case", RUN_REJECTED)
def test_run_that_the_agent_refuses(system: System, case: str) -> None:
    """The agent finds these: the transaction ends ROLLED_BACK and says why."""
    request, reasons = RUN_REJECTED[case]
    response = system.coordinator.Run(request, timeout=10)
    assert response.outcome == pb.OUTCOME_ROLLED_BACK
    assert response.completed
    assert response.rejection.reason in reasons, response.rejection
    assert response.rejection.participant == "orders"
    assert not response.rejection.retryable


_TEN_YEARS = 10 * 365 * 86_400
DURATIONS = {
    "0": Duration(),
    "-1": Duration(seconds=-1),
    "-1 ns": Duration(nanos=-1),
    "ten years": Duration(seconds=_TEN_YEARS),
    "300 s and 1 ns": Duration(seconds=300, nanos=1),
    "2^63-1": Duration(seconds=2**63 - 1, nanos=2**31 - 1),
    "-2^63": Duration(seconds=-(2**63), nanos=-(2**31)),
    "nanos above a second": Duration(seconds=1, nanos=1_000_000_000),
    "nanos 2^31-1": Duration(seconds=1, nanos=2**31 - 1),
    "mixed signs": Duration(seconds=2, nanos=-1),
    "mixed signs, result 0": Duration(seconds=1, nanos=-1_000_000_000),
}


@pytest.mark.parametrize("case", DURATIONS)
def test_timeout(system: System, case: str) -> None:
    duration = DURATIONS[case]
    run = _run("orders", timeout=duration)
    with system.nothing_changes():
        begin = pb.BeginRequest(timeout=duration)
        reasons = (R.TIMEOUT_OUT_OF_RANGE, R.INVALID_REQUEST)
        refused(lambda: system.coordinator.Begin(begin, timeout=10), *reasons)
        refused(lambda: system.coordinator.Run(run, timeout=10), *reasons)


def test_timeout_missing_is_the_default(system: System) -> None:
    response = system.coordinator.Begin(pb.BeginRequest(), timeout=10)
    assert response.timeout.seconds == 30
    assert system.rollback(response.gtrid) == "ROLLED_BACK"


BEGINS = {
    "key of 129 bytes": pb.BeginRequest(idempotency_key="k" * 129),
    "fingerprint of 33 bytes": pb.BeginRequest(idempotency_key="k", fingerprint=b"f" * 33),
    "fingerprint without key": pb.BeginRequest(fingerprint=b"f"),
}


@pytest.mark.parametrize("case", BEGINS)
def test_begin(system: System, case: str) -> None:
    with system.nothing_changes():
        refused(lambda: system.coordinator.Begin(BEGINS[case], timeout=10), R.INVALID_REQUEST)


@pytest.mark.parametrize("wait_for", [3, 99, -1, 2**31 - 1, -(2**31)])
def test_commit_wait_for(system: System, wait_for: int) -> None:
    gtrid = system.begin()
    request = pb.CommitRequest(gtrid=gtrid, wait_for=wait_for)
    refused(lambda: system.coordinator.Commit(request, timeout=10), R.INVALID_REQUEST)
    assert system.get(gtrid).state == pb.STATE_ACTIVE
    assert system.rollback(gtrid) == "ROLLED_BACK"


def test_idempotency_key_with_other_content(system: System) -> None:
    row, other = system.new_row(), system.new_row()
    assert system.run(row, idempotency_key="same key").outcome == pb.OUTCOME_COMMITTED
    with system.nothing_changes():
        refused(lambda: system.run(other, idempotency_key="same key"), R.IDEMPOTENCY_MISMATCH)
        refused(lambda: system.begin(idempotency_key="same key"), R.IDEMPOTENCY_MISMATCH)
        assert system.run(row, idempotency_key="same key").replayed
    assert system.where(row) == ["orders", "payments"]
    assert system.where(other) == []


def test_idempotency_key_under_way(system: System) -> None:
    gtrid = system.begin(idempotency_key="open key", fingerprint=b"one")
    with system.nothing_changes():
        again = lambda f: system.begin(idempotency_key="open key", fingerprint=f)  # noqa: E731
        refused(lambda: again(b"two"), R.IDEMPOTENCY_MISMATCH)
        refused(lambda: again(b"one"), R.IDEMPOTENCY_IN_PROGRESS)
        refused(lambda: system.run(1, idempotency_key="open key"), R.IDEMPOTENCY_MISMATCH)
    assert system.rollback(gtrid) == "ROLLED_BACK"


@pytest.mark.parametrize("key", ["\0", "';DROP TABLE ledger;-", "\x1b[2J\n", "\u20ac" * 42, " "])
def test_odd_idempotency_keys_work(system: System, key: str) -> None:
    row = system.new_row()
    assert system.run(row, idempotency_key=key).outcome == pb.OUTCOME_COMMITTED
    assert system.run(row, idempotency_key=key).replayed
    assert system.where(row) == ["orders", "payments"]


_RESOLVE = admin_pb2.ResolveRequest
RESOLVES = {
    "no action": dict(reason="x"),
    "odd action": dict(action="COMMIT", reason="x"),
    "no reason": dict(action="rollback"),
    "blank reason": dict(action="rollback", reason=" \t\n"),
    "reason of 501": dict(action="rollback", reason="x" * 501),
    "reason of 3 MB of blanks": dict(action="rollback", reason=" " * 3_000_000 + "x"),
    "operator of 101": dict(action="rollback", reason="x", operator="o" * 101),
}


@pytest.mark.parametrize("case", RESOLVES)
def test_resolve(system: System, case: str) -> None:
    gtrid = system.begin()
    request = _RESOLVE(gtrid=gtrid, **RESOLVES[case])
    try:
        refused(lambda: system.admin.Resolve(request, timeout=10), R.INVALID_REQUEST)
        assert system.get(gtrid).state == pb.STATE_ACTIVE
    finally:
        assert system.rollback(gtrid) == "ROLLED_BACK"


def test_resolve_and_forget_what_is_active(system: System) -> None:
    gtrid = system.begin()
    commit = _RESOLVE(gtrid=gtrid, action="commit", reason="x")
    refused(lambda: system.admin.Resolve(commit, timeout=10), R.NOT_IN_DOUBT)
    refused(lambda: system.admin.Forget(admin_pb2.ForgetRequest(gtrid=gtrid), timeout=10), R.NOT_HEURISTIC)
    assert system.rollback(gtrid) == "ROLLED_BACK"


def test_list_limits(system: System) -> None:
    for size in (1001, 2**32 - 1):
        request = pb.ListRequest(page_size=size)
        refused(lambda request=request: system.coordinator.List(request, timeout=10), R.INVALID_REQUEST)
    for duration in (Duration(seconds=-1), Duration(seconds=1, nanos=2**31 - 1)):
        request = pb.ListRequest(older_than=duration)
        refused(lambda request=request: system.coordinator.List(request, timeout=10), R.INVALID_REQUEST)
    assert not system.coordinator.List(pb.ListRequest(older_than=seconds(1e9)), timeout=10).transactions
