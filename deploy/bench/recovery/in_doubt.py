"""In doubt: what a coordinator leaves that was killed after N decisions and before the first branch heard.

It is made by hand, and the same for both sides: N transactions, each with a branch on every server that has
written a row and its witness row, as agents write them, and is prepared; for our side, a log that has the
PREPARE and COMMIT records of all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from MySQLdb.constants import CLIENT

from coordinator.codec import encode
from coordinator.core.records import CommitRecord, PrepareRecord
from coordinator.core.settings import Settings
from coordinator.journal import open_log, start_epoch
from deploy.bench.recovery.threads import at_once
from deploy.bench.servers import BenchError, Server, Target
from dtp import Gtrid, Xid, format_bqual
from wal import Options

_TABLE = "in_doubt"
_PREPARERS = 12  # connections to each server that prepare branches
_POLL_SECONDS = 0.05
_NO_MORE_RESULTS = -1
_PATIENCE_SECONDS = 600.0


class InDoubt:
    """The branches and the log of one coordinator.

    Args:
        servers: each transaction has a branch on all of them.
        participants: their names, in the order of the coordinator's configuration.
        coordinator_id: whose they are.
        log: its directory.
    """

    def __init__(
        self, servers: Sequence[Server], participants: Sequence[str], coordinator_id: str, log: Path
    ) -> None:
        self._servers = servers
        self._participants = participants
        self._id = coordinator_id
        self._log = log
        self._database = servers[0].target.database
        for server in servers:
            server.sql(f"CREATE TABLE {self._table} (id BIGINT PRIMARY KEY, amount INT NOT NULL)")

    @property
    def _table(self) -> str:
        return f"`{self._database}`.{_TABLE}"

    @property
    def _witness(self) -> str:
        return f"`{self._database}`.witness"

    def _numbers(self) -> list[int]:
        """The participants' numbers: they were given in the order of the configuration."""
        return list(range(1, len(self._participants) + 1))

    def write_log(self, number: int) -> list[Gtrid]:
        """A log that has decided so many transactions to commit; their ids."""
        opened = open_log(
            self._log, Options(), on_durable=lambda lsn: None, on_failure=lambda error: None, threaded=False
        )
        try:
            core = start_epoch(
                opened, Settings(self._id), self._participants, secrets.randbits(64), time.time()
            )
            found = [core.participants[name].number for name in self._participants]
            if found != self._numbers():
                raise BenchError(f"the participants have the numbers {found}")
            numbers, now = tuple(found), time.time()
            ids = [
                Gtrid.make(self._id, core.epoch, counter, secrets.randbits(16))
                for counter in range(1, number + 1)
            ]
            for id_ in ids:
                for record in (PrepareRecord(id_, numbers, now), CommitRecord(id_, numbers, now, now)):
                    entry = encode(record)
                    opened.log.append(entry.kind, entry.epoch, entry.sequence, entry.payload, kick=False)
            while opened.log.step():
                pass
            opened.log.tend()  # the segments of before are gone, as a running coordinator would have seen to
        finally:
            opened.log.close()
        return ids

    def prepare(self, ids: Sequence[Gtrid]) -> None:
        """A prepared branch of each transaction on every server, in sessions that have ended."""
        names = ",".join(format_bqual(number) for number in self._numbers())
        jobs: list[tuple[Any, ...]] = []
        used: dict[str, set[int]] = {}
        for server, number in zip(self._servers, self._numbers(), strict=True):
            packets = iter(
                [self._packet(Xid.of(str(id_), number), row, names) for row, id_ in enumerate(ids)]
            )
            sessions = used[server.name] = set()
            # A branch is its session's on MariaDB until that has ended.
            each = 1 if server.engine == "mariadb" else len(ids)
            jobs += [(_prepare_some, server.target, packets, each, sessions)] * _PREPARERS
        at_once(jobs)
        for server in self._servers:
            self._wait_until_gone(server, used[server.name])
            if len(server.prepared()) != len(ids):
                raise BenchError(f"server {server.name} has not prepared {len(ids)} branches")

    def _packet(self, xid: Xid, row: int, names: str) -> bytes:
        """One branch, as an agent makes it."""
        return (
            f"XA START {xid.sql()};"
            f"INSERT INTO {self._table} VALUES ({row}, 1);"
            f"INSERT INTO {self._witness} VALUES ('{xid.gtrid.decode()}', '{xid.bqual.decode()}', '{names}');"
            f"XA END {xid.sql()};"
            f"XA PREPARE {xid.sql()}"
        ).encode()

    def _wait_until_gone(self, server: Server, sessions: set[int]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while sessions & {row[0] for row in server.sql("SELECT ID FROM information_schema.PROCESSLIST")}:
            if time.monotonic() > deadline:
                raise BenchError(f"server {server.name} does not end sessions that are closed")
            time.sleep(_POLL_SECONDS)

    def check_rows(self, number: int) -> None:
        """Every row is there; then they go."""
        for server in self._servers:
            for table in (self._table, self._witness):
                [(count,)] = server.sql(f"SELECT COUNT(*) FROM {table}")
                if count != number:
                    raise BenchError(
                        f"server {server.name}: {table} has {count} rows of {number} transactions, all of "
                        "which were decided to commit"
                    )
                server.sql(f"TRUNCATE TABLE {table}")


def _prepare_some(
    target: Target, packets: Iterator[bytes], each: int, sessions: set[int], stopped: Callable[[], bool]
) -> None:
    """Send packets until there are no more of them, `each` in a session of their own."""
    while some := list(itertools.islice(packets, 1)):
        with contextlib.closing(target.connect(CLIENT.MULTI_STATEMENTS)) as connection:
            sessions.add(connection.thread_id())
            for packet in itertools.chain(some, itertools.islice(packets, each - 1)):
                if stopped():
                    return
                connection.query(packet)
                while connection.next_result() != _NO_MORE_RESULTS:
                    pass
