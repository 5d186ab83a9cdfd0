"""What the tests of bad input share: a running system with raw stubs, and what a proper refusal is.

A proper refusal has a named gRPC status with one google.rpc.ErrorInfo (domain, reason, retryable, definite)
and a message that can be printed; it leaves no branch, no row and no transaction behind.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from coordinator.v1 import admin_pb2_grpc, coordinator_pb2_grpc
from coordinator.v1 import coordinator_pb2 as pb
from deploy.private_cluster import Cluster, Process, wait_for
from deploy.processes import run
from dtp import Reason
from dtp.errors import INDEFINITE, RETRYABLE, STATUS
from participant_agent.v1 import participant_agent_pb2 as agent_pb
from participant_agent.v1 import participant_agent_pb2_grpc as agent_rpc
from participant_agent.v1 import statement_pb2 as sql_pb
from tests.nursery import EARLY

ROOT = str(Path(__file__).resolve().parents[2])
NAMES = ("orders", "payments")
INSERT = "INSERT INTO ledger (id, amount) VALUES (%s, %s)"
LARGE = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
)
_BAD_NEWS = ("Traceback", "unexpected error", "a task failed", "agent link failed", "never retrieved")
_GRPC_LINE = re.compile(r"[EWI]\d{4} ")
_rows = itertools.count(1)


def statement(sql: str, *parameters: Any, **expectations: int) -> sql_pb.Statement:
    """A statement; its parameters are integers, strings or Values."""

    def value(given: Any) -> sql_pb.Value:
        if isinstance(given, sql_pb.Value):
            return given
        return sql_pb.Value(integer=given) if isinstance(given, int) else sql_pb.Value(text=given)

    return sql_pb.Statement(sql=sql, parameters=[value(p) for p in parameters], **expectations)


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """The one ErrorInfo of a failed call."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no google.rpc.Status: {error.code().name}: {error.details()}"
    assert len(status.details) == 1, status
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info), status
    return info


def check_refusal(error: grpc.RpcError, *reasons: Reason | str) -> error_details_pb2.ErrorInfo:
    """Assert that `error` is a proper refusal with one of `reasons` (none given: with any)."""
    info = error_info(error)
    assert info.domain == "xacoord"
    reason = Reason(info.reason)
    assert not reasons or reason in reasons, f"{reason}: {error.details()}"
    assert error.code().name == STATUS[reason]
    assert info.metadata["retryable"] == ("true" if reason in RETRYABLE else "false")
    assert info.metadata["definite"] == ("false" if reason in INDEFINITE else "true")
    check_text(error.details() or "")
    return info


def check_text(text: str) -> None:
    """Assert that a message for people is one line of at most 1,024 characters that can be printed."""
    assert text
    assert len(text) <= 1_100, f"{len(text)} characters: {text[:200]!r}"
    assert text.isprintable(), repr(text[:200])


def refused(call: Callable[[], Any], *reasons: Reason | str) -> error_details_pb2.ErrorInfo:
    """Assert that `call` is refused properly."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return check_refusal(error, *reasons)
    raise AssertionError(f"not refused; expected {reasons}, got {str(answer)[:300]}")


def seconds(value: float) -> Duration:
    """A Duration."""
    duration = Duration()
    duration.FromNanoseconds(int(value * 1e9))
    return duration


def python(*arguments: str, seconds: float = 6, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a module of ours to its end; one that does not end is killed and gives exit code -9."""
    command = [sys.executable, "-m", *arguments]
    ours = {name: value for name, value in os.environ.items() if name.startswith(EARLY)}
    variables = {**ours, "PATH": "/usr/bin:/bin", "HOME": "/tmp", "PYTHONPATH": ROOT, **environ}
    try:
        return run(command, seconds, variables)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, -signal.SIGKILL, "", "it did not end")


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def own_lines(stderr: str) -> list[str]:
    """The lines of standard error without those of gRPC's C library."""
    return [line for line in stderr.splitlines() if line.strip() and not _GRPC_LINE.match(line)]


def check_one_line(stderr: str, name: str) -> None:
    """Assert that standard error is one line for people (or one JSON log line), not a traceback."""
    lines = own_lines(stderr)
    assert len(lines) == 1, stderr[-2000:]
    assert name in lines[0], lines[0]
    assert "Traceback" not in stderr
    assert len(lines[0]) < 1_000


