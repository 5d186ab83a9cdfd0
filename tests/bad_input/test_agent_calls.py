"""What only a coordinator should send to an agent, sent by somebody else: fences, streams, scans, lookups."""

from __future__ import annotations

import queue
import threading
from typing import Any

import grpc
import pytest

from coordinator.v1 import admin_pb2
from coordinator.v1 import coordinator_pb2 as pb
from dtp import Reason
from participant_agent.v1 import participant_agent_pb2 as agent_pb
from tests.bad_input.support import INSERT, NAMES, System, check_refusal, check_text, refused, statement

R = Reason
IDENTITY = b"0123456789abcdef"
OTHER = "zzz9"  # a coordinator id of nobody


def fence_request(**changes: Any) -> agent_pb.FenceRequest:
    """A good fence of the coordinator OTHER, but for `changes`."""
    epoch = changes.get("epoch", 5)
    good: dict[str, Any] = dict(
        coordinator_id=OTHER, epoch=5, log_identity=IDENTITY, participant="orders", number=1
    )
    history = [agent_pb.Epoch(epoch=epoch, nonce=epoch + 1000)]
    return agent_pb.FenceRequest(**{**good, "history": history, **changes})


FENCES: dict[str, tuple[dict[str, Any], tuple[Reason, ...]]] = {
    "epoch 0": (dict(epoch=0), (R.INVALID_REQUEST,)),
    "epoch 36^4": (dict(epoch=36**4), (R.INVALID_REQUEST,)),
    "epoch 2^32-1": (dict(epoch=2**32 - 1), (R.INVALID_REQUEST,)),
    "no identity": (dict(log_identity=b""), (R.INVALID_REQUEST,)),
    "identity of 15": (dict(log_identity=IDENTITY[:15]), (R.INVALID_REQUEST,)),
    "identity of 17": (dict(log_identity=IDENTITY + b"x"), (R.INVALID_REQUEST,)),
    "identity of 1 MB": (dict(log_identity=b"x" * 1_000_000), (R.INVALID_REQUEST,)),
    "no id": (dict(coordinator_id=""), (R.INVALID_REQUEST,)),
    "id of 5": (dict(coordinator_id="zzzzz"), (R.INVALID_REQUEST,)),
    "id upper case": (dict(coordinator_id="ZZZ9"), (R.INVALID_REQUEST,)),
    "id with quote": (dict(coordinator_id="zz'9"), (R.INVALID_REQUEST,)),
    "id Arabic": (dict(coordinator_id="\u0661" * 4), (R.INVALID_REQUEST,)),
    "other participant": (dict(participant="payments"), (R.PARTICIPANT_MISMATCH,)),
    "no participant": (dict(participant=""), (R.PARTICIPANT_MISMATCH, R.INVALID_REQUEST)),
    "participant with quote": (dict(participant="orders'"), (R.PARTICIPANT_MISMATCH, R.INVALID_REQUEST)),
    "participant of 1 MB": (dict(participant="o" * 1_000_000), (R.PARTICIPANT_MISMATCH, R.INVALID_REQUEST)),
    "number 36^4": (dict(number=36**4), (R.INVALID_REQUEST,)),
    "number 2^32-1": (dict(number=2**32 - 1), (R.INVALID_REQUEST,)),
    "history of 1,002": (
        dict(history=[agent_pb.Epoch(epoch=n + 1, nonce=n) for n in range(1002)]),
        (R.INVALID_REQUEST,),
    ),
}


@pytest.mark.parametrize("case", FENCES)
def test_fence(system: System, case: str) -> None:
    changes, reasons = FENCES[case]
    with system.nothing_changes():
        before = _fences(system)
        refused(lambda: system.agents["orders"].Fence(fence_request(**changes), timeout=10), *reasons)
        assert _fences(system) == before


def _fences(system: System) -> list[tuple[Any, ...]]:
    return system.cluster.sites["orders"].server.sql("SELECT * FROM xacoord.coordinator ORDER BY 1, 2")


