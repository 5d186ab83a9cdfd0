"""Deadlocks in the core: scripted snapshots, and random ones that a plainer judge reads, too.

The judge keeps every snapshot and knows no graph algorithm but "who can be reached". It says that an edge was
there at the moment t (a number of snapshots) if it was told without a gap from t or before until after t and
is told still; a transaction may be rolled back only if at some moment it was on a circle of such edges, and
must be if it is the youngest there.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core import effects, inputs
from coordinator.core.coordinator import Coordinator
from coordinator.core.inputs import Wait, WaitFor
from coordinator.core.records import EpochRecord, ParticipantRecord
from coordinator.core.replay import replay
from coordinator.core.settings import Settings
from coordinator.core.states import State
from coordinator.core.two_phase import TwoPhase
from dtp import Outcome, Reason, Vote

NAMES = ("p1", "p2", "p3")
Pair = tuple[int, int]


class Lab:
    """A core with open transactions, 0 the oldest, each with a branch at every participant."""

    def __init__(self, count: int) -> None:
        log = [EpochRecord("test", 1, 7, 0.0), *(ParticipantRecord(n, i) for i, n in enumerate(NAMES, 1))]
        self.core = Coordinator(Settings("test"), 1, replay(log), NAMES, 0.0)
        self.now = 0.0
        self.victims: list[int] = []
        self.sent: list[effects.Send] = []
        for name in NAMES:
            self.connect(name)
        self.gtrids: list[str] = []
        for ticket in range(count):
            self.now += 0.001
            before = set(self.core.open)
            self.feed(inputs.BeginRequested(ticket, None, 0, True))
            (gtrid,) = set(self.core.open) - before
            self.gtrids.append(gtrid)
            for name in NAMES:
                self.feed(inputs.BranchEnlisted(name, 1, gtrid))

    def connect(self, name: str, link: int = 1) -> None:
        self.feed(inputs.AgentConnected(name, link))
        self.feed(inputs.AgentFenced(name, link, "model", True, "nowhere"))
        self.feed(inputs.AgentScanned(name, link, self.now, (), 0, 0))

    def feed(self, event: inputs.Input) -> None:
        for effect in self.core.step(event, self.now):
            if isinstance(effect, effects.Send):
                self.sent.append(effect)
            if isinstance(effect, effects.Changed) and effect.state is State.ROLLING_BACK:
                self.victims.append(self.gtrids.index(effect.gtrid))

    def wait(self, waiter: int, blocker: int) -> Wait:
        return Wait(self.gtrids[waiter], self.gtrids[blocker])

    def tell(self, name: str, *pairs: Pair, link: int = 1) -> None:
        """A snapshot: who waits for whom."""
        self.feed(inputs.WaitsReported(name, link, tuple(self.wait(*pair) for pair in pairs)))

    @property
    def gone(self) -> set[int]:
        """Those that were rolled back."""
        return {
            n
            for n, gtrid in enumerate(self.gtrids)
            if gtrid not in self.core.open or self.core.open[gtrid].state is State.ROLLING_BACK
        }


def test_a_circle_over_two_servers_ends_with_its_youngest() -> None:
    lab = Lab(3)
    lab.tell("p1", (0, 1))
    lab.tell("p2", (1, 0), (2, 0))
    assert lab.gone == set(), "the snapshots may be of different moments"
    lab.tell("p1", (0, 1))
    assert lab.gone == set(), "p2 has not told it again"
    lab.tell("p2", (1, 0), (2, 0))
    assert lab.gone == {1}, "2 waits, too, but nobody waits for it"
    assert lab.core.deadlocks == 1
    rejection = lab.core.open[lab.gtrids[1]].rejection
    assert rejection is not None
    assert rejection.reason is Reason.DEADLOCK
    assert rejection.participant == "p2"
    first, second = lab.gtrids[:2]
    assert f"{second} waits for {first} at p2; {first} waits for {second} at p1" in rejection.message


def test_only_a_deadlock_that_was_broken_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be too late for its victim; nothing says so before it is tried."""
    monkeypatch.setattr(TwoPhase, "reject", lambda *_: False)
    lab = Lab(2)
    for _ in range(2):
        lab.tell("p1", (0, 1))
        lab.tell("p2", (1, 0))
    assert (lab.gone, lab.core.deadlocks) == (set(), 0)


