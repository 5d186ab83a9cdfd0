"""Progress: what a benchmark does at the moment, on standard error.

On a terminal one line that changes; elsewhere a line for each part, so that a log stays short.
"""

from __future__ import annotations

import sys
import time

from coordinator.ctl.output import clean, is_terminal, note

_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """`with Progress(seconds) as say:`; `say(part)` begins a part, `say(part, detail)` goes on with it.

    Args:
        seconds: how long it all takes, about.
    """

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._part = ""
        self._terminal = is_terminal(sys.stderr)

    def __call__(self, part: str, detail: str = "") -> None:
        if self._terminal:
            what = f"{part}: {detail}" if detail else part
            sys.stderr.write(f"{_CLEAR_LINE}{clean(what)}{self._left()}")
            sys.stderr.flush()
        elif part != self._part:
            note(part + self._left())
        self._part = part

    def _left(self) -> str:
        seconds = round(self._ends - time.monotonic())
        return f" ({duration(seconds)} left)" if seconds > 0 else ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._part:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()


def duration(seconds: float) -> str:
    """For people: 45 s, 5 min 30 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
