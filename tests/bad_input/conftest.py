"""One cluster of each engine for the whole folder; after each test the logs, after each module the daemons
are looked at."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.engines import Engine
from deploy.private_cluster import Cluster
from tests.bad_input.support import NAMES, System

_SETTINGS = "[transactions]\nrescan_every = 0.5\n"
_AGENT_SETTINGS = "[limits]\nresult_rows = 2000\nresult_bytes = 100000\n"


@pytest.fixture(scope="session")
def systems() -> Iterator[Callable[[Engine], System]]:
    """Makes the engine's system when it is first asked for."""
    directory = Path(tempfile.mkdtemp(prefix="xacoord-bad-"))
    made: dict[Engine, System] = {}

    def make(engine: Engine) -> System:
        if engine not in made:
            cluster = Cluster.create(
                engine, directory / engine, NAMES, settings=_SETTINGS, agent_settings=_AGENT_SETTINGS
            )
            try:
                for name, site in cluster.sites.items():
                    site.server.sql(f"CREATE TABLE {name}.ledger (id INT PRIMARY KEY, amount INT NOT NULL)")
                cluster.start()
            except BaseException:
                cluster.close()
                raise
            made[engine] = System(cluster)
        return made[engine]

    yield make
    for system in made.values():
        system.close()
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def mariadb(systems: Callable[[Engine], System]) -> System:
    return systems("mariadb")


@pytest.fixture(scope="module")
def alive(mariadb: System) -> Iterator[System]:
    """MariaDB's system; when the module is over everything must still work."""
    yield mariadb
    mariadb.check_alive()


@pytest.fixture
def system(alive: System) -> Iterator[System]:
    """The same; after each test the daemons' logs must show no error of their own."""
    yield from alive.watched()


@pytest.fixture(scope="module")
def each_alive(systems: Callable[[Engine], System], engine: Engine) -> Iterator[System]:
    """Either engine's system; when the module is over everything must still work."""
    made = systems(engine)
    yield made
    made.check_alive()


@pytest.fixture
def each_system(each_alive: System) -> Iterator[System]:
    """The same; after each test the daemons' logs must show no error of their own."""
    yield from each_alive.watched()
