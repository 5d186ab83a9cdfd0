"""The person: somebody with a MySQL client who ends prepared branches by hand, and branches of a stranger.

A person sees what XA RECOVER lists and nothing else. On MariaDB a branch belongs to the session that prepared
it for as long as that lives, so the person ends the agent's sessions first (KILL), as people in a hurry do.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import MySQLdb

from deploy.private_servers import PrivateServer

_XAER_NOTA = 1397
_PATIENCE_SECONDS = 10.0

STRANGER = (b"stranger\x00\xff\x80", b"\x01'\"", 7)


def end_by_hand(server: PrivateServer, verb: str, gtrid: str) -> None:
    """`verb` (commit or rollback) the branch of `gtrid` that XA RECOVER lists."""
    (name,) = [_name(row) for row in server.prepared() if row[1] == gtrid.encode()]
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            server.sql(f"XA {verb.upper()} {name}")
            return
        except MySQLdb.MySQLError as error:
            if error.args[0] != _XAER_NOTA or time.monotonic() > until:
                raise
        end_sessions(server)
        time.sleep(0.01)


def end_sessions(server: PrivateServer) -> None:
    """KILL the agent's sessions, but for the control connection, which has no slot lock."""
    listed = server.sql("SELECT id FROM information_schema.processlist WHERE user = 'xacoord_agent'")
    locks = ", ".join(f"IS_USED_LOCK('xacoord.{name}')" for name in _participants(server))
    kept = {holder for row in server.sql(f"SELECT {locks}") for holder in row}
    for (connection_id,) in listed:
        if connection_id not in kept:
            with contextlib.suppress(MySQLdb.OperationalError):  # gone meanwhile
                server.sql(f"KILL {connection_id}")


def _participants(server: PrivateServer) -> list[str]:
    return [row[0] for row in server.sql("SELECT DISTINCT participant FROM xacoord.coordinator")]


def _name(row: tuple[int, bytes, bytes]) -> str:
    return f"X'{row[1].hex()}',X'{row[2].hex()}',{row[0]}"


def leave_prepared(server: PrivateServer, name: str, statement: str) -> None:
    """A prepared branch whose session is gone."""
    with contextlib.closing(server.root_connect()) as connection:
        cursor = connection.cursor()
        for sql in (f"XA START {name}", statement, f"XA END {name}", f"XA PREPARE {name}"):
            cursor.execute(sql)


@contextlib.contextmanager
def stranger_beside(server: PrivateServer, database: str) -> Iterator[None]:
    """A branch of another program, which must be prepared from the first to the last moment."""
    format_id, gtrid, bqual = STRANGER[2], STRANGER[0], STRANGER[1]
    name = _name((format_id, gtrid, bqual))
    leave_prepared(server, name, f"INSERT INTO {database}.ledger VALUES (-1, 1)")
    try:
        yield
        assert (format_id, gtrid, bqual) in server.prepared(), "the stranger's branch was touched"
    finally:
        with contextlib.suppress(MySQLdb.OperationalError):
            server.sql(f"XA ROLLBACK {name}")
