"""Recovery's plan: how many branches are in doubt, and in which order the sides take turns. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deploy.bench.plan import PROCESSES, RAW, Case, Plan, Side, Variant
from participant_agent.agent import FINISHERS

# Rows are kept: they are counted afterwards.
VARIANT = Variant(agents=PROCESSES, retention_seconds=0)
# For the estimate only.
_PREPARED_PER_SECOND, _COMMITTED_PER_SECOND, _START_SECONDS = 600.0, 1_000.0, 15.0


@dataclass(frozen=True)
class RecoveryPlan:
    """Every number of branches on both sides, `rounds` times.

    Attributes:
        branches: in doubt, on all servers together.
        servers: each transaction has a branch on all of them.
    """

    branches: tuple[int, ...]
    rounds: int
    servers: int = 2

    def estimate_seconds(self) -> float:
        """How long it takes, about."""
        branches = 2 * self.rounds * sum(self.branches)
        return _START_SECONDS + branches * (1 / _PREPARED_PER_SECOND + 1 / _COMMITTED_PER_SECOND)

    def beds_plan(self) -> Plan:
        """What has to be set up, in the words of the other benchmark."""
        return Plan((Case(self.servers, FINISHERS),), (Side(RAW), Side("one-shot", VARIANT)), 1, 1.0)

    def order(self) -> Iterator[tuple[bool, ...]]:
        """The sides of each round, in their order; True is ours."""
        for number in range(self.rounds):
            yield (False, True) if number % 2 == 0 else (True, False)
