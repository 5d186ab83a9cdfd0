"""A private cluster: database servers, one agent each, and a coordinator, all as real processes.

The demonstration and the tests use it. Every process is a child of this one, is only ever signalled by
its own pid, is reaped, and is killed by the kernel when this process dies. Everything listens on
127.0.0.1; every file is below one directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from coordinator.v1 import admin_pb2, admin_pb2_grpc
from deploy.engines import Engine
from deploy.private_servers import PrivateServer
from deploy.processes import Child, free_port, run, spawn

AGENT_USER = "xacoord_agent"
AGENT_PASSWORD = "private"
_START_SECONDS = 30.0
_POLL_SECONDS = 0.02

# (link, address) -> the address at which to reach it instead: a proxy's. Links are "coordinator-NAME" (from
# the coordinator to the agent), "client-NAME" (from clients to the agent) and "server-NAME" (from the agent
# to its server; the path of a unix socket).
Via = Callable[[str, str], str]


def directly(link: str, address: str) -> str:
    """No proxy."""
    return address


class ClusterError(Exception):
    """A process did not do what it should; the message has the tail of its output."""


class Process:
    """One daemon: started, killed, waited for; its output goes to a file."""

    def __init__(self, name: str, command: Sequence[str], output: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self.output = output
        self._command = list(command)
        self._environ = dict(environ)
        self._child: Child | None = None
        self.started = 0.0
        """When `start` was called last, in time.monotonic's seconds."""

    def start(self, *, under: Sequence[str] = (), **environ: str) -> None:
        """Start it, for this start only `under` another program and with further environment variables."""
        if self.running:
            raise ClusterError(f"{self.name} runs already")
        command = [*under, *self._command]
        self.started = time.monotonic()
        self._child = spawn(command, self.output, {**os.environ, **self._environ, **environ})

    @property
    def running(self) -> bool:
        """Started and not ended."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._child is not None
        return self._child.pid

    def kill(self) -> None:
        """SIGKILL, and reap."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def stop(self, timeout_seconds: float = 30.0) -> int:
        """SIGTERM, and reap; its exit code."""
        assert self._child is not None
        self._child.terminate()
        try:
            return self._child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ClusterError(f"{self.name} did not stop\n{self.tail()}") from None

    def wait(self, timeout_seconds: float = _START_SECONDS) -> int:
        """Wait until it has ended by itself; its exit code (negative: the signal)."""
        assert self._child is not None
        try:
            return self._child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{self.name} did not end\n{self.tail()}") from None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._child is not None
        self._child.send_signal(number)

    def tail(self, lines: int = 30) -> str:
        """The end of its output."""
        with contextlib.suppress(OSError):
            return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])
        return ""


@dataclass
class Site:
    """One participant: its server, its agent (the coordinator's process where it is embedded) and where they
    are."""

    name: str
    server: PrivateServer
    agent: Process
    address: str
    config: Path


