"""Work: what one client does in one transaction, the same on every side.

In each branch a transaction changes the balance of one row of `servers.ROWS`, chosen at random (or reads it):
one unit more in the first branch, one less in the second, and so on. So the books tell everything afterwards:
the sum of a server's balances has moved by exactly the number of transactions that committed there.
"""

from __future__ import annotations

import enum
import random
from typing import Protocol

from deploy.bench.servers import ROWS

UPDATE = "UPDATE account SET balance = balance + %s WHERE id = %s"
SELECT = "SELECT balance FROM account WHERE id = %s"


class Told(enum.Enum):
    """What a client knows of a transaction when it is over."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    UNKNOWN = "unknown"


class Client(Protocol):
    """One client of one side; used by one thread."""

    def transact(self) -> tuple[Told, str]:
        """One transaction from its beginning to its end; what is known of it, and why it did not commit."""
        ...

    def close(self) -> None:
        """Disconnect; nothing is left prepared."""
        ...


def change(branch: int) -> int:
    """What a committed transaction adds to a server's sum. Branches are counted from 0."""
    return 1 if branch % 2 == 0 else -1


class Work:
    """A client's statements."""

    def __init__(self, branches: int, read_only: bool, seed: int) -> None:
        self.branches = branches
        self.read_only = read_only
        self._draw = random.Random(seed).random

    def parameters(self) -> list[tuple[int, ...]]:
        """Of the statement of each branch of the next transaction."""
        draw = self._draw
        rows = [1 + int(draw() * ROWS) for _ in range(self.branches)]
        if self.read_only:
            return [(row,) for row in rows]
        return [(change(branch), row) for branch, row in enumerate(rows)]

    @property
    def statement(self) -> str:
        """With %s for the parameters."""
        return SELECT if self.read_only else UPDATE

    def texts(self) -> list[str]:
        """The same with the parameters in it."""
        statement = self.statement
        return [statement % parameters for parameters in self.parameters()]
