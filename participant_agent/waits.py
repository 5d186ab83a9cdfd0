"""Waits: looks who waits for whom while something is slow, and tells the coordinators whose branches wait.

Nothing is asked as long as every command is done within SLOW_SECONDS. Otherwise core/waits.py asks the
server, on a session of the finishers' pool, again and again until nothing is slow any more; every answer goes
to the coordinators as a whole, because an edge counts for them when it was told twice.

A look must hurt nobody: it has a time-out, the pause after it is many times as long as it took, and one that
fails is tried again later. Without it deadlocks end by the lock wait time-out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

from dtp import BranchState, XacoordError
from participant_agent.branches import Branches
from participant_agent.control import Control
from participant_agent.core import waits
from participant_agent.core.engine import Engine
from participant_agent.core.registry import Command, Entry, Execute, Prepare, Run
from participant_agent.core.waits import Held, Seen, Wait
from participant_agent.link import Link
from participant_agent.pool import Pool
from participant_agent.session import Session

SLOW_SECONDS = 0.1
_TICK_SECONDS = 0.05
_LOOK_SECONDS = 2.0
# InnoDB renews what it shows only when nobody has read it for 100 ms. Jitter lets two agents of one server
# find such a gap; it is no randomness, so that a simulated run can be repeated.
_SHORTEST_PAUSE_SECONDS = 0.11
_JITTER_SECONDS = 0.08
_GOLDEN = 0.6180339887498949
_LONGEST_PAUSE_SECONDS = 0.5  # where slow commands wait for something else
_REST = 2  # the pause after a look is at least so many times as long as the look
_FIRST_RETRY_SECONDS = 0.25  # after a look that failed; doubled by each that follows
_LONGEST_RETRY_SECONDS = 30.0

Working = dict[int, tuple[Entry, Command | None]]


class Waits:
    """The looks of one agent.

    Args:
        links: coordinator id -> its stream.
        engine_of: the server's make; asked at every look.
        table: the witness table, None where branches write no rows.
        serving: whether the agent is the participant's agent now.
    """

    def __init__(
        self,
        branches: Branches,
        control: Control,
        sessions: Pool,
        links: Mapping[str, Link],
        engine_of: Callable[[], Engine],
        table: str | None,
        participant: str,
        serving: Callable[[], bool],
        log: Any,
    ) -> None:
        self._branches = branches
        self._control = control
        self._sessions = sessions
        self._links = links
        self._engine_of = engine_of
        self._table = table
        self._serving = serving
        self._log = log
        self._begun: dict[str, tuple[Command, float]] = {}  # gtrid -> its command, and when it was first seen
        self._looked_for: set[str] = set()
        self._detached: dict[str, str] = {}
        self._phase = crc32(participant.encode()) / 2**32
        self._pause = 0.0
        self._earliest = 0.0
        self._next = 0.0
        self._unseen = ""
        self._failures = 0

    async def run(self) -> None:
        """Look while something is slow, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._tick(loop.time()))
            slow = self._slow(loop.time()) if self._serving() else set()
            if not slow:
                self._looked_for.clear()
                self._tell({})
                if not self._branches.registry.entries:
                    self._branches.begun.clear()
                    await self._branches.begun.wait()
            elif loop.time() >= (self._earliest if slow - self._looked_for else self._next):
                try:
                    await self._look(slow)
                except Exception:  # a bug of ours must not end the looking
                    self._log.exception("a look for lock waits failed")

    def _tick(self, now: float) -> float:
        """Seconds until commands are looked through again; not beyond a look that is due."""
        left = self._next - now
        return left if self._looked_for and 0 < left < _TICK_SECONDS else _TICK_SECONDS

    def _slow(self, now: float) -> set[str]:
        """The gtrids whose present command has been under way for a while."""
        seen = self._begun
        self._begun = {}
        slow = set()
        for gtrid, entry in self._branches.registry.entries.items():
            command = entry.running
            if not isinstance(command, Execute | Run | Prepare):
                continue
            known = seen.get(gtrid)
            begun = known if known is not None and known[0] is command else (command, now)
            self._begun[gtrid] = begun
            if now - begun[1] >= SLOW_SECONDS:
                slow.add(gtrid)
        return slow

    async def _look(self, slow: set[str]) -> None:
        loop = asyncio.get_running_loop()
        began, before = loop.time(), self._working()
        self._looked_for = slow
        self._rest(began, found=False)  # also where the look fails
        seen = await self._ask(before)
        if seen.unseen and seen.unseen != self._unseen:
            self._log.warning("deadlocks across servers may go unseen", unseen=seen.unseen)
        self._unseen = seen.unseen
        self._failures = self._failures + 1 if seen.unseen and not seen.blockers else 0
        found: dict[str, tuple[Wait, ...]] = {}
        if not self._failures:
            self._detached = dict(seen.detached)
            found = waits.waits_of(seen, self._held(before, slow))
            self._tell(found)
        self._rest(began, found=bool(found))

    def _rest(self, began: float, found: bool) -> None:
        """Set when the next look may be: earliest for commands that have just become slow."""
        now = asyncio.get_running_loop().time()
        self._phase = (self._phase + _GOLDEN) % 1.0
        shortest = _SHORTEST_PAUSE_SECONDS + _JITTER_SECONDS * self._phase
        shortest = max(shortest, _REST * (now - began))
        if self._failures:
            retry = _FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 10)
            shortest = max(shortest, min(retry, _LONGEST_RETRY_SECONDS))
        self._pause = shortest if found else max(shortest, min(2 * self._pause, _LONGEST_PAUSE_SECONDS))
        self._earliest, self._next = now + shortest, now + self._pause

    async def _ask(self, working: Working) -> Seen:
        look = waits.look(self._engine_of(), self._table, frozenset(working), self._detached)
        try:
            session = await self._sessions.acquire()
        except XacoordError as error:
            return Seen(unseen=error.reason.value)
        clean = False
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                seen = await self._control.drive(look, session)
            clean = True
            return seen
        except TimeoutError:
            return Seen(unseen="no answer in time")
        finally:
            (self._sessions.release if clean else self._sessions.discard)(session)

    def _working(self) -> Working:
        """Connection id -> what it works on."""
        return {
            entry.session.connection_id: (entry, entry.running)
            for entry in self._branches.registry.entries.values()
            if isinstance(entry.session, Session)
        }

    def _held(self, before: Working, slow: set[str]) -> dict[int, Held]:
        """What sessions have worked on during the whole look: they are used again within a millisecond."""
        after = self._working()
        held = {}
        for connection, (entry, command) in before.items():
            now = after.get(connection)
            if now is not None and now[0] is entry:
                waits_now = entry.gtrid in slow and now[1] is command
                prepared = entry.state is BranchState.PREPARED
                held[connection] = Held(entry.gtrid, entry.coordinator_id, prepared, waits_now)
        return held

    def _tell(self, found: Mapping[str, tuple[Wait, ...]]) -> None:
        for coordinator_id, link in self._links.items():
            link.tell_waits(found.get(coordinator_id, ()))
