"""The errors of the SDK. The class says what is known of the outcome, the reason says why.

    certainly not done      RolledBack, Unavailable, InvalidRequest,
                            IdempotencyMismatch, IdempotencyInProgress
    done before             AlreadyCommitted
    not known yet           InDoubt
    decided by others       HeuristicMixed

Reasons are the stable codes of `dtp.Reason` (as text, because a newer server may send newer
ones). `retryable` means: the same work may succeed as a new transaction.
"""

from __future__ import annotations

from dtp import Outcome, Reason


class TransactionError(Exception):
    """Base of all errors of the SDK.

    Attributes:
        reason: a stable code; compares equal to the members of `dtp.Reason`.
        message: one line for people.
        gtrid: the transaction it concerns, or "" where its id is not known.
        retryable: the same work may succeed as a new transaction.
        definite: True where what was asked certainly did not happen and never will.
    """

    definite = True

    def __init__(self, reason: str, message: str, gtrid: str = "", retryable: bool = False) -> None:
        super().__init__(reason, message, gtrid, retryable)
        self.reason = str(reason)
        self.message = message
        self.gtrid = gtrid
        self.retryable = retryable

    def __str__(self) -> str:
        concerning = f" (transaction {self.gtrid})" if self.gtrid else ""
        return f"{self.reason}: {self.message}{concerning}"


class RolledBack(TransactionError):
    """The transaction was rolled back, or certainly will be: nothing of it remains anywhere.

    Attributes:
        participant: who refused, or "".
        statement: index of the refused statement within its call, from 0, or None.
        errno: the MySQL server's error number, or 0.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        gtrid: str = "",
        retryable: bool = False,
        participant: str = "",
        statement: int | None = None,
        errno: int = 0,
    ) -> None:
        super().__init__(reason, message, gtrid, retryable)
        self.args = (reason, message, gtrid, retryable, participant, statement, errno)
        self.participant = participant
        self.statement = statement
        self.errno = errno


class InDoubt(TransactionError):
    """The outcome is not known yet. It is decided or will be, without this client.

    Never read it as failed: ask `tm.status(gtrid)` later. Where `gtrid` is "" the answer of a
    `run` without an idempotency key was lost; only the data itself can tell what happened.
    """

    definite = False

    def __init__(self, message: str, gtrid: str = "", reason: str = Reason.OUTCOME_UNKNOWN) -> None:
        super().__init__(reason, message, gtrid, False)
        self.args = (message, gtrid, reason)


class HeuristicMixed(TransactionError):
    """Someone other than the coordinator ended a prepared branch.

    Attributes:
        outcome: HEURISTIC_COMMIT, HEURISTIC_ROLLBACK, HEURISTIC_MIXED or HEURISTIC_HAZARD.
    """

    definite = False

    def __init__(self, outcome: Outcome, message: str, gtrid: str = "") -> None:
        super().__init__(outcome.value, message, gtrid, False)
        self.args = (outcome, message, gtrid)
        self.outcome = outcome


class AlreadyCommitted(TransactionError):
    """The work has been committed before, as transaction `gtrid`; it was not done again."""

    def __init__(self, gtrid: str, message: str = "the work of this idempotency key is committed") -> None:
        super().__init__(Reason.ALREADY_COMMITTED, message, gtrid, False)
        self.args = (gtrid, message)


class IdempotencyMismatch(TransactionError):
    """The idempotency key belongs to other content. Nothing was done."""


class IdempotencyInProgress(TransactionError):
    """A transaction with this idempotency key is under way. Nothing was done; ask again later."""


class Unavailable(TransactionError):
    """The service cannot take the request now. Nothing was done."""


class InvalidRequest(TransactionError):
    """The request is refused as it stands. Nothing was done."""
