"""A process that hangs keeps its connections, and its kernel goes on acknowledging: only pings notice it."""

from __future__ import annotations

import signal

from deploy.private_cluster import wait_for
from tests.system.conftest import System

_NOTICED_SECONDS = 12.0  # 5 without traffic, 5 for the answer (docs/operations.md), and this test's polling


def test_an_agent_that_hangs_is_noticed(system: System) -> None:
    cluster = system.cluster
    agent = cluster.sites["payments"].agent
    agent.send(signal.SIGSTOP)
    try:
        wait_for(
            lambda: cluster.metric("xacoord_participant_up", participant="payments") == 0,
            _NOTICED_SECONDS,
            cluster.tails,
        )
    finally:
        agent.send(signal.SIGCONT)
    cluster.wait_until_up()
    row = system.new_id()
    system.run(row)
    assert system.judge(row)
