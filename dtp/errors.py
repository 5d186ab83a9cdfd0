"""Errors with a stable reason, and whether they are definite.

*Definite* means: what was asked certainly did not happen and never will. An error that is not
definite leaves the outcome UNKNOWN, and nobody may act as if it had failed. *Retryable* means:
the same request may succeed later (as a new transaction where the old one was rolled back).
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Stable codes. They travel as `reason` in google.rpc.ErrorInfo: add, never rename."""

    # the caller's request
    INVALID_GTRID = "INVALID_GTRID"
    INVALID_REQUEST = "INVALID_REQUEST"
    TIMEOUT_OUT_OF_RANGE = "TIMEOUT_OUT_OF_RANGE"
    NO_BRANCHES = "NO_BRANCHES"
    TOO_MANY_BRANCHES = "TOO_MANY_BRANCHES"
    DUPLICATE_BRANCH = "DUPLICATE_BRANCH"
    UNKNOWN_PARTICIPANT = "UNKNOWN_PARTICIPANT"
    UNKNOWN_TRANSACTION = "UNKNOWN_TRANSACTION"
    IDEMPOTENCY_MISMATCH = "IDEMPOTENCY_MISMATCH"
    IDEMPOTENCY_IN_PROGRESS = "IDEMPOTENCY_IN_PROGRESS"
    # the transaction's state
    TRANSACTION_NOT_ACTIVE = "TRANSACTION_NOT_ACTIVE"
    ALREADY_COMMITTED = "ALREADY_COMMITTED"
    ALREADY_ROLLED_BACK = "ALREADY_ROLLED_BACK"
    DECISION_CONTRADICTED = "DECISION_CONTRADICTED"
    NOT_IN_DOUBT = "NOT_IN_DOUBT"
    NOT_HEURISTIC = "NOT_HEURISTIC"
    HEURISTIC_OUTCOME = "HEURISTIC_OUTCOME"
    DEADLINE_PASSED = "DEADLINE_PASSED"
    ROLLED_BACK_BY_REQUEST = "ROLLED_BACK_BY_REQUEST"
    ROLLED_BACK_BY_OPERATOR = "ROLLED_BACK_BY_OPERATOR"
    PRESUMED_ABORT = "PRESUMED_ABORT"
    # the coordinator's state
    NOT_READY = "NOT_READY"
    DRAINING = "DRAINING"
    LOG_FULL = "LOG_FULL"
    LOG_FAILED = "LOG_FAILED"
    OVERLOADED = "OVERLOADED"
    EPOCH_EXHAUSTED = "EPOCH_EXHAUSTED"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    INTERNAL = "INTERNAL"
    # participants and agents
    PARTICIPANT_UNAVAILABLE = "PARTICIPANT_UNAVAILABLE"
    PARTICIPANT_HELD = "PARTICIPANT_HELD"
    COORDINATOR_UNAVAILABLE = "COORDINATOR_UNAVAILABLE"
    STALE_EPOCH = "STALE_EPOCH"
    UNKNOWN_EPOCH = "UNKNOWN_EPOCH"
    LOG_IDENTITY_CHANGED = "LOG_IDENTITY_CHANGED"
    PARTICIPANT_MISMATCH = "PARTICIPANT_MISMATCH"
    POOL_EXHAUSTED = "POOL_EXHAUSTED"
    # a branch's work
    STATEMENT_REFUSED = "STATEMENT_REFUSED"
    STATEMENT_FAILED = "STATEMENT_FAILED"
    EXPECTATION_FAILED = "EXPECTATION_FAILED"
    DEADLOCK = "DEADLOCK"
    LOCK_TIMEOUT = "LOCK_TIMEOUT"
    RESULT_TOO_LARGE = "RESULT_TOO_LARGE"
    BRANCH_DOOMED = "BRANCH_DOOMED"
    BRANCH_BUSY = "BRANCH_BUSY"
    BRANCH_LOST = "BRANCH_LOST"
    PREPARE_FAILED = "PREPARE_FAILED"
    SERVER_UNAVAILABLE = "SERVER_UNAVAILABLE"