@dataclass
class Cluster:
    """`with Cluster.create(engine, directory, ("orders", "payments")) as cluster:` starts everything."""

    engine: Engine
    directory: Path
    coordinator: Process
    address: str
    http_address: str
    config: Path
    sites: dict[str, Site] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        engine: Engine,
        directory: Path,
        names: Sequence[str],
        *,
        coordinator_id: str = "0001",
        settings: str = "",
        agent_settings: str = "",
        servers: Mapping[str, PrivateServer] | None = None,
        via: Via = directly,
        embedded: bool = False,
    ) -> Cluster:
        """Make the servers, databases, accounts and configurations; nothing but the servers runs yet.

        Args:
            names: of the participants; each gets a database of that name.
            settings: more TOML for the coordinator's file; `agent_settings` for the agents'.
            servers: running servers to use instead of new ones.
            via: which way the parts reach each other.
            embedded: the agents live in the coordinator's process.
        """
        directory.mkdir(parents=True, exist_ok=True)
        environ = {"PYTHONUNBUFFERED": "1"}
        config = directory / "coordinator.toml"
        address, http_address = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "coordinator.daemon", "--config", str(config)]
        coordinator = Process("coordinator", command, directory / "coordinator.log", environ)
        cluster = cls(engine, directory, coordinator, address, http_address, config)
        for name in names:
            server = (servers or {}).get(name) or PrivateServer.create(engine, directory / name)
            if not server.running:
                server.start(wait=False)
            cluster.sites[name] = cluster._site(name, server, agent_settings, environ, via)
            if embedded:
                cluster.sites[name].agent = coordinator
        for name, site in cluster.sites.items():
            site.server.wait_until_ready()
            site.server.sql(f"CREATE DATABASE IF NOT EXISTS `{name}`")
            site.server.create_agent_account(AGENT_USER, AGENT_PASSWORD, [name])
        participants = "".join(
            f"[participants.{name}]\n"
            + (
                f'agent_config = "{site.config.name}"\n'
                if embedded
                else f'agent = "{via(f"coordinator-{name}", site.address)}"\n'
            )
            for name, site in cluster.sites.items()
        )
        config.write_text(
            f'[coordinator]\nid = "{coordinator_id}"\ndata_dir = "{directory / "log"}"\n'
            f'listen = "{address}"\nhttp_listen = "{http_address}"\n{participants}{settings}'
        )
        return cluster

    def _site(
        self, name: str, server: PrivateServer, settings: str, environ: Mapping[str, str], via: Via
    ) -> Site:
        address = f"127.0.0.1:{free_port()}"
        config = self.directory / f"agent-{name}.toml"
        config.write_text(
            f'[agent]\nparticipant = "{name}"\nlisten = "{address}"\n'
            f'advertise = "{via(f"client-{name}", address)}"\n'
            f'[mysql]\nunix_socket = "{via(f"server-{name}", str(server.socket))}"\nuser = "{AGENT_USER}"\n'
            f'password = "{AGENT_PASSWORD}"\ndatabase = "{name}"\n{settings}'
        )
        config.chmod(0o600)
        command = [sys.executable, "-m", "participant_agent.daemon", "serve", "--config", str(config)]
        agent = Process(f"agent {name}", command, self.directory / f"agent-{name}.log", environ)
        return Site(name, server, agent, address, config)

    def start(self) -> None:
        """Start all agents and the coordinator, and wait until it is ready."""
        for site in self.sites.values():
            if site.agent is not self.coordinator:
                site.agent.start()
        self.start_coordinator()

    def start_coordinator(self, *, wait: bool = True, **environ: str) -> None:
        """Start the coordinator; `environ` for this start only (failpoints)."""
        self.coordinator.start(**environ)
        if wait:
            self.wait_until_ready()
            if not environ:
                self.wait_until_up()

    def wait_until_ready(self, timeout_seconds: float = _START_SECONDS) -> None:
        """Until /readyz says so."""

        def ready() -> bool:
            if not self.coordinator.running:
                raise ClusterError(f"{self.coordinator.name} has ended\n{self.coordinator.tail()}")
            return self.http("/readyz")[0] == 200

        wait_for(ready, timeout_seconds, lambda: f"not ready\n{self.tails()}")

    def wait_until_up(self, timeout_seconds: float = _START_SECONDS) -> None:
        """Until every participant is up, and has been scanned since its agent started: the coordinator may
        not have noticed yet that an earlier one is gone."""

        def up() -> bool:
            for process in (self.coordinator, *(site.agent for site in self.sites.values())):
                if not process.running:
                    raise ClusterError(f"{process.name} has ended\n{process.tail()}")
            now = time.monotonic()  # before the answer, so that none seems younger than it is
            seen = self._participants()
            return all(
                name in seen
                and seen[name].state == "UP"
                and 0 <= seen[name].scanned_seconds_ago < now - site.agent.started
                for name, site in self.sites.items()
            )

        wait_for(up, timeout_seconds, lambda: f"not all participants are up\n{self.tails()}")

    def channel(self, address: str) -> grpc.Channel:
        """A channel that knows nothing of earlier ones: by default gRPC keeps an address that has refused a
        connection, and fails calls to it for a second without trying."""
        return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])

    def _participants(self) -> dict[str, admin_pb2.Participant]:
        """What the coordinator says of them; nothing while it does not answer."""
        with self.channel(self.address) as channel:
            try:
                answer = admin_pb2_grpc.AdminStub(channel).Participants(
                    admin_pb2.ParticipantsRequest(), timeout=5
                )
            except grpc.RpcError:
                return {}
        return {found.participant: found for found in answer.participants}

    def http(self, path: str) -> tuple[int, str]:
        """(status, body) of a GET; (0, "") where nothing answers."""
        try:
            with urllib.request.urlopen(f"http://{self.http_address}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of one sample of /metrics."""
        for line in self.http("/metrics")[1].splitlines():
            sample, _, value = line.rpartition(" ")
            found, _, rest = sample.partition("{")
            if found == name and all(f'{key}="{text}"' in rest for key, text in labels.items()):
                return float(value)
        return None

    def coordctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run coordctl against this cluster."""
        command = [sys.executable, "-m", "coordinator.ctl.main", "--address", self.address, *arguments]
        done = run(command, 60)
        if check and done.returncode:
            raise ClusterError(f"coordctl {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
        return done

    def coordctl_json(self, *arguments: str) -> dict[str, object]:
        """The same with `-o json`, parsed."""
        document: dict[str, object] = json.loads(self.coordctl(*arguments, "-o", "json").stdout)
        return document

    def prepared(self, name: str) -> list[tuple[int, str, str]]:
        """What XA RECOVER lists at a participant: (formatID, gtrid, bqual), as text."""
        found = []
        for row in self.sites[name].server.prepared():
            found.append((row[0], row[1].decode("latin-1"), row[2].decode("latin-1")))
        return found

    def tails(self) -> str:
        """The ends of all logs, for messages."""
        processes = [self.coordinator, *(site.agent for site in self.sites.values())]
        return "\n".join(f"--- {process.name}\n{process.tail()}" for process in processes)

    def close(self) -> None:
        """Kill and reap everything."""
        self.coordinator.kill()
        for site in self.sites.values():
            site.agent.kill()
            site.server.close()

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_for(condition: Callable[[], bool], timeout_seconds: float, message: Callable[[], str]) -> None:
    """Poll until `condition` holds; ClusterError with `message` after the time-out."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(message())
        time.sleep(_POLL_SECONDS)