def test_fence_lower_and_other_log(system: System) -> None:
    """Of a coordinator of its own; ours does not notice."""
    orders = system.agents["orders"]
    name = "zzz8"
    assert orders.Fence(fence_request(coordinator_id=name), timeout=10).server.engine == "mariadb"
    before = _fences(system)
    lower = fence_request(coordinator_id=name, epoch=4)
    info = refused(lambda: orders.Fence(lower, timeout=10), R.STALE_EPOCH)
    assert info.metadata["remembered_epoch"] == "5"
    other_log = fence_request(coordinator_id=name, epoch=6, log_identity=IDENTITY[::-1])
    refused(lambda: orders.Fence(other_log, timeout=10), R.LOG_IDENTITY_CHANGED)
    other_nonce = [agent_pb.Epoch(epoch=5, nonce=1), agent_pb.Epoch(epoch=6, nonce=2)]
    restored = fence_request(coordinator_id=name, epoch=6, history=other_nonce)
    refused(lambda: orders.Fence(restored, timeout=10), R.LOG_IDENTITY_CHANGED)
    forgetful = fence_request(coordinator_id=name, epoch=7, history=[])
    refused(lambda: orders.Fence(forgetful, timeout=10), R.LOG_IDENTITY_CHANGED, R.INVALID_REQUEST)
    renumbered = fence_request(coordinator_id=name, number=2)
    refused(lambda: orders.Fence(renumbered, timeout=10), R.PARTICIPANT_MISMATCH)
    assert _fences(system) == before
    assert orders.Fence(fence_request(coordinator_id=name), timeout=10).ended_sessions == 0


# --- Attach ---


class Stream:
    """An Attach stream that is fed message by message."""

    def __init__(self, system: System, *messages: agent_pb.AttachRequest) -> None:
        self._messages: queue.Queue[agent_pb.AttachRequest | None] = queue.Queue()
        for message in messages:
            self._messages.put(message)
        self.call = system.agents["orders"].Attach(iter(self._messages.get, None), timeout=15)
        self.reports: list[agent_pb.Report] = []
        self.error: grpc.RpcError | None = None
        self._ended = threading.Thread(target=self._read)
        self._ended.start()

    def _read(self) -> None:
        try:
            for response in self.call:
                self.reports.extend(response.reports)
        except grpc.RpcError as error:
            self.error = error

    def send(self, message: agent_pb.AttachRequest) -> None:
        self._messages.put(message)

    def half_close(self) -> None:
        self._messages.put(None)

    def wait(self, seconds: float = 10) -> None:
        self._ended.join(seconds)
        assert not self._ended.is_alive()

    def close(self) -> None:
        self.call.cancel()
        self._messages.put(None)
        self.wait()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hello(**changes: Any) -> agent_pb.AttachRequest:
    """The hello of the coordinator OTHER as it was fenced, but for `changes`."""
    good: dict[str, Any] = dict(coordinator_id=OTHER, epoch=5, log_identity=IDENTITY)
    return agent_pb.AttachRequest(hello=agent_pb.Hello(**{**good, **changes}))


