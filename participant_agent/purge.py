"""Purge: deletes witness rows that nobody will ask for, lazily and in small batches.

Why not at once: a row is needed until its transaction has ended everywhere, and deleting is work that no
transaction waits for. A purge that fails is tried again later, because the next bound may be long in coming.
The order of its two durable steps is what matters, and core/recovery.py says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from dtp import Gtrid, Reason, XacoordError
from participant_agent.config import Config
from participant_agent.control import Control
from participant_agent.core import recovery
from participant_agent.fences import Fences
from participant_agent.pool import Pool

_BATCH_PAUSE_SECONDS = 0.02
_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 60.0


class Purge:
    """The purges of one agent: at most one task a coordinator.

    Args:
        spawn: runs a coroutine in the background and keeps it alive.
    """

    def __init__(
        self,
        config: Config,
        control: Control,
        fences: Fences,
        sessions: Pool,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        log: Any,
    ) -> None:
        self._config = config
        self._control = control
        self._fences = fences
        self._sessions = sessions
        self._spawn = spawn
        self._log = log
        self._bounds: dict[str, str] = {}

    def below(self, coordinator_id: str, bound: str) -> None:
        """Rows of the coordinator's gtrids below `bound` may go. What runs goes on to the newest bound.

        Raises:
            XacoordError: INVALID_GTRID.
        """
        if Gtrid.parse(bound).coordinator_id != coordinator_id:
            raise XacoordError(Reason.INVALID_GTRID, "purge_below is another coordinator's")
        running = coordinator_id in self._bounds
        self._bounds[coordinator_id] = max(bound, self._bounds.get(coordinator_id, ""))
        if not running:
            self._spawn(self._run(coordinator_id))

    async def _run(self, coordinator_id: str) -> None:
        done, pause = "", _FIRST_RETRY_SECONDS
        try:
            while done < self._bounds[coordinator_id]:
                bound = self._bounds[coordinator_id]
                try:
                    await self._purge(coordinator_id, bound)
                    done, pause = bound, _FIRST_RETRY_SECONDS
                except XacoordError as error:
                    self._log.warning("purge failed", reason=error.reason.value, retry_in_seconds=pause)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LONGEST_RETRY_SECONDS)
        finally:
            del self._bounds[coordinator_id]

    async def _purge(self, coordinator_id: str, below: str) -> None:
        schema, participant = self._config.mysql.schema, self._config.agent.participant
        number = self._fences[coordinator_id].number
        # Remembered here before there: a smaller claim is always true.
        self._fences.purged(coordinator_id, below)
        session = await self._sessions.acquire()
        clean = False
        try:
            store_bound = recovery.raise_purged_to(schema, participant, coordinator_id, below)
            await self._control.drive(store_bound, session)
            deleted = 1
            while deleted:
                batch = recovery.purge_batch(f"{schema}.witness", number, coordinator_id, below)
                deleted = await self._control.drive(batch, session)
                await asyncio.sleep(_BATCH_PAUSE_SECONDS)
            clean = True
        finally:
            (self._sessions.release if clean else self._sessions.discard)(session)
