"""Many threads of one SDK on its streams, while daemons are killed: no wrong answer, and nobody hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from deploy.private_cluster import Process
from tests.system.conftest import INSERT, NAMES, System
from xacoord import Branch, InDoubt, RolledBack, Statement, TransactionManager, Unavailable

THREADS = 16

pytestmark = pytest.mark.engines("mariadb")


class Load:
    """Threads that write one row after another, each on both servers, and note what they hear."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.tm = TransactionManager.connect(system.cluster.address, timeout=3.0, grace=2.0)
        self.told: dict[int, str] = {}
        self.unexpected: list[BaseException] = []
        self.streams = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _work(self, number: int) -> None:
        while not self._stop.is_set():
            row = self.system.new_id()
            try:
                self._one(row, number % 3)
                self.told[row] = "COMMITTED"
            except (RolledBack, Unavailable):
                self.told[row] = "ROLLED_BACK"
            except InDoubt:
                self.told[row] = "UNKNOWN"
            except BaseException as error:
                self.unexpected.append(error)
                return
            if self.told[row] != "COMMITTED":
                time.sleep(0.02)

    def _one(self, row: int, way: int) -> None:
        if way == 2:
            with self.tm.transaction() as transaction:
                for name in NAMES:
                    transaction.branch(name).execute(INSERT, (row, 1))
            return
        branches = [Branch(name, [Statement(INSERT, (row, 1))]) for name in NAMES]
        self.tm.run(branches, idempotency_key=f"streams-{row}" if way else None)

    def committed(self) -> int:
        return list(self.told.values()).count("COMMITTED")

    def goes_on(self) -> None:
        """Until 50 more have committed, over streams."""
        before, deadline = self.committed(), time.monotonic() + 20
        while self.committed() < before + 50:
            assert time.monotonic() < deadline, f"{self.unexpected}\n{self.system.cluster.tails()}"
            time.sleep(0.02)
        streams = [line._stream for line in self.tm._session.driver._lines.values()]
        self.streams += any(stream is not None and stream.usable for stream in streams)

    def end(self) -> None:
        """Nobody hangs, and everybody was told the truth."""
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in self._threads), "a caller hangs"
        assert self.unexpected == []
        self.system.wait_until_clean()
        deadline = time.monotonic() + 15
        while self.system.rows(NAMES[0]) != self.system.rows(NAMES[1]):  # locks of the deadline's rollbacks
            assert time.monotonic() < deadline
            time.sleep(0.1)
        there = self.system.rows(NAMES[0])
        wrong = {
            row: told
            for row, told in self.told.items()
            if told != "UNKNOWN" and (row in there) != (told == "COMMITTED")
        }
        assert wrong == {}
        self.tm.close()


@pytest.fixture
def load(system: System) -> Iterator[Load]:
    made = Load(system)
    yield made
    made._stop.set()


def _coordinator(system: System) -> Process:
    return system.cluster.coordinator


def _agent(system: System) -> Process:
    return system.cluster.sites["payments"].agent


@pytest.mark.parametrize("which", [_coordinator, _agent], ids=["coordinator", "agent"])
@pytest.mark.parametrize("way", ["kill", "stop"])
def test_a_daemon_goes_and_comes_back(
    system: System, load: Load, which: Callable[[System], Process], way: str
) -> None:
    load.goes_on()
    for _ in range(2):
        process = which(system)
        getattr(process, way)()
        time.sleep(0.1)
        system.restore()
        load.goes_on()
    load.end()
    assert load.streams >= 2, "the streams are opened again"
