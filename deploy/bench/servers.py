"""Servers: the database of the benchmark on each server: taken, filled, counted and dropped.

A benchmark may be run on servers that others use. So it touches nothing but a database of its own name, and
it knows that one by a table in it:

1. A user lock of the database's name: no two benchmarks on one server, nor one that takes it for two.
2. A database of that name without the table is somebody else's: refused. One with it was left by a run that
   was killed: the branches that it left are rolled back, and it is dropped.
3. At the end: no branch of ours is prepared, and the database is dropped.

Branches are known as ours by their gtrids: RAW_MAGIC, or "k1" and the id of a coordinator of ours, which is
written into that table before the coordinator starts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import MySQLdb
from MySQLdb import _mysql
from MySQLdb.constants import CLIENT, ER

from dtp.xid import GTRID_LENGTH, MAGIC

DATABASE = "xacoord_bench"
# Gtrids of the sides without a coordinator begin with it, which no agent takes for its own, and are so long.
RAW_MAGIC = "xacbench"
RAW_LENGTH = 24
ROWS = 10_000
OPENING_BALANCE = 1_000
SETTINGS = (
    "version",
    "version_comment",
    "sync_binlog",
    "innodb_flush_log_at_trx_commit",
    "log_bin",
    "innodb_buffer_pool_size",
    "transaction_isolation",
    "tx_isolation",
    "max_connections",
)
_DROP_SECONDS = 10
_POLL_SECONDS = 0.05
_CONNECT_SECONDS = 10


class BenchError(Exception):
    """The benchmark cannot be run, or not go on; one line that says what to do."""


@dataclass(frozen=True)
class Target:
    """How a server is reached; load processes get it as JSON.

    Attributes:
        name: for people, and in names of participants.
        socket: path of the unix socket; goes before host and port.
    """

    name: str
    user: str
    password: str = ""
    socket: str = ""
    host: str = "127.0.0.1"
    port: int = 3306
    database: str = DATABASE

    def connect(self, client_flag: int = 0) -> Any:
        """The cheapest connection that there is: of the C API, without conversions, autocommit on."""
        connection = _mysql.connect(
            database=self.database,
            client_flag=CLIENT.MULTI_RESULTS | client_flag,
            charset="utf8mb4",
            **self._arguments(),
        )
        connection.autocommit(True)
        return connection

    def open(self) -> Any:
        """A connection for administration, to no database."""
        return MySQLdb.connect(autocommit=True, charset="utf8mb4", **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        where: dict[str, Any] = {"host": self.host, "port": self.port}
        if self.socket:
            where = {"unix_socket": self.socket}
        return {**where, "user": self.user, "password": self.password, "connect_timeout": _CONNECT_SECONDS}


class Server:
    """One server in a benchmark. `claim` first, `release` last.

    Attributes:
        target: how load processes and agents reach it.
        pid: of its process, where it runs on this machine and is ours; else None.
    """

    def __init__(self, target: Target, administrator: Target, pid: int | None) -> None:
        self.target = target
        self.pid = pid
        self._administrator = administrator
        self._connection: Any = None
        self._claimed = False
        self._coordinator_ids: list[str] = []

    @property
    def name(self) -> str:
        return self.target.name

    def claim(self) -> None:
        """Make the database, empty. Raises BenchError where it is not ours to make."""
        try:
            self._connection = self._administrator.open()
        except MySQLdb.Error as error:
            raise BenchError(f"server {self.name} cannot be reached: {_text(error)}") from error
        database = self.target.database
        if self.sql("SELECT GET_LOCK(%s, 0)", database) != [(1,)]:
            raise BenchError(
                f"server {self.name} is in a benchmark already: each --server must be another one, and only "
                "one `coordctl bench` may use it at a time"
            )
        try:
            self._take_over()
            self.sql(f"CREATE DATABASE `{database}` DEFAULT CHARACTER SET utf8mb4")
            self._claimed = True
            self.sql(f"CREATE TABLE `{database}`.coordctl_bench (coordinator_id CHAR(4) PRIMARY KEY)")
        except MySQLdb.Error as error:
            raise BenchError(f"server {self.name}: database {database}: {_text(error)}") from error

    def _take_over(self) -> None:
        """Drop what a benchmark that was killed has left."""
        database = self.target.database
        tables = {
            row[0]
            for row in self.sql(
                "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s", database
            )
        }
        there = self.sql("SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = %s", database)
        if there and "coordctl_bench" not in tables:
            raise BenchError(
                f"server {self.name} has a database {database} that `coordctl bench` has not made; "
                "give another name with --database"
            )
        if there:
            self._coordinator_ids = [
                row[0] for row in self.sql(f"SELECT coordinator_id FROM `{database}`.coordctl_bench")
            ]
            self.drop()

    def expect(self, coordinator_ids: Sequence[str]) -> None:
        """Write down whose branches are ours, before there is any."""
        for name in coordinator_ids:
            self.sql(f"INSERT INTO `{self.target.database}`.coordctl_bench VALUES (%s)", name)
        self._coordinator_ids += coordinator_ids

    def fill(self) -> None:
        """The rows that transactions work on."""
        table = f"`{self.target.database}`.account"
        self.sql(f"CREATE TABLE {table} (id INT PRIMARY KEY, balance BIGINT NOT NULL) ENGINE = InnoDB")
        rows = ", ".join(f"({number}, {OPENING_BALANCE})" for number in range(1, ROWS + 1))
        self.sql(f"INSERT INTO {table} VALUES {rows}")

    def total(self) -> int:
        """The sum of all balances."""
        [(total,)] = self.sql(f"SELECT SUM(balance) FROM `{self.target.database}`.account")
        return int(total)

    def settings(self) -> dict[str, str]:
        """What matters for the figures."""
        names = ", ".join(f"'{name}'" for name in SETTINGS)
        return dict(self.sql(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})"))

    @property
    def engine(self) -> str:
        """ "mysql" or "mariadb"."""
        return "mariadb" if "mariadb" in self.settings()["version"].lower() else "mysql"

    def prepared(self) -> list[tuple[bytes, bytes]]:
        """(gtrid, bqual) of the branches of this benchmark that are prepared."""
        mysql = self.engine == "mysql"
        try:
            rows = self.sql("XA RECOVER CONVERT XID" if mysql else "XA RECOVER")
        except MySQLdb.Error as error:
            raise BenchError(
                f"server {self.name}: XA RECOVER: {_text(error)}; on MySQL: GRANT XA_RECOVER_ADMIN ON *.*"
            ) from error
        ours = tuple(f"{MAGIC}{name}".encode() for name in self._coordinator_ids)
        found = []
        for _, gtrid_length, _, data in rows:
            if mysql:
                data = bytes.fromhex((data if isinstance(data, str) else data.decode())[2:])
            gtrid, bqual = data[:gtrid_length], data[gtrid_length:]
            raw = len(gtrid) == RAW_LENGTH and gtrid.startswith(RAW_MAGIC.encode())
            if raw or (len(gtrid) == GTRID_LENGTH and gtrid.startswith(ours)):
                found.append((gtrid, bqual))
        return found

    def drop(self) -> None:
        """Roll back the branches that are left, and drop the database. Raises BenchError where it cannot.

        A branch is not free until the server has noticed that its client is gone.
        """
        deadline = time.monotonic() + _DROP_SECONDS
        self.sql("SET SESSION lock_wait_timeout = 1")
        while True:
            for gtrid, bqual in self.prepared():
                with contextlib.suppress(MySQLdb.Error):
                    self.sql(f"XA ROLLBACK X'{gtrid.hex()}', X'{bqual.hex()}'")
            try:
                self.sql(f"DROP DATABASE IF EXISTS `{self.target.database}`")
                return
            except MySQLdb.Error as error:
                if error.args[0] != ER.LOCK_WAIT_TIMEOUT or time.monotonic() > deadline:
                    raise BenchError(
                        f"server {self.name}: DROP DATABASE {self.target.database}: {_text(error)}; the next "
                        "`coordctl bench` on this server will drop it"
                    ) from error
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Drop what `claim` has made, nothing else, and disconnect."""
        try:
            if self._claimed:
                self.drop()
        finally:
            self._claimed = False
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def sql(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        """One statement as the administrator; its rows."""
        cursor = self._connection.cursor()
        try:
            cursor.execute(statement, arguments or None)
            rows = list(cursor.fetchall()) if cursor.description else []
        except MySQLdb.Error:
            raise
        except BaseException:
            self._reconnect()
            raise
        cursor.close()
        return rows

    def _reconnect(self) -> None:
        """After an interruption: the answer may still be on its way, and the next statement would get it."""
        self._connection.close()
        self._connection = self._administrator.open()
        with contextlib.closing(self._connection.cursor()) as cursor:  # the server may still be at the other
            cursor.execute("SELECT GET_LOCK(%s, %s)", (self.target.database, _DROP_SECONDS))


def private(name: str, socket: str, pid: int, user: str, password: str) -> Server:
    """A private server: its administrator is root without a password, by the socket."""
    target = Target(name, user, password, socket=socket)
    return Server(target, replace(target, user="root", password=""), pid)


def given(target: Target) -> Server:
    """A server that somebody gave us, with an account that may do it all."""
    return Server(target, target, None)


def _text(error: Exception) -> str:
    return " ".join(str(part) for part in error.args)
