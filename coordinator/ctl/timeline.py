"""A transaction's timeline, drawn: time runs down, the transaction and every branch have a lane.

    12:00:00.000Z      +0ms  transaction      orders         stock
    12:00:00.000Z      +0ms  ● begun          │              │
    12:00:00.002Z      +2ms  │                ● enlisted     │

Where the lanes do not fit into the width, it is a list with a column for the participant.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from coordinator.ctl.documents import duration_text
from coordinator.ctl.output import clean

_TRANSACTION = "transaction"


def draw(
    events: Sequence[dict[str, Any]], participants: Sequence[str], width: int, unicode: bool
) -> list[str]:
    """The lines of the drawing.

    Arguments:
        events: `at`, `participant` and `what`, as `documents.transaction` makes them, in order.
        participants: the lanes beside the transaction's own, in order.
        width: columns that may be used.
        unicode: draw with box characters.
    """
    lanes = ["", *participants]
    lanes += sorted({event["participant"] for event in events if event["participant"]} - set(lanes))
    names = [clean(lane) or _TRANSACTION for lane in lanes]
    cells = [(event["participant"] or "", clean(event["what"])) for event in events]
    widths = [
        max(len(name), *(len(what) + 2 for owner, what in cells if owner == lane), 0) + 2
        for lane, name in zip(lanes, names, strict=True)
    ]
    times = _times(events)
    margin = max((len(time) for time in times), default=0) + 2
    if margin + sum(widths) > width:
        return _listed(times, cells)
    mark, line = ("●", "│") if unicode else ("*", "|")
    rows = [" " * margin + "".join(name.ljust(size) for name, size in zip(names, widths, strict=True))]
    for time, (owner, what) in zip(times, cells, strict=True):
        drawn = (f"{mark} {what}" if lane == owner else line for lane in lanes)
        rows.append(f"{time}  " + "".join(text.ljust(size) for text, size in zip(drawn, widths, strict=True)))
    return [row.rstrip() for row in rows]


def _listed(times: Sequence[str], cells: Sequence[tuple[str, str]]) -> list[str]:
    size = max(len(clean(owner) or _TRANSACTION) for owner, _ in cells)
    return [
        f"{time}  {(clean(owner) or _TRANSACTION).ljust(size)}  {what}"
        for time, (owner, what) in zip(times, cells, strict=True)
    ]


def _times(events: Sequence[dict[str, Any]]) -> list[str]:
    """Wall clock (UTC) and the time since the first event, all of one width."""
    moments = [datetime.fromisoformat(event["at"]) if event["at"] else None for event in events]
    first = next((moment for moment in moments if moment), None)
    shown = []
    for moment in moments:
        if moment is None or first is None:
            shown.append(("-", ""))
            continue
        since = (moment - first).total_seconds()
        sign = "-" if since < 0 else "+"
        shown.append(
            (f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}Z", f"{sign}{duration_text(abs(since))}")
        )
    return [f"{clock:<13}  {since:>8}" for clock, since in shown]
