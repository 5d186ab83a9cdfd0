"""Poller: tells sessions that something has arrived on their sockets.

Once for each arrival, not for as long as it is there (edge-triggered), so that a session may leave half an
answer where it is until the rest has come. And all sessions of an agent wake the event loop through one
descriptor: what has arrived for several of them is one wake-up.
"""

from __future__ import annotations

import asyncio
import select
import weakref
from collections.abc import Callable

HUNG_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_AT_ONCE = 256


class Poller:
    """The sockets of one event loop. `of` gives it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._arrived)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Poller:
        """The loop's poller, made where there is none."""
        poller = _pollers.get(loop)
        if poller is None:
            poller = _pollers[loop] = cls(loop)
        return poller

    def add(self, fd: int, callback: Callable[[int], None]) -> None:
        """From now on call `callback` with the event mask whenever something arrives; at once where
        something is there."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, _EVENTS)

    def remove(self, fd: int) -> None:
        """No more; to be called before `fd` is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _arrived(self) -> None:
        for fd, events in self._epoll.poll(0, _AT_ONCE):
            callback = self._callbacks.get(fd)  # one of those before may have removed it
            if callback is None:
                continue
            try:
                callback(events)
            except Exception as error:  # the others would never be told again
                found = {"message": "a session failed to read", "exception": error}
                asyncio.get_running_loop().call_exception_handler(found)


_pollers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Poller] = weakref.WeakKeyDictionary()
