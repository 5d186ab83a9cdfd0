"""`coordctl bench recovery`: how fast what is in doubt is resolved after a crash of the coordinator."""

from __future__ import annotations

from pathlib import Path

import click

from coordinator.ctl.bench import is_given, numbers, read_targets, server_options, source
from coordinator.ctl.options import output_option
from coordinator.ctl.output import emit

_MOST = 100_000
_USUAL = "1000,10000"


@click.command("recovery")
@click.option("--engine", type=click.Choice(["mysql", "mariadb"]), help="Of the private servers.")
@click.option(
    "--branches",
    callback=numbers(_MOST),
    default=_USUAL,
    show_default=True,
    metavar="N,...",
    help="In doubt when the coordinator starts, on both servers together.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A first look: one round with 400 branches.")
@server_options
@output_option
@click.pass_context
def recovery(
    context: click.Context,
    /,
    engine: str | None,
    branches: tuple[int, ...],
    rounds: int,
    quick: bool,
    servers: tuple[str, ...],
    user: str,
    password_file: Path | None,
    database: str,
    form: str,
) -> None:
    """Measure recovery against XA COMMIT by hand.

    Decided transactions are left prepared on two servers, N branches in all. raw commits them, on as many
    connections as an agent has for it; then as many again are left to the coordinator, from its start until
    it has nothing open any more. Both sides take turns on the same servers.
    """
    plans = source("deploy.bench.recovery.plan")
    targets = read_targets(servers, user, password_file, database)
    if targets and engine:
        raise click.UsageError("--engine is for private servers; a given --server is asked what it is")
    if targets and len(targets) < 2:
        raise click.UsageError("recovery is measured with two servers: give --server twice")
    if any(number % 2 for number in branches):
        raise click.UsageError("--branches: even numbers, because each transaction has two")
    if quick:
        branches = branches if is_given(context, "branches") else (400,)
        rounds = rounds if is_given(context, "rounds") else 1
    plan = plans.RecoveryPlan(branches, rounds)
    emit(source("deploy.bench.recovery.command").measure(plan, engine, targets[:2]), form)
