"""Doctor: preflight for people: every check with what was found and what mends it."""

from __future__ import annotations

import json

import click
import structlog

from participant_agent.agent import Agent
from participant_agent.config import Config
from participant_agent.core.preflight import Check, Severity
from participant_agent.session import ConnectError
from shell.config import EXIT_CONFIG


async def examine(config: Config, output: str) -> int:
    """Check the server, print the findings as "table" or "json"; the exit code."""
    agent = Agent(config, None, structlog.get_logger())
    try:
        await agent.control.connect()
        checks = await agent.check()
    except ConnectError as error:
        where = config.mysql.unix_socket or f"{config.mysql.host}:{config.mysql.port}"
        checks = [
            Check("connect", Severity.REFUSE, f"{where}: ({error.errno}) {error}", _mend(config, error))
        ]
    finally:
        agent.control.close()
    show(checks, output)
    if any(check.severity is Severity.REFUSE for check in checks):
        return EXIT_CONFIG
    return 1 if any(check.severity is Severity.WARN for check in checks) else 0


def _mend(config: Config, error: ConnectError) -> str:
    database, user = config.mysql.database, config.mysql.user
    if error.errno in (1044, 1049):
        grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{database}`.* TO '{user}'@'...'"
        return f"CREATE DATABASE IF NOT EXISTS `{database}`; {grant}; then ask again for the other checks"
    if error.errno == 1045:
        return f"correct [mysql] user and password, or create the account {user!r} on the server"
    return "start the server, or correct [mysql] in the configuration"


def show(checks: list[Check], output: str) -> None:
    """Print the findings."""
    if output == "json":
        rows = [
            {"name": c.name, "severity": c.severity.value, "found": c.found, "fix": c.fix} for c in checks
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{check.severity.value:<7} {check.name:<{width}}  {check.found}")
        if check.severity is not Severity.OK and check.fix:
            click.echo(f"{'':<7} {'':<{width}}  -> {check.fix}")
