"""Somebody derives on a wrong directory while the real coordinator, with the real log, is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.derive import NOTICED_SECONDS
from coordinator.v1 import coordinator_pb2
from deploy.private_cluster import wait_for
from tests.log_loss.conftest import derive, states
from tests.participant_agent.agent_support import reason
from tests.system.conftest import System, failpoints

pytestmark = pytest.mark.engines("mariadb")

BEGUN = "after_derive_begun"


def mistaken(system: System) -> Path:
    """A configuration that is right but for its data_dir, which is empty."""
    cluster = system.cluster
    log, elsewhere = cluster.directory / "log", cluster.directory / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    other = cluster.directory / "other.toml"
    other.write_text(cluster.config.read_text().replace(str(log), str(elsewhere)))
    return other


def attached(config: Path) -> tuple[dict[str, Any], str]:
    """Where a plan says that a coordinator is attached, and what it says on standard error."""
    done = derive(config, "-o", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["participants"]
    return {row["participant"]: row["attached_epoch"] for row in rows if row["attached_epoch"]}, done.stderr


def test_a_coordinator_that_serves_is_not_overthrown(shared_system: System) -> None:
    """It has told COMMITTED and not delivered it yet: a presumed rollback would undo that."""
    shared_system.restore()
    cluster = shared_system.cluster
    shared_system.restart_coordinator(**failpoints("before_send_commit=drop", cluster.directory))
    row = shared_system.new_id()
    gtrid = shared_system.begin_work(row)
    shared_system.commit(gtrid, wait_for=coordinator_pb2.WAIT_FOR_DECIDED)
    before = sorted(shared_system.ours())
    assert before == [f"orders:{gtrid}", f"payments:{gtrid}"]
    other = mistaken(shared_system)

    where, warning = attached(other)
    assert set(where) == set(cluster.sites)
    assert "is attached at orders (epoch" in warning
    shown = derive(other)
    assert shown.returncode == 0
    assert "is attached at orders (epoch" in shown.stdout
    for _ in range(2):
        done = derive(other, "--apply", "--yes", "--presume", "rollback")
        assert (done.returncode, "COORDINATOR_ATTACHED" in done.stderr) == (75, True), done.stderr
        assert "use that log" in done.stderr
        assert "nothing was changed" in done.stderr
        assert (sorted(shared_system.ours()), states(shared_system)) == (before, {"UP"})
    shared_system.restart_coordinator()
    shared_system.wait_until_clean()
    assert shared_system.judge(row)


def test_it_is_overthrown_on_demand(shared_system: System) -> None:
    """It can be neither stopped nor cut off: it is shut out while it runs."""
    shared_system.restore()
    cluster = shared_system.cluster
    shared_system.run(shared_system.new_id())
    other = mistaken(shared_system)
    done = derive(other, "--overthrow")
    assert (done.returncode, "go with --apply" in done.stderr) == (2, True), done.stderr
    done = derive(other, "--apply", "--overthrow", "--yes")
    assert done.returncode == 0, done.stderr
    assert "overthrown" in done.stdout
    wait_for(lambda: states(shared_system) == {"HOLD"}, 15, cluster.tails)
    with pytest.raises(grpc.RpcError) as refused:
        shared_system.run(shared_system.new_id())
    assert reason(refused.value) == "PARTICIPANT_HELD"
    cluster.coordinator.stop()
    shutil.rmtree(cluster.directory / "log")
    shutil.move(cluster.directory / "elsewhere", cluster.directory / "log")
    cluster.start_coordinator()
    row = shared_system.new_id()
    shared_system.run(row)
    assert shared_system.judge(row)


def test_it_comes_back_while_the_plan_is_carried_out(shared_system: System) -> None:
    """Each participant is looked at again before its fence is taken over."""
    shared_system.restore()
    cluster = shared_system.cluster
    cluster.coordinator.stop()
    environ = failpoints(f"{BEGUN}=pause", cluster.directory)
    command = [sys.executable, "-m", "coordinator.ctl.main", "recover", "--derive", "--apply", "--yes"]
    running = subprocess.Popen(
        [*command, "--config", str(mistaken(shared_system))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    try:
        wait_for((cluster.directory / f"{BEGUN}.hit").exists, 20, cluster.tails)
        cluster.start_coordinator()
        cluster.wait_until_up()
        (cluster.directory / f"{BEGUN}.go").touch()
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert (running.returncode, "COORDINATOR_ATTACHED" in err) == (75, True), err
    assert "nothing was resolved" in err
    row = shared_system.new_id()
    shared_system.run(row)
    assert shared_system.judge(row)


def test_one_that_has_died_without_a_word_is_noticed(shared_system: System) -> None:
    """Its machine answers nothing any more, so nobody hangs up; the message says how long that counts."""
    shared_system.restore()
    cluster = shared_system.cluster
    other = mistaken(shared_system)
    cluster.coordinator.send(signal.SIGSTOP)
    try:
        done = derive(other, "--apply", "--yes")
        assert (done.returncode, "COORDINATOR_ATTACHED" in done.stderr) == (75, True), done.stderr
        assert f"within {NOTICED_SECONDS} s" in done.stderr
        wait_for(lambda: not attached(other)[0], NOTICED_SECONDS, cluster.tails)
    finally:
        cluster.coordinator.send(signal.SIGCONT)
    cluster.wait_until_up()
    wait_for(lambda: set(attached(other)[0]) == set(cluster.sites), 15, cluster.tails)
    row = shared_system.new_id()
    shared_system.run(row)
    assert shared_system.judge(row)
