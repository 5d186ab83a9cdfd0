"""Recovery: a participant that is away, strangers' branches, orphans, plans with reasons, lost logs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from coordinator.v1 import coordinator_pb2
from deploy.private_cluster import wait_for
from deploy.private_servers import PrivateServer
from dtp import Gtrid, Xid
from tests.system.conftest import System, failpoints

_PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
FOREIGN = (b"stranger\x00\xff\x80", b"\x01'\"", 7)


def leave_prepared(server: PrivateServer, xid: str, statement: str) -> None:
    """A prepared branch whose session is gone."""
    connection = server.root_connect()
    cursor = connection.cursor()
    for sql in (f"XA START {xid}", statement, f"XA END {xid}", f"XA PREPARE {xid}"):
        cursor.execute(sql)
    connection.close()


def decided_but_unheard(system: System) -> tuple[int, str]:
    """A transaction with a COMMIT record whose branches are still prepared; the coordinator is dead."""
    row = system.new_id()
    system.restart_coordinator(**failpoints("before_send_commit=kill", system.cluster.directory))
    gtrid = system.begin_work(row)
    with pytest.raises(grpc.RpcError):
        system.commit(gtrid)
    assert system.cluster.coordinator.wait() == -9
    return row, gtrid


def test_a_participant_that_is_away_holds_nobody_up(system: System) -> None:
    cluster = system.cluster
    row, gtrid = decided_but_unheard(system)
    cluster.sites["payments"].agent.kill()
    cluster.start_coordinator(wait=False)
    cluster.wait_until_ready()
    wait_for(lambda: cluster.metric("xacoord_participant_up", participant="orders") == 1, 10, cluster.tails)
    # The others are served.
    assert system.run(system.new_id(), names=("orders",)).outcome == coordinator_pb2.OUTCOME_COMMITTED
    with pytest.raises(grpc.RpcError) as refused:
        system.run(system.new_id())
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    # Their part of the transaction is done; the blocked one is shown with its age.
    wait_for(lambda: row in system.rows("orders"), 10, cluster.tails)
    assert row not in system.rows("payments")
    listed = json.loads(cluster.coordctl("list", "--in-doubt", "-o", "json").stdout)
    [entry] = [t for t in listed["transactions"] if t["gtrid"] == gtrid]
    assert entry["blocked"] is True
    assert entry["age_seconds"] > 0
    assert cluster.metric("xacoord_blocked_transactions") == 1
    assert cluster.metric("xacoord_in_doubt_branches", participant="payments") == 1
    assert (cluster.metric("xacoord_in_doubt_oldest_age_seconds", participant="payments") or 0) > 0
    # It ends within 5 s of the participant's return.
    cluster.sites["payments"].agent.start()
    returned = time.monotonic()
    wait_for(lambda: row in system.rows("payments"), 15, cluster.tails)
    assert time.monotonic() - returned < 5
    wait_for(lambda: cluster.metric("xacoord_blocked_transactions") == 0, 5, cluster.tails)
    assert system.judge(row)


def test_a_plan_has_a_reason_for_each_branch_and_strangers_survive(system: System) -> None:
    cluster = system.cluster
    row, gtrid = decided_but_unheard(system)
    orders, payments = cluster.sites["orders"].server, cluster.sites["payments"].server
    orphan = Xid.of(str(Gtrid.make("0001", 1, 2**30, 99)), 1)
    other = Xid.of(str(Gtrid.make("zzzz", 1, 5, 1)), 1)
    ahead = Xid.of(str(Gtrid.make("0001", 36**4 - 1, 5, 1)), 1)
    foreign = Xid(FOREIGN[2], FOREIGN[0], FOREIGN[1])
    leave_prepared(orders, orphan.sql(), f"INSERT INTO orders.ledger VALUES ({system.new_id()}, 1)")
    leave_prepared(orders, other.sql(), f"INSERT INTO orders.ledger VALUES ({system.new_id()}, 1)")
    leave_prepared(orders, ahead.sql(), f"INSERT INTO orders.ledger VALUES ({system.new_id()}, 1)")
    leave_prepared(payments, foreign.sql(), f"INSERT INTO payments.ledger VALUES ({system.new_id()}, 1)")
    planned = cluster.coordctl(
        "recover", "--offline", "--dry-run", "--config", str(cluster.config), "-o", "json"
    )
    items = {
        (item["participant"], item["gtrid"]): (item["action"], item["reason"])
        for item in json.loads(planned.stdout)["items"]
    }
    assert items[("orders", gtrid)] == ("commit", "COMMIT_RECORD")
    assert items[("payments", gtrid)] == ("commit", "COMMIT_RECORD")
    assert items[("orders", orphan.gtrid.decode())] == ("rollback", "PRESUMED_ABORT")
    assert items[("orders", other.gtrid.decode())] == ("leave", "OTHER_COORDINATOR")
    assert items[("orders", ahead.gtrid.decode())] == ("hold", "EPOCH_AHEAD_OF_LOG")
    assert ("leave", "FOREIGN") in items.values()
    # The plan has changed nothing; offline recovery carries it out.
    assert len(cluster.prepared("orders")) == 4
    done = cluster.coordctl(
        "recover", "--offline", "--config", str(cluster.config), "-o", "json", check=False
    )
    assert done.returncode == 4, done.stderr  # one is on hold
    assert json.loads(done.stdout)["items"]
    assert {gtrid for _, gtrid, _ in cluster.prepared("orders")} == {
        other.gtrid.decode(),
        ahead.gtrid.decode(),
    }
    assert system.judge(row)
    system.restore()
    assert cluster.metric("xacoord_foreign_branches", participant="payments") == 1
    assert cluster.coordctl("recover", check=False).returncode == 4
    assert (FOREIGN[2], *FOREIGN[:2]) in payments.prepared()
    orders.sql(f"XA ROLLBACK {other.sql()}")
    orders.sql(f"XA ROLLBACK {ahead.sql()}")
    payments.sql(f"XA ROLLBACK {foreign.sql()}")


def test_an_orphan_found_while_running_is_rolled_back(system: System) -> None:
    orphan = Xid.of(str(Gtrid.make("0001", 1, 2**30 + 1, 99)), 1)
    server = system.cluster.sites["orders"].server
    row = system.new_id()
    leave_prepared(server, orphan.sql(), f"INSERT INTO orders.ledger VALUES ({row}, 1)")
    system.cluster.coordctl("recover")
    system.wait_until_clean(5)
    assert row not in system.rows("orders")


def test_the_deadline_rolls_back_and_frees_the_rows(system: System) -> None:
    row = system.new_id()
    request = coordinator_pb2.BeginRequest()
    request.timeout.FromMilliseconds(700)
    gtrid = system.begin_work(row, timeout=request.timeout)
    wait_for(lambda: system.outcome(gtrid) == "ROLLED_BACK", 5, system.cluster.tails)
    assert not system.judge(row)
    system.run(row)  # the row's lock is free
    assert system.judge(row)
    response = system.commit(gtrid)
    assert response.outcome == coordinator_pb2.OUTCOME_ROLLED_BACK
    assert response.rejection.reason == "DEADLINE_PASSED"


@pytest.mark.parametrize("loss", ["lost", "older"])
def test_a_lost_or_older_log_leads_to_hold(make_system: Callable[..., System], loss: str) -> None:
    """Nothing is rolled back by a log that cannot know."""
    system = make_system(coordinator_id=f"00{loss[:2]}")
    cluster = system.cluster
    log, copy = cluster.directory / "log", cluster.directory / "copy"
    system.run(system.new_id())
    cluster.coordinator.stop()
    shutil.copytree(log, copy)
    _, gtrid = decided_but_unheard(system)
    shutil.rmtree(log)
    if loss == "older":
        shutil.copytree(copy, log)
    for _ in range(4):  # restarts give the same epochs again, and go beyond
        cluster.start_coordinator(wait=False)
        cluster.wait_until_ready()
        wait_for(lambda: '"HOLD"' in cluster.coordctl("participants", "-o", "json").stdout, 10, cluster.tails)
        states = {
            p["state"]
            for p in json.loads(cluster.coordctl("participants", "-o", "json").stdout)["participants"]
        }
        assert states == {"HOLD"}
        with pytest.raises(grpc.RpcError):
            system.run(system.new_id())
        assert len(system.ours()) == 2, "a branch was resolved without its log"
        cluster.coordinator.kill()
    assert all(item.endswith(gtrid) for item in system.ours())


def test_metrics_have_the_promised_names(system: System) -> None:
    names = {
        line.split()[2]
        for line in system.cluster.http("/metrics")[1].splitlines()
        if line.startswith("# TYPE")
    }
    promised = {
        "xacoord_transactions_total",
        "xacoord_transactions_active",
        "xacoord_phase_duration_seconds",
        "xacoord_blocked_transactions",
        "xacoord_in_doubt_branches",
        "xacoord_in_doubt_oldest_age_seconds",
        "xacoord_blocked_sessions",
        "xacoord_lock_waits",
        "xacoord_deadlocks_total",
        "xacoord_orphan_branches",
        "xacoord_foreign_branches",
        "xacoord_heuristic_outcomes_total",
        "xacoord_recovery_runs_total",
        "xacoord_recovery_last_success_timestamp_seconds",
        "xacoord_wal_fsync_duration_seconds",
        "xacoord_wal_batch_records",
        "xacoord_wal_bytes",
        "xacoord_wal_room",
        "xacoord_participant_up",
        "xacoord_participant_hold",
        "xacoord_build_info",
    }
    assert promised == {name for name in names if not name.endswith("_created")}


def test_promtool_likes_the_metrics(system: System) -> None:
    program = os.environ.get("PROMTOOL") or shutil.which("promtool", path=_PATH)
    assert program, "promtool is missing: tests/run.sh installs it"
    done = subprocess.run(
        [program, "check", "metrics"],
        input=system.cluster.http("/metrics")[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_rollback_that_comes_back_is_rolled_back_again(system: System) -> None:
    """MariaDB may lose an acknowledged rollback in a crash; no memory of it may keep the rows locked."""
    row = system.new_id()
    gtrid = system.begin_work(row)
    system.coordinator.Rollback(coordinator_pb2.RollbackRequest(gtrid=gtrid), timeout=10)
    system.wait_until_clean(5)
    server = system.cluster.sites["orders"].server
    leave_prepared(server, Xid.of(gtrid, 1).sql(), f"INSERT INTO orders.ledger VALUES ({row}, 1)")
    system.wait_until_clean(5)
    assert not system.judge(row)


def test_a_log_from_before_the_last_commits_leads_to_hold_everywhere(
    make_system: Callable[..., System],
) -> None:
    """The backup was made within the running epoch: no epoch and no nonce tells, but a witness row does."""
    system = make_system(coordinator_id="00in")
    cluster = system.cluster
    log, copy = cluster.directory / "log", cluster.directory / "copy"
    system.run(system.new_id())
    cluster.coordinator.send(signal.SIGSTOP)
    shutil.copytree(log, copy)
    cluster.coordinator.send(signal.SIGCONT)
    system.run(system.new_id())
    cluster.sites["payments"].agent.kill()
    wait_for(lambda: cluster.metric("xacoord_participant_up", participant="payments") == 0, 10, cluster.tails)
    cluster.sites["payments"].agent.start(**failpoints("before_commit=pause", cluster.directory))
    cluster.wait_until_up()
    row = system.new_id()
    gtrid = system.begin_work(row)
    response = system.commit(gtrid, wait_for=coordinator_pb2.WAIT_FOR_DECIDED)
    assert response.outcome == coordinator_pb2.OUTCOME_COMMITTED
    wait_for(lambda: row in system.rows("orders"), 10, cluster.tails)
    cluster.coordinator.kill()
    cluster.sites["payments"].agent.kill()
    shutil.rmtree(log)
    shutil.copytree(copy, log)
    cluster.sites["payments"].agent.start()
    cluster.start_coordinator(wait=False)
    cluster.wait_until_ready()
    wait_for(
        lambda: cluster.coordctl("participants", "-o", "json").stdout.count('"HOLD"') == 2, 10, cluster.tails
    )
    assert system.ours() == [f"payments:{gtrid}"], "the committed transaction's other branch was ended"
    assert system.outcome(gtrid) in ("UNKNOWN", "COMMITTED")
