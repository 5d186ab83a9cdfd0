"""Embedded: agents in the coordinator's own process. The one module that knows both packages.

A link to such an agent is the same as any other: it connects, fences, scans, attaches, and breaks when the
agent loses its server. Only its calls are made without a network, and commands and reports are handed over as
they are (local.py). The agent listens as well, because clients send it their statements.

An agent that cannot start is started again, for ever, like a daemon by its supervisor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog

from coordinator.agents import AgentLink, Identity, LinkDown
from coordinator.config import Config
from coordinator.core import inputs
from dtp import XacoordError, Xid
from shell.config import ConfigError
from shell.status import to_status

if TYPE_CHECKING:
    from participant_agent.host import Host

_PAUSE_SECONDS = 1.0


class EmbeddedAgent:
    """One participant's agent in this process; it starts with the first task that runs `keep`.

    Attributes:
        address: where clients find it.
        error: why it does not serve, or "".
        tried: the first attempt to start it has ended, well or not.
    """

    def __init__(self, participant: str, path: Path) -> None:
        from participant_agent.config import ENVIRONMENT_PREFIX
        from participant_agent.config import Config as AgentConfig
        from shell.config import load

        self._config = load(AgentConfig, path, prefix=ENVIRONMENT_PREFIX, environ={})
        if self._config.agent.participant != participant:
            raise ConfigError(
                f"{path}: agent.participant is {self._config.agent.participant!r}, but the coordinator's "
                f"file names it for {participant!r}"
            )
        try:
            self._config.mysql.secret()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: mysql.password_file cannot be read: {error}") from error
        self.participant = participant
        self.address = self._config.agent.listen
        self.error = "it has not started yet"
        self.tried = asyncio.Event()
        self.host: Host | None = None
        self._log = structlog.get_logger().bind(participant=participant)

    async def keep(self) -> None:
        """Start it, again and again until that succeeds. Then it looks after itself."""
        from participant_agent.host import Host, NotStarted

        told = ""
        while self.host is None:
            host = Host(self._config, self._log)
            try:
                await host.start()
            except NotStarted as error:
                self.error = f"{error}: {error.details.get('detail', error.details.get('address', ''))}"
                if self.error != told:
                    self._log.error(str(error), **error.details)
            except Exception as error:  # a mistake of ours must not be the end of trying
                self.error = f"{type(error).__name__}: {error}"
                if self.error != told:
                    self._log.exception("the agent in this process cannot start")
            else:
                self.host, self.error = host, ""
            told = self.error
            self.tried.set()
            if self.host is None:
                await asyncio.sleep(_PAUSE_SECONDS)

    async def look(self) -> tuple[Xid, ...]:
        """What is prepared at its server, without starting it: nothing is changed, whoever works there.

        Raises LinkDown where the server does not tell.
        """
        from participant_agent.look import prepared
        from participant_agent.session import ConnectError

        try:
            return await prepared(self._config, self._log)
        except ConnectError as error:
            raise LinkDown(f"cannot use the server: {error}") from error
        except XacoordError as error:
            raise LinkDown(error.message) from error

    async def stop(self) -> None:
        """End it in order."""
        if self.host is not None:
            await self.host.stop()

    def connect(self, address: str) -> grpc.aio.Channel:
        """A channel to it, for coordinator.agents.AgentLink."""
        return LocalChannel(self)  # type: ignore[return-value]


class Embedded:
    """All embedded agents of a configuration."""

    def __init__(self, agents: dict[str, EmbeddedAgent]) -> None:
        self.agents = agents
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def of(cls, config: Config, names: Iterable[str] | None = None) -> Embedded:
        """Those of all participants, or of `names`.

        Raises:
            ConfigError: an agent's file cannot be used.
        """
        wanted = config.participants if names is None else names
        return cls(
            {
                name: EmbeddedAgent(name, Path(config.participants[name].agent_config))
                for name in wanted
                if config.participants[name].agent_config
            }
        )

    def address(self, name: str, otherwise: str) -> str:
        """Where a participant's agent listens."""
        agent = self.agents.get(name)
        return otherwise if agent is None else agent.address

    def link(
        self,
        name: str,
        address: str,
        identity: Identity,
        submit: Callable[[inputs.Input], None],
        clock: Callable[[], float],
        purge_mark: Callable[[], str],
    ) -> AgentLink:
        """The coordinator's link to a participant's agent: to an embedded one, or to the one at `address`."""
        agent = self.agents.get(name)
        if agent is None:
            return AgentLink(name, address, identity, submit, clock, purge_mark)
        from coordinator.local import LocalLink

        return LocalLink(agent, identity, submit, clock, purge_mark)

    def start(self) -> None:
        """Begin to start them; nobody waits for it."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(agent.keep()) for agent in self.agents.values()]

    async def stop(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(agent.stop() for agent in self.agents.values()))

    async def __aenter__(self) -> Embedded:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class LocalChannel:
    """What a generated stub needs of a channel, on an agent of this process."""

    def __init__(self, agent: EmbeddedAgent) -> None:
        self._agent = agent

    async def channel_ready(self) -> None:
        """Until the agent serves. Raises LinkDown where it cannot start."""
        await self._agent.tried.wait()
        if self._agent.host is None:
            raise LinkDown(f"the agent in this process: {self._agent.error}")
        await self._agent.host.agent.serving.wait()

    async def close(self, grace: float | None = None) -> None:
        """Nothing is held."""

    def _method(self, path: str) -> Callable[..., Any]:
        assert self._agent.host is not None
        method: Callable[..., Any] = getattr(self._agent.host.service, path.rpartition("/")[2])
        return method

    def unary_unary(self, path: str, *_: Any, **__: Any) -> Callable[..., Any]:
        """A unary method."""

        async def call(request: Any, timeout: float | None = None) -> Any:
            try:
                async with asyncio.timeout(timeout):
                    return await self._method(path)(request, None)
            except XacoordError as error:
                raise _rpc_error(error) from error
            except TimeoutError:
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    grpc.aio.Metadata(),
                    grpc.aio.Metadata(),
                    "no answer in time",
                ) from None

        return call

    def stream_stream(self, path: str, *_: Any, **__: Any) -> Callable[[], Any]:
        """The stubs ask for it; the link within the process has its own way (coordinator.local)."""
        return lambda: None


def _rpc_error(error: XacoordError) -> grpc.aio.AioRpcError:
    status = to_status(error)
    details = ("grpc-status-details-bin", status.SerializeToString())
    return grpc.aio.AioRpcError(
        grpc.StatusCode[error.status],
        grpc.aio.Metadata(),
        grpc.aio.Metadata(details),
        status.message,
    )
