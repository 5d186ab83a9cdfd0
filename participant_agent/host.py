"""Host: an agent with its gRPC server. The daemon runs one; a coordinator may host several in its process.

The agent listens either way: clients send it the statements of their branches.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dtp import XacoordError
from participant_agent.agent import Agent, PreflightError
from participant_agent.config import UNIX, Config
from participant_agent.control import StartError
from participant_agent.core.preflight import Check
from participant_agent.service import MAX_ANSWER_BYTES, Service
from participant_agent.session import ConnectError
from participant_agent.v1 import participant_agent_pb2 as pb
from participant_agent.v1 import participant_agent_pb2_grpc as rpc
from shell.config import ConfigError, check_bindable
from shell.failpoints import Failpoints
from shell.status import ErrorInterceptor

_MAX_MESSAGE_BYTES = 4 << 20
_NAMES = (pb.DESCRIPTOR.services_by_name["ParticipantAgent"].full_name, "")
_WATCH_SECONDS = 0.05
_OPTIONS = [
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
]


class NotStarted(Exception):
    """The agent cannot serve.

    Attributes:
        for_good: trying again changes nothing: the server is refused, or the address cannot be used.
        details: for the log.
    """

    def __init__(self, message: str, *, for_good: bool = False, **details: object) -> None:
        super().__init__(message)
        self.for_good = for_good
        self.details = details


class Host:
    """One agent and the server in front of it: `await start()`, then `await stop()`.

    Attributes:
        agent: what works.
        service: how it is spoken to, also without a network.
    """

    def __init__(self, config: Config, log: Any) -> None:
        self.config = config
        self._log = log
        self.agent = Agent(config, Failpoints.from_environment(), log)
        self.service = Service(self.agent)
        self._server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        self._watching: asyncio.Task[None] | None = None
        rpc.add_ParticipantAgentServicer_to_server(self.service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (
            _NAMES[0],
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> int:
        """Take the participant over and listen; the port.

        Raises:
            NotStarted: it says why; nothing is left behind.
        """
        listen = self.config.agent.listen
        if not listen.startswith(UNIX):
            # Before the participant is taken over: who cannot be reached must not end another agent's
            # sessions.
            try:
                check_bindable(listen, "agent.listen")
            except ConfigError as error:
                raise NotStarted("cannot listen", for_good=True, detail=str(error)) from error
        checks = await self._start_agent()
        for check in checks:
            if check.severity.value != "ok":
                self._log.warning("preflight", check=check.name, found=check.found, fix=check.fix)
        try:
            port = self._server.add_insecure_port(listen)
            await self._server.start()
        except RuntimeError as error:
            await self.agent.stop()
            raise NotStarted("cannot listen", for_good=True, address=listen) from error
        except BaseException:
            await self.agent.stop()
            raise
        self._log.info("listening", address=listen, port=port)
        self._watching = asyncio.get_running_loop().create_task(self._watch())
        return port

    async def _start_agent(self) -> list[Check]:
        try:
            return await self.agent.start()
        except BaseException as error:
            self.agent.control.close()
            why = self._why(error)
            if why is None:
                raise
            raise why from error

    def _why(self, error: BaseException) -> NotStarted | None:
        """What an error of the agent's start means; None where it is none that is known."""
        match error:
            case PreflightError():
                return NotStarted("refused by preflight", for_good=True, detail=str(error))
            case StartError():
                return NotStarted("cannot start", detail=str(error))
            case XacoordError():
                return NotStarted("cannot use the server", reason=error.reason.value, detail=error.message)
            case ConnectError():
                mysql = self.config.mysql
                where = mysql.unix_socket or f"{mysql.host}:{mysql.port}"
                return NotStarted(
                    "cannot use the server", address=where, errno=error.errno, detail=str(error)
                )
        return None

    async def stop(self) -> None:
        """End in order: health says so, the agent drains, the server stops."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._set_health(serving=False)
        await self.agent.stop()
        self.service.streams.end()
        await self._server.stop(1.0)

    async def _set_health(self, *, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        for name in _NAMES:
            await self._health.set(name, states.SERVING if serving else states.NOT_SERVING)

    async def _watch(self) -> None:
        """Health follows whether the agent holds the participant's lock."""
        shown = None
        while True:
            serving = self.agent.serving.is_set() and self.agent.control.held
            if serving != shown:
                await self._set_health(serving=serving)
                shown = serving
            await asyncio.sleep(_WATCH_SECONDS)
