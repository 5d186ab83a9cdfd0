"""What is remembered of ended transactions, for how long, and when witness rows may go."""

from __future__ import annotations

from coordinator.core.inputs import BeginRequested, RollbackRequested, TimePassed
from coordinator.core.memory import Memory
from coordinator.core.settings import Settings
from coordinator.core.states import State
from coordinator.core.transaction import Transaction
from dtp import Decision, Gtrid
from tests.coordinator.transactions import begin, decide, deliver, make_durable, world_that_is_up
from tests.core.world import World

SETTINGS = Settings("test", keep_ended=60.0, keep_ended_count=2, keep_keys=100.0, keep_keys_count=2)


def ended(counter: int, state: State, key: str = "") -> Transaction:
    id_ = Gtrid.make("test", 1, counter, 0)
    return Transaction(
        str(id_), id_, begun_at=0.0, deadline=0.0, entered_at=0.0, state=state, idempotency_key=key
    )


def test_memory_is_bounded_by_count_and_by_age() -> None:
    memory = Memory(SETTINGS)
    for counter in range(5):
        memory.remember(ended(counter, State.COMMITTED, f"k{counter}"), float(counter))
    assert [t.id.counter for t in memory.ended.values()] == [3, 4]
    assert list(memory.keys) == ["k3", "k4"]
    memory.sweep(63.5, "z")
    assert [t.id.counter for t in memory.ended.values()] == [4]
    memory.sweep(103.5, "z")
    assert list(memory.keys) == ["k4"]
    assert [r.idempotency_key for r in memory.key_records()] == ["k4"]


def test_only_commits_are_remembered_by_key() -> None:
    memory = Memory(SETTINGS)
    memory.remember(ended(1, State.ROLLED_BACK, "k"), 0.0)
    memory.remember(ended(2, State.HEURISTIC, "l"), 0.0)
    assert not memory.keys


def test_a_scan_that_is_older_than_the_end_proves_nothing() -> None:
    memory = Memory(SETTINGS)
    rolled_back, committed = ended(1, State.ROLLED_BACK), ended(2, State.COMMITTED)
    rolled_back.decision, committed.decision = Decision.ROLLBACK, Decision.COMMIT
    memory.remember(rolled_back, 10.0)
    memory.remember(committed, 11.0)
    assert memory.ended_since(rolled_back.gtrid, 9.0)
    assert not memory.ended_since(rolled_back.gtrid, 10.5)
    assert memory.ended_since(committed.gtrid, 99.0)
    memory.remember(ended(3, State.COMMITTED), 12.0)
    assert memory.ended_since(rolled_back.gtrid, 10.0)  # dropped, but not before the scan
    assert not memory.ended_since(rolled_back.gtrid, 10.5)


def test_the_purge_mark_is_the_lowest_that_was_open_a_while_ago() -> None:
    memory = Memory(SETTINGS)
    for minute in range(120):
        memory.sweep(minute * 60.0, f"mark{minute:03}")
    # Retention is an hour, marks are ten seconds apart at least.
    assert memory.purge_mark == "mark059"


def pass_time(world: World, seconds: float) -> None:
    """Time passes, and every minute somebody begins a transaction and rolls it back."""
    for step in range(int(seconds / 10.0)):
        world.now += 10.0
        world.feed(TimePassed())
        if step % 6 == 0:
            found = begin(world, ())
            world.feed(RollbackRequested(world.new_ticket(found.gtrid), found.gtrid))


def blocked_commit(world: World) -> Transaction:
    """Decided to commit, durably; p1 has, and p2 is away."""
    found = begin(world)
    decide(world, found)
    world.lose(world.servers["p2"], executed=0)
    make_durable(world)
    deliver(world, "p1")
    return found


def test_a_blocked_commit_holds_the_purge_mark() -> None:
    world = world_that_is_up()
    pass_time(world, 600.0)
    found = blocked_commit(world)
    pass_time(world, 2 * SETTINGS.witness_retention)
    assert found.state is State.COMMITTING
    assert world.core.purge_mark == found.gtrid, "the rows of what is in doubt are the proof, and stay"
    world.connect(world.servers["p2"])
    world._deliver_all()
    assert found.state is State.COMMITTED
    pass_time(world, SETTINGS.witness_retention - 60.0)
    assert world.core.purge_mark == found.gtrid, "it has to be over for as long as rows are kept"
    pass_time(world, 120.0)
    assert world.core.purge_mark > found.gtrid


def test_a_blocked_commit_of_an_older_epoch_holds_the_purge_mark() -> None:
    world = world_that_is_up()
    found = blocked_commit(world)
    world.crash(surviving=0)
    for name in ("p1", "p3"):
        world.connect(world.servers[name])
    while world.fences:
        world.answer_fence(0)
    while world.scans:
        world.answer_scan(0)
    pass_time(world, 2 * SETTINGS.witness_retention)
    recovered = world.core.open[found.gtrid]
    assert recovered.state is State.COMMITTING
    assert world.core.purge_mark == found.gtrid
    world.connect(world.servers["p2"])
    world._deliver_all()
    assert recovered.state is State.COMMITTED
    pass_time(world, SETTINGS.witness_retention + 60.0)
    assert Gtrid.parse(world.core.purge_mark).epoch == 2


def test_ids_that_this_log_can_have_given() -> None:
    world = World()
    world.feed(BeginRequested(world.new_ticket(""), 300.0, 0, True))
    (last,) = world.core.open
    assert world.core.knows_id(Gtrid.parse(last))
    assert not world.core.knows_id(Gtrid("test", 1, Gtrid.parse(last).sequence + (1 << 16)))
    assert not world.core.knows_id(Gtrid("test", 2, 1))
    assert not world.core.knows_id(Gtrid("othr", 1, 1 << 16))
