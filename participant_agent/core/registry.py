"""Registry: every branch this process works on, which command it is at, and what became of the last ones.

Rules:
 1. Commands of one branch run one at a time, in order of arrival; those of different branches run together.
 2. A rollback that finds a statement or a prepare running does not queue behind its lock wait: the session is
    to be killed (`Interrupt`), and the rollback follows.
 3. A prepare that finds a statement running dooms the branch and votes ROLLBACK at once.
 4. A gtrid that ended is remembered (`ended`), so that a late Execute, Run or Prepare cannot bring it back to
    life. The memory is bounded; beyond it the coordinator's answer to Enlist, the epoch and the witness row's
    key protect.
 5. While a session that was given up may still work on a branch (`Entry.unended`), its entry stays, because
    nothing can be proved about the branch before that session has ended.
 6. A fence drops the branches of lower epochs: what still runs for them starts nothing new and tells nobody.
 7. A branch the registry does not know may still be prepared on the server (the agent was restarted): commit
    and rollback are performed on any session; prepare votes ROLLBACK.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TypeAlias

from dtp import BranchEvent, BranchState, Reason, Vote, next_branch_state
from dtp.term import Term

from .errors import Failure
from .finish import Finished, SessionUse, State
from .sessions import Session
from .work import Statement, Voted, Work

MAX_ENDED = 50_000


@dataclass(frozen=True, slots=True)
class Execute:
    """A client's statements."""

    statements: tuple[Statement, ...]
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """A whole branch in one command."""

    statements: tuple[Statement, ...]
    read_only: bool
    participants: tuple[int, ...]
    remaining_seconds: float
    one_phase: bool


@dataclass(frozen=True, slots=True)
class Prepare:
    """End and prepare."""

    participants: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit what is prepared; with `one_phase` what is not."""

    one_phase: bool = False


@dataclass(frozen=True, slots=True)
class Rollback:
    """Roll back in whatever state.

    Attributes:
        own: asked by the agent itself, nobody waits for the answer.
        why: what a client hears whose statement is under way; None: that it was rolled back.
    """

    own: bool = False
    why: Failure | None = None


Command: TypeAlias = Execute | Run | Prepare | Commit | Rollback


class EndedAs(Term):
    """How a remembered branch ended."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    READ_ONLY = "read only"
    HEURISTICALLY = "heuristically"  # how, only the server can tell


@dataclass(frozen=True, slots=True)
class Ended:
    """What is remembered of a branch that ended."""

    how: EndedAs
    failure: Failure | None = None


@dataclass(slots=True)
class Entry:
    """One branch.

    Attributes:
        work: what it did, where this process started it.
        session: the edge's session that it lives in, or None.
        running: the command that is being performed.
        doom: why it will not commit, or None.
        unended: a session that was closed without proof that it ended; it comes before anything else.
        dropped: a higher epoch was fenced; what still runs ends without a report.
        deadline: when an ACTIVE branch is rolled back without being told, in the driver's seconds, or None.
    """

    gtrid: str
    coordinator_id: str
    epoch: int
    state: BranchState = BranchState.NON_EXISTENT
    work: Work | None = None
    session: object | None = None
    running: Command | None = None
    waiting: deque[Command] = field(default_factory=deque)
    doom: Failure | None = None
    unended: Session | None = None
    dropped: bool = False
    deadline: float | None = None

    def move(self, event: BranchEvent) -> None:
        """Change state by the table in dtp/branch.py; an event it does not have is a bug of ours."""
        state = next_branch_state(self.state, event)
        if state is None:
            raise AssertionError(f"branch {self.gtrid}: {event.value} in state {self.state.value}")
        self.state = state


@dataclass(frozen=True, slots=True)
class Perform:
    """Do it now; `Registry.done` afterwards."""

    entry: Entry
    command: Command


@dataclass(frozen=True, slots=True)
class Queued:
    """It follows when what runs has ended."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Kill the branch's session. `answer` goes out at once where there is one, else the command is queued."""

    entry: Entry
    answer: Voted | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Nothing to do; this is the answer."""

    result: Voted | Finished


@dataclass(frozen=True, slots=True)
class Settled:
    """Nothing to do, and nobody waits for an answer."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """A client's call is refused."""

    failure: Failure


Action: TypeAlias = Perform | Queued | Interrupt | Answer | Settled | Refuse

_BUSY = Failure(Reason.BRANCH_BUSY, "a statement of this branch was still running")
_NOT_KNOWN = Failure(
    Reason.BRANCH_LOST, "the agent does not know this branch; it ended or the agent was restarted"
)
_ROLLED_BACK = Failure(Reason.ALREADY_ROLLED_BACK, "the branch was rolled back")


