"""TransactionStatus: what the coordinator knows of a transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.descriptor import EnumDescriptor

from coordinator.v1 import coordinator_pb2 as pb
from dtp import Outcome

_OUTCOMES = {f"OUTCOME_{outcome.value}": outcome for outcome in Outcome}


def decode_outcome(number: int) -> Outcome:
    """The outcome behind the protocol's number; what is unspecified or newer than this SDK is UNKNOWN."""
    value = pb.Outcome.DESCRIPTOR.values_by_number.get(number)
    return _OUTCOMES.get(value.name, Outcome.UNKNOWN) if value is not None else Outcome.UNKNOWN


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a transaction was rolled back.

    Attributes:
        reason: a stable code (`dtp.Reason`).
        message: one line for people.
        participant: who refused, or "".
        retryable: the same work may succeed as a new transaction.
        errno: the MySQL server's error number, or 0.
        statement: index of the statement, from 0, or None.
    """

    reason: str
    message: str
    participant: str = ""
    retryable: bool = False
    errno: int = 0
    statement: int | None = None


@dataclass(frozen=True, slots=True)
class BranchStatus:
    """One branch of a transaction.

    Attributes:
        participant: its name.
        state: a name of `dtp.BranchState`, for example "PREPARED".
        outcome: how it ended; UNKNOWN while it has not.
        attempts: how often its end was tried.
        last_error: why the last attempt did not finish it, or "".
    """

    participant: str
    state: str
    outcome: Outcome
    attempts: int
    last_error: str


@dataclass(frozen=True, slots=True)
class TransactionStatus:
    """What is known of a transaction now.

    Attributes:
        gtrid: its id.
        state: ACTIVE, PREPARING, COMMITTING, ROLLING_BACK, COMMITTED, ROLLED_BACK or HEURISTIC.
        outcome: UNKNOWN means just that: ask again.
        in_doubt: a branch is or may be prepared and has not been finished.
        blocked: in doubt, and a participant that is needed to end it does not answer.
        begun_at: aware, in UTC; None where it is not known.
        age_seconds: since it began; 0 where that is not known.
        branches: its branches.
        rejection: why it was rolled back, or None.
        evidence: where the answer comes from: "live", "log" or "witness rows".
        recovered: read from the log after the coordinator started again.
    """

    gtrid: str
    state: str
    outcome: Outcome
    in_doubt: bool
    blocked: bool
    begun_at: datetime | None
    age_seconds: float
    branches: tuple[BranchStatus, ...]
    rejection: Rejection | None
    evidence: str
    recovered: bool


def decode_status(response: pb.GetResponse) -> TransactionStatus:
    """The status that a GetResponse holds."""
    transaction = response.transaction
    begun = transaction.HasField("begun_at")
    return TransactionStatus(
        gtrid=transaction.gtrid,
        state=_name(pb.State.DESCRIPTOR, transaction.state, "STATE_"),
        outcome=decode_outcome(transaction.outcome),
        in_doubt=transaction.in_doubt,
        blocked=transaction.blocked,
        begun_at=transaction.begun_at.ToDatetime(tzinfo=UTC) if begun else None,
        age_seconds=transaction.age.seconds + transaction.age.nanos / 1e9,
        branches=tuple(
            BranchStatus(
                participant=branch.participant,
                state=_name(pb.BranchState.DESCRIPTOR, branch.state, "BRANCH_STATE_"),
                outcome=decode_outcome(branch.outcome),
                attempts=branch.attempts,
                last_error=branch.last_error,
            )
            for branch in transaction.branches
        ),
        rejection=decode_rejection(transaction),
        evidence=response.evidence,
        recovered=transaction.recovered,
    )


def decode_rejection(
    message: pb.RunResponse | pb.CommitResponse | pb.RollbackResponse | pb.Transaction,
) -> Rejection | None:
    """The rejection in `message`, or None where it has none."""
    if not message.HasField("rejection"):
        return None
    rejection = message.rejection
    return Rejection(
        reason=rejection.reason,
        message=rejection.message,
        participant=rejection.participant,
        retryable=rejection.retryable,
        errno=rejection.errno,
        statement=rejection.statement if rejection.HasField("statement") else None,
    )


def _name(descriptor: EnumDescriptor, number: int, prefix: str) -> str:
    """A number's name in an enumeration, without its prefix; its digits where this SDK is too old for it."""
    value = descriptor.values_by_number.get(number)
    return value.name.removeprefix(prefix) if value is not None else str(number)
