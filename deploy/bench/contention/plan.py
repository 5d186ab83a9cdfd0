"""Contention's plan: who wants which rows, for how long. Pure, as the other plan.

    raw          XA by hand, branch after branch, with the lock wait time-out that servers have (50 s). It is
                 all that ends a deadlock across servers there
    one-shot     Run; all branches at once
    interactive  Begin, Execute on each server, Commit

The sides take turns as in the other benchmarks. A slot of raw is longer than twice its time-out: it works
well until there is a deadlock, soon everybody waits for somebody who waits, and all begin again when the
time-out comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deploy.bench.plan import INTERACTIVE, ONE_SHOT, PROCESSES, RAW, Case, Plan, Side, Variant

BRANCHES = 2
PROBES = 2
_START_SECONDS, _SLOT_SECONDS = 15.0, 2.0  # for the estimate only


@dataclass(frozen=True)
class ContentionPlan:
    """Raw and ours, `rounds` times.

    Attributes:
        rows: on each server.
        lock_wait_seconds: of everybody's sessions.
        seconds: of a slot of ours; raw_seconds: of one of raw.
    """

    rows: int = 100
    clients: int = 32
    lock_wait_seconds: int = 50
    agents: tuple[str, ...] = (PROCESSES,)
    rounds: int = 2
    seconds: float = 15.0
    raw_seconds: float = 110.0
    warm_up_seconds: float = 0.5

    @property
    def sides(self) -> tuple[Side, ...]:
        """What takes turns."""
        variants = [Variant(agents, lock_wait_seconds=self.lock_wait_seconds) for agents in self.agents]
        ours = [Side(kind, variant) for kind in (ONE_SHOT, INTERACTIVE) for variant in variants]
        return (Side(RAW), *ours)

    def beds_plan(self) -> Plan:
        """What has to be set up, in the words of the other benchmark."""
        return Plan((Case(BRANCHES, self.clients + PROBES),), self.sides, self.rounds, self.seconds)

    def seconds_of(self, side: Side) -> float:
        """Of a slot, without its warm-up."""
        return self.raw_seconds if side.kind == RAW else self.seconds

    def order(self) -> Iterator[tuple[Side, ...]]:
        """The sides of each round."""
        return self.beds_plan().order()

    def estimate_seconds(self) -> float:
        """How long it takes, about."""
        slots = sum(self.seconds_of(side) + self.warm_up_seconds + _SLOT_SECONDS for side in self.sides)
        return _START_SECONDS + self.rounds * slots
