"""Recovery: how long a coordinator takes, from its start, until everything in doubt is resolved.

What is in doubt is made by hand, and the same for both sides: N transactions, each with a branch on every
server that has written a row and its witness row, as agents write them, and is prepared; for our side, a log
that has the PREPARE and COMMIT records of all of them. That is what a coordinator leaves that was killed
after N decisions and before the first branch heard of one.

    raw    XA COMMIT of each branch as XA RECOVER lists them, on as many connections to each server as an
           agent has for it, all open
    ours   the coordinator is started; agents and servers have been up all the time

Both end when every branch has been committed on every server; ours ends when the coordinator, too, has
nothing open any more. Afterwards every row must be there. The sides take turns: raw, ours; ours, raw; ...
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
from MySQLdb import Error
from MySQLdb.constants import CLIENT

from coordinator.codec import encode
from coordinator.core.records import CommitRecord, PrepareRecord
from coordinator.core.settings import Settings
from coordinator.ctl.output import Screen, View, note
from coordinator.journal import open_log, start_epoch
from coordinator.v1 import coordinator_pb2, coordinator_pb2_grpc
from coordinator.version import VERSION
from deploy.bench import report
from deploy.bench.bed import Bed, connections_of
from deploy.bench.command import told
from deploy.bench.plan import PROCESSES, RAW, Case, Plan, Side, Variant
from deploy.bench.progress import Progress, duration
from deploy.bench.servers import BenchError, Server, Target
from deploy.engines import Engine, available_engines
from deploy.interruption import interruptible, scratch
from dtp import Gtrid, Xid, format_bqual
from dtp.xid import FORMAT_ID
from participant_agent.agent import FINISHERS
from wal import Options

_TABLE = "in_doubt"
_PREPARERS = 12  # connections to each server that prepare branches
_POLL_SECONDS = 0.05  # not more often: it is the servers that have to answer
_NO_MORE_RESULTS = -1
_PATIENCE_SECONDS = 600.0
_STOP_SECONDS = 60.0
_CALL_SECONDS = 30.0
_VARIANT = Variant(agents=PROCESSES)
# For the estimate only.
_PREPARED_PER_SECOND, _COMMITTED_PER_SECOND, _START_SECONDS = 600.0, 1_000.0, 15.0


@dataclass(frozen=True)
class RecoveryPlan:
    """Every number of branches on both sides, `rounds` times.

    Attributes:
        branches: in doubt, on all servers together.
        servers: each transaction has a branch on all of them.
    """

    branches: tuple[int, ...]
    rounds: int
    servers: int = 2

    def estimate_seconds(self) -> float:
        """How long it takes, about."""
        branches = 2 * self.rounds * sum(self.branches)
        return _START_SECONDS + branches * (1 / _PREPARED_PER_SECOND + 1 / _COMMITTED_PER_SECOND)

    def beds_plan(self) -> Plan:
        """What has to be set up, in the words of the other benchmark."""
        return Plan((Case(self.servers, FINISHERS),), (Side(RAW), Side("one-shot", _VARIANT)), 1, 1.0)

    def order(self) -> Iterator[tuple[bool, ...]]:
        """The sides of each round, in their order; True is ours."""
        for number in range(self.rounds):
            yield (False, True) if number % 2 == 0 else (True, False)


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
        self._database = bed.servers[0].target.database
        bed.start(_VARIANT)
        system = bed.systems[_VARIANT]
        self._participants = system.participants
        self._coordinator = system.processes["coordinator 1"]
        self._address = system.coordinators[0]
        self._id = system.ids[0]
        self._log = bed.directory / f"log-{self._id}"
        self._raw_counters = itertools.count(1)
        for server in self._servers:
            server.sql(f"CREATE TABLE {self._table} (id BIGINT PRIMARY KEY, amount INT NOT NULL)")
        self._coordinator.stop(_STOP_SECONDS)

    @property
    def _table(self) -> str:
        return f"`{self._database}`.{_TABLE}"

    @property
    def _witness(self) -> str:
        return f"`{self._database}`.witness"

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
                    self._check_rows(number)
        return found

    # The sides

    def _raw(self, number: int, times: Times) -> None:
        counters = itertools.islice(self._raw_counters, number)
        ids = [Gtrid.make(self._id, 1, counter, secrets.randbits(16)) for counter in counters]
        self._prepare(ids)
        with contextlib.ExitStack() as stack:
            jobs = []
            for server in self._servers:
                # As they are listed, which is the order in which a person or a script would take them.
                commits = iter([_commit_text(*branch) for branch in server.prepared()])
                for _ in range(FINISHERS):
                    connection = stack.enter_context(contextlib.closing(server.target.connect()))
                    jobs.append((_query_each, connection, commits))
            times.raw.append(_at_once(jobs))

    def _ours(self, number: int, times: Times) -> None:
        self._prepare(self._write_log(number))
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

    # What is in doubt

    def _numbers(self) -> list[int]:
        """The participants' numbers: they were given in the order of the configuration."""
        return list(range(1, len(self._participants) + 1))

    def _write_log(self, number: int) -> list[Gtrid]:
        """A log that has decided so many transactions to commit; their ids."""
        opened = open_log(
            self._log, Options(), on_durable=lambda lsn: None, on_failure=lambda error: None, threaded=False
        )
        try:
            core = start_epoch(
                opened, Settings(self._id), self._participants, secrets.randbits(64), time.time()
            )
            found = [core.participants[name].number for name in self._participants]
            if found != self._numbers():
                raise BenchError(f"the participants have the numbers {found}")
            numbers, now = tuple(found), time.time()
            ids = [
                Gtrid.make(self._id, core.epoch, counter, secrets.randbits(16))
                for counter in range(1, number + 1)
            ]
            for id_ in ids:
                for record in (PrepareRecord(id_, numbers, now), CommitRecord(id_, numbers, now, now)):
                    entry = encode(record)
                    opened.log.append(entry.kind, entry.epoch, entry.sequence, entry.payload, kick=False)
            while opened.log.step():
                pass
            opened.log.tend()  # the segments of before are gone, as a running coordinator would have seen to
        finally:
            opened.log.close()
        return ids

    def _prepare(self, ids: Sequence[Gtrid]) -> None:
        """A prepared branch of each transaction on every server, in sessions that have ended."""
        names = ",".join(format_bqual(number) for number in self._numbers())
        jobs: list[tuple[Any, ...]] = []
        used: dict[str, set[int]] = {}
        for server, number in zip(self._servers, self._numbers(), strict=True):
            packets = iter(
                [self._packet(Xid.of(str(id_), number), row, names) for row, id_ in enumerate(ids)]
            )
            sessions = used[server.name] = set()
            # A branch is its session's on MariaDB until that has ended.
            each = 1 if server.engine == "mariadb" else len(ids)
            jobs += [(_prepare_some, server.target, packets, each, sessions)] * _PREPARERS
        _at_once(jobs)
        for server in self._servers:
            self._wait_until_gone(server, used[server.name])
            if len(server.prepared()) != len(ids):
                raise BenchError(f"server {server.name} has not prepared {len(ids)} branches")

    def _packet(self, xid: Xid, row: int, names: str) -> bytes:
        """One branch, as an agent makes it."""
        return (
            f"XA START {xid.sql()};"
            f"INSERT INTO {self._table} VALUES ({row}, 1);"
            f"INSERT INTO {self._witness} VALUES ('{xid.gtrid.decode()}', '{xid.bqual.decode()}', '{names}');"
            f"XA END {xid.sql()};"
            f"XA PREPARE {xid.sql()}"
        ).encode()

    def _wait_until_gone(self, server: Server, sessions: set[int]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while sessions & {row[0] for row in server.sql("SELECT ID FROM information_schema.PROCESSLIST")}:
            if time.monotonic() > deadline:
                raise BenchError(f"server {server.name} does not end sessions that are closed")
            time.sleep(_POLL_SECONDS)

    def _check_rows(self, number: int) -> None:
        """Every row is there; then they go."""
        for server in self._servers:
            for table in (self._table, self._witness):
                [(count,)] = server.sql(f"SELECT COUNT(*) FROM {table}")
                if count != number:
                    raise BenchError(
                        f"server {server.name}: {table} has {count} rows of {number} transactions, all of "
                        "which were decided to commit"
                    )
                server.sql(f"TRUNCATE TABLE {table}")


# What threads do


def _at_once(jobs: Sequence[tuple[Any, ...]]) -> float:
    """Call the first of each job with the others and a function that says when to give up, each in a thread.

    Returns:
        Seconds from the moment that all threads were there until the last one had ended.

    Raises:
        BenchError: a server has refused something.
    """
    ready = threading.Barrier(len(jobs) + 1)
    stop = threading.Event()

    def run(work: Callable[..., None], *arguments: object) -> None:
        ready.wait()
        try:
            work(*arguments, stop.is_set)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            futures = [pool.submit(run, *job) for job in jobs]
            ready.wait()
            began = time.monotonic()
            for future in futures:
                future.result()
            return time.monotonic() - began
        except Error as error:
            text = " ".join(str(part) for part in error.args)
            raise BenchError(f"a server refuses what the benchmark asks of it: {text}") from error
        finally:
            stop.set()


def _commit_text(gtrid: bytes, bqual: bytes) -> bytes:
    return f"XA COMMIT {Xid(FORMAT_ID, gtrid, bqual).sql()}".encode()


def _query_each(connection: Any, texts: Iterator[bytes], stopped: Callable[[], bool]) -> None:
    for text in texts:
        if stopped():
            return
        connection.query(text)


def _prepare_some(
    target: Target, packets: Iterator[bytes], each: int, sessions: set[int], stopped: Callable[[], bool]
) -> None:
    """Send packets until there are no more of them, `each` in a session of their own."""
    while some := list(itertools.islice(packets, 1)):
        with contextlib.closing(target.connect(CLIENT.MULTI_STATEMENTS)) as connection:
            sessions.add(connection.thread_id())
            for packet in itertools.chain(some, itertools.islice(packets, each - 1)):
                if stopped():
                    return
                connection.query(packet)
                while connection.next_result() != _NO_MORE_RESULTS:
                    pass


# From the command to the report


def measure(plan: RecoveryPlan, engine: Engine | None, targets: Sequence[Target]) -> View:
    """What `coordctl bench recovery` does once its options are read.

    Raises:
        CtlError: it could not be done.
    """
    with told():
        chosen = engine or (available_engines()[0] if not targets else None)
        where = ", ".join(target.name for target in targets) or f"{plan.servers} private {chosen} servers"
        seconds = plan.estimate_seconds()
        note(f"on {where}; this takes about {duration(seconds)}")
        with interruptible(), Progress(seconds) as say, scratch("xacoord-bench-") as directory:
            say("starting servers" if chosen else "taking the servers")
            beds = plan.beds_plan()
            bed = Bed.private(chosen, directory, beds) if chosen else Bed.given(targets, directory, beds)
            with bed:
                bed.prepare(connections_of(beds))
                say("starting agents")
                return view(document(plan, bed, Recovery(plan, bed).run(say)))


def document(plan: RecoveryPlan, bed: Bed, found: dict[int, Times]) -> dict[str, Any]:
    """The whole report."""
    first = bed.servers[0]
    return {
        "benchmark": "recovery",
        "xacoord": VERSION,
        "engine": first.engine,
        "version": first.settings()["version"],
        "machine": report.machine(),
        "rounds": plan.rounds,
        "servers": [
            {"name": server.name, "private": server.pid is not None, "settings": server.settings()}
            for server in bed.servers
        ],
        "connections": FINISHERS,
        "cases": [_case(branches, times) for branches, times in found.items()],
    }


def _case(branches: int, times: Times) -> dict[str, Any]:
    return {
        "branches": branches,
        "raw_seconds": report.spread(times.raw),
        "seconds": report.spread(times.ours),
        "first_commit_seconds": report.spread(times.first),
        "raw_branches_per_second": report.spread([branches / seconds for seconds in times.raw]),
        "branches_per_second": report.spread([branches / seconds for seconds in times.ours]),
        "ratio": report.ratios(times.ours, times.raw),
    }


_COLUMNS = ("BRANCHES", "RAW S", "BRANCHES/S", "COORDINATOR S", "FIRST COMMIT", "BRANCHES/S", "/ RAW")


def view(found: dict[str, Any]) -> View:
    """The report, to be printed."""

    def draw(screen: Screen) -> None:
        screen.line(
            f"{found['engine']} {found['version']}; {found['machine']['cores']} cores; "
            f"{found['rounds']} rounds; {found['connections']} connections to each of "
            f"{len(found['servers'])} servers"
        )
        rows = []
        for case in found["cases"]:
            ratio = case["ratio"]
            rows.append(
                [
                    f"{case['branches']:,}",
                    f"{case['raw_seconds']['median']:.2f}",
                    f"{case['raw_branches_per_second']['median']:,.0f}",
                    f"{case['seconds']['median']:.2f}",
                    f"{case['first_commit_seconds']['median']:.2f}",
                    f"{case['branches_per_second']['median']:,.0f}",
                    f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
                ]
            )
        screen.table(_COLUMNS, rows, "nothing was measured")
        screen.line()
        screen.line("Every branch was committed and every row is there, in every round.")

    return View(found, draw)
