"""The log directory is empty, an older copy, or another coordinator's: HOLD, then the way out."""

from __future__ import annotations

import json
import shutil
from typing import Any

import grpc
import pytest

from coordinator.v1 import coordinator_pb2
from deploy.private_cluster import wait_for
from tests.log_loss.conftest import Loss, lost, make_log, states
from tests.participant_agent.agent_support import reason
from tests.system.conftest import System


@pytest.mark.parametrize("how", ["empty", "older", "within", "foreign"])
def test_a_lost_log_is_held_and_derived(shared_system: System, how: str) -> None:
    loss = lost(shared_system, how)
    half, whole, torn = loss.doubt.half[1], loss.doubt.whole[1], loss.doubt.torn[1]
    loss.hold(starts=2)
    with pytest.raises(grpc.RpcError) as refused:
        shared_system.run(shared_system.new_id())
    assert reason(refused.value) == "PARTICIPANT_HELD"
    as_it_must_be(loss, loss.plan())  # asked while the coordinator holds
    loss.stop()

    commits = how in ("empty", "within")
    presume = (
        ("--presume", "commit", "--presume", f"{torn}=rollback") if commits else ("--presume", "rollback")
    )
    fingerprint = loss.plan(*presume)["fingerprint"]
    assert sorted(shared_system.ours()) == sorted(loss.doubt.branches), "a plan has changed something"
    ended = "committed" if commits else "rolled back"
    assert loss.apply(*presume, "--fingerprint", fingerprint) == {
        (half, "orders"): "committed",
        (half, "payments"): "committed",
        (whole, "orders"): ended,
        (whole, "payments"): ended,
        (torn, "orders"): "rolled back",
        (torn, "payments"): "not committed",
    }
    loss.judge(half=True, whole=commits, torn=False)
    loss.works_again()
    code, _, err = loss.ask()
    assert (code, "NOTHING_TO_DERIVE" in err) == (1, True)


def as_it_must_be(loss: Loss, plan: dict[str, Any]) -> None:
    """The evidence, and what follows from it."""
    half, whole, torn = loss.doubt.half[1], loss.doubt.whole[1], loss.doubt.torn[1]
    assert {gtrid: (row["action"], row["reason"]) for gtrid, row in plan["by_gtrid"].items()} == {
        half: ("commit", "WITNESS_ROW"),
        whole: ("open", "ALL_PREPARED"),
        torn: ("open", "MAY_HAVE_ROLLED_BACK"),
    }
    evidence = {
        (gtrid, branch["participant"]): (branch["evidence"], branch["names"])
        for gtrid, row in plan["by_gtrid"].items()
        for branch in row["branches"]
    }
    assert evidence == {
        (half, "orders"): ("COMMITTED", [1, 2]),
        (half, "payments"): ("PREPARED", [1, 2]),
        (whole, "orders"): ("PREPARED", [1, 2]),
        (whole, "payments"): ("PREPARED", [1, 2]),
        (torn, "orders"): ("PREPARED", [1, 2]),
        (torn, "payments"): ("ABSENT", []),
    }
    assert plan["by_gtrid"][whole]["may_presume"] == ["commit", "rollback"]
    assert plan["by_gtrid"][torn]["may_presume"] == ["rollback"]
    assert plan["by_gtrid"][torn]["missing"] == [2]


@pytest.mark.engines("mariadb")
def test_everybody_is_told_and_nothing_risky_is_done(shared_system: System) -> None:
    loss = lost(shared_system, "empty")
    cluster = shared_system.cluster
    loss.hold()
    with pytest.raises(grpc.RpcError) as refused:
        shared_system.coordinator.Begin(coordinator_pb2.BeginRequest(), timeout=10)
    assert reason(refused.value) == "PARTICIPANT_HELD"
    for command in ("status", "participants", "list"):
        done = cluster.coordctl(command)
        assert "recover --derive" in done.stdout + done.stderr, command
        assert "HOLD" in done.stdout + done.stderr, command
    done = cluster.coordctl("status", "--check", "-o", "json", check=False)
    assert done.returncode == 4
    assert any("HOLD" in problem for problem in json.loads(done.stdout)["problems"])
    for name in cluster.sites:
        assert cluster.metric("xacoord_participant_hold", participant=name) == 1
    assert "recover --derive" in cluster.coordinator.tail(60)

    shown = loss.derive()
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(gtrid in shown.stdout for _, gtrid in (loss.doubt.half, loss.doubt.whole, loss.doubt.torn))
    assert loss.plan()["fingerprint"] in shown.stdout

    code, _, err = loss.ask("--apply", "--yes")
    assert (code, "LOG_LOCKED" in err) == (75, True), err
    loss.stop()
    gtrid = loss.doubt.half[1]
    unknown = gtrid[:-1] + ("1" if gtrid[-1] == "0" else "0")
    for arguments, expected, why in (
        (("--apply", "--yes"), 1, "NO_PLAN"),
        (("--apply", "--yes", "--presume", "commit"), 1, "PRESUMPTION_REFUSED"),
        (("--apply", "--presume", "rollback"), 2, "there is no terminal"),
        (("--apply", "--yes", "--presume", "rollback", "--fingerprint", "00"), 1, "PLAN_CHANGED"),
        (("--apply", "--yes", "--presume", f"{unknown}=commit"), 3, "UNKNOWN_TRANSACTION"),
        (("--yes",), 2, "go with --apply"),
        (("--presume", "maybe"), 2, "give rollback, commit"),
        (("--presume", "commit", "--presume", "rollback"), 2, "contradict"),
        (("--offline",), 2, "goes without"),
    ):
        code, _, err = loss.ask(*arguments)
        assert (code, why in err) == (expected, True), (arguments, err)
    cluster.sites["payments"].agent.kill()
    code, _, err = loss.ask()
    assert (code, "PARTICIPANT_UNAVAILABLE" in err, "payments" in err) == (69, True, True), err
    cluster.sites["payments"].agent.start()
    loss.hold()
    loss.stop()

    shutil.rmtree(loss.log)
    make_log(loss.log, "0002")
    code, _, err = loss.ask()
    assert (code, "belongs to coordinator '0002'" in err) == (78, True), err
    cluster.start_coordinator(wait=False)
    assert cluster.coordinator.wait() == 78

    shutil.rmtree(loss.log)
    shutil.move(loss.real, loss.log)  # found after all
    cluster.start_coordinator()
    shared_system.wait_until_clean()
    loss.judge(half=True, whole=True, torn=False)


@pytest.mark.engines("mariadb")
def test_the_real_log_is_shut_out_afterwards(shared_system: System) -> None:
    """It was found when it was too late: refused, however often it is started, and it resolves nothing."""
    loss = lost(shared_system, "empty")
    cluster = shared_system.cluster
    loss.apply("--presume", "rollback")
    loss.judge(half=True, whole=False, torn=False)
    derived = cluster.directory / "derived"
    shutil.rmtree(derived, ignore_errors=True)
    shutil.move(loss.log, derived)
    shutil.copytree(loss.real, loss.log)
    for _ in range(4):  # beyond the epochs that the participants remember
        cluster.start_coordinator(wait=False)
        cluster.wait_until_ready()
        wait_for(lambda: states(shared_system) == {"HOLD"}, 15, cluster.tails)
        cluster.coordinator.kill()
    loss.judge(half=True, whole=False, torn=False)
    shutil.rmtree(loss.log)
    shutil.move(derived, loss.log)
    loss.works_again()
