"""Contention's report: the document, and its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.ctl.output import Screen, View
from coordinator.version import VERSION
from deploy.bench import report
from deploy.bench.bed import Bed
from deploy.bench.contention.hot import ACROSS, ENDED_WITH_THE_SLOT
from deploy.bench.contention.plan import BRANCHES, ContentionPlan
from deploy.bench.contention.run import Found
from deploy.bench.plan import RAW, Side, counted
from deploy.bench.run import Measured
from deploy.bench.work import Told

_NOT_WHY = {told.value for told in Told} | {"in_time", "stuck", ENDED_WITH_THE_SLOT}


def document(plan: ContentionPlan, bed: Bed, found: Found) -> dict[str, Any]:
    """The whole report."""
    first = bed.servers[0]
    busy = [slot.foreign for slots in found.slots.values() for slot in slots if slot.foreign is not None]
    return {
        "benchmark": "contention",
        "xacoord": VERSION,
        "engine": first.engine,
        "version": first.settings()["version"],
        "machine": report.machine(),
        "rounds": plan.rounds,
        "branches": BRANCHES,
        "rows": plan.rows,
        "clients": plan.clients,
        "lock_wait_seconds": plan.lock_wait_seconds,
        "busy_elsewhere_cores": round(max(busy), 2) if busy else None,
        "servers": [
            {"name": server.name, "private": server.pid is not None, "settings": server.settings()}
            for server in bed.servers
        ],
        "sides": [
            side_document(plan, side, slots, found.slots[Side(RAW)], found.deadlocks[side])
            for side, slots in found.slots.items()
        ],
        "problems": found.problems,
    }


def rates(slots: Sequence[Measured]) -> list[float]:
    """Transactions a second of each round that committed in time."""
    return [slot.told["in_time"] / slot.seconds for slot in slots]


def side_document(
    plan: ContentionPlan,
    side: Side,
    slots: Sequence[Measured],
    base: Sequence[Measured],
    deadlocks: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """One side of the report."""
    ends: Counter[str] = Counter()
    for slot in slots:
        ends += slot.told
    latencies = sorted(latency for slot in slots for latency in slot.latencies)
    speed = report.spread(rates(slots))
    return {
        "side": side.label,
        "kind": side.kind,
        "agents": side.variant.agents if side.variant else None,
        "seconds": plan.seconds_of(side),
        "tps": speed["median"] if speed else None,
        "tps_rounds": [round(rate, 2) for rate in rates(slots)],
        "ratio": report.ratios(rates(slots), rates(base)),
        "p50_ms": _milliseconds(latencies, 0.5),
        "p99_ms": _milliseconds(latencies, 0.99),
        "committed": ends[Told.COMMITTED.value],
        "in_time": ends["in_time"],
        "aborted": ends[Told.ROLLED_BACK.value] - ends[ENDED_WITH_THE_SLOT],
        "aborted_by": {why: count for why, count in sorted(ends.items()) if why not in _NOT_WHY},
        "stuck": ends["stuck"],
        "unknown": ends[Told.UNKNOWN.value],
        "deadlocks": _deadlocks(deadlocks) if side.variant else None,
    }


def _deadlocks(lasted: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Those that were made on purpose, whatever ended them."""
    every = sorted(duration for durations in lasted.values() for duration in durations)
    return {
        "measured": len(every),
        "not_found": sum(len(durations) for end, durations in lasted.items() if end != ACROSS),
        "p50_ms": _milliseconds(every, 0.5),
        "max_ms": _milliseconds(every, 1.0),
        "ended_by": {
            end: {"count": len(durations), "max_ms": _milliseconds(sorted(durations), 1.0)}
            for end, durations in sorted(lasted.items())
        },
    }


def _milliseconds(ascending: Sequence[int], share: float) -> float | None:
    return round(report.quantile(ascending, share) / 1000, 2) if ascending else None


_COLUMNS = (
    "SIDE",
    "TPS",
    "/ RAW",
    "P50 MS",
    "P99 MS",
    "ABORTED",
    "STUCK",
    "DEADLOCK P50",
    "MAX",
    "MISSED",
)
_BUSY_ELSEWHERE = 0.1
_LEGEND = (
    "P50, P99: of a transaction with all its attempts; one that had not ended with the slot counts with",
    "the time that it had been under way. STUCK: under way for more than a second at the end.",
    "DEADLOCK: from the moment at which both had asked for the other's row until one was rolled back, in",
    "milliseconds. MISSED: not found; what ended it was something else, such as the lock wait time-out.",
)


def view(found: dict[str, Any]) -> View:
    """The report, to be printed."""

    def draw(screen: Screen) -> None:
        screen.line(
            f"{found['engine']} {found['version']}; {found['machine']['cores']} cores; lock wait time-out "
            f"{found['lock_wait_seconds']} s; {counted(found['rounds'], 'round')}"
        )
        screen.line(
            f"{found['clients']} clients want {found['rows']} rows on each of {found['branches']} servers, "
            "half of them in the other order"
        )
        screen.table(_COLUMNS, [_row(side) for side in found["sides"]], "nothing was measured")
        for side in found["sides"]:
            if side["aborted_by"]:
                why = ", ".join(f"{count} {name}" for name, count in side["aborted_by"].items())
                screen.line(f"{side['side']}: rolled back and begun again: {why}")
            _draw_not_found(screen, side)
        screen.line()
        for line in _LEGEND:
            screen.line(line)
        elsewhere = found["busy_elsewhere_cores"]
        if elsewhere is not None and elsewhere > _BUSY_ELSEWHERE:
            screen.line(f"other programs kept {elsewhere:g} cores busy: do not trust these figures", "yellow")
        for problem in found["problems"]:
            screen.line(f"PROBLEM: {problem}", "bold red")

    return View(found, draw)


def _draw_not_found(screen: Screen, side: dict[str, Any]) -> None:
    deadlocks = side["deadlocks"]
    if deadlocks and deadlocks["not_found"]:
        ends = [f"{it['count']} by {end}" for end, it in deadlocks["ended_by"].items() if end != ACROSS]
        screen.line(f"{side['side']}: deadlocks that were not found: {', '.join(ends)}", "yellow")


def _row(side: dict[str, Any]) -> list[str]:
    ratio, deadlocks = side["ratio"], side["deadlocks"]
    own = side["kind"] == RAW or not ratio
    return [
        side["side"],
        _figure(side["tps"]),
        "" if own else f"{ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f})",
        _figure(side["p50_ms"]),
        _figure(side["p99_ms"]),
        str(side["aborted"]),
        str(side["stuck"]),
        _figure(deadlocks and deadlocks["p50_ms"]),
        _figure(deadlocks and deadlocks["max_ms"]),
        str(deadlocks["not_found"]) if deadlocks else "",
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
