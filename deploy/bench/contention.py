"""Contention: few rows, many clients, and branches in both orders: deadlocks across servers all the time.

    raw          XA by hand, branch after branch, with the lock wait time-out that servers have (50 s). It is
                 all that ends a deadlock across servers there
    one-shot     Run; all branches at once
    interactive  Begin, Execute on each server, Commit

Everybody begins again until a transaction has committed. Agents have the same lock wait time-out, so that
what ends sooner was found. Two more clients make deadlocks on purpose on our sides, beside all the others,
and measure how long each lasts (hot.py).

The sides take turns as in the other benchmarks. A slot of raw is longer than twice its time-out: it works
well until there is a deadlock, soon everybody waits for somebody who waits, and all begin again when the
time-out comes. What still waits when the slot is over is killed, and counts as stuck. At the end the books
must agree.
"""

from __future__ import annotations

import contextlib
import os
import random
import string
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import MySQLdb

from coordinator.ctl.output import Screen, View, note
from coordinator.version import VERSION
from deploy.bench import report
from deploy.bench.bed import Bed, connections_of
from deploy.bench.command import told
from deploy.bench.cpu import Meter
from deploy.bench.crew import Crew
from deploy.bench.hot import ENDED_WITH_THE_SLOT, PROBE, HotJob
from deploy.bench.load import Done, Slot
from deploy.bench.plan import INTERACTIVE, ONE_SHOT, PROCESSES, RAW, Case, Plan, Side, Variant, counted
from deploy.bench.progress import Progress, duration
from deploy.bench.run import Measured, Results, problems
from deploy.bench.servers import Server, Target
from deploy.bench.work import Told
from deploy.engines import Engine, available_engines
from deploy.interruption import interruptible, scratch

_BRANCHES = 2
_PROBES = 2
_LEAD_SECONDS = 0.03
_RELEASE_EVERY_SECONDS = 0.1
_RELEASE_SECONDS = 30.0
_START_SECONDS, _SLOT_SECONDS = 15.0, 2.0  # for the estimate only
_NOT_WHY = {told.value for told in Told} | {"in_time", "stuck", ENDED_WITH_THE_SLOT}


@dataclass(frozen=True)
class ContentionPlan:
    """Raw and ours, `rounds` times.

    Attributes:
        rows: on each server.
        lock_wait_seconds: of everybody's sessions.
        seconds: of a slot of ours; raw_seconds: of one of raw.
    """

    rows: int = 100
    clients: int = 32
    lock_wait_seconds: int = 50
    agents: tuple[str, ...] = (PROCESSES,)
    rounds: int = 2
    seconds: float = 15.0
    raw_seconds: float = 110.0
    warm_up_seconds: float = 0.5

    @property
    def sides(self) -> tuple[Side, ...]:
        """What takes turns."""
        variants = [Variant(agents, lock_wait_seconds=self.lock_wait_seconds) for agents in self.agents]
        ours = [Side(kind, variant) for kind in (ONE_SHOT, INTERACTIVE) for variant in variants]
        return (Side(RAW), *ours)

    def beds_plan(self) -> Plan:
        """What has to be set up, in the words of the other benchmark."""
        return Plan((Case(_BRANCHES, self.clients + _PROBES),), self.sides, self.rounds, self.seconds)

    def seconds_of(self, side: Side) -> float:
        """Of a slot, without its warm-up."""
        return self.raw_seconds if side.kind == RAW else self.seconds

    def order(self) -> Iterator[tuple[Side, ...]]:
        """The sides of each round."""
        return self.beds_plan().order()

    def estimate_seconds(self) -> float:
        """How long it takes, about."""
        slots = sum(self.seconds_of(side) + self.warm_up_seconds + _SLOT_SECONDS for side in self.sides)
        return _START_SECONDS + self.rounds * slots


