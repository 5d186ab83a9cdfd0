"""Prepared branches of others on our servers: listed, counted, explained, never touched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import MySQLdb
import pytest

from coordinator.v1 import admin_pb2
from deploy.private_cluster import wait_for
from deploy.private_servers import PrivateServer
from dtp.xid import Xid
from tests.bad_input.support import System

OURS = b"k10001" + b"0001" + b"00000000aa"
# All that we must leave alone, but for what is said of it.
FOREIGN = {
    "text": (Xid(1, b"other-transaction", b"1"), "FOREIGN"),
    "binary": (Xid(7, bytes([0, 255, 39, 34, 92, 10, 37, 127]), bytes([0, 1, 2])), "FOREIGN"),
    "longest": (Xid(2**31 - 1, bytes(range(128, 192)), bytes(range(64))), "FOREIGN"),
    "sql": (Xid(1, b"'; DROP TABLE x; --", b"'"), "FOREIGN"),
    "no bqual": (Xid(1, b"x", b""), "FOREIGN"),
    "format 0": (Xid(0, OURS, b"0001"), "FOREIGN"),
    "our gtrid, long bqual": (Xid(1, OURS, b"00001"), "FOREIGN"),
    "our gtrid, upper case bqual": (Xid(1, OURS, b"000A"), "FOREIGN"),
    "our gtrid, no bqual": (Xid(1, OURS, b""), "FOREIGN"),
    "a byte more": (Xid(1, OURS + b"0", b"0001"), "FOREIGN"),
    "newline": (Xid(1, OURS[:-1] + b"\n", b"0001"), "FOREIGN"),
    "other coordinator": (Xid(1, b"k1zzzz" + OURS[6:], b"0001"), "OTHER_COORDINATOR"),
    "other participant": (Xid(1, OURS, b"zzzz"), "OTHER_PARTICIPANT"),
    "newer epoch": (Xid(1, b"k10001" + b"zzzz" + OURS[10:], b"0001"), "EPOCH_AHEAD_OF_LOG"),
}


def prepare(server: PrivateServer, xid: Xid, row: int) -> None:
    """As root, by hand, with a row that stays locked."""
    with contextlib.closing(server.root_connect()) as connection:
        for sql in (
            f"XA START {xid.sql()}",
            f"INSERT INTO orders.ledger VALUES ({row}, 0)",
            f"XA END {xid.sql()}",
            f"XA PREPARE {xid.sql()}",
        ):
            connection.query(sql)


def listed(server: PrivateServer) -> set[Xid]:
    return {Xid(*row) for row in server.prepared()}


@pytest.fixture(scope="module")
def prepared(each_alive: System) -> Iterator[System]:
    """All of them are prepared at orders; afterwards they are rolled back by hand."""
    server = each_alive.cluster.sites["orders"].server
    xids = [xid for xid, _ in FOREIGN.values()]
    for number, xid in enumerate(xids):
        prepare(server, xid, 5_000_000 + number)
    yield each_alive
    for xid in xids:
        with contextlib.suppress(MySQLdb.OperationalError):  # a test has failed then
            server.sql(f"XA ROLLBACK {xid.sql()}")
    wait_for(
        lambda: each_alive.cluster.metric("xacoord_participant_up", participant="orders") == 1, 10, lambda: ""
    )


def test_never_touched(prepared: System, each_system: System) -> None:
    """Scans, an applied recovery and transactions go by; all are still there."""
    server = prepared.cluster.sites["orders"].server
    wanted = {xid for xid, _ in FOREIGN.values()}
    assert listed(server) >= wanted
    answer = prepared.admin.Recover(admin_pb2.RecoverRequest(apply=True), timeout=20)
    told = {Xid(i.format_id, i.gtrid, i.bqual): i for i in answer.items if i.participant == "orders"}
    for name, (xid, reason) in FOREIGN.items():
        assert told[xid].reason == reason, name
        assert told[xid].action == ("hold" if reason == "EPOCH_AHEAD_OF_LOG" else "leave")
        assert told[xid].result == ""
    for _ in range(3):
        assert prepared.run(prepared.new_row()).completed
    assert listed(server) >= wanted


def test_counted(prepared: System, each_system: System) -> None:
    def counts() -> tuple[int, int]:
        answer = prepared.admin.Participants(admin_pb2.ParticipantsRequest(), timeout=10)
        participant = next(p for p in answer.participants if p.participant == "orders")
        return participant.foreign, participant.orphans

    reasons = [reason for _, reason in FOREIGN.values()]
    foreign = reasons.count("FOREIGN") + reasons.count("OTHER_COORDINATOR")
    wait_for(lambda: counts() == (foreign, reasons.count("EPOCH_AHEAD_OF_LOG")), 10, lambda: str(counts()))


def test_shown_to_people(prepared: System, each_system: System) -> None:
    """coordctl shows binary names without sending them to the terminal."""
    done = prepared.cluster.coordctl("recover", "--dry-run")
    assert all(line.isprintable() for line in done.stdout.splitlines()), done.stdout
    assert done.stdout.count("belongs to another") == 2
    document = prepared.cluster.coordctl("recover", "--dry-run", "-o", "json").stdout
    assert all(line.isprintable() for line in document.splitlines())


def test_restart_with_foreign_branches(prepared: System, each_system: System) -> None:
    """The first reconcile leaves them alone, too, and does not wait for them."""
    server = prepared.cluster.sites["orders"].server
    before = listed(server)
    prepared.cluster.coordinator.kill()
    prepared.cluster.start_coordinator()
    prepared.pids["coordinator"] = prepared.cluster.coordinator.pid
    assert prepared.run(prepared.new_row()).completed
    assert listed(server) == before


def test_counter_ahead_of_this_epoch(each_system: System) -> None:
    """A branch that this epoch has not named yet: the log must have been lost, so nothing is rolled back."""
    server = each_system.cluster.sites["orders"].server
    epoch = each_system.admin.LogStatus(admin_pb2.LogStatusRequest(), timeout=10).epoch
    xid = Xid(1, b"k10001%04d" % epoch + b"zzzzzzzzzz", b"0001")
    prepare(server, xid, 5_200_000)
    try:
        answer = each_system.admin.Recover(admin_pb2.RecoverRequest(apply=True), timeout=20)
        (item,) = (item for item in answer.items if item.gtrid == xid.gtrid)
        assert (item.action, item.reason) == ("hold", "EPOCH_AHEAD_OF_LOG")
        assert each_system.run(each_system.new_row()).completed
        assert xid in listed(server)
    finally:
        server.sql(f"XA ROLLBACK {xid.sql()}")


def test_our_orphan_is_rolled_back(each_system: System) -> None:
    """Our shape, an epoch of ours and no record: presumed aborted, so that the rule above is not luck."""
    server = each_system.cluster.sites["orders"].server
    number = next(
        p.number
        for p in each_system.admin.Participants(admin_pb2.ParticipantsRequest(), timeout=10).participants
        if p.participant == "orders"
    )
    xid = Xid.of("k10001" + "0001" + "00000000zz", number)
    prepare(server, xid, 5_100_000)
    wait_for(lambda: xid not in listed(server), 10, lambda: str(listed(server)))
    assert 5_100_000 not in each_system.rows("orders")
