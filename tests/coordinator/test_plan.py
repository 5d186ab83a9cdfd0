"""The plan that people see: it names a COMMIT record only where there is one on disk."""

from __future__ import annotations

from coordinator import convert
from coordinator.core.reconcile import Action, PlanReason
from dtp import Gtrid, Xid
from tests.coordinator.transactions import begin, decide, make_durable, world_that_is_up
from tests.core.world import ID, World


def planned(world: World, name: str) -> list[tuple[Action, PlanReason]]:
    """What a scan of the participant would lead to now."""
    items = world.core.plan(name, world.servers[name].prepared())
    return [(item.action, item.reason) for item in items]


def test_a_decision_that_is_not_on_disk_is_no_commit_record() -> None:
    world = world_that_is_up()
    decide(world, begin(world))
    assert planned(world, "p1") == [(Action.LEAVE, PlanReason.LIVE_IN_THIS_EPOCH)]
    make_durable(world)
    assert planned(world, "p1") == [(Action.COMMIT, PlanReason.COMMIT_RECORD)]


def test_a_plan_as_a_message_tells_results_only_of_what_is_done() -> None:
    world = world_that_is_up()
    found = begin(world)
    decide(world, found)
    make_durable(world)
    foreign = Xid(1, b"x", b"y")
    ahead = Xid.of(str(Gtrid(ID, 9, 1 << 16)), 1)
    items = world.core.plan("p1", (*world.servers["p1"].prepared(), foreign, ahead))
    messages = convert.plan_items(items, lambda item: "done")
    assert {(m.reason, m.action, m.result) for m in messages} == {
        ("FOREIGN", "leave", ""),
        ("COMMIT_RECORD", "commit", "done"),
        ("EPOCH_AHEAD_OF_LOG", "hold", ""),
    }
