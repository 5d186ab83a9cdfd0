"""Transaction: work at several participants that commits everywhere or nowhere.

Its life:

1. `begin()` (entering the block) gives it a gtrid.
2. Statements run through `branch(name).execute()`. The first that fails, or whose answer is lost,
   rolls the transaction back: no Commit was sent, so that is certain.
3. Leaving the block commits, or rolls back where an exception leaves it or it was marked.
4. From the moment Commit is sent nobody here calls it rolled back unless the coordinator does:
   an exception that interrupts it (KeyboardInterrupt too) leaves it in doubt.

Crash windows: a client that dies before 4 is rolled back by the time-out; one that dies in 4 leaves
the end to the coordinator.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import NoReturn

from dtp import Outcome, Reason
from xacoord import flows, requests, settlement
from xacoord.errors import HeuristicMixed, InDoubt, InvalidRequest, RolledBack, TransactionError
from xacoord.result import Result
from xacoord.session import Session
from xacoord.statement import Statement, StatementLike, WaitFor

logger = logging.getLogger("xacoord")

# What an agent says of a branch that is gone, or going, and does not know why. The coordinator does.
_SAYS_NO_REASON = frozenset(
    {
        Reason.ALREADY_ROLLED_BACK,
        Reason.BRANCH_DOOMED,
        Reason.BRANCH_LOST,
        Reason.TRANSACTION_NOT_ACTIVE,
    }
)


class EnlistedBranch:
    """A transaction's work at one participant. From `Transaction.branch`."""

    __slots__ = ("_read_only", "_transaction", "participant")

    def __init__(self, transaction: Transaction, participant: str, read_only: bool) -> None:
        self._transaction = transaction
        self._read_only = read_only
        self.participant = participant

    def execute(
        self,
        sql: str,
        params: Sequence[object] = (),
        *,
        expect_rows: int | None = None,
        min_rows: int | None = None,
    ) -> Result:
        """Run one statement (see `Statement` for the arguments).

        Raises:
            RolledBack: it failed, was refused or its answer was lost; the whole transaction is
                rolled back.
            InvalidRequest: the transaction has ended, or the participant is unknown.
            TypeError, ValueError: a parameter cannot be expressed; nothing was sent.
        """
        return self.execute_many([Statement(sql, params, expect_rows, min_rows)])[0]

    def execute_many(self, statements: Iterable[StatementLike]) -> list[Result]:
        """Run several statements in order, in one call. Raises what `execute` raises."""
        return self._transaction._execute(self.participant, statements, self._read_only)


