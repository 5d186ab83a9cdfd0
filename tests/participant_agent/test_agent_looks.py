"""When the agent looks for lock waits, and when it does not: in a simulation's time, on a scripted server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from dtp import BranchState, Reason, XacoordError
from participant_agent.core.effects import Lost, Ok, Query, Result, ServerError
from participant_agent.core.engine import Engine
from participant_agent.core.registry import Commit, Entry, Execute, Registry
from participant_agent.core.waits import Wait
from participant_agent.session import Session
from participant_agent.waits import Waits
from tests.simulation.loop import SimulatedLoop

GTRID, OTHER = "k1c00100010000000001", "k1c00100010000000002"
NOBODY: dict[str, Result] = {"data_lock_waits": Ok()}
A_WAITS_FOR_B: dict[str, Result] = {
    "data_lock_waits": Ok((("7", "8", "l7", "l8"),), 1),
    "innodb_trx": Ok((("7", "11", "l7"), ("8", "12", None)), 2),
}


class FakeSession(Session):
    """One of the agent's sessions."""

    def __init__(self, connection_id: int) -> None:
        self.connection_id = connection_id
        self.dead = False


class Rig:
    """The agent's parts, as far as looks need them."""

    def __init__(self) -> None:
        self.answers: dict[str, Result] = NOBODY
        self.asked: list[tuple[float, str]] = []
        self.takes = 0.002  # seconds of a query
        self.told: list[tuple[Wait, ...]] = []
        self.logged: list[str] = []
        self.discarded = 0
        self.out_of_sessions = False
        self.on_query: Callable[[], None] = lambda: None
        self.registry = Registry()
        self.begun = asyncio.Event()
        rig: Any = self
        self.waits = Waits(
            rig, rig, rig, {"c001": rig}, lambda: Engine.MYSQL, "x.witness", "p", lambda: True, rig
        )

    # Branches, Control, Pool, Link and the log, all in one

    async def drive(self, procedure: Any, session: Any = None) -> Any:
        try:
            effect = next(procedure)
            while True:
                effect = procedure.send(await self._answer(effect))
        except StopIteration as stop:
            return stop.value

    async def _answer(self, query: Query) -> Result:
        self.asked.append((asyncio.get_running_loop().time(), query.sql))
        await asyncio.sleep(self.takes)
        self.on_query()
        return next(answer for key, answer in self.answers.items() if key in query.sql)

    async def acquire(self) -> Rig:
        if self.out_of_sessions:
            raise XacoordError(Reason.POOL_EXHAUSTED, "all are in use")
        return self

    def release(self, session: Any) -> None:
        pass

    def discard(self, session: Any) -> None:
        self.discarded += 1

    def tell_waits(self, waits: tuple[Wait, ...]) -> None:
        if waits or (self.told and self.told[-1]):
            self.told.append(waits)

    def warning(self, event: str, **values: Any) -> None:
        self.logged.append(event)

    # The story

    def work(self, gtrid: str, connection_id: int, state: BranchState = BranchState.ACTIVE) -> Entry:
        entry = Entry(gtrid, "c001", 1, state, session=FakeSession(connection_id), running=Execute(()))
        self.registry.entries[gtrid] = entry
        self.begun.set()
        return entry

    def looks(self) -> list[float]:
        """When it began to look."""
        return [at for at, sql in self.asked if "data_lock_waits" in sql]


