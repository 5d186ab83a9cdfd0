"""Long random walks over the rules of the ring, weighted so that most transactions come far.

Hypothesis (test_ring.py) finds short ways into trouble; the walks find trouble that needs much going well
before. One seed is one run: `pytest tests/core/test_walk.py -k 'walk and 17'` repeats it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from coordinator.core import inputs
from coordinator.core.inputs import WaitFor
from coordinator.core.states import State
from coordinator.core.transaction import Transaction
from dtp import Decision, Outcome, Vote
from tests.coordinator.transactions import begin, decide, deliver, make_durable, world_that_is_up
from tests.core.test_ring import Ring
from tests.core.world import NAMES, World

STEPS = 120
SEEDS = range(600)
VOTES = (Vote.OK,) * 12 + (Vote.READ_ONLY, Vote.READ_ONLY, Vote.ROLLBACK)


class Walk:
    """One walk. `seen` counts the states in which the process was killed and those that were reached."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ring = Ring()
        self.seen: Counter[str] = Counter()
        self.weights: list[tuple[int, Callable[[], object]]] = [
            (12, self.transact),
            (6, self.run),
            (24, self.deliver),
            (10, self.deliver_all),
            (8, lambda: self.ring.flush(self.random.randint(1, 3))),
            (6, lambda: self.ring.connect(self.name())),
            (3, lambda: self.ring.lose(self.name(), self.random.randint(0, 3))),
            (2, self.crash),
            (2, lambda: self.ring.execute_late(self.name())),
            (2, self.ring.rotate),
            (3, lambda: self.ring.commit(self.back(), self.random.choice(list(WaitFor)))),
            (2, lambda: self.ring.roll_back(self.back())),
            (2, lambda: self.ring.enlist(self.back(), self.name())),
            (1, lambda: self.ring.begin(self.random.choice((None, 0.5, 60.0)), self.key(), True)),
            (1, self.interfere),
            (1, lambda: self.ring.resolve(self.back(), self.random.choice(list(Decision)))),
            (2, lambda: self.ring.forget(self.back())),
            (1, lambda: self.ring.recover(self.name())),
            (1, lambda: self.ring.stray_vote(self.back(), self.name(), self.random.choice(list(Vote)))),
            (1, lambda: self.ring.stray_end(self.back(), self.name(), self.random.choice(list(Outcome)))),
            (2, self.tell_waits),
            (2, self.scan),
            (2, self.hold),
            (1, lambda: self.ring.drain(self.random.randint(0, 9))),
            (1, self.leave),
            (3, lambda: self.ring.wait(self.random.choice((0.1, 0.3, 1.0, 3.0, 11.0)))),
        ]

    def name(self) -> str:
        return self.random.choice(NAMES)

    def back(self) -> int:
        return self.random.randint(0, 3)

    def key(self) -> str:
        return self.random.choice(("", "", "k", "l", "m"))

    def transact(self) -> None:
        workers = set(self.random.sample(NAMES, self.random.choice((1, 2, 2, 2))))
        wait = self.random.choice(list(WaitFor))
        self.ring.transact(workers, self.key(), wait, self.random.choice((None, None, 0.5)))

    def run(self) -> None:
        branches = self.random.sample(NAMES, self.random.choice((1, 2, 2, 2)))
        wait = self.random.choice(list(WaitFor))
        self.ring.run_at_once(
            branches, self.random.random() < 0.3, self.key(), wait, self.random.randint(0, 9)
        )

    def deliver(self) -> None:
        kinds = ("execute", "execute", "report", "report", "report", "flush", "fence", "scan")
        steps = [
            (self.random.choice(kinds), self.name(), self.random.choice(VOTES))
            for _ in range(self.random.randint(1, 12))
        ]
        self.ring.deliver(steps)

    def deliver_all(self) -> None:
        self.ring.deliver_all(self.random.choice(VOTES), self.name(), self.random.random() < 0.5)

    def crash(self) -> None:
        for transaction in self.ring.world.core.open.values():
            self.seen[f"killed in {transaction.state.value}"] += 1
            if transaction.decision is Decision.COMMIT and not transaction.durable:
                self.seen["killed before the decision was durable"] += 1
        self.ring.crash(self.random.randint(0, 3))

    def interfere(self) -> None:
        if any(server.prepared() for server in self.ring.world.servers.values()):
            state = self.random.choice(("committed", "rolled_back"))
            self.ring.interfere(self.back(), state, everywhere=self.random.random() < 0.5)

    def scan(self) -> None:
        if self.ring.world.scans:
            self.ring.look(self.back())
            if self.random.random() < 0.3:
                self.ring.answer_scan(self.back(), self.random.randint(1, 99), self.random.randbytes(5))

    def tell_waits(self) -> None:
        """Two that are undecided wait for each other, and then nobody does."""
        world = self.ring.world
        undecided = [t for t in world.core.open.values() if t.decision is None and t.branches]
        if len(undecided) < 2:
            return
        pair = self.random.sample(undecided, 2)
        edges = [
            (self.random.choice(list(t.branches)), inputs.Wait(t.gtrid, other.gtrid))
            for t, other in (pair, pair[::-1])
        ]
        for _ in range(2):
            for name, wait in edges:
                world.feed(inputs.WaitsReported(name, world.servers[name].link, (wait,)))
        for name, _ in edges:
            self.ring.tell_waits(name, [])

    def hold(self) -> None:
        if self.ring.world.fences:
            self.ring.answer_fence(self.back(), self.random.randint(0, 9))

    def leave(self) -> None:
        if self.ring.world.waiting:
            self.ring.leave(self.back())

    def go(self) -> None:
        """All steps, calm, and the final check."""
        weights = [weight for weight, _ in self.weights]
        for _, step in self.random.choices(self.weights, weights, k=STEPS):
            step()
            self.seen.update(t.state.value for t in self.ring.world.core.open.values())
            self.seen["DEADLOCK"] += self.ring.world.core.deadlocks
        self.ring.teardown()


