"""Checkpoint of calm: the clients pause, everything is up, and what must be true at rest is judged.

1. The clients finish what they have begun and end.
2. I4: within 30 s no branch of ours is prepared, every row can be locked, no transaction is open.
3. I1 to I3: the oracle (tests/bank/oracle.py) judges all that was done so far.
4. I5: the coordinator, which has been restarted any number of times, is asked about what clients were told
   since the last checkpoint: what was told COMMITTED may not be unknown while it must be remembered, and
   never be rolled back, and the other way round. `coordctl wal verify` finds a copy of the log sound.
5. I6: in the log's files the epochs grow with the segments; the last is the coordinator's, and the fences'.
6. I8, rule 4 (flat.py). The daemons' logs hold no traceback.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import grpc

from coordinator.v1 import coordinator_pb2, coordinator_pb2_grpc
from deploy.private_cluster import ClusterError
from tests.bank import oracle
from tests.bank.accounts import START_BALANCE
from tests.bank.bank import wait_until_calm
from tests.soak.facts import Calm, Facts, Told, read_ledgers
from tests.soak.flat import problems_at_rest
from tests.soak.samples import log_size
from tests.soak.system import KEEP_ENDED, WITNESS_RETENTION, System

REST_SECONDS = 30.0
_ASKED = 100
# A mark is set every 10 s, becomes the bound a retention later, and agents purge behind their work.
PURGED_AFTER = WITNESS_RETENTION + 30.0
WITNESS_SLACK = 100
_SEGMENT_EPOCH = struct.Struct("<48xQ")  # docs/wal-format.md
_BAD_NEWS = ("Traceback", "unexpected error", "a task failed", "never retrieved")


class Calms:
    """Takes checkpoints of one soak. What one of them has found is not reported again by the next."""

    def __init__(self, system: System, facts: Facts) -> None:
        self._system = system
        self._facts = facts
        self._checks = facts.checks
        self._reported: set[str] = set()
        self._read: dict[Path, int] = defaultdict(int)
        self._asked_until = 0.0
        self._random = random.Random(0)

    def take(self) -> Calm:
        """One checkpoint. The system is up; the clients are started again by whoever goes on."""
        calm = Calm(time.time())
        self._system.stop_clients()
        calm.seconds_until_clean = self._rest()
        self._facts.asked, self._facts.told = read_ledgers(self._system.bank.ledgers)
        self._judge_rows()
        self._ask()
        self._look_at_log(calm)
        self._count_rows(calm)
        self._report("I8", 3, problems_at_rest(calm, len(self._system.servers)))
        self._read_logs()
        calm.ended = time.time()
        return calm

    def _report(self, invariant: str, number: int, found: list[str]) -> None:
        fresh = [text for text in found if text not in self._reported]
        self._reported.update(fresh)
        self._checks.judged(invariant, number, fresh)

    def _rest(self) -> float:
        """I4; seconds until it was true."""
        began = time.monotonic()
        servers = self._system.bank.servers()
        wait_until_calm(servers, REST_SECONDS)
        try:
            self._system.wait_until_nothing_runs(max(1.0, began + REST_SECONDS - time.monotonic()))
            found = []
        except ClusterError as error:
            found = [f"I4: {error}"]
        seconds = time.monotonic() - began
        for name, server in servers.items():
            found += oracle.judge_rest(name, server)
        self._report("I4", 3 * len(servers) + 1, found)
        return seconds

    def _judge_rows(self) -> None:
        """I1, I2 and I3, and what became of the transactions whose client was not told."""
        ledgers = self._system.bank.ledgers
        books = {name: oracle.read_books(server) for name, server in self._system.bank.servers().items()}
        claims, _ = oracle.read_ledgers(ledgers)
        by_invariant: dict[str, list[str]] = defaultdict(list)
        for text in oracle.judge_books(ledgers, books, START_BALANCE):
            found = text[:2] if text[:2] in ("I1", "I2", "I3") else "processes"
            by_invariant[found].append(text)
        for invariant in ("I1", "I2", "I3", "processes"):
            number = 2 * len(books) if invariant == "I1" else 0 if invariant == "processes" else len(claims)
            self._report(invariant, number, by_invariant[invariant])
        self._facts.found_in_the_end = Counter(
            "COMMITTED" if oracle.presence(claim, books) else "ROLLED_BACK"
            for claim in claims.values()
            if claim.outcome == "UNKNOWN"
        )

    def _ask(self) -> None:
        """I5: Get agrees with what was told."""
        since = [item for item in self._facts.told if item.at > self._asked_until and item.gtrid]
        since = [item for item in since if item.outcome in ("COMMITTED", "ROLLED_BACK")]
        self._asked_until = time.time()
        latest = since[-_ASKED // 2 :]
        rest = since[: -_ASKED // 2]
        chosen = latest + self._random.sample(rest, min(len(rest), _ASKED - len(latest)))
        found = []
        with self._system.cluster.channel(self._system.cluster.address) as channel:
            stub = coordinator_pb2_grpc.CoordinatorStub(channel)
            for item in chosen:
                if text := contradiction(item, outcome_of(stub, item.gtrid), time.time()):
                    found.append(text)
        self._report("I5", len(chosen), found)

    def _look_at_log(self, calm: Calm) -> None:
        """I5 and I6 on a copy of the log; the coordinator runs, but is idle."""
        copy = self._system.directory / "log-copy"
        shutil.copytree(self._system.directory / "log", copy, ignore=shutil.ignore_patterns("*.tmp", "lock"))
        calm.epoch = self._system.epoch()
        command = [sys.executable, "-m", "coordinator.ctl.main", "wal", "verify", str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        self._report("I5", 1, [f"wal verify: {done.stdout}{done.stderr}"] if done.returncode else [])
        epochs = epochs_of(copy)
        found = []
        if epochs != sorted(epochs) or epochs[-1:] != [calm.epoch]:
            found.append(f"epochs in the log: {epochs}, the coordinator's is {calm.epoch}")
        for name, site in self._system.cluster.sites.items():
            fences = [row[0] for row in site.server.sql("SELECT epoch FROM xacoord.coordinator")]
            if fences != [calm.epoch]:
                found.append(f"the fence of {name} is at {fences}, the coordinator at {calm.epoch}")
        self._report("I6", len(epochs) + len(self._system.cluster.sites), found)
        shutil.rmtree(copy)

    def _count_rows(self, calm: Calm) -> None:
        for site in self._system.cluster.sites.values():
            calm.fence_rows += site.server.sql("SELECT COUNT(*) FROM xacoord.coordinator")[0][0]
            rows = site.server.sql("SELECT COUNT(*) FROM xacoord.witness")[0][0]
            calm.witness_rows = max(calm.witness_rows, rows)
        calm.log_bytes, calm.log_files = log_size(self._system.directory / "log")
        horizon = purged_until(self._facts)
        since = sum(item.at > horizon and item.outcome != "ROLLED_BACK" for item in self._facts.told)
        calm.witness_allowed = since + WITNESS_SLACK

    def _read_logs(self) -> None:
        """The daemons' and clients' logs since the last time."""
        paths = [path for part in self._system.parts if part.role != "server" for path in part.logs()]
        found = []
        for path in paths:
            with path.open("rb") as file:
                file.seek(self._read[path])
                text = file.read().decode(errors="replace")
                self._read[path] = file.tell()
            for line in text.splitlines():
                if any(news in line for news in _BAD_NEWS):
                    found.append(f"{path.name}: {line[:200]} ... {line[-300:]}")
        self._report("processes", len(paths), found)


def outcome_of(stub: coordinator_pb2_grpc.CoordinatorStub, gtrid: str) -> str:
    """What Get says, without the prefix; UNKNOWN also for a transaction that it does not find."""
    try:
        response = stub.Get(coordinator_pb2.GetRequest(gtrid=gtrid), timeout=10)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return "UNKNOWN"
        raise
    return coordinator_pb2.Outcome.Name(response.transaction.outcome).removeprefix("OUTCOME_")


def contradiction(item: Told, answer: str, now: float) -> str:
    """What is wrong with an answer; "" if nothing. A commit must be known while it has to be remembered."""
    must_know = item.outcome == "COMMITTED" and now - item.at < min(KEEP_ENDED, WITNESS_RETENTION)
    if answer == item.outcome or (answer == "UNKNOWN" and not must_know):
        return ""
    return f"{item.gtrid} was told {item.outcome}, Get says {answer} after {now - item.at:.1f} s"


def epochs_of(log: Path) -> list[int]:
    """The epochs of the segments, in the order of their numbers."""
    found = []
    for path in sorted(log.glob("wal-*.log")):
        with path.open("rb") as file:
            found.append(_SEGMENT_EPOCH.unpack(file.read(_SEGMENT_EPOCH.size))[0])
    return found


def purged_until(facts: Facts) -> float:
    """Witness rows of transactions before this time are gone: a coordinator has lived long enough since."""
    lives: dict[int, list[float]] = defaultdict(list)
    for sample in facts.samples:
        if sample.process == "coordinator":
            lives[sample.pid].append(sample.at)
    horizon = facts.began
    for times in lives.values():
        if times[-1] - times[0] > PURGED_AFTER:
            horizon = max(horizon, times[-1] - PURGED_AFTER)
    return horizon
