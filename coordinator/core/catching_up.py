"""Catching up: phase 2 at a participant that has come back and has thousands of branches waiting for it.

They are asked some at a time: an agent ends them on a few sessions, and what is sent to it beyond that only
waits there, in front of the transactions that have begun since. The next ones go out when half of these have
been answered, so that they go in large messages.

The newest first, because MySQL looks for an XID among all that are prepared, beginning with the newest: the
other way round, N commits cost it N*N/2 comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.core.context import Context

AT_ONCE = 128


@dataclass(slots=True)
class _Backlog:
    """Of one participant: gtrids that wait, the newest last, and those that have been asked."""

    waiting: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)


class CatchingUp:
    """What waits for each participant.

    Args:
        ask: (gtrid, participant): sends the branch its command if it is still waiting for one, and says
            whether it has.
    """

    def __init__(self, context: Context, ask: Callable[[str, str], bool]) -> None:
        self._context = context
        self._ask = ask
        self._backlogs: dict[str, _Backlog] = {}

    def begin(self, participant: str) -> None:
        """The participant may be asked: ask for all that is open there."""
        backlog = self._backlogs.setdefault(participant, _Backlog())
        backlog.waiting = [
            transaction.gtrid
            for transaction in self._context.open.values()
            if (branch := transaction.branches.get(participant)) is not None and not branch.sent
        ]
        self._ask_more(participant, backlog)

    def answered(self, participant: str, gtrid: str) -> None:
        """A branch has answered, no matter what."""
        backlog = self._backlogs.get(participant)
        if backlog is not None and gtrid in backlog.asked:
            backlog.asked.discard(gtrid)
            if len(backlog.asked) <= AT_ONCE // 2:
                self._ask_more(participant, backlog)

    def lost(self, participant: str) -> None:
        """Nothing more can be asked; what was, will not be answered."""
        self._backlogs.pop(participant, None)

    def _ask_more(self, participant: str, backlog: _Backlog) -> None:
        while backlog.waiting and len(backlog.asked) < AT_ONCE:
            gtrid = backlog.waiting.pop()
            if self._ask(gtrid, participant):
                backlog.asked.add(gtrid)
