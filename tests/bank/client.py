"""The bank's client: a process of its own that transfers money between participants through the SDK.

    python -m tests.bank.client --coordinator HOST:PORT --participants a,b --accounts N --ledger FILE --seed S

Each transfer has an id of its own, moves an amount from an account of one participant to an account of
another and inserts a row on both. Some stay at one participant (a single branch commits in one phase). Some
are rolled back on purpose, some overdrawn on purpose (the expectation of a row fails); both must leave
nothing. What the client was told goes into its ledger
(tests/bank/ledger.py), which tests/bank/oracle.py judges.

It works for --seconds, for --transfers, or, with --bursts, for as many transfers as each line on its
standard input says ("12", or "12 0.1": how many, and the share within one participant), answering each
with a line `done`. While the coordinator is away it goes on asking. At SIGTERM it finishes what it has begun.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.bank.kill import Kill
from tests.bank.ledger import Ledger
from xacoord import (
    AlreadyCommitted,
    Branch,
    HeuristicMixed,
    InDoubt,
    RolledBack,
    Statement,
    TransactionError,
    TransactionManager,
)

# More than any account ever holds.
_TOO_MUCH = 10**15
_AWAY_SECONDS = 0.02

_TAKE = "UPDATE account SET balance = balance - %s WHERE id = %s AND balance >= %s"
_GIVE = "UPDATE account SET balance = balance + %s WHERE id = %s"
_BOOK = "INSERT INTO transfer (id, amount) VALUES (%s, %s)"


@dataclass(frozen=True)
class Transfer:
    """What is to be done."""

    number: int
    giver: str
    giver_account: int
    taker: str
    taker_account: int
    amount: int
    intent: str  # commit, rollback or overdraw
    one_shot: bool
    key: str | None
    wait_for: Literal["decided", "completed"]

    def statements(self) -> dict[str, list[Statement]]:
        """By participant, in the order of names: everybody locks in the same order, so nobody deadlocks."""
        taken = _TOO_MUCH if self.intent == "overdraw" else self.amount
        take = Statement(_TAKE, (taken, self.giver_account, taken), expect_rows=1)
        give = Statement(_GIVE, (self.amount, self.taker_account), expect_rows=1)
        if self.giver == self.taker:
            accounts = [take, give] if self.giver_account <= self.taker_account else [give, take]
            return {self.giver: [Statement(_BOOK, (self.number, 0), expect_rows=1), *accounts]}
        work = {
            self.giver: [Statement(_BOOK, (self.number, -self.amount), expect_rows=1), take],
            self.taker: [Statement(_BOOK, (self.number, self.amount), expect_rows=1), give],
        }
        return dict(sorted(work.items()))

    def asked(self) -> dict[str, object]:
        """The ledger's line of it."""
        values: dict[str, object] = {"id": self.number, "from": self.giver, "to": self.taker}
        values |= {"amount": self.amount, "intent": self.intent, "one_shot": self.one_shot}
        return values | {"key": self.key, "wait_for": self.wait_for}


