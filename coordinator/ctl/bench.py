"""`coordctl bench`: benchmarks that compare with MySQL itself, in one run on the same servers.

What they need (private servers, a MySQL driver) is not in the package: it is in `deploy/bench/` of a source
checkout, and imported when a benchmark runs.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from coordinator.ctl.errors import CtlError, ExitCode
from coordinator.ctl.options import Seconds, output_option
from coordinator.ctl.output import View, emit

Command = TypeVar("Command", bound=Callable[..., Any])

# Name -> (module, attribute, short help), as in `main`: other benchmarks.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "contention": ("bench_contention", "contention", "Measure few rows that many clients want."),
    "recovery": ("bench_recovery", "recovery", "Measure recovery against XA COMMIT by hand."),
}

KINDS = ("raw", "raw-fast", "one-shot", "interactive")
AGENTS = {"processes": ("processes",), "in-process": ("in-process",), "both": ("processes", "in-process")}
WITNESS = {"on": (True,), "off": (False,), "both": (True, False)}


def numbers(most: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...]]:
    """An option's callback: whole numbers from 1 to `most` with commas between them, each once."""

    def read(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
        parts = [part.strip() for part in value.split(",")] if value is not None else []
        if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= most for part in parts):
            raise click.BadParameter(
                f"{value!r} is no list; give whole numbers from 1 to {most} with commas between them"
            )
        return tuple(dict.fromkeys(int(part) for part in parts))

    return read


