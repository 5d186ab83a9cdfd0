"""The link between the coordinator and one participant's agent, broken at each decisive moment.

Before the decision a transaction that needs the link is rolled back at its deadline, and the client is told
so for certain. After the decision it is told COMMITTED, and the branch is in doubt until the link is back.
Nobody else waits.
"""

from __future__ import annotations

import threading
import time

import pytest

from tests.network.net import BYSTANDER, GIVER, TAKER, Net
from tests.network.proxy import Way

LOSE = pytest.mark.parametrize("lose", [False, True], ids=["delivered late", "lost"])


@pytest.mark.parametrize("way", Way)
def test_cut_before_begin(any_net: Net, way: Way) -> None:
    """The branch cannot be enlisted: the first statement fails, for certain."""
    net = any_net
    link = net.agents[TAKER]
    link.cut(way)
    deal = net.deal().begin().work()
    assert deal.told == "ROLLED_BACK"
    net.goes_on()
    link.heal(lose=way is Way.BACK)
    net.settles()
    assert not net.has_row(GIVER, deal)


@LOSE
def test_cut_before_prepare(any_net: Net, lose: bool) -> None:
    net = any_net
    link = net.agents[TAKER]
    deal = net.deal().begin().work()
    link.cut(Way.THERE)
    deal.start_commit()
    net.goes_on()
    assert deal.wait() == "ROLLED_BACK"
    assert not net.is_prepared(TAKER, deal.gtrid)
    link.heal(lose=lose)  # PREPARE arrives now, with the ROLLBACK behind it, or never
    net.settles()


def test_vote_lost(net: Net) -> None:
    link = net.agents[TAKER]
    deal = net.deal().begin().work()
    link.cut(Way.BACK)
    deal.start_commit()
    net.until(lambda: net.is_prepared(TAKER, deal.gtrid), "the branch is prepared")
    net.goes_on()
    assert deal.wait() == "ROLLED_BACK"
    # The rollback got through, only its acknowledgement did not.
    net.until(lambda: not net.is_prepared(TAKER, deal.gtrid), "rolled back behind the cut")
    link.heal(lose=True)
    net.settles()


@LOSE
def test_cut_after_the_decision(net: Net, lose: bool) -> None:
    """COMMIT cannot be delivered: the client is told the truth at its deadline, operators see the doubt."""
    link = net.agents[TAKER]
    deal = net.deal().begin().work()
    held = net.servers[TAKER].hold(b"XA PREPARE")
    deal.start_commit()
    held.wait()
    link.cut(Way.THERE)
    held.release()
    net.until(lambda: not net.is_prepared(GIVER, deal.gtrid) and net.has_row(GIVER, deal), "decided")
    assert deal.wait() == "COMMITTED"
    assert net.is_prepared(TAKER, deal.gtrid)
    assert net.in_doubt() == [deal.gtrid]
    assert net.cluster.metric("xacoord_in_doubt_branches", participant=TAKER) == 1
    net.goes_on()
    link.heal(lose=lose)
    net.settles()
    assert net.has_row(TAKER, deal)


def test_acknowledgement_lost(net: Net) -> None:
    link = net.agents[TAKER]
    deal = net.deal().begin().work()
    held = net.servers[TAKER].hold(b"XA COMMIT")
    deal.start_commit()
    held.wait()
    link.cut(Way.BACK)
    held.release()
    net.until(lambda: net.has_row(TAKER, deal), "committed behind the cut")
    assert deal.wait() == "COMMITTED"
    assert net.in_doubt() == [deal.gtrid], "nobody has heard that it is done"
    net.goes_on()
    link.heal(lose=True)
    net.settles()


def test_cut_in_the_middle_of_phase_two(net: Net) -> None:
    """One participant has committed when the other's link is cut and its agent loses everything it knew."""
    link = net.agents[TAKER]
    deal = net.deal().begin().work()
    held = net.servers[TAKER].hold(b"XA COMMIT")
    deal.start_commit()
    held.wait()
    net.until(lambda: net.has_row(GIVER, deal), "the other one has committed")
    link.cut()
    held.release(lose=True)
    assert deal.wait() == "COMMITTED"
    net.goes_on()
    link.heal(lose=True)
    net.settles()
    assert net.has_row(TAKER, deal)


def test_delay(any_net: Net) -> None:
    """Slow is not broken: it commits, in three round trips, and slows nobody else down."""
    net = any_net
    net.agents[TAKER].delay(0.15)  # 300 ms there and back
    deal = net.deal(5.0).begin().work()
    assert deal.told == ""
    deal.start_commit()
    net.goes_on(within_seconds=0.5)
    assert deal.wait() == "COMMITTED"
    assert deal.seconds >= 0.6, "PREPARE and COMMIT went through the slow link"
    net.agents[TAKER].heal()
    net.settles()


def test_flapping(any_net: Net) -> None:
    """The link comes and goes while clients work; most of what needs it fails, nothing of it is half done."""
    net = any_net
    stop = threading.Event()

    def flap() -> None:
        ways = list(Way)
        number = 0
        while not stop.wait(0.25):
            net.agents[TAKER].cut(ways[number % 2])
            stop.wait(0.2)
            net.agents[TAKER].heal(lose=number % 4 < 2)
            number += 1

    flapping = threading.Thread(target=flap, daemon=True)
    flapping.start()
    until = time.monotonic() + 2
    told = []
    while time.monotonic() < until:
        told.append(net.deal(0.7).run())
        net.goes_on()
    stop.set()
    flapping.join()
    net.agents[TAKER].heal(lose=True)
    net.settles()
    assert "COMMITTED" in told, told


@pytest.mark.parametrize("way", Way)
def test_cut_while_the_coordinator_recovers(any_net: Net, way: Way) -> None:
    """An asymmetric cut during fence and scan: the participant stays FENCING, the others are served."""
    net = any_net
    link = net.agents[TAKER]
    deal = net.deal().begin().work()
    held = net.servers[TAKER].hold(b"XA COMMIT")
    deal.start_commit()
    held.wait()
    net.cluster.coordinator.kill()
    held.release(lose=True)
    passed = link.passed[way]
    fencing = threading.Event()

    def cut_when_connected() -> None:
        while link.passed[way] == passed:
            time.sleep(0.002)
        link.cut(way)
        fencing.set()

    cutting = threading.Thread(target=cut_when_connected, daemon=True)
    cutting.start()
    net.cluster.start_coordinator(wait=False)
    net.cluster.wait_until_ready()
    assert fencing.wait(5)
    deal.wait()
    net.until(lambda: net.is_up(BYSTANDER) and net.is_up(GIVER), "the others are up")
    net.goes_on()
    assert not net.is_up(TAKER)
    link.heal(lose=True)
    net.settles()
    assert net.has_row(TAKER, deal), "it was decided before the coordinator died"
