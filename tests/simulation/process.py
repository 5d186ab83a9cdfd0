"""The twin of a process.

Fault model:
 1. kill: from that moment nothing of the process runs: no callback, no timer, no task. What it has sent is
    under way and arrives; what it has written is in the page cache; its locks and connections are gone
    (`on_end`).
 2. a fuse: the process is killed when it reaches its n-th *place* from now. Places stand before and after
    each effect of the driver, each operation on the disk, each query and each message, so that a kill can
    fall between any two effects, also where the code does not wait.
 3. freeze: nothing runs until `thaw`, and then everything that was missed (SIGSTOP, a paused machine).

Which process code belongs to is a context variable, so tasks, timers and callbacks inherit it.
"""

from __future__ import annotations

import contextvars
from asyncio import events
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.loop import SimulatedLoop


class Killed(BaseException):
    """The process is dead. Not an Exception: nothing in it may handle it."""


class Process:
    """One life of a daemon, an agent or a client.

    Attributes:
        name: of the process and its life, for people.
        host: where it runs: the network's name for it.
        halted: nothing of it may run now: dead or frozen.
        fuse: places left until it is killed; None: no such plan.
    """

    def __init__(self, loop: SimulatedLoop, name: str, host: str) -> None:
        self._loop = loop
        self.name = name
        self.host = host
        self.alive = True
        self.halted = False
        self.fuse: int | None = None
        self.died_at_place = ""
        self.on_end: list[Callable[[], None]] = []
        self._kept: list[events.Handle] = []
        self._context = contextvars.copy_context()
        self._context.run(CURRENT.set, self)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine as part of the process."""
        return self._loop.create_task(coroutine, context=self._context.copy())

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run a function as part of the process."""
        self._loop.call_soon(callback, *args, context=self._context.copy())

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> events.TimerHandle:
        """The same later."""
        return self._loop.call_later(delay, callback, *args, context=self._context.copy())

    def kill(self) -> None:
        """End it, from outside or from inside."""
        if not self.alive:
            return
        self.alive, self.halted, self.fuse = False, True, None
        self._kept.clear()
        for ended in self.on_end:
            ended()

    def freeze(self) -> None:
        """Stop it where it is."""
        self.halted = True

    def thaw(self) -> None:
        """Go on."""
        if self.alive and self.halted:
            self.halted = False
            self._loop.put_back(self._kept)
            self._kept = []

    def keep(self, handle: events.Handle) -> None:
        """What would run now, if the process did."""
        if self.alive:
            self._kept.append(handle)

    def place(self, name: str) -> None:
        """The process reaches a place where it may die. Raises Killed."""
        if not self.alive:
            raise Killed(name)
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.died_at_place = name
                self.kill()
                raise Killed(name)

    def resurrect_to_clean_up(self) -> None:
        """After the run: let cancelled tasks unwind. Every port is shut by then."""
        self.halted = False


CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def place(name: str) -> None:
    """The running process reaches a place."""
    process = CURRENT.get()
    if process is not None and (process.fuse is not None or not process.alive):
        process.place(name)
