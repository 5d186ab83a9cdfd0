"""A whole system of real processes for the tests of this folder, and the books that judge it.

Each transaction writes the same row on both servers. The judge reads both servers directly: the rows
must be equal, must agree with what callers were told, and XA RECOVER must list no branch of ours.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordinator.v1 import admin_pb2_grpc, coordinator_pb2, coordinator_pb2_grpc
from deploy.engines import Engine
from deploy.private_cluster import Cluster, wait_for
from participant_agent.v1 import participant_agent_pb2, participant_agent_pb2_grpc, statement_pb2

NAMES = ("orders", "payments")
_ids = itertools.count(1)

INSERT = "INSERT INTO ledger (id, amount) VALUES (%s, %s)"


def statement(sql: str, *parameters: int, **expectations: int) -> statement_pb2.Statement:
    """A statement with integer parameters."""
    values = [statement_pb2.Value(integer=parameter) for parameter in parameters]
    return statement_pb2.Statement(sql=sql, parameters=values, **expectations)


@dataclass
class System:
    """A running cluster with raw gRPC stubs."""

    cluster: Cluster

    @property
    def coordinator(self) -> coordinator_pb2_grpc.CoordinatorStub:
        """A fresh channel, because the coordinator comes and goes."""
        return coordinator_pb2_grpc.CoordinatorStub(self.cluster.channel(self.cluster.address))

    @property
    def admin(self) -> admin_pb2_grpc.AdminStub:
        return admin_pb2_grpc.AdminStub(self.cluster.channel(self.cluster.address))

    def agent(self, name: str) -> participant_agent_pb2_grpc.ParticipantAgentStub:
        address = self.cluster.sites[name].address
        return participant_agent_pb2_grpc.ParticipantAgentStub(self.cluster.channel(address))

    def new_id(self) -> int:
        """A row id that no other transaction of this run uses."""
        return next(_ids)

    def run(
        self, row: int, names: tuple[str, ...] = NAMES, **arguments: object
    ) -> coordinator_pb2.RunResponse:
        """One-shot: the same row everywhere."""
        branches = [
            coordinator_pb2.RunBranch(participant=name, statements=[statement(INSERT, row, 1)])
            for name in names
        ]
        request = coordinator_pb2.RunRequest(branches=branches, **arguments)
        return self.coordinator.Run(request, timeout=30)

    def begin_work(self, row: int, names: tuple[str, ...] = NAMES, **arguments: object) -> str:
        """Begin, and the same row everywhere; the gtrid."""
        gtrid = self.coordinator.Begin(coordinator_pb2.BeginRequest(**arguments), timeout=10).gtrid
        for name in names:
            self.execute(name, gtrid, statement(INSERT, row, 1))
        return gtrid

    def execute(self, name: str, gtrid: str, *statements: statement_pb2.Statement) -> None:
        request = participant_agent_pb2.ExecuteRequest(gtrid=gtrid, statements=statements)
        self.agent(name).Execute(request, timeout=20)

    def commit(self, gtrid: str, **arguments: object) -> coordinator_pb2.CommitResponse:
        request = coordinator_pb2.CommitRequest(gtrid=gtrid, **arguments)
        return self.coordinator.Commit(request, timeout=30)

    def outcome(self, gtrid: str) -> str:
        """What Get says, without the prefix."""
        response = self.coordinator.Get(coordinator_pb2.GetRequest(gtrid=gtrid), timeout=10)
        return coordinator_pb2.Outcome.Name(response.transaction.outcome).removeprefix("OUTCOME_")

    def rows(self, name: str) -> set[int]:
        return {int(row[0]) for row in self.cluster.sites[name].server.sql(f"SELECT id FROM {name}.ledger")}

    def ours(self) -> list[str]:
        """Our prepared branches, on all servers."""
        return [
            f"{name}:{gtrid}"
            for name in self.cluster.sites
            for _, gtrid, _ in self.cluster.prepared(name)
            if gtrid.startswith("k1")
        ]

    def wait_until_clean(self, timeout_seconds: float = 15.0) -> None:
        """Until no branch of ours is prepared anywhere."""
        wait_for(
            lambda: not self.ours(), timeout_seconds, lambda: f"left: {self.ours()}\n{self.cluster.tails()}"
        )

    def has_ended(self, gtrid: str) -> bool:
        """Whether a transaction has come to its end, and its outcome is told."""
        found = self.coordinator.Get(coordinator_pb2.GetRequest(gtrid=gtrid), timeout=5).transaction
        if found.state == coordinator_pb2.STATE_HEURISTIC:
            return found.outcome != coordinator_pb2.OUTCOME_UNKNOWN  # told once it is on disk
        return found.state in {coordinator_pb2.STATE_COMMITTED, coordinator_pb2.STATE_ROLLED_BACK}

    def judge(self, row: int) -> bool:
        """Whether the row is there; both servers must agree."""
        found = {name: row in self.rows(name) for name in self.cluster.sites}
        assert len(set(found.values())) == 1, f"row {row}: {found}\n{self.cluster.tails()}"
        return found[NAMES[0]]

    def restore(self) -> None:
        """Everything up again, whatever a test has killed."""
        for site in self.cluster.sites.values():
            if not site.server.running:
                site.server.start()
            if not site.agent.running:
                site.agent.start()
        if not self.cluster.coordinator.running:
            self.cluster.start_coordinator()
        self.cluster.wait_until_up()

    def restart_coordinator(self, **environ: str) -> None:
        """Stop it and start it with failpoints; wait until all participants are up."""
        if self.cluster.coordinator.running:
            self.cluster.coordinator.stop()
        self.cluster.start_coordinator(**environ)
        self.cluster.wait_until_up()


def failpoints(points: str, directory: Path) -> dict[str, str]:
    """The environment that switches failpoints on."""
    for old in (*directory.glob("*.hit"), *directory.glob("*.go")):
        old.unlink()
    return {"XACOORD_FAILPOINTS": points, "XACOORD_FAILPOINT_DIR": str(directory)}


@pytest.fixture(scope="module")
def make_system(engine: Engine) -> Iterator[Callable[..., System]]:
    """Starts systems that live as long as the module."""
    directory = Path(tempfile.mkdtemp(prefix="xacoord-system-"))
    clusters: list[Cluster] = []

    def make(**arguments: str) -> System:
        cluster = Cluster.create(engine, directory / str(len(clusters)), NAMES, **arguments)
        clusters.append(cluster)
        for name, site in cluster.sites.items():
            site.server.sql(f"CREATE TABLE {name}.ledger (id INT PRIMARY KEY, amount INT NOT NULL)")
        cluster.start()
        return System(cluster)

    yield make
    for cluster in clusters:
        cluster.close()
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def shared_system(make_system: Callable[..., System]) -> System:
    """One system for the tests of a module."""
    return make_system(settings="[transactions]\nrescan_every = 1.0\n")


@pytest.fixture
def system(shared_system: System) -> System:
    """The module's system, with everything running."""
    shared_system.restore()
    return shared_system
