"""I9: latency is back within twice its normal 10 s after a fault. RULE is the rule, as the report has it."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tests.soak.facts import Facts, Fault
from tests.soak.robust import median, quantile

RULE = """\
*Normal* is the median latency of committed transfers in the first stretch of the run, which has no faults. A
fault's *end* is when nothing is frozen or locked any more, the last dead process has been started again, and
a dead server answers again. The time from 10 s after the end until the next fault (30 s at most) is cut into
slots of 2 s; a slot is *slow* if its median latency is more than twice the normal, or nothing was committed
in it. Two cores are noisy, so

- the machine is measured, too, and in a slot in which it is k > 1 times slower than in the first stretch, k
  times the latency is allowed. k is the larger of two: how much slower a one-row transaction is that goes
  once a second straight to each server, past our processes (the median over three slots); and how much less
  of the processors is left to us by programs that are not ours;
- a fault is violated if *more than half* of its slots are slow, with at least two slots; and all faults
  together if more than a tenth of all slots is slow."""

SETTLE = 10.0
SLOT = 2.0
LONGEST = 30.0
TIMES = 2.0
_SHARE_OF_ALL = 0.1
_LEAST_SHARE = 0.1
_FEWEST_SLOTS_OF_ALL = 20


@dataclass(frozen=True)
class Recovery:
    """How one fault went. Seconds; `back`: after its end, or None if it was not until the next one began."""

    fault: Fault
    unavailable: float
    back: float | None
    slots: int
    slow: int


class Latencies:
    """The committed transfers and probes of a run, by time."""

    def __init__(self, facts: Facts) -> None:
        committed = [item for item in facts.told if item.outcome == "COMMITTED"]
        self._at = [item.at for item in committed]
        self._seconds = [item.seconds for item in committed]
        probes = sorted(facts.probes, key=lambda probe: probe.at)
        self._probe_at = [probe.at for probe in probes]
        self._probe_seconds = [probe.seconds for probe in probes]
        head = self.between(facts.began, facts.normal_until)
        self.normal = median(head) if head else 0.0
        self.normal_rate = len(head) / max(1e-9, facts.normal_until - facts.began)
        first = self._probes(facts.began, facts.normal_until)
        self.normal_probe = median(first) if first else 0.0
        self._cores = facts.cores
        self._load_at = [load.at for load in facts.loads]
        self._foreign = [load.foreign for load in facts.loads]
        self.normal_share = self._share(facts.began, facts.normal_until)

    def between(self, begin: float, end: float) -> list[float]:
        """Latencies of what was committed in a stretch of time."""
        return self._seconds[bisect.bisect(self._at, begin) : bisect.bisect(self._at, end)]

    def _probes(self, begin: float, end: float) -> list[float]:
        return self._probe_seconds[bisect.bisect(self._probe_at, begin) : bisect.bisect(self._probe_at, end)]

    def noise(self, begin: float, end: float) -> float:
        """How many times slower than normal the machine was, at least 1."""
        probes = self._probes(begin - SLOT, end + SLOT)
        slower = median(probes) / self.normal_probe if probes and self.normal_probe else 1.0
        return max(1.0, slower, self.normal_share / self._share(begin - SLOT, end + SLOT))

    def _share(self, begin: float, end: float) -> float:
        """How many cores others have left to us."""
        foreign = self._foreign[bisect.bisect(self._load_at, begin) : bisect.bisect(self._load_at, end)]
        return max(_LEAST_SHARE, self._cores - (median(foreign) if foreign else 0.0))

    def is_slow(self, begin: float, end: float) -> bool:
        """The rule of one slot."""
        found = self.between(begin, end)
        return not found or median(found) > TIMES * self.normal * self.noise(begin, end)

    def longest_gap(self, begin: float, end: float) -> float:
        """The longest time without a commit within a stretch of time."""
        times = [begin, *self._at[bisect.bisect(self._at, begin) : bisect.bisect(self._at, end)], end]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def back_after(self, fault: Fault, until: float) -> float | None:
        """Seconds from the fault's end to the first second that is normal: not slow, half the throughput."""
        begin = fault.ended
        while begin < until:
            noise = self.noise(begin, begin + 1)
            enough = len(self.between(begin, begin + 1)) >= self.normal_rate / 2 / noise
            if enough and not self.is_slow(begin, begin + 1):
                return begin - fault.ended
            begin += 0.25
        return None


def recoveries(facts: Facts) -> list[Recovery]:
    """One for each fault."""
    latencies = Latencies(facts)
    borders = sorted([fault.began for fault in facts.faults] + [calm.began for calm in facts.calms])
    found = []
    for fault in facts.faults:
        place = bisect.bisect(borders, fault.began)
        until = min(borders[place] if place < len(borders) else facts.ended, fault.ended + LONGEST)
        slots = slow = 0
        begin = fault.ended + SETTLE
        while begin + SLOT <= until:
            slots += 1
            slow += latencies.is_slow(begin, begin + SLOT)
            begin += SLOT
        gap = latencies.longest_gap(fault.began, until)
        found.append(Recovery(fault, gap, latencies.back_after(fault, until), slots, slow))
    return found


def problems(found: Sequence[Recovery], began: float) -> list[str]:
    """What breaks the rule."""
    bad = []
    for recovery in found:
        if recovery.slots >= 2 and recovery.slow > recovery.slots / 2:
            fault = recovery.fault
            bad.append(
                f"{fault.kind} ({fault.targets}) at {fault.began - began:.0f} s: "
                f"{recovery.slow} of {recovery.slots} slots are slow"
            )
    slots = sum(recovery.slots for recovery in found)
    slow = sum(recovery.slow for recovery in found)
    if slots >= _FEWEST_SLOTS_OF_ALL and slow > _SHARE_OF_ALL * slots:
        bad.append(f"{slow} of all {slots} slots are slow")
    return bad


def by_kind(found: Sequence[Recovery]) -> dict[str, list[Recovery]]:
    """Sorted by kind of fault."""
    kinds: dict[str, list[Recovery]] = {}
    for recovery in sorted(found, key=lambda item: item.fault.kind):
        kinds.setdefault(recovery.fault.kind, []).append(recovery)
    return kinds


def seconds_back(found: Sequence[Recovery], share: float) -> float:
    """A quantile of the time until normal."""
    return quantile([item.back for item in found if item.back is not None], share)
