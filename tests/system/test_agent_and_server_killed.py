"""kill -9 of an agent, and of the database server itself, at the decisive moments.

A held failpoint stops the agent at the place; then the agent, or its server, is killed with SIGKILL and
started again. Afterwards both servers agree, nothing is left prepared, and nobody was told otherwise.
"""

from __future__ import annotations

import threading

import grpc
import pytest

from coordinator.v1 import coordinator_pb2
from deploy.private_cluster import wait_for
from tests.system.conftest import System, failpoints

PLACES = ("before_prepare", "after_prepare", "before_commit", "after_commit")


class Caller(threading.Thread):
    """Commits in the background and keeps what it was told."""

    def __init__(self, system: System, gtrid: str) -> None:
        super().__init__(daemon=True)
        self._system = system
        self._gtrid = gtrid
        self.told = "UNKNOWN"

    def run(self) -> None:
        try:
            response = self._system.commit(self._gtrid)
        except grpc.RpcError:
            return
        self.told = coordinator_pb2.Outcome.Name(response.outcome).removeprefix("OUTCOME_")


def _hold_at(system: System, place: str) -> tuple[int, str, Caller]:
    """A transaction whose branch at `payments` is held at `place`."""
    site = system.cluster.sites["payments"]
    site.agent.kill()
    site.agent.start(**failpoints(f"{place}=pause", system.cluster.directory))
    system.cluster.wait_until_up()
    row = system.new_id()
    gtrid = system.begin_work(row)
    caller = Caller(system, gtrid)
    caller.start()
    hit = system.cluster.directory / f"{place}.hit"
    wait_for(hit.exists, 10, lambda: f"{place} was not reached\n{system.cluster.tails()}")
    return row, gtrid, caller


def _check(system: System, row: int, gtrid: str, caller: Caller) -> None:
    system.wait_until_clean()
    caller.join(20)
    assert not caller.is_alive()
    committed = system.judge(row)
    if caller.told != "UNKNOWN":
        assert caller.told == ("COMMITTED" if committed else "ROLLED_BACK")
    wait_for(
        lambda: system.outcome(gtrid) == ("COMMITTED" if committed else "ROLLED_BACK"),
        10,
        lambda: f"Get says {system.outcome(gtrid)}, the row is {'there' if committed else 'not there'}",
    )
    system.cluster.wait_until_up()
    system.run(system.new_id())


@pytest.mark.parametrize("place", PLACES)
def test_agent(system: System, place: str) -> None:
    row, gtrid, caller = _hold_at(system, place)
    agent = system.cluster.sites["payments"].agent
    agent.kill()
    agent.start()
    _check(system, row, gtrid, caller)
    assert system.judge(row) == (place in ("before_commit", "after_commit"))


@pytest.mark.parametrize("place", PLACES)
def test_server(system: System, place: str) -> None:
    row, gtrid, caller = _hold_at(system, place)
    server = system.cluster.sites["payments"].server
    server.kill()
    (system.cluster.directory / f"{place}.go").touch()
    server.start()
    _check(system, row, gtrid, caller)
    assert place == "after_prepare" or system.judge(row) == (place in ("before_commit", "after_commit"))


def test_everything_at_once(system: System) -> None:
    """Power failure: all processes die between the decision and phase 2."""
    cluster = system.cluster
    row = system.new_id()
    system.restart_coordinator(**failpoints("before_send_commit=kill", cluster.directory))
    gtrid = system.begin_work(row)
    with pytest.raises(grpc.RpcError):
        system.commit(gtrid)
    assert cluster.coordinator.wait() == -9
    for site in cluster.sites.values():
        site.agent.kill()
        site.server.kill()
    system.restore()
    system.wait_until_clean()
    assert system.judge(row)
    assert system.outcome(gtrid) == "COMMITTED"
