"""The books of the demonstration: a shop's orders on one server, accounts and payments on the other.

The check shares no code with xacoord: it reads both servers directly and compares them with what the
callers were told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from deploy.private_servers import PrivateServer

CUSTOMERS = range(100, 150)
CUSTOMER_BALANCE = Decimal("1000.00")

ORDERS_SCHEMA = (
    """CREATE TABLE orders.orders (
        id INT PRIMARY KEY AUTO_INCREMENT,
        user_id INT NOT NULL,
        product VARCHAR(100),
        amount DECIMAL(10,2),
        status ENUM('pending','confirmed','cancelled') DEFAULT 'pending',
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)""",
)
PAYMENTS_SCHEMA = (
    """CREATE TABLE payments.accounts (
        id INT PRIMARY KEY AUTO_INCREMENT,
        user_id INT UNIQUE NOT NULL,
        balance DECIMAL(10,2) NOT NULL DEFAULT 0)""",
    """CREATE TABLE payments.payments (
        id INT PRIMARY KEY AUTO_INCREMENT,
        order_id INT NOT NULL,
        user_id INT NOT NULL,
        amount DECIMAL(10,2),
        status ENUM('pending','completed','refunded') DEFAULT 'pending')""",
    "INSERT INTO payments.accounts (user_id, balance) VALUES (1, 1000.00), (2, 50.00)",
)


@dataclass
class Told:
    """What a caller was told: order id -> nothing more is needed to look for it."""

    committed: list[int] = field(default_factory=list)
    rolled_back: list[int] = field(default_factory=list)
    unknown: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What the check found; consistent where `problems` is empty."""

    orders: int
    payments: int
    problems: list[str]


def create(orders: PrivateServer, payments: PrivateServer) -> None:
    """Make the tables and the opening balances."""
    for statement in ORDERS_SCHEMA:
        orders.sql(statement)
    for statement in PAYMENTS_SCHEMA:
        payments.sql(statement)
    rows = ", ".join(f"({user}, {CUSTOMER_BALANCE})" for user in CUSTOMERS)
    payments.sql(f"INSERT INTO payments.accounts (user_id, balance) VALUES {rows}")


def opening_total() -> Decimal:
    """The money that there is."""
    return Decimal("1050.00") + CUSTOMER_BALANCE * len(CUSTOMERS)


def check(orders: PrivateServer, payments: PrivateServer, told: Told) -> Verdict:
    """Compare the two servers with each other and with what the callers were told."""
    problems = []
    ordered = {
        int(row[0]): (int(row[1]), row[2])
        for row in orders.sql("SELECT id, user_id, amount FROM orders.orders")
    }
    paid_rows = payments.sql("SELECT order_id, user_id, amount FROM payments.payments")
    paid = {int(row[0]): (int(row[1]), row[2]) for row in paid_rows}
    if len(paid) != len(paid_rows):
        problems.append("an order was paid twice")
    for order in ordered.keys() ^ paid.keys():
        where = "orders" if order in ordered else "payments"
        problems.append(f"order {order} is on {where} only")
    for order in ordered.keys() & paid.keys():
        if ordered[order] != paid[order]:
            problems.append(f"order {order}: {ordered[order]} ordered, {paid[order]} paid")
    balances = payments.sql("SELECT SUM(balance), MIN(balance) FROM payments.accounts")[0]
    total = balances[0] + sum((amount for _, amount in paid.values()), Decimal(0))
    if total != opening_total():
        problems.append(f"balances and payments add up to {total}, not {opening_total()}")
    if balances[1] < 0:
        problems.append("an account is overdrawn")
    problems += [
        f"order {order} was told committed and is missing" for order in told.committed if order not in paid
    ]
    problems += [
        f"order {order} was told rolled back and is there" for order in told.rolled_back if order in paid
    ]
    return Verdict(len(ordered), len(paid), problems)