# Reason -> name of the gRPC status code that carries it.
STATUS: dict[Reason, str] = {
    Reason.INVALID_GTRID: "INVALID_ARGUMENT",
    Reason.INVALID_REQUEST: "INVALID_ARGUMENT",
    Reason.TIMEOUT_OUT_OF_RANGE: "INVALID_ARGUMENT",
    Reason.NO_BRANCHES: "INVALID_ARGUMENT",
    Reason.TOO_MANY_BRANCHES: "INVALID_ARGUMENT",
    Reason.DUPLICATE_BRANCH: "INVALID_ARGUMENT",
    Reason.UNKNOWN_PARTICIPANT: "NOT_FOUND",
    Reason.UNKNOWN_TRANSACTION: "NOT_FOUND",
    Reason.IDEMPOTENCY_MISMATCH: "ALREADY_EXISTS",
    Reason.IDEMPOTENCY_IN_PROGRESS: "ABORTED",
    Reason.TRANSACTION_NOT_ACTIVE: "FAILED_PRECONDITION",
    Reason.ALREADY_COMMITTED: "FAILED_PRECONDITION",
    Reason.ALREADY_ROLLED_BACK: "FAILED_PRECONDITION",
    Reason.DECISION_CONTRADICTED: "FAILED_PRECONDITION",
    Reason.NOT_IN_DOUBT: "FAILED_PRECONDITION",
    Reason.NOT_HEURISTIC: "FAILED_PRECONDITION",
    Reason.HEURISTIC_OUTCOME: "FAILED_PRECONDITION",
    Reason.DEADLINE_PASSED: "ABORTED",
    Reason.ROLLED_BACK_BY_REQUEST: "ABORTED",
    Reason.ROLLED_BACK_BY_OPERATOR: "ABORTED",
    Reason.PRESUMED_ABORT: "ABORTED",
    Reason.NOT_READY: "UNAVAILABLE",
    Reason.DRAINING: "UNAVAILABLE",
    Reason.LOG_FULL: "RESOURCE_EXHAUSTED",
    Reason.LOG_FAILED: "UNAVAILABLE",
    Reason.OVERLOADED: "RESOURCE_EXHAUSTED",
    Reason.EPOCH_EXHAUSTED: "RESOURCE_EXHAUSTED",
    Reason.OUTCOME_UNKNOWN: "UNKNOWN",
    Reason.INTERNAL: "INTERNAL",
    Reason.PARTICIPANT_UNAVAILABLE: "UNAVAILABLE",
    Reason.PARTICIPANT_HELD: "FAILED_PRECONDITION",
    Reason.COORDINATOR_UNAVAILABLE: "UNAVAILABLE",
    Reason.STALE_EPOCH: "FAILED_PRECONDITION",
    Reason.UNKNOWN_EPOCH: "FAILED_PRECONDITION",
    Reason.LOG_IDENTITY_CHANGED: "FAILED_PRECONDITION",
    Reason.PARTICIPANT_MISMATCH: "FAILED_PRECONDITION",
    Reason.POOL_EXHAUSTED: "RESOURCE_EXHAUSTED",
    Reason.STATEMENT_REFUSED: "INVALID_ARGUMENT",
    Reason.STATEMENT_FAILED: "ABORTED",
    Reason.EXPECTATION_FAILED: "ABORTED",
    Reason.DEADLOCK: "ABORTED",
    Reason.LOCK_TIMEOUT: "ABORTED",
    Reason.RESULT_TOO_LARGE: "ABORTED",
    Reason.BRANCH_DOOMED: "ABORTED",
    Reason.BRANCH_BUSY: "ABORTED",
    Reason.BRANCH_LOST: "ABORTED",
    Reason.PREPARE_FAILED: "ABORTED",
    Reason.SERVER_UNAVAILABLE: "UNAVAILABLE",
}

# Reasons that leave open what happened. Everything else is definite.
INDEFINITE = frozenset({Reason.OUTCOME_UNKNOWN, Reason.LOG_FAILED, Reason.INTERNAL})

# Reasons after which the same request may succeed later.
RETRYABLE = frozenset(
    {
        Reason.IDEMPOTENCY_IN_PROGRESS,
        Reason.DEADLINE_PASSED,
        Reason.PRESUMED_ABORT,
        Reason.NOT_READY,
        Reason.DRAINING,
        Reason.LOG_FULL,
        Reason.OVERLOADED,
        Reason.PARTICIPANT_UNAVAILABLE,
        Reason.COORDINATOR_UNAVAILABLE,
        Reason.POOL_EXHAUSTED,
        Reason.DEADLOCK,
        Reason.LOCK_TIMEOUT,
        Reason.BRANCH_LOST,
        Reason.PREPARE_FAILED,
        Reason.SERVER_UNAVAILABLE,
    }
)


class XacoordError(Exception):
    """An error with a stable reason.

    Attributes:
        reason: the stable code.
        message: one line for people that says what to do.
        gtrid: the transaction it concerns, or "".
        metadata: further facts, string to string (never statements or rows).
    """

    def __init__(
        self, reason: Reason, message: str, *, gtrid: str = "", metadata: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.gtrid = gtrid
        self.metadata = metadata or {}

    @property
    def definite(self) -> bool:
        """True where what was asked certainly did not happen."""
        return self.reason not in INDEFINITE

    @property
    def retryable(self) -> bool:
        """True where the same request may succeed later."""
        return self.reason in RETRYABLE

    @property
    def status(self) -> str:
        """The name of the gRPC status code that carries this reason."""
        return STATUS[self.reason]

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
