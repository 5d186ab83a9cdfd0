"""A participant's server with a small shop, and an agent for it, on both engines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.private_servers import PrivateServer
from tests.participant_agent.agent_support import AgentProcess

SHOP = (
    "CREATE DATABASE IF NOT EXISTS shop",
    "CREATE TABLE IF NOT EXISTS shop.a (id INT PRIMARY KEY, v INT NOT NULL) ENGINE = InnoDB",
    "REPLACE INTO shop.a VALUES (1, 0), (2, 0), (3, 0), (4, 0), (5, 0)",
)


def open_shop(server: PrivateServer) -> None:
    """Create the tables that branches work on."""
    for sql in SHOP:
        server.sql(sql)


@pytest.fixture(scope="session")
def agent_directory() -> Iterator[Path]:
    """Where agents keep sockets; its path is short."""
    with tempfile.TemporaryDirectory(prefix="xa-agent-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def shop(engine: str, server_pool: Any) -> PrivateServer:
    """The shared server of an engine."""
    (server,) = server_pool.shared(engine, 1)
    open_shop(server)
    return server  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def agent(
    shop: PrivateServer, engine: str, agent_directory: Path, request: pytest.FixtureRequest
) -> Iterator[AgentProcess]:
    """An agent that runs for a whole test module."""
    name = f"shared-{engine}-{request.module.__name__[-8:].strip('_')}"
    process = AgentProcess(shop, agent_directory / name, name, "[sessions]\nlock_wait_seconds = 1\n")
    process.start()
    yield process
    process.stop()
    process.print_log()


@pytest.fixture
def new_agent(agent_directory: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Makes agents of a test's own (not started)."""
    made: list[AgentProcess] = []

    def make(server: PrivateServer, participant: str = "", extra: str = "") -> AgentProcess:
        name = participant or f"own{len(list(agent_directory.iterdir()))}"
        process = AgentProcess(server, agent_directory / name, name, extra)
        made.append(process)
        return process

    yield make
    for process in made:
        process.stop()
        process.print_log()  # shown where the test failed
