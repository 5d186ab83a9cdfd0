"""The driver: effects in their order, nothing after a log that failed, room in the log given back once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from coordinator.core import effects, inputs
from coordinator.core.effects import Accepted, Begun, Decided, Effect, Refused, Reply
from coordinator.core.states import State
from coordinator.driver import make_clock
from dtp import Outcome, Reason, XacoordError
from tests.coordinator.driver_bench import RECORD, Bench, begin, changed, run, run_request, turns
from wal import LogFailed

SEND = effects.Send("p", "g", effects.Commit())
ALERT = effects.Alert(effects.AlertKind.PROTOCOL, "look")
LOST = inputs.AgentLost("p", 1, "gone")
SCANNED = inputs.AgentScanned("p", 1, 0.0, (), 0, 0)


def test_effects_are_performed_in_their_order() -> None:
    async def test(bench: Bench) -> None:
        fence, attach = effects.Fence("p", 1, 1), effects.Attach("p", 1)
        scan = effects.Scan("p", 1, fenced=True)
        move = changed(State.ACTIVE, State.PREPARING)
        script: list[Effect] = [
            fence, attach, scan, move, effects.Write(RECORD, kick=False), SEND, effects.Force(RECORD, 7),
            effects.Write(RECORD, kick=True), ALERT, SEND,
        ]  # fmt: skip
        bench.core.script = lambda event: script
        bench.driver.submit(inputs.TimePassed())
        assert bench.heard == [
            fence, attach, scan, move, ("append", None, False), SEND, ("append", 7, True),
            ("append", None, True), ALERT, SEND,
        ]  # fmt: skip
        assert bench.core.steps == [(inputs.TimePassed(), 100.0)]

    run(test)


def test_scans_and_losses_are_observed_before_what_they_lead_to() -> None:
    async def test(bench: Bench) -> None:
        bench.core.script = lambda event: [ALERT]
        for event in (SCANNED, LOST, inputs.TimePassed()):
            bench.driver.submit(event)
        assert bench.heard == [SCANNED, ALERT, LOST, ALERT, ALERT]

    run(test)


def test_each_caller_gets_its_own_answer() -> None:
    async def test(bench: Bench) -> None:
        first = asyncio.create_task(bench.driver.ask(lambda t: inputs.ForgetRequested(t, "a"), "a"))
        second = asyncio.create_task(bench.driver.ask(lambda t: inputs.ForgetRequested(t, "b"), "b"))
        await turns()
        (one, two) = (event.ticket for event in bench.inputs() if isinstance(event, inputs.ForgetRequested))
        assert one != two
        refused = Refused(Reason.NOT_HEURISTIC, "no", "a")
        bench.core.script = lambda event: [Reply(two, Accepted("b")), Reply(one, refused), Reply(99, refused)]
        bench.driver.submit(inputs.TimePassed())
        assert await second == Accepted("b")
        with pytest.raises(XacoordError, match="no") as caught:
            await first
        assert (caught.value.reason, caught.value.gtrid) == (Reason.NOT_HEURISTIC, "a")

    run(test)


# The log fails


@pytest.mark.parametrize("failing", [1, 2])
def test_nothing_is_performed_after_a_failed_append(failing: int) -> None:
    async def test(bench: Bench) -> None:
        waiting = asyncio.create_task(bench.driver.ask(lambda t: inputs.ForgetRequested(t, "a"), "a"))
        await turns()
        bench.journal.fails_at = failing
        bench.journal.rotation_due = True
        bench.core.next_wakeup = 100.0
        write: Effect = effects.Write(RECORD, kick=True) if failing == 1 else effects.Force(RECORD, 3)
        kept: list[Effect] = [effects.Write(RECORD, kick=True)] if failing == 2 else []
        bench.core.script = lambda event: [
            ALERT, *kept, write, SEND, changed(State.ACTIVE, State.PREPARING), Reply(1, Accepted("a"))
        ]  # fmt: skip
        bench.driver.submit(inputs.TimePassed())
        assert bench.heard == [ALERT, *([("append", None, True)] if kept else [])]
        with pytest.raises(XacoordError) as caught:
            await waiting
        assert caught.value.reason is Reason.LOG_FAILED
        assert not caught.value.definite, "what it asked for may be on disk"
        assert isinstance(bench.driver.failed.result(), LogFailed)
        await after_the_failure(bench)

    run(test)


async def after_the_failure(bench: Bench) -> None:
    """Nothing is done any more, whoever asks."""
    steps, heard = len(bench.core.steps), list(bench.heard)
    for event in (inputs.TimePassed(), inputs.RecordsDurable(3), LOST, SCANNED):
        bench.driver.submit(event)
    bench.driver.fail(OSError("again"))
    assert isinstance(bench.driver.failed.result(), LogFailed), "the first one is the cause"
    with pytest.raises(XacoordError) as caught:
        await bench.driver.ask(lambda t: inputs.CommitRequested(t, "a", inputs.WaitFor.DECIDED), "a")
    assert caught.value.reason is Reason.LOG_FAILED
    await asyncio.sleep(0.01)
    assert (len(bench.core.steps), bench.heard) == (steps, heard)


def test_a_failure_of_the_logs_own_thread_ends_everything_too() -> None:
    async def test(bench: Bench) -> None:
        asks = [bench.driver.ask(lambda t: inputs.ForgetRequested(t, "a"), "a") for _ in range(3)]
        waiting = [asyncio.create_task(ask) for ask in asks]
        await turns()
        waiting[1].cancel()
        bench.driver.fail(LogFailed("the flush failed"))
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(found[1], asyncio.CancelledError)
        reasons = [getattr(error, "reason", None) for error in found]
        assert reasons == [Reason.LOG_FAILED, None, Reason.LOG_FAILED]
        await after_the_failure(bench)

    run(test)


# Room in the log

OUTCOMES = [State.COMMITTED, State.ROLLED_BACK, State.HEURISTIC]
Make = Callable[[int, bool], inputs.Input]


@pytest.mark.parametrize("make", [begin, run_request])
@pytest.mark.parametrize(
    "answer",
    [
        Refused(Reason.OVERLOADED, "full"),
        Begun("old", 0.0, already_committed=True),
        Decided("old", Outcome.COMMITTED, completed=True, replayed=True),
    ],
)
def test_a_request_that_begins_nothing_gives_its_room_back(make: Make, answer: effects.Answer) -> None:
    async def test(bench: Bench) -> None:
        bench.core.script = lambda event: [Reply(getattr(event, "ticket", 0), answer)]
        for _ in range(3):
            await asyncio.gather(bench.driver.ask_new(make), return_exceptions=True)
            assert bench.journal.reserved == 0

    run(test)


@pytest.mark.parametrize("make", [begin, run_request])
@pytest.mark.parametrize("end", OUTCOMES)
def test_an_open_transaction_keeps_its_room_until_it_ends(make: Make, end: State) -> None:
    async def test(bench: Bench) -> None:
        first: list[Effect] = [changed(None, State.ACTIVE), Reply(1, Begun("g", 1.0))]
        bench.core.script = lambda event: first
        await bench.driver.ask_new(make)
        assert bench.journal.reserved == 1
        other: list[Effect] = [Reply(2, Refused(Reason.OVERLOADED, "full"))]
        bench.core.script = lambda event: other
        await asyncio.gather(bench.driver.ask_new(make), return_exceptions=True)
        assert bench.journal.reserved == 1, "the other request gave back its own"
        way = [State.ACTIVE, State.PREPARING, State.COMMITTING, end]
        for before, state in pairwise(way):
            assert bench.journal.reserved == 1
            move = changed(before, state)
            bench.core.script = lambda event, move=move: [move]
            bench.driver.submit(inputs.TimePassed())
        assert bench.journal.reserved == 0
        bench.driver.submit(inputs.TimePassed())
        assert bench.journal.reserved == 0, "once"

    run(test)


def test_a_transaction_that_begins_and_ends_at_once_gives_back_once() -> None:
    async def test(bench: Bench) -> None:
        bench.core.script = lambda event: [
            changed(None, State.ACTIVE),
            changed(State.ACTIVE, State.ROLLED_BACK),
            Reply(1, Decided("g", Outcome.ROLLED_BACK, completed=True)),
        ]
        await bench.driver.ask_new(run_request)
        assert bench.journal.reserved == 0

    run(test)


def test_what_never_had_room_gives_none_back() -> None:
    async def test(bench: Bench) -> None:
        bench.journal.room = False
        bench.core.script = lambda event: [Reply(1, Refused(Reason.LOG_FULL, "full"))]
        with pytest.raises(XacoordError):
            await bench.driver.ask_new(begin)
        assert bench.inputs() == [begin(1, False)], "the core is told that there is no room"
        bench.core.script = lambda event: [changed(State.COMMITTING, State.COMMITTED, "recovered")]
        bench.driver.submit(inputs.TimePassed())
        assert bench.journal.reserved == 0

    run(test)


def test_a_due_rotation_gets_the_state_after_the_step() -> None:
    async def test(bench: Bench) -> None:
        bench.journal.rotation_due = True
        bench.core.script = lambda event: [effects.Force(RECORD, 1)]
        bench.driver.submit(inputs.TimePassed())
        assert bench.heard == [("append", 1, True), "checkpoint", ("rotate", [RECORD])]
        bench.driver.submit(inputs.TimePassed())
        assert bench.heard[3:] == [("append", 1, True)], "and only when it is due"

    run(test)


# Time


def test_the_earliest_wake_up_is_the_one_that_is_armed() -> None:
    async def test(bench: Bench) -> None:
        loop: Any = asyncio.get_running_loop()
        armed: list[asyncio.TimerHandle] = []
        real = loop.call_later

        def call_later(delay: float, callback: Any, *args: Any) -> asyncio.TimerHandle:
            handle: asyncio.TimerHandle = real(delay, callback, *args)
            delays.append(round(delay, 3))
            armed.append(handle)
            return handle

        delays: list[float] = []
        loop.call_later = call_later
        bench.driver.start()
        assert delays == [], "there is nothing to wake up for"
        for wakeup in (160.0, 130.0, 140.0, 130.0, None, 120.0):
            bench.core.next_wakeup = wakeup
            bench.driver.submit(LOST)
        assert delays == [60.0, 30.0, 20.0]
        assert [handle.cancelled() for handle in armed] == [True, True, False]
        bench.core.next_wakeup = 90.0
        bench.driver.submit(LOST)
        assert delays[-1] == 0.0, "what is overdue is done now"
        bench.core.next_wakeup = None
        bench.core.steps.clear()
        await real_sleep(real, 0.02)
        assert bench.inputs() == [inputs.TimePassed()], "once"
        bench.core.next_wakeup = 100.01
        bench.driver.submit(LOST)
        bench.core.next_wakeup = None
        await real_sleep(real, 0.05)
        assert bench.inputs()[-1] == inputs.TimePassed(), "armed anew after it has fired"
        armed[-1].cancel()

    run(test)


async def real_sleep(call_later: Any, seconds: float) -> None:
    done = asyncio.Event()
    call_later(seconds, done.set)
    await done.wait()


def test_a_wake_up_that_leaves_nothing_to_do_is_not_the_last() -> None:
    async def test(bench: Bench) -> None:
        bench.core.next_wakeup = 100.0

        def script(event: inputs.Input) -> list[Effect]:
            bench.core.next_wakeup = 100.001 if len(bench.core.steps) < 4 else None
            return []

        bench.core.script = script
        bench.driver.start()
        await asyncio.sleep(0.1)
        assert bench.inputs() == [inputs.TimePassed()] * 4

    run(test)


def test_the_clock_never_goes_back_and_is_near_the_time_of_day() -> None:
    clock = make_clock()
    assert abs(clock() - time.time()) < 60.0
    seen = [clock() for _ in range(100)]
    assert seen == sorted(seen)


# Callers that leave, and watchers


def test_a_caller_that_leaves_is_reported_and_forgotten() -> None:
    async def test(bench: Bench) -> None:
        commit = asyncio.create_task(
            bench.driver.ask(lambda t: inputs.CommitRequested(t, "g", inputs.WaitFor.COMPLETED), "g")
        )
        new = asyncio.create_task(bench.driver.ask_new(run_request))
        await turns()
        commit.cancel()
        new.cancel()
        found = await asyncio.gather(commit, new, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in found)
        assert bench.inputs()[2:] == [inputs.CallerLeft("g", 1)]
        bench.core.script = lambda event: [Reply(1, Accepted("g")), Reply(2, Accepted("g"))]
        bench.driver.submit(inputs.TimePassed())  # too late, and nobody's error

    run(test)


def test_watchers_of_a_transaction_are_told_of_each_change() -> None:
    async def test(bench: Bench) -> None:
        one, two = bench.driver.watch("g"), bench.driver.watch("g")
        other = bench.driver.watch("h")
        bench.core.script = lambda event: [changed(State.ACTIVE, State.PREPARING)]
        bench.driver.submit(inputs.TimePassed())
        assert (one.is_set(), two.is_set(), other.is_set()) == (True, True, False)
        one.clear()
        two.clear()
        bench.driver.unwatch("g", one)
        bench.driver.submit(inputs.TimePassed())
        assert (one.is_set(), two.is_set()) == (False, True)
        for gtrid, event in (("g", two), ("h", other), ("g", two), ("never", two)):
            bench.driver.unwatch(gtrid, event)
        assert not bench.driver._watchers, "nothing is kept of watchers that are gone"

    run(test)