def test_its_branches_are_told_why() -> None:
    lab = Lab(2)
    for _ in range(2):
        lab.tell("p1", (0, 1))
        lab.tell("p2", (1, 0))
    told = [s for s in lab.sent if isinstance(s.command, effects.Rollback)]
    assert [s.participant for s in told] == list(NAMES)
    whys = {s.command.why.reason for s in told if isinstance(s.command, effects.Rollback) and s.command.why}
    assert whys == {Reason.DEADLOCK}


def test_three_in_a_ring() -> None:
    lab = Lab(3)
    for _ in range(2):
        lab.tell("p1", (2, 0))
        lab.tell("p2", (0, 1))
        lab.tell("p3", (1, 2))
    assert lab.gone == {2}


def test_two_circles_with_one_in_common() -> None:
    """0-1 and 0-2: both others are younger, and each has its circle."""
    lab = Lab(3)
    for _ in range(2):
        lab.tell("p1", (0, 1), (0, 2))
        lab.tell("p2", (1, 0), (2, 0))
    assert lab.gone == {1, 2}
    assert lab.core.deadlocks == 2


def test_the_common_one_is_enough_where_it_is_the_youngest() -> None:
    lab = Lab(3)
    for _ in range(2):
        lab.tell("p1", (2, 0), (2, 1))
        lab.tell("p2", (0, 2), (1, 2))
    assert lab.gone == {2}


def test_an_edge_that_was_gone_in_between_begins_anew() -> None:
    lab = Lab(2)
    lab.tell("p1", (0, 1))
    lab.tell("p2", (1, 0))
    lab.tell("p1")
    lab.tell("p2", (1, 0))
    lab.tell("p1", (0, 1))
    assert lab.gone == set()
    lab.tell("p2", (1, 0))
    assert lab.gone == set()
    lab.tell("p1", (0, 1))
    assert lab.gone == {1}


def test_a_participant_that_tells_nothing_more_holds_nobody_else_up() -> None:
    """p3 told of an edge into the circle's component once."""
    lab = Lab(3)
    lab.tell("p3", (2, 0), (0, 2))
    for _ in range(2):
        lab.tell("p1", (0, 1))
        lab.tell("p2", (1, 0))
    assert lab.gone == {1}


def test_what_is_decided_or_has_voted_waits_for_nobody() -> None:
    lab = Lab(2)
    lab.tell("p1", (0, 1))
    lab.tell("p2", (1, 0))
    lab.feed(inputs.CommitRequested(9, lab.gtrids[0], WaitFor.COMPLETED))
    lab.feed(inputs.BranchVoted("p1", 1, lab.gtrids[0], Vote.OK))
    lab.tell("p1", (0, 1))
    lab.tell("p2", (1, 0))
    assert lab.gone == set(), "0's branch at p1 has got what it waited for"
    lab.feed(inputs.RollbackRequested(10, lab.gtrids[1]))
    assert list(lab.core.lock_waits()) == []


def test_while_it_votes_it_may_still_be_rolled_back() -> None:
    lab = Lab(2)
    lab.feed(inputs.CommitRequested(9, lab.gtrids[1], WaitFor.COMPLETED))
    for _ in range(2):
        lab.tell("p1", (0, 1))
        lab.tell("p2", (1, 0))
    assert lab.gone == {1}


