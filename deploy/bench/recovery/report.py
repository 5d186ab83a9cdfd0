"""Recovery's report: the document, and its table."""

from __future__ import annotations

from typing import Any

from coordinator.ctl.output import Screen, View
from coordinator.version import VERSION
from deploy.bench import report
from deploy.bench.bed import Bed
from deploy.bench.plan import counted
from deploy.bench.recovery.plan import RecoveryPlan
from deploy.bench.recovery.run import Times
from participant_agent.agent import FINISHERS


def document(plan: RecoveryPlan, bed: Bed, found: dict[int, Times]) -> dict[str, Any]:
    """The whole report."""
    first = bed.servers[0]
    return {
        "benchmark": "recovery",
        "xacoord": VERSION,
        "engine": first.engine,
        "version": first.settings()["version"],
        "machine": report.machine(),
        "rounds": plan.rounds,
        "servers": [
            {"name": server.name, "private": server.pid is not None, "settings": server.settings()}
            for server in bed.servers
        ],
        "connections": FINISHERS,
        "cases": [_case(branches, times) for branches, times in found.items()],
    }


def _case(branches: int, times: Times) -> dict[str, Any]:
    return {
        "branches": branches,
        "raw_seconds": report.spread(times.raw),
        "seconds": report.spread(times.ours),
        "first_commit_seconds": report.spread(times.first),
        "raw_branches_per_second": report.spread([branches / seconds for seconds in times.raw]),
        "branches_per_second": report.spread([branches / seconds for seconds in times.ours]),
        "ratio": report.ratios(times.ours, times.raw),
    }


_COLUMNS = ("BRANCHES", "RAW S", "BRANCHES/S", "COORDINATOR S", "FIRST COMMIT", "BRANCHES/S", "/ RAW")


def view(found: dict[str, Any]) -> View:
    """The report, to be printed."""

    def draw(screen: Screen) -> None:
        screen.line(
            f"{found['engine']} {found['version']}; {found['machine']['cores']} cores; "
            f"{counted(found['rounds'], 'round')}; {found['connections']} connections to each of "
            f"{len(found['servers'])} servers"
        )
        rows = []
        for case in found["cases"]:
            ratio = case["ratio"]
            rows.append(
                [
                    f"{case['branches']:,}",
                    f"{case['raw_seconds']['median']:.2f}",
                    f"{case['raw_branches_per_second']['median']:,.0f}",
                    f"{case['seconds']['median']:.2f}",
                    f"{case['first_commit_seconds']['median']:.2f}",
                    f"{case['branches_per_second']['median']:,.0f}",
                    f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
                ]
            )
        screen.table(_COLUMNS, rows, "nothing was measured")
        screen.line()
        screen.line("RAW: XA COMMIT of each branch, the newest first, as the coordinator does.")
        screen.line("Every branch was committed and every row is there, in every round.")

    return View(found, draw)