def sides(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """An option's callback: names of sides with commas between them."""
    parts = tuple(part.strip() for part in value.split(","))
    for part in parts:
        if part not in KINDS:
            raise click.BadParameter(f"{part!r} is no side; there are {', '.join(KINDS)}")
    return parts


def database(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """An option's callback: a name that needs no quotes."""
    if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", value):
        raise click.BadParameter(f"{value!r}: give 1 to 64 characters of [A-Za-z0-9_]")
    return value


def server_settings(_: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, of a server."""
    found = {}
    for value in values:
        name, equals, setting = value.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise click.BadParameter(f"{value!r}: give NAME=VALUE, a server's option without its dashes")
        found[name] = setting
    return found


class Benchmarks(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        return cast(click.Command, getattr(importlib.import_module(f"coordinator.ctl.{module}"), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if COMMANDS:
            with formatter.section("Other benchmarks"):
                formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items()])


def source(module: str) -> Any:
    """A module of the source checkout.

    Raises:
        CtlError: this is an installed package without it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not module.startswith(error.name or "\0"):
            raise
        raise CtlError(
            "SOURCE_NEEDED",
            "benchmarks need the private servers of a source checkout: run deploy/setup.sh there, and its "
            ".venv/bin/coordctl",
            ExitCode.CONFIGURATION,
        ) from None


def server_options(command: Command) -> Command:
    """The options that name servers which are there already, for any benchmark."""
    options = (
        click.option(
            "--server",
            "servers",
            multiple=True,
            metavar="NAME=WHERE",
            help="A server that is there: host:port, or a socket's path. Repeatable.",
        ),
        click.option("--user", default="root", show_default=True, metavar="NAME", help="On such servers."),
        click.option(
            "--password-file", type=click.Path(path_type=Path), metavar="FILE", help="The user's password."
        ),
        click.option(
            "--database",
            callback=database,
            default="xacoord_bench",
            show_default=True,
            metavar="NAME",
            help="Made on such servers, and dropped.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=Benchmarks, invoke_without_command=True)
@click.option("--engine", type=click.Choice(["mysql", "mariadb"]), help="Of the private servers.")
@click.option(
    "--clients",
    callback=numbers(800),
    metavar="N,...",
    help="That work at the same time; 1,8,32,128 by default.",
)
@click.option(
    "--branches", callback=numbers(16), metavar="N,...", help="Servers in each transaction; 2 by default."
)
@click.option("--read-only", is_flag=True, help="Transactions that read.")
@click.option("--sides", callback=sides, default=",".join(KINDS), metavar="SIDE,...", show_default=True)
@click.option(
    "--agents", type=click.Choice(list(AGENTS)), default="both", show_default=True, help="Where agents live."
)
@click.option(
    "--witness", type=click.Choice(list(WITNESS)), default="on", show_default=True, help="Witness rows."
)
@click.option(
    "--coordinators",
    callback=numbers(16),
    default="1",
    metavar="N,...",
    show_default=True,
    help="On the same agents.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=4, show_default=True)
@click.option(
    "--seconds", type=Seconds(min=0.1, max=3600), default=1.0, show_default=True, help="Of a side in a round."
)
@click.option("--quick", is_flag=True, help="A first look: 2 rounds of 0.5 s with 1 and 32 clients.")
@click.option(
    "--set",
    "settings",
    callback=server_settings,
    multiple=True,
    metavar="NAME=VALUE",
    help="Of the private servers, besides ours: sync_binlog=0. Repeatable.",
)
@server_options
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), metavar="FILE", help="An SVG or PNG.")
@output_option
@click.pass_context
def bench(context: click.Context, /, form: str, plot_path: Path | None, **given: Any) -> int:
    """Measure transactions a second against MySQL itself.

    Sides take turns on the same servers: raw, XA by hand, one verb a round trip; raw-fast, the same with
    branches in parallel and the fewest packets; one-shot, Run; interactive, Begin, Execute on each branch,
    Commit.

    Without --clients, --branches and --read-only: 2 branches with 1, 8, 32 and 128 clients; and with 32
    clients 1 branch, 4 branches, and reading. Private servers and logs are below TMPDIR, which must be on a
    disk.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return 0
    command = source("deploy.bench.command")
    targets = read_targets(given["servers"], given["user"], given["password_file"], given["database"])
    if targets and given["engine"]:
        raise click.UsageError("--engine is for private servers; a given --server is asked what it is")
    if targets and given["settings"]:
        raise click.UsageError("--set is for private servers; a given --server stays as it is")
    view, problems = command.measure(
        _plan(context, given), given["engine"], targets, plot_path, given["settings"]
    )
    return finish(view, problems, form, plot_path)


def finish(view: View, problems: Sequence[str], form: str, plot_path: Path | None) -> int:
    """Show a report, and draw its plot.

    Raises:
        CtlError: there are problems.
    """
    emit(view, form)
    if plot_path is not None:
        source("deploy.bench.plot").draw(view.document, plot_path)
    if problems:
        raise CtlError("BOOKS_DO_NOT_AGREE", "; ".join(problems), ExitCode.INTERNAL)
    return ExitCode.OK


def is_given(context: click.Context, name: str) -> bool:
    """The option was given: what --quick says of it does not count."""
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _plan(context: click.Context, given: dict[str, Any]) -> Any:
    plan = source("deploy.bench.plan")
    clients, branches, read_only = given["clients"], given["branches"], given["read_only"]
    quick = given["quick"]
    if quick and not clients:
        clients = (1, 32)
    if clients or branches or read_only:
        cases = plan.all_cases(branches or (2,), clients or (1, 8, 32, 128), read_only)
    else:
        cases = plan.standard_cases()
    variants = plan.all_variants(AGENTS[given["agents"]], WITNESS[given["witness"]], given["coordinators"])
    sides = plan.all_sides(given["sides"], variants)
    rounds, seconds = given["rounds"], given["seconds"]
    if quick:
        rounds = rounds if is_given(context, "rounds") else 2
        seconds = seconds if is_given(context, "seconds") else 0.5
    return plan.Plan(cases, sides, rounds, seconds)


def _refuse_options(context: click.Context) -> None:
    """Options before the name of another benchmark are not its own."""
    for name in context.params:
        if is_given(context, name):
            raise click.UsageError(
                f"give the options of {context.invoked_subcommand} after its name: "
                f"`coordctl bench {context.invoked_subcommand} --{name.replace('_', '-')} ...`"
            )


def read_targets(servers: Sequence[str], user: str, password_file: Path | None, name: str) -> list[Any]:
    """The servers of `server_options`; [] for private ones. Raises click.UsageError."""
    if not servers:
        return []
    target = source("deploy.bench.servers").Target
    try:
        password = password_file.read_text().rstrip("\r\n") if password_file else ""
    except ValueError:
        raise click.UsageError(f"--password-file {password_file} is no text") from None
    found: dict[str, Any] = {}
    for text in servers:
        match = re.fullmatch(r"([a-z0-9]{1,20})=(?:(/.+)|([^/]+):([0-9]{1,5}))", text)
        if match is None:
            raise click.UsageError(
                f"--server {text!r}: give NAME=host:port or NAME=/path/of/the.sock; a name has 1 to 20 "
                "characters of [a-z0-9]"
            )
        if match[1] in found:
            raise click.UsageError(f"--server {match[1]} is given twice")
        where = {"socket": match[2]} if match[2] else {"host": match[3].strip("[]"), "port": int(match[4])}
        found[match[1]] = target(match[1], user, password, database=name, **where)
    return list(found.values())
