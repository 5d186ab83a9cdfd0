"""Database servers for the tests, and the rule that a test which did not run is not a test that passed.

Tests that ask for `engine` (directly or through `two_servers`, `new_server`) run once with MySQL and once
with MariaDB; both have to be there. Where the engine plays no part in what is tested, a marker names one:
`engines("mariadb")`. Shared servers start once per session; a test uses databases of its own
name on them and leaves them running. A test that kills, freezes or reconfigures asks `new_server` for a
server of its own (about a second each).

Our daemons are forked from a nursery (tests/nursery.py), which spares each start half a second of imports; a
module that asks for `started_by_exec` starts them as users do.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from deploy import processes
from deploy.engines import Engine
from deploy.private_servers import PrivateServer
from tests.nursery import Nursery

ENGINES: tuple[Engine, ...] = get_args(Engine)


def pytest_configure() -> None:
    # What a shell starts in the background ignores Ctrl-C, and so would all that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=ENGINES, help="run tests of one database engine only (by hand)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--engine")
        marker = metafunc.definition.get_closest_marker("engines")
        engines = [chosen] if chosen else marker.args if marker is not None else ENGINES
        metafunc.parametrize("engine", engines, indirect=True, scope="session")


class ServerPool:
    """Servers below one temporary directory; `close` ends them all and removes it."""

    def __init__(self) -> None:
        # Not pytest's tmp_path: paths of unix sockets must be short, and nobody needs the data afterwards.
        self._directory = Path(tempfile.mkdtemp(prefix="xacoord-tests-"))
        self._servers: list[PrivateServer] = []
        self._shared: dict[Engine, list[PrivateServer]] = {}

    def new(self, engine: Engine, **arguments: Any) -> PrivateServer:
        """A running server of one's own; `arguments` as those of PrivateServer.create."""
        directory = self._directory / f"{engine}-{len(self._servers)}"
        server = PrivateServer.create(engine, directory, **arguments)
        self._servers.append(server)
        server.start()
        return server

    def shared(self, engine: Engine, count: int) -> tuple[PrivateServer, ...]:
        """The first `count` shared servers of an engine, started when first asked for."""
        servers = self._shared.setdefault(engine, [])
        while len(servers) < count:
            servers.append(self.new(engine))
        return tuple(servers[:count])

    def close(self) -> None:
        for server in self._servers:
            server.close()
        shutil.rmtree(self._directory)


@pytest.fixture(scope="session", autouse=True)
def nursery() -> Iterator[Nursery]:
    """Where this process has its daemons forked; its helper starts when the first one is wanted."""
    nursery = Nursery()
    processes.fork = nursery.fork
    yield nursery
    processes.fork = None
    nursery.close()


@pytest.fixture(scope="module")
def started_by_exec(nursery: Nursery) -> Iterator[None]:
    """The module's daemons start as they do elsewhere: by exec, each with a Python of its own."""
    processes.fork = None
    yield
    processes.fork = nursery.fork


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    """The database engine; every test that uses it runs once for each."""
    chosen: Engine = request.param
    return chosen


@pytest.fixture(scope="session")
def server_pool() -> Iterator[ServerPool]:
    """The session's shared servers."""
    pool = ServerPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def two_servers(server_pool: ServerPool, engine: Engine) -> tuple[PrivateServer, PrivateServer]:
    """Two shared servers of the engine."""
    first, second = server_pool.shared(engine, 2)
    return first, second


@pytest.fixture
def new_server(engine: Engine) -> Iterator[Callable[..., PrivateServer]]:
    """Makes running servers that are the test's own: `new_server(options={...}, binlog=False)`."""
    pool = ServerPool()
    yield lambda **arguments: pool.new(engine, **arguments)
    pool.close()


# --- A skip is not a pass ---

_not_run: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped or hasattr(report, "wasxfail"):
        _not_run.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _not_run.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _not_run and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _not_run:
        terminalreporter.section("skipped or expected to fail: the run is red", red=True)
        for nodeid in _not_run:
            terminalreporter.line(nodeid)
