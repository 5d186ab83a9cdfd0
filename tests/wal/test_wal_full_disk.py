"""A real disk that is full: what runs is decided and ends, Begin is refused, nothing is lost (R11).

First the log alone, with every amount of room left when it needs the next segment. Then the whole system:
coordinator with its log on the small disk, agents, servers.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count as numbers
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from coordinator.v1 import coordinator_pb2, coordinator_pb2_grpc
from deploy.private_cluster import Cluster, wait_for
from participant_agent.v1 import participant_agent_pb2, participant_agent_pb2_grpc, statement_pb2
from tests.wal.owner import Owner
from tests.wal.small_disk import SmallDisk, small_disk
from wal import LogFull, Options, SystemFiles

SEGMENT = 64 << 10
NAMES = ("orders", "payments")
INSERT = "INSERT INTO ledger (id, amount) VALUES (%s, %s)"


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="xacoord-full-"))
    yield path
    shutil.rmtree(path)


# The log alone


@pytest.fixture(scope="module")
def disk(directory: Path) -> Iterator[SmallDisk]:
    with small_disk(directory / "mount", directory / "image", 4) as disk:
        yield disk


def owner_on(disk: SmallDisk, name: str) -> Owner:
    options = Options(segment_bytes=SEGMENT, allow_unsafe_filesystem=disk.unsafe)
    return Owner(SystemFiles(), disk.path / name, options)


def write_reserved(owner: Owner, disk: SmallDisk) -> int:
    """Reserve as much as the log promises, then write all of it, a frame each; how many there were."""
    sizes = [number * 377 % 1400 for number in range(1000)]
    held: list[int] = []
    while owner.log.reserve(owner.log.cost(sizes[len(held)])):
        held.append(sizes[len(held)])
    disk.fill(0)  # whatever was left is gone now
    for sequence, size in enumerate(held):
        owner.log.release(owner.log.cost(size))
        owner.append(sequence % 9, b"h" * size)
        if owner.log.should_rotate():
            owner.rotate()
        owner.drain()
        owner.log.tend()
        assert not owner.log.status().blocked
    assert owner.log.status().queued == 0
    assert not owner.failures
    return len(held)


@pytest.mark.parametrize("leave", range(0, 3 * SEGMENT, SEGMENT // 8))
def test_full_when_the_next_segment_is_needed(disk: SmallDisk, leave: int) -> None:
    """Room for nothing, part of a spare, a spare, more: what was promised is written in any case."""
    disk.empty()
    owner = owner_on(disk, f"log-{leave}")
    owner.begin()
    disk.fill(leave)
    owner.log.tend()
    assert owner.log.status().room_ok == (leave >= SEGMENT), "one spare"
    assert write_reserved(owner, disk) > 10
    disk.empty()
    for _ in range(3):  # all goes on without a restart
        owner.log.tend()
        if owner.log.should_rotate():
            owner.rotate()
        owner.drain()
    assert owner.log.status().room_ok
    assert owner.log.reserve(8192)
    owner.log.close()
    owner.open()
    owner.log.close()
    shutil.rmtree(owner.directory)


def test_start_on_a_full_disk_is_refused_and_changes_nothing(disk: SmallDisk) -> None:
    disk.empty()
    owner = owner_on(disk, "log-start")
    owner.begin()
    owner.append(1, b"x" * 3000)
    owner.drain()
    owner.log.close()
    disk.fill(0)
    before = sorted(path.name for path in owner.directory.iterdir() if not path.name.endswith(".tmp"))
    recovered = owner.open()
    with pytest.raises(LogFull):
        owner.start(recovered)
    owner.log.close()
    assert sorted(path.name for path in owner.directory.iterdir()) == before
    disk.empty()
    owner.begin()
    owner.log.close()
    shutil.rmtree(owner.directory)


# The whole system


class System:
    """A cluster whose log is on a small disk; each transaction writes the same row on both servers."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ids = numbers(1)
        self.committed: set[int] = set()
        self.refused: set[int] = set()
        self.stub = coordinator_pb2_grpc.CoordinatorStub(cluster.channel(cluster.address))

    def run(self, row: int) -> str:
        """One transaction in one call: "" or the reason of its refusal."""
        statement = statement_pb2.Statement(
            sql=INSERT, parameters=[statement_pb2.Value(integer=row), statement_pb2.Value(integer=1)]
        )
        branches = [coordinator_pb2.RunBranch(participant=name, statements=[statement]) for name in NAMES]
        try:
            answer = self.stub.Run(coordinator_pb2.RunRequest(branches=branches), timeout=60)
        except grpc.RpcError as error:
            self.refused.add(row)
            return refusal(error)
        assert coordinator_pb2.Outcome.Name(answer.outcome) == "OUTCOME_COMMITTED"
        self.committed.add(row)
        return ""

    def begin_work(self) -> tuple[str, int]:
        """Begin, and a row everywhere."""
        gtrid, row = self.stub.Begin(coordinator_pb2.BeginRequest(), timeout=60).gtrid, next(self.ids)
        values = [statement_pb2.Value(integer=row), statement_pb2.Value(integer=1)]
        for name in NAMES:
            agent = participant_agent_pb2_grpc.ParticipantAgentStub(
                self.cluster.channel(self.cluster.sites[name].address)
            )
            request = participant_agent_pb2.ExecuteRequest(
                gtrid=gtrid, statements=[statement_pb2.Statement(sql=INSERT, parameters=values)]
            )
            agent.Execute(request, timeout=60)
        return gtrid, row

    def begin_until_refused(self) -> None:
        """Begin is refused at once, or after what the transactions that have ended since have given back."""
        for _ in range(20):
            try:
                self.stub.Begin(coordinator_pb2.BeginRequest(), timeout=60)
            except grpc.RpcError as error:
                if refusal(error) != "RESOURCE_EXHAUSTED LOG_FULL":
                    raise
                return
        raise AssertionError("a full log takes new transactions")

    def commit(self, gtrid: str, row: int) -> None:
        request = coordinator_pb2.CommitRequest(gtrid=gtrid, wait_for=coordinator_pb2.WAIT_FOR_COMPLETED)
        answer = self.stub.Commit(request, timeout=60)
        assert coordinator_pb2.Outcome.Name(answer.outcome) == "OUTCOME_COMMITTED"
        self.committed.add(row)

    def run_until_refused(self) -> int:
        """Transactions, four at a time, until the log has no room for another; how many there were."""
        before = len(self.committed)
        with ThreadPoolExecutor(4) as pool:
            for _ in range(100):
                reasons = set(pool.map(self.run, [next(self.ids) for _ in range(12)]))
                if reasons != {""}:
                    assert reasons <= {"", "RESOURCE_EXHAUSTED LOG_FULL"}
                    return len(self.committed) - before
        raise AssertionError("a full disk refused nothing")

    def judge(self) -> None:
        """Plain SQL: what was committed is on both servers, what was refused on none."""
        for name in NAMES:
            found = self.cluster.sites[name].server.sql(f"SELECT id FROM {name}.ledger")
            assert {int(row[0]) for row in found} == self.committed, name
            assert self.cluster.prepared(name) == [], name


