"""What the command answers: to Ctrl-C, to presumptions that contradict proofs, where nothing is to derive."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import MySQLdb
import pytest

from deploy.private_cluster import wait_for
from dtp import Gtrid, Xid
from tests.heuristics.person import leave_prepared
from tests.log_loss.conftest import Loss, by_hand, derive, lost, restart_agents, states
from tests.system.conftest import System, failpoints

pytestmark = pytest.mark.engines("mariadb")


def contents(directory: Path) -> dict[str, bytes]:
    """Of the log's files; the lock only names its last owner."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"}


def test_ctrl_c_at_the_question_changes_nothing(shared_system: System) -> None:
    loss = lost(shared_system, "older")
    arguments = ("recover", "--derive", "--config", str(shared_system.cluster.config), "--apply")
    before = contents(loss.log)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "coordinator.ctl.main", *arguments, "--presume", "rollback"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    written = b""
    try:
        while b"[y/N]" not in written:
            written += os.read(leader, 65536)
        time.sleep(0.5)  # the prompt is written before input() reads, and people are not that quick
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        written += os.read(leader, 65536)
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    assert b"INTERRUPTED: nothing was changed" in written
    assert b"--apply" not in written, "what was asked for is not advised"
    assert contents(loss.log) == before
    assert sorted(shared_system.ours()) == sorted(loss.doubt.branches)
    loss.apply("--presume", "rollback")
    loss.judge(half=True, whole=False, torn=False)
    loss.works_again()


def test_presumptions_of_single_transactions_are_followed_or_refused(shared_system: System) -> None:
    loss = lost(shared_system, "empty")
    half, whole, torn = loss.doubt.half[1], loss.doubt.whole[1], loss.doubt.torn[1]
    for apply in ((), ("--apply", "--yes")):
        for presumed, why in (
            (f"{half}=rollback", "a participant has committed it; leave that presumption out"),
            (f"{torn}=commit", "only rollback may be presumed"),
        ):
            code, out, err = loss.ask("--presume", "rollback", "--presume", presumed, *apply)
            assert (code, out) == (1, "")
            assert f"PRESUMPTION_REFUSED: {presumed}: " in err
            assert why in err
    code, out, err = loss.ask()
    assert "--apply refuses it: 2 open" in out
    code, _, err = loss.ask("--apply", "--yes")
    assert (code, "NO_PLAN" in err) == (1, True)
    assert f"{torn} (rollback may be presumed)" in err
    assert f"{whole} (commit or rollback may be presumed)" in err
    assert "--presume commit" not in err
    single = ("--presume", f"{half}=commit", "--presume", f"{whole}=commit", "--presume", f"{torn}=rollback")
    code, out, err = loss.ask(*single)
    assert (code, "--apply asks, then carries it out" in out) == (0, True), err
    loss.apply(*single)
    loss.judge(half=True, whole=True, torn=False)
    loss.works_again()


@pytest.mark.engines("mysql", "mariadb")
def test_a_branch_that_a_person_has_ended_while_the_agents_session_lives(shared_system: System) -> None:
    """MySQL lets them, and the session is still the branch's; MariaDB refuses until the session has ended."""
    shared_system.restore()
    cluster = shared_system.cluster
    shared_system.restart_coordinator(**failpoints("before_send_commit=kill", cluster.directory))
    row = shared_system.new_id()
    gtrid = shared_system.begin_work(row)
    with pytest.raises(grpc.RpcError):
        shared_system.commit(gtrid)
    assert cluster.coordinator.wait() == -signal.SIGKILL
    log, real = cluster.directory / "log", cluster.directory / "real"
    shutil.rmtree(real, ignore_errors=True)
    shutil.move(log, real)
    loss = Loss(shared_system, None, log, real)
    if cluster.engine == "mariadb":
        with pytest.raises(MySQLdb.Error, match="1397"):
            by_hand(shared_system, "orders", gtrid, "ROLLBACK")
        restart_agents(shared_system)
        by_hand(shared_system, "orders", gtrid, "ROLLBACK")
    else:
        by_hand(shared_system, "orders", gtrid, "ROLLBACK")
        code, out, err = loss.ask()
        assert (code, f"! {gtrid}: at number 1 a session of the agent holds it" in out) == (0, True), (
            out + err
        )
    wait_for(lambda: shared_system.ours() == [f"payments:{gtrid}"], 10, cluster.tails)
    loss.apply("--presume", "rollback")
    assert not shared_system.judge(row)
    cluster.start_coordinator()
    shared_system.run(shared_system.new_id())


def test_a_coordinator_that_nobody_remembers(shared_system: System) -> None:
    """A wrong id, or a system that is new; and a branch of that id, which no log gave."""
    shared_system.restore()
    cluster = shared_system.cluster
    other = cluster.directory / "other.toml"
    text = cluster.config.read_text().replace('"0001"', '"00zz"')
    other.write_text(text.replace(str(cluster.directory / "log"), str(cluster.directory / "none")))
    done = derive(other)
    assert done.returncode == 1
    assert done.stderr.startswith("coordctl: UNKNOWN_COORDINATOR: no participant remembers coordinator 00zz")
    assert "never gave" not in done.stderr
    xid = Xid.of(str(Gtrid.make("00zz", 3, 5, 1)), 1)
    server = cluster.sites["orders"].server
    leave_prepared(server, xid.sql(), f"INSERT INTO orders.ledger VALUES ({shared_system.new_id()}, 1)")
    try:
        done = derive(other)
        assert (done.returncode, "UNKNOWN_COORDINATOR" in done.stderr) == (1, True), done.stderr
        assert f"It never gave {xid.gtrid.decode()}" in done.stderr
    finally:
        server.sql(f"XA ROLLBACK {xid.sql()}")


def test_a_branch_that_this_log_never_gave_holds_only_itself(shared_system: System) -> None:
    shared_system.restore()
    cluster = shared_system.cluster
    gtrid = str(Gtrid.make("0001", 36**4 - 1, 5, 1))
    xid = Xid.of(gtrid, 1)
    server = cluster.sites["orders"].server
    leave_prepared(server, xid.sql(), f"INSERT INTO orders.ledger VALUES ({shared_system.new_id()}, 1)")
    try:
        wait_for(lambda: "HELD_BRANCH" in cluster.coordinator.tail(60), 10, cluster.tails)
        assert states(shared_system) == {"UP"}
        row = shared_system.new_id()
        shared_system.run(row)
        assert shared_system.judge(row)
        status = cluster.coordctl("status", "--check", check=False)
        assert (status.returncode, "orphan branches at orders: 1" in status.stdout) == (4, True), (
            status.stdout
        )
        recovered = cluster.coordctl("recover", check=False)
        assert (recovered.returncode, "nothing else is held up" in recovered.stdout) == (4, True)
        assert cluster.coordctl("recover", "--dry-run").returncode == 0
        cluster.coordinator.stop()
        done = derive(cluster.config)
        assert (done.returncode, "NOTHING_TO_DERIVE" in done.stderr) == (1, True), done.stderr
        assert f"It never gave {gtrid}" in done.stderr
    finally:
        server.sql(f"XA ROLLBACK {xid.sql()}")
