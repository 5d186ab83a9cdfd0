"""Run: a plan on a bed: slot after slot, and at the end the books.

1. For each case the load processes of all sides are started and hold their connections. Each side works for a
   moment that nobody measures, because agents connect to their servers when there is work.
2. Round after round each side has its slot, alone: a warm-up, then the part that counts.
3. When all is done: no branch of the benchmark may be prepared, and every server's sum must have moved by
   exactly what clients were told. What was lost, or made twice, does not go unnoticed.
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

from deploy.bench.bed import Bed
from deploy.bench.cpu import Meter
from deploy.bench.crew import Crew
from deploy.bench.load import Job, Slot
from deploy.bench.plan import REHEARSAL_SECONDS, Case, Plan, Side
from deploy.bench.progress import Progress
from deploy.bench.servers import OPENING_BALANCE, ROWS
from deploy.bench.work import Told, change

# Until every load process has read when the slot begins.
_LEAD_SECONDS = 0.03


@dataclass(frozen=True)
class Measured:
    """One slot.

    Attributes:
        seconds: of the part that counts.
        latencies: of the transactions that committed in it, in microseconds, sorted.
        cpu: seconds of processor time by process.
        foreign: processors that others have kept busy; None where servers are not ours, and so others, too.
        told: how all transactions of the slot ended, those of the warm-up, too.
        reasons: why some did not commit; a few of them.
    """

    seconds: float
    latencies: list[int]
    cpu: dict[str, float]
    foreign: float | None
    told: Counter[str]
    reasons: list[str]


@dataclass
class Results:
    """All slots, by case and side in order of rounds; and what is wrong.

    Attributes:
        rehearsed: how the transactions of each case ended that belong to no slot.
    """

    slots: dict[Case, dict[Side, list[Measured]]] = field(default_factory=dict)
    rehearsed: dict[Case, Counter[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def run(plan: Plan, bed: Bed, say: Progress) -> Results:
    """Measure. `say` is told what is done next.

    Raises:
        BenchError: it cannot go on.
    """
    results = Results()
    for number, case in enumerate(plan.cases):
        slots: dict[Side, list[Measured]] = {side: [] for side in plan.sides}
        results.slots[case] = slots
        title = f"{case.title} ({number + 1} of {len(plan.cases)})"
        say(title)
        with contextlib.ExitStack() as stack:
            crews = {side: stack.enter_context(_crew(bed, case, side)) for side in plan.sides}
            for crew in crews.values():
                crew.wait_until_ready()
            results.rehearsed[case] = Counter()
            for crew in crews.values():
                results.rehearsed[case] += _rehearse(crew)
            for turn, sides in enumerate(plan.order()):
                for side in sides:
                    say(title, f"round {turn + 1} of {plan.rounds}, {side.label}")
                    slots[side].append(_slot(bed, case, side, crews[side], plan.seconds))
                    bed.check()
    say("checking the books")
    results.problems = problems(results, bed.wait_until_clean(), [server.total() for server in bed.servers])
    return results


def _crew(bed: Bed, case: Case, side: Side) -> Crew:
    job = Job(
        side.kind,
        case.clients,
        0,
        case.branches,
        case.read_only,
        "".join(random.choices(string.digits + string.ascii_lowercase, k=4)),
    )
    if side.variant is None:
        job.targets.extend(asdict(server.target) for server in bed.servers[: case.branches])
    else:
        system = bed.systems[side.variant]
        job.participants.extend(system.participants[: case.branches])
        job.coordinators.extend(system.coordinators)
    return Crew(job, os.cpu_count() or 1, bed.directory)


def _rehearse(crew: Crew) -> Counter[str]:
    begin = time.monotonic() + _LEAD_SECONDS
    end = begin + REHEARSAL_SECONDS
    crew.begin(Slot(begin, end, end))
    return crew.finish().told


def _slot(bed: Bed, case: Case, side: Side, crew: Crew, seconds: float) -> Measured:
    pids = bed.pids(side.variant)
    pids.update((f"load {number + 1}", pid) for number, pid in enumerate(crew.pids))
    meter = Meter(pids, bed.all_pids())
    begin = time.monotonic() + _LEAD_SECONDS
    measure = begin + case.warm_up_seconds
    slot = Slot(begin, measure, measure + seconds)
    crew.begin(slot)
    _sleep_until(slot.measure)
    meter.start()
    _sleep_until(slot.end)
    cpu, foreign = meter.stop()
    done = crew.finish()
    return Measured(
        seconds,
        sorted(done.latencies),
        cpu,
        foreign / seconds if all(server.pid for server in bed.servers) else None,
        done.told,
        done.reasons,
    )


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def problems(results: Results, left: Sequence[str], totals: Sequence[int]) -> list[str]:
    """What is wrong at the end. `left`: branches that are prepared; `totals`: the sum of each server."""
    found = []
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        found.append(f"branches are left prepared: {', '.join(left[:3])}{more}")
    told = {
        case: results.rehearsed.get(case, Counter()) + _told(sides) for case, sides in results.slots.items()
    }
    unknown = sum(count[Told.UNKNOWN.value] for count in told.values())
    if unknown:
        found.append(f"clients were not told how {unknown} transactions ended")
    for place, total in enumerate(totals):
        moved = total - ROWS * OPENING_BALANCE
        here = [case for case in told if place < case.branches and not case.read_only]
        committed = sum(told[case][Told.COMMITTED.value] for case in here)
        open_ones = sum(told[case][Told.UNKNOWN.value] for case in here)
        if not committed <= moved * change(place) <= committed + open_ones:
            found.append(
                f"server {place + 1}: its balances show {moved * change(place)} transactions, and clients "
                f"were told that {committed} committed"
            )
    return found


def _told(sides: dict[Side, list[Measured]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for slots in sides.values():
        for slot in slots:
            total += slot.told
    return total
