"""kill -9 at every named place of coordinator, agent and client; of servers meanwhile; of several at once.

Real processes, bank transfers, and a judge that shares no code with the system. The test's name says engine,
victim, holder of the place, place and seed; a failure prints what is wrong and the ends of logs and ledgers.
"""

from __future__ import annotations

from tests import tiers
from tests.crash_matrix.conftest import EngineCell, Matrix


def test_run(matrix: Matrix, engine_cell: EngineCell) -> None:
    report = matrix.report(engine_cell)
    assert report.good, "\n".join([*report.violations, report.error, report.tails])
    tiers.count("crash matrix: runs")