@dataclass
class System:
    """A running cluster with one channel to each of its daemons."""

    cluster: Cluster

    def __post_init__(self) -> None:
        self._channels: list[grpc.Channel] = []
        self.channel = self.new_channel(self.cluster.address)
        self.coordinator = coordinator_pb2_grpc.CoordinatorStub(self.channel)
        self.admin = admin_pb2_grpc.AdminStub(self.channel)
        self.agent_channels = {n: self.new_channel(s.address) for n, s in self.cluster.sites.items()}
        self.agents = {n: agent_rpc.ParticipantAgentStub(c) for n, c in self.agent_channels.items()}
        self.pids = {process.name: process.pid for process in self.processes}

    def new_channel(self, address: str, **options: Any) -> grpc.Channel:
        """A channel that `close` closes."""
        channel = grpc.insecure_channel(address, options=LARGE, **options)
        self._channels.append(channel)
        return channel

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self.cluster.close()

    @property
    def processes(self) -> list[Process]:
        return [self.cluster.coordinator, *(site.agent for site in self.cluster.sites.values())]

    # --- Good requests ---

    def new_row(self) -> int:
        """A row id that no other transaction uses."""
        return next(_rows)

    def begin(self, timeout: float = 12.0, **arguments: Any) -> str:
        request = pb.BeginRequest(timeout=seconds(timeout), **arguments)
        return self.coordinator.Begin(request, timeout=10).gtrid

    def execute(self, name: str, gtrid: str, *statements: sql_pb.Statement, **arguments: Any) -> Any:
        request = agent_pb.ExecuteRequest(gtrid=gtrid, statements=statements, **arguments)
        return self.agents[name].Execute(request, timeout=20)

    def work(self, gtrid: str, names: tuple[str, ...] = NAMES) -> int:
        """The same new row at each of `names`; its id."""
        row = self.new_row()
        for name in names:
            self.execute(name, gtrid, statement(INSERT, row, 1))
        return row

    def commit(self, gtrid: str) -> str:
        response = self.coordinator.Commit(pb.CommitRequest(gtrid=gtrid), timeout=20)
        return pb.Outcome.Name(response.outcome).removeprefix("OUTCOME_")

    def rollback(self, gtrid: str) -> str:
        response = self.coordinator.Rollback(pb.RollbackRequest(gtrid=gtrid), timeout=20)
        return pb.Outcome.Name(response.outcome).removeprefix("OUTCOME_")

    def run_request(self, row: int, names: tuple[str, ...] = NAMES, **arguments: Any) -> pb.RunRequest:
        branches = [pb.RunBranch(participant=n, statements=[statement(INSERT, row, 1)]) for n in names]
        return pb.RunRequest(branches=branches, **arguments)

    def run(self, row: int, names: tuple[str, ...] = NAMES, **arguments: Any) -> pb.RunResponse:
        return self.coordinator.Run(self.run_request(row, names, **arguments), timeout=20)

    def get(self, gtrid: str) -> pb.Transaction:
        return self.coordinator.Get(pb.GetRequest(gtrid=gtrid), timeout=10).transaction

    # --- What there is ---

    def rows(self, name: str) -> set[int]:
        return {int(row[0]) for row in self.cluster.sites[name].server.sql(f"SELECT id FROM {name}.ledger")}

    def where(self, row: int) -> list[str]:
        """The participants that have the row."""
        return [name for name in NAMES if row in self.rows(name)]

    def listed(self, *states: int) -> set[str]:
        found: set[str] = set()
        token = ""
        while True:
            request = pb.ListRequest(page_size=1000, states=states, page_token=token)
            response = self.coordinator.List(request, timeout=10)
            found |= {transaction.gtrid for transaction in response.transactions}
            token = response.next_page_token
            if not token:
                return found

    def prepared(self) -> dict[str, list[tuple[int, str, str]]]:
        return {name: sorted(self.cluster.prepared(name)) for name in self.cluster.sites}

    def open(self) -> set[str]:
        states = (pb.STATE_ACTIVE, pb.STATE_PREPARING, pb.STATE_COMMITTING, pb.STATE_ROLLING_BACK)
        return self.listed(*states, pb.STATE_HEURISTIC)

    # --- What has to hold ---

    @contextlib.contextmanager
    def nothing_changes(self) -> Iterator[None]:
        """What is done inside leaves no row, no prepared branch and no transaction."""
        before = (self.listed(), self.prepared(), {name: self.rows(name) for name in NAMES})
        yield
        assert self.listed() == before[0]
        assert self.prepared() == before[1]
        assert {name: self.rows(name) for name in NAMES} == before[2]

    def log_sizes(self) -> dict[Path, int]:
        return {p.output: p.output.stat().st_size for p in self.processes}

    def check_logs(self, sizes: dict[Path, int]) -> None:
        """No daemon has logged an error of its own since."""
        for path, size in sizes.items():
            with path.open("rb") as file:
                file.seek(size)
                text = file.read().decode(errors="replace")
            for word in _BAD_NEWS:
                place = text.find(word)
                assert place < 0, f"{path.name}: {text[max(0, place - 300) : place + 1500]}"

    def watched(self) -> Iterator[System]:
        """Around a test: no daemon ends, none logs an error of its own.

        One that ended is started again, so that only the test at fault fails.
        """
        sizes = self.log_sizes()
        yield self
        ended = [process for process in self.processes if not process.running]
        codes = {process.name: process.wait() for process in ended}
        for process in ended:
            process.start()
            self.pids[process.name] = process.pid
        if ended:
            self.cluster.wait_until_up()
        assert not codes, f"ended (exit code, or minus signal): {codes}"
        self.check_logs(sizes)

    def check_alive(self) -> None:
        """The same processes run, a good transaction works everywhere, and nothing is left open."""
        for process in self.processes:
            assert process.running, process.tail()
            assert process.pid == self.pids[process.name]
        self.cluster.wait_until_up()
        row = self.new_row()
        response = self.run(row)
        assert response.outcome == pb.OUTCOME_COMMITTED, response
        assert self.where(row) == list(NAMES)
        self.wait_until_clean()

    def wait_until_clean(self, timeout_seconds: float = 15.0) -> None:
        """Until no transaction is open and none of our branches is prepared."""

        def left() -> list[str]:
            ours = [str(x) for xids in self.prepared().values() for x in xids if x[1].startswith("k10001")]
            return [*ours, *self.open()]

        wait_for(lambda: not left(), timeout_seconds, lambda: f"left: {left()}\n{self.cluster.tails()}")
