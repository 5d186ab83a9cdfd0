"""The machine: how much of it others take. A slow system and a busy machine look alike from within.

Foreign is the processor time that neither the soak nor anything it has started has used. On a machine that is
the soak's own it is about 0, and then nothing is excused by it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """`foreign()` tells how many cores others have kept busy since the last call."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._at = time.monotonic()
        self._before = self._used()

    def foreign(self) -> float:
        """In cores; 0 where /proc/stat counts processors that are not ours."""
        now, used = time.monotonic(), self._used()
        seconds, self._at = now - self._at, now
        grown, self._before = used - self._before, used
        return max(0.0, grown / max(1e-9, seconds))

    def _used(self) -> float:
        """Seconds of all processors less those of the family, ever."""
        total, processors = busy(Path("/proc/stat").read_text())
        return total - family_seconds(self._root) if processors == os.cpu_count() else 0.0


def busy(text: str) -> tuple[float, int]:
    """(seconds that were not idle, processors) of /proc/stat."""
    lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
    user, nice, system, _, _, *others = (int(field) for field in lines[0][1:9])
    return (user + nice + system + sum(others)) / _TICKS, len(lines) - 1


def family_seconds(root: int) -> float:
    """What a process, its descendants and those of them that were reaped have used."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        used[pid] = sum(int(field) for field in fields[11:15])
    total = 0
    for pid, ticks in used.items():
        ancestor = pid
        while ancestor in parents and ancestor != root:
            ancestor = parents[ancestor]
        total += ticks if ancestor == root else 0
    return total / _TICKS
