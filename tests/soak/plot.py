"""The plot: throughput over time, with every fault marked: what was done, and to whom.

A small SVG: a few hundred points an engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tests.soak.facts import Facts

_MOST_POINTS = 450
# What is done, by colour; to whom, by marker.
_COLOURS = {
    "kill": "#c0392b",
    "freeze": "#2980b9",
    "restart": "#27ae60",
    "lock": "#8e44ad",
    "network": "#e67e22",
}
_MARKERS = {
    "coordinator": "s",
    "agent": "^",
    "server": "o",
    "client": "*",
    "several": "D",
    "": "|",
}
_LOCKS = ("lock rows", "read lock", "lock tables")


def group(kind: str) -> str:
    """Which colour a kind of fault has."""
    if kind in _LOCKS:
        return "lock"
    return "network" if kind.endswith("network") else kind.partition(" ")[0]


def victim(kind: str) -> str:
    """Which marker a kind of fault has: who is killed, frozen or restarted. Locks and networks have none."""
    if group(kind) in ("lock", "network"):
        return ""
    whom = kind.partition(" ")[2]
    return whom if whom in _MARKERS else "several"


def throughput(facts: Facts) -> tuple[float, list[float]]:
    """(width of a slot in seconds, committed per second in each slot)."""
    seconds = max(1.0, facts.ended - facts.began)
    width = float(max(1, math.ceil(seconds / _MOST_POINTS)))
    slots = [0.0] * math.ceil(seconds / width)
    for item in facts.told:
        place = int((item.at - facts.began) / width)
        if item.outcome == "COMMITTED" and 0 <= place < len(slots):
            slots[place] += 1 / width
    return width, slots


def draw(runs: Sequence[Facts], path: Path) -> None:
    """Write the SVG: a panel for each engine."""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "soak", "font.size": 9, "path.simplify": True}
    with pyplot.rc_context(settings):
        figure, panels = pyplot.subplots(
            len(runs), 1, figsize=(11, 2.9 * len(runs) + 0.6), sharex=True, squeeze=False
        )
        for axes, facts in zip(panels[:, 0], runs, strict=True):
            _panel(axes, facts)
        panels[-1, 0].set_xlabel("seconds")
        handles: list[Line2D | Patch] = [
            Line2D([], [], color=colour, marker="|", linestyle="none", markersize=9, label=name)
            for name, colour in _COLOURS.items()
        ]
        handles += [
            Line2D([], [], color="#34495e", marker=marker, linestyle="none", markersize=5, label=name)
            for name, marker in _MARKERS.items()
            if name
        ]
        handles.append(Patch(color="#dddddd", label="checkpoint of calm"))
        figure.legend(handles=handles, loc="upper center", ncol=len(handles), frameon=False, columnspacing=1)
        figure.tight_layout(rect=(0, 0, 1, 0.95))
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _panel(axes: Axes, facts: Facts) -> None:
    width, slots = throughput(facts)
    top = max([*slots, 1.0])
    for calm in facts.calms:
        axes.axvspan(calm.began - facts.began, calm.ended - facts.began, color="#dddddd", linewidth=0)
    axes.plot([place * width for place in range(len(slots))], slots, color="#34495e", linewidth=0.9)
    for name, colour in _COLOURS.items():
        faults = [fault for fault in facts.faults if group(fault.kind) == name]
        times = [fault.began - facts.began for fault in faults]
        axes.vlines(times, 0, top, color=colour, linewidth=0.8, alpha=0.45)
        for whom, marker in _MARKERS.items():
            times = [fault.began - facts.began for fault in faults if victim(fault.kind) == whom]
            style = {"markersize": 5.0} if whom else {"markersize": 9.0, "markeredgewidth": 1.6}
            axes.plot(times, [top * 1.04] * len(times), marker, color=colour, **style)
    axes.set_ylim(0, top * 1.1)
    axes.set_xlim(0, max(1.0, facts.ended - facts.began))
    axes.set_title(f"{facts.engine} {facts.version}", loc="left")
    axes.set_ylabel("committed per second")
