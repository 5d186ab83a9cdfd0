"""Context: the live state that the parts of the core share, and the list of effects they add to."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from coordinator.core.effects import Alert, AlertKind, Changed, Effect, Force, Refused, Reply, Write
from coordinator.core.memory import Memory
from coordinator.core.records import Record
from coordinator.core.settings import Settings
from coordinator.core.states import ParticipantState, State, Trigger, next_state
from coordinator.core.timers import Timers
from coordinator.core.transaction import Transaction
from dtp import Decision, Outcome, Reason, Xid
from dtp.term import Term


@dataclass(slots=True)
class Participant:
    """One participant as the coordinator sees it.

    Attributes:
        number: its bqual, for ever.
        configured: False where only the log knows it; it stays unreachable.
        tried: the first attempt to reach it has ended, well or not.
        heard: it has been fenced and scanned in this epoch.
        link: number of the present connection.
        rescan_at: when the next periodic scan is due; timers for other times are stale.
        foreign: branches of others in the last scan.
        unexplained: branches of ours in the last scan that are on HOLD: this log cannot know them.
        held: those of them that people have been told of.
    """

    name: str
    number: int
    configured: bool = True
    state: ParticipantState = ParticipantState.UNREACHABLE
    tried: bool = False
    heard: bool = False
    link: int = 0
    server: str = ""
    witness: bool = True
    address: str = ""
    last_error: str = ""
    scanned_at: float | None = None
    rescan_at: float | None = None
    unexplained: int = 0
    foreign: int = 0
    blocked_sessions: int = 0
    ghosts: int = 0
    held: frozenset[Xid] = frozenset()


@dataclass(slots=True)
class Doubt:
    """What is open at one participant now.

    Attributes:
        branches: in doubt, of transactions that the log explains.
        orphans: branches of ours that it does not.
        oldest_begun_at: of all these transactions; None where there is none.
    """

    branches: int = 0
    orphans: int = 0
    oldest_begun_at: float | None = None


class Purpose(Term):
    """What waits for a forced record."""

    DECISION = "DECISION"
    HEURISTIC = "HEURISTIC"
    FORGET = "FORGET"


@dataclass(frozen=True, slots=True)
class Forced:
    """A forced record on its way to the disk."""

    number: int
    purpose: Purpose
    gtrid: str
    ticket: int | None


class Context:
    """Live state. Only the parts of the core change it.

    Attributes:
        open: transactions that have not ended, and heuristic ones until FORGET.
        keys: idempotency key -> gtrid of the open transaction that holds it.
        counter: of the last transaction begun in this epoch.
        marks: epoch -> the highest counter with a PREPARE record.
        log_lost: what proves that this log lacks decisions that were taken; empty: nothing does.
    """

    def __init__(self, settings: Settings, epoch: int) -> None:
        self.settings = settings
        self.epoch = epoch
        self.effects: list[Effect] = []
        self.timers = Timers()
        self.memory = Memory(settings)
        self.open: dict[str, Transaction] = {}
        self.keys: dict[str, str] = {}
        self.participants: dict[str, Participant] = {}
        self.counter = 0
        self.draining = False
        self.marks: dict[int, int] = {}
        self.log_lost = ""
        self._forced: deque[Forced] = deque()
        self._numbers = 0

    def emit(self, effect: Effect) -> None:
        """Add an effect."""
        self.effects.append(effect)

    def write(self, record: Record, *, kick: bool) -> None:
        """Append a record; nothing waits for it."""
        self.effects.append(Write(record, kick))

    def force(self, record: Record, purpose: Purpose, gtrid: str, ticket: int | None = None) -> None:
        """Append a record that something waits for."""
        self._numbers += 1
        self._forced.append(Forced(self._numbers, purpose, gtrid, ticket))
        self.effects.append(Force(record, self._numbers))

    def now_durable(self, number: int) -> list[Forced]:
        """Take out the forced records up to `number`."""
        found = []
        while self._forced and self._forced[0].number <= number:
            found.append(self._forced.popleft())
        return found

    def move(self, transaction: Transaction, trigger: Trigger, now: float) -> bool:
        """Move a transaction by the table; False, and nothing changed, where the table has no way."""
        state = next_state(transaction.state, trigger)
        if state is None:
            return False
        if state is not transaction.state:
            self.changed(transaction, state, now)
        return True

    def changed(self, transaction: Transaction, state: State, now: float) -> None:
        """Enter `state` and say so."""
        self.emit(Changed(transaction.gtrid, transaction.state, state, now - transaction.entered_at))
        transaction.state = state
        transaction.entered_at = now
        transaction.note(now, state.value)

    def refuse(self, ticket: int, reason: Reason, message: str, gtrid: str = "") -> None:
        """Answer a caller whose request changes nothing."""
        self.emit(Reply(ticket, Refused(reason, message, gtrid)))

    def alert(
        self,
        kind: AlertKind,
        message: str,
        *,
        gtrid: str = "",
        participant: str = "",
        outcome: Outcome | None = None,
    ) -> None:
        """Tell people."""
        self.emit(Alert(kind, message, gtrid, participant, outcome))

    def is_up(self, participant: str) -> bool:
        """Whether commands can be sent to the participant."""
        return self.participants[participant].state is ParticipantState.UP

    @property
    def waiting_for(self) -> list[str]:
        """Participants whose first fence and reconcile have neither ended nor failed."""
        return [name for name, participant in self.participants.items() if not participant.tried]

    @property
    def unheard(self) -> list[str]:
        """Configured participants that have not been fenced and scanned in this epoch."""
        return [p.name for p in self.participants.values() if p.configured and not p.heard]

    def may_tell(self, transaction: Transaction) -> bool:
        """Whether branches and callers may hear the decision.

        What is only presumed waits until every participant has been heard: one of them may know that this
        log was restored from a backup. For a transaction whose PREPARE record is here, participants that
        are away are not waited for; for one of which the log has no record at all they are, because
        nothing tells a PREPARE that was cut off by a crash from one that a backup lacks.
        """
        if not transaction.recovered or transaction.decision is not Decision.ROLLBACK:
            return True
        if self.log_lost:
            return False
        return not (self.unheard if transaction.orphan else self.waiting_for)

    def doubts(self) -> dict[str, Doubt]:
        """What is open at each participant, from the live state and the last scans."""
        found = {name: Doubt(orphans=p.unexplained) for name, p in self.participants.items()}
        for transaction in self.open.values():
            if not transaction.in_doubt:
                continue
            for name, branch in transaction.branches.items():
                if branch.open and branch.started:
                    doubt = found[name]
                    doubt.orphans += transaction.orphan
                    doubt.branches += not transaction.orphan
                    begun_at = transaction.begun_at
                    doubt.oldest_begun_at = min(doubt.oldest_begun_at or begun_at, begun_at)
        return found

    def blocked(self, transaction: Transaction) -> bool:
        """In doubt, and a branch could not be finished: its participant is away or keeps failing."""
        if not transaction.in_doubt:
            return False
        return any(
            branch.open and branch.started and (not self.is_up(branch.participant) or branch.attempts > 1)
            for branch in transaction.branches.values()
        )
