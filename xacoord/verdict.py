"""From answers and faults to what the caller is told. Pure.

An answer either settles the transaction (committed: a Settled; anything else: an error is
raised) or leaves it open (None). Nothing here ever turns "not known" into "failed".
"""

from __future__ import annotations

from dataclasses import dataclass

from dtp import Outcome, Reason
from dtp.errors import STATUS
from xacoord.errors import (
    AlreadyCommitted,
    HeuristicMixed,
    IdempotencyInProgress,
    IdempotencyMismatch,
    InvalidRequest,
    RolledBack,
    TransactionError,
    Unavailable,
)
from xacoord.faults import Fault
from xacoord.status import Rejection

# The transaction is rolled back, or never can commit. Status ABORTED says that of every reason but one.
ROLLED_BACK_REASONS = frozenset(
    {reason for reason, status in STATUS.items() if status == "ABORTED"} - {Reason.IDEMPOTENCY_IN_PROGRESS}
    | {Reason.ALREADY_ROLLED_BACK, Reason.STATEMENT_REFUSED}
)

# The request is at fault, or the transaction's state does not allow it.
INVALID_REASONS = frozenset(
    {
        Reason.INVALID_GTRID,
        Reason.INVALID_REQUEST,
        Reason.TIMEOUT_OUT_OF_RANGE,
        Reason.NO_BRANCHES,
        Reason.TOO_MANY_BRANCHES,
        Reason.DUPLICATE_BRANCH,
        Reason.UNKNOWN_PARTICIPANT,
        Reason.UNKNOWN_TRANSACTION,
        Reason.TRANSACTION_NOT_ACTIVE,
        Reason.DECISION_CONTRADICTED,
        Reason.NOT_IN_DOUBT,
        Reason.NOT_HEURISTIC,
    }
)

# The coordinator has started again since the transaction began, so this one is gone; a new one may succeed.
_AFTER_A_RESTART = frozenset({Reason.UNKNOWN_TRANSACTION, Reason.STALE_EPOCH, Reason.UNKNOWN_EPOCH})

# Statuses of reasons newer than this SDK, and of the transport, that blame the request.
_INVALID_STATUSES = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
    }
)


@dataclass(frozen=True, slots=True)
class Settled:
    """The transaction is committed.

    Attributes:
        completed: every branch has acknowledged.
    """

    completed: bool


def settle(gtrid: str, outcome: Outcome, completed: bool, rejection: Rejection | None) -> Settled | None:
    """What an outcome means: committed, or None where it is not known.

    Raises:
        RolledBack: it was rolled back.
        HeuristicMixed: someone else decided.
    """
    if outcome is Outcome.COMMITTED:
        return Settled(completed)
    if outcome is Outcome.ROLLED_BACK:
        raise rolled_back(gtrid, rejection)
    if outcome.heuristic:
        raise HeuristicMixed(
            outcome,
            "a prepared branch was ended by someone other than the coordinator: compare the branches in "
            "tm.status(gtrid) with the data, and tell an operator",
            gtrid,
        )
    return None


def rolled_back(gtrid: str, rejection: Rejection | None) -> RolledBack:
    """The error for a transaction that was rolled back."""
    if rejection is None:
        return RolledBack(Reason.ALREADY_ROLLED_BACK, "the transaction was rolled back", gtrid)
    return RolledBack(
        rejection.reason,
        rejection.message,
        gtrid,
        retryable=rejection.retryable,
        participant=rejection.participant,
        statement=rejection.statement,
        errno=rejection.errno,
    )


def rolled_back_by(fault: Fault, gtrid: str, participant: str = "") -> RolledBack:
    """The error for a transaction that was rolled back because of a failed call."""
    unreachable = Reason.PARTICIPANT_UNAVAILABLE if participant else Reason.COORDINATOR_UNAVAILABLE
    return RolledBack(
        fault.reason or unreachable,
        fault.message,
        gtrid,
        retryable=fault.retryable or fault.reason in _AFTER_A_RESTART,
        participant=participant,
        statement=fault.statement,
        errno=fault.errno,
    )


def error_of(fault: Fault, gtrid: str = "") -> TransactionError:
    """The error for a fault of a call that did nothing (Begin, Get, or a definite one of Run)."""
    gtrid = fault.gtrid or gtrid
    reason, message, retryable = fault.reason, fault.message, fault.retryable
    if reason == Reason.IDEMPOTENCY_MISMATCH:
        return IdempotencyMismatch(reason, message, gtrid, retryable)
    if reason == Reason.IDEMPOTENCY_IN_PROGRESS:
        return IdempotencyInProgress(reason, message, gtrid, retryable)
    if reason == Reason.ALREADY_COMMITTED:
        return AlreadyCommitted(gtrid, message)
    if reason in ROLLED_BACK_REASONS:
        return rolled_back_by(fault, gtrid)
    known = reason in Reason.__members__
    if reason in INVALID_REASONS or (not known and fault.status in _INVALID_STATUSES):
        return InvalidRequest(reason or Reason.INVALID_REQUEST, message, gtrid, retryable)
    return Unavailable(reason or Reason.COORDINATOR_UNAVAILABLE, message, gtrid, retryable)
