"""Look: what is prepared at the server, without being the participant's agent.

For a plan that must change nothing: no lock is taken, no session ended, no table made, and nothing listens.
What is found may be another thing a moment later, because whoever works there goes on.
"""

from __future__ import annotations

from typing import Any

from dtp import Xid
from participant_agent.agent import Agent
from participant_agent.config import Config
from participant_agent.core import recovery


async def prepared(config: Config, log: Any) -> tuple[Xid, ...]:
    """All XIDs that the server lists.

    Raises:
        ConnectError: the server cannot be reached.
        XacoordError: it does not tell.
    """
    agent = Agent(config, None, log)
    try:
        await agent.control.connect()
        return (await agent.control.drive(recovery.scan(agent.engine))).prepared
    finally:
        agent.control.close()
