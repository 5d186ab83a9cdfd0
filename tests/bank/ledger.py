"""The client's ledger: one JSON object a line, appended with one write, so that kill -9 loses nothing told.

Lines, in this order for a transfer (`at` is the wall clock in seconds):

    {"event": "asking", "id": 7, "at": ..., "from": "a", "to": "b", "amount": 5, "intent": "commit", ...}
    {"event": "told", "id": 7, "at": ..., "outcome": "COMMITTED", "gtrid": "k1...", "seconds": 0.01, ...}

`asking` is written before anything that could commit is sent. A transfer without a `told` line is one
whose client has died: its outcome is UNKNOWN to everybody.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


class Ledger:
    """An append-only file; thread-safe, because each line is one write to a file opened for appending."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def close(self) -> None:
        """No more lines."""
        os.close(self._file)

    def write(self, event: str, **values: object) -> None:
        """Append one line."""
        line = json.dumps({"event": event, "at": round(time.time(), 6), **values}).encode() + b"\n"
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"the ledger took {written} of {len(line)} bytes")
