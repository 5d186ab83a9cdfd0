"""Participants: how the coordinator gets from a connection to a participant it may use.

1. CONNECTED -> Fence: the agent ends the sessions of older epochs and refuses them from now on.
2. FENCED    -> Scan: XA RECOVER. Only after the fence, because a late PREPARE of an older epoch can
   otherwise arrive after the scan.
3. SCANNED   -> reconcile: orphans are rolled back, decided transactions go on; UP.
4. HELD: the agent remembers another log or a higher epoch. Nothing is resolved there; people decide.
   The same everywhere when a participant has committed what this log has no record of.
5. LOST, at any time -> back to 1 when the link has reconnected.

A participant that cannot be reached holds nobody else up. A periodic scan finds what was missed. What is
only presumed (a rollback without a record of the decision) waits until every participant has been heard
or given up: one of them may know that the log was restored from a backup. A branch of which the log has
no record at all waits until every participant has really been heard.
"""

from __future__ import annotations

from coordinator.core.context import Context, Participant
from coordinator.core.effects import AlertKind, Attach, Enlisted, Fence, Rejection, Rollback, Scan, Send
from coordinator.core.inputs import (
    AgentConnected,
    AgentFenced,
    AgentHeld,
    AgentLost,
    AgentScanned,
    BranchEnlisted,
)
from coordinator.core.reconcile import Action, Knowledge, PlanItem, PlanReason, plan
from coordinator.core.states import (
    ParticipantState,
    ParticipantTrigger,
    State,
    Trigger,
    next_participant_state,
)
from coordinator.core.timers import TimerKind
from coordinator.core.transaction import Branch, Transaction
from coordinator.core.two_phase import TwoPhase
from dtp import BranchState, Decision, Gtrid, Reason, Xid


