"""The client's links: to the coordinator, and to the agents for its statements.

The client's own deadlines end every wait. It calls something rolled back only where no Commit was sent, or
where the coordinator has said so; else the outcome is UNKNOWN to it, and known to the coordinator.
"""

from __future__ import annotations

import threading
import time

import pytest

from tests.network.net import GIVER, GRACE_SECONDS, TAKER, Net
from tests.network.proxy import Way
from tests.sdk import streaming

SLACK_SECONDS = 0.7  # of a busy machine


@pytest.fixture(autouse=True, params=["unary", "stream"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the client's calls travel."""
    if request.param == "stream":
        streaming.always(monkeypatch)


@pytest.mark.parametrize("way", Way)
def test_cut_before_begin(any_net: Net, way: Way) -> None:
    """No id arrives, so nothing can have been done: the refusal is definite, and comes in time."""
    any_net.front.cut(way)
    started = time.monotonic()
    deal = any_net.deal().begin()
    assert deal.told == "ROLLED_BACK"
    assert time.monotonic() - started < GRACE_SECONDS + SLACK_SECONDS
    any_net.goes_on()
    any_net.front.heal(lose=way is Way.BACK)
    any_net.settles()


def test_commit_arrives_late(any_net: Net) -> None:
    """The Commit that the client has given up is delivered after the deadline: refused, whoever hears it."""
    deal = any_net.deal().begin().work()
    any_net.front.cut(Way.THERE)
    assert deal.commit() == "UNKNOWN"
    assert deal.seconds < 1.0 + 3 * GRACE_SECONDS + SLACK_SECONDS
    any_net.goes_on()
    any_net.until(lambda: any_net.outcome(deal.gtrid) == "ROLLED_BACK", "its time-out has rolled it back")
    any_net.front.heal()
    any_net.settles()
    assert any_net.outcome(deal.gtrid) == "ROLLED_BACK"


def test_answer_to_commit_lost(any_net: Net) -> None:
    """It is committed, and the client must not think otherwise."""
    deal = any_net.deal().begin().work()
    any_net.front.cut(Way.BACK)
    deal.start_commit()
    any_net.until(lambda: any_net.has_row(GIVER, deal) and any_net.has_row(TAKER, deal), "committed")
    assert deal.wait() == "UNKNOWN"
    any_net.front.heal(lose=True)
    any_net.settles()
    assert any_net.outcome(deal.gtrid) == "COMMITTED"


def test_answer_to_commit_late(any_net: Net) -> None:
    """The link is back before the client gives up: it hears the outcome."""
    deal = any_net.deal(3.0).begin().work()
    any_net.front.cut(Way.BACK)
    deal.start_commit()
    any_net.until(lambda: any_net.has_row(TAKER, deal), "committed")
    any_net.front.heal()
    assert deal.wait() == "COMMITTED"
    any_net.settles()


def test_connection_lost_while_committing(any_net: Net) -> None:
    """The call breaks; the client connects again and asks what became of it."""
    deal = any_net.deal(3.0).begin().work()
    held = any_net.servers[TAKER].hold(b"XA COMMIT")
    deal.start_commit()
    held.wait()
    any_net.front.reset()
    held.release()
    assert deal.wait() == "COMMITTED"
    any_net.settles()


def test_run_with_a_key_is_done_once(any_net: Net) -> None:
    """The answer is lost with its connection, again and again: the same key does the work once."""
    held = any_net.servers[TAKER].hold(b"XA COMMIT")
    deal = any_net.deal(3.0, key=f"once-{time.monotonic_ns()}").start_run()
    held.wait()  # else a call that was certainly never sent is the end of it
    for _ in range(3):
        any_net.until(lambda: any_net.front.connections > 0, "connected")
        any_net.front.reset()
        time.sleep(0.05)
    held.release()
    assert deal.wait() == "COMMITTED"
    assert any_net.has_row(TAKER, deal)
    any_net.settles()


def test_run_without_a_key_is_in_doubt(any_net: Net) -> None:
    held = any_net.servers[TAKER].hold(b"XA COMMIT")
    deal = any_net.deal(3.0).start_run()
    held.wait()
    any_net.front.reset()
    assert deal.wait() == "UNKNOWN"
    held.release()
    any_net.settles()
    assert any_net.has_row(TAKER, deal)


@pytest.mark.parametrize("way", Way)
def test_statement_lost(any_net: Net, way: Way) -> None:
    """The statement, or its answer, does not arrive: no Commit is sent, so it is rolled back for certain."""
    any_net.doors[TAKER].cut(way)
    deal = any_net.deal().begin().work()
    assert deal.told == "ROLLED_BACK"
    any_net.goes_on()
    any_net.doors[TAKER].heal(lose=way is Way.BACK)
    any_net.settles()


def test_link_to_the_agent_is_not_needed_to_commit(any_net: Net) -> None:
    deal = any_net.deal().begin().work()
    any_net.doors[TAKER].cut()
    assert deal.commit() == "COMMITTED"
    any_net.doors[TAKER].heal(lose=True)
    any_net.settles()


def test_delay(any_net: Net) -> None:
    any_net.front.delay(0.15)  # 300 ms there and back
    any_net.doors[TAKER].delay(0.15)
    deal = any_net.deal(5.0).begin().work()
    assert deal.commit() == "COMMITTED"
    assert deal.seconds >= 0.3
    any_net.settles()


def test_flapping(any_net: Net) -> None:
    """Client and coordinator lose each other again and again; what was told is the truth all the same."""
    stop = threading.Event()

    def flap() -> None:
        while not stop.wait(0.15):
            any_net.front.cut(Way.BACK)
            stop.wait(0.1)
            any_net.front.heal(lose=True)

    flapping = threading.Thread(target=flap, daemon=True)
    flapping.start()
    until = time.monotonic() + 2
    number = 0
    told = []
    while time.monotonic() < until:
        number += 1
        key = f"flap-{number}" if number % 2 else None
        told.append(any_net.deal(1.0, key=key).run())
    stop.set()
    flapping.join()
    any_net.front.heal(lose=True)
    any_net.settles()
    assert "COMMITTED" in told, told
