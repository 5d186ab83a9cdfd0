"""An agent that lies: the coordinator stays alive, bounds what it keeps, and its other participants notice
nothing. It may believe what this agent says about the agent's own branches, and nothing about others."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from coordinator.v1 import admin_pb2, admin_pb2_grpc, coordinator_pb2_grpc
from coordinator.v1 import coordinator_pb2 as pb
from deploy.private_cluster import Process, wait_for
from deploy.processes import free_port
from dtp import Reason
from participant_agent.v1 import participant_agent_pb2 as agent_pb
from participant_agent.v1 import statement_pb2 as sql_pb
from tests.bad_input.fake_agent import FakeAgent, finished, honest, voted
from tests.bad_input.support import (
    INSERT,
    LARGE,
    System,
    check_refusal,
    check_text,
    error_info,
    python,
    statement,
)

R = Reason
NASTY = "x\x1b[2J\x07\r\n\u202e\0y"
MEGABYTE = "\x1b[31m\u20ac" * 170_000


class Lab:
    """A coordinator of its own (id 0bad) with two participants: orders, which is real, and fake."""

    def __init__(self, system: System, directory: Path) -> None:
        self.system = system
        self.agent = FakeAgent()
        self.address = f"127.0.0.1:{free_port()}"
        config = directory / "lab.toml"
        config.write_text(
            f'[coordinator]\nid = "0bad"\ndata_dir = "{directory / "log"}"\nlisten = "{self.address}"\n'
            'http_listen = ""\n[transactions]\nrescan_every = 0.2\nretry_max = 0.2\n'
            f'[participants.orders]\nagent = "{system.cluster.sites["orders"].address}"\n'
            f'[participants.fake]\nagent = "127.0.0.1:{self.agent.port}"\n'
        )
        command = [sys.executable, "-m", "coordinator.daemon", "--config", str(config)]
        root = str(Path(__file__).resolve().parents[2])
        self.process = Process("lab", command, directory / "lab.log", {"PYTHONPATH": root})
        self.process.start()
        self.channel = grpc.insecure_channel(self.address, options=LARGE)
        self.coordinator = coordinator_pb2_grpc.CoordinatorStub(self.channel)
        self.admin = admin_pb2_grpc.AdminStub(self.channel)

    def close(self) -> None:
        self.channel.close()
        self.process.kill()
        self.agent.close()

    def participant(self, name: str = "fake") -> admin_pb2.Participant:
        answer = self.admin.Participants(admin_pb2.ParticipantsRequest(), timeout=10, wait_for_ready=True)
        return next(p for p in answer.participants if p.participant == name)

    def wait_for_state(self, state: str, name: str = "fake") -> None:
        wait_for(
            lambda: self.participant(name).state == state,
            15,
            lambda: f"{self.participant(name)}\n{self.process.tail()}",
        )

    def run(self, *names: str, **arguments: Any) -> tuple[int, pb.RunResponse]:
        """One-shot; the new row and the answer."""
        row = self.system.new_row()
        branches = [pb.RunBranch(participant=n, statements=[statement(INSERT, row, 1)]) for n in names]
        return row, self.coordinator.Run(pb.RunRequest(branches=branches, **arguments), timeout=10)

    def get(self, gtrid: str) -> pb.Transaction:
        return self.coordinator.Get(pb.GetRequest(gtrid=gtrid), timeout=10).transaction

    def check_good(self) -> None:
        """With an honest agent everything works again."""
        self.agent.reset()

        def works() -> bool:
            row = self.system.new_row()
            branches = [pb.RunBranch(participant="fake", statements=[statement("DO 1")])]
            branches.append(pb.RunBranch(participant="orders", statements=[statement(INSERT, row, 1)]))
            with contextlib.suppress(grpc.RpcError):
                response = self.coordinator.Run(pb.RunRequest(branches=branches), timeout=10)
                if response.outcome == pb.OUTCOME_COMMITTED:
                    return row in self.system.rows("orders")
            return False

        wait_for(works, 15, lambda: f"{self.participant()}\n{self.process.tail()}")


@pytest.fixture(scope="module")
def the_lab(alive: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(alive, tmp_path_factory.mktemp("lab"))
    try:
        lab.wait_for_state("UP")
        lab.wait_for_state("UP", "orders")
        yield lab
        assert lab.process.running, lab.process.tail()
    finally:
        lab.close()


@pytest.fixture
def lab(the_lab: Lab, system: System) -> Iterator[Lab]:
    """After each test the agent behaves again, and the coordinator must have survived without an error."""
    size = the_lab.process.output.stat().st_size
    the_lab.agent.commands.clear()
    yield the_lab
    assert the_lab.process.running, the_lab.process.tail()
    the_lab.check_good()
    logged = the_lab.process.output.read_bytes()[size:].decode()
    for word in ("Traceback", "unexpected error", "agent link failed"):
        place = logged.find(word)
        assert place < 0, logged[max(0, place - 300) : place + 1500]
    assert max(map(len, logged.splitlines()), default=0) < 5_000, "a line of the log is not bounded"


def test_honest(lab: Lab) -> None:
    lab.check_good()


FAILURES: dict[str, dict[str, Any]] = {
    "control characters": dict(reason="STATEMENT_FAILED", message=NASTY),
    "1 MB": dict(reason="STATEMENT_FAILED", message=MEGABYTE),
    "no reason": dict(message="x"),
    "odd reason": dict(reason="'; DROP", message="x"),
    "reason of 1 MB": dict(reason=MEGABYTE, message="x"),
    "reason of the coordinator": dict(reason="OUTCOME_UNKNOWN", message="x"),
    "no message": dict(reason="DEADLOCK"),
    "big numbers": dict(reason="STATEMENT_FAILED", message="x", errno=2**32 - 1, statement=2**32 - 1),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_text(lab: Lab, case: str) -> None:
    """A vote with such a failure rolls back, and what is passed on is bounded and can be printed."""
    lab.agent.answer = lambda command: [voted(command.gtrid, agent_pb.VOTE_ROLLBACK, **FAILURES[case])]
    row, response = lab.run("orders", "fake")
    assert response.outcome == pb.OUTCOME_ROLLED_BACK
    assert response.rejection.participant == "fake"
    rejection = Reason(response.rejection.reason)
    assert rejection not in (R.OUTCOME_UNKNOWN, R.LOG_FAILED, R.INTERNAL)
    assert len(response.rejection.message) <= 1100
    assert response.rejection.message.isprintable()
    transaction = lab.get(response.gtrid)
    assert transaction.ByteSize() < 8_000
    assert all(b.last_error.isprintable() for b in transaction.branches)
    assert row not in lab.system.rows("orders")


@pytest.mark.parametrize("case", ["control characters", "1 MB", "reason of 1 MB"])
def test_failure_text_in_phase_2(lab: Lab, case: str) -> None:
    """RETRY with such a failure, five times; then it finishes."""
    tries = 0

    def answer(command: agent_pb.Command) -> list[agent_pb.Report]:
        nonlocal tries
        if command.WhichOneof("verb") == "commit":
            tries += 1
            if tries <= 3:
                return [finished(command.gtrid, agent_pb.FINISHED_STATE_RETRY, **FAILURES[case])]
        return honest(command)

    lab.agent.answer = answer
    row, response = lab.run("orders", "fake")
    assert response.outcome == pb.OUTCOME_COMMITTED
    assert lab.get(response.gtrid).ByteSize() < 8_000
    assert all(b.last_error.isprintable() for b in lab.get(response.gtrid).branches)
    wait_for(
        lambda: lab.get(response.gtrid).state == pb.STATE_COMMITTED, 10, lambda: str(lab.get(response.gtrid))
    )
    assert row in lab.system.rows("orders")


def _open_transaction(lab: Lab) -> tuple[str, int]:
    """One that has worked at orders only."""
    gtrid = lab.coordinator.Begin(pb.BeginRequest(), timeout=10).gtrid
    row = lab.system.new_row()
    lab.system.execute("orders", gtrid, statement(INSERT, row, 1))
    return gtrid, row


OWN = "k10bad" + "0001" + "0" * 10
UNASKED = {
    "vote for another's branch": lambda g: voted(g),
    "rollback vote for another's branch": lambda g: voted(g, agent_pb.VOTE_ROLLBACK, reason="DEADLOCK"),
    "read-only vote for another's branch": lambda g: voted(g, agent_pb.VOTE_READ_ONLY),
    "another's branch committed": lambda g: finished(g, agent_pb.FINISHED_STATE_COMMITTED),
    "another's branch rolled back": lambda g: finished(g, agent_pb.FINISHED_STATE_ROLLED_BACK),
    "another's branch heuristic": lambda g: finished(g, agent_pb.FINISHED_STATE_HEURISTIC_HAZARD),
    "vote for nothing": lambda g: voted(OWN),
    "vote for no gtrid": lambda g: voted(""),
    "vote for an odd gtrid": lambda g: voted("';DROP TABLE ledger;-" + NASTY),
    "vote for a gtrid of 1 MB": lambda g: voted(MEGABYTE),
    "end of a gtrid of 1 MB": lambda g: finished(MEGABYTE, agent_pb.FINISHED_STATE_COMMITTED),
    "enlists a gtrid of 1 MB": lambda g: agent_pb.Report(gtrid=MEGABYTE, enlist=agent_pb.Enlist()),
    "enlists nothing": lambda g: agent_pb.Report(gtrid=OWN, enlist=agent_pb.Enlist()),
    "empty report": lambda g: agent_pb.Report(),
    "vote without a value": lambda g: voted(g, agent_pb.VOTE_UNSPECIFIED),
    "vote 99": lambda g: voted(g, 99),
    "state 0": lambda g: finished(g, 0),
    "state 99": lambda g: finished(g, 99),
}


@pytest.mark.parametrize("case", UNASKED)
def test_unasked_report(lab: Lab, case: str) -> None:
    """It changes nothing for a transaction that the agent has no part in."""
    gtrid, row = _open_transaction(lab)
    for _ in range(3):
        lab.agent.report(UNASKED[case](gtrid))
    time.sleep(0.1)
    transaction = lab.get(gtrid)
    assert transaction.state == pb.STATE_ACTIVE
    assert [b.participant for b in transaction.branches] == ["orders"]
    response = lab.coordinator.Commit(pb.CommitRequest(gtrid=gtrid), timeout=10)
    assert response.outcome == pb.OUTCOME_COMMITTED
    assert row in lab.system.rows("orders")


def test_prepared_vote_before_prepare(lab: Lab) -> None:
    """Its own branch, but nobody has asked: the vote does not count, the prepare is still sent."""
    gtrid, row = _open_transaction(lab)
    lab.agent.report(agent_pb.Report(gtrid=gtrid, enlist=agent_pb.Enlist()))
    wait_for(lambda: len(lab.get(gtrid).branches) == 2, 5, lambda: str(lab.get(gtrid)))
    lab.agent.report(voted(gtrid), finished(gtrid, agent_pb.FINISHED_STATE_COMMITTED))
    time.sleep(0.1)
    assert lab.get(gtrid).state == pb.STATE_ACTIVE
    assert lab.coordinator.Commit(pb.CommitRequest(gtrid=gtrid), timeout=10).outcome == pb.OUTCOME_COMMITTED
    verbs = [c.WhichOneof("verb") for c in lab.agent.commands if c.gtrid == gtrid]
    assert verbs == ["enlisted", "prepare", "commit"]
    assert row in lab.system.rows("orders")


def test_enlists_twice(lab: Lab) -> None:
    """The first branch is gone, so the transaction is: rolled back everywhere."""
    gtrid, row = _open_transaction(lab)
    enlist = agent_pb.Report(gtrid=gtrid, enlist=agent_pb.Enlist())
    lab.agent.report(enlist, enlist)
    wait_for(lambda: lab.get(gtrid).state == pb.STATE_ROLLED_BACK, 5, lambda: str(lab.get(gtrid)))
    assert row not in lab.system.rows("orders")


def test_answers_twice(lab: Lab) -> None:
    """Votes and ends thrice, the last ones contradicting: the first answer counts."""

    def answer(command: agent_pb.Command) -> list[agent_pb.Report]:
        first = honest(command)
        lie = finished(command.gtrid, agent_pb.FINISHED_STATE_HEURISTIC_ROLLBACK)
        if command.WhichOneof("verb") == "commit":
            return [*first, *first, lie]
        return [*first, *first, voted(command.gtrid, agent_pb.VOTE_ROLLBACK, reason="DEADLOCK")]

    lab.agent.answer = answer
    row, response = lab.run("orders", "fake")
    time.sleep(0.1)
    assert response.outcome == pb.OUTCOME_COMMITTED
    assert lab.get(response.gtrid).outcome == pb.OUTCOME_COMMITTED
    assert row in lab.system.rows("orders")


def test_never_votes(lab: Lab) -> None:
    """The deadline ends it, at both."""
    lab.agent.answer = lambda c: honest(c) if c.WhichOneof("verb") == "rollback" else []
    row, response = lab.run("orders", "fake", timeout=Duration(nanos=500_000_000))
    assert response.outcome == pb.OUTCOME_ROLLED_BACK
    assert response.rejection.reason == R.DEADLINE_PASSED
    assert row not in lab.system.rows("orders")


def test_heuristic_lie_about_its_own_branch(lab: Lab) -> None:
    """That is reported, kept and forgotten as the truth would be; the other branch commits."""
    lie = agent_pb.FINISHED_STATE_HEURISTIC_ROLLBACK
    lab.agent.answer = lambda c: [finished(c.gtrid, lie)] if c.WhichOneof("verb") == "commit" else honest(c)
    row, response = lab.run("orders", "fake")
    assert response.outcome == pb.OUTCOME_HEURISTIC_MIXED
    assert row in lab.system.rows("orders")
    assert lab.get(response.gtrid).state == pb.STATE_HEURISTIC
    lab.admin.Forget(admin_pb2.ForgetRequest(gtrid=response.gtrid), timeout=10)
    listed = lab.coordinator.List(pb.ListRequest(states=[pb.STATE_HEURISTIC]), timeout=10).transactions
    assert response.gtrid not in {t.gtrid for t in listed if t.in_doubt}
    with pytest.raises(grpc.RpcError) as caught:
        lab.admin.Forget(admin_pb2.ForgetRequest(gtrid=response.gtrid), timeout=10)
    assert error_info(caught.value).reason == R.UNKNOWN_TRANSACTION


XID = agent_pb.PreparedXid
SCANNED = {
    "foreign": [XID(format_id=7, gtrid=b"abc", bqual=b"d")],
    "binary": [XID(format_id=1, gtrid=bytes(range(64)), bqual=bytes(range(191, 255)))],
    "empty": [XID(format_id=0)],
    "negative format": [XID(format_id=-1, gtrid=b"x")],
    "another's": [XID(format_id=1, gtrid=b"k10001000100000000aa", bqual=b"0002")],
    "never given": [XID(format_id=1, gtrid=b"k10bad0001zzzzzzzzzz", bqual=b"0002")],
    "newer epoch": [XID(format_id=1, gtrid=b"k10badzzzz0000000000", bqual=b"0002")],
    "other number": [XID(format_id=1, gtrid=b"k10bad00010000000000", bqual=b"0001")],
    "ten thousand": [XID(format_id=1, gtrid=b"x%d" % n) for n in range(10_000)],
    "gtrid of 65": [XID(format_id=1, gtrid=b"x" * 65)],
    "bqual of 1 MB": [XID(format_id=1, gtrid=b"x", bqual=b"y" * 1_000_000)],
}
BROKEN_SCANS = ("gtrid of 65", "bqual of 1 MB")


@pytest.mark.parametrize("case", SCANNED)
def test_prepared_branches_nobody_knows(lab: Lab, case: str) -> None:
    """They are listed and counted or the scan is refused; nothing is sent about them."""
    lab.agent.prepared = SCANNED[case]
    scans = lab.participant().scanned_seconds_ago
    assert scans >= 0
    time.sleep(0.5)
    names = {xid.gtrid.decode("latin-1") for xid in SCANNED[case]}
    assert not [c for c in lab.agent.commands if c.gtrid in names]
    with contextlib.suppress(grpc.RpcError):
        answer = lab.admin.Recover(admin_pb2.RecoverRequest(apply=True), timeout=20)
        actions = {item.action for item in answer.items if item.participant == "fake"}
        assert actions <= {"leave", "hold"}
        assert answer.scans
    assert not [c for c in lab.agent.commands if c.gtrid in names]
    if case not in BROKEN_SCANS:
        told = lab.participant()
        assert told.foreign + told.orphans == (0 if case == "other number" else len(SCANNED[case]))
    row = lab.system.new_row()
    branch = pb.RunBranch(participant="orders", statements=[statement(INSERT, row, 1)])
    assert lab.coordinator.Run(pb.RunRequest(branches=[branch]), timeout=10).outcome == pb.OUTCOME_COMMITTED


@pytest.mark.parametrize("case", BROKEN_SCANS)
def test_recover_with_a_scan_that_cannot_be_read(lab: Lab, case: str) -> None:
    """Recover says which participant could not be scanned; it does not fail as a whole."""
    lab.agent.prepared = SCANNED[case]
    try:
        answer = lab.admin.Recover(admin_pb2.RecoverRequest(participants=["fake"]), timeout=10)
    except grpc.RpcError as error:
        raise AssertionError(f"{error.code()}: {error_info(error).reason}") from error
    assert not answer.scans[0].scanned
    check_text(answer.scans[0].error)


ODD_SERVERS = {
    "control characters": dict(engine=NASTY, version=NASTY, address=NASTY, identity=NASTY),
    "1 MB": dict(engine=MEGABYTE, version=MEGABYTE, address=MEGABYTE, identity=MEGABYTE),
    "empty": {},
}


@pytest.mark.parametrize("case", ODD_SERVERS)
def test_server_info(lab: Lab, case: str) -> None:
    """What the agent says about its server is shown, bounded and printable, on the wire and by coordctl."""
    lab.agent.server = agent_pb.ServerInfo(**ODD_SERVERS[case])
    fences = lab.agent.fences
    lab.agent.drop()
    wait_for(lambda: lab.agent.fences > fences, 10, lab.process.tail)
    lab.wait_for_state("UP")
    participant = lab.participant()
    assert participant.ByteSize() < 4_000
    assert participant.server.isprintable()
    begun = lab.coordinator.Begin(pb.BeginRequest(directory=True), timeout=10)
    assert all(p.address.isprintable() and len(p.address) < 300 for p in begun.participants)
    lab.coordinator.Rollback(pb.RollbackRequest(gtrid=begun.gtrid), timeout=10)
    done = python("coordinator.ctl.main", "--address", lab.address, "participants")
    assert done.returncode == 0, done.stderr
    assert all(line.isprintable() and len(line) < 1000 for line in done.stdout.splitlines())


@pytest.mark.parametrize("text", [NASTY, "\x1b[2J" * 900], ids=["control characters", "long"])
def test_fence_error_text(lab: Lab, text: str) -> None:
    lab.agent.fence_error = (grpc.StatusCode.INTERNAL, text)
    lab.agent.drop()
    wait_for(lambda: lab.participant().state != "UP", 10, lab.process.tail)
    time.sleep(0.3)
    assert len(lab.participant().last_error) <= 1100
    assert lab.participant().last_error.isprintable()
    row = lab.system.new_row()
    run = pb.RunRequest(branches=[pb.RunBranch(participant="fake", statements=[statement(INSERT, row, 1)])])
    with pytest.raises(grpc.RpcError) as caught:
        lab.coordinator.Run(run, timeout=10)
    assert error_info(caught.value).reason == R.PARTICIPANT_UNAVAILABLE
    check_text(caught.value.details() or "")


def test_never_answers_a_fence(lab: Lab) -> None:
    """That participant is unavailable, by name; the others work."""
    lab.agent.hang_fence = True
    lab.agent.drop()
    wait_for(lambda: lab.participant().state != "UP", 10, lab.process.tail)
    row = lab.system.new_row()
    branch = pb.RunBranch(participant="orders", statements=[statement(INSERT, row, 1)])
    assert lab.coordinator.Run(pb.RunRequest(branches=[branch]), timeout=10).outcome == pb.OUTCOME_COMMITTED
    with pytest.raises(grpc.RpcError) as caught:
        lab.run("fake")
    assert error_info(caught.value).reason == R.PARTICIPANT_UNAVAILABLE
    lab.agent.release.set()
    lab.agent.hang_fence = False


EVIDENCE = {
    "none": [],
    "odd state": [agent_pb.Evidence(gtrid="x", state=99)],
    "two": [agent_pb.Evidence(state=agent_pb.EVIDENCE_STATE_NONE)] * 2,
}


@pytest.mark.parametrize("case", EVIDENCE)
def test_evidence(lab: Lab, case: str) -> None:
    """Answers to Lookup that are none: the outcome stays open, Get does not fail."""
    lab.agent.evidence = EVIDENCE[case]
    gtrid = lab.coordinator.Begin(pb.BeginRequest(), timeout=10).gtrid
    lab.coordinator.Rollback(pb.RollbackRequest(gtrid=gtrid), timeout=10)
    guessed = gtrid[:-1] + ("0" if gtrid[-1] != "0" else "1")
    try:
        told = lab.get(guessed)
    except grpc.RpcError as error:
        check_refusal(error, R.UNKNOWN_TRANSACTION, R.OUTCOME_UNKNOWN)
    else:
        assert told.outcome in (pb.OUTCOME_UNKNOWN, pb.OUTCOME_ROLLED_BACK)


def test_results_of_a_vote_are_bounded(lab: Lab) -> None:
    """Rows of 20 MB: the transaction ends as it was decided, whatever becomes of the rows."""
    value = sql_pb.Value(blob=bytes(1 << 20))
    rows = [sql_pb.Row(values=[value]) for _ in range(14)]
    result = sql_pb.StatementResult(columns=[sql_pb.Column(name="x")], rows=rows)

    def answer(command: agent_pb.Command) -> list[agent_pb.Report]:
        if command.WhichOneof("verb") == "run":
            big = agent_pb.Voted(vote=agent_pb.VOTE_OK, results=[result])
            return [agent_pb.Report(gtrid=command.gtrid, voted=big)]
        return honest(command)

    lab.agent.answer = answer
    row, response = lab.run("orders", "fake")
    assert response.outcome in (pb.OUTCOME_COMMITTED, pb.OUTCOME_ROLLED_BACK)
    assert (row in lab.system.rows("orders")) == (response.outcome == pb.OUTCOME_COMMITTED)
