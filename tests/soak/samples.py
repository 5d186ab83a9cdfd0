"""Samples: what the processes need, how fast the machine is, and the agents' fences, read all the time.

One thread reads /proc every two seconds. Another for each server makes a one-row transaction there once a
second, past the system, and reads the fence's row, whose epoch may never fall (I6). A server that is frozen
or locked holds its thread up, which harms nobody.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import MySQLdb

from deploy.private_servers import PrivateServer
from tests.soak.facts import Facts, Load, Probe, Sample
from tests.soak.machine import Machine
from tests.soak.parts import Part
from tests.soak.system import System

_SAMPLE_SECONDS = 2.0
_PROBE_SECONDS = 1.0
_READ_SECONDS = 30
_PAGE = os.sysconf("SC_PAGE_SIZE")


def sample(part: Part) -> Sample | None:
    """What a process needs now; None if it is gone."""
    started_at, pid = part.started_at, part.pid
    process = Path(f"/proc/{pid}")
    try:
        rss = int((process / "statm").read_text().split()[1]) * _PAGE
        descriptors = len(os.listdir(process / "fd"))
        threads = len(os.listdir(process / "task"))
    except OSError:
        return None
    now = time.time()
    return Sample(now, part.name, pid, now - started_at, rss, descriptors, threads)


def log_size(directory: Path) -> tuple[int, int]:
    """(bytes, files) of the log."""
    sizes = []
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):  # retired while we looked
            sizes.append(path.stat().st_size)
    return sum(sizes), len(sizes)


class Sampler:
    """Threads that write into the facts until `close`."""

    def __init__(self, system: System, facts: Facts) -> None:
        self._system = system
        self._facts = facts
        self._stopping = threading.Event()
        self._epochs: dict[str, int] = {}
        self._threads = [threading.Thread(target=self._sample, daemon=True)]
        for name, site in system.cluster.sites.items():
            site.server.sql("CREATE DATABASE soak")
            site.server.sql("CREATE TABLE soak.probe (id INT PRIMARY KEY, at DOUBLE NOT NULL)")
            self._threads.append(threading.Thread(target=self._probe, args=(name, site.server), daemon=True))
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads. A server that does not answer any more must have been killed."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _sample(self) -> None:
        watched = [part for part in self._system.daemons if part.role != "server"]
        machine = Machine(os.getppid())  # the soak's main process, which has started one for each engine
        while not self._stopping.wait(_SAMPLE_SECONDS):
            self._facts.loads.append(Load(time.time(), machine.foreign()))
            for part in watched:
                found = sample(part) if part.running else None
                if found is not None:
                    self._facts.samples.append(found)
            self._facts.log_bytes.append(log_size(self._system.directory / "log")[0])

    def _probe(self, name: str, server: PrivateServer) -> None:
        connection = None
        while not self._stopping.wait(_PROBE_SECONDS):
            try:
                if connection is None:
                    connection = server.root_connect(read_timeout=_READ_SECONDS)
                self._probe_once(name, connection)
            except MySQLdb.Error:
                connection = None  # the server is away, or the agent has not made its table yet
        if connection is not None:
            connection.close()

    def _probe_once(self, name: str, connection: Any) -> None:
        cursor = connection.cursor()
        began = time.monotonic()
        cursor.execute("REPLACE INTO soak.probe VALUES (1, %s)", (began,))
        self._facts.probes.append(Probe(time.time(), time.monotonic() - began))
        cursor.execute("SELECT epoch FROM xacoord.coordinator")
        for (epoch,) in cursor.fetchall():
            before = self._epochs.get(name, 0)
            self._epochs[name] = epoch
            self._facts.checks.passed("I6")
            if epoch < before:
                self._facts.checks.violated("I6", f"the fence of {name} fell from {before} to {epoch}")
