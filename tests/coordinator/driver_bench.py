"""A driver between a core that follows a script and a journal and links that only note what they hear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from coordinator.core import effects, inputs
from coordinator.core.effects import Effect
from coordinator.core.records import PrepareRecord, Record
from coordinator.core.states import State
from coordinator.driver import Driver
from dtp import Gtrid
from wal import LogFailed

ID = Gtrid.make("test", 1, 1, 0)
RECORD = PrepareRecord(ID, (1, 2), 0.0)
Script = Callable[[inputs.Input], Iterable[Effect]]


class ScriptedCore:
    """Answers each input as `script` says."""

    def __init__(self, heard: list[Any]) -> None:
        self.heard = heard
        self.script: Script = lambda event: ()
        self.next_wakeup: float | None = None
        self.steps: list[tuple[inputs.Input, float]] = []

    def step(self, event: inputs.Input, now: float) -> list[Effect]:
        self.steps.append((event, now))
        return list(self.script(event))

    def checkpoint(self) -> list[Record]:
        self.heard.append("checkpoint")
        return [RECORD]


class FakeJournal:
    """Notes what it hears; `fails_at` is the append that fails."""

    def __init__(self, heard: list[Any]) -> None:
        self.heard = heard
        self.fails_at = 0
        self.appends = 0
        self.room = True
        self.reserved = 0
        self.rotation_due = False

    def append(self, record: Record, number: int | None, *, kick: bool) -> None:
        self.appends += 1
        if self.appends == self.fails_at:
            raise LogFailed("writing has failed")
        self.heard.append(("append", number, kick))

    def reserve(self) -> bool:
        self.reserved += self.room
        return self.room

    def release(self) -> None:
        self.reserved -= 1
        assert self.reserved >= 0, "given back twice"

    def should_rotate(self) -> bool:
        return self.rotation_due

    def rotate(self, checkpoint: Iterable[Record]) -> None:
        self.heard.append(("rotate", list(checkpoint)))
        self.rotation_due = False


class FakeLink:
    """Notes what it is asked for."""

    def __init__(self, heard: list[Any]) -> None:
        self.send = self.fence = self.attach = self.scan = heard.append


class Notes:
    """An observer that notes what it is told."""

    def __init__(self, heard: list[Any]) -> None:
        self.changed = self.alerted = self.scanned = self.lost = heard.append


class Bench:
    """The driver and all that is around it. `heard` is what it did, in order; `now` is the clock."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.now = 100.0
        self.core = ScriptedCore(self.heard)
        self.journal = FakeJournal(self.heard)
        core: Any = self.core
        journal: Any = self.journal
        self.driver = Driver(core, journal, lambda: self.now, Notes(self.heard))
        link: Any = FakeLink(self.heard)
        self.driver.links["p"] = link

    def inputs(self) -> list[inputs.Input]:
        """What the core was given."""
        return [event for event, _ in self.core.steps]


def run(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    """Run the test with a driver, which wants a running loop."""

    async def main() -> None:
        await asyncio.wait_for(test(Bench()), 10)

    asyncio.run(main())


async def turns(count: int = 5) -> None:
    """Let the loop run."""
    for _ in range(count):
        await asyncio.sleep(0)


def begin(ticket: int, room: bool) -> inputs.BeginRequested:
    return inputs.BeginRequested(ticket, None, 0, room)


def run_request(ticket: int, room: bool) -> inputs.RunRequested:
    return inputs.RunRequested(ticket, (), None, inputs.WaitFor.DECIDED, False, 0, room)


def changed(before: State | None, state: State, gtrid: str = "g") -> effects.Changed:
    return effects.Changed(gtrid, before, state, 0.5)
