"""TransactionManager: the application's door to a coordinator."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from xacoord import flows, requests, settlement
from xacoord.result import RunResult
from xacoord.session import Session
from xacoord.statement import Branch, WaitFor
from xacoord.status import TransactionStatus
from xacoord.transaction import Transaction

if TYPE_CHECKING:
    import grpc

ADDRESS_VARIABLE = "XACOORD_ADDRESS"
DEFAULT_ADDRESS = "127.0.0.1:7420"
DEFAULT_GRACE_SECONDS = 5.0


class TransactionManager:
    """Begins transactions at one coordinator. Thread-safe; one a process is enough.

    Not usable across `fork()`: connect in the child.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @classmethod
    def connect(
        cls,
        address: str | None = None,
        *,
        timeout: float | None = None,
        grace: float = DEFAULT_GRACE_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> TransactionManager:
        """A manager for the coordinator at `address`. Returns at once; the first call connects.

        Args:
            address: "host:port"; None: from XACOORD_ADDRESS, else 127.0.0.1:7420.
            timeout: seconds a transaction may take unless it says otherwise; None: the server's
                default (30).
            grace: seconds beyond a transaction's time that are waited for an answer, and for
                which an open outcome is asked for.
            credentials: for TLS, of the coordinator and the agents; None: plain text.
        """
        if not (math.isfinite(grace) and grace > 0):
            raise ValueError(f"grace must be a finite number of seconds above 0, not {grace}")
        # Imported here: grpc takes two thirds of the import time.
        from xacoord.driver import Driver

        resolved = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        return cls(Session(Driver(resolved, credentials), timeout, grace))

    @property
    def address(self) -> str:
        """The coordinator's "host:port"."""
        return self._session.driver.address

    def transaction(
        self,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        wait_for: WaitFor = "completed",
        fingerprint: bytes | None = None,
    ) -> Transaction:
        """A transaction for a `with` block; entering it begins, leaving it commits or rolls back.

        Args:
            idempotency_key: names the work (up to 128 bytes); work that has been committed under
                it is not done again: entering raises AlreadyCommitted.
            timeout: seconds until it is rolled back unless it is decided.
            wait_for: "completed": every branch has acknowledged; "decided": the decision is durable.
            fingerprint: up to 32 bytes that stand for the work's content; the same key with
                another fingerprint is refused.
        """
        return Transaction(self._session, idempotency_key, timeout, wait_for, fingerprint)

    def run(
        self,
        branches: Iterable[Branch],
        idempotency_key: str | None = None,
        timeout: float | None = None,
        wait_for: WaitFor = "completed",
        in_order: bool = False,
    ) -> RunResult:
        """Do a whole transaction in one call: faster than a block where no statement needs another's result.

        Args:
            branches: the work, each participant once.
            idempotency_key, timeout, wait_for: as in `transaction`.
            in_order: run the branches one after the other; avoids deadlocks across servers among
                callers that keep to the same order.

        Raises:
            RolledBack: nothing of it remains.
            InDoubt: the outcome is not known yet.
            HeuristicMixed: someone else ended a branch.
            Unavailable, InvalidRequest, IdempotencyMismatch, IdempotencyInProgress: nothing was done.
            TypeError, ValueError: a value cannot be expressed; nothing was sent.
        """
        session = self._session
        timeout_seconds = session.timeout_seconds if timeout is None else timeout
        request = requests.run_request(branches, timeout_seconds, idempotency_key, wait_for, in_order)
        return session.driver.drive(settlement.run(request, session.grace_seconds))

    def status(self, gtrid: str) -> TransactionStatus:
        """What is known of a transaction.

        Raises:
            InvalidRequest: UNKNOWN_TRANSACTION or INVALID_GTRID.
            Unavailable: the coordinator could not be asked.
        """
        return self._session.driver.drive(flows.status(gtrid, self._session.grace_seconds))

    def close(self) -> None:
        """Close the connections. Transactions under way fail; repeating it is harmless."""
        self._session.driver.close()

    def __enter__(self) -> TransactionManager:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
