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
from typing import Any

import click

from participant_agent.config import ENVIRONMENT_PREFIX, UNIX, Config
from shell import config as shell_config

EXIT_UNAVAILABLE = 69
_MAX_MESSAGE_BYTES = 4 << 20
_SERVICE = "participant_agent.v1.ParticipantAgent"


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
    if not config.agent.listen.startswith(UNIX):
        # Before the participant is taken over: who cannot be reached must not end another agent's sessions.
        try:
            shell_config.check_bindable(config.agent.listen, "agent.listen")
        except shell_config.ConfigError as error:
            click.echo(f"configuration: {error}", err=True)
            sys.exit(shell_config.EXIT_CONFIG)
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
    from grpc_health.v1 import health_pb2

    from dtp import XacoordError
    from participant_agent.agent import Agent, PreflightError
    from participant_agent.control import StartError
    from participant_agent.session import ConnectError
    from shell import logs
    from shell.failpoints import Failpoints

    log = logs.setup("participant-agent", config.agent.log_level).bind(participant=config.agent.participant)
    agent = Agent(config, Failpoints.from_environment(), log)
    try:
        checks = await agent.start()
    except PreflightError as error:
        log.error("refused by preflight", detail=str(error))
        return shell_config.EXIT_CONFIG
    except StartError as error:
        log.error("cannot start", detail=str(error))
        return EXIT_UNAVAILABLE
    except XacoordError as error:
        log.error("cannot use the server", reason=error.reason.value, detail=error.message)
        return EXIT_UNAVAILABLE
    except ConnectError as error:
        where = config.mysql.unix_socket or f"{config.mysql.host}:{config.mysql.port}"
        log.error("cannot use the server", address=where, errno=error.errno, detail=str(error))
        return EXIT_UNAVAILABLE
    for check in checks:
        if check.severity.value != "ok":
            log.warning("preflight", check=check.name, found=check.found, fix=check.fix)
    server, health, service = _server(agent)
    try:
        port = server.add_insecure_port(config.agent.listen)
    except RuntimeError:
        log.error("cannot listen", address=config.agent.listen)
        await agent.stop()
        return shell_config.EXIT_CONFIG
    await server.start()
    log.info("listening", address=config.agent.listen, port=port)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    watching = loop.create_task(_watch(agent, health))
    await stopping.wait()
    log.info("stopping")
    watching.cancel()
    for name in ("", _SERVICE):
        await health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
    await agent.stop()
    service.streams.end()
    await server.stop(1.0)
    return 0


def _server(agent: Any) -> tuple[Any, Any, Any]:
    import grpc.aio
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    from participant_agent.service import MAX_ANSWER_BYTES, Service
    from participant_agent.v1 import participant_agent_pb2_grpc as rpc
    from shell.status import ErrorInterceptor

    server = grpc.aio.server(
        interceptors=[ErrorInterceptor()],
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
            ("grpc.so_reuseport", 0),
            # Coordinators ping an idle stream every 5 s; by default gRPC takes that for abuse and hangs up.
            ("grpc.http2.min_ping_interval_without_data_ms", 2_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # A coordinator or client that hangs, or whose machine has died, does not close its connection: it
            # is gone after both times. Without the last of the three gRPC would wait for a minute.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.ping_timeout_ms", 10_000),
        ],
    )
    service = Service(agent)
    rpc.add_ParticipantAgentServicer_to_server(service, server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = (_SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return server, servicer, service


async def _watch(agent: Any, health: Any) -> None:
    """Health follows whether the agent holds the participant's lock."""
    from grpc_health.v1 import health_pb2

    shown = None
    while True:
        serving = agent.serving.is_set() and agent.control.held
        if serving != shown:
            states = health_pb2.HealthCheckResponse
            for name in ("", _SERVICE):
                await health.set(name, states.SERVING if serving else states.NOT_SERVING)
            shown = serving
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    main()