class Registry:
    """The branches of one agent."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.ended: OrderedDict[str, Ended] = OrderedDict()

    def arrive(self, gtrid: str, coordinator_id: str, epoch: int, command: Command) -> Action:
        """What to do about a command (or a client's call) that arrived now."""
        unasked = isinstance(command, Rollback) and command.own
        entry = self.entries.get(gtrid)
        if unasked and (entry is None or (entry.running is None and entry.state is BranchState.PREPARED)):
            return Settled()  # it has ended meanwhile, or voted OK: then only the coordinator decides
        action = self._arrive(gtrid, coordinator_id, epoch, command)
        return Settled() if unasked and isinstance(action, Answer) else action

    def _arrive(self, gtrid: str, coordinator_id: str, epoch: int, command: Command) -> Action:
        entry = self.entries.get(gtrid)
        if entry is None:
            return self._arrive_unknown(gtrid, coordinator_id, epoch, command)
        if isinstance(command, Execute):
            return self._execute(entry, command)
        if entry.running is None:
            return self._begin(entry, command)
        if isinstance(command, Prepare) and isinstance(entry.running, Execute):
            entry.doom = entry.doom or _BUSY
            return Interrupt(entry, Voted(Vote.ROLLBACK, SessionUse.CLOSE, entry.doom))
        if command != entry.running and command not in entry.waiting:  # one report answers every repetition
            entry.waiting.append(command)
        if isinstance(command, Rollback) and isinstance(entry.running, Execute | Run | Prepare):
            entry.doom = entry.doom or command.why or _ROLLED_BACK
            return Interrupt(entry)
        return Queued()

    def _arrive_unknown(self, gtrid: str, coordinator_id: str, epoch: int, command: Command) -> Action:
        ended = self.ended.get(gtrid)
        if ended is not None:
            known = _answer_ended(ended, command)
            if known is not None:
                return known
        elif isinstance(command, Prepare):
            self.remember(gtrid, Ended(EndedAs.ROLLED_BACK, _NOT_KNOWN))
            return Answer(Voted(Vote.ROLLBACK, SessionUse.CLOSE, _NOT_KNOWN))
        entry = Entry(gtrid, coordinator_id, epoch)
        self.entries[gtrid] = entry
        entry.running = command
        return Perform(entry, command)

    def _execute(self, entry: Entry, command: Execute) -> Action:
        if entry.running is not None:
            if isinstance(entry.running, Execute):
                return Refuse(
                    Failure(Reason.BRANCH_BUSY, "another call of this branch is running; call one by one")
                )
            return Refuse(Failure(Reason.TRANSACTION_NOT_ACTIVE, "the transaction is being ended"))
        if entry.doom is not None:
            return Refuse(_doomed(entry.doom))
        if entry.state is not BranchState.ACTIVE:
            return Refuse(Failure(Reason.TRANSACTION_NOT_ACTIVE, f"the branch is {entry.state.value}"))
        entry.running = command
        return Perform(entry, command)

    def _begin(self, entry: Entry, command: Command) -> Action:
        """A command of the coordinator finds an idle branch."""
        settled = _settled(entry, command)
        if settled is not None:
            return Answer(settled)
        if isinstance(command, Rollback) and entry.state is BranchState.ACTIVE:
            entry.doom = entry.doom or command.why
        entry.running = command
        return Perform(entry, command)

    def done(self, entry: Entry) -> list[Action]:
        """The running command has ended; what follows for those that waited.

        A branch in state NON_EXISTENT is forgotten first: what was known of its end is in `ended`.
        """
        entry.running = None
        if entry.dropped:
            return []
        over = entry.state is BranchState.NON_EXISTENT and entry.unended is None
        if over and self.entries.get(entry.gtrid) is entry:
            del self.entries[entry.gtrid]
        actions: list[Action] = []
        while entry.waiting:
            command = entry.waiting.popleft()
            action = self.arrive(entry.gtrid, entry.coordinator_id, entry.epoch, command)
            actions.append(action)
            if isinstance(action, Perform):
                action.entry.waiting.extend(entry.waiting if action.entry is not entry else ())
                break
        return actions

    def release_waiting(self, entry: Entry, why: Failure) -> list[Voted | Finished]:
        """A rollback of our own did not succeed yet: those that wait hear so instead of nothing."""
        answers: list[Voted | Finished] = []
        for command in entry.waiting:
            if isinstance(command, Prepare) or (isinstance(command, Run) and not command.one_phase):
                answers.append(Voted(Vote.ROLLBACK, SessionUse.CLOSE, entry.doom or why))
            elif not (isinstance(command, Rollback) and command.own):
                answers.append(Finished(State.RETRY, SessionUse.CLOSE, why))
        entry.waiting.clear()
        return answers

    def drop(self, entry: Entry, why: Failure) -> None:
        """A higher epoch was fenced. The entry stays until `forget`: its sessions are to be ended first."""
        entry.dropped = True
        entry.doom = entry.doom or why
        entry.waiting.clear()

    def forget(self, entry: Entry) -> None:
        """No session works on a dropped branch any more."""
        if self.entries.get(entry.gtrid) is entry:
            del self.entries[entry.gtrid]

    def remember(self, gtrid: str, ended: Ended) -> None:
        """Keep how a branch ended, and forget the oldest beyond the bound."""
        self.ended[gtrid] = ended
        if len(self.ended) > MAX_ENDED:
            self.ended.popitem(last=False)

    def forget_below(self, coordinator_id: str, below: str) -> None:
        """Drop the memory of transactions that ended for good."""
        prefix = below[:2] + coordinator_id
        for gtrid in [g for g in self.ended if g.startswith(prefix) and g < below]:
            del self.ended[gtrid]

    def of_lower_epochs(self, coordinator_id: str, epoch: int) -> list[Entry]:
        """The branches that a fence at `epoch` ends."""
        return [e for e in self.entries.values() if e.coordinator_id == coordinator_id and e.epoch < epoch]

    def overdue(self, now: float) -> list[Entry]:
        """ACTIVE branches past their deadline."""
        return [
            entry
            for entry in self.entries.values()
            if entry.deadline is not None and entry.deadline <= now and entry.state is BranchState.ACTIVE
        ]


def _doomed(why: Failure) -> Failure:
    return Failure(Reason.BRANCH_DOOMED, f"the branch will be rolled back: {why.message}", why.errno)


def _answer_ended(ended: Ended, command: Command) -> Action | None:
    """The answer about a branch that ended, or None where the server has to be asked.

    A rollback always goes to the server: the coordinator repeats it when a scan lists the branch all the
    same (MariaDB may lose an acknowledged rollback in a crash), and then memory is what is wrong.
    """
    why = ended.failure or _ROLLED_BACK
    if isinstance(command, Execute):
        if ended.how is EndedAs.ROLLED_BACK:
            return Refuse(_doomed(why))
        return Refuse(Failure(Reason.TRANSACTION_NOT_ACTIVE, f"the branch has ended ({ended.how.value})"))
    if isinstance(command, Prepare) or (isinstance(command, Run) and not command.one_phase):
        if ended.how is EndedAs.READ_ONLY:
            return Answer(Voted(Vote.READ_ONLY, SessionUse.CLOSE))
        return Answer(Voted(Vote.ROLLBACK, SessionUse.CLOSE, why))
    if ended.how is EndedAs.HEURISTICALLY:
        return Answer(Finished(State.RETRY, SessionUse.CLOSE, why)) if isinstance(command, Run) else None
    if isinstance(command, Commit | Run) and ended.how is not EndedAs.ROLLED_BACK:
        return Answer(Finished(State.COMMITTED, SessionUse.CLOSE))
    if isinstance(command, Run) or (isinstance(command, Commit) and command.one_phase):
        return Answer(Finished(State.ROLLED_BACK, SessionUse.CLOSE, why))
    return None


def _settled(entry: Entry, command: Command) -> Voted | Finished | None:
    """The answer to a command that changes nothing in the branch's state, or None where it is to be
    performed."""
    prepared = entry.state is BranchState.PREPARED
    if isinstance(command, Prepare | Run):
        if prepared and not (isinstance(command, Run) and command.one_phase):
            return Voted(Vote.OK, SessionUse.HOLDS)
        if isinstance(command, Run):
            why = Failure(Reason.BRANCH_BUSY, f"the branch exists already and is {entry.state.value}")
            if command.one_phase:
                return Finished(State.RETRY, SessionUse.CLOSE, why)
            return Voted(Vote.ROLLBACK, SessionUse.CLOSE, why)
        if entry.state is not BranchState.ACTIVE:
            return Voted(Vote.ROLLBACK, SessionUse.CLOSE, entry.doom or _ROLLED_BACK)
    unknown = entry.state is BranchState.NON_EXISTENT  # it stays because of a session that has not ended
    if isinstance(command, Commit) and not (prepared or unknown or command.one_phase):
        why = Failure(
            Reason.INVALID_REQUEST, f"commit of a branch that is {entry.state.value}; prepare it first"
        )
        return Finished(State.RETRY, SessionUse.CLOSE, why)
    if isinstance(command, Commit) and entry.state is BranchState.ROLLBACK_ONLY:
        return Finished(State.RETRY, SessionUse.CLOSE, entry.doom)
    return None