COMMAND = agent_pb.Command(gtrid="k1" + OTHER + "0005" + "0" * 10, rollback=agent_pb.Rollback())
ATTACHES: dict[str, tuple[list[agent_pb.AttachRequest], tuple[Reason, ...]]] = {
    "nothing": ([], (R.INVALID_REQUEST,)),
    "empty message": ([agent_pb.AttachRequest()], (R.INVALID_REQUEST,)),
    "commands without hello": ([agent_pb.AttachRequest(commands=[COMMAND])], (R.INVALID_REQUEST,)),
    "empty hello": ([agent_pb.AttachRequest(hello=agent_pb.Hello())], (R.INVALID_REQUEST,)),
    "epoch 0": ([hello(epoch=0)], (R.INVALID_REQUEST,)),
    "epoch 2^32-1": ([hello(epoch=2**32 - 1)], (R.INVALID_REQUEST,)),
    "lower epoch": ([hello(epoch=4)], (R.STALE_EPOCH,)),
    "higher epoch": ([hello(epoch=6)], (R.UNKNOWN_EPOCH, R.STALE_EPOCH)),
    "never fenced": ([hello(coordinator_id="zzz0")], (R.UNKNOWN_EPOCH,)),
    "other log": ([hello(log_identity=IDENTITY[::-1])], (R.LOG_IDENTITY_CHANGED,)),
    "short identity": ([hello(log_identity=b"x")], (R.INVALID_REQUEST,)),
    "odd id": ([hello(coordinator_id="';--")], (R.INVALID_REQUEST,)),
    "hello twice": ([hello(), hello()], (R.INVALID_REQUEST,)),
    "purge of nonsense": ([hello(), agent_pb.AttachRequest(purge_below="';DROP")], (R.INVALID_GTRID,)),
    "purge of another's": (
        [hello(), agent_pb.AttachRequest(purge_below="k10001zzzzzzzzzzzzzz")],
        (R.INVALID_GTRID,),
    ),
}


@pytest.fixture
def fenced(system: System) -> System:
    """OTHER is fenced with epoch 5."""
    system.agents["orders"].Fence(fence_request(), timeout=10)
    return system


@pytest.mark.parametrize("case", ATTACHES)
def test_attach(fenced: System, case: str) -> None:
    messages, reasons = ATTACHES[case]
    with fenced.nothing_changes(), Stream(fenced, *messages) as stream:
        if not messages:
            stream.half_close()
        stream.wait()
        assert stream.error is not None
        check_refusal(stream.error, *reasons)


def _gtrid(tail: str) -> str:
    return "k1" + OTHER + "0005" + tail.rjust(10, "0")


