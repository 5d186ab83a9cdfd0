"""Memory of ended transactions: what List shows for a while, and idempotency keys.

A key remembers a committed result (for `keep_keys` seconds, at most `keep_keys_count` of them) and
is freed by a rollback. Ended transactions without a key are kept for `keep_ended` seconds, so that
a repeated Commit gets the same answer and people can see what happened. Both are bounded.

The purge mark: witness rows of transactions below it may go. It is the lowest transaction that was
still open `witness_retention` seconds ago.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from coordinator.core.records import EndRecord
from coordinator.core.settings import Settings
from coordinator.core.states import State
from coordinator.core.transaction import Transaction
from dtp import Decision, Gtrid, Outcome

_MARK_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class RememberedKey:
    """The transaction behind an idempotency key: committed, or ended heuristically and forgotten."""

    id: Gtrid
    gtrid: str
    fingerprint: bytes
    ended_at: float
    outcome: Outcome


class Memory:
    """Ended transactions and the keys of committed ones."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.ended: OrderedDict[str, Transaction] = OrderedDict()
        self.keys: OrderedDict[str, RememberedKey] = OrderedDict()
        self.purge_mark = ""
        self._dropped_until = 0.0  # the last end among those dropped from `ended`
        self._marks: deque[tuple[float, str]] = deque()

    def remember(self, transaction: Transaction, now: float) -> None:
        """Keep an ended transaction."""
        transaction.ended_at = now
        transaction.waiters = []
        self.ended[transaction.gtrid] = transaction
        self.ended.move_to_end(transaction.gtrid)
        if len(self.ended) > self._settings.keep_ended_count:
            self._drop_oldest()
        if transaction.idempotency_key and transaction.state is State.COMMITTED:
            self.remember_key(transaction.idempotency_key, transaction.id, transaction.fingerprint, now)

    def remember_key(
        self,
        key: str,
        id_: Gtrid,
        fingerprint: bytes,
        now: float,
        outcome: Outcome = Outcome.COMMITTED,
    ) -> None:
        """Keep the key of a transaction that has committed, or of which a part may have."""
        self.keys[key] = RememberedKey(id_, str(id_), fingerprint, now, outcome)
        self.keys.move_to_end(key)
        if len(self.keys) > self._settings.keep_keys_count:
            self.keys.popitem(last=False)

    def _drop_oldest(self) -> None:
        _, transaction = self.ended.popitem(last=False)
        self._dropped_until = max(self._dropped_until, transaction.ended_at)

    def ended_since(self, gtrid: str, when: float) -> bool:
        """Whether a transaction that is not open has, or may have, ended at `when` or later.

        One that was to be rolled back before and is listed all the same has come back: a server may lose a
        rollback that it had acknowledged. One that was committed is never taken for an orphan while it
        is remembered.
        """
        transaction = self.ended.get(gtrid)
        if transaction is None:
            return 0.0 < when <= self._dropped_until
        return transaction.decision is not Decision.ROLLBACK or transaction.ended_at >= when

    def sweep(self, now: float, lowest_open: str) -> None:
        """Drop what is too old; `lowest_open`: the lowest gtrid that is open or yet to be given."""
        while self.ended:
            first = next(iter(self.ended.values()))
            if first.ended_at + self._settings.keep_ended > now:
                break
            self._drop_oldest()
        while self.keys:
            oldest = next(iter(self.keys.values()))
            if oldest.ended_at + self._settings.keep_keys > now:
                break
            self.keys.popitem(last=False)
        if not self._marks or self._marks[-1][0] + _MARK_EVERY <= now:
            self._marks.append((now, lowest_open))
        while self._marks and self._marks[0][0] + self._settings.witness_retention <= now:
            self.purge_mark = self._marks.popleft()[1]

    def key_records(self) -> list[EndRecord]:
        """The remembered keys, as records of a checkpoint."""
        return [
            EndRecord(entry.id, entry.ended_at, True, key, entry.fingerprint, entry.outcome)
            for key, entry in self.keys.items()
        ]