@pytest.mark.parametrize("first", SEEDS[::50])
def test_walk(first: int) -> None:
    for seed in range(first, first + 50):
        try:
            Walk(seed).go()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def test_walks_come_everywhere() -> None:
    """Otherwise the walks prove little."""
    seen: Counter[str] = Counter()
    for seed in SEEDS[:60]:
        walk = Walk(seed)
        walk.go()
        seen += walk.seen
    killed = {f"killed in {s.value}" for s in State if s not in (State.COMMITTED, State.ROLLED_BACK)}
    assert killed | {"killed before the decision was durable"} <= set(seen)
    assert seen["HEURISTIC"]
    assert seen["DEADLOCK"]


def half_undone(world: World) -> Transaction:
    """Decided to commit; p1 has committed, and p2 was rolled back by an operator while it was away."""
    found = begin(world)
    decide(world, found)
    world.lose(world.servers["p2"], executed=0)
    make_durable(world)
    deliver(world, "p1")
    world.servers["p2"].interfere(found.gtrid, "rolled_back")
    world.interfered.add(found.gtrid)
    return found


@pytest.mark.parametrize("wait_for", list(WaitFor))
def test_what_others_ended_everywhere_is_never_told_as_mixed(wait_for: WaitFor) -> None:
    """Somebody asks between the answers of two branches that were both rolled back by hand."""
    world = world_that_is_up()
    gtrid = begin(world).gtrid
    decide(world, world.core.open[gtrid])
    make_durable(world)
    for name in ("p1", "p2"):
        world.servers[name].interfere(gtrid, "rolled_back")
    world.interfered.add(gtrid)
    deliver(world, "p1")
    world.feed(inputs.CommitRequested(world.new_ticket(gtrid), gtrid, wait_for))
    assert world.told[gtrid] <= {Outcome.COMMITTED}, "the decision, when it was taken"
    deliver(world, "p2")
    make_durable(world)
    assert world.told_at_last[gtrid] == {Outcome.HEURISTIC_ROLLBACK}
    world.check_final()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_mixed_outcome_stays_mixed_after_a_checkpoint_and_a_restart(at_once: bool) -> None:
    world = world_that_is_up()
    gtrid = half_undone(world).gtrid
    world.rotate(at_once=at_once)
    make_durable(world)
    world.crash(surviving=0)
    world.settle()
    assert world.core.open[gtrid].outcome is Outcome.HEURISTIC_MIXED
    world.check_final()


@pytest.mark.parametrize("restarted", [False, True])
def test_what_others_rolled_back_is_rolled_back_again_when_it_comes_back(restarted: bool) -> None:
    """Its server has lost the rollback. What was recorded and told stands; no row stays locked for ever."""
    world = world_that_is_up()
    gtrid = half_undone(world).gtrid
    server = world.servers["p2"]
    world.connect(server)
    world._deliver_all()
    assert world.core.open[gtrid].outcome is Outcome.HEURISTIC_MIXED
    if restarted:
        world.crash(surviving=0)
        world.settle()
    server.branches[gtrid] = "prepared"
    world.lose(server, executed=0)
    world.connect(server)
    world._deliver_all()
    assert server.branches[gtrid] == "rolled_back"
    assert world.servers["p1"].branches[gtrid] == "committed"
    assert world.core.open[gtrid].outcome is Outcome.HEURISTIC_MIXED
    world.check_final()


@pytest.mark.parametrize("at_once", [True, False])
def test_what_was_forgotten_does_not_come_back(at_once: bool) -> None:
    """The checkpoint is taken while FORGET is on its way to the disk."""
    world = world_that_is_up()
    gtrid = half_undone(world).gtrid
    world.connect(world.servers["p2"])
    world._deliver_all()
    assert world.core.open[gtrid].state is State.HEURISTIC
    world.feed(inputs.ForgetRequested(world.new_ticket(gtrid), gtrid))
    world.rotate(at_once=at_once)
    make_durable(world)
    assert world.forgotten == {gtrid}, "the operator was told so"
    world.crash(surviving=0)
    world.settle()
    assert gtrid not in world.core.open
