"""Bed: what is measured on: servers with the benchmark's database, and for each variant agents and
coordinators.

    with Bed.private("mysql", directory, plan) as bed:
        bed.start(variant)

Everything is a process of its own, a child of this one, and listens on 127.0.0.1. All variants are up at the
same time on the same servers, each with participants of its own names; only one of them has work at a time.
"""

from __future__ import annotations

import contextlib
import json
import random
import string
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from coordinator.v1 import admin_pb2, admin_pb2_grpc
from deploy.bench import servers
from deploy.bench.plan import IN_PROCESS, Plan, Variant
from deploy.bench.servers import BenchError, Server, Target
from deploy.engines import Engine
from deploy.private_cluster import AGENT_PASSWORD, AGENT_USER, ClusterError, Process
from deploy.private_servers import PrivateServer
from deploy.processes import free_port
from wal import SystemFiles
from wal.directory import FORGETFUL

_UP_SECONDS = 60.0
_CALL_SECONDS = 5.0
_POLL_SECONDS = 0.05
_USUAL_MAX_TIMEOUT_SECONDS = 300
# Of a server, besides those of clients: administration, and each agent's own.
_SPARE_CONNECTIONS = 50
_SPARE_SESSIONS = 20


def check_disk(directory: Path) -> None:
    """Raises BenchError where nothing that is flushed reaches a disk."""
    filesystem = SystemFiles().facts(directory).filesystem
    if filesystem in FORGETFUL:
        raise BenchError(
            f"{directory.parent} is on {filesystem}, in memory, where a flush costs nothing: "
            "set TMPDIR to a directory on a disk"
        )


@dataclass
class System:
    """A variant that is set up.

    Attributes:
        ids: of the coordinators.
        participants: their names, one a server.
        coordinators: the addresses.
        processes: all of it, by name.
    """

    ids: list[str] = field(default_factory=list)
    participants: list[str] = field(default_factory=list)
    coordinators: list[str] = field(default_factory=list)
    processes: dict[str, Process] = field(default_factory=dict)


