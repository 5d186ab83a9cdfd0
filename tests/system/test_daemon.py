"""The daemon itself: an orderly end, a log that fails, what it tells while it is not ready."""

from __future__ import annotations

import subprocess
import sys
import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from coordinator.v1 import coordinator_pb2
from deploy.private_cluster import wait_for
from tests.system.conftest import System

pytestmark = pytest.mark.usefixtures("started_by_exec")


def reason_of(error: grpc.RpcError) -> tuple[str, str]:
    """(reason, definite) in the error's ErrorInfo."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "xacoord"
    return info.reason, info.metadata["definite"]


def health(system: System) -> int:
    """What the health service says."""
    stub = health_pb2_grpc.HealthStub(system.cluster.channel(system.cluster.address))
    return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status)


def test_a_termination_signal_drains(system: System) -> None:
    """What is decided goes out, what is only open is rolled back, the exit code is 0."""
    left_open = system.new_id()
    gtrid = system.begin_work(left_open)
    rows = [system.new_id() for _ in range(20)]
    told: dict[int, bool] = {}

    def one(row: int) -> None:
        try:
            told[row] = system.run(row).outcome == coordinator_pb2.OUTCOME_COMMITTED
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE and "refused" not in (error.details() or ""):
                told[row] = False  # DRAINING; anything else stays unknown

    threads = [threading.Thread(target=one, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    assert system.cluster.coordinator.stop() == 0
    for thread in threads:
        thread.join()
    system.wait_until_clean(2)
    assert not system.judge(left_open)
    for row, committed in told.items():
        assert system.judge(row) == committed
    system.cluster.start_coordinator()
    assert system.outcome(gtrid) == "ROLLED_BACK"


def test_a_failed_flush_ends_the_process(system: System) -> None:
    """EIO from fdatasync: nobody is told COMMITTED, exit code 74, the restart settles it."""
    cluster = system.cluster
    cluster.coordinator.stop()
    inject = "inject=fdatasync:error=EIO:when=40+"
    cluster.coordinator.start(under=["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject])
    cluster.wait_until_ready(60)
    cluster.wait_until_up()
    committed, open_rows = [], []
    for _ in range(100):
        row = system.new_id()
        try:
            response = system.run(row)
        except grpc.RpcError as error:
            open_rows.append(row)
            if error.code() != grpc.StatusCode.UNAVAILABLE or "log" in (error.details() or ""):
                reason, definite = reason_of(error)
                assert (reason, definite) == ("LOG_FAILED", "false")
            break
        assert response.outcome == coordinator_pb2.OUTCOME_COMMITTED
        committed.append(row)
    assert cluster.coordinator.wait() == 74
    assert open_rows, "the flush did not fail"
    cluster.start_coordinator()
    system.wait_until_clean()
    for row in committed:
        assert system.judge(row)
    for row in open_rows:
        system.judge(row)  # either, but the same everywhere


def test_not_ready_before_the_first_reconcile(system: System) -> None:
    """An agent that accepts connections but does not answer the fence keeps Begin out."""
    cluster = system.cluster
    cluster.coordinator.stop()
    cluster.sites["payments"].server.pause()
    try:
        cluster.start_coordinator(wait=False)
        wait_for(lambda: cluster.http("/readyz")[0] == 503, 10, cluster.tails)
        assert "payments" in cluster.http("/readyz")[1]
        assert cluster.http("/healthz")[0] == 200
        assert health(system) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as refused:
            system.begin_work(system.new_id(), names=())
        assert reason_of(refused.value) == ("NOT_READY", "true")
    finally:
        cluster.sites["payments"].server.resume()
    cluster.wait_until_ready()
    wait_for(lambda: health(system) == health_pb2.HealthCheckResponse.SERVING, 5, cluster.tails)
    system.cluster.wait_until_up()
    system.run(system.new_id())


def test_a_second_coordinator_on_the_same_log_is_refused(system: System) -> None:
    config = system.cluster.config
    command = [sys.executable, "-m", "coordinator.daemon", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 75
    assert len(done.stderr.strip().splitlines()) == 1
    assert "in use" in done.stderr or "lock" in done.stderr
    system.run(system.new_id())