RUN = agent_pb.Run(statements=[statement("DO 1")], participants=[1], remaining_milliseconds=1000)
# Command -> the failure's reason in the one report that answers it.
COMMANDS: dict[str, tuple[agent_pb.Command, Reason | tuple[Reason, ...]]] = {
    "no verb": (agent_pb.Command(gtrid=_gtrid("a")), R.INVALID_REQUEST),
    "odd gtrid": (agent_pb.Command(gtrid="';DROP", run=RUN), R.INVALID_GTRID),
    "another's gtrid": (agent_pb.Command(gtrid="k100010001" + "0" * 10, run=RUN), R.INVALID_GTRID),
    "prepare of nothing": (agent_pb.Command(gtrid=_gtrid("b"), prepare=agent_pb.Prepare()), R.BRANCH_LOST),
    "run of nothing": (agent_pb.Command(gtrid=_gtrid("c"), run=agent_pb.Run()), R.INVALID_REQUEST),
    "run with COMMIT": (
        agent_pb.Command(gtrid=_gtrid("d"), run=agent_pb.Run(statements=[statement("COMMIT")])),
        R.STATEMENT_REFUSED,
    ),
    "65 participants": (
        agent_pb.Command(gtrid=_gtrid("e"), prepare=agent_pb.Prepare(participants=range(65))),
        R.INVALID_REQUEST,
    ),
    "participant 2^32-1": (
        agent_pb.Command(gtrid=_gtrid("f"), prepare=agent_pb.Prepare(participants=[2**32 - 1])),
        R.INVALID_REQUEST,
    ),
    "later epoch": (
        agent_pb.Command(gtrid="k1" + OTHER + "000z" + "0" * 10, run=RUN),
        (R.INVALID_GTRID, R.UNKNOWN_EPOCH),
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_command(fenced: System, case: str) -> None:
    """Each is answered by a failure in a report; the stream lives on, and nothing is left on the server."""
    command, reason = COMMANDS[case]
    with fenced.nothing_changes(), Stream(fenced, hello()) as stream:
        stream.send(agent_pb.AttachRequest(commands=[command]))
        stream.send(agent_pb.AttachRequest(commands=[COMMAND]))
        _wait_for_reports(stream, 2)
        by_gtrid = {report.gtrid: report for report in stream.reports}
        report = by_gtrid[command.gtrid]
        event = getattr(report, report.WhichOneof("event"))
        assert event.failure.reason in (reason if isinstance(reason, tuple) else (reason,)), report
        check_text(event.failure.message)
        assert by_gtrid[COMMAND.gtrid].finished.state == agent_pb.FINISHED_STATE_ROLLED_BACK
        assert stream.error is None


def _wait_for_reports(stream: Stream, count: int) -> None:
    for _ in range(100):
        if len(stream.reports) >= count or stream.error is not None:
            break
        threading.Event().wait(0.05)
    assert len(stream.reports) >= count, (stream.reports, stream.error)


def test_commit_of_what_was_never_prepared(fenced: System) -> None:
    """No proof of anything: never COMMITTED."""
    commit = agent_pb.Command(gtrid=_gtrid("g"), commit=agent_pb.Commit())
    with fenced.nothing_changes(), Stream(fenced, hello()) as stream:
        stream.send(agent_pb.AttachRequest(commands=[commit]))
        _wait_for_reports(stream, 1)
        assert stream.reports[0].finished.state != agent_pb.FINISHED_STATE_COMMITTED


def test_a_second_stream_takes_over_from_ours(system: System) -> None:
    """With our coordinator's own hello: the older stream ends, and then ours comes back."""
    row = system.cluster.sites["orders"].server.sql(
        "SELECT epoch, log_identity FROM xacoord.coordinator WHERE coordinator_id = '0001'"
        " AND participant = 'orders'"
    )[0]
    gtrid = system.begin()
    worked = system.work(gtrid)
    stolen = hello(coordinator_id="0001", epoch=int(row[0]), log_identity=bytes(row[1]))
    with Stream(system, stolen) as first:
        system.cluster.wait_until_up()
        first.wait()
        assert first.error is not None
        check_refusal(first.error, R.STALE_EPOCH)
    outcome = system.commit(gtrid)
    assert outcome in ("COMMITTED", "ROLLED_BACK")
    assert system.where(worked) == (list(NAMES) if outcome == "COMMITTED" else [])
    assert system.run(system.new_row()).outcome == pb.OUTCOME_COMMITTED


def test_enlisted_for_a_branch_that_did_not_ask(fenced: System) -> None:
    commands = [
        agent_pb.Command(gtrid=g, enlisted=agent_pb.Enlisted(accepted=True)) for g in ("", "x", _gtrid("h"))
    ]
    with fenced.nothing_changes(), Stream(fenced, hello()) as stream:
        stream.send(agent_pb.AttachRequest(commands=commands))
        stream.send(agent_pb.AttachRequest(commands=[COMMAND]))
        _wait_for_reports(stream, 1)
        assert stream.error is None


def test_another_coordinator_cannot_end_our_branch(fenced: System) -> None:
    gtrid = fenced.begin()
    row = fenced.work(gtrid)
    with Stream(fenced, hello()) as stream:
        stream.send(
            agent_pb.AttachRequest(commands=[agent_pb.Command(gtrid=gtrid, rollback=agent_pb.Rollback())])
        )
        _wait_for_reports(stream, 1)
        assert stream.reports[0].finished.state == agent_pb.FINISHED_STATE_RETRY
        assert stream.reports[0].finished.failure.reason == R.INVALID_GTRID
    assert fenced.commit(gtrid) == "COMMITTED"
    assert fenced.where(row) == list(NAMES)


def test_execute_for_a_coordinator_that_is_not_attached(fenced: System) -> None:
    refused(
        lambda: fenced.execute("orders", _gtrid("i"), statement(INSERT, 888_888, 1)),
        R.COORDINATOR_UNAVAILABLE,
    )
    never = "k1zzz00005" + "0" * 10
    refused(lambda: fenced.execute("orders", never, statement("DO 1")), R.UNKNOWN_EPOCH)
    assert 888_888 not in fenced.rows("orders")


@pytest.mark.parametrize(
    "gtrid", ["", "k1", "x" * 64, "x" * 65, "k10001'; DROP TABLE-", "K1000100010000000000", "k1" + "\0" * 18]
)
def test_execute_with_odd_gtrid(system: System, gtrid: str) -> None:
    with system.nothing_changes():
        refused(lambda: system.execute("orders", gtrid, statement("DO 1")), R.INVALID_GTRID)


def test_execute_of_other_epochs(system: System) -> None:
    epoch = system.admin.LogStatus(admin_pb2.LogStatusRequest(), timeout=10).epoch
    with system.nothing_changes():
        for text, reason in ((f"{epoch - 1:04d}", R.STALE_EPOCH), ("zzzz", R.UNKNOWN_EPOCH)):
            gtrid = "k10001" + text + "0" * 10
            refused(lambda g=gtrid: system.execute("orders", g, statement("DO 1")), reason)


SCANS = {
    "unknown coordinator": (dict(coordinator_id="zzz0", epoch=1), (R.UNKNOWN_EPOCH,)),
    "no coordinator": (dict(epoch=1), (R.UNKNOWN_EPOCH, R.INVALID_REQUEST)),
    "odd coordinator": (dict(coordinator_id="';DROP", epoch=1), (R.UNKNOWN_EPOCH, R.INVALID_REQUEST)),
    "epoch 2^32-1": (dict(coordinator_id="0001", epoch=2**32 - 1), (R.UNKNOWN_EPOCH, R.INVALID_REQUEST)),
    "long coordinator": (dict(coordinator_id="x" * 1_000_000, epoch=1), (R.UNKNOWN_EPOCH, R.INVALID_REQUEST)),
    "control coordinator": (dict(coordinator_id="\x1b[2J", epoch=1), (R.UNKNOWN_EPOCH, R.INVALID_REQUEST)),
}


@pytest.mark.parametrize("case", SCANS)
def test_scan(system: System, case: str) -> None:
    request = agent_pb.ScanRequest(**SCANS[case][0])
    refused(lambda: system.agents["orders"].Scan(request, timeout=10), *SCANS[case][1])


_GOOD = "k10001" + "0001" + "0" * 10
LOOKUPS = {
    "1,001 gtrids": (dict(coordinator_id="0001", gtrids=[_GOOD] * 1001), R.INVALID_REQUEST),
    "odd gtrid": (dict(coordinator_id="0001", gtrids=[_GOOD, "';DROP"]), R.INVALID_GTRID),
    "empty gtrid": (dict(coordinator_id="0001", gtrids=[""]), R.INVALID_GTRID),
    "another's": (dict(coordinator_id="0001", gtrids=["k1zzz9" + "0" * 14]), R.INVALID_GTRID),
    "odd coordinator": (dict(coordinator_id="'", gtrids=[_GOOD]), R.INVALID_GTRID),
}


@pytest.mark.parametrize("case", LOOKUPS)
def test_lookup(system: System, case: str) -> None:
    arguments, reason = LOOKUPS[case]
    refused(lambda: system.agents["orders"].Lookup(agent_pb.LookupRequest(**arguments), timeout=10), reason)


def test_lookup_of_a_thousand_and_of_strangers(system: System) -> None:
    """As many as allowed, the same one many times; a coordinator that never fenced has no evidence."""
    request = agent_pb.LookupRequest(coordinator_id="0001", gtrids=[_GOOD] * 1000)
    evidence = system.agents["orders"].Lookup(request, timeout=10).evidence
    assert [item.gtrid for item in evidence] == [_GOOD] * 1000
    assert agent_pb.EVIDENCE_STATE_COMMITTED not in {item.state for item in evidence}
    stranger = agent_pb.LookupRequest(coordinator_id="zzz0", gtrids=["k1zzz0" + "0" * 14])
    evidence = system.agents["orders"].Lookup(stranger, timeout=10).evidence
    assert [item.state for item in evidence] == [agent_pb.EVIDENCE_STATE_NONE]
