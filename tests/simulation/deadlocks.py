"""Deadlocks of the whole world, as only somebody who sees every server at once can see them.

While nothing is wrong (the calm, or a run without faults and with good weather) none may last: transactions
of one coordinator that wait for each other, all undecided and all their participants UP, are given a few
seconds, in which agents look, tell and tell again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coordinator.core.states import ParticipantState

if TYPE_CHECKING:
    from tests.simulation.world import World

LONGEST_SECONDS = 3.0
_LOOK_SECONDS = 0.2


class Deadlocks:
    """Looks again and again; `longest` is the longest that one lasted while nothing was wrong."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._since: dict[frozenset[str], float] = {}
        self.longest = 0.0

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = self._world.loop.time()
            circles = self.circles() if self._is_fine() else set()
            self._since = {circle: self._since.get(circle, now) for circle in circles}
            for circle, since in self._since.items():
                self.longest = max(self.longest, now - since)
                if now - since > LONGEST_SECONDS:
                    self._world.oracle.violated("DEADLOCK", f"{sorted(circle)} wait for each other")

    def _is_fine(self) -> bool:
        world = self._world
        weather = world.network.weather
        good = not (weather.wild or weather.slow)
        return world.calm or (good and not world.plan.faults)

    def circles(self) -> set[frozenset[str]]:
        """The undecided transactions that wait for each other: strongly connected components."""
        edges = self.edges()
        found = set()
        for start in edges:
            behind = _reachable(start, edges)
            if start in behind:
                circle = frozenset(one for one in behind if start in _reachable(one, edges))
                if len(circle) > 1:
                    found.add(circle)
        return found

    def edges(self) -> dict[str, set[str]]:
        """Who waits for whom, of one coordinator that runs and has decided neither."""
        ways: dict[str, set[str]] = {}
        for server in self._world.servers.values():
            named = {b.transaction: b.xid.gtrid.decode("latin-1") for b in server.branches.values()}
            for wait in server.locks.waits():
                waiter = named.get(wait.transaction)
                before = list(wait.lock.in_the_way(wait))
                # Those that queue before it have to wait for the holder, too, and are in the way only then.
                for other in [one for one in before if one in wait.lock.holders] or before:
                    blocker = named.get(other)
                    if not (waiter and blocker and waiter[2:6] == blocker[2:6]):
                        continue
                    if self._undecided(waiter) and self._undecided(blocker):
                        ways.setdefault(waiter, set()).add(blocker)
        return ways

    def _undecided(self, gtrid: str) -> bool:
        node = self._world.coordinators.get(gtrid[2:6])
        if node is None or not node.alive or node.driver is None:
            return False
        core = node.driver.core
        transaction = core.open.get(gtrid)
        if transaction is None or transaction.decision is not None:
            return False
        return all(core.participants[name].state is ParticipantState.UP for name in transaction.branches)


def _reachable(start: str, ways: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [*ways.get(start, ())]
    while ahead:
        one = ahead.pop()
        if one not in found:
            found.add(one)
            ahead += ways.get(one, ())
    return found