def play(story: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    """Run it beside the task that looks, on the simulation's clock."""

    async def both() -> None:
        rig = Rig()
        looking = asyncio.get_running_loop().create_task(rig.waits.run())
        await story(rig)
        assert not looking.done(), "it must go on, whatever happens"
        looking.cancel()

    loop = SimulatedLoop()
    try:
        loop.run_until_complete(both())
        assert loop.errors == []
    finally:
        loop.close()


def test_nothing_is_asked_while_everything_is_fast() -> None:
    async def story(rig: Rig) -> None:
        await asyncio.sleep(2.0)
        entry = rig.work(GTRID, 11)
        for _ in range(100):
            await asyncio.sleep(0.08)
            entry.running = Execute(())
        entry.running = None
        await asyncio.sleep(5.0)
        entry.running = Commit()
        await asyncio.sleep(5.0)
        assert rig.asked == []

    play(story)


def test_what_is_slow_is_looked_for_and_the_end_is_told_once() -> None:
    async def story(rig: Rig) -> None:
        rig.answers = A_WAITS_FOR_B
        entry = rig.work(GTRID, 11)
        rig.work(OTHER, 12).running = None
        await asyncio.sleep(2.0)
        first, *later = rig.looks()
        assert 0.1 <= first <= 0.25
        assert all(0.11 <= b - a <= 0.3 for a, b in zip([first, *later], later, strict=False))
        assert len(set(round(b - a, 4) for a, b in zip([first, *later], later, strict=False))) > 3
        assert set(rig.told) == {(Wait(GTRID, OTHER),)}
        assert len(rig.told) >= len(later), "each of them is told"
        entry.running = None
        await asyncio.sleep(3.0)
        assert rig.told[-2:] == [(Wait(GTRID, OTHER),), ()]
        assert rig.looks()[-1] < 2.1

    play(story)


def test_slow_commands_that_wait_for_no_lock_are_looked_for_less_often_and_new_ones_at_once() -> None:
    async def story(rig: Rig) -> None:
        rig.work(GTRID, 11)
        await asyncio.sleep(10.0)
        pauses = [b - a for a, b in zip(rig.looks(), rig.looks()[1:], strict=False)]
        assert max(pauses) > 0.4
        assert len(rig.looks()) < 40
        rig.answers = A_WAITS_FOR_B
        rig.work(OTHER, 12)
        before = len(rig.looks())
        await asyncio.sleep(0.35)
        assert len(rig.looks()) > before
        assert rig.told

    play(story)


def test_a_look_that_takes_long_is_followed_by_a_long_pause() -> None:
    async def story(rig: Rig) -> None:
        rig.answers, rig.takes = A_WAITS_FOR_B, 0.2
        rig.work(GTRID, 11)
        rig.work(OTHER, 12)
        await asyncio.sleep(12.0)
        pauses = [b - a for a, b in zip(rig.looks(), rig.looks()[1:], strict=False)]
        assert min(pauses) >= 3 * 2 * 0.2 - 0.01

    play(story)


def test_one_that_never_answers_is_given_up() -> None:
    async def story(rig: Rig) -> None:
        rig.takes = 100.0
        rig.work(GTRID, 11)
        await asyncio.sleep(20.0)
        assert len(rig.looks()) - 1 <= rig.discarded <= len(rig.looks()), "one may be under way"
        assert rig.discarded > 1
        assert rig.told == []
        assert len(rig.logged) == 1
        rig.answers, rig.takes = A_WAITS_FOR_B, 0.001
        rig.work(OTHER, 12).running = None
        await asyncio.sleep(40.0)
        assert rig.told, "it goes on when the server answers again"

    play(story)


def test_what_is_refused_is_tried_again_less_and_less_often_and_logged_once() -> None:
    async def story(rig: Rig) -> None:
        rig.answers = {"data_lock_waits": ServerError(1142, "SELECT command denied")}
        rig.work(GTRID, 11)
        await asyncio.sleep(300.0)
        assert len(rig.looks()) < 25
        assert len(rig.logged) == 1
        rig.answers = {"data_lock_waits": Lost("gone")}
        await asyncio.sleep(60.0)
        assert len(rig.logged) == 2, "that is something else"
        rig.out_of_sessions = True
        await asyncio.sleep(60.0)
        assert len(rig.logged) == 3

    play(story)


def test_a_session_that_works_for_somebody_else_by_now_tells_nothing() -> None:
    async def story(rig: Rig) -> None:
        rig.answers = A_WAITS_FOR_B
        rig.work(GTRID, 11)
        rig.work(OTHER, 12)
        names = iter(f"k1c001000100000{number:05}" for number in range(3, 100_000))

        def reuse() -> None:
            """Connection 12 works for the next branch."""
            rig.registry.entries = {g: e for g, e in rig.registry.entries.items() if g == GTRID}
            rig.work(next(names), 12)

        rig.on_query = reuse
        await asyncio.sleep(3.0)
        assert rig.looks()
        assert {wait.blocker for told in rig.told for wait in told} <= {""}

    play(story)


def test_a_wait_that_is_over_by_now_is_not_told() -> None:
    async def story(rig: Rig) -> None:
        rig.answers = A_WAITS_FOR_B
        entry = rig.work(GTRID, 11)
        rig.work(OTHER, 12)
        rig.on_query = lambda: setattr(entry, "running", Execute(()))
        await asyncio.sleep(3.0)
        assert rig.looks()
        assert rig.told == []

    play(story)
