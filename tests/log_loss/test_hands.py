"""People who ended branches by hand, before or instead of losing the log; and rows that prove nothing."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from coordinator.v1 import coordinator_pb2
from deploy.private_cluster import wait_for
from dtp import Gtrid, Xid
from tests.log_loss.conftest import SETTINGS, Loss, by_hand, lost, restart_agents, states
from tests.system.conftest import INSERT, System, failpoints, statement
from tests.system.test_recovery import leave_prepared

# What the engines do differently is in the first test; the others are about the log.
pytestmark = pytest.mark.engines("mariadb")


@pytest.mark.engines("mysql", "mariadb")
@pytest.mark.parametrize("verb", ["COMMIT", "ROLLBACK"])
def test_a_branch_that_a_person_has_ended(shared_system: System, verb: str) -> None:
    """Without the log nobody knows that it was decided; what the person did is what counts."""
    loss = lost(shared_system, "empty")
    gtrid = loss.doubt.whole[1]
    by_hand(shared_system, "orders", gtrid, verb)
    row = loss.plan()["by_gtrid"][gtrid]
    committed = verb == "COMMIT"
    if committed:
        assert (row["action"], row["reason"], row["missing"]) == ("commit", "WITNESS_ROW", [])
    else:
        assert (row["reason"], row["may_presume"], row["missing"]) == (
            "MAY_HAVE_ROLLED_BACK",
            ["rollback"],
            [1],
        )
    results = loss.apply("--presume", "rollback")
    assert results[gtrid, "payments"] == ("committed" if committed else "rolled back")
    loss.judge(half=True, whole=committed, torn=False)
    loss.works_again()


def test_a_record_of_an_older_copy_is_a_proof_against_a_hand(shared_system: System) -> None:
    """The copy has the COMMIT record: a branch that a person rolled back is a heuristic outcome."""
    shared_system.restore()
    cluster = shared_system.cluster
    log, copy = cluster.directory / "log", cluster.directory / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    row = shared_system.new_id()
    shared_system.restart_coordinator(**failpoints("before_send_commit=kill", cluster.directory))
    gtrid = shared_system.begin_work(row)
    with pytest.raises(grpc.RpcError):
        shared_system.commit(gtrid, wait_for=coordinator_pb2.WAIT_FOR_DECIDED)
    assert cluster.coordinator.wait() == -signal.SIGKILL
    shutil.copytree(log, copy)
    restart_agents(shared_system)
    by_hand(shared_system, "orders", gtrid, "ROLLBACK")
    cluster.start_coordinator(wait=False, **failpoints("before_send_commit=pause", cluster.directory))
    wait_for((cluster.directory / "before_send_commit.hit").exists, 20, cluster.tails)
    cluster.coordinator.kill()  # a later epoch than the copy's
    shutil.rmtree(log)
    shutil.copytree(copy, log)
    loss = Loss(shared_system, None, log, copy)
    planned = loss.plan()["by_gtrid"][gtrid]
    assert (planned["action"], planned["reason"], planned["missing"]) == ("commit", "LOG_RECORD", [1])
    code, out, err = loss.ask("--apply", "--yes")
    assert code == 0, err
    assert f"heuristic outcome HEURISTIC_MIXED: {gtrid}" in out
    cluster.start_coordinator()
    document = cluster.coordctl_json("status")
    assert document["heuristic"] == [{"gtrid": gtrid, "outcome": "HEURISTIC_MIXED"}]
    cluster.coordctl("forget", gtrid, "--yes")
    assert row not in shared_system.rows("orders")
    assert row in shared_system.rows("payments")
    # The application's owners make the databases agree.
    cluster.sites["payments"].server.sql(f"DELETE FROM payments.ledger WHERE id = {row}")


def test_a_false_alarm_has_a_way_out(shared_system: System) -> None:
    """A crash cuts the PREPARE record off, a person commits a branch: the log seems to lack decisions.

    Nothing was lost, but no start can know that; derive sees one branch committed and lets the rest follow.
    """
    shared_system.restore()
    cluster = shared_system.cluster
    places = "before_write_prepare=drop,before_force_commit=kill"
    shared_system.restart_coordinator(**failpoints(places, cluster.directory))
    row = shared_system.new_id()
    gtrid = shared_system.begin_work(row)
    with pytest.raises(grpc.RpcError):
        shared_system.commit(gtrid)
    assert cluster.coordinator.wait() == -signal.SIGKILL
    restart_agents(shared_system)
    by_hand(shared_system, "orders", gtrid, "COMMIT")
    for _ in range(2):  # no restart ends it
        cluster.start_coordinator(wait=False)
        cluster.wait_until_ready()
        wait_for(lambda: states(shared_system) == {"HOLD"}, 15, cluster.tails)
        assert shared_system.ours() == [f"payments:{gtrid}"]
        cluster.coordinator.stop()
    loss = Loss(shared_system, None, cluster.directory / "log", cluster.directory / "real")
    plan = loss.plan()
    assert [row["participant"] for row in plan["participants"] if row["why"]] == ["orders"]
    assert plan["log_is_remembered"] is True
    assert loss.apply() == {(gtrid, "orders"): "committed", (gtrid, "payments"): "committed"}
    assert shared_system.judge(row)
    cluster.start_coordinator()
    shared_system.run(shared_system.new_id())
    shared_system.restart_coordinator()
    assert shared_system.ours() == []


def test_a_repaired_log_proves_what_it_has_kept(shared_system: System) -> None:
    """Its last decision was cut off; the repair gave it a new identity, so a start holds everything."""
    shared_system.restore()
    cluster = shared_system.cluster
    log = cluster.directory / "log"
    shared_system.restart_coordinator(**failpoints("before_send_commit=drop", cluster.directory))
    rows = [shared_system.new_id() for _ in range(2)]
    kept, cut = (shared_system.begin_work(row) for row in rows)
    for gtrid in (kept, cut):
        shared_system.commit(gtrid, wait_for=coordinator_pb2.WAIT_FOR_DECIDED)
    cluster.coordinator.kill()
    restart_agents(shared_system)
    records = [
        json.loads(line)
        for line in cluster.coordctl("wal", "dump", str(log), "-o", "json").stdout.splitlines()
    ]
    [lsn] = [entry["lsn"] for entry in records if entry.get("gtrid") == cut and entry["record"] == "COMMIT"]
    cluster.coordctl("wal", "repair", str(log), "--truncate-at", str(lsn), "--accept-loss")
    for _ in range(2):
        cluster.start_coordinator(wait=False)
        cluster.wait_until_ready()
        wait_for(lambda: states(shared_system) == {"HOLD"}, 15, cluster.tails)
        cluster.coordinator.stop()
    loss = Loss(shared_system, None, log, log)
    plan = loss.plan()["by_gtrid"]
    assert {gtrid: row["reason"] for gtrid, row in plan.items()} == {kept: "LOG_RECORD", cut: "ALL_PREPARED"}
    loss.apply("--presume", "rollback")
    assert [shared_system.judge(row) for row in rows] == [True, False]
    cluster.start_coordinator()
    shared_system.run(shared_system.new_id())


def test_a_branch_that_only_read_is_no_proof(shared_system: System) -> None:
    """It leaves neither branch nor row, like one that was rolled back: the plan claims nothing."""
    shared_system.restore()
    cluster = shared_system.cluster
    shared_system.restart_coordinator(**failpoints("before_send_commit=kill", cluster.directory))
    row = shared_system.new_id()
    gtrid = shared_system.coordinator.Begin(coordinator_pb2.BeginRequest(), timeout=10).gtrid
    shared_system.execute("orders", gtrid, statement(INSERT, row, 1))
    shared_system.execute("payments", gtrid, statement("SELECT * FROM ledger"))
    with pytest.raises(grpc.RpcError):
        shared_system.commit(gtrid)
    assert cluster.coordinator.wait() == -signal.SIGKILL
    restart_agents(shared_system)
    log, real = cluster.directory / "log", cluster.directory / "real"
    shutil.rmtree(real, ignore_errors=True)
    shutil.move(log, real)
    loss = Loss(shared_system, None, log, real)
    plan = loss.plan()["by_gtrid"][gtrid]
    assert (plan["reason"], plan["may_presume"], plan["missing"]) == (
        "MAY_HAVE_ROLLED_BACK",
        ["rollback"],
        [2],
    )
    by_hand(shared_system, "orders", gtrid, "COMMIT")  # somebody knows that it was told COMMITTED
    assert gtrid not in loss.plan()["by_gtrid"]
    assert loss.apply() == {}
    assert row in shared_system.rows("orders")
    cluster.sites["payments"].server.sql(f"INSERT INTO payments.ledger VALUES ({row}, 1)")
    cluster.start_coordinator()
    document: Any = cluster.coordctl_json("status")
    assert document["heuristic"] == []


def test_a_branch_of_an_epoch_that_nobody_remembers_stops_it(shared_system: System) -> None:
    """The epochs that a takeover begins come up to it, and then it would be an orphan and rolled back."""
    loss = lost(shared_system, "empty")
    horizon = max(row["remembered_epoch"] for row in loss.plan()["participants"])
    whose = Gtrid.parse(loss.doubt.half[1]).coordinator_id
    site, row = shared_system.cluster.sites["orders"], shared_system.new_id()
    strange = [str(Gtrid.make(whose, horizon + above, 5, 1)) for above in (1, 3)]
    for gtrid in strange:
        insert = f"INSERT INTO orders.ledger VALUES ({row}, 1)"
        leave_prepared(site.server, Xid.of(gtrid, 1).sql(), insert)
        row = shared_system.new_id()
    before = sorted([*loss.doubt.branches, *(f"orders:{gtrid}" for gtrid in strange)])
    for gtrid in strange:
        planned = loss.plan()["by_gtrid"][gtrid]
        assert (planned["action"], planned["reason"], planned["may_presume"]) == ("open", "NEVER_GIVEN", [])
        code, _, err = loss.ask("--apply", "--yes", "--presume", "rollback")
        assert (code, "NO_PLAN" in err, gtrid in err, "by hand" in err) == (1, True, True, True), err
        code, _, err = loss.ask("--apply", "--yes", "--presume", f"{gtrid}=rollback")
        assert (code, "PRESUMPTION_REFUSED" in err) == (1, True), err
        assert sorted(shared_system.ours()) == before
        by_hand(shared_system, "orders", gtrid, "ROLLBACK")
        before.remove(f"orders:{gtrid}")
    loss.apply("--presume", "rollback")
    loss.judge(half=True, whole=False, torn=False)
    loss.works_again()


def test_without_witness_rows_there_is_no_plan(make_system: Callable[..., System]) -> None:
    """A participant may have committed without a row: neither outcome is safe or can be presumed."""
    system = make_system(
        settings=SETTINGS, agent_settings="[witness]\nenabled = false\n", coordinator_id="00nw"
    )
    loss = lost(system, "empty")
    half, whole, torn = loss.doubt.half[1], loss.doubt.whole[1], loss.doubt.torn[1]
    plan = loss.plan()["by_gtrid"]
    assert {gtrid: (row["reason"], row["may_presume"]) for gtrid, row in plan.items()} == {
        half: ("MAY_HAVE_COMMITTED", []),
        whole: ("ALL_PREPARED", ["commit", "rollback"]),
        torn: ("MAY_HAVE_COMMITTED", []),
    }
    for word in ("rollback", "commit"):
        code, _, err = loss.ask("--apply", "--yes", "--presume", word)
        assert (code, "NO_PLAN" in err, "coordctl xid" in err) == (1, True, True), err
    assert sorted(system.ours()) == sorted(loss.doubt.branches)
    # A person has looked at the data.
    by_hand(system, "payments", half, "COMMIT")
    by_hand(system, "orders", torn, "ROLLBACK")
    loss.apply("--presume", "commit")
    loss.judge(half=True, whole=True, torn=False)
    loss.works_again()
