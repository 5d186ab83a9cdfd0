"""Driver: performs the core's effects and feeds it inputs. The only place that does either.

    submit(input) -> core.step -> perform each effect in order -> arm the next wake-up

It runs in one event loop and never blocks: records go to the journal's own thread, commands to the
links' queues. A journal that fails ends everything: callers that wait hear UNKNOWN, nothing more is
sent, and the process exits with 74.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from coordinator.agents import AgentLink
from coordinator.core import effects, inputs
from coordinator.core.coordinator import Coordinator
from coordinator.core.effects import Alert, AlertKind, Answer, Changed, Effect, Refused
from coordinator.core.states import ENDS
from coordinator.journal import Journal
from dtp import Reason, XacoordError
from wal import LogError

_ADVICE = {
    AlertKind.HOLD: {
        "fix": "put the right log back or, if it is lost for good, see `coordctl recover --derive` "
        "(docs/operations.md#hold)"
    },
    AlertKind.HELD_BRANCH: {
        "fix": "find out whose it is, and end it by hand if it is nobody's "
        "(docs/operations.md#branches-that-this-log-never-gave)"
    },
}


class Observer(Protocol):
    """Who wants to know what happens (metrics)."""

    def changed(self, effect: Changed) -> None:
        """A transaction has changed its state."""

    def alerted(self, effect: Alert) -> None:
        """People should look at something."""

    def scanned(self, event: inputs.AgentScanned) -> None:
        """A participant was scanned."""

    def lost(self, event: inputs.AgentLost) -> None:
        """A participant could not be reached."""


def make_clock() -> Callable[[], float]:
    """Seconds that never go back and begin near the time since 1970."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()


class Driver:
    """Owns the core, the journal and the links of one process."""

    def __init__(
        self, core: Coordinator, journal: Journal, clock: Callable[[], float], observer: Observer
    ) -> None:
        self.core = core
        self.journal = journal
        self.clock = clock
        self.links: dict[str, AgentLink] = {}
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._observer = observer
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._tickets = 0
        self._reserved: set[str] = set()
        self._begun = False  # the input at hand has begun a transaction, which keeps its reservation
        self._armed: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._log = structlog.get_logger()

    def submit(self, event: inputs.Input) -> None:
        """Take one input and perform what it leads to."""
        if self.failed.done():
            return
        self._observe(event)
        for effect in self.step(event):
            if not self._perform_or_fail(effect):
                return
        try:
            self._afterwards(event)
        except LogError as error:
            self.fail(error)

    def step(self, event: inputs.Input) -> list[Effect]:
        """One step of the core. A core that has thrown may be half changed: it is not asked again."""
        try:
            return self.core.step(event, self.clock())
        except Exception as error:
            self._log.exception("the core failed", input=type(event).__name__)
            self.fail(error)
            return []

    def _perform_or_fail(self, effect: Effect) -> bool:
        try:
            self._perform(effect)
        except LogError as error:
            self.fail(error)
            return False
        return True

    def _afterwards(self, event: inputs.Input) -> None:
        if isinstance(event, (inputs.BeginRequested, inputs.RunRequested)) and event.room and not self._begun:
            self.journal.release()
        self._begun = False
        if self.journal.should_rotate():
            self.journal.rotate(self.core.checkpoint())
        self._arm()

    def _observe(self, event: inputs.Input) -> None:
        if isinstance(event, inputs.AgentScanned):
            self._observer.scanned(event)
        elif isinstance(event, inputs.AgentLost):
            self._observer.lost(event)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case effects.Send():
                self.links[effect.participant].send(effect)
            case effects.Changed():
                self._changed(effect)
            case effects.Write():
                self.journal.append(effect.record, None, kick=effect.kick)
            case effects.Force():
                self.journal.append(effect.record, effect.number, kick=True)
            case effects.Reply():
                future = self._waiting.pop(effect.ticket, None)
                if future is not None and not future.done():
                    future.set_result(effect.answer)
            case effects.Alert():
                self._observer.alerted(effect)
                self._log.warning(
                    effect.message,
                    alert=effect.kind.value,
                    gtrid=effect.gtrid,
                    participant=effect.participant,
                    outcome=effect.outcome.value if effect.outcome else None,
                    **_ADVICE.get(effect.kind, {}),
                )
            case effects.Fence():
                self.links[effect.participant].fence(effect)
            case effects.Attach():
                self.links[effect.participant].attach(effect)
            case effects.Scan():
                self.links[effect.participant].scan(effect)

    def _changed(self, effect: Changed) -> None:
        if effect.before is None:
            self._begun = True
            self._reserved.add(effect.gtrid)
        elif effect.state in ENDS and effect.gtrid in self._reserved:
            self._reserved.discard(effect.gtrid)
            self.journal.release()
        self._observer.changed(effect)
        for changed in self._watchers.get(effect.gtrid, ()):
            changed.set()

    def _arm(self) -> None:
        wakeup = self.core.next_wakeup
        if wakeup is None or (self._armed is not None and self._armed_for <= wakeup):
            return
        if self._armed is not None:
            self._armed.cancel()
        self._armed_for = wakeup
        delay = max(0.0, wakeup - self.clock())
        self._armed = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._armed = None
        self.submit(inputs.TimePassed())

    def start(self) -> None:
        """Begin to keep time."""
        self._arm()

    # Callers

    async def ask(self, make: Callable[[int], inputs.Input], gtrid: str = "") -> Answer:
        """Submit a caller's input and wait for its one answer.

        Raises:
            XacoordError: the request was refused, or its outcome is unknown.
        """
        if self.failed.done():
            raise XacoordError(Reason.LOG_FAILED, "the log failed; the coordinator is ending", gtrid=gtrid)
        self._tickets += 1
        ticket = self._tickets
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        self.submit(make(ticket))
        try:
            answer = await future
        except asyncio.CancelledError:
            self._waiting.pop(ticket, None)
            if gtrid:
                self.submit(inputs.CallerLeft(gtrid, ticket))
            raise
        if isinstance(answer, Refused):
            raise XacoordError(answer.reason, answer.message, gtrid=answer.gtrid)
        return answer

    async def ask_new(self, make: Callable[[int, bool], inputs.Input]) -> Answer:
        """The same for a request that may begin a transaction: its room in the log is reserved first."""
        try:
            room = self.journal.reserve()
        except LogError as error:
            self.fail(error)
            room = False  # `ask` refuses

        return await self.ask(lambda ticket: make(ticket, room))

    def fail(self, error: BaseException) -> None:
        """The journal has failed: nothing more is acknowledged."""
        if self.failed.done():
            return
        self._log.error("ending: nothing more can be decided", error=f"{type(error).__name__}: {error}")
        self.failed.set_result(error)
        for future in self._waiting.values():
            if not future.done():
                message = "the log failed while this was under way; ask Get after the restart"
                future.set_result(Refused(Reason.LOG_FAILED, message))
        self._waiting.clear()

    def watch(self, gtrid: str) -> asyncio.Event:
        """An event that is set whenever the transaction changes; give it back with `unwatch`."""
        changed = asyncio.Event()
        self._watchers.setdefault(gtrid, set()).add(changed)
        return changed

    def unwatch(self, gtrid: str, changed: asyncio.Event) -> None:
        """End a watch."""
        watchers = self._watchers.get(gtrid, set())
        watchers.discard(changed)
        if not watchers:
            self._watchers.pop(gtrid, None)
