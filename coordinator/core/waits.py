"""Waits: the wait-for graph across servers, its circles, and who has to go.

Each agent tells, again and again while there are any, all lock waits of our branches at its server. A circle
may lie across several servers, and their snapshots are of different moments, so:

 1. an edge is there from the snapshot that told it first to the last one, if none in between lacked it;
 2. a circle counts when each of its edges was told again after the last of them had appeared: then all of
    them were there at that moment, and locks of undecided transactions do not come and go;
 3. the youngest of the circle is rolled back: DEADLOCK, which is retryable. A retry is younger still, so the
    oldest of all never loses. Then the rest is looked at again.

An edge between transactions of which one is decided, or of a branch that has voted, goes by itself. Nothing
here is durable: after a restart nothing is undecided.

Cost: a snapshot is read once; edges to those that wait for nothing, which are most, are dropped at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from coordinator.core.context import Context
from coordinator.core.effects import Rejection
from coordinator.core.inputs import Wait, WaitsReported
from coordinator.core.states import State
from coordinator.core.transaction import Transaction
from coordinator.core.two_phase import TwoPhase
from dtp import Reason

_MOST_AT_ONCE = 16  # circles that are broken in one step; the rest is told again soon
_TOLD_CIRCLE = 4  # members of a circle that its victim is told of


@dataclass(slots=True)
class Snapshot:
    """What a participant has told last.

    Attributes:
        link: of the connection that told it.
        seen: its number among all snapshots.
        since: (who waits, for whom) -> the snapshot from which on that has been told without a gap.
        waits: by who waits.
    """

    link: int
    seen: int
    since: dict[tuple[str, str], int] = field(default_factory=dict)
    waits: dict[str, list[Wait]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Edge:
    """A transaction waits for another one at a participant."""

    waiter: str
    blocker: str
    participant: str
    since: int


class Waits:
    """The graph. `deadlocks` counts the circles that were broken."""

    def __init__(self, context: Context, two_phase: TwoPhase) -> None:
        self._context = context
        self._two_phase = two_phase
        self._snapshots: dict[str, Snapshot] = {}
        self._count = 0
        self.deadlocks = 0

    def reported(self, event: WaitsReported, now: float) -> None:
        """An agent has told who waits at its server now."""
        participant = self._context.participants.get(event.participant)
        if participant is None or event.link != participant.link:
            return
        self._count += 1
        if not event.waits:
            self._snapshots.pop(participant.name, None)
            return
        before = self._snapshots.get(participant.name)
        known = before.since if before is not None and before.link == event.link else {}
        snapshot = Snapshot(event.link, self._count)
        for wait in event.waits:
            snapshot.waits.setdefault(wait.gtrid, []).append(wait)
            if wait.blocker:
                pair = (wait.gtrid, wait.blocker)
                snapshot.since[pair] = known.get(pair, self._count)
        self._snapshots[participant.name] = snapshot
        self._break_circles(now)

    def of(self, gtrid: str, participant: str) -> list[Wait]:
        """What a branch waits for now, for people."""
        snapshot = self._present(participant)
        if snapshot is None or not self._waits_still(gtrid, participant):
            return []
        return snapshot.waits.get(gtrid, [])

    def all(self) -> Iterator[tuple[str, Wait]]:
        """(participant, wait) of every branch that waits now."""
        for participant in self._snapshots:
            snapshot = self._present(participant)
            for gtrid in snapshot.waits if snapshot is not None else ():
                for wait in self.of(gtrid, participant):
                    yield participant, wait

    def _present(self, participant: str) -> Snapshot | None:
        """What was told over the present connection."""
        snapshot = self._snapshots.get(participant)
        if snapshot is None or not self._context.is_up(participant):
            return None
        return snapshot if snapshot.link == self._context.participants[participant].link else None

    def _undecided(self, gtrid: str) -> Transaction | None:
        transaction = self._context.open.get(gtrid)
        return transaction if transaction is not None and transaction.decision is None else None

    def _may_go(self, gtrid: str) -> bool:
        """Undecided, and not its only agent's to decide: that one waits at one server alone, which sees its
        deadlocks itself."""
        transaction = self._undecided(gtrid)
        return transaction is not None and not (
            transaction.one_phase and transaction.state is State.PREPARING
        )

    def _waits_still(self, gtrid: str, participant: str) -> bool:
        transaction = self._undecided(gtrid)
        branch = transaction.branches.get(participant) if transaction is not None else None
        return branch is not None and branch.vote is None and branch.open

    def _break_circles(self, now: float) -> None:
        edges = self._edges()
        for _ in range(_MOST_AT_ONCE):
            circle = self._confirmed(edges)
            if not circle:
                return
            victim = self._youngest(circle)
            self._roll_back(victim, edges, now)
            edges = [edge for edge in edges if victim.gtrid not in (edge.waiter, edge.blocker)]

    def _edges(self) -> list[Edge]:
        """What may be part of a circle: between undecided transactions, and to those that wait themselves."""
        snapshots = {name: snapshot for name in self._snapshots if (snapshot := self._present(name))}
        waiters = {waiter for snapshot in snapshots.values() for waiter in snapshot.waits}
        return [
            Edge(waiter, blocker, name, since)
            for name, snapshot in snapshots.items()
            for (waiter, blocker), since in snapshot.since.items()
            if blocker in waiters and self._waits_still(waiter, name) and self._may_go(blocker)
        ]

    def _confirmed(self, edges: list[Edge]) -> set[str]:
        """Transactions each of which is part of a circle that counts; empty where there is none."""
        for component in _components(edges):
            inside = [e for e in edges if e.waiter in component and e.blocker in component]
            while inside:
                last = {e.participant: self._snapshots[e.participant].seen for e in inside}
                silent = min(last, key=lambda name: last[name])
                proved = [e for e in inside if e.since < last[silent]]
                for circle in _components(proved):
                    return circle
                # Perhaps there is one without the participant that has told nothing for the longest time.
                inside = [e for e in inside if e.participant != silent]
        return set()

    def _youngest(self, circle: Iterable[str]) -> Transaction:
        """Who began last."""
        return max((self._context.open[gtrid] for gtrid in circle), key=lambda t: (t.begun_at, t.gtrid))

    def _roll_back(self, victim: Transaction, edges: list[Edge], now: float) -> None:
        path = _circle_of(victim.gtrid, edges)
        told = "; ".join(f"{e.waiter} waits for {e.blocker} at {e.participant}" for e in path[:_TOLD_CIRCLE])
        more = f"; and {len(path) - _TOLD_CIRCLE} more" if len(path) > _TOLD_CIRCLE else ""
        message = f"deadlock across servers, and this transaction began last: {told}{more}; run it again"
        at = path[0].participant if path else ""
        if self._two_phase.reject(victim, Rejection(Reason.DEADLOCK, message, at), now):
            self.deadlocks += 1


def _components(edges: list[Edge]) -> list[set[str]]:
    """The strongly connected components of more than one member, by Tarjan's algorithm without recursion."""
    ways: dict[str, list[str]] = {}
    for edge in edges:
        if edge.waiter != edge.blocker:
            ways.setdefault(edge.waiter, []).append(edge.blocker)
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    on_path: set[str] = set()
    found: list[set[str]] = []
    for start in ways:
        if start in number:
            continue
        work = [(start, iter(ways[start]))]
        number[start] = low[start] = len(number)
        path.append(start)
        on_path.add(start)
        while work:
            one, others = work[-1]
            for other in others:
                if other not in number:
                    number[other] = low[other] = len(number)
                    path.append(other)
                    on_path.add(other)
                    work.append((other, iter(ways.get(other, ()))))
                    break
                if other in on_path:
                    low[one] = min(low[one], number[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[one])
                if low[one] == number[one]:
                    component = set()
                    while one not in component:
                        component.add(path.pop())
                    on_path -= component
                    if len(component) > 1:
                        found.append(component)
    return found


def _circle_of(start: str, edges: list[Edge]) -> list[Edge]:
    """A shortest circle through `start`, edge by edge, beginning with what `start` waits for."""
    ways: dict[str, list[Edge]] = {}
    for edge in edges:
        ways.setdefault(edge.waiter, []).append(edge)
    came_by: dict[str, Edge] = {}
    ring = [start]
    while ring:
        outer = []
        for one in ring:
            for edge in ways.get(one, ()):
                if edge.blocker == start:
                    circle = [edge]
                    while circle[-1].waiter != start:
                        circle.append(came_by[circle[-1].waiter])
                    return circle[::-1]
                if edge.blocker not in came_by:
                    came_by[edge.blocker] = edge
                    outer.append(edge.blocker)
        ring = outer
    return []
