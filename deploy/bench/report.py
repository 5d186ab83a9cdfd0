"""Report: one JSON document from which all can be seen and done again, and its tables.

Ratios are of one round: what a side did against what `raw` did in the same round, a few seconds before or
after. The figure is the median of them, with the lowest and the highest beside it: how far they are apart is
how noisy the run was.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordinator.ctl.output import Screen, View
from coordinator.version import VERSION
from deploy.bench.bed import Bed
from deploy.bench.plan import RAW, Case, Plan, Side, counted, one_thing_more
from deploy.bench.run import Measured, Results
from deploy.bench.servers import ROWS
from deploy.bench.work import Told

# By the first word of a process's name.
KINDS = {"server": "servers", "coordinator": "coordinators", "agent": "agents", "load": "clients"}
_COLUMNS = ("SIDE", "TPS", "/ RAW", "P50 MS", "/ RAW", "P99 MS", "SERVERS", "COORD.", "AGENTS", "CLIENTS")
_BUSY_ELSEWHERE = 0.1


def quantile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that a share of all does not exceed; not a number where there is none."""
    if not ascending:
        return math.nan
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, lowest and highest; None where there is no value."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    found = {"median": statistics.median(known), "min": min(known), "max": max(known)}
    return {name: round(value, 4) for name, value in found.items()}


def ratios(values: Sequence[float], base: Sequence[float]) -> dict[str, float] | None:
    """The spread of value / base of the same round."""
    return spread([value / other for value, other in zip(values, base, strict=True) if other])


def rates(slots: Sequence[Measured]) -> list[float]:
    """Transactions a second of each round."""
    return [len(slot.latencies) / slot.seconds for slot in slots]


def cpu_us(slots: Sequence[Measured]) -> dict[str, float]:
    """Microseconds of processor time a transaction, by process."""
    transactions = sum(len(slot.latencies) for slot in slots)
    if not transactions:
        return {}
    total: Counter[str] = Counter()
    for slot in slots:
        total.update(slot.cpu)
    return {name: round(seconds * 1e6 / transactions, 1) for name, seconds in sorted(total.items())}


def by_kind(cpu: dict[str, float]) -> dict[str, float | None]:
    """The same by kind of process; None where nothing is known."""
    found: dict[str, float | None] = dict.fromkeys(KINDS.values())
    for name, value in cpu.items():
        kind = KINDS[name.partition(" ")[0]]
        found[kind] = round((found[kind] or 0.0) + value, 1)
    return found


def document(plan: Plan, bed: Bed, results: Results) -> dict[str, object]:
    """The whole report."""
    first = bed.servers[0]
    return {
        "benchmark": "transactions",
        "xacoord": VERSION,
        "engine": first.engine,
        "version": first.settings()["version"],
        "machine": machine(),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "rows": ROWS,
        "set": bed.settings,
        "servers": [
            {"name": server.name, "private": server.pid is not None, "settings": server.settings()}
            for server in bed.servers
        ],
        "cases": [_case(case, sides) for case, sides in results.slots.items()],
        "problems": results.problems,
    }


