"""How long it takes until somebody notices that nothing comes any more. docs/operations.md has the bounds."""

from __future__ import annotations

import time

from tests.network.net import BYSTANDER, GIVER, TAKER, Net
from tests.network.proxy import Way

PINGS_SECONDS = 10.0  # a ping after 5 s without traffic, 5 s for its answer
QUERY_SECONDS = 10.0  # the agent's own queries
LOCK_SECONDS = 15.0  # the server, for an agent that has vanished
SLACK_SECONDS = 3.0


def test_black_holes_and_a_vanished_agent(any_net: Net) -> None:
    """Three links fall silent at once, each in another way; nobody helps.

    orders: nothing gets from the coordinator to the agent. stock: nothing gets back from the server.
    payments: the agent's host is gone with a PREPARE under way, and its server has not noticed: every old
    session looks alive. A new agent takes the participant over.
    """
    deal = any_net.deal(3.0).begin().work()
    held = any_net.servers[TAKER].hold(b"XA PREPARE")
    deal.start_commit()
    held.wait()
    deliver = any_net.servers[TAKER].strand()
    agent = any_net.cluster.sites[TAKER].agent
    agent.kill()
    assert deal.wait() == "ROLLED_BACK"
    any_net.agents[GIVER].cut(Way.THERE)
    any_net.servers[BYSTANDER].cut(Way.BACK)
    started = time.monotonic()
    agent.start()
    noticed: dict[str, float] = {}

    def all_noticed() -> bool:
        for name in (GIVER, BYSTANDER):
            if name not in noticed and not any_net.is_up(name):
                noticed[name] = time.monotonic() - started
        if TAKER not in noticed and any_net.is_up(TAKER):
            noticed[TAKER] = time.monotonic() - started
        time.sleep(0.05)
        return len(noticed) == 3

    any_net.until(all_noticed, "everything was noticed", 30)
    assert noticed[GIVER] < PINGS_SECONDS + SLACK_SECONDS, noticed
    assert noticed[BYSTANDER] < QUERY_SECONDS + SLACK_SECONDS, noticed
    assert noticed[TAKER] < LOCK_SECONDS + SLACK_SECONDS, noticed
    assert not any_net.is_prepared(TAKER, deal.gtrid)
    any_net.agents[GIVER].heal(lose=True)
    any_net.servers[BYSTANDER].heal(lose=True)
    held.release()
    deliver()
    any_net.settles()
    assert any_net.outcome(deal.gtrid) == "ROLLED_BACK"
