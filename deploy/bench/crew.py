"""Crew: the load processes of one side in one case: started, told to work, asked for what they did."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from deploy.bench.load import Done, Job, Slot
from deploy.bench.servers import BenchError
from deploy.processes import spawn

_ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 90.0
_CLOSE_SECONDS = 30.0
_HURRY_SECONDS = 1.0


def shares(clients: int, processes: int) -> list[int]:
    """How many clients each process has: as equal as can be, none of them without."""
    processes = min(processes, clients)
    return [clients // processes + (number < clients % processes) for number in range(processes)]


class Crew:
    """`with Crew(job, processes, directory) as crew:`; `job.clients` are those of all processes together.

    Args:
        module: what the processes run.
        patience_seconds: within which a transaction ends that waits for a lock or a lost answer, whatever
            happens.
    """

    def __init__(
        self,
        job: Job,
        processes: int,
        directory: Path,
        module: str = "deploy.bench.load",
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._patience_seconds = patience_seconds
        self._children: list[subprocess.Popen[bytes]] = []
        self._output = directory / "load.log"
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        first = 0
        for clients in shares(job.clients, processes):
            command = [sys.executable, "-m", module]
            child = spawn(command, self._output, environ, talk=True)
            self._children.append(child)
            self._tell(child, replace(job, clients=clients, first=first).line())
            first += clients

    @property
    def pids(self) -> list[int]:
        """Of its processes."""
        return [child.pid for child in self._children]

    def wait_until_ready(self) -> None:
        """Until every client is connected."""
        for child in self._children:
            self._hear(child, self._patience_seconds)

    def begin(self, slot: Slot) -> None:
        """Let all work in a slot that is to come."""
        for child in self._children:
            self._tell(child, json.dumps(asdict(slot)))

    def finish(self) -> Done:
        """What all did together, when the slot is over."""
        total = Done()
        for child in self._children:
            answer = self._hear(child, self._patience_seconds)
            total.add(Done(**{**answer, "told": Counter(answer["told"])}))
        return total

    def close(self, patience_seconds: float = _CLOSE_SECONDS) -> None:
        """Let the processes disconnect and end; those that do not are killed."""
        for child in self._children:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        for child in self._children:
            try:
                child.wait(patience_seconds)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            assert child.stdout is not None
            child.stdout.close()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(_CLOSE_SECONDS if kind is None else _HURRY_SECONDS)

    def _tell(self, child: subprocess.Popen[bytes], line: str) -> None:
        assert child.stdin is not None
        try:
            child.stdin.write(f"{line}\n".encode())
            child.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _hear(self, child: subprocess.Popen[bytes], patience_seconds: float) -> dict[str, Any]:
        assert child.stdout is not None
        if not select.select([child.stdout], [], [], patience_seconds)[0]:
            raise BenchError(f"clients gave no answer within {patience_seconds:.0f} s")
        line = child.stdout.readline()
        if not line:
            raise self._ended()
        document: dict[str, Any] = json.loads(line)
        if document.get("failed"):
            raise BenchError(f"a client has failed: {document['failed']}")
        return document

    def _ended(self) -> BenchError:
        lines = self._output.read_text(errors="replace").splitlines()[-5:]
        return BenchError("a load process has ended: " + (" | ".join(lines) or "it said nothing"))
