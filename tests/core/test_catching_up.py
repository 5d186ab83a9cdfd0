"""Catching up: a participant that comes back is asked for all that waits for it, some at a time."""

from __future__ import annotations

import random

from coordinator.core import effects, inputs
from coordinator.core.catching_up import AT_ONCE
from coordinator.core.coordinator import Coordinator
from coordinator.core.records import CommitRecord, EpochRecord, ParticipantRecord, PrepareRecord, Record
from coordinator.core.replay import replay
from coordinator.core.settings import Settings
from dtp import Gtrid, Outcome, Reason, Xid

NOW = 1_000.0
COUNT = 3 * AT_ONCE + 7
IDS = [Gtrid.make("test", 1, counter, 0) for counter in range(1, COUNT + 1)]


class Recovering:
    """A core that has `IDS` to commit at one participant, and what it has sent there."""

    def __init__(self) -> None:
        records: list[Record] = [EpochRecord("test", 1, 7, 0.0), ParticipantRecord("p", 1)]
        for id_ in IDS:
            records += [PrepareRecord(id_, (1,), 0.0), CommitRecord(id_, (1,), 0.0, 0.0)]
        replayed = replay(records)
        replayed.nonces[2] = 8
        self.core = Coordinator(Settings("test"), 2, replayed, ["p"], NOW)
        self.sent: list[str] = []
        self.link = 0

    def step(self, event: inputs.Input) -> list[str]:
        """The gtrids of commits that follow from an input."""
        found = [effect.gtrid for effect in self.core.step(event, NOW) if isinstance(effect, effects.Send)]
        self.sent += found
        return found

    def connect(self) -> list[str]:
        self.link += 1
        self.step(inputs.AgentConnected("p", self.link))
        self.step(inputs.AgentFenced("p", self.link, "server", True, "address", ""))
        prepared = tuple(Xid.of(gtrid, 1) for gtrid in self.core.open)
        return self.step(inputs.AgentScanned("p", self.link, NOW, prepared, 0, 0))

    def answer(self, gtrid: str, outcome: Outcome | None = Outcome.COMMITTED) -> list[str]:
        failure = None if outcome else inputs.Failure(Reason.POOL_EXHAUSTED, "later", 0, None)
        return self.step(inputs.BranchFinished("p", self.link, gtrid, outcome, failure, ()))


def test_the_newest_are_asked_first_and_no_more_than_an_agent_can_do_with() -> None:
    recovering = Recovering()
    first = recovering.connect()
    assert first == [str(id_) for id_ in reversed(IDS[-AT_ONCE:])]
    assert [gtrid for answered in first[: AT_ONCE // 2 - 1] for gtrid in recovering.answer(answered)] == []
    more = recovering.answer(first[AT_ONCE // 2 - 1])
    assert more == [str(id_) for id_ in reversed(IDS[-AT_ONCE - AT_ONCE // 2 : -AT_ONCE])]


def test_all_are_asked_once_in_whatever_order_they_answer() -> None:
    recovering = Recovering()
    source = random.Random(1)
    waiting = recovering.connect()
    most = 0
    while waiting:
        most = max(most, len(waiting))
        answered = waiting.pop(source.randrange(len(waiting)))
        waiting += recovering.answer(answered)
    assert most == AT_ONCE
    assert sorted(recovering.sent) == sorted(map(str, IDS))
    assert not recovering.core.open


def test_a_branch_that_cannot_be_ended_now_does_not_hold_up_the_others() -> None:
    recovering = Recovering()
    waiting = recovering.connect()
    while waiting:
        waiting += recovering.answer(waiting.pop(0), None)
    assert sorted(recovering.sent) == sorted(map(str, IDS)), "each once, before any pause is over"


def test_a_connection_that_breaks_begins_anew() -> None:
    recovering = Recovering()
    first = recovering.connect()
    for gtrid in first[:10]:
        recovering.answer(gtrid)
    assert recovering.step(inputs.AgentLost("p", recovering.link, "gone")) == []
    second = recovering.connect()
    assert len(second) == AT_ONCE
    assert second[0] == first[10], "what was asked and not answered is asked again"
    waiting = list(second)
    while waiting:
        waiting += recovering.answer(waiting.pop())
    assert not recovering.core.open


def test_asking_for_recovery_meanwhile_sends_nothing_twice() -> None:
    recovering = Recovering()
    waiting = recovering.connect()
    assert recovering.step(inputs.RecoveryRequested("p")) == []
    while waiting:
        waiting += recovering.answer(waiting.pop(0))
        waiting += recovering.step(inputs.RecoveryRequested("p"))
    assert len(recovering.sent) == len(set(recovering.sent)) == COUNT
