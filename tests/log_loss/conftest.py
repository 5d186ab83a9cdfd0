"""Transactions in three kinds of doubt, logs that are lost in every way, and the command that helps."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.ctl.main import run
from coordinator.v1 import coordinator_pb2
from deploy import processes
from deploy.private_cluster import wait_for
from dtp import Gtrid, Xid
from tests.system.conftest import System, failpoints, make_system

__all__ = ["Doubt", "Loss", "lost", "make_system"]

_HELD_AT = "before_prepare:2=pause,before_commit=pause"
_DIES_AT = "before_send_commit:3=kill"
SETTINGS = "[transactions]\nrescan_every = 1.0\n"


@dataclass
class Doubt:
    """Rows and gtrids of what a coordinator left when it was killed.

    `half`: committed at orders, prepared at payments. `whole`: decided to commit, prepared at both, nobody
    committed. `torn`: never decided; prepared at orders, lost at payments.
    """

    half: tuple[int, str]
    whole: tuple[int, str]
    torn: tuple[int, str]

    @property
    def branches(self) -> list[str]:
        """What stays prepared, as System.ours lists it."""
        return [
            f"orders:{self.whole[1]}",
            f"orders:{self.torn[1]}",
            f"payments:{self.half[1]}",
            f"payments:{self.whole[1]}",
        ]


@dataclass
class Loss:
    """A system whose coordinator is dead; `log` is where its log is, `real` where the real one was put.

    `doubt`: what it left, where it left all three kinds.
    """

    system: System
    doubt: Any
    log: Path
    real: Path

    def hold(self, starts: int = 1) -> None:
        """Start the coordinator: it holds everything and resolves nothing; left running."""
        cluster = self.system.cluster
        for _ in range(starts):
            if cluster.coordinator.running:
                cluster.coordinator.kill()
            cluster.start_coordinator(wait=False)
            cluster.wait_until_ready()
            wait_for(lambda: states(self.system) == {"HOLD"}, 15, cluster.tails)
            assert sorted(self.system.ours()) == sorted(self.doubt.branches), cluster.tails()

    def derive(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `coordctl recover --derive` as a process that can be killed; nobody is at the terminal."""
        return derive(self.system.cluster.config, *arguments, **environ)

    def ask(self, *arguments: str) -> tuple[int, str, str]:
        """The same in this process, which is quicker: exit code, output, errors."""
        config = str(self.system.cluster.config)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(["recover", "--derive", "--config", config, *arguments])
        return code, out.getvalue(), err.getvalue()

    def plan(self, *arguments: str) -> dict[str, Any]:
        """Its document; transactions by gtrid."""
        _, out, err = self.ask("-o", "json", *arguments)
        assert out, err
        document: dict[str, Any] = json.loads(out)
        document["by_gtrid"] = {row["gtrid"]: row for row in document["transactions"]}
        return document

    def apply(self, *arguments: str) -> dict[tuple[str, str], str]:
        """Carry it out; what became of each branch."""
        code, out, err = self.ask("--apply", "--yes", "-o", "json", *arguments)
        assert code == 0, f"{out}\n{err}\n{self.system.cluster.tails()}"
        return {
            (row["gtrid"], branch["participant"]): branch["result"]
            for row in json.loads(out)["transactions"]
            for branch in row["branches"]
        }

    def stop(self) -> None:
        if self.system.cluster.coordinator.running:
            self.system.cluster.coordinator.stop()

    def judge(self, half: bool, whole: bool, torn: bool) -> None:
        """Both servers agree, nothing is prepared."""
        assert self.system.ours() == []
        for (row, gtrid), expected in zip(
            (self.doubt.half, self.doubt.whole, self.doubt.torn), (half, whole, torn), strict=True
        ):
            assert self.system.judge(row) is expected, gtrid

    def works_again(self) -> None:
        """New transactions commit, ids are new ones, a restart finds nothing odd."""
        system = self.system
        newest = max(gtrid for _, gtrid in (self.doubt.half, self.doubt.whole, self.doubt.torn))
        for _ in range(2):
            system.cluster.start_coordinator()
            row = system.new_id()
            response = system.run(row)
            assert response.outcome == coordinator_pb2.OUTCOME_COMMITTED
            assert Gtrid.parse(response.gtrid).epoch > Gtrid.parse(newest).epoch
            assert response.gtrid > newest
            assert system.judge(row)
            system.cluster.coordinator.stop()