def machine() -> dict[str, object]:
    """What it ran on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return {
        "cores": os.cpu_count(),
        "processor": model or platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _case(case: Case, sides: dict[Side, list[Measured]]) -> dict[str, object]:
    foreign = [it for slots in sides.values() if (it := busy_elsewhere(slots)) is not None]
    base = sides.get(Side(RAW))
    return {
        "branches": case.branches,
        "read_only": case.read_only,
        "clients": case.clients,
        "warm_up_seconds": case.warm_up_seconds,
        "busy_elsewhere_cores": max(foreign, default=None),
        "sides": [
            {**_side(side, slots, base), "ratios_to_variants": _to_variants(side, sides)}
            for side, slots in sides.items()
        ],
    }


def busy_elsewhere(slots: Sequence[Measured]) -> float | None:
    """Processors that others kept busy in the worst slot: a median would hide one that was disturbed."""
    known = [slot.foreign for slot in slots if slot.foreign is not None]
    return round(max(known), 2) if known else None


def _to_variants(side: Side, sides: dict[Side, list[Measured]]) -> list[dict[str, object]]:
    """Transactions a second against the same kind of side that has one thing less, in the same rounds."""
    found: list[dict[str, object]] = []
    for other, slots in sides.items():
        if other.kind != side.kind or other.variant is None or side.variant is None:
            continue
        ratio = ratios(rates(sides[side]), rates(slots))
        if ratio is not None and one_thing_more(side.variant, other.variant):
            found.append({"to": other.label, **ratio})
    return found


def _side(side: Side, slots: list[Measured], base: list[Measured] | None) -> dict[str, object]:
    latencies = sorted(value for slot in slots for value in slot.latencies)
    told: Counter[str] = Counter()
    for slot in slots:
        told += slot.told
    cpu = cpu_us(slots)
    variant = side.variant
    found: dict[str, object] = {
        "side": side.label,
        "kind": side.kind,
        "agents": variant.agents if variant else None,
        "witness": variant.witness if variant else None,
        "coordinators": variant.coordinators if variant else None,
        "tps": round(statistics.median(rates(slots)), 1),
        "tps_rounds": [round(rate, 1) for rate in rates(slots)],
        "p50_ms": _milliseconds(quantile(latencies, 0.5)),
        "p99_ms": _milliseconds(quantile(latencies, 0.99)),
        "ratio": ratios(rates(slots), rates(base)) if base else None,
    }
    for name, share in (("p50_ratio", 0.5), ("p99_ratio", 0.99)):
        found[name] = ratios(_quantiles(slots, share), _quantiles(base, share)) if base else None
    return {
        **found,
        "cpu_us": by_kind(cpu),
        "cpu_us_by_process": cpu,
        "busy_elsewhere_cores": busy_elsewhere(slots),
        "measured": len(latencies),
        **{end.value: told[end.value] for end in Told},
        "reasons": list(dict.fromkeys(reason for slot in slots for reason in slot.reasons))[:3],
    }


def _quantiles(slots: Sequence[Measured], share: float) -> list[float]:
    return [quantile(slot.latencies, share) for slot in slots]


def _milliseconds(microseconds: float) -> float | None:
    return round(microseconds / 1000, 3) if math.isfinite(microseconds) else None


# For people


def view(report: dict[str, Any]) -> View:
    """The report, to be printed."""

    def draw(screen: Screen) -> None:
        settings = report["servers"][0]["settings"]
        turns = counted(report["rounds"], "round")
        screen.line(
            f"{report['engine']} {report['version']}, sync_binlog {settings.get('sync_binlog', '?')}, "
            f"innodb_flush_log_at_trx_commit {settings.get('innodb_flush_log_at_trx_commit', '?')}; "
            f"{report['machine']['cores']} cores; {turns} of {report['seconds']:g} s"
        )
        for name, value in report["set"].items():
            screen.line(f"with {name} = {value}")
        for case in report["cases"]:
            _draw_case(screen, case)
        screen.line()
        screen.line(
            "/ RAW: median of the ratios within a round (lowest to highest); A / B: the same of two sides."
        )
        screen.line("SERVERS to CLIENTS: microseconds of processor time a transaction.")
        for problem in report["problems"]:
            screen.line(f"PROBLEM: {problem}", "bold red")

    return View(report, draw)


def _draw_case(screen: Screen, case: dict[str, Any]) -> None:
    screen.line()
    screen.line(Case(case["branches"], case["clients"], case["read_only"]).title, "bold")
    rows = [_row(side) for side in case["sides"]]
    screen.table(_COLUMNS, rows, "no side was measured")
    for side in case["sides"]:
        failed = side[Told.ROLLED_BACK.value] + side[Told.UNKNOWN.value]
        if failed:
            screen.line(f"{side['side']}: {failed} did not commit: {'; '.join(side['reasons'])}", "yellow")
    for side in case["sides"]:
        for ratio in side["ratios_to_variants"]:
            span = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
            screen.line(f"{side['side']} / {ratio['to']}: {span}")
    elsewhere = case["busy_elsewhere_cores"]
    if elsewhere is not None and elsewhere > _BUSY_ELSEWHERE:
        screen.line(
            f"other programs kept up to {elsewhere:g} cores busy: do not trust these figures", "yellow"
        )


def _row(side: dict[str, Any]) -> list[str]:
    ratio = side["ratio"]
    span = f" ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio and side["kind"] != RAW else ""
    return [
        side["side"],
        f"{side['tps']:.0f}",
        _figure(ratio and ratio["median"]) + span,
        _figure(side["p50_ms"]),
        _figure(side["p50_ratio"] and side["p50_ratio"]["median"]),
        _figure(side["p99_ms"]),
        *("" if value is None else f"{value:.0f}" for value in side["cpu_us"].values()),
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
