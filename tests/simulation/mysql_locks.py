"""Row locks of the simulation's MySQL: shared and exclusive, first come first served, with deadlocks.

A statement that cannot have its lock is `Blocked`; when the lock is granted it is begun again and finds
the locks that it has. A wait that would close a circle ends the transaction of the circle that has changed
least, which gets error 1213. There are no gap locks and no table locks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeAlias

from tests.simulation.mysql_steps import Blocked, Deadlock
from tests.simulation.mysql_tables import Key, Table, Transaction

Where: TypeAlias = tuple[str, Key]


class Wait:
    """A place in the queue of a row."""

    def __init__(self, transaction: Transaction, lock: RowLock, exclusive: bool) -> None:
        self.transaction = transaction
        self.lock = lock
        self.exclusive = exclusive


class RowLock:
    """The lock of one row."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self.holders: dict[Transaction, bool] = {}  # True: exclusive
        self.queue: deque[Wait] = deque()

    def in_the_way(self, wait: Wait) -> Iterator[Transaction]:
        """The transactions that `wait` waits for."""
        for holder, exclusive in self.holders.items():
            if holder is not wait.transaction and (exclusive or wait.exclusive):
                yield holder
        for earlier in self.queue:
            if earlier is wait:
                return
            if earlier.exclusive or wait.exclusive:
                yield earlier.transaction


def least_changed(circle: list[Transaction], asking: Transaction) -> Transaction:
    """Who has changed least, at best the one that asks."""
    return min(circle, key=lambda one: (len(one.undo), one is not asking))


class Locks:
    """All row locks of a server.

    Args:
        victim: called for a transaction that must end because of a deadlock and is not the one that asks.
        granted: called when a wait has come to its end.

    Attributes:
        choose_victim: (those that wait for each other, who asks) -> who has to go. InnoDB weighs changes
            and locks, and MySQL does not always choose the same, so nobody may rely on its choice.
    """

    def __init__(self, victim: Callable[[Transaction], None], granted: Callable[[Transaction], None]) -> None:
        self._rows: dict[Where, RowLock] = {}
        self._victim = victim
        self._granted = granted
        self.choose_victim = least_changed

    def take(self, transaction: Transaction, table: Table, key: Key, exclusive: bool = True) -> None:
        """Lock a row.

        Raises:
            Blocked: somebody else has it.
            Deadlock: and waits, in turn, for us.
        """
        where = (table.name, key)
        lock = self._rows.get(where)
        if lock is None:
            lock = self._rows[where] = RowLock(where)
        held = lock.holders.get(transaction)
        if held is not None and (held or not exclusive):
            return
        wait = Wait(transaction, lock, exclusive)
        if next(lock.in_the_way(wait), None) is None:
            self._grant(wait)
            return
        lock.queue.append(wait)
        transaction.wait = wait
        while circle := self._circle(transaction):
            least = self.choose_victim(circle, transaction)
            if least is transaction:
                self.give_up(transaction)
                raise Deadlock
            self._victim(least)
        if transaction.wait is wait:
            raise Blocked(for_row=True)

    def _circle(self, start: Transaction) -> list[Transaction]:
        """Transactions that wait for each other, `start` among them; empty where there are none."""
        seen: set[Transaction] = set()

        def search(one: Transaction) -> list[Transaction]:
            seen.add(one)
            if one.wait is not None:
                for other in one.wait.lock.in_the_way(one.wait):
                    if other is start:
                        return [one]
                    if other not in seen and (found := search(other)):
                        return [one, *found]
            return []

        return search(start)

    def _grant(self, wait: Wait) -> None:
        lock, transaction = wait.lock, wait.transaction
        lock.holders[transaction] = lock.holders.get(transaction, False) or wait.exclusive
        transaction.locks[lock] = None

    def give_up(self, transaction: Transaction) -> None:
        """Leave the queue in which the transaction waits."""
        if transaction.wait is not None:
            lock = transaction.wait.lock
            lock.queue.remove(transaction.wait)
            transaction.wait = None
            self._advance(lock)

    def release(self, transaction: Transaction, keep: Callable[[RowLock, bool], bool] | None = None) -> None:
        """Give back every lock, but those that `keep(lock, exclusive)` wants to stay."""
        self.give_up(transaction)
        for lock, exclusive in [(lock, lock.holders[transaction]) for lock in transaction.locks]:
            if keep is None or not keep(lock, exclusive):
                del lock.holders[transaction], transaction.locks[lock]
                self._advance(lock)

    def _advance(self, lock: RowLock) -> None:
        for wait in list(lock.queue):
            if next(lock.in_the_way(wait), None) is None:
                lock.queue.remove(wait)
                wait.transaction.wait = None
                self._grant(wait)
                self._granted(wait.transaction)
        if not lock.holders and not lock.queue:
            self._rows.pop(lock.where, None)

    def held(self) -> list[tuple[Where, Transaction]]:
        """Every lock with its holder."""
        return [(where, holder) for where, lock in self._rows.items() for holder in lock.holders]

    def waits(self) -> list[Wait]:
        """Everybody who waits."""
        return [wait for lock in self._rows.values() for wait in lock.queue]
