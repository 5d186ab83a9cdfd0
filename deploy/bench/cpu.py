"""CPU: how much processor time a process with its threads has used, and the machine as a whole.

From /proc/PID/stat, which the kernel keeps exactly and shows in ticks of 10 ms; a slot of a second or more,
summed over the rounds, is good to about one percent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def used_seconds(pid: int) -> float:
    """Of a process and its threads; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def busy_seconds() -> float:
    """Of all processors together, by anybody; 0 where /proc/stat counts processors that are not ours."""
    return busy(Path("/proc/stat").read_text(), os.cpu_count() or 0)


def busy(text: str, processors: int) -> float:
    """The same from the text of /proc/stat. Waiting for disks is no work; what the host takes from us is."""
    lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
    if len(lines) - 1 != processors:
        return 0.0
    user, nice, system, _, _, *others = (int(field) for field in lines[0][1:9])
    return (user + nice + system + sum(others)) / _TICKS


class Meter:
    """What named processes, and everybody else, use between `start` and `stop`.

    Args:
        pids: whose use is told.
        others: processes of ours that have no work; they are not somebody else.
    """

    def __init__(self, pids: Mapping[str, int], others: Iterable[int] = ()) -> None:
        self._pids = dict(pids)
        self._others = {os.getpid(), *others} - set(pids.values())
        self._before: dict[str, float] = {}
        self._rest = 0.0

    def start(self) -> None:
        """From now on."""
        self._before = self._used()
        self._rest = self._others_used()

    def stop(self) -> tuple[dict[str, float], float]:
        """(seconds of each named process, seconds of everybody else)."""
        used = {name: seconds - self._before[name] for name, seconds in self._used().items()}
        return used, max(0.0, self._others_used() - self._rest - sum(used.values()))

    def _used(self) -> dict[str, float]:
        return {name: used_seconds(pid) for name, pid in self._pids.items()}

    def _others_used(self) -> float:
        return busy_seconds() - sum(used_seconds(pid) for pid in self._others)
