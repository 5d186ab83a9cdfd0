"""One system with proxies in all its links for each engine; every test gets it whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.engines import Engine
from tests.network.net import Net


class Nets:
    """The systems of a session, made when first asked for."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="xacoord-net-"))
        self._nets: dict[Engine, Net] = {}

    def whole(self, engine: Engine) -> Net:
        """The system of an engine, with everything running and nothing broken."""
        if engine not in self._nets:
            self._nets[engine] = Net(engine, self._directory / engine)
        self._nets[engine].restore()
        return self._nets[engine]

    def close(self) -> None:
        for net in self._nets.values():
            net.close()
        shutil.rmtree(self._directory)


@pytest.fixture(scope="session")
def nets() -> Iterator[Nets]:
    """The systems of this session."""
    made = Nets()
    yield made
    made.close()


@pytest.fixture
def net(nets: Nets, engine: Engine) -> Net:
    """A whole system; the test runs once for each engine."""
    return nets.whole(engine)


@pytest.fixture
def any_net(nets: Nets, request: pytest.FixtureRequest) -> Net:
    """A whole system, for tests that no server's make can change."""
    return nets.whole(request.config.getoption("--engine") or "mariadb")
