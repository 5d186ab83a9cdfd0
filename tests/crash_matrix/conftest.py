"""The matrix as tests: one item a run, done by one thread an engine, so that one works while the other waits.

A test only waits for its run's report. What is selected (-k, --engine) is what is run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import get_args

import pytest

from deploy.engines import Engine
from tests.crash_matrix.matrix import work
from tests.crash_matrix.places import Cell, choose
from tests.crash_matrix.run import Report

RUNS_PER_ENGINE = 140
SEEDS: dict[Engine, int] = {"mysql": 1, "mariadb": 2}

EngineCell = tuple[Engine, Cell]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine_cell" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--engine")
        engines: tuple[Engine, ...] = (chosen,) if chosen else get_args(Engine)
        found = [(engine, cell) for engine in engines for cell in choose(RUNS_PER_ENGINE, SEEDS[engine])]
        metafunc.parametrize("engine_cell", found, ids=[f"{engine}-{cell}" for engine, cell in found])


class Matrix:
    """The reports to come."""

    def __init__(self, chosen: list[EngineCell]) -> None:
        self._reports: dict[EngineCell, Future[Report]] = {key: Future() for key in chosen}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name=f"matrix {engine}")
            for engine in sorted({engine for engine, _ in chosen})
        ]
        for thread in self._threads:
            thread.start()

    def report(self, key: EngineCell) -> Report:
        """The report of a run, once it is done."""
        return self._reports[key].result()

    def close(self) -> None:
        """Begin no further runs, and wait."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, engine: Engine) -> None:
        cells = [cell for other, cell in self._reports if other == engine]
        try:
            work(
                engine,
                cells,
                SEEDS[engine],
                lambda report: self._reports[engine, report.cell].set_result(report),
                self._stop.is_set,
            )
        except BaseException as error:  # a cluster that does not start: nobody may wait for ever
            for (other, _), future in self._reports.items():
                if other == engine and not future.done():
                    future.set_exception(error)


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    """All selected runs, under way."""
    chosen: list[EngineCell] = []
    for item in request.session.items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "engine_cell" in params:
            chosen.append(params["engine_cell"])
    made = Matrix(chosen)
    yield made
    made.close()
