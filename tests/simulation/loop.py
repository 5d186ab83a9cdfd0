"""The twin of the event loop: its clock jumps to the next timer when nobody can run.

Fault model: none. Time passes only when nothing is ready, callbacks run in the order in which they were
scheduled, timers of the same moment in the order in which they were set. There is no I/O, no thread and no
executor: who asks for one gets an error. What belongs to a process that was killed never runs, and what
belongs to one that is frozen runs when it is thawed (process.py).
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.process import CURRENT, Killed, Process

_Context = contextvars.Context | None


class SimulatedTask(asyncio.Task[Any]):
    """A task whose hash is a number: sets of tasks are walked in the same order in each run."""

    def __init__(self, number: int, coroutine: Any, loop: SimulatedLoop, context: _Context) -> None:
        self._number = number
        self.process = context.get(CURRENT) if context is not None else CURRENT.get()
        super().__init__(coroutine, loop=loop, name=f"task-{number}", context=context)

    def __hash__(self) -> int:
        return self._number


class SimulatedFuture(asyncio.Future[Any]):
    """The same for futures."""

    def __init__(self, number: int, loop: SimulatedLoop) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


MAX_STEPS = 2_000_000  # a run takes some ten thousand


class Spinning(Exception):
    """So much happens in one run that something runs in circles."""


class NothingLeft(Exception):
    """Nobody can run and no timer is set: what is waited for never comes."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """The loop. `errors` is what callbacks and tasks raised and nobody took."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._numbers = 0
        self._timers: list[tuple[float, int, events.TimerHandle]] = []
        self._soon: deque[events.Handle] = deque()
        self.tasks: list[SimulatedTask] = []
        self.errors: list[str] = []
        self.steps = 0
        self.set_exception_handler(self._note_error)

    # time

    def time(self) -> float:
        return self._now

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: _Context = None
    ) -> events.TimerHandle:
        handle = events.TimerHandle(when, callback, args, self, context)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: _Context = None
    ) -> events.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: _Context = None) -> events.Handle:
        handle = events.Handle(callback, args, self, context)
        self._soon.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # there is one thread

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        pass  # it is dropped when its time comes

    def _run_once(self) -> None:
        soon = self._soon
        while not self._stopping:  # type: ignore[attr-defined]
            if not soon:
                self._advance()
            handle = soon.popleft()
            if handle._cancelled:
                continue
            process: Process | None = handle._context.get(CURRENT)  # type: ignore[attr-defined]
            if process is not None and process.halted:
                process.keep(handle)
                continue
            self.steps += 1
            handle._run()
            if self.steps > MAX_STEPS:
                raise Spinning

    def _advance(self) -> None:
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not timers:
            raise NothingLeft
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            handle = heapq.heappop(timers)[2]
            if not handle._cancelled:
                self._soon.append(handle)

    def put_back(self, handles: list[events.Handle]) -> None:
        """What a frozen process missed runs now."""
        self._soon.extend(handles)

    # tasks

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: object = None, context: _Context = None
    ) -> SimulatedTask:
        self._numbers += 1
        task = SimulatedTask(self._numbers, coro, self, context)
        self.tasks.append(task)
        return task

    def create_future(self) -> SimulatedFuture:
        self._numbers += 1
        return SimulatedFuture(self._numbers, self)

    def _note_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Killed):
            self.errors.append(f"{context['message']}: {error!r}")

    # what there is not

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        raise AssertionError(f"the simulation has no threads: {func}")

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass
