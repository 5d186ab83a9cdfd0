"""Contention: few rows, many clients, and branches in both orders: deadlocks across servers all the time.

Everybody begins again until a transaction has committed. Agents have the same lock wait time-out, and
transactions a longer one: a deadlock that nobody finds lasts as long as on raw. Two more clients make
deadlocks on purpose on our sides, beside all the others, and measure how long each lasts and what ended it
(hot.py).

What still waits when a slot of raw is over is killed, and counts as stuck. At the end the books must agree.
"""

from __future__ import annotations

import contextlib
import os
import random
import string
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import MySQLdb

from deploy.bench.bed import Bed
from deploy.bench.contention.hot import PROBE, HotJob
from deploy.bench.contention.plan import BRANCHES, PROBES, ContentionPlan
from deploy.bench.cpu import Meter
from deploy.bench.crew import PATIENCE_SECONDS, Crew
from deploy.bench.load import Done, Slot
from deploy.bench.plan import Case, Side
from deploy.bench.progress import Progress
from deploy.bench.run import Measured, Results, problems
from deploy.bench.servers import Server

_LEAD_SECONDS = 0.03
_ANSWER_SECONDS = 30.0  # to hear what became of a transaction whose time was over
_RELEASE_EVERY_SECONDS = 0.1
_RELEASE_SECONDS = 30.0


@dataclass
class Found:
    """What came of the slots.

    Attributes:
        slots: of each side; latencies include those of transactions that had not ended.
        deadlocks: microseconds that those lasted that were made on purpose, by side and by what ended them.
        probes: how the transactions ended that made them.
    """

    slots: dict[Side, list[Measured]] = field(default_factory=dict)
    deadlocks: dict[Side, dict[str, list[int]]] = field(default_factory=dict)
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
        found = Found({side: [] for side in plan.sides}, {side: {} for side in plan.sides})
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
        case = Case(BRANCHES, plan.clients)
        books = Results({case: found.slots}, {case: found.probes})
        left = bed.wait_until_clean()
        found.problems = problems(books, left, [server.total() for server in bed.servers])
        return found

    def _crew(self, side: Side, kind: str) -> Crew:
        plan, bed = self._plan, self._bed
        job = HotJob(
            kind,
            PROBES if kind == PROBE else plan.clients,
            0,
            BRANCHES,
            False,
            "".join(random.choices(string.digits + string.ascii_lowercase, k=4)),
            rows=plan.rows,
            lock_wait_seconds=plan.lock_wait_seconds,
            timeout_seconds=side.variant.timeout_seconds if side.variant else 0,
        )
        patience = PATIENCE_SECONDS
        if side.variant is None:
            job.targets.extend(asdict(server.target) for server in bed.servers)
        else:
            system = bed.systems[side.variant]
            job.participants.extend(system.participants)
            job.coordinators.extend(system.coordinators)
            patience = max(patience, side.variant.timeout_seconds + _ANSWER_SECONDS)
        processes = 1 if kind == PROBE else os.cpu_count() or 1
        return Crew(job, processes, bed.directory, "deploy.bench.contention.hot", patience)

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
        for end, durations in made.lasted.items():
            found.deadlocks[side].setdefault(end, []).extend(durations)
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
