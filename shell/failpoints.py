"""Failpoints: named places in a driver where a test can kill or hold the process.

They are off unless the environment variable XACOORD_FAILPOINTS is set when the process starts;
then `from_environment` returns None, and a driver checks for that once per place.

    XACOORD_FAILPOINTS="before_prepare:3=kill,after_commit=pause"

means: SIGKILL ourselves when `before_prepare` is reached for the third time; hold the first time
`after_commit` is reached. A place where something happens makes the file NAME.hit in
XACOORD_FAILPOINT_DIR first; a held one goes on when NAME.go appears there. The third action, drop,
leaves out what stands at the place, from that time on, as if the network had swallowed it.

    XACOORD_FAILPOINTS="@points"

takes the points from the file `points` in XACOORD_FAILPOINT_DIR, and again whenever that file is
replaced: so a test arms a process that runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.005


@dataclass(slots=True)
class _Point:
    countdown: int
    action: str


def parse(text: str) -> dict[str, _Point]:
    """What a list of points says. Raises ValueError where it is malformed."""
    points = {}
    for item in text.split(",") if text else ():
        place, _, action = item.partition("=")
        name, _, count = place.partition(":")
        if action not in ("kill", "pause", "drop"):
            raise ValueError(f"failpoint {item!r}: the action must be kill, pause or drop")
        points[name.strip()] = _Point(int(count or "1"), action)
    return points


class Failpoints:
    """The failpoints that this process was started with."""

    def __init__(self, points: dict[str, _Point], directory: Path, followed: Path | None = None) -> None:
        self._points = points
        self._directory = directory
        self._followed = followed
        self._version: tuple[int, int] | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Failpoints | None:
        """Parse XACOORD_FAILPOINTS; None where it is unset. Raises ValueError where it is malformed."""
        text = environ.get("XACOORD_FAILPOINTS", "")
        if not text:
            return None
        directory = Path(environ.get("XACOORD_FAILPOINT_DIR", "."))
        if text.startswith("@"):
            return cls({}, directory, directory / text[1:])
        return cls(parse(text), directory)

    def _follow(self) -> None:
        """Take the followed file's points where it is another one than before."""
        if self._followed is None:
            return
        try:
            found = os.stat(self._followed)
            version = (found.st_ino, found.st_mtime_ns)
            if version != self._version:
                self._points, self._version = parse(self._followed.read_text().strip()), version
        except FileNotFoundError:
            self._points, self._version = {}, None

    def _due(self, name: str) -> _Point | None:
        point = self._points.get(name)
        if point is None or point.countdown == 0:
            return None
        point.countdown -= 1
        return point if point.countdown == 0 else None

    def _mark(self, name: str) -> None:
        (self._directory / f"{name}.hit").touch()

    def wants(self, name: str) -> bool:
        """Whether something is to happen at the place `name` (once or still)."""
        self._follow()
        return name in self._points

    def drops(self, name: str) -> bool:
        """Reach the place `name`; whether what stands there is to be left out."""
        self._follow()
        point = self._points.get(name)
        if point is None or point.action != "drop":
            return False
        if self._due(name) is not None:
            self._mark(name)
        return point.countdown == 0

    async def hit(self, name: str) -> None:
        """Reach the place `name`."""
        self._follow()
        point = self._points.get(name)
        if point is None or point.action == "drop" or self._due(name) is None:
            return
        self._mark(name)
        if point.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while not (self._directory / f"{name}.go").exists():
            await asyncio.sleep(_POLL_SECONDS)
