"""Other branches that end behind our back: an orphan, a one-phase commit, one whose evidence was purged."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from coordinator.v1 import coordinator_pb2 as pb
from deploy.private_cluster import Process, wait_for
from tests.heuristics.conftest import delete_rows
from tests.heuristics.person import end_by_hand, end_sessions
from tests.system.conftest import System, failpoints


def restart_agent(system: System, name: str, points: str = "") -> Path:
    """Start one agent anew, with failpoints; their directory."""
    cluster = system.cluster
    agent: Process = cluster.sites[name].agent
    agent.kill()
    wait_for(lambda: cluster.metric("xacoord_participant_up", participant=name) == 0, 15, cluster.tails)
    agent.start(**(failpoints(points, cluster.directory) if points else {}))
    wait_for(lambda: cluster.metric("xacoord_participant_up", participant=name) == 1, 15, cluster.tails)
    return cluster.directory


def until_heuristic(system: System, gtrid: str) -> None:
    """Until the transaction is listed as heuristic."""
    get = pb.GetRequest(gtrid=gtrid)

    def found() -> bool:
        state = system.coordinator.Get(get, timeout=5).transaction.state
        return state == pb.STATE_HEURISTIC and system.has_ended(gtrid)

    wait_for(found, 15, system.cluster.tails)


@pytest.mark.parametrize("verb", ["commit", "rollback"])
def test_an_orphan(system: System, verb: str) -> None:
    """Its PREPARE record was lost with the process, so only the scan knows it; a person is quicker than the
    rollback, which waits until every participant has been heard."""
    cluster = system.cluster
    points = "before_write_prepare=drop,before_force_commit=kill"
    system.restart_coordinator(**failpoints(points, cluster.directory))
    row = system.new_id()
    gtrid = system.begin_work(row)
    with pytest.raises(grpc.RpcError):
        system.commit(gtrid)
    assert cluster.coordinator.wait() == -9
    assert len(system.ours()) == 2
    cluster.sites["payments"].agent.kill()
    cluster.start_coordinator(wait=False)
    cluster.wait_until_ready()
    wait_for(lambda: cluster.metric("xacoord_orphan_branches", participant="orders") == 1, 10, cluster.tails)
    assert system.outcome(gtrid) == "UNKNOWN"
    end_by_hand(cluster.sites["orders"].server, verb, gtrid)
    cluster.sites["payments"].agent.start()
    system.wait_until_clean()
    assert (row in system.rows("orders"), row in system.rows("payments")) == (verb == "commit", False)
    if verb == "rollback":
        wait_for(lambda: system.outcome(gtrid) == "ROLLED_BACK", 10, cluster.tails)
        return
    until_heuristic(system, gtrid)
    assert system.outcome(gtrid) == "HEURISTIC_MIXED"
    count = cluster.metric("xacoord_heuristic_outcomes_total", participant="orders", kind="commit")
    assert count == 1
    cluster.coordinator.kill()
    cluster.start_coordinator()
    assert system.outcome(gtrid) == "HEURISTIC_MIXED"
    delete_rows(system, gtrid)
    cluster.coordctl("forget", gtrid, "--yes")


@pytest.mark.parametrize("witness", [True, False])
def test_one_phase(systems: Callable[[bool], System], witness: bool) -> None:
    """Undone in time. On MySQL it is never prepared: all that a person can do is to end its session. On
    MariaDB it is prepared for a moment, and a person can roll it back, against the decision to commit."""
    system = systems(witness)
    undone = {"mysql": "ROLLED_BACK", "mariadb": "HEURISTIC_ROLLBACK"}[system.cluster.engine]
    outcome = undone if witness else "HEURISTIC_HAZARD"
    cluster = system.cluster
    directory = restart_agent(system, "orders", "before_commit_one_phase=pause")
    row = system.new_id()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(system.run, row, ("orders",))
        wait_for((directory / "before_commit_one_phase.hit").exists, 10, cluster.tails)
        server = cluster.sites["orders"].server
        for _, gtrid, _ in cluster.prepared("orders"):
            end_by_hand(server, "rollback", gtrid)
        end_sessions(server)
        (directory / "before_commit_one_phase.go").touch()
        response = answer.result(30)
    assert pb.Outcome.Name(response.outcome) == f"OUTCOME_{outcome}"
    assert row not in system.rows("orders")
    kept_until_forgotten(system, response.gtrid, outcome)


@pytest.mark.parametrize(("witness", "outcome"), [(True, "COMMITTED"), (False, "HEURISTIC_HAZARD")])
def test_one_phase_without_an_answer(systems: Callable[[bool], System], witness: bool, outcome: str) -> None:
    """It has committed, and the agent dies with the answer: the witness row tells, or nobody knows."""
    system = systems(witness)
    agent = system.cluster.sites["orders"].agent
    restart_agent(system, "orders", "after_commit_one_phase=kill")
    row = system.new_id()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(system.run, row, ("orders",))
        assert agent.wait() == -9
        agent.start()
        response = answer.result(30)
    assert pb.Outcome.Name(response.outcome) == f"OUTCOME_{outcome}"
    assert row in system.rows("orders")
    kept_until_forgotten(system, response.gtrid, outcome)


def kept_until_forgotten(system: System, gtrid: str, outcome: str) -> None:
    """A heuristic outcome is in the log, although nothing else of a one-phase commit is."""
    heuristic = outcome.startswith("HEURISTIC")
    system.restart_coordinator()
    request = pb.ListRequest(states=[pb.STATE_HEURISTIC])
    listed = system.coordinator.List(request, timeout=10).transactions
    assert [found.gtrid for found in listed] == ([gtrid] if heuristic else [])
    assert system.outcome(gtrid) == outcome
    if heuristic:
        system.cluster.coordctl("forget", gtrid, "--yes")


@pytest.mark.parametrize(
    ("verb", "row_is_there", "outcome"),
    [
        ("commit", True, "COMMITTED"),  # a row that can be read is proof, whatever was purged
        ("commit", False, "HEURISTIC_HAZARD"),
        ("rollback", False, "HEURISTIC_HAZARD"),  # a missing row proves nothing any more
    ],
)
def test_purged(system: System, verb: str, row_is_there: bool, outcome: str) -> None:
    """Evidence that may have been purged is no evidence. The coordinator never lets that happen to an open
    transaction; somebody with SQL can."""
    cluster = system.cluster
    system.restart_coordinator(**failpoints("before_send_commit=kill", cluster.directory))
    row = system.new_id()
    gtrid = system.begin_work(row)
    with pytest.raises(grpc.RpcError):
        system.commit(gtrid)
    assert cluster.coordinator.wait() == -9
    server, agent = cluster.sites["orders"].server, cluster.sites["orders"].agent
    agent.kill()
    end_by_hand(server, verb, gtrid)
    server.sql("UPDATE xacoord.coordinator SET purged_to = %s", (gtrid[:-1] + "~",))
    if not row_is_there:
        server.sql("DELETE FROM xacoord.witness WHERE gtrid = %s", (gtrid,))
    agent.start()
    cluster.start_coordinator()
    system.wait_until_clean()
    wait_for(lambda: system.has_ended(gtrid), 15, cluster.tails)
    assert system.outcome(gtrid) == outcome
    assert (row in system.rows("orders"), row in system.rows("payments")) == (verb == "commit", True)
    if outcome == "HEURISTIC_HAZARD":
        kinds = {
            kind: cluster.metric("xacoord_heuristic_outcomes_total", participant="orders", kind=kind)
            for kind in ("commit", "rollback", "hazard")
        }
        assert kinds == {"commit": 0, "rollback": 0, "hazard": 1}
        cluster.coordctl("forget", gtrid, "--yes")
    agent.kill()
    server.sql("UPDATE xacoord.coordinator SET purged_to = ''")
    agent.start()
