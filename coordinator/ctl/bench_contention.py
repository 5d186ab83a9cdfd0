"""`coordctl bench contention`: few rows that many clients want, with branches in both orders."""

from __future__ import annotations

from pathlib import Path

import click

from coordinator.ctl.bench import AGENTS, read_targets, server_options, source
from coordinator.ctl.errors import CtlError, ExitCode
from coordinator.ctl.options import Seconds, output_option
from coordinator.ctl.output import emit


@click.command("contention")
@click.option("--engine", type=click.Choice(["mysql", "mariadb"]), help="Of the private servers.")
@click.option("--rows", type=click.IntRange(1, 9_000), default=100, show_default=True, help="On each server.")
@click.option("--clients", type=click.IntRange(2, 500), default=32, show_default=True)
@click.option(
    "--lock-wait",
    type=click.IntRange(1, 3600),
    default=50,
    show_default=True,
    metavar="SECONDS",
    help="Lock wait time-out of everybody's sessions.",
)
@click.option(
    "--agents", type=click.Choice(list(AGENTS)), default="both", show_default=True, help="Where agents live."
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=2, show_default=True)
@click.option(
    "--seconds", type=Seconds(min=0.1, max=3600), default=15.0, show_default=True, help="Of a side of ours."
)
@click.option(
    "--raw-seconds",
    type=Seconds(min=0.1, max=3600),
    help="Of the raw side; twice its lock wait time-out and 10 s by default.",
)
@click.option("--quick", is_flag=True, help="A first look: one round of 5 s, lock wait time-out 5 s.")
@server_options
@output_option
def contention(
    engine: str | None,
    rows: int,
    clients: int,
    lock_wait: int,
    agents: str,
    rounds: int,
    seconds: float,
    raw_seconds: float | None,
    quick: bool,
    servers: tuple[str, ...],
    user: str,
    password_file: Path | None,
    database: str,
    form: str,
) -> int:
    """Measure few rows that many clients want.

    Each transaction changes a row on two servers, half of the clients in the other order, so that deadlocks
    across servers are common; who is rolled back begins again. raw has nothing but its lock wait time-out
    to end them. How long a deadlock lasts with a coordinator is measured beside.
    """
    plans = source("deploy.bench.contention.plan")
    targets = read_targets(servers, user, password_file, database)
    if targets and engine:
        raise click.UsageError("--engine is for private servers; a given --server is asked what it is")
    if targets and len(targets) < 2:
        raise click.UsageError("contention is measured with two servers: give --server twice")
    if quick:
        lock_wait, rounds, seconds, raw_seconds = 5, 1, 5.0, None
    plan = plans.ContentionPlan(
        rows, clients, lock_wait, AGENTS[agents], rounds, seconds, raw_seconds or 2 * lock_wait + 10.0
    )
    view, problems = source("deploy.bench.contention.command").measure(plan, engine, targets[:2])
    emit(view, form)
    if problems:
        raise CtlError("BOOKS_DO_NOT_AGREE", "; ".join(problems), ExitCode.INTERNAL)
    return ExitCode.OK
