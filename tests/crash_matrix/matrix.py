"""Matrix: does cells one after the other on one rig, and gives a new rig to what follows a failure."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable

from deploy.engines import Engine
from deploy.interruption import scratch
from tests.crash_matrix.places import Cell
from tests.crash_matrix.rig import Rig
from tests.crash_matrix.run import Report, perform


def work(
    engine: Engine,
    cells: Iterable[Cell],
    seed: int,
    tell: Callable[[Report], None],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Do the cells and tell the report of each; none is begun once `stop` says so."""
    with scratch("xacoord-matrix-") as directory:
        rig: Rig | None = None
        rigs = 0
        try:
            for cell in cells:
                if stop():
                    return
                if rig is None:
                    rig = Rig(engine, directory / str(rigs), seed + rigs)
                    rigs += 1
                report = _report(rig, cell)
                if not report.good:
                    rig.close()
                    rig = None
                tell(report)
        finally:
            if rig is not None:
                rig.close()


def _report(rig: Rig, cell: Cell) -> Report:
    started = time.monotonic()
    violations: list[str] = []
    error = ""
    try:
        violations = perform(rig, cell)
    except Exception:
        error = traceback.format_exc()
    tails = rig.tails() if violations or error else ""
    return Report(cell, tuple(violations), error, tails, time.monotonic() - started)
