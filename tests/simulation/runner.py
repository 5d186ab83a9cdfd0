"""Runner: one seed is one run, and the same seed is the same run."""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from tests.simulation.loop import NothingLeft, SimulatedLoop, Spinning
from tests.simulation.process import Killed
from tests.simulation.trace import Trace
from tests.simulation.world import World, unwind

_COLLECT_EVERY = 20
_runs = 0


@dataclass
class Result:
    """What came of a run.

    Attributes:
        violations: broken promises, in words.
        counters: what happened how often.
        digest: of the trace, where it was on.
        lines: the trace, where it was kept.
    """

    seed: int
    violations: list[str]
    counters: Counter[str]
    digest: str = ""
    lines: list[str] = field(default_factory=list)


class _Errors:
    """structlog's logger for the run: exceptions that daemons log are violations, the rest is nothing."""

    def __init__(self, world: World) -> None:
        self._world = world

    def bind(self, **values: Any) -> _Errors:
        return self

    def _nothing(self, event: str = "", **values: Any) -> None:
        pass

    debug = info = warning = error = _nothing

    def exception(self, event: str, **values: Any) -> None:
        self._world.oracle.violated_by_exception(event)


@contextmanager
def _logging_to(world: World) -> Iterator[None]:
    before = structlog.get_config()
    errors = _Errors(world)
    structlog.configure(
        processors=[],
        wrapper_class=lambda *args, **kwargs: errors,  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def run(seed: int, trace: bool = False, keep: bool = False) -> Result:
    """One run.

    Args:
        seed: says everything about it.
        trace: make the digest of what happens.
        keep: keep the trace's lines.
    """
    global _runs
    _runs += 1
    was_enabled = gc.isenabled()
    gc.disable()  # when it collects, and so finalizes, is not the seed's to say
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # its process died just then
        try:
            return _run(seed, trace or keep, keep)
        finally:
            if was_enabled:
                gc.enable()
            if _runs % _COLLECT_EVERY == 0:
                gc.collect()


def _run(seed: int, trace: bool, keep: bool) -> Result:
    loop = SimulatedLoop()
    recorder = Trace(loop, trace, keep)
    world = World(seed, loop, recorder)
    with _logging_to(world):
        try:
            loop.run_until_complete(world.run())
        except NothingLeft:
            world.oracle.violated("LIVENESS", "nothing will ever happen again")
        except Spinning:
            world.oracle.violated("LIVENESS", f"something spins at {loop.time()}")
        except Exception:
            world.oracle.violated_by_exception("the simulation itself")
        for task in loop.tasks:
            if task.done() and not task.cancelled() and task._log_traceback:  # type: ignore[attr-defined]
                error = task.exception()
                # Who was to hear of it may have died at that moment.
                process_is_alive = task.process is None or task.process.alive
                if process_is_alive and not isinstance(error, Killed):
                    world.oracle.violated("ERROR", f"a task died: {error!r} {task.get_coro()}")
        for text in loop.errors:
            world.oracle.violated("ERROR", text)
        violations = list(world.oracle.violations)
        world.end()
        unwind(loop)
    loop.close()
    return Result(seed, violations, world.counters, recorder.digest if trace else "", recorder.lines)
