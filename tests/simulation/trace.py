"""Trace: what happened, when and to whom, for people, and as one number that tells runs apart.

Off as a rule: a run that nobody looks at must be fast. A transaction can be followed by searching for its
gtrid: each line names it in plain text, however the statement or the record writes it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from dtp import Gtrid
from tests.simulation.loop import SimulatedLoop

_WIDTH = 160
_GTRID = re.compile(r"k1[0-9a-z]{18}")
# In hexadecimal digits: k1 and 18 characters more, and a bqual behind them where XA RECOVER shows both.
_HEX = re.compile(r"(?:X'|0[xX])(6[bB]31[0-9a-fA-F]{36}(?:[0-9a-fA-F]{8})?)'?")
_BQUAL = re.compile(r"X'((?:3[0-9]|6[1-9a-f]|7[0-9a]){4})'")
_RECORD = re.compile(r"Gtrid\(coordinator_id='(\w+)', epoch=(\d+), sequence=(\d+)\)")


def plain(text: str) -> str:
    """On one line, with every gtrid in plain text."""
    text = " ".join(text.split())
    for form in (_HEX, _BQUAL):
        text = form.sub(lambda found: repr(bytes.fromhex(found[1]).decode("latin-1")), text)
    return _RECORD.sub(lambda found: str(Gtrid(found[1], int(found[2]), int(found[3]))), text)


def statement(sql: str) -> str:
    """A statement for the trace: on one line, and cut where it is long and names no transaction."""
    text = plain(sql)
    return text if len(text) <= _WIDTH or _GTRID.search(text) else text[: _WIDTH - 3] + "..."


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
        text = plain(f"{what} {' '.join(map(str, details))}")
        line = f"{self._loop.time():10.4f} {who:<18} {text}"
        self._hash.update(line.encode() + b"\n")
        if self._keep:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        """Equal for equal runs."""
        return self._hash.hexdigest()
