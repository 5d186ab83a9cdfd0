"""The daemon `participant-agent`: command line, server, signals.

Exit codes: 0 after SIGTERM or SIGINT; 1 `doctor` found warnings; 69 the server cannot be reached, or another
agent speaks for this participant; 78 the configuration cannot be used or the server is refused by preflight.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import click

from participant_agent.config import ENVIRONMENT_PREFIX, Config
from shell import config as shell_config

EXIT_UNAVAILABLE = 69


class _DefaultServe(click.Group):
    """`participant-agent --config F` means `participant-agent serve --config F`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["serve", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_DefaultServe)
def main() -> None:
    """The agent that speaks for one MySQL or MariaDB server in distributed transactions."""


_config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=None,
    help="TOML file; environment variables go before it.",
)


def _load(path: Path | None) -> Config:
    try:
        config = shell_config.load(Config, path, prefix=ENVIRONMENT_PREFIX, environ=os.environ)
        config.mysql.secret()
        return config
    except shell_config.ConfigError as error:
        click.echo(f"configuration: {error}", err=True)
    except OSError as error:
        click.echo(f"configuration: cannot read mysql.password_file: {error.strerror}", err=True)
    except ValueError:
        click.echo("configuration: mysql.password_file is not UTF-8 text", err=True)
    sys.exit(shell_config.EXIT_CONFIG)


@main.command()
@_config_option
def serve(path: Path | None) -> None:
    """Serve until SIGTERM."""
    import uvloop

    config = _load(path)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_serve(config)))


@main.command()
@_config_option
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="How to print.")
def doctor(path: Path | None, output: str) -> None:
    """Check whether the server is fit, and say what to do. Exit 0: all well, 1: warnings, 78: refused."""
    from participant_agent import doctor as checks

    config = _load(path)
    code = asyncio.run(checks.examine(config, output))
    sys.exit(code)


async def _serve(config: Config) -> int:
    from participant_agent.host import Host, NotStarted
    from shell import logs
    from shell.garbage import look_less

    log = logs.setup("participant-agent", config.agent.log_level).bind(participant=config.agent.participant)
    host = Host(config, log)
    try:
        await host.start()
    except NotStarted as error:
        log.error(str(error), **error.details)
        return shell_config.EXIT_CONFIG if error.for_good else EXIT_UNAVAILABLE
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    look_less()
    await stopping.wait()
    log.info("stopping")
    await host.stop()
    return 0


if __name__ == "__main__":
    main()
