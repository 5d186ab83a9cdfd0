"""I8: memory, descriptors, threads, log and tables stay flat.

Four rules, because a process that is killed every other minute can hide a leak from any single one:

1. *Within a life.* Of each life of coordinator or agent the first WARM seconds are left out: imports,
   connections and the memory of ended transactions (bounded by configuration) fill up. If SPAN seconds or
   more are left, their Theil-Sen slope times their length must be below a limit with two parts: what one
   storm of retries may leave behind in pools and the allocator, and some for each minute (an agent remembers
   up to 50,000 ended branches). The run's first and last stretch have no faults, so in a run that is long
   enough each process has such a life.
2. *From life to life.* What a process needs at the same age (the median from 10 to 20 s after its start) must
   not grow over the run: a restart reads what the lives before it have left behind.
3. *At any time.* Descriptors and threads are below what the pools allow, the log is below a few segments.
4. *At rest.* At each checkpoint the log's files, the rows of the agents' fences and the witness rows are
   below bounds that do not depend on how long the run has been going.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.soak.facts import Calm, Sample
from tests.soak.robust import median, slope

WARM = 40.0
SPAN = 50.0
_AGE = (10.0, 20.0)
LIVES = 4
_MIB = 1 << 20
LOG_BYTES = 8 * _MIB  # eight segments


@dataclass(frozen=True)
class Limit:
    """Of one measure. `at_once` and `per_minute` are the limit of rule 1, `most` that of rule 3."""

    name: str
    value: Callable[[Sample], float]
    at_once: float
    per_minute: float
    from_life_to_life: float
    most: float
    unit: str = ""
    scale: float = 1.0


LIMITS = (
    Limit("memory", lambda s: s.rss_bytes, 6 * _MIB, 1 * _MIB, 12 * _MIB, 256 * _MIB, "MiB", _MIB),
    Limit("descriptors", lambda s: s.descriptors, 8, 0.5, 12, 200),
    Limit("threads", lambda s: s.threads, 6, 0.5, 8, 60),
)


@dataclass(frozen=True)
class Growth:
    """One slope that was judged, for the report."""

    process: str
    measure: str
    where: str
    growth: float
    limit: float
    unit: str

    @property
    def is_too_much(self) -> bool:
        return self.growth > self.limit

    def __str__(self) -> str:
        return (
            f"{self.process}: {self.measure} {self.where}: "
            f"{self.growth:+.2f} {self.unit} (limit {self.limit:.1f})"
        )


def growths(samples: Sequence[Sample]) -> Iterator[Growth]:
    """All slopes that rules 1 and 2 judge."""
    lives: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        lives[sample.process, sample.pid].append(sample)
    fresh: dict[str, list[list[Sample]]] = defaultdict(list)
    for (process, _), life in lives.items():
        settled = [sample for sample in life if sample.age >= WARM]
        seconds = settled[-1].at - settled[0].at if settled else 0.0
        if seconds >= SPAN:
            for limit in LIMITS:
                grown = seconds * slope([(sample.at, limit.value(sample)) for sample in settled])
                allowed = limit.at_once + limit.per_minute * seconds / 60
                yield _growth(process, limit, "in a life", grown, allowed)
        early = [sample for sample in life if _AGE[0] <= sample.age <= _AGE[1]]
        if early:
            fresh[process].append(early)
    for process, starts in fresh.items():
        if len(starts) < LIVES:
            continue
        span = starts[-1][0].at - starts[0][0].at
        for limit in LIMITS:
            points = [(life[0].at, median([limit.value(sample) for sample in life])) for life in starts]
            yield _growth(process, limit, "from life to life", slope(points) * span, limit.from_life_to_life)


def _growth(process: str, limit: Limit, where: str, value: float, most: float) -> Growth:
    return Growth(process, limit.name, where, value / limit.scale, most / limit.scale, limit.unit)


def problems_at_any_time(samples: Sequence[Sample], log_bytes: Sequence[int]) -> list[str]:
    """Rule 3."""
    found = []
    for limit in LIMITS:
        worst = max(samples, key=limit.value, default=None)
        if worst is not None and limit.value(worst) > limit.most:
            found.append(
                f"{worst.process} had {limit.value(worst) / limit.scale:.0f} {limit.unit or limit.name}"
            )
    most = max(log_bytes, default=0)
    if most > LOG_BYTES:
        found.append(f"the log had {most} bytes")
    return found


def problems_at_rest(calm: Calm, servers: int) -> list[str]:
    """Rule 4, for one checkpoint."""
    found = []
    if calm.log_bytes > LOG_BYTES:
        found.append(f"the log has {calm.log_bytes} bytes in {calm.log_files} files")
    if calm.fence_rows != servers:
        found.append(f"{calm.fence_rows} fence rows on {servers} servers")
    if calm.witness_rows > calm.witness_allowed:
        found.append(f"{calm.witness_rows} witness rows, where {calm.witness_allowed} may be left")
    return found
