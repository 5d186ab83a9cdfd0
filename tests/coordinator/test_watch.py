"""Watch: whoever watches hears the end, however slowly he reads and whatever has been forgotten meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.core import inputs
from coordinator.runtime import Runtime
from coordinator.service import CoordinatorService
from coordinator.v1 import coordinator_pb2 as pb
from tests.coordinator.transactions import begin, deliver, world_that_is_up
from tests.core.world import World


class Driver:
    """A driver's watchers, without anything to drive."""

    def __init__(self, world: World) -> None:
        self.core = world.core
        self.clock = lambda: world.now
        self.watched: dict[str, asyncio.Event] = {}

    def watch(self, gtrid: str) -> asyncio.Event:
        return self.watched.setdefault(gtrid, asyncio.Event())

    def unwatch(self, gtrid: str, changed: asyncio.Event) -> None:
        assert self.watched.pop(gtrid) is changed


def roll_back(world: World, gtrid: str) -> None:
    world.feed(inputs.RollbackRequested(world.new_ticket(gtrid), gtrid))
    for name in world.servers:
        deliver(world, name)


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("while_taking", [False, True], ids=["while it waits", "while it takes a state"])
def test_the_end_is_heard(while_taking: bool, forgotten: bool) -> None:
    async def test() -> None:
        world = world_that_is_up()
        found = begin(world)
        driver = Driver(world)
        service = CoordinatorService(cast("Runtime", SimpleNamespace(driver=driver)))
        states = service.Watch(pb.WatchRequest(gtrid=found.gtrid), cast("Any", None))
        assert (await anext(states)).transaction.state == pb.STATE_ACTIVE
        # Suspended in the yield: gRPC is still writing, or the reader has no room for more.
        waiting = None
        if not while_taking:
            waiting = asyncio.ensure_future(anext(states))
            await asyncio.sleep(0)
        roll_back(world, found.gtrid)
        assert found.ended
        if forgotten:
            world.core.open.pop(found.gtrid, None)
            world.core.ended.pop(found.gtrid, None)
        driver.watched[found.gtrid].set()
        last = await (waiting or anext(states))
        assert last.transaction.state == pb.STATE_ROLLED_BACK
        with pytest.raises(StopAsyncIteration):
            await anext(states)
        assert not driver.watched

    asyncio.run(test())
