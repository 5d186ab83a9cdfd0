"""The judge: what the clients' ledgers say against what the servers' rows say. Imports nothing of ours.

It reads the servers as their administrator, with plain SQL, when the traffic has stopped:

    I1  The sum over all accounts is what it was in the beginning, and each server's accounts are what its
        rows in `transfer` make of them.
    I2  A transfer is on both its servers, with the right amounts, or on none, and nobody else is touched.
    I3  Told COMMITTED: everywhere. Told ROLLED_BACK: nowhere. UNKNOWN (or never told): the same everywhere.
        What was to be rolled back or overdrawn, and what nobody asked to commit, is nowhere. A transaction
        whose branches the harness ended by hand (all in one way: `interfered`) may be told as heuristic, and
        is what its caller was told before that no more.
    I4  XA RECOVER lists no branch of ours (k1...), and every row can be locked without waiting.

Every function returns its violations as text; no violation is an empty list.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import MySQLdb


@dataclass(frozen=True)
class Server:
    """Where a participant's rows are: the arguments of MySQLdb.connect, and the database."""

    connect: Mapping[str, Any]
    database: str

    @contextlib.contextmanager
    def session(self) -> Iterator[Any]:
        """A cursor of its own."""
        connection = MySQLdb.connect(**self.connect)
        with contextlib.closing(connection), contextlib.closing(connection.cursor()) as cursor:
            yield cursor


@dataclass
class Books:
    """What one server holds."""

    accounts: dict[int, int] = field(default_factory=dict)
    transfers: dict[int, int] = field(default_factory=dict)


@dataclass
class Claim:
    """What the ledgers say of one transfer; `outcome` stays UNKNOWN where nobody was told."""

    number: int
    asked: bool = False
    giver: str = ""
    taker: str = ""
    amount: int = 0
    intent: str = ""
    gtrid: str = ""
    outcome: str = "UNKNOWN"
    first_at: float = 0.0  # of its first line, seconds since 1970
    told_at: float = 0.0
    interfered_at: float | None = None

    @property
    def undone(self) -> bool:
        """Ended by hand after its caller was told."""
        return self.interfered_at is not None and self.told_at < self.interfered_at

    @property
    def expected(self) -> dict[str, int]:
        """The rows of a transfer that has happened; one within a participant is of amount 0 there."""
        if self.giver == self.taker:
            return {self.giver: 0}
        return {self.giver: -self.amount, self.taker: self.amount}


def read_books(server: Server) -> Books:
    """All rows of a server, in one snapshot."""
    with server.session() as cursor:
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        cursor.execute(f"SELECT id, balance FROM `{server.database}`.account")
        accounts = {int(number): int(balance) for number, balance in cursor.fetchall()}
        cursor.execute(f"SELECT id, amount FROM `{server.database}`.transfer")
        transfers = {int(number): int(amount) for number, amount in cursor.fetchall()}
    return Books(accounts, transfers)


def read_ledgers(paths: Iterable[Path]) -> tuple[dict[int, Claim], list[str]]:
    """The claims of all ledgers, and what is wrong with the ledgers themselves."""
    claims: dict[int, Claim] = {}
    problems: list[str] = []
    interfered: dict[str, float] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["event"] == "failed":
                problems.append(f"a client of {path.name} failed: {entry['error']}")
            if entry["event"] == "interfered":
                interfered.setdefault(entry["gtrid"], entry["at"])
            if entry["event"] not in ("asking", "told"):
                continue
            claim = claims.setdefault(entry["id"], Claim(entry["id"], first_at=entry.get("at", 0.0)))
            if entry["event"] == "asking":
                claim.asked = True
                claim.giver, claim.taker = entry["from"], entry["to"]
                claim.amount, claim.intent = entry["amount"], entry["intent"]
            else:
                claim.outcome = entry["outcome"]
                claim.told_at = entry["at"]
            claim.gtrid = entry.get("gtrid") or claim.gtrid
    for claim in claims.values():
        claim.interfered_at = interfered.get(claim.gtrid)
    return claims, problems


def judge_sums(books: Mapping[str, Books], start_balance: int) -> list[str]:
    """I1."""
    found = []
    total = sum(sum(book.accounts.values()) for book in books.values())
    start = sum(len(book.accounts) for book in books.values()) * start_balance
    if total != start:
        found.append(f"I1: the accounts hold {total}, they began with {start}")
    for name, book in books.items():
        held = sum(book.accounts.values()) - len(book.accounts) * start_balance
        booked = sum(book.transfers.values())
        if held != booked:
            found.append(f"I1: the accounts of {name} have changed by {held}, its transfers say {booked}")
        found += [
            f"I1: account {number} of {name} is below 0" for number, v in book.accounts.items() if v < 0
        ]
    return found


