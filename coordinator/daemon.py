"""The coordinator daemon: gRPC and HTTP in front of a runtime, and an orderly end.

Start: open the log, begin an epoch, connect to the agents, serve. gRPC answers from the start; Begin
and Run are refused with NOT_READY, and health says NOT_SERVING, until the first fence and reconcile
have been tried with every participant.

End: SIGTERM or SIGINT drains (nothing new begins, what is decided goes out) and closes the log. A log
that fails ends the process at once with exit code 74.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import click
import grpc
import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection
from prometheus_client import CONTENT_TYPE_LATEST

from coordinator.admin import AdminService
from coordinator.codec import UnknownRecord
from coordinator.config import Config, load_config
from coordinator.core.replay import LogContradiction
from coordinator.http import HttpServer
from coordinator.journal import JournalError
from coordinator.runtime import Runtime
from coordinator.service import MAX_ANSWER_BYTES, CoordinatorService
from coordinator.v1 import admin_pb2, admin_pb2_grpc, coordinator_pb2, coordinator_pb2_grpc
from coordinator.version import VERSION
from shell import logs
from shell.config import ConfigError, check_address, check_bindable
from shell.garbage import look_less
from shell.status import ErrorInterceptor
from wal import LogCorrupt, LogError, LogFailed, LogFull, LogLocked

EXIT_IO = 74  # EX_IOERR
EXIT_LOCKED = 75  # EX_TEMPFAIL
EXIT_CONFIG = 78  # EX_CONFIG
_READY_POLL_SECONDS = 0.05
_GRACE_SECONDS = 1.0


class Daemon:
    """One running coordinator."""

    def __init__(self, config: Config, runtime: Runtime) -> None:
        self._config = config
        self._runtime = runtime
        section = config.coordinator
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[
                ("grpc.max_receive_message_length", section.max_message_bytes),
                ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.max_metadata_size", 16 << 10),
                # Above these, gRPC itself drops calls without an ErrorInfo: unknown outcomes for clients.
                ("grpc.server.max_pending_requests", 20_000),
                ("grpc.server.max_pending_requests_hard_limit", 40_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                # A client whose machine has died does not end its Session stream.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
        )
        self._health = health.HealthServicer()
        self._service = service = CoordinatorService(runtime)
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(service, self._server)
        admin_pb2_grpc.add_AdminServicer_to_server(AdminService(runtime, service), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services = (
            coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].full_name,
            admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,
            "",
        )
        reflection.enable_server_reflection(
            (
                *self._services[:2],
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                reflection.SERVICE_NAME,
            ),
            self._server,
        )

    async def run(self) -> int:
        """Serve until a signal or a failed log; the exit code."""
        section = self._config.coordinator
        log = logs.setup("coordinator", section.log_level)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        port = self._server.add_insecure_port(section.listen)
        await self._server.start()
        http = self._http()
        core = self._runtime.driver.core
        log.info(
            "serving",
            address=section.listen,
            port=port,
            coordinator_id=section.id,
            epoch=core.epoch,
            open=len(core.open),
            version=VERSION,
        )
        readiness = loop.create_task(self._follow_readiness())
        failed = self._runtime.driver.failed
        failed.add_done_callback(lambda future: stop.set())
        await stop.wait()
        readiness.cancel()
        await self._end_if_the_log_failed()
        log.info("draining")
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._runtime.drain(section.drain_seconds)
        await self._end_if_the_log_failed()
        self._service.streams.end()
        await self._server.stop(_GRACE_SECONDS)
        await self._end_if_the_log_failed()
        if http is not None:
            await loop.run_in_executor(None, http.close)
        await self._runtime.close()
        log.info("stopped", open=len(core.open))
        return 0

    async def _end_if_the_log_failed(self) -> None:
        """At once, without closing anything: nothing more may be acknowledged or written."""
        if self._runtime.driver.failed.done():
            await asyncio.sleep(_READY_POLL_SECONDS)  # waiting callers hear UNKNOWN
            sys.stderr.flush()
            os._exit(EXIT_IO)

    def _http(self) -> HttpServer | None:
        listen = self._config.coordinator.http_listen
        if not listen:
            return None
        host, port = check_address(listen, "coordinator.http_listen")
        return HttpServer(host, port, self._respond)

    async def _respond(self, path: str) -> tuple[int, str, bytes]:
        runtime = self._runtime
        match path.partition("?")[0]:
            case "/metrics":
                status = runtime.journal.status()
                body = runtime.metrics.expose(runtime.driver.core, status, runtime.driver.clock)
                return 200, CONTENT_TYPE_LATEST, body
            case "/healthz":
                return 200, "text/plain", b"ok\n"
            case "/readyz":
                reason = runtime.not_ready
                return (
                    (503, "text/plain", f"{reason}\n".encode()) if reason else (200, "text/plain", b"ready\n")
                )
        return 404, "text/plain", b"there are /metrics, /healthz and /readyz\n"

    async def _follow_readiness(self) -> None:
        shown = None
        while True:
            ready = not self._runtime.not_ready
            if ready is not shown:
                response = health_pb2.HealthCheckResponse
                await self._set_health(response.SERVING if ready else response.NOT_SERVING)
                shown = ready
            await asyncio.sleep(_READY_POLL_SECONDS)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        for service in self._services:
            await self._health.set(service, status)


async def serve(config: Config) -> int:
    """Run a coordinator; the exit code."""
    section = config.coordinator
    logs.setup("coordinator", section.log_level)

    def check_addresses() -> None:
        check_bindable(section.listen, "coordinator.listen")
        if section.http_listen:
            check_bindable(section.http_listen, "coordinator.http_listen")

    runtime = await Runtime.start(config, check_addresses)
    try:
        daemon = Daemon(config, runtime)
        look_less()
        return await daemon.run()
    except BaseException:
        with contextlib.suppress(Exception):
            await runtime.close()
        raise


@click.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="The TOML file.")
@click.version_option(VERSION)
def main(path: Path) -> None:
    """The xacoord coordinator: decides transactions and keeps the log.

    Exit codes: 0 stopped, 74 the log could not be written, 75 the log is in use, 78 the
    configuration or the log cannot be used.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(serve(load_config(path)))
    except ConfigError as error:
        raise _exit(EXIT_CONFIG, str(error)) from error
    except LogLocked as error:
        raise _exit(EXIT_LOCKED, str(error)) from error
    except (LogCorrupt, LogContradiction, UnknownRecord, JournalError) as error:
        raise _exit(EXIT_CONFIG, str(error)) from error
    except (LogFailed, LogFull) as error:
        raise _exit(EXIT_IO, str(error)) from error
    except LogError as error:
        raise _exit(EXIT_CONFIG, str(error)) from error
    except RuntimeError as error:  # gRPC: the address cannot be bound
        raise _exit(EXIT_CONFIG, str(error)) from error
    except OSError as error:
        raise _exit(EXIT_IO, str(error)) from error
    sys.exit(code)


def _exit(code: int, message: str) -> SystemExit:
    click.echo(f"coordinator: {message}", err=True)
    return SystemExit(code)


if __name__ == "__main__":
    main()