class Client:
    """Does transfers, in threads, and keeps the ledger."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._ledger = Ledger(arguments.ledger)
        self._kill = Kill(os.environ, self._ledger, random.Random(arguments.seed))
        self._manager = self._connect()
        # Two clients with the same seed do the same work under different numbers.
        self._number = random.SystemRandom().getrandbits(30) << 32
        self._lock = threading.Lock()
        self._left = 0
        self._local_share: float = arguments.local_share
        self._until = float("inf")
        self._choice = random.Random(arguments.seed)

    def _connect(self) -> TransactionManager:
        arguments = self._arguments
        return TransactionManager.connect(
            arguments.coordinator, timeout=arguments.timeout, grace=arguments.grace
        )

    def burst(self, line: str) -> None:
        """Do the transfers of a line, over new connections: what was down before does not slow them down."""
        transfers, *local_share = line.split()
        self._local_share = float(local_share[0]) if local_share else self._arguments.local_share
        self._manager.close()
        self._manager = self._connect()
        self.work(int(transfers), None)

    def work(self, transfers: int | None, seconds: float | None) -> None:
        """Do so many transfers, or work for so long, with all threads."""
        self._left = sys.maxsize if transfers is None else transfers
        self._until = float("inf") if seconds is None else time.monotonic() + seconds
        threads = [threading.Thread(target=self._loop) for _ in range(self._arguments.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """Begin nothing more; what has been begun is finished."""
        self._until = 0.0

    def _loop(self) -> None:
        try:
            while (transfer := self._next()) is not None:
                self._do(transfer)
        except BaseException as error:  # nothing of this kind may happen: the judge looks for this line
            self._ledger.write("failed", error=repr(error))
            raise

    def _next(self) -> Transfer | None:
        """The next transfer; None: enough. One thread at a time, so that the seed determines them all."""
        arguments, choice = self._arguments, self._choice
        with self._lock:
            if self._left <= 0 or time.monotonic() >= self._until:
                return None
            self._left -= 1
            self._number += 1
            giver, taker = choice.sample(arguments.participants, 2)
            if choice.random() < self._local_share:
                taker = giver
            intent = "commit"
            if (drawn := choice.random()) < arguments.rollback_share:
                intent = "rollback"
            elif drawn < arguments.rollback_share + arguments.overdraw_share:
                intent = "overdraw"
            one_shot = choice.random() < arguments.one_shot_share and intent != "rollback"
            key = f"bank:{self._number}" if choice.random() < arguments.key_share else None
            return Transfer(
                number=self._number,
                giver=giver,
                giver_account=choice.randint(1, arguments.accounts),
                taker=taker,
                taker_account=choice.randint(1, arguments.accounts),
                amount=choice.randint(1, 20),
                intent=intent,
                one_shot=one_shot,
                key=key,
                wait_for="decided" if choice.random() < arguments.decided_share else "completed",
            )

    def _do(self, transfer: Transfer) -> None:
        """One transfer, and the line that says what we were told of it."""
        started = time.monotonic()
        gtrid, reason = "", ""
        try:
            gtrid = self._run(transfer) if transfer.one_shot else self._in_steps(transfer)
            outcome = "ROLLED_BACK" if transfer.intent == "rollback" else "COMMITTED"
        except InDoubt as error:
            outcome, gtrid, reason = "UNKNOWN", error.gtrid, error.reason
        except AlreadyCommitted as error:
            outcome, gtrid, reason = "COMMITTED", error.gtrid, error.reason
        except HeuristicMixed as error:
            outcome, gtrid, reason = error.outcome.value, error.gtrid, error.reason
        except RolledBack as error:
            outcome, gtrid, reason = "ROLLED_BACK", error.gtrid, error.reason
        except TransactionError as error:  # all the others: nothing was done
            outcome, gtrid, reason = "ROLLED_BACK", error.gtrid, error.reason
            time.sleep(_AWAY_SECONDS)
        self._ledger.write(
            "told",
            id=transfer.number,
            outcome=outcome,
            gtrid=gtrid,
            reason=str(reason),
            seconds=round(time.monotonic() - started, 6),
        )

    def _run(self, transfer: Transfer) -> str:
        branches = [Branch(name, statements) for name, statements in transfer.statements().items()]
        self._ledger.write("asking", **transfer.asked())
        self._kill.at("before_run")
        self._kill.at("in_run")
        result = self._manager.run(
            branches, idempotency_key=transfer.key, wait_for=transfer.wait_for, in_order=True
        )
        self._kill.at("after_run")
        return result.gtrid

    def _in_steps(self, transfer: Transfer) -> str:
        tx = self._manager.transaction(idempotency_key=transfer.key, wait_for=transfer.wait_for)
        self._kill.at("before_begin")
        tx.begin()
        self._kill.at("after_begin")
        places = iter(("after_first_branch", "after_second_branch"))
        for name, statements in transfer.statements().items():
            tx.branch(name).execute_many(statements)
            self._kill.at(next(places))
        if transfer.intent == "rollback":
            self._ledger.write("asking", gtrid=tx.gtrid, **transfer.asked())
            self._kill.at("before_rollback")
            tx.rollback()
            self._kill.at("after_rollback")
            return tx.gtrid
        self._ledger.write("asking", gtrid=tx.gtrid, **transfer.asked())
        self._kill.at("before_commit")
        self._kill.at("in_commit")
        tx.commit()
        self._kill.at("after_commit")
        return tx.gtrid


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--coordinator", required=True, metavar="HOST:PORT")
    parser.add_argument("--participants", required=True, type=lambda text: text.split(","), metavar="A,B")
    parser.add_argument("--accounts", type=int, default=20)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=3)
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--transfers", type=int)
    amount.add_argument("--seconds", type=float)
    amount.add_argument("--bursts", action="store_true", help="numbers of transfers on standard input")
    parser.add_argument("--timeout", type=float, default=3.0, help="of a transaction, in seconds")
    parser.add_argument("--grace", type=float, default=1.0, help="seconds to find out a lost outcome")
    parser.add_argument("--one-shot-share", type=float, default=0.5)
    parser.add_argument("--local-share", type=float, default=0.0, help="within one participant")
    parser.add_argument("--rollback-share", type=float, default=0.1)
    parser.add_argument("--overdraw-share", type=float, default=0.1)
    parser.add_argument("--decided-share", type=float, default=0.3)
    parser.add_argument("--key-share", type=float, default=0.3)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Run the client."""
    parsed = parse(arguments)
    client = Client(parsed)
    signal.signal(signal.SIGTERM, lambda *_: client.stop())
    if not parsed.bursts:
        client.work(parsed.transfers, parsed.seconds)
        return
    print("ready", flush=True)
    for line in sys.stdin:
        client.burst(line)
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
