"""Agents in the coordinator's process: the same promises, and one process that dies with all of them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from coordinator.v1 import coordinator_pb2
from deploy.engines import Engine
from deploy.private_cluster import AGENT_USER, wait_for
from tests.system.conftest import NAMES, System, failpoints, statement
from tests.system.test_recovery import leave_prepared

# Place (the coordinator's or an agent's) -> what the transaction must have become after the restart.
PLACES = {
    "after_start": "ROLLED_BACK",
    "after_witness": "ROLLED_BACK",
    "before_prepare": "ROLLED_BACK",
    "after_prepare": "ROLLED_BACK",
    "before_force_commit": "ROLLED_BACK",
    "before_send_commit": "COMMITTED",
    "before_commit": "COMMITTED",
    "after_commit": "COMMITTED",
}


@pytest.fixture(scope="module")
def shared_system(make_system: Callable[..., System]) -> System:
    return make_system(settings="[transactions]\nrescan_every = 1.0\n", embedded=True)


def test_one_process_does_it_all(system: System) -> None:
    row = system.new_id()
    assert system.run(row).outcome == coordinator_pb2.OUTCOME_COMMITTED
    assert system.judge(row)
    gtrid = system.begin_work(other := system.new_id())
    assert system.commit(gtrid).outcome == coordinator_pb2.OUTCOME_COMMITTED
    assert system.judge(other)
    refused = system.run(row)  # the row is there already
    assert refused.outcome == coordinator_pb2.OUTCOME_ROLLED_BACK
    assert refused.rejection.errno == 1062
    assert not system.ours()


@pytest.mark.parametrize("place", PLACES)
def test_killed_with_its_agents(system: System, place: str) -> None:
    row = system.new_id()
    system.restart_coordinator(**failpoints(f"{place}=kill", system.cluster.directory))
    with pytest.raises(grpc.RpcError):
        system.run(row)
    assert system.cluster.coordinator.wait() == -9, "the failpoint was not reached"
    system.cluster.start_coordinator()
    system.wait_until_clean()
    assert system.judge(row) == (PLACES[place] == "COMMITTED")
    assert system.run(system.new_id()).outcome == coordinator_pb2.OUTCOME_COMMITTED


@pytest.mark.engines("mariadb")
def test_a_server_that_is_away_holds_nobody_up_and_is_found_again(system: System) -> None:
    cluster = system.cluster
    cluster.coordinator.stop()
    server = cluster.sites["payments"].server
    server.kill()
    cluster.start_coordinator(wait=False)
    cluster.wait_until_ready()
    wait_for(lambda: cluster.metric("xacoord_participant_up", participant="orders") == 1, 10, cluster.tails)
    assert system.run(system.new_id(), names=("orders",)).outcome == coordinator_pb2.OUTCOME_COMMITTED
    [payments] = [
        p
        for p in json.loads(cluster.coordctl("participants", "-o", "json").stdout)["participants"]
        if p["participant"] == "payments"
    ]
    assert "cannot use the server" in payments["last_error"]
    server.start()
    cluster.wait_until_up()
    assert system.judge(system.run(row := system.new_id()) and row)
    # And when it goes while the agent works with it.
    server.kill()
    wait_for(lambda: cluster.metric("xacoord_participant_up", participant="payments") == 0, 10, cluster.tails)
    server.start()
    cluster.wait_until_up()
    assert system.judge(system.run(row := system.new_id()) and row)


# What changes nothing but the session itself. User locks are taken by a SELECT.
READS = re.compile(
    r"(SELECT(?!.*(_LOCK|SLEEP)\()|SHOW|XA RECOVER|SET (SESSION|NAMES|STATEMENT|autocommit))\b", re.I | re.S
)


@contextlib.contextmanager
def log_of_all_statements(system: System) -> Iterator[list[str]]:
    """What agents' accounts ask of the servers meanwhile."""
    servers = [site.server for site in system.cluster.sites.values()]
    texts: list[str] = []
    for server in servers:
        server.sql("SET GLOBAL log_output = 'TABLE'")
        server.sql("TRUNCATE TABLE mysql.general_log")
        server.sql("SET GLOBAL general_log = ON")
    yield texts
    for server in servers:
        server.sql("SET GLOBAL general_log = OFF")
        found = server.sql(
            "SELECT argument FROM mysql.general_log WHERE command_type = 'Query' AND user_host LIKE %s",
            (f"%{AGENT_USER}%",),
        )
        texts += [argument.decode() if isinstance(argument, bytes) else argument for (argument,) in found]


