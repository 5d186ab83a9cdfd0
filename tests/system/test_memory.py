"""Memory: what 10,000 open transactions take, and that nothing is left of those that have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest

from coordinator.v1 import coordinator_pb2, coordinator_pb2_grpc
from tests.bad_input.support import resident
from tests.system.conftest import System

OPEN = 10_000
_AT_ONCE = 100
_KEEP_ENDED_SECONDS = 1


async def _each(make: Callable[[int], Coroutine[Any, Any, Any]], count: int) -> list[Any]:
    """Calls with the numbers below `count`, a hundred at a time."""
    numbers = iter(range(count))
    done: list[Any] = []

    async def some() -> None:
        for number in numbers:
            done.append(await make(number))

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
    return done


async def _open_and_end(address: str, pid: int) -> int:
    """Begin them all, look, and roll them back. Returns the coordinator's bytes while all are open."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        begun = await _each(lambda _: stub.Begin(coordinator_pb2.BeginRequest()), OPEN)
        gtrids = [response.gtrid for response in begun]
        assert len(set(gtrids)) == OPEN
        size = resident(pid)
        await _each(lambda n: stub.Rollback(coordinator_pb2.RollbackRequest(gtrid=gtrids[n])), OPEN)
        return size


@pytest.mark.engines("mariadb")
def test_what_has_ended_is_dropped(make_system: Callable[..., System]) -> None:
    system = make_system(settings=f"[transactions]\nkeep_ended = {_KEEP_ENDED_SECONDS}\n")
    pid, address = system.cluster.coordinator.pid, system.cluster.address
    before = resident(pid)
    sizes = [asyncio.run(_open_and_end(address, pid)) for _ in range(4)]
    each = (sizes[0] - before) / OPEN
    print(f"{each:,.0f} bytes for each that is open; in all {sizes} in four rounds, {before} before")
    assert sizes[0] - before < OPEN * 6_000
    # What the allocator keeps grows less and less (in ten rounds to 1.6 times a round's and no further); were
    # what is dropped kept, two rounds would add two rounds' worth.
    assert sizes[3] - sizes[1] < sizes[0] - before
    assert system.cluster.metric("xacoord_transactions_active", state="ACTIVE") in (0, None)
    system.run(system.new_id())
