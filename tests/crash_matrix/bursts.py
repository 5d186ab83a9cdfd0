"""Bursts: a bank client that stays up between runs and does so many transfers when told.

Starting a client for each run would cost more than the run. It gets new connections for each burst, so
that a run begins with nothing of the one before.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bank.bank import Bank, client_environ

# Short times: a transaction whose client or coordinator has died is soon over.
OPTIONS = {"threads": 4, "timeout": 2.0, "grace": 1.0}
LOCAL_SHARE = 0.15
_READY_SECONDS = 20.0


@dataclass(frozen=True)
class Burst:
    """So many transfers, and after a pause as many again where that was not enough.

    Attributes:
        local: some stay within one participant and commit in one phase, without a decision.
    """

    transfers: int
    local: bool = True
    pause_seconds: float = 0.0


class BurstError(Exception):
    """The client did not do what it should."""


class Bursts:
    """One client process."""

    def __init__(self, bank: Bank, seed: int) -> None:
        self.ledger = bank.new_ledger()
        self.output = self.ledger.with_suffix(".log")
        command = bank.command(self.ledger, seed=seed, bursts=True, **OPTIONS)
        with self.output.open("ab") as file:
            # It ends when its standard input does: with us, however we end.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd="/",
                env=client_environ({}),
            )
        self._pending = b""
        self._expect(b"ready", _READY_SECONDS)

    def begin(self, burst: Burst) -> None:
        """Tell it to do so many transfers."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{burst.transfers} {LOCAL_SHARE if burst.local else 0}\n".encode())
        self._child.stdin.flush()

    def done(self) -> bool:
        """Whether the burst is over; to be asked until it is."""
        return self._read(0.0) == b"done"

    def wait(self, seconds: float = 30.0) -> None:
        """Until the burst is over."""
        self._expect(b"done", seconds)

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def _expect(self, word: bytes, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._read(max(0.0, deadline - time.monotonic())) != word:
            if time.monotonic() > deadline or self._child.poll() is not None:
                raise BurstError(f"no {word.decode()!r} from the client\n{tail(self.output)}")

    def _read(self, seconds: float) -> bytes:
        """The next line, or nothing within the time."""
        assert self._child.stdout is not None
        if b"\n" not in self._pending and select.select([self._child.stdout], [], [], seconds)[0]:
            self._pending += os.read(self._child.stdout.fileno(), 4096)
        line, found, rest = self._pending.partition(b"\n")
        if not found:
            return b""
        self._pending = rest
        return line


def tail(path: Path, lines: int = 12) -> str:
    """The end of a file."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
