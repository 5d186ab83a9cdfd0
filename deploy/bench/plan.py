"""Plan: what is measured, on which sides, in which order. Pure: nothing here starts or waits for anything.

A *case* is what clients do and how many they are, a *side* is how they do it, a *slot* is one side at work in
one case for some seconds. A round has one slot of every side; rounds go forwards and backwards in turn (A B
C, C B A, ...), so that what drifts slowly weighs on every side alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

RAW = "raw"
RAW_FAST = "raw-fast"
ONE_SHOT = "one-shot"
INTERACTIVE = "interactive"
KINDS = (RAW, RAW_FAST, ONE_SHOT, INTERACTIVE)
OURS = (ONE_SHOT, INTERACTIVE)
PROCESSES = "processes"
IN_PROCESS = "in-process"

# What a slot leaves out at its beginning: the first transactions find cold caches and idle processors, and
# all clients begin at once; the more they are, the longer they take until they are evenly spread.
_WARM_UP_SECONDS = 0.25
_WARM_UP_SECONDS_A_CLIENT = 0.004
# Once for each side of a case: connections are made then.
REHEARSAL_SECONDS = 0.5
# The shortest that a coordinator can be given: each witness row is deleted once, by the side that wrote it.
RETENTION_SECONDS = 1
_BEYOND_THE_LOCK_WAIT_SECONDS = 20
# For the estimate only: starting what is measured, and the load processes of a case.
_START_SECONDS = 12.0
_CASE_SECONDS = 2.5


@dataclass(frozen=True)
class Case:
    """What clients do.

    Attributes:
        branches: servers that take part in each transaction.
        clients: that work at the same time.
        read_only: each branch reads a row instead of changing one.
    """

    branches: int
    clients: int
    read_only: bool = False

    @property
    def warm_up_seconds(self) -> float:
        """Of a slot; they do not count."""
        return _WARM_UP_SECONDS + self.clients * _WARM_UP_SECONDS_A_CLIENT

    @property
    def title(self) -> str:
        """For people."""
        what = "reading" if self.read_only else "writing"
        return f"{counted(self.branches, 'branch', 'branches')} {what}, {counted(self.clients, 'client')}"


@dataclass(frozen=True)
class Variant:
    """How the coordinator's side is set up.

    Attributes:
        agents: PROCESSES, one beside each server; or IN_PROCESS, all of them in the coordinator's.
        witness: agents write the rows that prove commits.
        coordinators: that share the clients and the agents.
        lock_wait_seconds: of the agents' sessions; 0: as they come.
        retention_seconds: how long witness rows outlive their transaction; 0: as it comes.
    """

    agents: str = PROCESSES
    witness: bool = True
    coordinators: int = 1
    lock_wait_seconds: int = 0
    retention_seconds: int = RETENTION_SECONDS

    @property
    def timeout_seconds(self) -> int:
        """Of transactions, where the lock wait time-out is given: longer than that, so that whoever waits for
        a lock is ended by nothing else. 0: as they come."""
        return self.lock_wait_seconds and self.lock_wait_seconds + _BEYOND_THE_LOCK_WAIT_SECONDS

    @property
    def label(self) -> str:
        """What differs from the usual, for people; "" where nothing does."""
        parts = [] if self.agents == PROCESSES else ["in-process"]
        parts += [] if self.witness else ["no witness"]
        parts += [f"{self.coordinators} coordinators"] if self.coordinators > 1 else []
        return ", ".join(parts)


def one_thing_more(variant: Variant, other: Variant) -> bool:
    """Whether `variant` is as `other` but for one thing, of which it has more: agents in the coordinator's
    process, witness rows, or coordinators."""
    ours, others = ((it.agents == IN_PROCESS, it.witness, it.coordinators) for it in (variant, other))
    return sum(a != b for a, b in zip(ours, others, strict=True)) == 1 and ours > others


@dataclass(frozen=True)
class Side:
    """How clients do it: one of KINDS; `variant` where the coordinator does the work, else None."""

    kind: str
    variant: Variant | None = None

    @property
    def label(self) -> str:
        """A name that no other side of a plan has."""
        more = self.variant.label if self.variant else ""
        return f"{self.kind}, {more}" if more else self.kind


@dataclass(frozen=True)
class Plan:
    """Every case on every side, `rounds` times `seconds`."""

    cases: tuple[Case, ...]
    sides: tuple[Side, ...]
    rounds: int
    seconds: float

    @property
    def branches(self) -> int:
        """Servers that are needed."""
        return max(case.branches for case in self.cases)

    @property
    def clients(self) -> int:
        """The most that work at the same time."""
        return max(case.clients for case in self.cases)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What has to be set up, each once."""
        return tuple(dict.fromkeys(side.variant for side in self.sides if side.variant))

    def order(self) -> Iterator[tuple[Side, ...]]:
        """The sides of each round, in their order."""
        for number in range(self.rounds):
            yield self.sides if number % 2 == 0 else self.sides[::-1]

    def estimate_seconds(self) -> float:
        """How long it takes, about."""
        seconds = _START_SECONDS
        for case in self.cases:
            side = self.rounds * (case.warm_up_seconds + self.seconds) + REHEARSAL_SECONDS
            seconds += _CASE_SECONDS + len(self.sides) * side
        return seconds


def standard_cases(clients: Sequence[int] = (1, 8, 32, 128), others: int = 32) -> tuple[Case, ...]:
    """Two branches at every number of clients; at one of them one branch, four branches, and reading."""
    return (
        *(Case(2, number) for number in clients),
        Case(1, others),
        Case(4, others),
        Case(2, others, read_only=True),
    )


def all_cases(branches: Sequence[int], clients: Sequence[int], read_only: bool) -> tuple[Case, ...]:
    """Every number of branches with every number of clients."""
    return tuple(Case(width, number, read_only) for width in branches for number in clients)


def all_sides(kinds: Sequence[str], variants: Sequence[Variant]) -> tuple[Side, ...]:
    """The kinds in the order of KINDS, those that are ours once for each variant."""
    return tuple(
        Side(kind, variant)
        for kind in KINDS
        if kind in kinds
        for variant in (variants if kind in OURS else (None,))
    )


def all_variants(
    agents: Sequence[str], witness: Sequence[bool], coordinators: Sequence[int]
) -> tuple[Variant, ...]:
    """Every combination."""
    return tuple(
        Variant(hosting, rows, number) for hosting in agents for rows in witness for number in coordinators
    )


def counted(number: int, one: str, many: str = "") -> str:
    """For people: 1 branch, 2 branches."""
    return f"{number} {one if number == 1 else many or one + 's'}"
