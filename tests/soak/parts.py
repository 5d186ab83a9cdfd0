"""Parts: the processes of a soak, with the same few verbs whatever they are.

A part knows whether it is down because a fault wanted it, so that one that has ended by itself is noticed.
"""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import MySQLdb

from deploy.private_cluster import Process
from deploy.private_servers import PrivateServer
from tests.bank.bank import ClientProcess

EXIT_UNAVAILABLE = 69  # an agent whose server is away when it starts; its manager starts it again


class Part(ABC):
    """One process. `role`: coordinator, agent, server or client."""

    def __init__(self, role: str, name: str) -> None:
        self.role = role
        self.name = name
        self.started_at = 0.0
        self.is_wanted = False  # started, and no fault has ended it

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether the process exists (a frozen one does)."""

    @property
    @abstractmethod
    def pid(self) -> int: ...

    @abstractmethod
    def _launch(self) -> None: ...

    @abstractmethod
    def _kill(self) -> None: ...

    @abstractmethod
    def _stop(self) -> int: ...

    @abstractmethod
    def exit_code(self) -> int:
        """Of a process that has ended."""

    @abstractmethod
    def logs(self) -> list[Path]:
        """Where its output is."""

    def answers(self) -> bool:
        """Whether what we do not have to answer for has been done: a database server recovers by itself."""
        return True

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        self._launch()
        self.started_at = time.time()
        self.is_wanted = True

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self.is_wanted = False
        self._kill()

    def stop(self) -> int:
        """SIGTERM, and reap; its exit code."""
        self.is_wanted = False
        return self._stop()

    def freeze(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)


class Daemon(Part):
    """Coordinator or agent."""

    def __init__(self, role: str, process: Process) -> None:
        super().__init__(role, process.name)
        self._process = process

    @property
    def running(self) -> bool:
        return self._process.running

    @property
    def pid(self) -> int:
        return self._process.pid

    def _launch(self) -> None:
        self._process.start()

    def _kill(self) -> None:
        self._process.kill()

    def _stop(self) -> int:
        return self._process.stop()

    def exit_code(self) -> int:
        return self._process.wait(1.0)

    def logs(self) -> list[Path]:
        return [self._process.output]


class Server(Part):
    """A database server."""

    def __init__(self, name: str, server: PrivateServer) -> None:
        super().__init__("server", f"server {name}")
        self._server = server

    @property
    def running(self) -> bool:
        return self._server.running

    @property
    def pid(self) -> int:
        return self._server.pid

    def _launch(self) -> None:
        self._server.start(wait=False)

    def _kill(self) -> None:
        self._server.kill()

    def _stop(self) -> int:
        self._server.stop()
        return 0

    def exit_code(self) -> int:
        return 0 if self._server.running else 1

    def answers(self) -> bool:
        try:
            self._server.root_connect().close()
        except MySQLdb.OperationalError:
            return False
        return True

    def logs(self) -> list[Path]:
        return [self._server.error_log]


class Customer(Part):
    """A client; each life has a ledger of its own."""

    def __init__(self, number: int, launch: Callable[[], ClientProcess]) -> None:
        super().__init__("client", f"client {number}")
        self._make = launch
        self._process: ClientProcess | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.child.pid

    def _launch(self) -> None:
        self._process = self._make()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _stop(self) -> int:
        """It finishes the transfers that it has begun."""
        if self._process is None or not self._process.running:
            return 0
        self._process.child.terminate()
        return self._process.wait(60.0)

    def exit_code(self) -> int:
        assert self._process is not None
        return self._process.wait(1.0)

    def logs(self) -> list[Path]:
        return [] if self._process is None else [self._process.output]
