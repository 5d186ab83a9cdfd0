"""The driver with named places where a test can kill or hold the process.

Only a process started with XACOORD_FAILPOINTS uses it (shell.failpoints). Each effect has a pair of
places, before_NAME and after_NAME, each input one, input_NAME. NAME is the effect's or input's name
in snake case, with the record or command it carries: force_commit, write_prepare, send_commit,
reply_begun... (docs/protocol.md lists them). Two more pairs stand around what is durable without
being an effect: `rotate`, the order to replace the log by its live state, and `epoch`, the writing
of a new epoch at the start (coordinator/runtime.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from coordinator.core import effects, inputs
from coordinator.core.coordinator import Coordinator
from coordinator.driver import Driver, Observer
from coordinator.journal import Journal
from shell.failpoints import Failpoints
from wal import LogError

# After an effect, what it put into a queue gets a moment to leave the process, so that "after" means it.
_SETTLE_SECONDS = 0.005

# Pairs of places that are no effects.
OTHER_PAIRS = ("rotate", "epoch")


class FailpointDriver(Driver):
    """Takes inputs one after the other in a task of its own, so that it can hold between effects."""

    def __init__(
        self,
        core: Coordinator,
        journal: Journal,
        clock: Callable[[], float],
        observer: Observer,
        failpoints: Failpoints,
    ) -> None:
        super().__init__(core, journal, clock, observer)
        self._failpoints = failpoints
        self._queue: asyncio.Queue[inputs.Input] = asyncio.Queue()
        self._pump_task = asyncio.get_running_loop().create_task(self._pump())

    def submit(self, event: inputs.Input) -> None:
        """Queue one input."""
        self._queue.put_nowait(event)

    async def _pump(self) -> None:
        while not self.failed.done():
            event = await self._queue.get()
            self._observe(event)
            await self._failpoints.hit(f"input_{_snake(type(event).__name__)}")
            for effect in self.step(event):
                name = place(effect)
                if self._failpoints.drops(f"before_{name}"):
                    continue
                await self._failpoints.hit(f"before_{name}")
                if not self._perform_or_fail(effect):
                    return
                await self._after(name)
            rotates = self.journal.should_rotate()
            if rotates:
                await self._failpoints.hit("before_rotate")
            try:
                self._afterwards(event)
            except LogError as error:
                self.fail(error)
                return
            if rotates:
                await self._after("rotate")

    async def _after(self, name: str) -> None:
        if self._failpoints.wants(f"after_{name}"):
            await asyncio.sleep(_SETTLE_SECONDS)
            await self._failpoints.hit(f"after_{name}")


def place(effect: effects.Effect) -> str:
    """The name of the effect's pair of places."""
    name = _snake(type(effect).__name__)
    inner: object = None
    match effect:
        case effects.Write() | effects.Force():
            inner = effect.record
        case effects.Send():
            inner = effect.command
        case effects.Reply():
            inner = effect.answer
    return name if inner is None else f"{name}_{_snake(type(inner).__name__.removesuffix('Record'))}"


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