def derive(config: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coordinator.ctl.main", "recover", "--derive", "--config", str(config)]
    return processes.run([*command, *arguments], 90, {**os.environ, **environ})


def states(system: System) -> set[str]:
    """Of the participants, as coordctl shows them."""
    document = json.loads(system.cluster.coordctl("participants", "-o", "json").stdout)
    return {row["state"] for row in document["participants"]}


def by_hand(system: System, name: str, gtrid: str, verb: str) -> None:
    """What a DBA does: XA COMMIT or XA ROLLBACK."""
    number = list(system.cluster.sites).index(name) + 1
    system.cluster.sites[name].server.sql(f"XA {verb} {Xid.of(gtrid, number).sql()}")


def restart_agents(system: System) -> None:
    """Their sessions end, so that MariaDB lets others finish what is prepared."""
    for site in system.cluster.sites.values():
        if site.agent.running:
            site.agent.kill()
        site.agent.start()


def leave_in_doubt(system: System, copy_at_start: Callable[[], None]) -> Doubt:
    """Kill a coordinator in the middle of three transactions; `copy_at_start` is called in its epoch."""
    cluster = system.cluster
    if cluster.coordinator.running:
        cluster.coordinator.stop()
    cluster.sites["payments"].agent.kill()
    environ = failpoints(_HELD_AT, cluster.directory)
    cluster.sites["payments"].agent.start(**environ)
    environ["XACOORD_FAILPOINTS"] = _DIES_AT
    cluster.start_coordinator(**environ)
    cluster.wait_until_up()
    copy_at_start()

    rows = [system.new_id() for _ in range(3)]
    half, torn, whole = (system.begin_work(row) for row in rows)
    system.commit(half, wait_for=coordinator_pb2.WAIT_FOR_DECIDED)
    wait_for(lambda: rows[0] in system.rows("orders"), 10, cluster.tails)

    def commit_torn() -> None:
        with pytest.raises(grpc.RpcError):
            system.commit(torn)

    thread = threading.Thread(target=commit_torn)
    thread.start()
    wait_for((cluster.directory / "before_prepare.hit").exists, 10, cluster.tails)
    wait_for(lambda: f"orders:{torn}" in system.ours(), 10, cluster.tails)
    with pytest.raises(grpc.RpcError):
        system.commit(whole)
    assert cluster.coordinator.wait() == -signal.SIGKILL
    thread.join()
    restart_agents(system)
    doubt = Doubt((rows[0], half), (rows[2], whole), (rows[1], torn))
    wait_for(lambda: sorted(system.ours()) == sorted(doubt.branches), 10, lambda: f"{system.ours()} {doubt}")
    return doubt


def lost(system: System, how: str) -> Loss:
    """A system in doubt whose log is lost: "empty", "older" (an epoch), "within" (the epoch) or "foreign"."""
    system.restore()
    cluster = system.cluster
    log, copy, real = (cluster.directory / name for name in ("log", "copy", "real"))
    for old in (copy, real):
        shutil.rmtree(old, ignore_errors=True)
    cluster.coordinator.stop()
    if how == "older":
        shutil.copytree(log, copy)

    def copy_at_start() -> None:
        if how == "within":
            cluster.coordinator.send(signal.SIGSTOP)
            shutil.copytree(log, copy)
            cluster.coordinator.send(signal.SIGCONT)

    doubt = leave_in_doubt(system, copy_at_start)
    shutil.move(log, real)
    if how in ("older", "within"):
        shutil.copytree(copy, log)
    elif how == "foreign":
        make_log(log)
    return Loss(system, doubt, log, real)


def make_log(directory: Path, coordinator_id: str = "0001") -> None:
    """A log that another coordinator of that id has begun."""
    from coordinator.core.settings import Settings
    from coordinator.journal import open_log, start_epoch
    from wal import Options

    for _ in range(3):
        opened = open_log(directory, Options(), on_durable=lambda lsn: None, on_failure=lambda error: None)
        start_epoch(opened, Settings(coordinator_id), ["payments", "orders"], 1, 0.0)
        opened.log.close()


@pytest.fixture(scope="module")
def shared_system(make_system: Callable[..., System]) -> System:
    """One system for the tests of a module: each leaves it working."""
    return make_system(settings=SETTINGS)
