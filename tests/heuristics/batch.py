"""A batch: transactions that are all prepared everywhere, decided alike, and not yet told to their branches.

That is the moment in which a person can do harm. `running`: the coordinator is there, held between the
decision (or, for a rollback, before the deadline) and its first word to a branch, and clients wait for its
answer. `absent`: it is dead, and what it decided, if it did, is in its log.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from coordinator.v1 import coordinator_pb2 as pb
from deploy.private_cluster import wait_for
from tests.system.conftest import INSERT, NAMES, System, failpoints, statement

_TIMEOUT_SECONDS = 3.0  # of transactions that are to be rolled back by their deadline


@dataclass
class Case:
    """One transaction, and what a person does to it: nothing where `verb` is empty."""

    verb: str
    sites: tuple[str, ...]
    gtrid: str = ""
    row: int = 0
    told: str = ""

    @property
    def key(self) -> str:
        """Its idempotency key."""
        return f"row-{self.row}"

    def __str__(self) -> str:
        return f"{self.gtrid} ({self.verb or 'left alone'} at {' and '.join(self.sites)})"


def every_case() -> list[Case]:
    """commit and rollback by hand at one or all participants, and a transaction that nobody touches."""
    return [
        Case("commit", NAMES[:1]),
        Case("commit", NAMES),
        Case("rollback", NAMES[1:]),
        Case("rollback", NAMES),
        Case("", ()),
    ]


@dataclass
class Batch:
    """Transactions on their way to one decision."""

    system: System
    decision: str
    running: bool
    cases: list[Case] = field(default_factory=every_case)
    _calls: list[Future[str]] = field(default_factory=list)
    _begun: float = 0.0

    @property
    def _directory(self) -> Path:
        return self.system.cluster.directory

    @property
    def _place(self) -> str:
        """Where the coordinator is held, or what it leaves out until it dies."""
        if self.running:
            return "input_records_durable" if self.decision == "COMMIT" else "input_branch_voted"
        return "before_send_commit" if self.decision == "COMMIT" else "before_force_commit"

    def prepare(self, pool: ThreadPoolExecutor) -> None:
        """Until XA RECOVER lists every branch of every transaction, and none has been told to end."""
        action = "pause" if self.running else "drop"
        self.system.restart_coordinator(**failpoints(f"{self._place}={action}", self._directory))
        for case in self.cases:
            case.row = self.system.new_id()
            case.gtrid = self._begin(case)
        self._begun = time.monotonic()
        with self._agents_asleep():
            for case in self.cases:
                self._calls.append(pool.submit(self._commit, case.gtrid))
            self._wait_for_state("PREPARING")
        expected = len(self.cases) * len(NAMES)
        wait_for(lambda: len(self.system.ours()) == expected, 10, self.system.cluster.tails)
        if self.running:
            hit = self._directory / f"{self._place}.hit"
            wait_for(hit.exists, 10, self.system.cluster.tails)
            return
        if self.decision == "COMMIT":  # it was decided, and clients were told so: only branches were not
            self._hear()
            assert {case.told for case in self.cases} == {"COMMITTED"}
        self.system.cluster.coordinator.kill()
        if self.decision == "ROLLBACK":
            self._hear()
            assert {case.told for case in self.cases} == {"UNAVAILABLE"}

    def _begin(self, case: Case) -> str:
        request = pb.BeginRequest(idempotency_key=case.key, fingerprint=b"content")
        if self.running and self.decision == "ROLLBACK":
            request.timeout.FromMilliseconds(int(_TIMEOUT_SECONDS * 1000))
        gtrid = str(self.system.coordinator.Begin(request, timeout=10).gtrid)
        for name in NAMES:
            self.system.execute(name, gtrid, statement(INSERT, case.row, 1))
        return gtrid

    @contextlib.contextmanager
    def _agents_asleep(self) -> Iterator[None]:
        """No vote comes before all transactions are preparing: the first one holds the coordinator."""
        agents = [site.agent for site in self.system.cluster.sites.values()]
        for agent in agents:
            agent.send(signal.SIGSTOP)
        try:
            yield
        finally:
            for agent in agents:
                agent.send(signal.SIGCONT)

    def _wait_for_state(self, state: str) -> None:
        stub = self.system.coordinator

        def reached() -> bool:
            found = [stub.Get(pb.GetRequest(gtrid=c.gtrid), timeout=5).transaction.state for c in self.cases]
            return {pb.State.Name(one) for one in found} == {f"STATE_{state}"}

        wait_for(reached, 10, self.system.cluster.tails)

    def _commit(self, gtrid: str) -> str:
        decided = not self.running and self.decision == "COMMIT"
        wait = pb.WAIT_FOR_DECIDED if decided else pb.WAIT_FOR_COMPLETED
        try:
            outcome = self.system.commit(gtrid, wait_for=wait).outcome
        except grpc.RpcError as error:
            return str(error.code().name)  # type: ignore[attr-defined]
        return pb.Outcome.Name(outcome).removeprefix("OUTCOME_")

    def _hear(self) -> None:
        for case, call in zip(self.cases, self._calls, strict=True):
            case.told = call.result(30)

    def go_on(self) -> None:
        """The coordinator goes on, or starts again, until every transaction has ended."""
        if self.running:
            if self.decision == "ROLLBACK":
                time.sleep(max(0.0, self._begun + _TIMEOUT_SECONDS + 0.2 - time.monotonic()))
            (self._directory / f"{self._place}.go").touch()
            self._hear()
        else:
            self.system.cluster.start_coordinator()
        self.system.wait_until_clean()
        wait_for(
            lambda: all(self.system.has_ended(case.gtrid) for case in self.cases),
            15,
            self.system.cluster.tails,
        )
