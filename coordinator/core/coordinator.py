"""The coordinator's core: one ring, one direction.

    Input -> Coordinator.step(input, now) -> [Effect, ...] -> the driver performs them -> Input

`now` is in seconds, never goes back, and is close to the time since 1970 (for people). `next_wakeup`
says when to call step(TimePassed(), now) at the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from coordinator.core import inputs
from coordinator.core.context import Context, Doubt, Participant
from coordinator.core.effects import Effect, Rejection
from coordinator.core.participants import Participants, recovered_transaction
from coordinator.core.reconcile import PlanItem, PlanReason
from coordinator.core.records import CommitRecord, DeriveRecord, EpochRecord, ParticipantRecord, Record
from coordinator.core.replay import LogContradiction, OpenTransaction, Replayed
from coordinator.core.requests import Requests
from coordinator.core.settings import Settings
from coordinator.core.states import State
from coordinator.core.timers import TimerKind
from coordinator.core.transaction import Branch, Transaction
from coordinator.core.two_phase import TwoPhase, heuristic_record
from coordinator.core.waits import Waits
from dtp import BranchState, Decision, Gtrid, Outcome, Reason, Vote, Xid
from dtp.outcome import combine

DERIVING = "`coordctl recover --derive --apply` began in this log and has not ended; run it again"
_SWEEP_EVERY = 5.0
_FIRST_CONTACT = 5.0  # seconds after which a participant that has not answered counts as away
_KEEP_NONCES = 1_000  # an agent that missed more starts than this is put on HOLD


class Coordinator:
    """The pure transaction manager of one epoch."""

    def __init__(
        self, settings: Settings, epoch: int, replayed: Replayed, participants: Iterable[str], now: float
    ) -> None:
        """Start an epoch.

        Args:
            settings: see Settings.
            epoch: higher than any the log has seen; `replayed.nonces` has its nonce.
            replayed: what the log knows, with a number for each of `participants`.
            participants: the configured names.
            now: seconds.
        """
        self._context = Context(settings, epoch)
        self._two_phase = TwoPhase(self._context)
        self._requests = Requests(self._context, self._two_phase)
        self._participants = Participants(self._context, self._two_phase)
        self._waits = Waits(self._context, self._two_phase)
        self._nonces = dict(sorted(replayed.nonces.items())[-_KEEP_NONCES:])
        self._deriving = replayed.deriving
        if self._deriving:
            self._context.log_lost = DERIVING
        self._context.marks = {epoch: replayed.marks.get(epoch, 0) for epoch in self._nonces}
        configured = set(participants)
        for name, number in sorted(replayed.numbers.items()):
            participant = Participant(name, number, configured=name in configured)
            participant.tried = not participant.configured
            self._context.participants[name] = participant
        for entry in replayed.transactions.values():
            transaction = _recovered(entry, replayed.names, now)
            self._context.open[transaction.gtrid] = transaction
            if transaction.idempotency_key:
                self._context.keys[transaction.idempotency_key] = transaction.gtrid
        for key, end in replayed.keys.items():
            self._context.memory.remember_key(key, end.id, end.fingerprint, now, end.outcome)
        self._context.timers.add(now + _SWEEP_EVERY, TimerKind.SWEEP)
        self._context.timers.add(now + _FIRST_CONTACT, TimerKind.FIRST_CONTACT)
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            inputs.BeginRequested: self._requests.begin,
            inputs.RunRequested: self._requests.run,
            inputs.CommitRequested: self._requests.commit,
            inputs.RollbackRequested: self._requests.rollback,
            inputs.ResolveRequested: self._requests.resolve,
            inputs.ForgetRequested: self._requests.forget,
            inputs.RecoveryRequested: lambda event, now: self._two_phase.participant_up(event.participant),
            inputs.CallerLeft: lambda event, now: self._requests.caller_left(event),
            inputs.DrainStarted: self._drain,
            inputs.AgentConnected: lambda event, now: self._participants.connected(event),
            inputs.AgentFenced: lambda event, now: self._participants.fenced(event),
            inputs.AgentHeld: self._participants.held,
            inputs.AgentScanned: self._participants.scanned,
            inputs.AgentLost: self._participants.lost,
            inputs.BranchEnlisted: self._participants.enlisted,
            inputs.BranchVoted: self._two_phase.voted,
            inputs.BranchFinished: self._two_phase.finished,
            inputs.WaitsReported: self._waits.reported,
            inputs.RecordsDurable: lambda event, now: self._two_phase.now_durable(event.number, now),
            inputs.TimePassed: lambda event, now: None,
        }

    def step(self, event: inputs.Input, now: float) -> list[Effect]:
        """Take one input and return what is to be done, in order."""
        context = self._context
        wakeup = context.timers.next
        if wakeup is not None and wakeup <= now:
            self._run_timers(now)
        self._handlers[type(event)](event, now)
        effects, context.effects = context.effects, []
        return effects

    @property
    def next_wakeup(self) -> float | None:
        """When to call step(TimePassed(), now) at the latest."""
        return self._context.timers.next

    def _run_timers(self, now: float) -> None:
        context = self._context
        for kind, gtrid, participant in context.timers.due(now):
            match kind:
                case TimerKind.DEADLINE:
                    transaction = context.open.get(gtrid)
                    if transaction is not None:
                        self._two_phase.deadline_passed(transaction, now)
                case TimerKind.RETRY:
                    self._two_phase.retry(gtrid, participant, now)
                case TimerKind.RESCAN:
                    self._participants.rescan(participant, now)
                case TimerKind.FIRST_CONTACT:
                    self._participants.give_up_waiting()
                case TimerKind.SWEEP:
                    context.memory.sweep(now, self._lowest_open())
                    context.timers.add(now + _SWEEP_EVERY, TimerKind.SWEEP)

    def _drain(self, event: inputs.DrainStarted, now: float) -> None:
        """Nothing new begins, and what only waits for its client is rolled back; the rest goes on."""
        self._context.draining = True
        rejection = Rejection(Reason.DRAINING, "the coordinator is stopping")
        for transaction in list(self._context.open.values()):
            if transaction.state is State.ACTIVE:
                self._two_phase.reject(transaction, rejection, now)

    # What others may read

    @property
    def nonces(self) -> dict[int, int]:
        """Epoch -> nonce, of this epoch and the last ones before it: the proof for agents."""
        return self._nonces

    @property
    def epoch(self) -> int:
        """Of this process."""
        return self._context.epoch

    @property
    def settings(self) -> Settings:
        """As given."""
        return self._context.settings

    @property
    def open(self) -> dict[str, Transaction]:
        """Transactions that have not ended, and heuristic ones, by gtrid. Not to be changed."""
        return self._context.open

    @property
    def ended(self) -> dict[str, Transaction]:
        """The last ended transactions, oldest first. Not to be changed."""
        return self._context.memory.ended

    @property
    def participants(self) -> dict[str, Participant]:
        """By name. Not to be changed."""
        return self._context.participants

    @property
    def purge_mark(self) -> str:
        """Witness rows of transactions below this gtrid may go; empty: none."""
        return self._context.memory.purge_mark

    def may_tell(self, transaction: Transaction) -> bool:
        """Whether callers may hear the decision of a transaction."""
        return self._context.may_tell(transaction)

    def is_up(self, participant: str) -> bool:
        """Whether the participant is fenced, scanned and attached."""
        return self._context.is_up(participant)

    def blocked(self, transaction: Transaction) -> bool:
        """In doubt, and a participant that is needed to end it is away or failing."""
        return self._context.blocked(transaction)

    def doubts(self) -> dict[str, Doubt]:
        """What is open at each participant, by name."""
        return self._context.doubts()

    def waits_of(self, gtrid: str, participant: str) -> list[inputs.Wait]:
        """What a branch waits for now."""
        return self._waits.of(gtrid, participant)

    def lock_waits(self) -> Iterator[tuple[str, inputs.Wait]]:
        """(participant, wait) of every branch that waits now."""
        return self._waits.all()

    @property
    def deadlocks(self) -> int:
        """Circles of transactions that were broken."""
        return self._waits.deadlocks

    @property
    def waiting_for(self) -> list[str]:
        """Participants whose first fence and reconcile have neither ended nor failed."""
        return self._context.waiting_for

    @property
    def busy(self) -> bool:
        """Something is decided or being decided, and its participants can be reached."""
        return any(
            t.state not in (State.ACTIVE, State.HEURISTIC) and not self._context.blocked(t)
            for t in self._context.open.values()
        )

    def plan(self, participant: str, prepared: tuple[Xid, ...]) -> list[PlanItem]:
        """What reconciling would do with these prepared branches, with reasons. Changes nothing."""
        return self._participants.plan(self._context.participants[participant], prepared)

    def knows_id(self, id_: Gtrid) -> bool:
        """Whether this log can have given the id."""
        context = self._context
        if id_.coordinator_id != context.settings.coordinator_id:
            return False
        if id_.epoch == context.epoch:
            return 0 < id_.counter <= context.counter
        return 0 < id_.epoch < context.epoch

    def _lowest_open(self) -> str:
        context = self._context
        nothing_below = Gtrid.make(context.settings.coordinator_id, context.epoch, context.counter + 1, 0)
        return min(min(context.open, default=str(nothing_below)), str(nothing_below))

    def checkpoint(self) -> list[Record]:
        """The live state as records: what a fresh segment of the log begins with."""
        context = self._context
        coordinator_id = context.settings.coordinator_id
        records: list[Record] = [
            EpochRecord(coordinator_id, epoch, nonce, 0.0, context.marks.get(epoch, 0))
            for epoch, nonce in self._nonces.items()
        ]
        records += [ParticipantRecord(p.name, p.number) for p in context.participants.values()]
        if self._deriving:
            records.append(DeriveRecord(context.epoch, 0.0, done=False))
        for transaction in context.open.values():
            if not transaction.forgotten:  # the checkpoint stands behind its FORGET record
                records += _records_of(transaction)
        records += context.memory.key_records()
        return records


def _records_of(transaction: Transaction) -> list[Record]:
    records: list[Record] = []
    if transaction.prepare_written:
        records.append(transaction.prepare_record)
    is_heuristic = transaction.state is State.HEURISTIC
    if transaction.decision is Decision.COMMIT and not transaction.one_phase:
        # Branches that have committed are named, too: asked again they say so, and without them a
        # heuristic outcome of another branch would look like everybody's.
        numbers = tuple(b.number for b in transaction.branches.values() if b.vote is not Vote.READ_ONLY)
        records.append(
            CommitRecord(
                transaction.id,
                numbers,
                transaction.begun_at,
                transaction.decided_at,
                transaction.idempotency_key,
                transaction.fingerprint,
            )
        )
    if is_heuristic:
        records.append(heuristic_record(transaction, transaction.entered_at))
    return records


def _recovered(entry: OpenTransaction, names: dict[int, str], now: float) -> Transaction:
    transaction = recovered_transaction(str(entry.id), entry.id, entry.begun_at)
    transaction.prepare_written = entry.prepare_record or entry.decision is not None
    transaction.entered_at = now
    transaction.idempotency_key = entry.idempotency_key
    transaction.fingerprint = entry.fingerprint
    transaction.note(entry.begun_at, "begun")
    outcomes = dict(entry.heuristic)
    for number in entry.participants:
        if number not in names:
            raise LogContradiction(f"{entry.id} names participant {number}, which the log does not know")
        name = names[number]
        branch = Branch(name, number, BranchState.PREPARED, outcome=outcomes.get(number))
        transaction.branches[name] = branch
    if entry.decision is Decision.COMMIT:
        transaction.decision = Decision.COMMIT
        transaction.decided_at = entry.decided_at
        transaction.state = State.COMMITTING
        transaction.note(entry.decided_at, "decided COMMIT")
    else:
        why = PlanReason.PRESUMED_ABORT.value
        transaction.rejection = Rejection(Reason.PRESUMED_ABORT, why)
    if entry.heuristic:
        transaction.state = State.HEURISTIC
        for branch in transaction.branches.values():
            branch.state = BranchState.HEURISTICALLY_COMPLETED
            branch.outcome = branch.outcome or Outcome.UNKNOWN
        transaction.outcome = combine(transaction.decision or Decision.ROLLBACK, outcomes.values())
    transaction.note(now, "recovered from the log")
    return transaction
