"""Rig: one engine's cluster, its bank and its failpoints, kept running across the runs of the matrix.

Every daemon follows a file of failpoints (shell/failpoints.py), so a run arms a process that is at rest, and
only what a run has killed is started again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc

from coordinator.v1 import admin_pb2_grpc, coordinator_pb2, coordinator_pb2_grpc
from deploy.engines import Engine
from deploy.private_cluster import Cluster, Process
from participant_agent.v1 import statement_pb2
from tests.bank import oracle
from tests.bank.bank import Bank
from tests.crash_matrix.bursts import Burst, Bursts, tail

NAMES = ("east", "west")
ACCOUNTS = 12
# Small and frequent: the log rotates, witness rows are purged and a lost participant is found again soon.
RETENTION_SECONDS = 6.0
SETTINGS = f"""[transactions]
rescan_every = 1.0
retry_max = 0.2
witness_retention = {RETENTION_SECONDS}
[log]
segment_mib = 1
alignment = 4096
"""
AGENT_SETTINGS = "[sessions]\nlock_wait_seconds = 1\n"
_POLL_SECONDS = 0.01
# A purge comes 16 s after the coordinator has started, then every 10 s; later where the machine is busy.
_HIT_SECONDS = 60.0
_ANSWER_SECONDS = 10.0
_CALM_SECONDS = 30.0


class NotReached(Exception):
    """The place was not reached, so the run proves nothing."""


class Rig:
    """`close` ends everything."""

    def __init__(self, engine: Engine, directory: Path, seed: int) -> None:
        self.engine = engine
        self.cluster = Cluster.create(
            engine, directory, NAMES, settings=SETTINGS, agent_settings=AGENT_SETTINGS
        )
        self.owners: dict[str, Path] = {}
        for owner in ("coordinator", *NAMES):
            self.owners[owner] = directory / f"points-{owner}"
            self.owners[owner].mkdir()
        self._seed = seed
        self._judged: set[str] = set()
        try:
            for name in NAMES:
                self.start_agent(name)
            self.start_coordinator()
            self.cluster.wait_until_up()
            self.bank = Bank.open(self.cluster, directory / "bank", ACCOUNTS)
            self.bursts = Bursts(self.bank, seed)
        except BaseException:
            self.cluster.close()
            raise

    def close(self) -> None:
        """Kill and reap everything."""
        self.bursts.kill()
        self.cluster.close()

    # Processes

    def process(self, owner: str) -> Process:
        """The daemon that follows the owner's failpoints."""
        return self.cluster.coordinator if owner == "coordinator" else self.cluster.sites[owner].agent

    def _environ(self, owner: str) -> dict[str, str]:
        return {"XACOORD_FAILPOINTS": "@points", "XACOORD_FAILPOINT_DIR": str(self.owners[owner])}

    def start_coordinator(self) -> None:
        """Start it; it is not waited for."""
        self.cluster.start_coordinator(wait=False, **self._environ("coordinator"))

    def start_agent(self, name: str) -> None:
        """Start one; it is not waited for."""
        self.cluster.sites[name].agent.start(**self._environ(name))

    def new_bursts(self) -> None:
        """A client in place of a killed one."""
        self._seed += 1
        self.bursts = Bursts(self.bank, self._seed)

    def restore(self) -> None:
        """Start whatever is down, and wait until every participant is up."""
        down = [site.server for site in self.cluster.sites.values() if not site.server.running]
        for server in down:
            server.start(wait=False)
        for server in down:
            server.wait_until_ready()
        for name, site in self.cluster.sites.items():
            if not site.agent.running:
                self.start_agent(name)
        if not self.cluster.coordinator.running:
            self.start_coordinator()
        self.cluster.wait_until_up()
        poll(self._serves, "both participants are shown as up, but nothing can be done")

    def _serves(self) -> bool:
        """Whether work at all participants succeeds: a state that is shown may be from before a death."""
        statement = statement_pb2.Statement(sql="SELECT 1")
        branches = [coordinator_pb2.RunBranch(participant=n, statements=[statement]) for n in NAMES]
        with self.cluster.channel(self.cluster.address) as channel:
            try:
                request = coordinator_pb2.RunRequest(branches=branches)
                response = coordinator_pb2_grpc.CoordinatorStub(channel).Run(request, timeout=5)
            except grpc.RpcError:
                return False
        return bool(response.outcome == coordinator_pb2.OUTCOME_COMMITTED)

    # Failpoints

    def arm(self, owner: str, place: str, count: int = 1, action: str = "kill") -> None:
        """From now on the owner dies or waits at the place."""
        directory = self.owners[owner]
        for old in (*directory.glob("*.hit"), *directory.glob("*.go")):
            old.unlink()
        self._write_points(owner, f"{place}:{count}={action}")

    def disarm(self) -> None:
        """Nobody dies any more, and who waits goes on."""
        for owner, directory in self.owners.items():
            self._write_points(owner, "")
            for held in directory.glob("*.hit"):
                held.with_suffix(".go").touch()

    def _write_points(self, owner: str, text: str) -> None:
        path = self.owners[owner] / "points"
        new = path.with_suffix(".new")
        new.write_text(text)
        new.rename(path)

    def hit(self, owner: str, place: str) -> bool:
        """Whether the owner has reached the armed place."""
        return (self.owners[owner] / f"{place}.hit").exists()

    def go(self, owner: str, place: str) -> None:
        """Let the held owner go on."""
        (self.owners[owner] / f"{place}.go").touch()

    def await_hit(
        self, owner: str, place: str, burst: Burst | None = None, seconds: float = _HIT_SECONDS
    ) -> None:
        """Until the place is reached; with `burst`, traffic whenever there is none. Raises NotReached."""
        deadline = time.monotonic() + seconds
        next_burst = 0.0
        while True:
            running = self.process(owner).running  # asked first: the file is made before the death
            if self.hit(owner, place):
                break
            if not running:
                raise NotReached(f"{owner} ended before it came to {place}")
            if time.monotonic() > deadline:
                raise NotReached(f"{owner} did not come to {place} within {seconds:g} s")
            self._idle = self._idle or self.bursts.done()
            if burst is not None and self._idle and time.monotonic() >= next_burst:
                self.begin_burst(burst)
                next_burst = time.monotonic() + burst.pause_seconds
            time.sleep(_POLL_SECONDS)

    def await_death(self, owner: str, place: str) -> None:
        """The owner has died of SIGKILL at the place."""
        code = self.process(owner).wait()
        if code != -signal.SIGKILL:
            raise NotReached(f"{owner} ended with {code}, not at {place}")

    # Traffic

    _idle = True

    def begin_burst(self, burst: Burst) -> None:
        """Traffic in the background."""
        self.end_burst()
        self.bursts.begin(burst)
        self._idle = False

    def end_burst(self) -> None:
        """Wait for the traffic's end."""
        if not self._idle:
            self.bursts.wait()
            self._idle = True

    def kill_client(self) -> None:
        """SIGKILL for the client of the bursts."""
        self.bursts.kill()
        self._idle = True

    # Judgement

    def stub(self) -> coordinator_pb2_grpc.CoordinatorStub:
        """A fresh channel, because the coordinator comes and goes."""
        return coordinator_pb2_grpc.CoordinatorStub(self.cluster.channel(self.cluster.address))

    def admin(self) -> admin_pb2_grpc.AdminStub:
        """The operators' interface."""
        return admin_pb2_grpc.AdminStub(self.cluster.channel(self.cluster.address))

    def judge(self) -> list[str]:
        """I1 to I4, and whether the coordinator's answer about each transfer since the last time is right."""
        found = self.bank.violations(_CALM_SECONDS)
        claims, _ = oracle.read_ledgers(self.bank.ledgers)
        new = {claim.gtrid for claim in claims.values() if claim.gtrid} - self._judged
        self._judged |= new
        ages = {claim.gtrid: time.time() - claim.first_at for claim in claims.values()}
        books = {name: oracle.read_books(server) for name, server in self.bank.servers().items()}
        with self.cluster.channel(self.cluster.address) as channel:
            stub = coordinator_pb2_grpc.CoordinatorStub(channel)
            answers = {gtrid: self._answer(stub, gtrid, ages[gtrid]) for gtrid in new}
        # Of what has ended longer ago than witness rows are kept, nothing need be known any more.
        answers = {g: a for g, a in answers.items() if a != "UNKNOWN" or ages[g] < RETENTION_SECONDS}
        return found + oracle.judge_answers(self.bank.ledgers, books, answers)

    def _answer(self, stub: coordinator_pb2_grpc.CoordinatorStub, gtrid: str, age_seconds: float) -> str:
        deadline = time.monotonic() + (_ANSWER_SECONDS if age_seconds < RETENTION_SECONDS else 0.0)
        while True:
            response = stub.Get(coordinator_pb2.GetRequest(gtrid=gtrid), timeout=_ANSWER_SECONDS)
            name = coordinator_pb2.Outcome.Name(response.transaction.outcome).removeprefix("OUTCOME_")
            if name != "UNKNOWN" or time.monotonic() > deadline:
                return name
            time.sleep(_POLL_SECONDS)

    def tails(self) -> str:
        """The ends of all logs and ledgers."""
        parts = [self.cluster.tails()]
        parts += [
            f"--- error log {name}\n{tail(s.server.error_log)}" for name, s in self.cluster.sites.items()
        ]
        parts += [f"--- {path.name}\n{tail(path)}" for path in self.bank.ledgers[-2:]]
        return "\n".join(parts)


def poll(condition: Callable[[], bool], what: str, seconds: float = _HIT_SECONDS) -> None:
    """Until `condition` holds. Raises NotReached."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotReached(what)
        time.sleep(_POLL_SECONDS)


def first(values: Iterable[str], what: str) -> str:
    """The first of some, which must be there."""
    for value in values:
        return value
    raise NotReached(what)
