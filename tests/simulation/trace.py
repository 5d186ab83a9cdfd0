"""Trace: what happened, when and to whom, for people, and as one number that tells runs apart.

Off as a rule: a run that nobody looks at must be fast.
"""

from __future__ import annotations

import hashlib
from typing import Any

from tests.simulation.loop import SimulatedLoop


class Trace:
    """Call it: `trace(who, what, *details)`.

    Attributes:
        on: whether anything is noted at all.
        lines: what was noted, where `keep` is set.
    """

    def __init__(self, loop: SimulatedLoop, on: bool, keep: bool) -> None:
        self._loop = loop
        self._keep = keep
        self._hash = hashlib.sha256()
        self.on = on
        self.lines: list[str] = []

    def __call__(self, who: str, what: str, *details: Any) -> None:
        if not self.on:
            return
        line = f"{self._loop.time():10.4f} {who:<18} {what} {' '.join(map(str, details))}".rstrip()
        self._hash.update(line.encode() + b"\n")
        if self._keep:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        """Equal for equal runs."""
        return self._hash.hexdigest()
