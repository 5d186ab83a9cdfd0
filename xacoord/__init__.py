"""The Python SDK of xacoord: one change across several MySQL servers, on every server or on none.

Guarantees:

- Leaving a `with tm.transaction()` block normally, or returning from `tm.run()`, means: committed.
- `RolledBack` and `Unavailable` mean: certainly not done, anywhere.
- What is not known is `InDoubt`, never "failed"; `tm.status(gtrid)` says later how it ended.
- Importing this package imports no database driver, no ORM, and grpc only at `connect()`.

A `TransactionManager` is used from many threads. It does not survive `fork()`: connect in the child.
"""

from xacoord.errors import (
    AlreadyCommitted,
    HeuristicMixed,
    IdempotencyInProgress,
    IdempotencyMismatch,
    InDoubt,
    InvalidRequest,
    RolledBack,
    TransactionError,
    Unavailable,
)
from xacoord.manager import TransactionManager
from xacoord.result import Result, RunResult
from xacoord.statement import Branch, Statement, WaitFor
from xacoord.status import BranchStatus, Rejection, TransactionStatus
from xacoord.transaction import EnlistedBranch, Transaction

__all__ = [
    "AlreadyCommitted",
    "Branch",
    "BranchStatus",
    "EnlistedBranch",
    "HeuristicMixed",
    "IdempotencyInProgress",
    "IdempotencyMismatch",
    "InDoubt",
    "InvalidRequest",
    "Rejection",
    "Result",
    "RolledBack",
    "RunResult",
    "Statement",
    "Transaction",
    "TransactionError",
    "TransactionManager",
    "TransactionStatus",
    "Unavailable",
    "WaitFor",
]