def presence(claim: Claim, books: Mapping[str, Books]) -> dict[str, int]:
    """Where the transfer is, with which amount."""
    return {
        name: book.transfers[claim.number] for name, book in books.items() if claim.number in book.transfers
    }


def _by_hand(claim: Claim, rows: Mapping[str, int]) -> tuple[str, ...]:
    """What may be told of a transaction all of whose branches were ended by hand."""
    if claim.interfered_at is None:
        return ()
    return ("HEURISTIC_COMMIT",) if rows else ("HEURISTIC_ROLLBACK",)


def judge_claim(claim: Claim, books: Mapping[str, Books]) -> list[str]:
    """I2 and I3 for one transfer."""
    rows = presence(claim, books)
    what = f"transfer {claim.number} ({claim.gtrid or 'no gtrid'}, {claim.intent or 'not asked'})"
    if rows and not claim.asked:
        return [f"I3: {what} was never asked to commit, but is on {rows}"]
    if rows and rows != claim.expected:
        return [f"I2: {what}, told {claim.outcome}, is on {rows}; {claim.expected} or nothing would be right"]
    if claim.outcome == "COMMITTED" and not rows and not claim.undone:
        return [f"I3: {what} was told COMMITTED and is nowhere"]
    if claim.outcome == "ROLLED_BACK" and rows:
        return [f"I3: {what} was told ROLLED_BACK and is on {rows}"]
    if claim.intent in ("rollback", "overdraw") and (rows or claim.outcome == "COMMITTED"):
        return [f"I3: {what} could only be rolled back, was told {claim.outcome} and is on {rows}"]
    if claim.outcome not in ("COMMITTED", "ROLLED_BACK", "UNKNOWN", *_by_hand(claim, rows)):
        return [f"I3: {what} was told {claim.outcome}, and nobody has interfered"]
    return []


def judge_books(ledgers: Iterable[Path], books: Mapping[str, Books], start_balance: int) -> list[str]:
    """I1, I2 and I3."""
    claims, found = read_ledgers(ledgers)
    found += judge_sums(books, start_balance)
    for claim in claims.values():
        found += judge_claim(claim, books)
    for name, book in books.items():
        strays = sorted(book.transfers.keys() - claims.keys())
        found += [f"I2: {name} has a row of transfer {number}, which no ledger knows" for number in strays]
    return found


def judge_answers(
    ledgers: Iterable[Path], books: Mapping[str, Books], answers: Mapping[str, str]
) -> list[str]:
    """What the coordinator says of transactions at rest (gtrid -> outcome) against the rows."""
    claims, _ = read_ledgers(ledgers)
    found = []
    for claim in claims.values():
        if claim.gtrid not in answers:
            continue
        rows = presence(claim, books)
        answer, right = answers[claim.gtrid], "COMMITTED" if rows else "ROLLED_BACK"
        if answer != right and answer not in _by_hand(claim, rows):
            found.append(f"I3: Get says {answer} of {claim.gtrid}, transfer {claim.number} is {right}")
    return found


def judge_rest(name: str, server: Server) -> list[str]:
    """I4 at one participant."""
    found = []
    with server.session() as cursor:
        cursor.execute("XA RECOVER")
        for _, length, _, data in cursor.fetchall():
            gtrid = (data if isinstance(data, bytes) else str(data).encode())[:length]
            if gtrid.startswith(b"k1"):
                found.append(f"I4: {gtrid.decode('latin-1')} is still prepared at {name}")
        for table in ("account", "transfer"):
            cursor.execute("START TRANSACTION")
            try:
                cursor.execute(f"SELECT id FROM `{server.database}`.`{table}` FOR UPDATE NOWAIT")
            except MySQLdb.OperationalError as error:
                found.append(f"I4: a row of {table} at {name} is locked: {error}")
            cursor.execute("ROLLBACK")
    return found


def judge(ledgers: Iterable[Path], servers: Mapping[str, Server], start_balance: int) -> list[str]:
    """I1 to I4."""
    paths = list(ledgers)
    found = judge_books(paths, {name: read_books(server) for name, server in servers.items()}, start_balance)
    for name, server in servers.items():
        found += judge_rest(name, server)
    return found
