"""Requests of callers: Begin, Run, Commit, Rollback, Resolve, Forget.

Each is answered by exactly one Reply, at once or when the transaction is far enough. A refused
request changes nothing.
"""

from __future__ import annotations

from coordinator.core.context import Context, Purpose
from coordinator.core.effects import Accepted, Begun, Changed, Decided, Refused, Rejection, Reply
from coordinator.core.inputs import (
    BeginRequested,
    CallerLeft,
    CommitRequested,
    ForgetRequested,
    ResolveRequested,
    RollbackRequested,
    RunRequested,
    WaitFor,
)
from coordinator.core.records import ForgetRecord
from coordinator.core.states import ParticipantState, State, Trigger
from coordinator.core.timers import TimerKind
from coordinator.core.transaction import Branch, Transaction, Waiter
from coordinator.core.two_phase import TwoPhase, decided
from dtp import Decision, Gtrid, Outcome, Reason, XacoordError

_FIRST_WAIT = "Get (coordctl show) tells what is known of it"


class Requests:
    """Answers callers."""

    def __init__(self, context: Context, two_phase: TwoPhase) -> None:
        self._context = context
        self._two_phase = two_phase

    def begin(self, event: BeginRequested, now: float) -> None:
        """Give a transaction its id."""
        if self._known_key(event, now, one_shot=False):
            return
        transaction = self._new(event, now)
        if transaction is not None:
            answer = Begun(transaction.gtrid, transaction.deadline - now)
            self._context.emit(Reply(event.ticket, answer))

    def run(self, event: RunRequested, now: float) -> None:
        """Begin, do and decide in one request."""
        if self._known_key(event, now, one_shot=True):
            return
        refused = self._refuse_branches(event)
        if refused is not None:
            self._context.emit(Reply(event.ticket, refused))
            return
        transaction = self._new(event, now)
        if transaction is None:
            return
        transaction.one_shot = True
        transaction.order = tuple(branch.participant for branch in event.branches)
        for name in transaction.order:
            number = self._context.participants[name].number
            transaction.branches[name] = Branch(name, number, started=False)
        transaction.waiters.append(Waiter(event.ticket, event.wait_for))
        self._two_phase.run(transaction, event.branches, event.in_order, now)

    def _refuse_branches(self, event: RunRequested) -> Refused | None:
        names = [branch.participant for branch in event.branches]
        limit = self._context.settings.max_branches
        if not names:
            return Refused(Reason.NO_BRANCHES, "name at least one branch")
        if len(names) > limit:
            return Refused(Reason.TOO_MANY_BRANCHES, f"{len(names)} branches; at most {limit} are possible")
        for name in names:
            if names.count(name) > 1:
                return Refused(Reason.DUPLICATE_BRANCH, f"participant {name!r} is named twice; join them")
            refused = self._refuse_participant(name)
            if refused is not None:
                return refused
        return None

    def _refuse_participant(self, name: str) -> Refused | None:
        participant = self._context.participants.get(name)
        if participant is None or not participant.configured:
            known = ", ".join(sorted(p.name for p in self._context.participants.values() if p.configured))
            return Refused(Reason.UNKNOWN_PARTICIPANT, f"there is no participant {name!r}, but: {known}")
        if participant.state is ParticipantState.HOLD:
            return Refused(
                Reason.PARTICIPANT_HELD,
                f"participant {name!r} is on hold: {participant.last_error}; see coordctl participants",
            )
        if participant.state is not ParticipantState.UP:
            return Refused(
                Reason.PARTICIPANT_UNAVAILABLE,
                f"participant {name!r} is {participant.state.value}: {participant.last_error or 'not ready'}",
            )
        return None

    def _known_key(self, event: BeginRequested | RunRequested, now: float, *, one_shot: bool) -> bool:
        """Answer from the idempotency key, where it is known."""
        key = event.idempotency_key
        if not key:
            return False
        context = self._context
        remembered = context.memory.keys.get(key)
        holder = context.open.get(context.keys.get(key, ""))
        if remembered is None and holder is None:
            return False
        fingerprint = remembered.fingerprint if remembered else holder.fingerprint if holder else b""
        gtrid = remembered.gtrid if remembered else holder.gtrid if holder else ""
        if fingerprint != event.fingerprint:
            context.refuse(
                event.ticket,
                Reason.IDEMPOTENCY_MISMATCH,
                "the idempotency key was used with other content; use a new key for new work",
                gtrid,
            )
        elif remembered is not None and one_shot:
            replayed = Decided(gtrid, remembered.outcome, completed=True, replayed=True)
            context.emit(Reply(event.ticket, replayed))
        elif remembered is not None and remembered.outcome is not Outcome.COMMITTED:
            context.refuse(
                event.ticket,
                Reason.HEURISTIC_OUTCOME,
                f"the key's transaction ended as {remembered.outcome.value}; use a new key for what is left",
                gtrid,
            )
        elif remembered is not None:
            context.emit(Reply(event.ticket, Begun(gtrid, 0.0, already_committed=True)))
        elif one_shot and holder is not None and holder.one_shot and isinstance(event, RunRequested):
            holder.waiters.append(Waiter(event.ticket, event.wait_for))
            self._two_phase.answer_latecomer(holder, now)
        else:
            context.refuse(
                event.ticket,
                Reason.IDEMPOTENCY_IN_PROGRESS,
                "a transaction with this idempotency key is under way; wait for it or ask Get",
                gtrid,
            )
        return True

    def _new(self, event: BeginRequested | RunRequested, now: float) -> Transaction | None:
        refused = self._refuse_new(event)
        if refused is not None:
            self._context.emit(Reply(event.ticket, refused))
            return None
        context = self._context
        settings = context.settings
        try:
            id_ = Gtrid.make(settings.coordinator_id, context.epoch, context.counter + 1, event.random_bits)
        except XacoordError as error:
            context.refuse(event.ticket, error.reason, error.message)
            return None
        context.counter += 1
        timeout = settings.default_timeout if event.timeout_seconds is None else event.timeout_seconds
        transaction = Transaction(
            str(id_),
            id_,
            begun_at=now,
            deadline=now + timeout,
            entered_at=now,
            idempotency_key=event.idempotency_key,
            fingerprint=event.fingerprint,
        )
        transaction.note(now, "begun")
        context.open[transaction.gtrid] = transaction
        if event.idempotency_key:
            context.keys[event.idempotency_key] = transaction.gtrid
        context.emit(Changed(transaction.gtrid, None, State.ACTIVE, 0.0))
        context.timers.add(transaction.deadline, TimerKind.DEADLINE, transaction.gtrid)
        return transaction

    def _refuse_new(self, event: BeginRequested | RunRequested) -> Refused | None:
        context = self._context
        settings = context.settings
        if context.draining:
            return Refused(Reason.DRAINING, "the coordinator is stopping; try again in a moment")
        if context.log_lost:
            return Refused(
                Reason.PARTICIPANT_HELD,
                f"every participant is on hold: {context.log_lost}; see coordctl status",
            )
        timeout = event.timeout_seconds
        if timeout is not None and not 0 < timeout <= settings.max_timeout:
            return Refused(
                Reason.TIMEOUT_OUT_OF_RANGE,
                f"timeout {timeout:g} s; give more than 0 and at most {settings.max_timeout:g} s",
            )
        if len(context.open) >= settings.max_transactions:
            return Refused(Reason.OVERLOADED, f"{settings.max_transactions} transactions are open; try later")
        if not event.room:
            return Refused(
                Reason.LOG_FULL,
                "the log has no room for a decision; free space on its disk (open transactions go on)",
            )
        return None

    def commit(self, event: CommitRequested, now: float) -> None:
        """Prepare and decide; a repeated request gets the same outcome."""
        transaction = self._find(event.ticket, event.gtrid)
        if transaction is None:
            return
        transaction.waiters.append(Waiter(event.ticket, event.wait_for))
        if transaction.state is State.ACTIVE:
            if now >= transaction.deadline:
                self._two_phase.deadline_passed(transaction, now)
            else:
                self._two_phase.prepare(transaction, now)
        else:
            self._two_phase.answer_latecomer(transaction, now)

    def rollback(self, event: RollbackRequested, now: float) -> None:
        """Roll back, where it is not too late."""
        transaction = self._find(event.ticket, event.gtrid)
        if transaction is None:
            return
        rejection = Rejection(Reason.ROLLED_BACK_BY_REQUEST, "the caller asked for it")
        waiter = Waiter(event.ticket, WaitFor.COMPLETED)
        transaction.waiters.append(waiter)
        if self._two_phase.reject(transaction, rejection, now, Trigger.ROLLBACK_REQUESTED):
            return
        if transaction.state in (State.ROLLING_BACK, State.HEURISTIC):
            self._two_phase.answer_latecomer(transaction, now)
            return
        transaction.waiters.remove(waiter)
        is_decided = transaction.durable and transaction.decision is Decision.COMMIT
        self._context.refuse(
            event.ticket,
            Reason.ALREADY_COMMITTED if is_decided else Reason.TRANSACTION_NOT_ACTIVE,
            "it is decided to commit" if is_decided else f"it is being committed; {_FIRST_WAIT}",
            event.gtrid,
        )

    def _find(self, ticket: int, gtrid: str) -> Transaction | None:
        """The open transaction; an ended one, and an unknown one, are answered here."""
        context = self._context
        transaction = context.open.get(gtrid)
        if transaction is not None:
            return transaction
        ended = context.memory.ended.get(gtrid)
        if ended is not None:
            context.emit(Reply(ticket, decided(ended, completed=True)))
        else:
            context.refuse(
                ticket,
                Reason.UNKNOWN_TRANSACTION,
                f"no open transaction has this id; {_FIRST_WAIT}",
                gtrid,
            )
        return None

    def resolve(self, event: ResolveRequested, now: float) -> None:
        """An operator's request: it hastens what is decided, rolls back what is not, contradicts nothing."""
        context = self._context
        transaction = context.open.get(event.gtrid)
        if transaction is None:
            context.refuse(
                event.ticket,
                Reason.UNKNOWN_TRANSACTION,
                f"no open transaction has this id; {_FIRST_WAIT}",
                event.gtrid,
            )
            return
        if transaction.state is State.HEURISTIC:
            context.refuse(
                event.ticket,
                Reason.NOT_IN_DOUBT,
                "it has ended heuristically; use forget when it is dealt with",
                event.gtrid,
            )
            return
        if transaction.decision is None and event.action is Decision.ROLLBACK:
            text = f"{event.operator}: {event.reason}"
            rejection = Rejection(Reason.ROLLED_BACK_BY_OPERATOR, text)
            if self._two_phase.reject(transaction, rejection, now, Trigger.ROLLBACK_REQUESTED):
                context.emit(Reply(event.ticket, Accepted(event.gtrid)))
                return
        if transaction.decision is None or not transaction.durable:
            context.refuse(
                event.ticket,
                Reason.NOT_IN_DOUBT,
                "its branches are still voting; the coordinator decides",
                event.gtrid,
            )
            return
        if transaction.decision is not event.action:
            context.refuse(
                event.ticket,
                Reason.DECISION_CONTRADICTED,
                f"it is decided to {transaction.decision.value}; a branch that hears anything else would "
                "break the transaction",
                event.gtrid,
            )
            return
        transaction.note(now, f"resolve {event.action.value} by {event.operator}: {event.reason}")
        for branch in transaction.branches.values():
            self._two_phase.ask_again(transaction.gtrid, branch.participant)
        context.emit(Reply(event.ticket, Accepted(event.gtrid)))

    def forget(self, event: ForgetRequested, now: float) -> None:
        """Drop a heuristic outcome that people have dealt with."""
        context = self._context
        transaction = context.open.get(event.gtrid)
        if transaction is None:
            context.refuse(
                event.ticket,
                Reason.UNKNOWN_TRANSACTION,
                "no heuristic outcome has this id; see coordctl list",
                event.gtrid,
            )
        elif transaction.state is not State.HEURISTIC:
            context.refuse(
                event.ticket,
                Reason.NOT_HEURISTIC,
                f"it is {transaction.state.value}; only heuristic outcomes can be forgotten",
                event.gtrid,
            )
        else:
            record = ForgetRecord(transaction.id, now)
            transaction.forgotten = True
            if transaction.idempotency_key and transaction.outcome is not Outcome.HEURISTIC_ROLLBACK:
                # Part of it may be committed: the same key must not do that part again.
                context.memory.remember_key(
                    transaction.idempotency_key,
                    transaction.id,
                    transaction.fingerprint,
                    now,
                    transaction.outcome,
                )
            context.force(record, Purpose.FORGET, transaction.gtrid, event.ticket)

    def caller_left(self, event: CallerLeft) -> None:
        """Nobody waits for this answer any more; the transaction goes on."""
        transaction = self._context.open.get(event.gtrid)
        if transaction is not None:
            transaction.waiters = [w for w in transaction.waiters if w.ticket != event.ticket]
