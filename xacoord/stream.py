"""Stream: one Session stream to one server: the calls of many threads in few messages.

    call() ─► outbox ─► writer: one message of all that has gathered ─► server
    call() ◄─ released ◄─ reader: each answer to the thread that waits for it ◄─ server

Two threads serve a stream. The writer is gRPC's own, which iterates `_messages`; while one message is being
written the next one gathers. The reader sleeps in gRPC and hands out answers. A waiting thread sleeps on a
lock of its own, the cheapest thing to wait on that Python has.

A call's life (from 1 to 2 under the stream's lock; who takes it out of what is under way decides on 3):

1. it is in the outbox: nobody else knows of it. Where the stream ends now it was never sent, and the caller
   sends it on another way.
2. it is under way: it has an id, and the writer has it. Where the stream breaks now nobody can say what
   became of it: a fault that is not definite, like a unary call's UNAVAILABLE. Where the server ends the
   stream in order (status OK) it was not carried out, for a server answers first all that it has taken.
3. it is answered; or its deadline has passed or an exception has come (KeyboardInterrupt), and then the
   server is told that nobody waits any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import grpc

from dtp.framing import entry, packed
from xacoord.faults import Fault

# Well below the smallest limit that a server may have for its messages (64 KiB).
MESSAGE_BYTES = 32 << 10
LARGEST_REQUEST_BYTES = 24 << 10
_ENTRY_BYTES = 24  # what a call adds to its request, at most
_MOST_CANCELLED = 1_000  # in one message
IDLE_SECONDS = 20.0

End = Literal["never opened", "not served", "in order", "broken"]


class NotSent(Exception):
    """The call was certainly not carried out: send it on another way."""


class _Waiting:
    """A thread that waits for its answer."""

    __slots__ = ("answer", "fault", "field", "identifier", "payload", "released")

    def __init__(self, field: int, payload: bytes) -> None:
        self.field = field
        self.payload = payload
        self.identifier = 0  # 0: in the outbox
        self.answer: Any = None
        self.fault: Fault | None = None
        self.released = threading.Lock()
        self.released.acquire()


class Stream:
    """One life of a stream; it begins to connect at once. Thread-safe.

    Args:
        connect: starts the gRPC call, given the iterator over its messages.
        ended: told once, by the reader's thread, how it ended; no call is taken any more by then.
        idle_seconds: after so long without any call it is closed.
    """

    def __init__(
        self,
        connect: Callable[[Iterator[bytes]], Iterable[Any]],
        ended: Callable[[End], None],
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._connect = connect
        self._tell_end = ended
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._outbox: list[_Waiting] = []
        self._under_way: dict[int, _Waiting] = {}
        self._cancelled: list[int] = []
        self._last_id = 0
        self._work = threading.Lock()  # locked: the writer has nothing to do
        self._work.acquire()
        self._opened = False  # the server has said so
        self._closing = False  # no call is taken any more
        threading.Thread(target=self._read, name="xacoord-stream", daemon=True).start()

    @property
    def usable(self) -> bool:
        """The server has opened it, and it has not ended."""
        return self._opened and not self._closing

    def call(self, field: int, payload: bytes, timeout_seconds: float) -> Any:
        """Make a call and wait for its Answer message; returns a Fault where there is none.

        Args:
            field: the request's field in Call.
            payload: the request, serialised, of at most LARGEST_REQUEST_BYTES.
            timeout_seconds: after so long the call is cancelled.

        Raises:
            NotSent: the stream is not usable, or has ended in a way that tells that nothing was done.
        """
        waiting = _Waiting(field, payload)
        try:
            with self._lock:
                if not self.usable:
                    raise NotSent
                self._outbox.append(waiting)
                self._wake_writer()
            answered = waiting.released.acquire(timeout=min(timeout_seconds, threading.TIMEOUT_MAX))
        except BaseException:
            self._give_up(waiting)
            raise
        if not answered:
            if self._give_up(waiting):
                return Fault("DEADLINE_EXCEEDED", "", "DEADLINE_EXCEEDED: Deadline Exceeded", False, True)
            waiting.released.acquire()  # the reader has it in its hands
        if waiting.answer is not None:
            return waiting.answer
        if waiting.fault is not None:
            return waiting.fault
        raise NotSent

    def _give_up(self, waiting: _Waiting) -> bool:
        """Nobody waits for the answer any more; False where it has just come."""
        with self._lock:
            if waiting in self._outbox:
                self._outbox.remove(waiting)
                return True
            if self._under_way.pop(waiting.identifier, None) is None:
                return False
            self._cancelled.append(waiting.identifier)
            self._wake_writer()
            return True

    # the writer

    def _wake_writer(self) -> None:
        if self._work.locked():
            self._work.release()

    def _messages(self) -> Iterator[bytes]:
        """What to send, until the stream ends; gRPC's thread sends one before it asks for the next one."""
        while True:
            woken = self._work.acquire(timeout=self._idle_seconds)
            with self._lock:
                if not woken and not (self._outbox or self._cancelled or self._under_way):
                    self._closing = True
                message = self._gather()
                if not message and self._closing:
                    return
            if message:
                yield message

    def _gather(self) -> bytes:
        """The next message: all that waits, up to MESSAGE_BYTES."""
        entries: list[bytes] = []
        size = 0
        for taken, waiting in enumerate(self._outbox):
            size += len(waiting.payload) + _ENTRY_BYTES
            if size > MESSAGE_BYTES:
                del self._outbox[:taken]
                self._wake_writer()
                break
            self._last_id += 1
            waiting.identifier = self._last_id
            self._under_way[waiting.identifier] = waiting
            entries.append(entry(waiting.field, waiting.identifier, waiting.payload))
        else:
            self._outbox.clear()
        if self._cancelled:
            entries.append(packed(2, self._cancelled[:_MOST_CANCELLED]))
            del self._cancelled[:_MOST_CANCELLED]
            if self._cancelled:
                self._wake_writer()
        return b"".join(entries)

    # the reader

    def _read(self) -> None:
        end: End = "never opened"
        why = ""
        try:
            for response in self._connect(self._messages()):
                self._opened = True
                end = "broken"
                for answer in response.answers:
                    waiting = self._under_way.pop(answer.id, None)
                    if waiting is not None:
                        waiting.answer = answer
                        waiting.released.release()
            end = "in order" if self._opened else "never opened"
        except grpc.RpcError as error:
            code, why = error.code(), f"{error.code().name}: {error.details()}"
            if not self._opened and code is grpc.StatusCode.UNIMPLEMENTED:
                end = "not served"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"  # the channel was closed meanwhile
        finally:
            self._end(end, why)

    def _end(self, end: End, why: str) -> None:
        with self._lock:
            self._closing = True
            self._wake_writer()
            never_sent, self._outbox = self._outbox, []
            lost = list(self._under_way.values())
            self._under_way.clear()
        for waiting in lost:
            if end == "broken":
                waiting.fault = Fault("UNAVAILABLE", "", f"UNAVAILABLE: the stream broke: {why}", False, True)
            waiting.released.release()
        for waiting in never_sent:
            waiting.released.release()
        self._tell_end(end)
