"""The agent in the simulation: the daemon's Agent and Service on simulated sessions and a simulated network.

Fault model: that of the ports. An agent that cannot start (its server is away, another agent holds the
participant) exits and is started again by its supervisor. Two agents may run for one participant (`double`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from dtp import XacoordError
from participant_agent.agent import Agent
from participant_agent.config import AgentSection, Config, MysqlSection, SessionsSection
from participant_agent.control import StartError
from participant_agent.core.effects import Query, Result
from participant_agent.service import Service
from participant_agent.session import Connect, ConnectError, Session, Target
from participant_agent.v1 import participant_agent_pb2_grpc as rpc
from tests.simulation.mysql import Server
from tests.simulation.process import Process
from tests.simulation.session import Conditions, connector
from tests.simulation.trace import statement

if TYPE_CHECKING:
    from tests.simulation.world import World


class Log:
    """The agent's log: what it calls an error is one, but for outcomes that operators caused."""

    def __init__(self, node: AgentNode) -> None:
        self._node = node

    def info(self, event: str, **values: Any) -> None:
        self._node.world.trace(self._node.name, "log", event, values)

    warning = info

    def error(self, event: str, **values: Any) -> None:
        self.info(event, **values)
        if event != "heuristic outcome":
            error = values.get("exc_info")
            self._node.world.oracle.violated("ERROR", f"{self._node.name}: {event} {error!r}")

    def exception(self, event: str, **values: Any) -> None:
        self._node.world.oracle.violated_by_exception(f"{self._node.name}: {event}")


class AgentNode:
    """One participant: its agent's process, on a server that may be shared."""

    def __init__(self, world: World, participant: str, server: Server) -> None:
        self.world = world
        self.participant = participant
        self.server = server
        self.host = f"agent-{participant}"
        self.address = f"{self.host}:7430"
        self.name = self.host
        self.random = world.stream(f"agent {participant}")
        plan = world.plan
        self.config = Config(
            AgentSection(participant, self.address, take_over_seconds=plan.take_over_seconds),
            MysqlSection("agent"),
            SessionsSection(
                max=plan.sessions,
                warm=min(2, plan.sessions),
                lock_wait_seconds=plan.lock_wait_seconds,
                statement_timeout_seconds=plan.statement_timeout_seconds,
                acquire_timeout_seconds=plan.acquire_timeout_seconds,
            ),
        )
        self.conditions = Conditions(world.stream(f"sessions {participant}"), counters=world.counters)
        self.process: Process | None = None
        self.agent: Agent | None = None
        self.service: Service | None = None
        self.zombies: list[Process] = []
        self.lives = 0
        self.may_run = True

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    def start(self) -> None:
        """A supervisor starts the daemon."""
        if self.alive or not self.may_run:
            return
        self.lives += 1
        self.name = f"{self.host}#{self.lives}"
        process = self.process = Process(self.world.loop, self.name, self.host)
        process.on_end.append(lambda: self._ended(process))
        self.world.trace(self.name, "starts")
        process.spawn(self._main(process))

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()

    def double(self) -> Process | None:
        """Its machine is paused, and somebody starts it on another one. Returns what is paused."""
        process = self.process
        if process is None or not process.alive or process.halted:
            return None
        process.freeze()
        self.zombies.append(process)
        self.process = self.agent = self.service = None
        self.start()
        return process

    def stop(self) -> None:
        """SIGTERM."""
        process, agent = self.process, self.agent
        if process is None or agent is None or not process.alive or agent.draining:
            return

        async def end() -> None:
            await agent.stop()
            if self.service is not None:
                self.service.streams.end()
                await asyncio.sleep(0.01)
            process.kill()

        process.spawn(end())

    def _ended(self, process: Process) -> None:
        self.world.trace(self.name, "is dead", process.died_at_place)
        if process is not self.process:
            return  # a zombie: another one runs in its place
        self.agent = self.service = None
        self.world.network.later(0.02 + 2.0 * self.random.random() ** 2, self._start_again)

    def _start_again(self) -> None:
        if self.may_run and not self.alive:
            self.world.counters["agent restarts"] += 1
            self.start()

    async def _main(self, process: Process) -> None:
        agent = Agent(self.config, None, Log(self), self._connecting(process.name))
        agent.control.make_token = lambda: f"t{self.random.getrandbits(40):010x}"
        try:
            await agent.start()
        except (StartError, ConnectError, XacoordError) as error:
            self.world.trace(self.name, "cannot start", error)
            self.world.counters["agent starts failed"] += 1
            process.kill()
            return
        except Exception:
            self.world.oracle.violated_by_exception(f"{self.name} cannot start")
            process.kill()
            return
        if process is self.process:
            self.agent = agent
        agent.fence = self._fencing(agent.fence)  # type: ignore[method-assign]
        listener = self.world.network.listen(self.address, process)
        service = Service(agent)
        if process is self.process:
            self.service = service
        rpc.add_ParticipantAgentServicer_to_server(service, listener)  # type: ignore[arg-type]

    def _connecting(self, name: str) -> Connect:
        """What opens the sessions of one life."""
        connect = connector(self.server, self.conditions)

        async def open_session(target: Target) -> Session:
            session = await connect(target)
            session.batch = Watched(self, name, session).batch  # type: ignore[method-assign]
            return session

        return open_session

    def _fencing(self, fence: Any) -> Any:
        async def fenced(request: Any) -> Any:
            result = await fence(request)
            self.world.oracle.fenced(request.coordinator_id, self, request.epoch)
            return result

        return fenced


class Watched:
    """A session's queries, seen by the oracle."""

    def __init__(self, node: AgentNode, name: str, session: Session) -> None:
        self._node = node
        self._name = name
        self._session = session
        self._batch = session.batch

    async def batch(self, queries: tuple[Query, ...]) -> tuple[Result, ...]:
        node, world = self._node, self._node.world
        for query in queries:
            if query.sql.startswith("XA "):
                world.oracle.asked(node, query.sql)
        who = f"session {self._session.connection_id}"
        if world.trace.on:
            for query in queries:
                asked = (statement(query.sql), *((query.parameters,) if query.parameters else ()))
                world.trace(self._name, who, *asked)
        results = await self._batch(queries)
        if world.trace.on:
            for result in results:
                world.trace(self._name, who, "->", result)
        for query, result in zip(queries, results, strict=False):
            if query.sql.startswith("XA "):
                world.oracle.answered(node, query.sql, result)
        return results
