"""Three participants whose lock wait time-out is long: what ends sooner was found, not timed out."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.engines import Engine
from deploy.private_cluster import Cluster, wait_for
from xacoord import Transaction, TransactionManager

NAMES = ("north", "south", "west")
LOCK_WAIT_SECONDS = 40
# A liveness bound, far below the lock wait time-out and far above what anything here takes.
PATIENCE_SECONDS = 20.0
ROWS = range(1, 100)
BUMP = "UPDATE account SET balance = balance + 1 WHERE id = %s"


class Work(threading.Thread):
    """Something that may have to wait, beside the test; `result` waits for it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._function = lambda: function(*arguments)
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """What it returned, or raises what it raised."""
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive(), "it still waits"
        if self._error is not None:
            raise self._error
        return self._result


class Field:
    """A running cluster, and rows for one test."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.manager = TransactionManager.connect(cluster.address, timeout=60)
        self._rows = iter(ROWS)

    def row(self) -> int:
        """A row at each participant that no other test uses."""
        return next(self._rows)

    def begin(self) -> Transaction:
        return self.manager.transaction().begin()

    def waits(self, gtrid: str, participant: str) -> list[dict[str, Any]]:
        """What the branch waits for, as coordctl shows it."""
        document: Any = self.cluster.coordctl_json("show", gtrid)
        branches = document["transaction"]["branches"]
        return next((list(b["waits_for"]) for b in branches if b["participant"] == participant), [])

    def wait_until_it_waits(self, gtrid: str, participant: str) -> list[dict[str, Any]]:
        """Until it is told that the branch waits; for whom."""
        wait_for(
            lambda: bool(self.waits(gtrid, participant)),
            PATIENCE_SECONDS,
            lambda: f"{gtrid} waits for nothing\n{self.cluster.tails()}",
        )
        return self.waits(gtrid, participant)

    def balance(self, participant: str, row: int) -> int:
        server = self.cluster.sites[participant].server
        return int(server.sql(f"SELECT balance FROM {participant}.account WHERE id = {row}")[0][0])

    def deadlocks(self) -> float:
        return self.cluster.metric("xacoord_deadlocks_total") or 0.0


def bump(transaction: Transaction, participant: str, row: int) -> None:
    """Change a row; its lock is held until the end."""
    transaction.branch(participant).execute(BUMP, (row,), expect_rows=1)


@pytest.fixture(scope="module")
def make_field(engine: Engine) -> Iterator[Callable[..., Field]]:
    """Starts clusters that live as long as the module."""
    directory = Path(tempfile.mkdtemp(prefix="xacoord-contention-"))
    clusters: list[Cluster] = []

    def make(
        lock_wait_seconds: int = LOCK_WAIT_SECONDS,
        prepare: Callable[[Cluster], None] | None = None,
        embedded: bool = False,
    ) -> Field:
        cluster = Cluster.create(
            engine,
            directory / str(len(clusters)),
            NAMES,
            agent_settings=f"[sessions]\nlock_wait_seconds = {lock_wait_seconds}\n",
            embedded=embedded,
        )
        clusters.append(cluster)
        for name, site in cluster.sites.items():
            site.server.sql(f"CREATE TABLE {name}.account (id INT PRIMARY KEY, balance INT NOT NULL)")
            rows = ", ".join(f"({row}, 0)" for row in ROWS)
            site.server.sql(f"INSERT INTO {name}.account VALUES {rows}")
        if prepare is not None:
            prepare(cluster)
        cluster.start()
        return Field(cluster)

    yield make
    for cluster in clusters:
        cluster.close()
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def field(make_field: Callable[..., Field]) -> Field:
    return make_field()


@pytest.fixture(scope="module")
def embedded(make_field: Callable[..., Field]) -> Field:
    """The agents live in the coordinator's process."""
    return make_field(embedded=True)


@pytest.fixture(params=["field", "embedded"])
def anywhere(engine: Engine, request: pytest.FixtureRequest) -> Field:
    """Both, one after the other."""
    found: Field = request.getfixturevalue(request.param)
    return found
