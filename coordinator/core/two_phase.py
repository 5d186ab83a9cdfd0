"""Two-phase commit with presumed abort: votes, the decision, and phase 2 until it is finished.

1. prepare: PREPARE record written (its flush overlaps the votes), a Prepare or Run to each branch.
   One branch without an idempotency key: its agent commits in one phase and nothing is logged.
2. Votes. ROLLBACK, a lost connection, the deadline or a request -> roll back everywhere; nothing is
   forced. All READ_ONLY -> committed. All OK (or READ_ONLY) -> COMMIT record forced.
3. The COMMIT record is on disk -> now, and only now, branches and callers hear it.
4. Phase 2 is repeated until each branch has answered, with pauses, for ever. Then END, lazily.

Crash windows: before 3 the restarted coordinator finds no COMMIT record and rolls back; no branch
and no caller had heard anything else. After 3 it finds the record and repeats 4. A branch that has
finished already says so (its witness row proves it).

A time-out counts only before the decision. The agent of a one-phase commit decides: once asked,
neither the deadline nor a lost connection is an answer; it is asked again until it knows.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator.core.catching_up import CatchingUp
from coordinator.core.context import Context, Forced, Purpose
from coordinator.core.effects import (
    Accepted,
    AlertKind,
    Changed,
    Commit,
    Decided,
    Prepare,
    Rejection,
    Reply,
    Rollback,
    Run,
    Send,
)
from coordinator.core.inputs import BranchFinished, BranchVoted, Failure, RunBranch, WaitFor
from coordinator.core.records import CommitRecord, EndRecord, HeuristicRecord
from coordinator.core.states import State, Trigger
from coordinator.core.timers import TimerKind
from coordinator.core.transaction import Branch, Transaction
from dtp import BranchState, Decision, Outcome, Reason, Vote
from dtp.outcome import combine

# What a branch's answer means under each decision. COMMITTED under ROLLBACK was someone else's doing.
_AS_SEEN: dict[tuple[Decision, Outcome], Outcome] = {
    (Decision.COMMIT, Outcome.ROLLED_BACK): Outcome.HEURISTIC_ROLLBACK,
    (Decision.ROLLBACK, Outcome.COMMITTED): Outcome.HEURISTIC_COMMIT,
    (Decision.COMMIT, Outcome.HEURISTIC_COMMIT): Outcome.COMMITTED,
    (Decision.ROLLBACK, Outcome.HEURISTIC_ROLLBACK): Outcome.ROLLED_BACK,
}


class TwoPhase:
    """Drives the open transactions of a context."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._catching_up = CatchingUp(context, lambda gtrid, name: self.ask_again(gtrid, name))

    # Phase 1

    def prepare(self, transaction: Transaction, now: float) -> None:
        """Commit was asked for: vote on the branches that clients have worked in."""
        context = self._context
        branches = list(transaction.branches.values())
        away = [branch.participant for branch in branches if not context.is_up(branch.participant)]
        if away:
            self.reject(transaction, _away(away[0]), now)
            return
        context.move(transaction, Trigger.COMMIT_REQUESTED, now)
        if not branches:
            self._committed_without_decision(transaction, Trigger.ALL_READ_ONLY, now)
            return
        transaction.one_phase = len(branches) == 1 and not transaction.idempotency_key
        if transaction.one_phase:
            branches[0].sent = True
            context.emit(Send(branches[0].participant, transaction.gtrid, Commit(one_phase=True)))
            return
        numbers = self._write_prepare(transaction)
        for branch in branches:
            branch.sent = True
            context.emit(Send(branch.participant, transaction.gtrid, Prepare(numbers)))

    def run(
        self, transaction: Transaction, branches: tuple[RunBranch, ...], in_order: bool, now: float
    ) -> None:
        """Start a one-shot transaction, whose branches are in `transaction.branches`."""
        self._context.move(transaction, Trigger.COMMIT_REQUESTED, now)
        transaction.one_phase = len(branches) == 1 and not transaction.idempotency_key
        if not transaction.one_phase:
            self._write_prepare(transaction)
        transaction.queue = list(branches)
        self._send_runs(transaction, 1 if in_order else len(branches), now)

    def _write_prepare(self, transaction: Transaction) -> tuple[int, ...]:
        numbers = transaction.numbers
        transaction.prepare_written = True
        marks, id_ = self._context.marks, transaction.id
        marks[id_.epoch] = max(marks.get(id_.epoch, 0), id_.counter)
        self._context.write(transaction.prepare_record, kick=True)
        return numbers

    def _send_runs(self, transaction: Transaction, count: int, now: float) -> None:
        numbers = transaction.numbers
        for run_branch in transaction.queue[:count]:
            branch = transaction.branches[run_branch.participant]
            if not self._context.is_up(branch.participant):
                self.reject(transaction, _away(branch.participant), now)
                return
            branch.started = branch.sent = True
            branch.state = BranchState.ACTIVE
            command = Run(run_branch, numbers, max(0.0, transaction.deadline - now), transaction.one_phase)
            self._context.emit(Send(branch.participant, transaction.gtrid, command))
        del transaction.queue[:count]

    def voted(self, event: BranchVoted, now: float) -> None:
        """A branch has voted."""
        transaction = self._context.open.get(event.gtrid)
        branch = transaction.branches.get(event.participant) if transaction else None
        if (
            transaction is None
            or branch is None
            or branch.vote is not None
            or not branch.sent
            or transaction.one_phase
        ):
            self._unexpected(event.gtrid, event.participant, "a vote that was not asked for")
            return
        if transaction.state is not State.PREPARING:
            return  # rolling back already; the command for it is behind the vote
        branch.sent = False
        branch.vote = event.vote
        branch.results = event.results
        transaction.note(now, f"voted {event.vote.value}", event.participant)
        if event.vote is Vote.ROLLBACK:
            if not event.in_doubt:
                branch.outcome = Outcome.ROLLED_BACK
            branch.state = BranchState.ROLLBACK_ONLY if event.in_doubt else BranchState.NON_EXISTENT
            branch.last_failure = event.failure
            self.reject(transaction, _refused(event.participant, event.failure), now)
            return
        is_ok = event.vote is Vote.OK
        branch.state = BranchState.PREPARED if is_ok else BranchState.NON_EXISTENT
        if transaction.queue:
            self._send_runs(transaction, 1, now)
        elif all(other.vote is not None for other in transaction.branches.values()):
            self._decide(transaction, now)

    def _decide(self, transaction: Transaction, now: float) -> None:
        prepared = [b.number for b in transaction.branches.values() if b.vote is Vote.OK]
        if not prepared:
            self._committed_without_decision(transaction, Trigger.ALL_READ_ONLY, now)
            return
        transaction.decision = Decision.COMMIT
        transaction.decided_at = now
        transaction.durable = False
        self._context.move(transaction, Trigger.ALL_VOTED_OK, now)
        record = CommitRecord(
            transaction.id,
            tuple(prepared),
            transaction.begun_at,
            now,
            transaction.idempotency_key,
            transaction.fingerprint,
        )
        self._context.force(record, Purpose.DECISION, transaction.gtrid)

    def _committed_without_decision(self, transaction: Transaction, trigger: Trigger, now: float) -> None:
        """Nothing is left to decide: no branch changed anything, or the only branch has committed."""
        transaction.decision = Decision.COMMIT
        transaction.outcome = Outcome.COMMITTED
        self._context.move(transaction, trigger, now)
        self._end(transaction, now)

    def reject(
        self, transaction: Transaction, rejection: Rejection, now: float, trigger: Trigger = Trigger.REJECTED
    ) -> bool:
        """Roll back everywhere. False, and nothing changed, where it is too late for that."""
        if transaction.one_phase and transaction.state is State.PREPARING:
            return False
        if not self._context.move(transaction, trigger, now):
            return False
        transaction.decision = Decision.ROLLBACK
        transaction.rejection = rejection
        transaction.queue = []
        if not transaction.prepare_written:
            # What may be prepared, somebody else may commit: the same key must not do that part again.
            self.free_key(transaction)
        for branch in transaction.branches.values():
            if not branch.started:
                branch.outcome = Outcome.ROLLED_BACK
            elif branch.open:
                self._ask(transaction, branch)
        self._announce(transaction)
        self._finish_if_done(transaction, now)
        return True

    # Phase 2

    def now_durable(self, number: int, now: float) -> None:
        """Forced records up to `number` are on disk: do what waited for them."""
        for forced in self._context.now_durable(number):
            transaction = self._context.open.get(forced.gtrid)
            if transaction is not None:
                self._after_force(transaction, forced, now)
            elif forced.ticket is not None:  # forgotten twice
                self._context.emit(Reply(forced.ticket, Accepted(forced.gtrid)))

    def _after_force(self, transaction: Transaction, forced: Forced, now: float) -> None:
        context = self._context
        if forced.purpose is Purpose.FORGET:
            del context.open[transaction.gtrid]
            self.free_key(transaction)
            context.memory.remember(transaction, now)
        else:
            transaction.durable = True
            transaction.note(now, f"{forced.purpose.value.lower()} durable")
            context.emit(Changed(transaction.gtrid, transaction.state, transaction.state, 0.0))
        if forced.ticket is not None:
            context.emit(Reply(forced.ticket, Accepted(transaction.gtrid)))
        if forced.purpose is Purpose.DECISION:
            for branch in transaction.branches.values():
                if branch.open:
                    self._ask(transaction, branch)
            self._announce(transaction)
            self._finish_if_done(transaction, now)
        elif forced.purpose is Purpose.HEURISTIC:
            self._answer(transaction, lambda waiter_for: True, completed=True)

    def _ask(self, transaction: Transaction, branch: Branch) -> None:
        """Send phase 2's command to one branch, or leave it until its participant is back."""
        branch.retry_at = None
        if not self._context.is_up(branch.participant) or not self._context.may_tell(transaction):
            branch.sent = False
            self._answer(transaction, lambda waiter_for: True, completed=False)
            return
        branch.sent, branch.overlooked = True, False
        branch.attempts += 1
        command = Commit() if transaction.decision is Decision.COMMIT else Rollback(transaction.rejection)
        self._context.emit(Send(branch.participant, transaction.gtrid, command))

    def finished(self, event: BranchFinished, now: float) -> None:
        """A branch has answered phase 2, or a one-phase commit."""
        self._catching_up.answered(event.participant, event.gtrid)
        transaction = self._context.open.get(event.gtrid)
        branch = transaction.branches.get(event.participant) if transaction else None
        if transaction is None or branch is None or not branch.open:
            return  # an answer to a question that was asked twice
        one_phase = transaction.one_phase and transaction.state is State.PREPARING
        decided = transaction.state in (State.COMMITTING, State.ROLLING_BACK) and transaction.durable
        if not one_phase and not decided:
            self._unexpected(event.gtrid, event.participant, "an end that was not asked for")
            return
        branch.sent = False
        if event.failure is not None:
            branch.last_failure = event.failure
        if event.outcome in (None, Outcome.UNKNOWN):
            self._ask_later(transaction, branch, now)
        elif one_phase:
            self._finished_one_phase(transaction, branch, event, now)
        else:
            assert transaction.decision is not None
            assert event.outcome is not None
            self._set_outcome(transaction, branch, transaction.decision, event.outcome, now)
            self._finish_if_done(transaction, now)

    def _ask_later(self, transaction: Transaction, branch: Branch, now: float) -> None:
        settings = self._context.settings
        pause = min(settings.retry_first * 2 ** min(max(branch.attempts - 1, 0), 20), settings.retry_max)
        branch.retry_at = now + pause
        self._context.timers.add(branch.retry_at, TimerKind.RETRY, transaction.gtrid, branch.participant)
        if transaction.decision is not None:
            self._answer(transaction, lambda waiter_for: True, completed=False)

    def retry(self, gtrid: str, participant: str, now: float) -> None:
        """The pause after an unfinished attempt is over, unless a later attempt has begun another."""
        transaction = self._context.open.get(gtrid)
        branch = transaction.branches.get(participant) if transaction else None
        if branch is not None and branch.retry_at is not None and branch.retry_at <= now:
            self.ask_again(gtrid, participant)

    def ask_again(self, gtrid: str, participant: str) -> bool:
        """Ask a branch that has not finished, at once. Says whether a command has gone out."""
        transaction = self._context.open.get(gtrid)
        branch = transaction.branches.get(participant) if transaction else None
        if transaction is None or branch is None or branch.sent or not branch.open:
            return False
        if transaction.one_phase and transaction.state is State.PREPARING:
            self._ask_one_phase(transaction, branch)
        elif transaction.state in (State.COMMITTING, State.ROLLING_BACK) and transaction.durable:
            self._ask(transaction, branch)
        return branch.sent

    def _ask_one_phase(self, transaction: Transaction, branch: Branch) -> None:
        branch.retry_at = None
        if self._context.is_up(branch.participant):
            branch.sent, branch.overlooked = True, False
            branch.attempts += 1
            self._context.emit(Send(branch.participant, transaction.gtrid, Commit(one_phase=True)))

    def _finished_one_phase(
        self, transaction: Transaction, branch: Branch, event: BranchFinished, now: float
    ) -> None:
        assert event.outcome is not None
        branch.outcome = event.outcome
        branch.results = event.results
        branch.state = BranchState.NON_EXISTENT
        if event.outcome in (Outcome.COMMITTED, Outcome.HEURISTIC_COMMIT):
            branch.outcome = Outcome.COMMITTED
            self._committed_without_decision(transaction, Trigger.ONE_PHASE_COMMITTED, now)
        elif event.outcome is Outcome.ROLLED_BACK:
            transaction.decision = Decision.ROLLBACK
            transaction.outcome = Outcome.ROLLED_BACK
            transaction.rejection = _refused(event.participant, event.failure)
            self._context.move(transaction, Trigger.ONE_PHASE_ROLLED_BACK, now)
            self.free_key(transaction)
            self._end(transaction, now)
        else:
            transaction.decision = Decision.COMMIT
            self._set_outcome(transaction, branch, Decision.COMMIT, event.outcome, now)
            self._finish_if_done(transaction, now)

    def _set_outcome(
        self, transaction: Transaction, branch: Branch, decision: Decision, outcome: Outcome, now: float
    ) -> None:
        outcome = _AS_SEEN.get((decision, outcome), outcome)
        branch.outcome = outcome
        branch.state = BranchState.HEURISTICALLY_COMPLETED if outcome.heuristic else BranchState.NON_EXISTENT
        transaction.note(now, outcome.value, branch.participant)
        if outcome.heuristic:
            self._context.alert(
                AlertKind.HEURISTIC,
                f"the decision was {decision.value}, but the branch ended as {outcome.value}",
                gtrid=transaction.gtrid,
                participant=branch.participant,
                outcome=outcome,
            )

    def _finish_if_done(self, transaction: Transaction, now: float) -> None:
        if any(branch.open for branch in transaction.branches.values()):
            return
        outcomes = [b.outcome for b in transaction.branches.values() if b.outcome is not None]
        assert transaction.decision is not None
        transaction.outcome = combine(transaction.decision, outcomes)
        if not transaction.outcome.heuristic:
            self._context.move(transaction, Trigger.ALL_FINISHED, now)
            self._end(transaction, now)
            return
        self._context.move(transaction, Trigger.FINISHED_BY_OTHERS, now)
        transaction.durable = False
        record = heuristic_record(transaction, now)
        self._context.force(record, Purpose.HEURISTIC, transaction.gtrid)

    def _end(self, transaction: Transaction, now: float) -> None:
        committed = transaction.state is State.COMMITTED
        if transaction.prepare_written:
            key = transaction.idempotency_key if committed else ""
            record = EndRecord(transaction.id, now, committed, key, transaction.fingerprint if key else b"")
            self._context.write(record, kick=False)
        del self._context.open[transaction.gtrid]
        self.free_key(transaction)
        self._answer(transaction, lambda waiter_for: True, completed=True)
        self._context.memory.remember(transaction, now)

    def free_key(self, transaction: Transaction) -> None:
        """The open transaction no longer holds its idempotency key."""
        keys = self._context.keys
        if transaction.idempotency_key and keys.get(transaction.idempotency_key) == transaction.gtrid:
            del keys[transaction.idempotency_key]

    # Participants that go and come

    def participant_lost(self, name: str, now: float) -> None:
        """The connection broke: votes that are out will not come; phase 2 waits for the return."""
        self._catching_up.lost(name)
        for transaction in list(self._context.open.values()):
            branch = transaction.branches.get(name)
            if branch is None or not branch.open:
                continue
            asked, branch.sent = branch.sent, False
            if transaction.state is State.PREPARING and asked and branch.vote is None:
                self.reject(transaction, _away(name), now)
            elif transaction.decision is not None and transaction.durable:
                self._answer(transaction, lambda waiter_for: True, completed=False)

    def participant_up(self, name: str) -> None:
        """Fenced, scanned and attached: finish what waits for it."""
        self._catching_up.begin(name)

    # Answers

    def deadline_passed(self, transaction: Transaction, now: float) -> None:
        """Before the decision: roll back. After it: nothing, but callers need not wait for phase 2."""
        rejection = Rejection(Reason.DEADLINE_PASSED, "the transaction's time-out passed before the decision")
        if self.reject(transaction, rejection, now):
            return
        if transaction.one_phase and transaction.state is State.PREPARING:
            self._answer_unknown(transaction)
        elif transaction.durable and transaction.decision is not None:
            self._answer(transaction, lambda waiter_for: True, completed=False)

    def _answer_unknown(self, transaction: Transaction) -> None:
        for waiter in transaction.waiters:
            self._context.refuse(
                waiter.ticket,
                Reason.OUTCOME_UNKNOWN,
                "a participant has not said yet how its branch ended; ask Get",
                transaction.gtrid,
            )
        transaction.waiters = []

    def _announce(self, transaction: Transaction) -> None:
        """The decision is sure: answer those who wait for no more than that."""
        if transaction.sure_outcome is not Outcome.UNKNOWN:
            self._answer(transaction, lambda waiter_for: waiter_for is WaitFor.DECIDED, completed=False)

    def _answer(self, transaction: Transaction, who: Callable[[WaitFor], bool], *, completed: bool) -> None:
        if not transaction.waiters:
            return
        answer = decided(transaction, completed)
        if answer.outcome is Outcome.UNKNOWN:
            self._answer_unknown(transaction)
            return
        rest = []
        for waiter in transaction.waiters:
            if who(waiter.wait_for):
                self._context.emit(Reply(waiter.ticket, answer))
            else:
                rest.append(waiter)
        transaction.waiters = rest

    def answer_latecomer(self, transaction: Transaction, now: float) -> None:
        """Someone asks again for a transaction that is decided: don't let them wait for phase 2's retries."""
        if now >= transaction.deadline and transaction.one_phase and transaction.state is State.PREPARING:
            self._answer_unknown(transaction)
        if transaction.decision is None or not transaction.durable:
            return
        if not self._context.may_tell(transaction):
            self._answer_unknown(transaction)
            return
        is_heuristic = transaction.state is State.HEURISTIC
        if is_heuristic or now >= transaction.deadline or self._context.blocked(transaction):
            self._answer(transaction, lambda waiter_for: True, completed=is_heuristic)
        else:
            self._announce(transaction)

    def _unexpected(self, gtrid: str, participant: str, what: str) -> None:
        self._context.alert(
            AlertKind.PROTOCOL, f"the agent sent {what}; ignored", gtrid=gtrid, participant=participant
        )


