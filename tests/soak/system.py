"""System: one engine's cluster with its clients, and the manager that starts again what has ended.

Between coordinator and agents there is a proxy, so that their network can be cut. The settings make short
what by default takes an hour, so that what is bounded can be seen to be.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from pathlib import Path

from coordinator.v1 import admin_pb2, admin_pb2_grpc
from deploy.engines import Engine
from deploy.private_cluster import Cluster, wait_for
from tests.bank.bank import Bank, ClientProcess
from tests.network.proxy import Background, Proxy
from tests.soak.facts import Checks
from tests.soak.parts import EXIT_UNAVAILABLE, Customer, Daemon, Part, Server

NAMES = ("north", "south")
ACCOUNTS = 200
CLIENTS = 2
WITNESS_RETENTION = 30.0
KEEP_ENDED = 30.0
UP_SECONDS = 60.0
_MANAGER_SECONDS = 0.5  # between a daemon's end and its next start
_SETTINGS = f"""[transactions]
rescan_every = 3.0
keep_ended = {KEEP_ENDED}
keep_keys = 60.0
witness_retention = {WITNESS_RETENTION}
[log]
segment_mib = 1
"""
_FOR_EVER = 1_000_000


class GaveUp(Exception):
    """The system did not come back; the soak cannot go on."""


class System:
    """`open` starts everything but the clients; `close` ends everything."""

    def __init__(self, engine: Engine, directory: Path, seed: int, threads: int, checks: Checks) -> None:
        self.directory = directory
        self.checks = checks
        self.cluster = Cluster.create(engine, directory, NAMES, settings=_SETTINGS)
        self.bank = Bank.open(self.cluster, directory / "ledgers", ACCOUNTS)
        self.random = random.Random(seed)
        self._threads = threads
        self._background = Background()
        self.proxies: dict[str, Proxy] = {}
        config = self.cluster.config.read_text()
        for name, site in self.cluster.sites.items():
            proxy = Proxy(self._background, site.address)
            config = config.replace(f'agent = "{site.address}"', f'agent = "{proxy.address}"')
            self.proxies[name] = proxy
        self.cluster.config.write_text(config)
        sites = self.cluster.sites.values()
        self.coordinator = Daemon("coordinator", self.cluster.coordinator)
        self.agents = [Daemon("agent", site.agent) for site in sites]
        self.servers = [Server(site.name, site.server) for site in sites]
        self.clients = [Customer(number, self._new_client) for number in range(1, CLIENTS + 1)]
        self.starts_of_coordinator = 0
        self._epoch = 0
        for server in self.servers:
            server.start()

    @property
    def daemons(self) -> list[Part]:
        """What has to run for the system to be up."""
        return [*self.servers, *self.agents, self.coordinator]

    @property
    def parts(self) -> list[Part]:
        return [*self.daemons, *self.clients]

    def _new_client(self) -> ClientProcess:
        return self.bank.start_client(
            seed=self.random.randrange(2**31), threads=self._threads, seconds=_FOR_EVER
        )

    def open(self) -> None:
        """Start the daemons and wait until they are up."""
        self.mend(self.daemons)

    def kill_servers(self) -> None:
        """The end: sessions that wait for a server get an error."""
        for part in (*self.clients, *self.agents, *self.servers):
            part.kill()

    def close(self) -> None:
        """Kill what runs, by pid."""
        for client in self.clients:
            client.kill()
        self.cluster.close()
        self._background.close()

    def check_alive(self) -> None:
        """Whoever has ended without being told to is a violation."""
        for part in self.parts:
            if part.is_wanted and not part.running:
                part.is_wanted = False
                self.checks.violated("processes", f"{part.name} has ended by itself: {part.exit_code()}")

    def mend(self, parts: Iterable[Part]) -> float:
        """Start what does not run, as a process manager would, until all is up.

        Returns when the last was started, or for a server when it answered: its own recovery is not ours.

        In any order: an agent that starts before its server ends with 69, and is started again.
        """
        parts = list(parts)
        self.random.shuffle(parts)
        last_start = time.time()
        deadline = time.monotonic() + UP_SECONDS
        again_at: dict[str, float] = {}
        silent: set[Part] = set()
        restarted = False
        while True:
            for part in parts:
                if part.running or time.monotonic() < again_at.get(part.name, 0.0):
                    continue
                if part.is_wanted and not self._may_end(part):
                    self.checks.violated("processes", f"{part.name} has ended by itself: {part.exit_code()}")
                part.start()
                restarted = restarted or part is self.coordinator
                last_start = time.time()
                again_at[part.name] = time.monotonic() + _MANAGER_SECONDS
                silent.add(part)
            for part in [part for part in silent if part.answers()]:
                silent.discard(part)
                last_start = time.time()
            if all(part.running for part in parts) and self.is_up():
                break
            if time.monotonic() > deadline:
                self.checks.violated("liveness", f"not up within {UP_SECONDS:g} s")
                raise GaveUp(self.cluster.tails())
            time.sleep(0.1)
        self.checks.passed("processes", len(parts))
        self.checks.passed("liveness")
        if restarted:
            self._check_new_epoch()
        return last_start

    def _may_end(self, part: Part) -> bool:
        """An agent may end with 69 while its server is not up yet."""
        return part.role == "agent" and part.exit_code() == EXIT_UNAVAILABLE

    def is_up(self) -> bool:
        """Ready, and every participant up."""
        if self.cluster.http("/readyz")[0] != 200:
            return False
        return all(self.cluster.metric("xacoord_participant_up", participant=name) == 1 for name in NAMES)

    def epoch(self) -> int:
        """The running coordinator's epoch."""
        with self.cluster.channel(self.cluster.address) as channel:
            status = admin_pb2_grpc.AdminStub(channel).LogStatus(admin_pb2.LogStatusRequest(), timeout=10)
        return int(status.epoch)

    def _check_new_epoch(self) -> None:
        """I6: a start takes an epoch that is higher than all before it."""
        self.starts_of_coordinator += 1
        before, self._epoch = self._epoch, self.epoch()
        self.checks.passed("I6")
        if self._epoch <= before:
            self.checks.violated("I6", f"a start took epoch {self._epoch} after {before}")

    def stop_clients(self) -> None:
        """Let them finish what they have begun."""
        for client in self.clients:
            if client.running:
                code = client.stop()
                if code != 0:
                    self.checks.violated("processes", f"{client.name} ended with {code}")

    def wait_until_nothing_runs(self, timeout_seconds: float) -> None:
        """Until the coordinator has no open transaction. Raises ClusterError."""

        def done() -> bool:
            text = self.cluster.http("/metrics")[1]
            found = [line for line in text.splitlines() if line.startswith("xacoord_transactions_active{")]
            return bool(found) and all(
                line.endswith(" 0.0") for line in found if 'state="heuristic"' not in line
            )

        wait_for(done, timeout_seconds, lambda: "transactions are still open")
