"""The bank's tables: accounts with money, and a row for each transfer, on every participant's server.

Made as the server's administrator, past the system under test. A branch of a transfer changes one account
and inserts one row into `transfer`, so what a server has done can be read off its own rows.
"""

from __future__ import annotations

import contextlib

from deploy.private_servers import PrivateServer

START_BALANCE = 1_000


def create_tables(server: PrivateServer, database: str, accounts: int, balance: int = START_BALANCE) -> None:
    """Make (or empty) the tables of one participant and open accounts 1 to `accounts`."""
    with (
        contextlib.closing(server.root_connect()) as connection,
        contextlib.closing(connection.cursor()) as cursor,
    ):
        cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{database}`")
        cursor.execute(
            f"CREATE TABLE IF NOT EXISTS `{database}`.account"
            " (id INT PRIMARY KEY, balance BIGINT NOT NULL) ENGINE=InnoDB"
        )
        cursor.execute(
            f"CREATE TABLE IF NOT EXISTS `{database}`.transfer"
            " (id BIGINT PRIMARY KEY, amount BIGINT NOT NULL) ENGINE=InnoDB"
        )
        cursor.execute(f"DELETE FROM `{database}`.transfer")
        cursor.execute(f"DELETE FROM `{database}`.account")
        rows = ", ".join(f"({number}, {balance})" for number in range(1, accounts + 1))
        cursor.execute(f"INSERT INTO `{database}`.account VALUES {rows}")
