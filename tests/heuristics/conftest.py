"""One whole system for each engine, with witness rows and without, for the tests of this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator.v1 import admin_pb2
from coordinator.v1 import coordinator_pb2 as pb
from deploy.engines import Engine
from deploy.private_cluster import Cluster
from tests.system.conftest import NAMES, System

_SETTINGS = "[transactions]\nrescan_every = 1.0\n[log]\nsegment_mib = 1\n"


def delete_rows(system: System, gtrid: str) -> None:
    """The witness rows of a transaction that is repaired; forget refuses what they would contradict."""
    for site in system.cluster.sites.values():
        site.server.sql("DELETE FROM xacoord.witness WHERE gtrid = %s", (gtrid,))


def forget_everything(system: System) -> None:
    """What a test that failed has left, so that the next one is judged by itself."""
    request = pb.ListRequest(states=[pb.STATE_HEURISTIC])
    for transaction in system.coordinator.List(request, timeout=10).transactions:
        if not transaction.forgotten:
            delete_rows(system, transaction.gtrid)
            system.admin.Forget(admin_pb2.ForgetRequest(gtrid=transaction.gtrid), timeout=10)


@pytest.fixture(scope="session")
def systems(engine: Engine) -> Iterator[Callable[[bool], System]]:
    """Gives the running system with witness rows, or the one without."""
    directory = Path(tempfile.mkdtemp(prefix="xacoord-heuristics-"))
    made: dict[bool, System] = {}

    def get(witness: bool) -> System:
        if witness not in made:
            agent_settings = "" if witness else "[witness]\nenabled = false\n"
            where = directory / ("with" if witness else "without")
            cluster = Cluster.create(engine, where, NAMES, settings=_SETTINGS, agent_settings=agent_settings)
            made[witness] = System(cluster)
            for name, site in cluster.sites.items():
                site.server.sql(f"CREATE TABLE {name}.ledger (id INT PRIMARY KEY, amount INT NOT NULL)")
            cluster.start()
        made[witness].restore()
        forget_everything(made[witness])
        return made[witness]

    yield get
    for system in made.values():
        system.cluster.close()
    shutil.rmtree(directory)


@pytest.fixture
def system(systems: Callable[[bool], System]) -> System:
    """The one with witness rows, everything running."""
    return systems(True)
