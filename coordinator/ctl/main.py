"""The entry point: global options, the list of commands, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import cast

import click

from coordinator.ctl import options
from coordinator.ctl.errors import EXIT_CODES, CtlError, ExitCode, from_exception
from coordinator.ctl.output import clean, report

DEFAULT_ADDRESS = "127.0.0.1:7420"

# Name -> (module, attribute, short help). Modules are imported when their command runs.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "status": ("status", "status", "Is the coordinator well, and does anything need attention?"),
    "list": ("transactions", "list_transactions", "List transactions, newest first."),
    "show": ("transactions", "show", "Show one transaction with its timeline."),
    "watch": ("transactions", "watch", "Follow one transaction until it has ended."),
    "xid": ("xid", "xid", "Explain a transaction id; needs no coordinator."),
    "recover": ("recovery", "recover", "Finish the prepared branches as the log says."),
    "resolve": ("decisions", "resolve", "Roll an undecided transaction back, or hasten a decided one."),
    "forget": ("decisions", "forget", "Drop a heuristic outcome that has been dealt with."),
    "participants": ("participants", "participants", "List the participants and what their scans found."),
    "log": ("log", "log", "Show the state of the log of a running coordinator."),
    "wal": ("records", "wal", "Inspect and repair a log directory."),
    "config": ("config", "config", "Check a configuration."),
    "bench": ("bench", "bench", "Measure transactions a second against MySQL itself."),
}


class _ReaderGone(Exception):
    """Nobody reads standard output any more. Click would take a BrokenPipeError for success."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        return cast(click.Command, getattr(importlib.import_module(f"coordinator.ctl.{module}"), attribute))

    def invoke(self, ctx: click.Context) -> object:
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise _ReaderGone from error
        return result

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), text) for code, text in EXIT_CODES.items()])


def _show_version(context: click.Context, _parameter: click.Parameter, given: bool) -> None:
    if given:
        from coordinator.version import VERSION

        click.echo(f"coordctl {VERSION}")
        context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--address",
    envvar="XACOORD_ADDRESS",
    default=DEFAULT_ADDRESS,
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    callback=options.address,
    help="Where the coordinator listens.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=options.Seconds(min=0, min_open=True, max=86400),
    metavar="SECONDS",
    help="For one call; 10 by default, 60 for recover, none for watch.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
@click.pass_context
def cli(context: click.Context, address: str, timeout_seconds: float | None) -> None:
    """Operate xacoord, the distributed-transaction coordinator.

    Read commands take -o json. docs/operations.md is the runbook, docs/coordctl.md the reference.
    """
    context.obj = options.Settings(address, timeout_seconds)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are reported on standard error."""
    try:
        result = cli.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="coordctl",
            standalone_mode=False,
        )
        sys.stdout.flush()
        return int(result) if isinstance(result, int) else int(ExitCode.OK)
    except (_ReaderGone, BrokenPipeError):
        # What is still buffered must not fail again when the interpreter flushes it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        click.echo(err=True)
        return ExitCode.INTERRUPTED
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later: its message is the help
            click.echo(error.format_message(), err=True)
            return ExitCode.USAGE
        path = error.ctx.command_path if error.ctx else "coordctl"
        report(
            CtlError("USAGE", f"{error.format_message().rstrip('.')}; see `{path} --help`", ExitCode.USAGE)
        )
        return error.exit_code
    except click.ClickException as error:
        report(CtlError("ERROR", error.format_message(), error.exit_code))
        return error.exit_code
    except CtlError as error:
        report(error)
        return error.code
    except Exception as error:
        known = from_exception(error)
        if known is None:
            known = CtlError("INTERNAL", f"{type(error).__name__}: {clean(str(error))}", ExitCode.INTERNAL)
            if os.environ.get("XACOORD_TRACEBACK"):
                raise
        report(known)
        return known.code


def main() -> None:
    """The console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