@dataclass
class Found:
    """What came of the slots.

    Attributes:
        slots: of each side; latencies include those of transactions that had not ended.
        deadlocks: microseconds that those lasted that were made on purpose, by side.
        probes: how the transactions ended that made them.
    """

    slots: dict[Side, list[Measured]] = field(default_factory=dict)
    deadlocks: dict[Side, list[int]] = field(default_factory=dict)
    probes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Contention:
    """The benchmark on a bed that is prepared."""

    def __init__(self, plan: ContentionPlan, bed: Bed) -> None:
        self._plan = plan
        self._bed = bed
        for variant in plan.beds_plan().variants:
            bed.start(variant)

    def run(self, say: Progress) -> Found:
        """Measure. Raises BenchError where it cannot go on."""
        plan, bed = self._plan, self._bed
        found = Found({side: [] for side in plan.sides}, {side: [] for side in plan.sides})
        with contextlib.ExitStack() as stack:
            crews = {side: stack.enter_context(self._crew(side, side.kind)) for side in plan.sides}
            probes = {
                side: stack.enter_context(self._crew(side, PROBE)) for side in plan.sides if side.variant
            }
            for crew in (*crews.values(), *probes.values()):
                crew.wait_until_ready()
            for turn, sides in enumerate(plan.order()):
                for side in sides:
                    say(f"round {turn + 1} of {plan.rounds}, {side.label}")
                    self._slot(side, crews[side], probes.get(side), found)
                    bed.check()
        say("checking the books")
        case = Case(_BRANCHES, plan.clients)
        books = Results({case: found.slots}, {case: found.probes})
        left = bed.wait_until_clean()
        found.problems = problems(books, left, [server.total() for server in bed.servers])
        return found

    def _crew(self, side: Side, kind: str) -> Crew:
        plan, bed = self._plan, self._bed
        job = HotJob(
            kind,
            _PROBES if kind == PROBE else plan.clients,
            0,
            _BRANCHES,
            False,
            "".join(random.choices(string.digits + string.ascii_lowercase, k=4)),
            rows=plan.rows,
            lock_wait_seconds=plan.lock_wait_seconds,
        )
        if side.variant is None:
            job.targets.extend(asdict(server.target) for server in bed.servers)
        else:
            system = bed.systems[side.variant]
            job.participants.extend(system.participants)
            job.coordinators.extend(system.coordinators)
        processes = 1 if kind == PROBE else os.cpu_count() or 1
        return Crew(job, processes, bed.directory, "deploy.bench.hot")

    def _slot(self, side: Side, crew: Crew, probe: Crew | None, found: Found) -> None:
        plan, bed = self._plan, self._bed
        seconds = plan.seconds_of(side)
        pids = bed.pids(side.variant)
        pids.update((f"load {number + 1}", pid) for number, pid in enumerate(crew.pids))
        meter = Meter(pids, [*bed.all_pids(), *(probe.pids if probe else ())])
        begin = time.monotonic() + _LEAD_SECONDS
        slot = Slot(begin, begin + plan.warm_up_seconds, begin + plan.warm_up_seconds + seconds)
        for one in (crew, *([probe] if probe else ())):
            one.begin(slot)
        _sleep_until(slot.measure)
        meter.start()
        _sleep_until(slot.end)
        cpu, foreign = meter.stop()
        if side.variant is None:
            _release(bed.servers)
        done = crew.finish()
        made = probe.finish() if probe else Done()
        busy = foreign / seconds if all(server.pid for server in bed.servers) else None
        found.slots[side].append(
            Measured(seconds, sorted(done.latencies), cpu, busy, done.told, done.reasons)
        )
        found.deadlocks[side] += made.latencies
        found.probes += made.told


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _release(servers: Sequence[Server]) -> None:
    """Let clients of raw come home: statements that wait are killed, until none waits."""
    deadline = time.monotonic() + _RELEASE_SECONDS
    waiting = True
    while waiting and time.monotonic() < deadline:
        waiting = False
        for server in servers:
            listed = server.sql(
                "SELECT ID FROM information_schema.PROCESSLIST WHERE DB = %s AND INFO LIKE %s",
                server.target.database,
                "UPDATE account SET balance%",
            )
            for (connection_id,) in listed:
                waiting = True
                with contextlib.suppress(MySQLdb.Error):  # it has just ended
                    server.sql(f"KILL QUERY {int(connection_id)}")
        time.sleep(_RELEASE_EVERY_SECONDS)


def measure(plan: ContentionPlan, engine: Engine | None, targets: Sequence[Target]) -> tuple[View, list[str]]:
    """What `coordctl bench contention` does once its options are read: the report, and what is wrong.

    Raises:
        CtlError: it could not be done.
    """
    with told():
        chosen = engine or (available_engines()[0] if not targets else None)
        where = ", ".join(target.name for target in targets) or f"{_BRANCHES} private {chosen} servers"
        seconds = plan.estimate_seconds()
        note(f"on {where}; this takes about {duration(seconds)}")
        with interruptible(), Progress(seconds) as say, scratch("xacoord-bench-") as directory:
            say("starting servers" if chosen else "taking the servers")
            beds = plan.beds_plan()
            bed = Bed.private(chosen, directory, beds) if chosen else Bed.given(targets, directory, beds)
            with bed:
                bed.prepare(connections_of(beds))
                say("starting agents and coordinators")
                found = Contention(plan, bed).run(say)
                return view(document(plan, bed, found)), found.problems