class Transaction:
    """One transaction; from `TransactionManager.transaction`, used in a `with` block.

    Attributes:
        gtrid: its id, or "" before it has begun.
        outcome: UNKNOWN until it has ended; what is UNKNOWN after the end is in doubt.
        completed: every branch has acknowledged the commit.
    """

    def __init__(
        self,
        session: Session,
        idempotency_key: str | None,
        timeout_seconds: float | None,
        wait_for: WaitFor,
        fingerprint: bytes | None,
    ) -> None:
        requests.encode_wait_for(wait_for)
        self._session = session
        self._idempotency_key = idempotency_key
        self._timeout_seconds = session.timeout_seconds if timeout_seconds is None else timeout_seconds
        self._wait_for = wait_for
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._ended = False
        self._worked = False
        self._deadline = 0.0
        # Why it can only be rolled back, or was; told again whenever it is used.
        self._failure: TransactionError | None = None
        self._hooks: list[Callable[[], object]] = []
        self.gtrid = ""
        self.outcome = Outcome.UNKNOWN
        self.completed = False

    def begin(self) -> Transaction:
        """Begin; entering the block does this.

        Raises:
            AlreadyCommitted: the idempotency key's work is done; don't do it again.
            IdempotencyInProgress, IdempotencyMismatch, Unavailable, InvalidRequest.
        """
        if self.gtrid:
            raise InvalidRequest(Reason.INVALID_REQUEST, "a Transaction begins only once", self.gtrid)
        session = self._session
        request = requests.begin_request(
            self._timeout_seconds, self._idempotency_key, self._fingerprint, session.directory.stale
        )
        begun = session.driver.drive(flows.begin(request, session.grace_seconds))
        if request.directory:
            session.directory.replace(begun.addresses)
        self.gtrid = begun.gtrid
        self._deadline = begun.deadline
        return self

    def branch(self, participant: str, read_only: bool = False) -> EnlistedBranch:
        """The work at `participant`. Nothing is sent before the first statement.

        Args:
            participant: its name.
            read_only: promise to change nothing, which the server enforces; counts where the
                first statement at this participant says so.
        """
        return EnlistedBranch(self, participant, read_only)

    def set_rollback_only(self, reason: str) -> None:
        """Let the transaction end in a rollback: leaving the block raises RolledBack with `reason`."""
        with self._lock:
            self._require_active()
            if self._failure is None:
                self._failure = RolledBack(Reason.ROLLED_BACK_BY_REQUEST, reason, self.gtrid)

    def on_commit(self, function: Callable[[], object]) -> None:
        """Call `function` after the commit, in order of registration; never after another outcome.

        An exception in it is logged (logger "xacoord") and changes nothing.
        """
        self._hooks.append(function)

    def commit(self) -> None:
        """Commit now; leaving the block does this.

        Raises:
            RolledBack: nothing of it remains.
            InDoubt: the outcome is not known yet.
            HeuristicMixed: someone else ended a branch.
            InvalidRequest: it has ended or not begun.
        """
        failure = self._failure
        if failure is not None:
            self._doom(failure)
        self._end()
        session = self._session
        remaining_seconds = max(0.0, self._deadline - session.driver.now())
        request = requests.commit_request(self.gtrid, self._wait_for)
        try:
            settled = session.driver.drive(
                settlement.commit(request, remaining_seconds, session.grace_seconds, self._worked)
            )
        except (RolledBack, HeuristicMixed) as error:
            self.outcome = error.outcome if isinstance(error, HeuristicMixed) else Outcome.ROLLED_BACK
            raise
        except TransactionError:
            raise
        except BaseException as error:
            error.add_note(f"the commit was interrupted, its outcome is open: ask tm.status({self.gtrid!r})")
            raise
        self.outcome = Outcome.COMMITTED
        self.completed = settled.completed
        self._run_hooks()

    def rollback(self) -> None:
        """Roll back now; the block is then left without an error. Repeating it is harmless.

        Where the coordinator cannot be reached the transaction's time-out does it.

        Raises:
            HeuristicMixed, AlreadyCommitted, InDoubt: someone else has ended it, or is about to.
            InvalidRequest: it has ended or not begun.
        """
        self._failure = None
        if self._ended and self.outcome is Outcome.ROLLED_BACK:
            return
        self._end()
        error = self._roll_back()
        if error is not None and not isinstance(error, RolledBack):
            raise error

    def __enter__(self) -> Transaction:
        return self.begin()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None:
            if not self._ended:
                self.commit()
            elif self._failure is not None:
                raise self._failure
        elif not self._ended:
            self._roll_back_after(exc)

    def __repr__(self) -> str:
        return f"<Transaction {self.gtrid or 'not begun'} outcome={self.outcome.value}>"

    def _execute(
        self, participant: str, statements: Iterable[StatementLike], read_only: bool
    ) -> list[Result]:
        if self._failure is not None:
            raise self._failure
        self._require_active()
        session = self._session
        request = requests.execute_request(self.gtrid, participant, statements, read_only)
        address = session.agent_of(participant)
        remaining_seconds = max(0.0, self._deadline - session.driver.now())
        flow = flows.execute(request, participant, address, remaining_seconds + session.grace_seconds)
        self._worked = True
        try:
            return session.driver.drive(flow)
        except RolledBack as error:
            if error.reason in {Reason.PARTICIPANT_UNAVAILABLE, Reason.PARTICIPANT_MISMATCH}:
                session.directory.mark_stale()
            self._doom(error)
        except BaseException:
            # Whether the statement ran is not known, so the transaction must not commit.
            if self._failure is None:
                self._failure = RolledBack(
                    Reason.BRANCH_LOST, "a statement was interrupted", self.gtrid, True
                )
            raise

    def _require_active(self) -> None:
        if not self.gtrid or self._ended:
            state = "has ended" if self.gtrid else "has not begun: use it in a `with` block"
            raise InvalidRequest(Reason.TRANSACTION_NOT_ACTIVE, f"this transaction {state}", self.gtrid)

    def _end(self) -> None:
        """Take the right to end it; one caller gets it."""
        with self._lock:
            self._require_active()
            self._ended = True

    def _doom(self, failure: TransactionError) -> NoReturn:
        """Roll back because of `failure` and raise it (or what became of the transaction instead)."""
        with self._lock:
            first = not self._ended
            self._ended = True
            if first:
                self._failure = failure
        if first:
            error = self._roll_back()
            if isinstance(error, RolledBack) and failure.reason not in _SAYS_NO_REASON:
                error = None  # the statement's own failure says more
            self._failure = error or failure
        if self._failure is None:
            raise InvalidRequest(
                Reason.TRANSACTION_NOT_ACTIVE, "this transaction has ended meanwhile", self.gtrid
            ) from failure
        raise self._failure

    def _roll_back(self) -> TransactionError | None:
        """Send the Rollback; returns what became of it where that is not a rollback, or why it was one
        already."""
        self.outcome = Outcome.ROLLED_BACK
        session = self._session
        error = session.driver.drive(flows.rollback(self.gtrid, session.grace_seconds))
        if isinstance(error, HeuristicMixed):
            self.outcome = error.outcome
        elif error is not None and not isinstance(error, RolledBack):
            self.outcome = Outcome.UNKNOWN if isinstance(error, InDoubt) else Outcome.COMMITTED
        return error

    def _roll_back_after(self, exc: BaseException) -> None:
        """Roll back and keep the user's exception whatever happens."""
        try:
            self._end()
            error = self._roll_back()
        except Exception as failure:
            logger.warning("rollback of %s could not be sent; its time-out does it: %s", self.gtrid, failure)
            return
        if error is not None and not isinstance(error, RolledBack):
            exc.add_note(f"the transaction did not end in a rollback: {error}")

    def _run_hooks(self) -> None:
        for hook in self._hooks:
            try:
                hook()
            except Exception:
                logger.exception("an on_commit function of %s failed; the commit stands", self.gtrid)