@pytest.mark.engines("mariadb")
def test_a_stopped_one_is_recovered_offline(system: System) -> None:
    cluster = system.cluster
    row = system.new_id()
    system.restart_coordinator(**failpoints("before_send_commit=kill", cluster.directory))
    gtrid = system.begin_work(row)
    with pytest.raises(grpc.RpcError):
        system.commit(gtrid)
    assert cluster.coordinator.wait() == -9
    with log_of_all_statements(system) as statements:
        plan = cluster.coordctl("recover", "--offline", "--config", str(cluster.config), "--dry-run")
    assert plan.stdout.count(gtrid) == 2
    assert len(system.ours()) == 2, "a plan changes nothing"
    assert any(text.startswith("XA RECOVER") for text in statements)
    assert [text for text in statements if not READS.match(text)] == [], "it is nobody's agent"
    cluster.coordctl("recover", "--offline", "--config", str(cluster.config))
    assert system.ours() == []
    assert system.judge(row)


@pytest.mark.engines("mariadb")
def test_a_lost_log_is_derived(make_system: Callable[..., System]) -> None:
    system = make_system(embedded=True)
    cluster = system.cluster
    assert system.run(system.new_id()).outcome == coordinator_pb2.OUTCOME_COMMITTED
    cluster.coordinator.stop()
    (cluster.directory / "log").rename(cluster.directory / "lost")
    done = cluster.coordctl("recover", "--derive", "--config", str(cluster.config), "--apply", "--yes")
    assert done.returncode == 0
    cluster.start_coordinator()
    assert system.judge(system.run(row := system.new_id()) and row)


def test_strangers_branches_survive(system: System) -> None:
    server = system.cluster.sites["orders"].server
    leave_prepared(server, "'stranger'", f"INSERT INTO orders.ledger VALUES ({system.new_id()}, 1)")
    system.restart_coordinator()
    assert system.run(system.new_id()).outcome == coordinator_pb2.OUTCOME_COMMITTED
    assert ("stranger" in [gtrid for _, gtrid, _ in system.cluster.prepared("orders")]) is True
    server.sql("XA ROLLBACK 'stranger'")


@pytest.mark.engines("mariadb")
def test_an_orderly_end_leaves_nothing(system: System) -> None:
    gtrid = system.begin_work(row := system.new_id())
    assert system.cluster.coordinator.stop() == 0
    for name in NAMES:
        assert row not in system.rows(name)
    system.restore()
    assert system.outcome(gtrid) == "ROLLED_BACK"


def _start(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coordinator.daemon", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('agent_config = "nowhere.toml"', "nowhere.toml"),
        ('agent_config = "agent-orders.toml"', "agent.participant is 'orders'"),
        ('agent_config = "broken.toml"', "broken.toml"),
        ('agent_config = "agent-payments.toml"\nagent = "127.0.0.1:1"', "one of them"),
        ("", "give agent or agent_config"),
    ],
)
@pytest.mark.engines("mariadb")
def test_a_wrong_file_is_refused(engine: Engine, tmp_path: Path, line: str, complaint: str) -> None:
    for name in NAMES:
        text = f'[agent]\nparticipant = "{name}"\n[mysql]\nuser = "nobody"\n'
        (tmp_path / f"agent-{name}.toml").write_text(text)
    (tmp_path / "broken.toml").write_text("[agent]\nparticipants = 'payments'\n")
    config = tmp_path / "coordinator.toml"
    config.write_text(
        f'[coordinator]\nid = "0001"\ndata_dir = "{tmp_path / "log"}"\nlisten = "127.0.0.1:0"\n'
        f'http_listen = ""\n[participants.payments]\n{line}\n'
    )
    done = _start(config)
    assert done.returncode == 78
    assert complaint in done.stderr
    assert not (tmp_path / "log").exists(), "nothing is begun"


@pytest.mark.engines("mariadb")
def test_statements_reach_the_agent_at_its_own_address(system: System) -> None:
    row = system.new_id()
    gtrid = system.coordinator.Begin(coordinator_pb2.BeginRequest(), timeout=10).gtrid
    system.execute("orders", gtrid, statement("INSERT INTO ledger (id, amount) VALUES (%s, %s)", row, 1))
    assert system.coordinator.Rollback(coordinator_pb2.RollbackRequest(gtrid=gtrid), timeout=10).outcome == (
        coordinator_pb2.OUTCOME_ROLLED_BACK
    )
    assert row not in system.rows("orders")
