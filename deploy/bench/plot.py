"""Plot: throughput and latency against clients, one row of panels for each kind of transaction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploy.bench.plan import Case
from deploy.bench.servers import BenchError

ENDINGS = (".svg", ".png")
_MARKERS = "osD^vP*X"


def check(path: Path) -> None:
    """Before a run: whether a plot can be written there. Raises UsageError, BenchError (no matplotlib)."""
    if path.suffix.lower() not in ENDINGS:
        raise click.UsageError(f"{path}: a plot ends with {' or '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise click.UsageError(f"{path}: there is no directory {path.parent}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise BenchError("--plot needs matplotlib: deploy/setup.sh --dev installs it") from error


def draw(report: dict[str, Any], path: Path) -> None:
    """Write it, in the format of the path's ending."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    groups: dict[tuple[int, bool], list[dict[str, Any]]] = {}
    for case in sorted(report["cases"], key=lambda case: case["clients"]):
        groups.setdefault((case["branches"], case["read_only"]), []).append(case)
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9}
    with pyplot.rc_context(settings):
        figure, panels = pyplot.subplots(len(groups), 2, figsize=(11, 3.2 * len(groups) + 0.8), squeeze=False)
        for row, cases in zip(panels, groups.values(), strict=True):
            _row(row, cases)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncol=4, frameon=False)
        figure.suptitle(f"{report['engine']} {report['version']}", x=0.01, ha="left")
        figure.tight_layout(rect=(0, 0, 1, 0.94 if len(groups) > 1 else 0.88))
        metadata: Any = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, metadata=metadata)
        pyplot.close(figure)


def _row(panels: Any, cases: list[dict[str, Any]]) -> None:
    throughput, latency = panels
    clients = [case["clients"] for case in cases]
    for number, name in enumerate(side["side"] for side in cases[0]["sides"]):
        sides = [case["sides"][number] for case in cases]
        style = {"color": f"C{number}", "marker": _MARKERS[number % len(_MARKERS)], "markersize": 4}
        throughput.plot(clients, [side["tps"] for side in sides], label=name, **style)
        for key, line in (("p50_ms", "-"), ("p99_ms", ":")):
            latency.plot(clients, [side[key] or float("nan") for side in sides], linestyle=line, **style)
    title = Case(cases[0]["branches"], 1, cases[0]["read_only"]).title.partition(",")[0]
    throughput.set_title(f"{title}: transactions a second", loc="left")
    latency.set_title(f"{title}: latency in ms, p50 solid, p99 dotted", loc="left")
    throughput.set_ylim(bottom=0)
    latency.set_yscale("log")
    for axes in (throughput, latency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(clients, [str(number) for number in clients])
        axes.minorticks_off()
        axes.set_xlabel("clients")
        axes.grid(alpha=0.3)
