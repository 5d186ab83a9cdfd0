"""The pool and a server that stops answering: nobody waits longer than promised, and no slot is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dtp import Reason, XacoordError
from participant_agent.core.effects import Ok, Query, Result
from participant_agent.pool import Pool

TARGET: Any = None
WAIT_SECONDS = 0.05


class Silent:
    """A session; with `answers` it gets its slot's lock, else nothing."""

    def __init__(self, answers: bool) -> None:
        self._answers = answers
        self.lock, self.dead, self.condemned, self.net_buffer_length = "", False, False, 0

    async def query(self, query: Query) -> Result:
        if not self._answers:
            await asyncio.Event().wait()
        return Ok(((b"1", b"7"),), 1)

    def begin_call(self) -> None:
        pass

    def close(self) -> None:
        self.dead = True


def make(size: int, *answers: bool) -> tuple[Pool, list[Silent]]:
    """A pool, and the sessions that it will open."""
    sessions = [Silent(answer) for answer in answers]
    opened = iter(sessions)

    async def connect(_: Any) -> Any:
        return next(opened)

    pool = Pool(TARGET, "p1", 0, size, size, WAIT_SECONDS, connect)
    pool.retarget(7, "token", 1024, "ANSI")
    return pool, sessions


def test_a_server_that_does_not_answer_on_a_new_session_is_given_up() -> None:
    async def main() -> None:
        pool, (silent, _) = make(1, False, True)
        with pytest.raises(XacoordError) as refused:
            await pool.acquire()
        assert refused.value.reason is Reason.SERVER_UNAVAILABLE
        assert silent.dead
        await pool.acquire()  # its slot is free

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_caller_that_leaves_while_its_session_is_made_leaves_the_slot() -> None:
    async def main() -> None:
        pool, (silent, _) = make(1, False, True)
        caller = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert silent.dead
        await pool.acquire()

    asyncio.run(asyncio.wait_for(main(), 20))
