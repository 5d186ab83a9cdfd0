"""A PREPARE (or COMMIT) that reaches the server after recovery has looked, the worst that a network can do.

The proxy holds the packet, and with it the connection, so that the server sees the session alive, whoever has
died. Recovery has to end that session before it scans. When the packet is let go afterwards, nothing of ours
may be prepared, no row locked, and everybody must have been told the truth.
"""

from __future__ import annotations

import time

import pytest

from tests.network.net import TAKER, Deal, Net
from tests.network.proxy import Hold

_TRX_CACHE_SECONDS = 0.12  # innodb_trx shows what it showed before to those who ask sooner

KILLED = pytest.mark.parametrize(
    "killed", [("coordinator",), ("agent",), ("agent", "coordinator")], ids="+".join
)


def _held(net: Net, text: bytes, timeout_seconds: float = 3.0) -> tuple[Deal, Hold]:
    """A deal that commits, with the packet held on its way to the server of `payments`."""
    deal = net.deal(timeout_seconds).begin().work()
    held = net.servers[TAKER].hold(text)
    deal.start_commit()
    held.wait()
    return deal, held


def _restart(net: Net, killed: tuple[str, ...]) -> None:
    """Kill, start, and wait until recovery has scanned."""
    cluster = net.cluster
    processes = {"coordinator": cluster.coordinator, "agent": cluster.sites[TAKER].agent}
    for name in killed:
        processes[name].kill()
    net.until(lambda: not net.is_up(TAKER), "its loss is noticed")
    for name in killed:
        processes[name].start()
    cluster.wait_until_ready()
    cluster.wait_until_up()


def _server_side(net: Net) -> list[int]:
    """Connections that are in the middle of a branch, as the server sees them."""
    time.sleep(_TRX_CACHE_SECONDS)
    rows = net.cluster.sites[TAKER].server.sql(
        "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx WHERE trx_mysql_thread_id <> 0"
    )
    return [int(row[0]) for row in rows]


@KILLED
def test_prepare(net: Net, killed: tuple[str, ...]) -> None:
    deal, held = _held(net, b"XA PREPARE")
    net.until(lambda: bool(_server_side(net)), "the branch is open at the server")
    _restart(net, killed)
    net.until(lambda: not _server_side(net), "recovery has ended the session before it scanned", 1)
    assert not net.is_prepared(TAKER, deal.gtrid)
    held.release()
    assert deal.wait() in ("ROLLED_BACK", "UNKNOWN")
    net.settles()
    assert net.outcome(deal.gtrid) == "ROLLED_BACK"


def test_prepare_with_everybody_alive(net: Net) -> None:
    """Nobody dies, the packet is only late: at the deadline the branch's session is ended."""
    deal, held = _held(net, b"XA PREPARE")
    assert deal.wait() == "ROLLED_BACK"
    net.until(lambda: not _server_side(net), "the session is ended")
    held.release()
    net.settles()


def test_prepare_of_a_killed_session(net: Net) -> None:
    """The server ends the session by itself (an administrator's KILL) while PREPARE is under way."""
    deal, held = _held(net, b"XA PREPARE", 8.0)
    net.until(lambda: bool(_server_side(net)), "the branch is open at the server")
    for connection in _server_side(net):
        net.cluster.sites[TAKER].server.sql(f"KILL {connection}")
    assert deal.wait() == "ROLLED_BACK"
    assert deal.seconds < 6, "the agent notices at once, not at the deadline"
    held.release()
    net.settles()


@KILLED
def test_commit(net: Net, killed: tuple[str, ...]) -> None:
    """Decided, durable: another session commits, and the late COMMIT finds nothing."""
    deal, held = _held(net, b"XA COMMIT")
    _restart(net, killed)
    net.until(lambda: net.has_row(TAKER, deal), "committed by another session")
    held.release()
    assert deal.wait() in ("COMMITTED", "UNKNOWN")
    net.settles()
    assert net.outcome(deal.gtrid) == "COMMITTED"


def test_prepare_reaches_the_server_while_recovery_runs(net: Net) -> None:
    """Released between the start of recovery and its end: whichever is first, nothing may be left."""
    deal, held = _held(net, b"XA PREPARE")
    net.cluster.coordinator.kill()
    net.cluster.coordinator.start()
    net.until(lambda: net.cluster.http("/healthz")[0] == 200, "it lives", 10)
    held.release()
    net.cluster.wait_until_ready()
    assert deal.wait() in ("ROLLED_BACK", "UNKNOWN")
    net.settles()
    assert net.outcome(deal.gtrid) == "ROLLED_BACK"