class Bed:
    """Servers, and on them the variants that were started.

    Args:
        directory: for all files; not in memory, because flushes are what is measured.
        members: the servers.
        sessions: of each agent; as many as clients.
        privates: the servers' processes, where they are ours.
    """

    def __init__(
        self,
        directory: Path,
        members: Sequence[Server],
        sessions: int,
        privates: Sequence[PrivateServer] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.servers = list(members)
        self.systems: dict[Variant, System] = {}
        self._sessions = sessions
        self._privates = list(privates)
        self.settings = dict(settings or {})
        """What somebody wanted of private servers."""

    @classmethod
    def private(
        cls, engine: Engine, directory: Path, plan: Plan, settings: Mapping[str, str] | None = None
    ) -> Bed:
        """New private servers, with all their settings for durability, and room for all connections, unless
        `settings` say otherwise."""
        check_disk(directory)
        options = {
            "max-connections": str(connections_of(plan)),
            "table-open-cache": str(2 * connections_of(plan)),
            **(settings or {}),
        }
        privates = []
        for number in range(plan.branches):
            server = PrivateServer.create(engine, directory / f"server-{number}", options=options)
            server.start(wait=False)
            privates.append(server)
        members = []
        for number, server in enumerate(privates):
            server.wait_until_ready()
            server.create_agent_account(AGENT_USER, AGENT_PASSWORD, [servers.DATABASE])
            name = string.ascii_lowercase[number]
            members.append(servers.private(name, str(server.socket), server.pid, AGENT_USER, AGENT_PASSWORD))
        return cls(directory, members, plan.clients, privates, settings)

    @classmethod
    def given(cls, targets: Sequence[Target], directory: Path, plan: Plan) -> Bed:
        """Servers that are there already; their accounts may do everything in the benchmark's database."""
        directory.mkdir(exist_ok=True)
        check_disk(directory)
        return cls(directory, [servers.given(target) for target in targets], plan.clients)

    def prepare(self, connections: int) -> None:
        """Take the servers. Raises BenchError where one is not fit, or somebody else's database is in the
        way.
        """
        for server in self.servers:
            server.claim()
            limit = int(server.settings()["max_connections"])
            if limit < connections:
                raise BenchError(
                    f"server {server.name} takes {limit} connections, and {connections} are needed: raise "
                    "max_connections, or measure fewer --clients"
                )
            server.fill()

    def start(self, variant: Variant) -> None:
        """Start a variant's agents and coordinators, and wait until all participants are up."""
        letters = string.digits + string.ascii_lowercase
        ids = ["z" + "".join(random.choices(letters, k=3)) for _ in range(variant.coordinators)]
        for server in self.servers:
            server.expect(ids)
        system = self.systems[variant] = System(ids)
        agents: dict[str, tuple[str, Path]] = {}
        for server in self.servers:
            participant = f"bench-{ids[0]}-{server.name}"
            address = f"127.0.0.1:{free_port()}"
            text = agent_config(participant, address, server.target, variant, self._sessions)
            agents[participant] = address, self._write(f"agent-{server.name}-{ids[0]}.toml", text)
        hosted = variant.agents == IN_PROCESS
        if not hosted:
            for server, (_, path) in zip(self.servers, agents.values(), strict=True):
                self._spawn(system, f"agent {server.name}", "participant_agent.daemon", path, "serve")
        for number, name in enumerate(ids):
            address = f"127.0.0.1:{free_port()}"
            # Only one process can host an agent; its neighbours reach it where it listens.
            text = coordinator_config(
                name, self.directory / f"log-{name}", address, agents, variant, hosted and not number
            )
            path = self._write(f"coordinator-{name}.toml", text)
            self._spawn(system, f"coordinator {number + 1}", "coordinator.daemon", path)
            system.coordinators.append(address)
            _wait_until_up(address, system)
        system.participants = list(agents)

    def _write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.touch(mode=0o600)  # it has a password
        path.write_text(text)
        return path

    def _spawn(self, system: System, name: str, module: str, config: Path, *verbs: str) -> None:
        command = [sys.executable, "-m", module, *verbs, "--config", str(config)]
        system.processes[name] = process = Process(name, command, config.with_suffix(".log"), {})
        process.start()

    def pids(self, variant: Variant | None) -> dict[str, int]:
        """Of everything that has work on a side, by name; servers only where they are ours."""
        found = {f"server {server.name}": server.pid for server in self.servers if server.pid is not None}
        if variant is not None:
            for name, process in self.systems[variant].processes.items():
                found[name] = process.pid
        return found

    def all_pids(self) -> list[int]:
        """Of everything that was started here, at work or not."""
        processes = [process for system in self.systems.values() for process in system.processes.values()]
        return [server.pid for server in self._privates] + [process.pid for process in processes]

    def check(self) -> None:
        """Raises BenchError where a process has ended."""
        for system in self.systems.values():
            for process in system.processes.values():
                if not process.running:
                    raise BenchError(f"{process.name} has ended\n{process.tail()}")

    def wait_until_clean(self, timeout_seconds: float = 15.0) -> list[str]:
        """Wait until no branch of the benchmark is prepared; those that are all the same."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            left = [
                f"{gtrid.decode()} on {server.name}"
                for server in self.servers
                for gtrid, _ in server.prepared()
            ]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """End everything; servers that are not ours are as they were before."""
        for system in self.systems.values():
            for process in system.processes.values():
                process.kill()
        with contextlib.ExitStack() as stack:
            for private in self._privates:
                stack.callback(private.close)
            if not self._privates:
                for server in self.servers:
                    stack.callback(server.release)

    def __enter__(self) -> Bed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connections_of(plan: Plan) -> int:
    """How many a server has to take: every side's clients, all connected."""
    raw = sum(side.variant is None for side in plan.sides)
    agents = len(plan.variants) * (plan.clients + _SPARE_SESSIONS)
    return raw * plan.clients + agents + _SPARE_CONNECTIONS


def agent_config(participant: str, address: str, target: Target, variant: Variant, sessions: int) -> str:
    """The agent's file: as many sessions as clients, all kept; else as it comes."""
    seconds = variant.lock_wait_seconds
    waits = f"lock_wait_seconds = {seconds}\nstatement_timeout_seconds = {seconds + 10}\n" if seconds else ""
    where = f"unix_socket = {_quoted(target.socket)}" if target.socket else f"host = {_quoted(target.host)}"
    return f"""\
[agent]
participant = "{participant}"
listen = "{address}"
[mysql]
{where}
port = {target.port}
user = {_quoted(target.user)}
password = {_quoted(target.password)}
database = "{target.database}"
schema = "{target.database}"
[sessions]
max = {sessions}
warm = {sessions}
{waits}[witness]
enabled = {str(variant.witness).lower()}
"""


def coordinator_config(
    name: str,
    log: Path,
    address: str,
    agents: Mapping[str, tuple[str, Path]],
    variant: Variant,
    hosted: bool,
) -> str:
    """The coordinator's file. `agents`: address and file of each participant's; `hosted`: in the
    coordinator's process."""
    settings = {"witness_retention": variant.retention_seconds}
    if variant.timeout_seconds:
        settings["max_timeout"] = max(variant.timeout_seconds, _USUAL_MAX_TIMEOUT_SECONDS)
    given = "".join(f"{key} = {value}\n" for key, value in settings.items() if value)
    head = f"""\
[coordinator]
id = "{name}"
data_dir = {_quoted(str(log))}
listen = "{address}"
http_listen = ""
[transactions]
{given}"""
    return head + "".join(
        f"[participants.{participant}]\n"
        + (f"agent_config = {_quoted(str(path))}\n" if hosted else f'agent = "{where}"\n')
        for participant, (where, path) in agents.items()
    )


def _quoted(text: str) -> str:
    """A basic string of TOML, which JSON's strings are as well."""
    return json.dumps(text, ensure_ascii=False)


def _wait_until_up(address: str, system: System) -> None:
    """Until the coordinator says that all participants are up."""

    def up() -> bool:
        try:
            response = admin.Participants(admin_pb2.ParticipantsRequest(), timeout=_CALL_SECONDS)
        except grpc.RpcError:
            return False
        return all(participant.state == "UP" for participant in response.participants)

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        _poll(up, system)


def _poll(condition: Callable[[], bool], system: System) -> None:
    deadline = time.monotonic() + _UP_SECONDS
    while not condition():
        for process in system.processes.values():
            if not process.running:
                raise ClusterError(f"{process.name} has ended\n{process.tail()}")
        if time.monotonic() > deadline:
            tails = "\n".join(f"--- {it.name}\n{it.tail(10)}" for it in system.processes.values())
            raise ClusterError(f"not all participants are up\n{tails}")
        time.sleep(_POLL_SECONDS)
