"""Pool: sessions that are in no XA state, ready to work.

Each session holds the user lock of its slot from its first moment (core/sessions.py says why), then checks
that the participant's lock is still its own agent's. A session comes back only when it is free of any branch;
every other one is closed, and its slot may be used again once the server has released the lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

from dtp import Reason, XacoordError
from participant_agent.core.effects import Ok, Query, number
from participant_agent.core.sessions import slot_lock
from participant_agent.session import Connect, ConnectError, Session, Target


class Pool:
    """Sessions of slots `first` to `first + size - 1`.

    Args:
        target: how to connect.
        participant: its name.
        first, size: the slots.
        warm: how many idle sessions are kept.
        wait_seconds: how long `acquire` waits for a free session, and a new one for its server's answers.
        connect: opens a session.
    """

    def __init__(
        self,
        target: Target,
        participant: str,
        first: int,
        size: int,
        warm: int,
        wait_seconds: float,
        connect: Connect = Session.open,
    ) -> None:
        self._target = target
        self._connect = connect
        self._participant = participant
        self._slots = deque(range(first, first + size))
        self._idle: list[Session] = []
        self._busy: dict[Session, int] = {}
        self._waiters: deque[asyncio.Future[Session | int]] = deque()
        self._warm = warm
        self._wait_seconds = wait_seconds
        self.control_id = 0
        self.token_lock = ""
        self.net_buffer_length = 1024
        self.sql_mode = ""

    @property
    def idle(self) -> int:
        """Sessions that are ready."""
        return len(self._idle)

    async def acquire(self) -> Session:
        """A session in no XA state.

        Raises:
            XacoordError: POOL_EXHAUSTED after the wait, SERVER_UNAVAILABLE where connecting fails.
        """
        deadline = asyncio.get_running_loop().time() + self._wait_seconds
        while True:
            free = self._free()
            if free is None:
                free = await self._wait(deadline)
            if isinstance(free, int):
                return await self._open(free)
            if not free.dead:
                free.on_death = None
                free.begin_call()
                return free
            self.discard(free)

    def _free(self) -> Session | int | None:
        """An idle session or a slot, if there is one. Where somebody waits there is none: `_hand` gives it to
        who has waited longest."""
        if self._idle:
            return self._idle.pop()
        return self._slots.popleft() if self._slots else None

    async def _wait(self, deadline: float) -> Session | int:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Session | int] = loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except BaseException as error:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif not waiter.cancelled():  # it was given something in the same moment
                self._put_back(waiter.result())
            if isinstance(error, TimeoutError):
                raise XacoordError(
                    Reason.POOL_EXHAUSTED,
                    "all sessions of the agent are in use; retry, or raise sessions.max",
                ) from None
            raise

    def _hand(self, free: Session | int) -> bool:
        """Give it to somebody who waits. False where nobody does."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(free)
                return True
        return False

    def _put_back(self, free: Session | int) -> None:
        if isinstance(free, int):
            self._give_back(free)
        else:
            self.release(free)

    async def _open(self, slot: int) -> Session:
        lock = slot_lock(self._participant, slot)
        try:
            session = await self._connect(self._target)
        except ConnectError as error:
            self._give_back(slot)
            raise XacoordError(
                Reason.SERVER_UNAVAILABLE, f"cannot connect to the server ({error.errno})"
            ) from None
        except BaseException:
            self._give_back(slot)
            raise
        self._busy[session] = slot
        session.lock = lock
        session.net_buffer_length = self.net_buffer_length
        try:
            # A query may take longer than anybody waits for a session.
            async with asyncio.timeout(self._wait_seconds):
                await self._set_up(session)
        except BaseException as error:
            self.discard(session)
            if isinstance(error, TimeoutError):
                raise XacoordError(
                    Reason.SERVER_UNAVAILABLE, "the server does not answer on a new session"
                ) from None
            raise
        return session

    async def _set_up(self, session: Session) -> None:
        """Take the slot's lock, see that the participant's is still ours, and set the sql_mode that the guard
        reads literals by, whatever the server's is by now.
        """
        for attempt in range(50):
            held = await session.query(
                Query("SELECT GET_LOCK(%s, 0), IS_USED_LOCK(%s)", (session.lock, self.token_lock))
            )
            if not isinstance(held, Ok) or number(held.rows[0][1]) != self.control_id:
                raise XacoordError(
                    Reason.SERVER_UNAVAILABLE, "the agent does not hold the participant's lock"
                )
            if number(held.rows[0][0]) == 1:
                break
            await asyncio.sleep(min(0.1, 0.002 * 2**attempt))  # the slot's former session is just ending
        else:
            raise XacoordError(Reason.SERVER_UNAVAILABLE, "a former session of this agent does not end")
        pinned = await session.query(Query("SET SESSION sql_mode = %s", (self.sql_mode,)))
        if not isinstance(pinned, Ok):
            raise XacoordError(Reason.SERVER_UNAVAILABLE, "the session's sql_mode cannot be set")

    def release(self, session: Session) -> None:
        """Take back a session that is in no XA state."""
        if session.dead or session.condemned or self._busy.get(session) is None:
            self.discard(session)
            return
        if not self._hand(session):
            self._idle.append(session)

    def discard(self, session: Session) -> None:
        """Close a session whose state is not known to be clean."""
        session.close()
        slot = self._busy.pop(session, None)
        if slot is not None:
            self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        if not self._hand(slot):
            self._slots.append(slot)

    def retarget(self, control_id: int, token_lock: str, net_buffer_length: int, sql_mode: str) -> None:
        """The agent holds the participant's lock by a new control connection: sessions of before are void."""
        self.control_id = control_id
        self.token_lock = token_lock
        self.net_buffer_length = net_buffer_length
        self.sql_mode = sql_mode
        self.close_idle()

    def trim(self) -> None:
        """Close half of the idle sessions beyond `warm`; called now and then."""
        for _ in range((len(self._idle) - self._warm + 1) // 2):
            self.discard(self._idle.pop(0))

    def close_idle(self) -> None:
        """Close the sessions that nobody uses."""
        for session in self._idle:
            self.discard(session)
        self._idle.clear()


def with_raw_cells(target: Target, timeout_seconds: float) -> Target:
    """The same server for the control connection: cells as bytes, because foreign XIDs are no text."""
    return replace(target, raw=True, timeout_seconds=timeout_seconds)
