"""Driver: performs the steps of a flow, blocking: calls, over a line to each address, and pauses.

Lines are made on first use and kept, one an address, for all threads. gRPC's threads do not
survive a fork, so a driver refuses to work in another process than its own instead of hanging.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, TypeVar

import grpc

from xacoord.faults import Fault
from xacoord.flows import Call, Flow, Pause, Reply
from xacoord.line import Line

T = TypeVar("T")

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    # Results of a Run are as large as its branches' results together; the servers bound them.
    ("grpc.max_receive_message_length", -1),
    # A coordinator that starts again should be found within the grace time, not after gRPC's 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Repeating is the flows' decision.
    ("grpc.enable_retries", 0),
    # Coordinator and agents are neighbours; a web proxy in the environment is not meant for them.
    ("grpc.enable_http_proxy", 0),
]


class Driver:
    """Performs flows against one coordinator and its agents. Thread-safe.

    Args:
        address: "host:port" of the coordinator.
        credentials: for TLS, or None for plain text.
    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        self._credentials = credentials
        self._lock = threading.Lock()
        self._lines: dict[str, Line] = {}
        self._pid = os.getpid()
        self._closed = False

    def now(self) -> float:
        """Seconds of the clock that replies carry."""
        return time.monotonic()

    def drive(self, flow: Flow[T]) -> T:
        """Perform `flow`'s steps; returns its result or raises its error."""
        try:
            step = next(flow)
            while True:
                step = flow.send(self._perform(step))
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    def close(self) -> None:
        """Close all lines; calls under way fail. Repeating it is harmless."""
        with self._lock:
            self._closed = True
            lines = list(self._lines.values())
            self._lines.clear()
        if os.getpid() == self._pid:
            for line in lines:
                line.close()

    def _perform(self, step: Call | Pause) -> Reply:
        started = self.now()
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return Reply(started, self.now())
        line = self._line(step.address)
        answer = line.call(step.method, step.request, max(0.001, step.timeout_seconds))
        if isinstance(answer, Fault):
            return Reply(started, self.now(), fault=answer)
        return Reply(started, self.now(), answer)

    def _line(self, agent: str) -> Line:
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this TransactionManager was connected before a fork: connect in the child process "
                "(gunicorn: post_fork, Celery: worker_process_init)"
            )
        line = self._lines.get(agent)
        if line is not None:
            return line
        with self._lock:
            if self._closed:
                raise RuntimeError("this TransactionManager is closed")
            if agent not in self._lines:
                self._lines[agent] = Line(self._open(agent or self.address), to_agent=bool(agent))
            return self._lines[agent]

    def _open(self, address: str) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.secure_channel(address, self._credentials, options=CHANNEL_OPTIONS)
