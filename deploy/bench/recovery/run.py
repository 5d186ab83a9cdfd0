"""Recovery: how long a coordinator takes, from its start, until everything in doubt is resolved.

    raw    XA COMMIT of each branch, the newest first, on as many connections to each server as an agent has
           for it, all open. It is the faster order on MySQL, and the coordinator's, too
    ours   the coordinator is started; agents and servers have been up all the time

Both end when every branch has been committed on every server; ours ends when the coordinator, too, has
nothing open any more. Afterwards every row must be there. The sides take turns: raw, ours; ours, raw; ...
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc

from coordinator.v1 import coordinator_pb2, coordinator_pb2_grpc
from deploy.bench.bed import Bed
from deploy.bench.recovery.in_doubt import InDoubt
from deploy.bench.recovery.plan import VARIANT, RecoveryPlan
from deploy.bench.recovery.threads import at_once
from deploy.bench.servers import BenchError, Server
from dtp import Gtrid, Xid
from dtp.xid import FORMAT_ID
from participant_agent.agent import FINISHERS

_POLL_SECONDS = 0.05  # not more often: it is the servers that have to answer
_PATIENCE_SECONDS = 600.0
_STOP_SECONDS = 60.0
_CALL_SECONDS = 30.0


@dataclass
class Times:
    """Seconds of each round. `first`: of ours, until the first branch was committed."""

    raw: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)


class Recovery:
    """The benchmark on a bed that is prepared."""

    def __init__(self, plan: RecoveryPlan, bed: Bed) -> None:
        self._plan = plan
        self._servers = bed.servers
        bed.start(VARIANT)
        system = bed.systems[VARIANT]
        self._coordinator = system.processes["coordinator 1"]
        self._address = system.coordinators[0]
        self._id = system.ids[0]
        log = bed.directory / f"log-{self._id}"
        self._in_doubt = InDoubt(bed.servers, system.participants, self._id, log)
        self._raw_counters = itertools.count(1)
        self._coordinator.stop(_STOP_SECONDS)

    def run(self, say: Callable[..., None]) -> dict[int, Times]:
        """Measure.

        Raises:
            BenchError: something is not there that must be, or does not come about.
        """
        found = {}
        for branches in self._plan.branches:
            times = found[branches] = Times()
            number = branches // self._plan.servers
            title = f"{branches:,} branches in doubt"
            for turn, sides in enumerate(self._plan.order()):
                for ours in sides:
                    side = "coordinator" if ours else "XA COMMIT by hand"
                    say(title, f"round {turn + 1} of {self._plan.rounds}, {side}")
                    (self._ours if ours else self._raw)(number, times)
                    self._in_doubt.check_rows(number)
        return found

    # The sides

    def _raw(self, number: int, times: Times) -> None:
        counters = itertools.islice(self._raw_counters, number)
        ids = [Gtrid.make(self._id, 1, counter, secrets.randbits(16)) for counter in counters]
        self._in_doubt.prepare(ids)
        with contextlib.ExitStack() as stack:
            jobs = []
            for server in self._servers:
                commits = iter([_commit_text(*branch) for branch in newest_first(server.prepared())])
                for _ in range(FINISHERS):
                    connection = stack.enter_context(contextlib.closing(server.target.connect()))
                    jobs.append((_query_each, connection, commits))
            times.raw.append(at_once(jobs))

    def _ours(self, number: int, times: Times) -> None:
        self._in_doubt.prepare(self._in_doubt.write_log(number))
        before = [self._commits(server) for server in self._servers]
        began = time.monotonic()
        self._coordinator.start()
        one_committed = partial(self._has_committed, self._servers[0], before[0] + 1)
        self._wait(one_committed, "no branch is committed")
        times.first.append(time.monotonic() - began)
        for server, count in zip(self._servers, before, strict=True):
            all_committed = partial(self._has_committed, server, count + number)
            self._wait(all_committed, "not all branches are committed")
        self._wait(lambda: not any(s.prepared() for s in self._servers), "branches are left prepared")
        self._wait(self._nothing_is_open, "the coordinator still has open transactions")
        times.ours.append(time.monotonic() - began)
        self._coordinator.stop(_STOP_SECONDS)

    def _has_committed(self, server: Server, count: int) -> bool:
        return self._commits(server) >= count

    def _commits(self, server: Server) -> int:
        [(_, count)] = server.sql("SHOW GLOBAL STATUS LIKE 'Com_xa_commit'")
        return int(count)

    def _nothing_is_open(self) -> bool:
        with grpc.insecure_channel(self._address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = coordinator_pb2_grpc.CoordinatorStub(channel)
            request = coordinator_pb2.ListRequest(in_doubt=True, page_size=1)
            return not stub.List(request, timeout=_CALL_SECONDS).transactions

    def _wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            if not self._coordinator.running:
                raise BenchError(f"the coordinator has ended\n{self._coordinator.tail()}")
            if time.monotonic() > deadline:
                raise BenchError(f"{otherwise}\n{self._coordinator.tail()}")
            time.sleep(_POLL_SECONDS)


def newest_first(branches: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """(gtrid, bqual) of one coordinator's branches: its gtrids grow."""
    return sorted(branches, reverse=True)


def _commit_text(gtrid: bytes, bqual: bytes) -> bytes:
    return f"XA COMMIT {Xid(FORMAT_ID, gtrid, bqual).sql()}".encode()


def _query_each(connection: Any, texts: Iterator[bytes], stopped: Callable[[], bool]) -> None:
    for text in texts:
        if stopped():
            return
        connection.query(text)