def refusal(error: grpc.RpcError) -> str:
    """Its status and its reason."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return f"{error.code().name} {info.reason}"


@pytest.fixture
def system(directory: Path) -> Iterator[tuple[System, SmallDisk]]:
    home = directory / "system"
    with small_disk(home / "log", directory / "system-image", 12) as disk:
        # Sectors of 4096: a segment of the smallest size is used up by some 80 transactions.
        unsafe = str(disk.unsafe).lower()
        settings = f"[log]\nsegment_mib = 1\nalignment = 4096\nallow_unsafe_filesystem = {unsafe}\n"
        cluster = Cluster.create("mariadb", home, NAMES, settings=settings)
        try:
            for name, site in cluster.sites.items():
                site.server.sql(f"CREATE TABLE {name}.ledger (id INT PRIMARY KEY, amount INT NOT NULL)")
            cluster.start()
            yield System(cluster), disk
        finally:
            cluster.close()


def fill(disk: SmallDisk) -> None:
    """For good: a rotation removes a segment, whose room would just do for the next."""
    disk.fill(0)
    disk.hold(*disk.path.glob("wal-*.log"), *disk.path.glob("spare-*.tmp"))


def test_the_whole_system_on_a_full_disk(system: tuple[System, SmallDisk]) -> None:
    on, disk = system
    cluster = on.cluster
    pid = cluster.coordinator.pid
    assert (cluster.http("/readyz")[0], cluster.metric("xacoord_wal_room")) == (200, 1)
    running = [on.begin_work() for _ in range(5)]
    fill(disk)
    assert on.run_until_refused() > 20, "what is there is used"
    wait_for(lambda: cluster.http("/readyz")[0] == 503, 20, lambda: f"still ready\n{cluster.tails()}")
    assert "no room" in cluster.http("/readyz")[1]
    assert cluster.metric("xacoord_wal_room") == 0
    on.begin_until_refused()
    for gtrid, row in running:  # they have their room
        on.commit(gtrid, row)
    on.judge()
    assert disk.free() < 1 << 20

    freed = time.monotonic()
    disk.empty()
    wait_for(lambda: cluster.http("/readyz")[0] == 200, 20, lambda: f"not ready again\n{cluster.tails()}")
    assert time.monotonic() - freed < 15
    assert cluster.metric("xacoord_wal_room") == 1
    for _ in range(40):
        assert on.run(next(on.ids)) == ""
    assert cluster.coordinator.pid == pid, "no restart"

    fill(disk)
    on.run_until_refused()
    cluster.coordinator.kill()
    disk.empty()
    cluster.start_coordinator()
    on.judge()