def decided(transaction: Transaction, completed: bool) -> Decided:
    """The answer that tells a caller how the transaction ended or surely will."""
    outcome = transaction.sure_outcome
    results: tuple[tuple[str, object], ...] = ()
    if outcome is Outcome.COMMITTED and transaction.one_shot:
        results = tuple((name, transaction.branches[name].results) for name in transaction.order)
    return Decided(transaction.gtrid, outcome, completed, transaction.rejection, results)


def heuristic_record(transaction: Transaction, now: float) -> HeuristicRecord:
    """What the log keeps of a heuristic outcome until FORGET."""
    assert transaction.decision is not None
    branches = tuple(
        (branch.number, branch.outcome)
        for branch in transaction.branches.values()
        if branch.outcome is not None
    )
    return HeuristicRecord(
        transaction.id, transaction.decision, transaction.numbers, branches, transaction.begun_at, now
    )


def _refused(participant: str, failure: Failure | None) -> Rejection:
    if failure is None:
        return Rejection(Reason.PREPARE_FAILED, "the participant refused without a reason", participant)
    return Rejection(failure.reason, failure.message, participant, failure.errno, failure.statement)


def _away(participant: str) -> Rejection:
    return Rejection(
        Reason.PARTICIPANT_UNAVAILABLE, f"participant {participant!r} cannot be reached", participant
    )