class Participants:
    """Follows the agents."""

    def __init__(self, context: Context, two_phase: TwoPhase) -> None:
        self._context = context
        self._two_phase = two_phase
        self._released = False

    def _move(self, name: str, link: int, trigger: ParticipantTrigger) -> Participant | None:
        """The participant after `trigger`, or None for late news of an older connection."""
        participant = self._context.participants.get(name)
        if participant is None or (trigger is not ParticipantTrigger.CONNECTED and link != participant.link):
            return None
        state = next_participant_state(participant.state, trigger)
        if state is None:
            return None
        participant.state = state
        return participant

    def connected(self, event: AgentConnected) -> None:
        """A connection stands: fence first."""
        participant = self._move(event.participant, event.link, ParticipantTrigger.CONNECTED)
        if participant is not None:
            participant.link = event.link
            self._context.emit(Fence(participant.name, participant.number, event.link))

    def fenced(self, event: AgentFenced) -> None:
        """Older epochs are shut out: now XA RECOVER tells the truth."""
        participant = self._move(event.participant, event.link, ParticipantTrigger.FENCED)
        if participant is not None:
            participant.server, participant.witness = event.server, event.witness
            participant.address = event.address
            if self._is_missing(event.last_committed):
                missing = event.last_committed
                proof = f"{participant.name} has committed {missing}, which is not in this log"
                self._context.log_lost = self._context.log_lost or proof
            if self._context.log_lost:
                self._hold_all()
                return
            self._context.emit(Attach(participant.name, event.link))
            self._context.emit(Scan(participant.name, event.link, fenced=True))

    def _is_missing(self, gtrid: str) -> bool:
        """Whether a participant has committed what this log, which decides it, has never heard of."""
        if not gtrid:
            return False
        id_ = Gtrid.parse(gtrid)
        mark = self._context.marks.get(id_.epoch)
        return id_.epoch < self._context.epoch and mark is not None and id_.counter > mark

    def held(self, event: AgentHeld, now: float) -> None:
        """The agent knows a later past than we do: nothing may be resolved there."""
        participant = self._move(event.participant, event.link, ParticipantTrigger.HELD)
        if participant is None:
            return
        why = f"{event.reason.value}: {event.message}"
        self._hold(participant, why)
        if event.reason is not Reason.PARTICIPANT_MISMATCH:
            # It is the log that is an old one, not this agent that is odd.
            self._context.log_lost = self._context.log_lost or f"{participant.name} says {why}"
            self._hold_all()
        self.release()

    def _hold_all(self) -> None:
        """Some decisions are lost, nobody knows which: nothing is presumed anywhere."""
        for participant in self._context.participants.values():
            held = self._move(participant.name, participant.link, ParticipantTrigger.HELD)
            if held is not None:
                self._hold(held, f"the log was lost or restored: {self._context.log_lost}")

    def _hold(self, participant: Participant, why: str) -> None:
        participant.tried = True
        participant.last_error = why
        self._context.alert(AlertKind.HOLD, why, participant=participant.name)
        self._context.emit(Scan(participant.name, participant.link, fenced=False))

    def give_up_waiting(self) -> None:
        """The time for first contact is over: who has not answered is away, and holds nobody up."""
        for participant in self._context.participants.values():
            if not participant.tried:
                participant.tried = True
                participant.last_error = "has not answered since the start"
        self.release()

    def release(self) -> None:
        """Every participant has been heard or is away: what waited for that goes on."""
        if self._released or self._context.waiting_for:
            return
        self._released = True
        self._tell_everybody()

    def _tell_everybody(self) -> None:
        for participant in self._context.participants.values():
            if participant.state is ParticipantState.UP:
                self._two_phase.participant_up(participant.name)

    def lost(self, event: AgentLost, now: float) -> None:
        """The connection broke or could not be made."""
        participant = self._move(event.participant, event.link, ParticipantTrigger.LOST)
        if participant is None:
            return
        participant.tried = True
        if participant.state is not ParticipantState.HOLD:
            participant.last_error = event.error
        self._two_phase.participant_lost(participant.name, now)
        self.release()

    def scanned(self, event: AgentScanned, now: float) -> None:
        """XA RECOVER has answered: reconcile."""
        known = self._context.participants.get(event.participant)
        was_up = known is not None and known.state is ParticipantState.UP
        participant = self._move(event.participant, event.link, ParticipantTrigger.SCANNED)
        if participant is None:
            return
        items = self.plan(participant, event.prepared, event.started_at)
        self._count(participant, event, items, now)
        participant.rescan_at = now + self._context.settings.rescan_every
        self._context.timers.add(participant.rescan_at, TimerKind.RESCAN, participant=participant.name)
        participant.tried = participant.heard = True
        if participant.state is ParticipantState.HOLD:
            self.release()
            return
        participant.last_error = ""
        self._report_held(participant, items)
        adopted = False
        for item in items:
            if item.action is Action.ROLLBACK and item.reason is PlanReason.PRESUMED_ABORT:
                adopted = self._adopt_orphan(participant, item.xid, now) or adopted
            elif item.reason is PlanReason.CAME_BACK:
                self._roll_back_again(participant, item.xid)
        if was_up:
            self._remind(participant.name)
        if not was_up or adopted:
            self._two_phase.participant_up(participant.name)
        self.release()
        if not was_up and not self._context.unheard:
            self._tell_everybody()  # orphans have waited for this one

    def _remind(self, name: str) -> None:
        """Ask again for ends that have not been told since the scan before this one: an answer was lost."""
        for transaction in list(self._context.open.values()):
            branch = transaction.branches.get(name)
            one_phase = transaction.one_phase and transaction.state is State.PREPARING
            decided = transaction.decision is not None and transaction.durable
            if branch is None or not branch.sent or not (one_phase or decided):
                continue
            if branch.overlooked:
                branch.sent = False
                self._two_phase.ask_again(transaction.gtrid, name)
            else:
                branch.overlooked = True

    def _report_held(self, participant: Participant, items: list[PlanItem]) -> None:
        """Tell people once about each branch that this log cannot know."""
        held = frozenset(item.xid for item in items if item.action is Action.HOLD)
        for xid in sorted(held - participant.held):
            message = PlanReason.EPOCH_AHEAD_OF_LOG.value
            gtrid = xid.gtrid.decode("ascii")  # of our shape, or it would not be held
            self._context.alert(AlertKind.HELD_BRANCH, message, gtrid=gtrid, participant=participant.name)
        participant.held = held

    def plan(
        self, participant: Participant, prepared: tuple[Xid, ...], started_at: float = 0.0
    ) -> list[PlanItem]:
        """What to do with each prepared branch of a scan asked for at `started_at` (0: not known).

        The same function for the scan and for people.
        """
        context = self._context
        knowledge = Knowledge(
            context.settings.coordinator_id,
            context.epoch,
            context.counter + 1,
            context.open.get,
            lambda gtrid: context.memory.ended_since(gtrid, started_at),
        )
        on_hold = participant.state is ParticipantState.HOLD or bool(context.log_lost)
        return plan(knowledge, participant.name, participant.number, on_hold, prepared)

    def _count(
        self, participant: Participant, event: AgentScanned, items: list[PlanItem], now: float
    ) -> None:
        foreign = (PlanReason.FOREIGN, PlanReason.OTHER_COORDINATOR)
        participant.scanned_at = now
        participant.foreign = sum(item.reason in foreign for item in items)
        participant.unexplained = sum(item.action is Action.HOLD for item in items)
        participant.blocked_sessions = event.blocked_sessions
        participant.ghosts = event.ghosts

    def _adopt_orphan(self, participant: Participant, xid: Xid, now: float) -> bool:
        """A prepared branch of ours without a COMMIT record: roll it back like any other transaction."""
        context = self._context
        id_ = xid.ours()
        assert id_ is not None
        gtrid = str(id_)
        transaction = context.open.get(gtrid)
        if transaction is None:
            transaction = recovered_transaction(gtrid, id_, now)
            transaction.orphan = True
            transaction.rejection = Rejection(Reason.PRESUMED_ABORT, PlanReason.PRESUMED_ABORT.value)
            context.open[gtrid] = transaction
            message = "prepared branch without a COMMIT record: rolling it back"
            context.alert(AlertKind.ORPHAN, message, gtrid=gtrid, participant=participant.name)
        if participant.name in transaction.branches:
            return False
        transaction.branches[participant.name] = Branch(
            participant.name, participant.number, BranchState.PREPARED
        )
        return True

    def _roll_back_again(self, participant: Participant, xid: Xid) -> None:
        """The outcome that is recorded stands: nothing of the transaction changes."""
        context = self._context
        gtrid = xid.gtrid.decode("ascii")
        message = "a branch that others had rolled back is prepared again; rolling it back"
        context.alert(AlertKind.ORPHAN, message, gtrid=gtrid, participant=participant.name)
        context.emit(Send(participant.name, gtrid, Rollback()))

    def rescan(self, name: str, now: float) -> None:
        """The pause between scans is over, unless a later scan has begun another."""
        participant = self._context.participants[name]
        if participant.rescan_at is None or participant.rescan_at > now:
            return
        participant.rescan_at = None
        if participant.state in (ParticipantState.UP, ParticipantState.HOLD):
            fenced = participant.state is ParticipantState.UP
            self._context.emit(Scan(name, participant.link, fenced))

    def enlisted(self, event: BranchEnlisted, now: float) -> None:
        """A client's first statement has started a branch at an agent."""
        context = self._context
        participant = context.participants.get(event.participant)
        if participant is None or event.link != participant.link:
            return
        if participant.state is ParticipantState.UNREACHABLE:
            return  # late news: the connection is gone
        transaction = context.open.get(event.gtrid)
        refusal = self._refuse_branch(transaction, participant, now)
        remaining = max(0.0, transaction.deadline - now) if transaction else 0.0
        answer = Enlisted(refusal is None, refusal, remaining)
        context.emit(Send(participant.name, event.gtrid, answer))
        if transaction is None or refusal is Reason.TRANSACTION_NOT_ACTIVE:
            return
        if refusal is not None:
            message = "a branch was started twice" if refusal is Reason.BRANCH_LOST else "too many branches"
            self._two_phase.reject(transaction, Rejection(refusal, message, participant.name), now)
            return
        context.move(transaction, Trigger.ENLISTED, now)
        transaction.branches[participant.name] = Branch(
            participant.name, participant.number, BranchState.ACTIVE
        )
        transaction.note(now, "enlisted", participant.name)

    def _refuse_branch(
        self, transaction: Transaction | None, participant: Participant, now: float
    ) -> Reason | None:
        if transaction is None:
            return Reason.TRANSACTION_NOT_ACTIVE
        if transaction.state is not State.ACTIVE or now >= transaction.deadline:
            return Reason.TRANSACTION_NOT_ACTIVE
        if participant.state is not ParticipantState.UP:
            return Reason.TRANSACTION_NOT_ACTIVE
        if participant.name in transaction.branches:
            return Reason.BRANCH_LOST  # the first one is gone, and its work with it
        if len(transaction.branches) >= self._context.settings.max_branches:
            return Reason.TOO_MANY_BRANCHES
        return None


def recovered_transaction(gtrid: str, id_: Gtrid, begun_at: float) -> Transaction:
    """A transaction without a COMMIT record, found after a restart."""
    return Transaction(
        gtrid,
        id_,
        begun_at=begun_at,
        deadline=begun_at,
        entered_at=begun_at,
        state=State.ROLLING_BACK,
        decision=Decision.ROLLBACK,
        recovered=True,
    )
