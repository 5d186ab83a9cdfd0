"""Raw: the same transactions by hand, with nothing between the client and the servers.

`Raw` is what people write first: one verb a round trip, branch after branch; XA START, the statement, XA END,
XA PREPARE on each, then XA COMMIT on each. One branch alone commits in one phase, and so does every branch of
a transaction that only reads. `RawFast` is the limit: all branches at once, START to PREPARE in one packet
each, then all COMMITs at once. Neither keeps a log, so neither survives a crash between two commits: they are
what a coordinator is measured against, and nothing else.

XIDs: formatID 1 and ASCII as our own, because a server compares all of them (dtp/xid.py), with another
beginning, so that no agent takes them for its coordinator's.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

from MySQLdb import Error
from MySQLdb.constants import CLIENT, CR, ER

from deploy.bench.servers import RAW_MAGIC, Target
from deploy.bench.work import Told, Work

# As agents have it by default.
LOCK_WAIT_SECONDS = 3
_NO_MORE_RESULTS = -1


class Raw:
    """One client: a connection to each server, one verb a round trip.

    Args:
        targets: the servers, one a branch.
        work: what to do.
        name: 8 characters of [0-9a-z] that no other client on these servers ever has.
    """

    CLIENT_FLAG = 0

    def __init__(self, targets: Sequence[Target], work: Work, name: str) -> None:
        self._targets = targets
        self._work = work
        self._prefix = RAW_MAGIC + name
        self._numbers = itertools.count()
        self._one_phase = work.read_only or work.branches == 1
        self._connections = [self._connect(target) for target in targets]

    def transact(self) -> tuple[Told, str]:
        """See `Client`."""
        texts = self._work.texts()
        gtrid = f"{self._prefix}{next(self._numbers):08d}"
        xids = [f"'{gtrid}','{branch:04d}'" for branch in range(len(texts))]
        try:
            self._work_and_prepare(xids, texts)
        except Error as error:
            self._give_up(xids)
            # In one phase the commit may have been in the packet whose answer was lost.
            lost = self._one_phase and error.args[0] >= CR.MIN_ERROR
            return (Told.UNKNOWN if lost else Told.ROLLED_BACK), _text(error)
        try:
            self._commit(xids)
        except Error as error:
            for place in range(len(xids)):
                self._reconnect(place)
            return Told.UNKNOWN, _text(error)
        return Told.COMMITTED, ""

    def close(self) -> None:
        """See `Client`."""
        for connection in self._connections:
            connection.close()

    # The two phases

    def _work_and_prepare(self, xids: Sequence[str], texts: Sequence[str]) -> None:
        for connection, xid, text in zip(self._connections, xids, texts, strict=True):
            _query(connection, f"XA START {xid}")
            _query(connection, text)
            _query(connection, f"XA END {xid}")
            if not self._one_phase:
                _query(connection, f"XA PREPARE {xid}")

    def _commit(self, xids: Sequence[str]) -> None:
        """Every branch, also after one that failed; raises the first error."""
        phase = " ONE PHASE" if self._one_phase else ""
        failure: Error | None = None
        for connection, xid in zip(self._connections, xids, strict=True):
            try:
                _query(connection, f"XA COMMIT {xid}{phase}")
            except Error as error:
                failure = failure or error
        if failure is not None:
            raise failure

    # When something goes wrong

    def _give_up(self, xids: Sequence[str]) -> None:
        """Nothing was committed: roll every branch back. A connection that does not obey goes, and with it
        what was not prepared."""
        for place, xid in enumerate(xids):
            connection = self._connections[place]
            with contextlib.suppress(Error):  # it has ended, or was never begun
                _query(connection, f"XA END {xid}")
            try:
                _query(connection, f"XA ROLLBACK {xid}")
            except Error as error:
                if error.args[0] != ER.XAER_NOTA:
                    self._reconnect(place)

    def _reconnect(self, place: int) -> None:
        self._connections[place].close()
        self._connections[place] = self._connect(self._targets[place])

    def _connect(self, target: Target) -> Any:
        connection = target.connect(self.CLIENT_FLAG)
        _query(connection, f"SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT_SECONDS}")
        return connection


class RawFast(Raw):
    """One client: all branches at once, in the fewest packets."""

    CLIENT_FLAG = CLIENT.MULTI_STATEMENTS

    def _work_and_prepare(self, xids: Sequence[str], texts: Sequence[str]) -> None:
        last = "XA COMMIT {0} ONE PHASE" if self._one_phase else "XA PREPARE {0}"
        form = "XA START {0};{1};XA END {0};" + last
        self._at_once([form.format(xid, text) for xid, text in zip(xids, texts, strict=True)])

    def _commit(self, xids: Sequence[str]) -> None:
        if not self._one_phase:
            self._at_once([f"XA COMMIT {xid}" for xid in xids])

    def _at_once(self, packets: Sequence[str]) -> None:
        """One packet to each server, then all the answers. Raises the first error, after the last answer."""
        sent = []
        failure: Error | None = None
        for connection, packet in zip(self._connections, packets, strict=True):
            try:
                connection.send_query(packet.encode())
                sent.append(connection)
            except Error as error:
                failure = failure or error
        for connection in sent:
            try:
                connection.read_query_result()
                while True:
                    if connection.field_count():
                        connection.store_result().fetch_row(0)
                    if connection.next_result() == _NO_MORE_RESULTS:
                        break
            except Error as error:
                failure = failure or error
        if failure is not None:
            raise failure


def _query(connection: Any, text: str) -> None:
    connection.query(text.encode())
    if connection.field_count():
        connection.store_result().fetch_row(0)


def _text(error: Error) -> str:
    return " ".join(str(part) for part in error.args)