def test_a_lost_participant_takes_its_edges_with_it() -> None:
    lab = Lab(2)
    lab.tell("p1", (0, 1))
    lab.tell("p2", (1, 0))
    lab.feed(inputs.AgentLost("p1", 1, "gone"))
    lab.tell("p2", (1, 0))
    assert lab.gone == set()
    assert [name for name, _ in lab.core.lock_waits()] == ["p2"]
    lab.connect("p1", link=2)
    lab.tell("p1", (0, 1), link=1)
    lab.tell("p2", (1, 0))
    assert lab.gone == set(), "news of the old connection"
    lab.tell("p1", (0, 1), link=2)
    lab.tell("p2", (1, 0))
    assert lab.gone == set(), "told once over this connection"
    lab.tell("p1", (0, 1), link=2)
    assert lab.gone == {1}


def test_foreign_and_prepared_blockers_are_shown_and_nobody_goes() -> None:
    lab = Lab(1)
    waits = (
        Wait(lab.gtrids[0], connection_id=17, account="app@host"),
        Wait(lab.gtrids[0], prepared=True),
        Wait(lab.gtrids[0], "k1othr00010000000001", prepared=True),
    )
    for _ in range(3):
        lab.feed(inputs.WaitsReported("p1", 1, waits))
    assert lab.gone == set()
    assert tuple(lab.core.waits_of(lab.gtrids[0], "p1")) == waits
    assert lab.core.waits_of(lab.gtrids[0], "p2") == []


def test_a_one_phase_commit_is_its_agents_to_decide() -> None:
    """It has one branch, so its server sees the deadlock itself."""
    lab = Lab(1)
    lab.feed(inputs.RunRequested(9, (inputs.RunBranch("p1", None),), None, WaitFor.COMPLETED, False, 0, True))
    (one_phase,) = set(lab.core.open) - set(lab.gtrids)
    lab.gtrids.append(one_phase)
    for _ in range(3):
        lab.tell("p1", (0, 1), (1, 0))
    assert lab.gone == set()


def test_strangers_and_those_that_are_not_there() -> None:
    lab = Lab(2)
    for _ in range(2):
        lab.feed(inputs.WaitsReported("p9", 1, (lab.wait(0, 1),)))
        lab.feed(inputs.WaitsReported("p1", 1, (Wait("k1test00010000009999", lab.gtrids[0]), lab.wait(0, 0))))
    assert lab.gone == set()
    assert list(lab.core.lock_waits()) == [("p1", lab.wait(0, 0))]


def test_a_thousand_in_a_ring_and_thousands_behind_one() -> None:
    """No recursion, and nobody goes but who is on the circle."""
    lab = Lab(1_000)
    ring = [(n, (n + 1) % 1_000) for n in range(1_000)]
    for _ in range(2):
        lab.tell("p1", *ring[:500])
        lab.tell("p2", *ring[500:])
    assert lab.gone == {999}
    lab = Lab(1_000)
    behind = [(n, 0) for n in range(2, 1_000)]
    for _ in range(2):
        lab.tell("p1", *behind, (0, 1))
        lab.tell("p2", *behind, (1, 0))
    assert lab.gone == {1}


def test_a_tangle_is_undone_bit_by_bit() -> None:
    """A hundred pairs: no step takes for ever, and in the end each pair has lost its younger one."""
    lab = Lab(200)
    for turn in range(12):
        there = [n for n in range(100) if n + 100 not in lab.gone]
        before = len(lab.gone)
        lab.tell("p1", *[(n, n + 100) for n in there])
        lab.tell("p2", *[(n + 100, n) for n in there])
        assert len(lab.gone) - before <= 2 * 16, turn
    assert lab.gone == set(range(100, 200))


# Random snapshots


