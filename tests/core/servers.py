"""Servers and agents as the core sees them from outside: a small model without time.

A branch is active, prepared, committed, rolled_back or read_only. What an agent answers follows from that
alone, as the witness row lets a real agent do. Fault model: a broken link loses what is under way in both
directions, before or after the server did it; an operator may end a prepared branch (`interfere`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from coordinator.core import effects, inputs
from dtp import Gtrid, Outcome, Vote, Xid

Report = inputs.BranchVoted | inputs.BranchFinished | inputs.BranchEnlisted


@dataclass
class Server:
    """One participant: its server, its agent and the connection to it.

    Attributes:
        branches: gtrid -> state.
        worked: gtrids whose branch the coordinator has accepted; a commit must reach all of them.
        commands, reports: under way.
        zombies: commands of a coordinator that is dead; they may still arrive until the fence.
    """

    name: str
    number: int
    branches: dict[str, str] = field(default_factory=dict)
    worked: set[str] = field(default_factory=set)
    commands: deque[tuple[str, effects.Command]] = field(default_factory=deque)
    reports: deque[Report] = field(default_factory=deque)
    zombies: deque[tuple[str, effects.Command]] = field(default_factory=deque)
    link: int = 0
    connected: bool = False

    def fence(self, epoch: int) -> None:
        """Sessions of older epochs end, active branches with them, and what was still under way to them."""
        self.zombies.clear()
        for gtrid, state in self.branches.items():
            if state == "active" and Gtrid.parse(gtrid).epoch < epoch:
                self.branches[gtrid] = "rolled_back"

    def prepared(self) -> tuple[Xid, ...]:
        """XA RECOVER."""
        return tuple(Xid.of(g, self.number) for g, state in self.branches.items() if state == "prepared")

    def crash(self) -> None:
        """The coordinator has died."""
        self.zombies.extend(self.commands)
        self.commands.clear()
        self.reports.clear()
        self.connected, self.link = False, 0

    def execute_late(self) -> None:
        """A command of a dead coordinator arrives; nobody hears the answer."""
        gtrid, command = self.zombies.popleft()
        kept = self.commands, self.reports
        self.commands, self.reports = deque([(gtrid, command)]), deque()
        self.execute(Vote.OK, busy=False)
        self.commands, self.reports = kept

    def execute(self, vote: Vote, busy: bool) -> None:
        """Do the first command and queue its report. `vote`: of a branch that can still choose."""
        gtrid, command = self.commands.popleft()
        state = self.branches.get(gtrid)
        match command:
            case effects.Run(one_phase=True):
                self._commit_one_phase(gtrid, "active", vote, False)
            case effects.Run():
                self._vote(gtrid, vote)
            case effects.Prepare():
                self._vote(gtrid, vote if state == "active" else Vote.ROLLBACK)
            case effects.Commit(one_phase=True):
                self._commit_one_phase(gtrid, state, vote, busy)
            case effects.Commit():
                self._finish(gtrid, None if busy else self._committed(gtrid, state))
            case effects.Rollback():
                self._finish(gtrid, None if busy else self._rolled_back(gtrid, state))
            case effects.Enlisted(accepted=True):
                self.worked.add(gtrid)
            case effects.Enlisted() if state == "active":
                self.branches[gtrid] = "rolled_back"

    def _vote(self, gtrid: str, vote: Vote) -> None:
        states = {Vote.OK: "prepared", Vote.READ_ONLY: "read_only", Vote.ROLLBACK: "rolled_back"}
        self.branches[gtrid] = states[vote]
        self.worked.add(gtrid)
        self.reports.append(inputs.BranchVoted(self.name, self.link, gtrid, vote))

    def _commit_one_phase(self, gtrid: str, state: str | None, vote: Vote, busy: bool) -> None:
        if busy:
            self._finish(gtrid, None)
            return
        if state == "active":
            self.branches[gtrid] = "rolled_back" if vote is Vote.ROLLBACK else "committed"
        is_committed = self.branches.get(gtrid) == "committed"
        self._finish(gtrid, Outcome.COMMITTED if is_committed else Outcome.ROLLED_BACK)

    def _committed(self, gtrid: str, state: str | None) -> Outcome:
        if state == "prepared":
            self.branches[gtrid] = "committed"
        is_committed = self.branches.get(gtrid) == "committed"
        return Outcome.COMMITTED if is_committed else Outcome.HEURISTIC_ROLLBACK

    def _rolled_back(self, gtrid: str, state: str | None) -> Outcome:
        if state == "committed":
            return Outcome.HEURISTIC_COMMIT
        if state != "read_only":
            self.branches[gtrid] = "rolled_back"
        return Outcome.ROLLED_BACK

    def _finish(self, gtrid: str, outcome: Outcome | None) -> None:
        self.reports.append(inputs.BranchFinished(self.name, self.link, gtrid, outcome))

    def enlist(self, gtrid: str) -> None:
        """A client's first statement."""
        if self.branches.get(gtrid) in (None, "rolled_back"):
            self.branches[gtrid] = "active"
        self.reports.append(inputs.BranchEnlisted(self.name, self.link, gtrid))

    def interfere(self, gtrid: str, state: str) -> None:
        """An operator ends a prepared branch by hand."""
        assert self.branches[gtrid] == "prepared"
        self.branches[gtrid] = state