def document(plan: ContentionPlan, bed: Bed, found: Found) -> dict[str, Any]:
    """The whole report."""
    first = bed.servers[0]
    busy = [slot.foreign for slots in found.slots.values() for slot in slots if slot.foreign is not None]
    return {
        "benchmark": "contention",
        "xacoord": VERSION,
        "engine": first.engine,
        "version": first.settings()["version"],
        "machine": report.machine(),
        "rounds": plan.rounds,
        "branches": _BRANCHES,
        "rows": plan.rows,
        "clients": plan.clients,
        "lock_wait_seconds": plan.lock_wait_seconds,
        "busy_elsewhere_cores": round(max(busy), 2) if busy else None,
        "servers": [
            {"name": server.name, "private": server.pid is not None, "settings": server.settings()}
            for server in bed.servers
        ],
        "sides": [
            side_document(plan, side, slots, found.slots[Side(RAW)], found.deadlocks[side])
            for side, slots in found.slots.items()
        ],
        "problems": found.problems,
    }


def rates(slots: Sequence[Measured]) -> list[float]:
    """Transactions a second of each round that committed in time."""
    return [slot.told["in_time"] / slot.seconds for slot in slots]


def side_document(
    plan: ContentionPlan,
    side: Side,
    slots: Sequence[Measured],
    base: Sequence[Measured],
    deadlocks: Sequence[int],
) -> dict[str, Any]:
    """One side of the report."""
    ends: Counter[str] = Counter()
    for slot in slots:
        ends += slot.told
    latencies = sorted(latency for slot in slots for latency in slot.latencies)
    speed = report.spread(rates(slots))
    return {
        "side": side.label,
        "kind": side.kind,
        "agents": side.variant.agents if side.variant else None,
        "seconds": plan.seconds_of(side),
        "tps": speed["median"] if speed else None,
        "tps_rounds": [round(rate, 2) for rate in rates(slots)],
        "ratio": report.ratios(rates(slots), rates(base)),
        "p50_ms": _milliseconds(latencies, 0.5),
        "p99_ms": _milliseconds(latencies, 0.99),
        "committed": ends[Told.COMMITTED.value],
        "in_time": ends["in_time"],
        "aborted": ends[Told.ROLLED_BACK.value] - ends[ENDED_WITH_THE_SLOT],
        "aborted_by": {why: count for why, count in sorted(ends.items()) if why not in _NOT_WHY},
        "stuck": ends["stuck"],
        "unknown": ends[Told.UNKNOWN.value],
        "deadlocks": {
            "measured": len(deadlocks),
            "p50_ms": _milliseconds(sorted(deadlocks), 0.5),
            "max_ms": _milliseconds(sorted(deadlocks), 1.0),
        }
        if side.variant
        else None,
    }


def _milliseconds(ascending: Sequence[int], share: float) -> float | None:
    return round(report.quantile(ascending, share) / 1000, 2) if ascending else None


_COLUMNS = ("SIDE", "TPS", "/ RAW", "P50 MS", "P99 MS", "ABORTED", "STUCK", "DEADLOCK P50 MS", "MAX MS")
_BUSY_ELSEWHERE = 0.1
_LEGEND = (
    "P50, P99: of a transaction with all its attempts; one that had not ended with the slot counts with",
    "the time that it had been under way. STUCK: under way for more than a second at the end.",
    "DEADLOCK: from the moment at which both had asked for the other's row until one was rolled back.",
)


def view(found: dict[str, Any]) -> View:
    """The report, to be printed."""

    def draw(screen: Screen) -> None:
        screen.line(
            f"{found['engine']} {found['version']}; {found['machine']['cores']} cores; {found['clients']} "
            f"clients want {found['rows']} rows on each of {found['branches']} servers, half of them in the "
            f"other order; lock wait time-out {found['lock_wait_seconds']} s; "
            f"{counted(found['rounds'], 'round')}"
        )
        screen.table(_COLUMNS, [_row(side) for side in found["sides"]], "nothing was measured")
        for side in found["sides"]:
            if side["aborted_by"]:
                why = ", ".join(f"{count} {name}" for name, count in side["aborted_by"].items())
                screen.line(f"{side['side']}: rolled back and begun again: {why}")
        screen.line()
        for line in _LEGEND:
            screen.line(line)
        elsewhere = found["busy_elsewhere_cores"]
        if elsewhere is not None and elsewhere > _BUSY_ELSEWHERE:
            screen.line(f"other programs kept {elsewhere:g} cores busy: do not trust these figures", "yellow")
        for problem in found["problems"]:
            screen.line(f"PROBLEM: {problem}", "bold red")

    return View(found, draw)


def _row(side: dict[str, Any]) -> list[str]:
    ratio, deadlocks = side["ratio"], side["deadlocks"] or {"p50_ms": None, "max_ms": None}
    own = side["kind"] == RAW or not ratio
    return [
        side["side"],
        _figure(side["tps"]),
        "" if own else f"{ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f})",
        _figure(side["p50_ms"]),
        _figure(side["p99_ms"]),
        str(side["aborted"]),
        str(side["stuck"]),
        _figure(deadlocks["p50_ms"]),
        _figure(deadlocks["max_ms"]),
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