class Judge:
    """Reads the same snapshots; see above."""

    def __init__(self) -> None:
        self.told: list[tuple[str, frozenset[Pair]]] = []

    def circles(self, gone: set[int]) -> list[set[int]]:
        """For each moment those that were on a circle then."""
        found = []
        for moment in range(len(self.told)):
            edges = [
                pair
                for name in NAMES
                for pair in self._there(name, moment)
                if not gone & set(pair) and pair[0] != pair[1]
            ]
            found.append({a for a, _ in edges if a in reachable(a, edges)})
        return found

    def _there(self, name: str, moment: int) -> Iterable[Pair]:
        own = [(n, pairs) for n, (who, pairs) in enumerate(self.told) if who == name]
        before = [pairs for n, pairs in own if n <= moment][-1:]
        after = [pairs for n, pairs in own if n > moment]
        return frozenset.intersection(*before, *after) if before and after else ()


def reachable(start: int, edges: list[Pair]) -> set[int]:
    found: set[int] = set()
    ahead = [b for a, b in edges if a == start]
    while ahead:
        one = ahead.pop()
        if one not in found:
            found.add(one)
            ahead += [b for a, b in edges if a == one]
    return found


pairs = st.tuples(st.integers(0, 5), st.integers(0, 5))
# Who tells, and which of its edges come or go since it told last: most stay.
changes = st.lists(st.tuples(st.sampled_from(NAMES), st.frozensets(pairs, max_size=2)), max_size=25)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(changes=changes)
def test_only_who_is_on_a_confirmed_circle_goes_and_no_circle_stays(
    changes: list[tuple[str, frozenset[Pair]]],
) -> None:
    lab, judge = Lab(6), Judge()
    now: dict[str, frozenset[Pair]] = {name: frozenset() for name in NAMES}
    for name, change in changes:
        before = lab.gone
        now[name] = frozenset(p for p in now[name] ^ change if not before & set(p))
        judge.told.append((name, now[name]))
        lab.tell(name, *sorted(now[name]))
        victims = lab.gone - before
        judged = judge.circles(before)
        assert victims <= set().union(*judged), "rolled back without a circle"
        assert not set().union(*judge.circles(lab.gone)), "a circle was left"
        for victim in (v for v in lab.victims if v in victims):  # in this order
            younger = set(range(victim + 1, 6))
            assert any(victim in c for c in judge.circles(before | younger)), "not the youngest of a circle"
            before = before | {victim}
    assert lab.core.deadlocks == len(lab.gone)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(edges=st.lists(st.tuples(st.sampled_from(NAMES), pairs), max_size=14))
def test_a_graph_that_stays_as_it_is_loses_all_its_circles(edges: list[tuple[str, Pair]]) -> None:
    lab = Lab(6)
    for _ in range(8):
        for name in NAMES:
            lab.tell(name, *[p for n, p in edges if n == name and not lab.gone & set(p)])
    left = [p for _, p in edges if p[0] != p[1] and not lab.gone & set(p)]
    assert not [a for a, _ in left if a in reachable(a, left)]
    assert 0 not in lab.gone, "the oldest never loses"
    for place, victim in enumerate(lab.victims):
        kept = [p for _, p in edges if max(p) <= victim and not set(lab.victims[:place]) & set(p)]
        assert victim in reachable(victim, kept), "it is not the youngest of a circle"


def test_the_judge_finds_fault() -> None:
    judge = Judge()
    judge.told = [("p1", frozenset({(0, 1)})), ("p2", frozenset({(1, 0)}))]
    assert not set().union(*judge.circles(set()))
    judge.told += judge.told
    assert set().union(*judge.circles(set())) == {0, 1}
    assert not set().union(*judge.circles({1}))


@pytest.mark.parametrize("outcome", [Outcome.ROLLED_BACK])
def test_when_it_has_ended_the_other_goes_on(outcome: Outcome) -> None:
    lab = Lab(2)
    for _ in range(2):
        lab.tell("p1", (0, 1))
        lab.tell("p2", (1, 0))
    for name in NAMES:
        lab.feed(inputs.BranchFinished(name, 1, lab.gtrids[1], outcome))
    assert lab.gtrids[1] not in lab.core.open
    lab.tell("p1")
    assert lab.gone == {1}
    assert list(lab.core.lock_waits()) == []
