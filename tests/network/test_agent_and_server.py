"""The link between one participant's agent and its MySQL server, broken at each decisive moment.

An agent that hears nothing does not know what its server does: the vote is ROLLBACK, and what may have been
prepared, or committed, is found out when the server answers again.
"""

from __future__ import annotations

import threading
import time

import pytest

from tests.network.net import GIVER, TAKER, Net
from tests.network.proxy import Way

LOSE = pytest.mark.parametrize("lose", [False, True], ids=["delivered late", "lost"])


@pytest.mark.parametrize("way", Way)
def test_cut_before_begin(any_net: Net, way: Way) -> None:
    """Nothing of the branch can start, or nobody hears that it did."""
    net = any_net
    link = net.servers[TAKER]
    link.cut(way)
    deal = net.deal().begin().work()
    assert deal.told == "ROLLED_BACK"
    net.goes_on()
    link.heal(lose=way is Way.BACK)
    net.settles()
    assert not net.has_row(GIVER, deal)


@LOSE
def test_cut_before_prepare(any_net: Net, lose: bool) -> None:
    """END, the witness row and PREPARE never reach the server, or late, when the branch was rolled back."""
    net = any_net
    link = net.servers[TAKER]
    deal = net.deal().begin().work()
    link.cut(Way.THERE)
    deal.start_commit()
    net.goes_on()
    assert deal.wait() == "ROLLED_BACK"
    link.heal(lose=lose)
    net.settles()


@LOSE
def test_answer_to_prepare_lost(net: Net, lose: bool) -> None:
    """The branch is prepared, and its agent does not know."""
    link = net.servers[TAKER]
    deal = net.deal().begin().work()
    held = link.hold(b"XA PREPARE")
    deal.start_commit()
    held.wait()
    link.cut(Way.BACK)
    held.release()
    net.until(lambda: net.is_prepared(TAKER, deal.gtrid), "prepared behind the cut")
    net.goes_on()
    assert deal.wait() == "ROLLED_BACK"
    link.heal(lose=lose)
    net.settles()


@LOSE
def test_commit_held(net: Net, lose: bool) -> None:
    """Decided, and the server cannot be told: the client hears the decision, the branch stays in doubt."""
    link = net.servers[TAKER]
    deal = net.deal().begin().work()
    held = link.hold(b"XA COMMIT", times=1000)
    deal.start_commit()
    held.wait()
    assert deal.wait() == "COMMITTED"
    assert net.is_prepared(TAKER, deal.gtrid)
    assert net.in_doubt() == [deal.gtrid]
    net.goes_on()
    held.release(lose=lose)
    net.settles()
    assert net.has_row(TAKER, deal)


def test_answer_to_commit_lost(net: Net) -> None:
    link = net.servers[TAKER]
    deal = net.deal().begin().work()
    held = link.hold(b"XA COMMIT")
    deal.start_commit()
    held.wait()
    link.cut(Way.BACK)
    held.release()
    net.until(lambda: net.has_row(TAKER, deal), "committed behind the cut")
    assert deal.wait() == "COMMITTED"
    assert net.in_doubt() == [deal.gtrid]
    net.goes_on()
    link.heal(lose=True)
    net.settles()


def test_answer_to_the_commit_of_one_branch_lost(net: Net) -> None:
    """One branch, nothing in the log: until its server answers nobody can know, and nobody is told."""
    link = net.servers[TAKER]
    deal = net.deal(one_branch=True).begin().work()
    held = link.hold(b"XA COMMIT")  # in one phase or, where such a commit is not durable, after a PREPARE
    deal.start_commit()
    held.wait()
    link.cut(Way.BACK)
    held.release()
    net.until(lambda: net.has_row(TAKER, deal), "committed behind the cut")
    assert deal.wait() == "UNKNOWN"
    net.goes_on()
    link.heal(lose=True)
    net.settles()
    assert net.outcome(deal.gtrid) == "COMMITTED"


def test_delay(any_net: Net) -> None:
    net = any_net
    net.servers[TAKER].delay(0.05)  # 100 ms for each of the branch's round trips
    deal = net.deal(5.0).begin().work()
    deal.start_commit()
    net.goes_on(within_seconds=0.5)
    assert deal.wait() == "COMMITTED"
    assert deal.seconds >= 0.2, "the packet up to PREPARE, and COMMIT, went through the slow link"
    net.servers[TAKER].heal()
    net.settles()


def test_flapping(any_net: Net) -> None:
    """Every session is reset again and again while clients work."""
    net = any_net
    stop = threading.Event()

    def flap() -> None:
        while not stop.wait(0.3):
            net.servers[TAKER].reset()

    flapping = threading.Thread(target=flap, daemon=True)
    flapping.start()
    until = time.monotonic() + 2
    told = []
    while time.monotonic() < until:
        told.append(net.deal(0.7).run())
        net.goes_on()
    stop.set()
    flapping.join()
    net.settles()
    assert "COMMITTED" in told, told


def test_scan_and_take_over_through_a_cut(net: Net) -> None:
    """The agent has lost its server and finds it behind a one-way cut: down, until the cut has ended."""
    link = net.servers[TAKER]
    deal = net.deal().begin().work()
    held = link.hold(b"XA COMMIT")
    deal.start_commit()
    held.wait()
    link.cut(Way.BACK)
    link.reset()
    net.until(lambda: not net.is_up(TAKER), "operators see that it is down")
    assert deal.wait() == "COMMITTED"
    net.until(lambda: bool(net.cluster.metric("xacoord_blocked_transactions")), "and what it blocks")
    net.goes_on()
    time.sleep(1.5)  # connections are tried again, in vain
    link.heal()
    net.settles()
    assert net.has_row(TAKER, deal)
