"""Command: what `coordctl bench` does once its options are read: set up, measure, report, put away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from coordinator.ctl.errors import CtlError, ExitCode
from coordinator.ctl.output import View, note
from deploy.bench import plot, report
from deploy.bench.bed import Bed, connections_of
from deploy.bench.plan import Plan
from deploy.bench.progress import Progress, duration
from deploy.bench.run import run
from deploy.bench.servers import BenchError, Target
from deploy.engines import Engine, ServerError, available_engines
from deploy.interruption import interruptible, scratch
from deploy.private_cluster import ClusterError

_DIRECTORY_PREFIX = "xacoord-bench-"
_AS_THEY_ARE: Mapping[str, str] = MappingProxyType({})


@contextmanager
def told() -> Iterator[None]:
    """What benchmarks and servers raise, as errors of coordctl; what a process said last goes before it."""
    try:
        yield
    except (BenchError, ServerError, ClusterError) as error:
        first, _, rest = str(error).partition("\n")
        if rest:
            click.echo(rest, err=True)
        raise CtlError("BENCHMARK_FAILED", first, ExitCode.UNAVAILABLE) from error


def measure(
    plan: Plan,
    engine: Engine | None,
    targets: Sequence[Target],
    plot_path: Path | None,
    settings: Mapping[str, str] = _AS_THEY_ARE,
) -> tuple[View, list[str]]:
    """The benchmark of transactions.

    Args:
        engine: of private servers; None: the first that is there.
        targets: given servers instead of private ones.
        plot_path: where `plot.draw` will be asked to draw; whether it can is found out now.
        settings: more options of private servers, without dashes.

    Returns:
        The report, and what is wrong.

    Raises:
        CtlError: it could not be done.
    """
    with told():
        if plot_path is not None:
            plot.check(plot_path)
        if targets and len(targets) < plan.branches:
            raise BenchError(
                f"{plan.branches} branches need as many servers, and {len(targets)} are given: give more "
                "with --server, or fewer --branches"
            )
        chosen = engine or (available_engines()[0] if not targets else None)
        used = targets[: plan.branches]
        where = ", ".join(target.name for target in used) or f"{plan.branches} private {chosen} servers"
        note(f"on {where}; this takes about {duration(plan.estimate_seconds())}")
        document = _measure(plan, chosen, used, settings)
    problems: list[str] = document["problems"]
    return report.view(document), problems


def _measure(
    plan: Plan, engine: Engine | None, targets: Sequence[Target], settings: Mapping[str, str]
) -> dict[str, Any]:
    with (
        interruptible(),
        Progress(plan.estimate_seconds()) as say,
        scratch(_DIRECTORY_PREFIX) as directory,
    ):
        say("starting servers" if engine else "taking the servers")
        if engine:
            bed = Bed.private(engine, directory, plan, settings)
        else:
            bed = Bed.given(targets, directory, plan)
        with bed:
            bed.prepare(connections_of(plan))
            say("starting agents and coordinators")
            for variant in plan.variants:
                bed.start(variant)
            return report.document(plan, bed, run(plan, bed, say))
