"""Convert: the core's values as protobuf messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from coordinator.core.coordinator import Coordinator
from coordinator.core.effects import Decided, Rejection
from coordinator.core.inputs import Wait
from coordinator.core.reconcile import Action, PlanItem
from coordinator.core.states import State
from coordinator.core.transaction import Branch, Transaction
from coordinator.v1 import admin_pb2
from coordinator.v1 import coordinator_pb2 as pb
from dtp import BranchState, Outcome
from dtp.errors import RETRYABLE

_MAX_WAITS = 10
STATES: dict[State, pb.State.ValueType] = {state: pb.State.Value(f"STATE_{state.value}") for state in State}
OUTCOMES: dict[Outcome, pb.Outcome.ValueType] = {
    outcome: pb.Outcome.Value(f"OUTCOME_{outcome.value}") for outcome in Outcome
}
_BRANCH_STATES: dict[BranchState, pb.BranchState.ValueType] = {
    state: pb.BranchState.Value(f"BRANCH_STATE_{state.value}") for state in BranchState
}


def duration(seconds: float) -> Duration:
    """Seconds as a Duration."""
    message = Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message


def timestamp(seconds: float) -> Timestamp:
    """Seconds since 1970 as a Timestamp."""
    message = Timestamp()
    message.FromMicroseconds(int(seconds * 1e6))
    return message


def rejection(value: Rejection | None) -> pb.Rejection | None:
    """Why a transaction was rolled back."""
    if value is None:
        return None
    return pb.Rejection(
        reason=value.reason.value,
        message=value.message,
        participant=value.participant,
        retryable=value.reason in RETRYABLE,
        errno=value.errno,
        statement=value.statement,
    )


def run_response(answer: Decided) -> pb.RunResponse:
    """The answer to Run."""
    return pb.RunResponse(
        gtrid=answer.gtrid,
        outcome=OUTCOMES[answer.outcome],
        completed=answer.completed,
        rejection=rejection(answer.rejection),
        results=[
            pb.BranchResult(participant=participant, results=results)
            for participant, results in answer.results
        ],
        replayed=answer.replayed,
    )


def commit_response(answer: Decided) -> pb.CommitResponse:
    """The answer to Commit."""
    return pb.CommitResponse(
        outcome=OUTCOMES[answer.outcome],
        completed=answer.completed,
        rejection=rejection(answer.rejection),
    )


def rollback_response(answer: Decided) -> pb.RollbackResponse:
    """The answer to Rollback."""
    return pb.RollbackResponse(
        outcome=OUTCOMES[answer.outcome],
        completed=answer.completed,
        rejection=rejection(answer.rejection),
    )


def known_outcome(transaction: Transaction, may_tell: bool) -> Outcome:
    """What may be told: nothing that is not durable, nothing presumed before everybody was heard."""
    if transaction.decision is None or not transaction.durable or not may_tell:
        return Outcome.UNKNOWN
    return transaction.sure_outcome


def _told_state(transaction: Transaction) -> State:
    """COMMITTING is told as PREPARING until the decision is on disk."""
    if transaction.state is State.COMMITTING and not transaction.durable:
        return State.PREPARING
    return transaction.state


def transaction_message(core: Coordinator, transaction: Transaction, now: float) -> pb.Transaction:
    """One transaction, as people and programs see it."""
    message = transaction_of(transaction, now, core.blocked(transaction), core.may_tell(transaction))
    for branch in message.branches:
        waits = core.waits_of(transaction.gtrid, branch.participant)[:_MAX_WAITS]
        branch.waits_for.extend(map(_blocker, waits))
    return message


def transaction_of(transaction: Transaction, now: float, blocked: bool, may_tell: bool) -> pb.Transaction:
    """The same without a core."""
    return pb.Transaction(
        gtrid=transaction.gtrid,
        state=STATES[_told_state(transaction)],
        outcome=OUTCOMES[known_outcome(transaction, may_tell)],
        begun_at=timestamp(transaction.begun_at),
        age=duration(max(0.0, now - transaction.begun_at)),
        branches=[_branch(branch) for branch in transaction.branches.values()],
        rejection=rejection(transaction.rejection),
        in_doubt=transaction.in_doubt,
        blocked=blocked,
        timeline=[
            pb.Event(at=timestamp(at), what=what, participant=participant)
            for at, what, participant in _told_timeline(transaction)
        ],
        recovered=transaction.recovered,
        forgotten=transaction.forgotten,
    )


def _told_timeline(transaction: Transaction) -> Iterable[tuple[float, str, str]]:
    if transaction.durable:
        return transaction.timeline
    return [entry for entry in transaction.timeline if entry[1] != State.COMMITTING.value]


def _branch(branch: Branch) -> pb.Branch:
    failure = branch.last_failure
    return pb.Branch(
        participant=branch.participant,
        number=branch.number,
        state=_BRANCH_STATES[branch.state],
        outcome=OUTCOMES[branch.outcome or Outcome.UNKNOWN],
        attempts=branch.attempts,
        last_error=f"{failure.reason.value}: {failure.message}" if failure else "",
    )


def _blocker(wait: Wait) -> pb.Blocker:
    return pb.Blocker(
        gtrid=wait.blocker,
        prepared=wait.prepared,
        connection_id=wait.connection_id,
        account=wait.account,
    )


def plan_items(items: Iterable[PlanItem], result: Callable[[PlanItem], str]) -> list[admin_pb2.PlanItem]:
    """A recovery plan."""
    return [
        admin_pb2.PlanItem(
            participant=item.participant,
            format_id=item.xid.format_id,
            gtrid=item.xid.gtrid,
            bqual=item.xid.bqual,
            action=item.action.value,
            reason=item.reason.name,
            explanation=item.reason.value,
            result=result(item) if item.action in (Action.COMMIT, Action.ROLLBACK) else "",
        )
        for item in items
    ]
