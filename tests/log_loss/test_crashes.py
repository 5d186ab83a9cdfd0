"""The command itself is killed at every place, the evidence changes under it, and it is run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from deploy.private_cluster import wait_for
from tests.log_loss.conftest import Loss, by_hand, lost
from tests.system.conftest import System, failpoints

pytestmark = pytest.mark.engines("mariadb")


def killed(loss: Loss, place: str, *arguments: str) -> None:
    """The command dies there."""
    environ = failpoints(f"{place}=kill", loss.system.cluster.directory)
    done = loss.derive("--apply", "--yes", *arguments, **environ)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def test_killed_on_its_way_everything_is_held(shared_system: System) -> None:
    """One place after the other, each on what the last has left."""
    loss = lost(shared_system, "empty")
    torn = loss.doubt.torn[1]
    presume = ("--presume", "commit", "--presume", f"{torn}=rollback")
    for place in ("after_derive_begun", "after_takeover", "after_takeover:2", "before_derive_done"):
        killed(loss, place, *presume)
        loss.hold(starts=2)  # its starts raise the fences that were taken over, and write checkpoints
        loss.stop()
    plan = loss.plan()
    assert plan["derivation_begun"] is True
    assert plan["by_gtrid"][loss.doubt.half[1]]["reason"] == "LOG_RECORD"
    offline = shared_system.cluster.coordctl(
        "recover", "--offline", "--dry-run", "--config", str(shared_system.cluster.config)
    )
    assert "rollback" not in offline.stdout.splitlines()[1]
    loss.apply(*presume)
    loss.judge(half=True, whole=True, torn=False)
    loss.works_again()


@pytest.mark.parametrize("place", ["after_derive_done", "before_send_commit", "after_send_commit:2"])
def test_killed_when_it_is_decided_the_coordinator_goes_on(shared_system: System, place: str) -> None:
    loss = lost(shared_system, "older")
    killed(loss, place, "--presume", "commit", "--presume", f"{loss.doubt.torn[1]}=rollback")
    shared_system.cluster.start_coordinator()
    shared_system.wait_until_clean()
    loss.stop()
    loss.judge(half=True, whole=True, torn=False)
    loss.works_again()


def test_a_hand_between_plan_and_takeover_stops_it(shared_system: System) -> None:
    """Somebody rolls back what is to be committed by presumption: nothing may be resolved by the old plan."""
    loss = lost(shared_system, "empty")
    cluster = shared_system.cluster
    gtrid = loss.doubt.whole[1]
    environ = failpoints("after_derive_begun=pause", cluster.directory)
    arguments = ("--apply", "--yes", "--presume", "commit", "--presume", f"{loss.doubt.torn[1]}=rollback")
    command = [sys.executable, "-m", "coordinator.ctl.main", "recover", "--derive", *arguments]
    running = subprocess.Popen(
        [*command, "--config", str(cluster.config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    try:
        wait_for((cluster.directory / "after_derive_begun.hit").exists, 20, cluster.tails)
        by_hand(shared_system, "payments", gtrid, "ROLLBACK")
        (cluster.directory / "after_derive_begun.go").touch()
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert (running.returncode, "EVIDENCE_CHANGED" in err, gtrid in err) == (75, True, True), err
    rest = sorted(item for item in loss.doubt.branches if item != f"payments:{gtrid}")
    assert sorted(shared_system.ours()) == rest
    cluster.start_coordinator(wait=False)
    cluster.wait_until_ready()
    wait_for(lambda: cluster.metric("xacoord_participant_hold", participant="orders") == 1, 10, cluster.tails)
    cluster.coordinator.stop()
    assert sorted(shared_system.ours()) == rest
    row = loss.plan()["by_gtrid"][gtrid]
    assert (row["reason"], row["may_presume"], row["missing"]) == ("MAY_HAVE_ROLLED_BACK", ["rollback"], [2])
    loss.apply("--presume", "rollback")
    loss.judge(half=True, whole=False, torn=False)
    loss.works_again()
