"""Timers: a heap of (when, name). Names that are no longer wanted are dropped when they come up."""

from __future__ import annotations

import heapq

from dtp.term import Term


class TimerKind(Term):
    """What a timer is for."""

    DEADLINE = "DEADLINE"
    RETRY = "RETRY"
    RESCAN = "RESCAN"
    SWEEP = "SWEEP"
    FIRST_CONTACT = "FIRST_CONTACT"


class Timers:
    """Pending wake-ups. Times are those of the core's `now`, in seconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, TimerKind, str, str]] = []
        self._count = 0

    def add(self, when: float, kind: TimerKind, gtrid: str = "", participant: str = "") -> None:
        """Wake up at `when` for `kind`."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, kind, gtrid, participant))

    @property
    def next(self) -> float | None:
        """When the first timer is due, or None."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[tuple[TimerKind, str, str]]:
        """Take out all timers due at `now`, in order."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            _, _, kind, gtrid, participant = heapq.heappop(self._heap)
            found.append((kind, gtrid, participant))
        return found
