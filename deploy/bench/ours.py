"""Ours: the same transactions through the SDK, as an application would write them."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.bench.work import Told, Work
from xacoord import Branch, HeuristicMixed, InDoubt, Statement, TransactionManager
from xacoord.errors import TransactionError


class OneShot:
    """One client: the whole transaction in one call.

    Args:
        manager: shared by the threads of a process.
        participants: one a branch.
        work: what to do.
    """

    def __init__(self, manager: TransactionManager, participants: Sequence[str], work: Work) -> None:
        self._manager = manager
        self._participants = participants
        self._work = work

    def transact(self) -> tuple[Told, str]:
        """See `Client`."""
        try:
            self._transact()
        except TransactionError as error:
            unknown = isinstance(error, InDoubt | HeuristicMixed)
            return (Told.UNKNOWN if unknown else Told.ROLLED_BACK), f"{error.reason}: {error.message}"
        return Told.COMMITTED, ""

    def _transact(self) -> None:
        work = self._work
        statement = work.statement
        self._manager.run(
            [
                Branch(participant, [Statement(statement, parameters)], work.read_only)
                for participant, parameters in zip(self._participants, work.parameters(), strict=True)
            ]
        )

    def close(self) -> None:
        """See `Client`; the manager is its process's."""


class Interactive(OneShot):
    """One client: Begin, one Execute at each participant, Commit."""

    def _transact(self) -> None:
        work = self._work
        statement = work.statement
        with self._manager.transaction() as tx:
            for participant, parameters in zip(self._participants, work.parameters(), strict=True):
                tx.branch(participant, work.read_only).execute(statement, parameters)
