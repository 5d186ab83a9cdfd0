"""One engine's soak: an undisturbed stretch, then faults with a checkpoint of calm after every few, then an
undisturbed stretch again and a last checkpoint.

The first stretch says what is normal; the last gives every process a long life under load (I8). Whatever
happens, `run` leaves facts: a system that does not come back is a violation, an error of the harness, too.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.engines import Binaries, Engine
from tests.soak import flat, latency
from tests.soak.calm import Calms
from tests.soak.facts import Facts, Fault
from tests.soak.faults import Faults
from tests.soak.samples import Sampler
from tests.soak.system import GaveUp, System

FAULTS_BETWEEN_CALMS = 5
_CHECK_ALIVE_SECONDS = 0.5


@dataclass(frozen=True)
class Plan:
    """What was asked for. `seconds` for all of it, `every` from fault to fault on average."""

    seconds: float
    every: float
    seed: int
    threads: int

    @property
    def head(self) -> float:
        """Seconds of the first stretch."""
        return min(60.0, 0.2 * self.seconds)

    @property
    def tail(self) -> float:
        """Seconds of the last stretch."""
        return min(180.0, 0.15 * self.seconds)


class Soak:
    """`run` in a thread of its own; `stop` is set when it is to end early, with a report all the same."""

    def __init__(self, engine: Engine, plan: Plan, directory: Path, stop: threading.Event) -> None:
        self.directory = directory
        self.facts = Facts(engine, Binaries.find(engine).version, time.time())
        self.is_calm = False
        self._plan = plan
        self._stop = stop
        self._random = random.Random(f"{plan.seed} {engine}")
        self._committed = _Counter(directory / "ledgers")

    def run(self) -> None:
        """All of it."""
        checks = self.facts.checks
        try:
            system = System(self.facts.engine, self.directory, self._plan.seed, self._plan.threads, checks)
        except Exception:
            checks.violated("harness", traceback.format_exc())
            return
        try:
            self._run(system)
        except GaveUp:
            pass  # is a violation already
        except Exception:
            checks.violated("harness", traceback.format_exc())
        finally:
            self.facts.ended = time.time()
            system.close()
        self._judge()

    def _run(self, system: System) -> None:
        system.open()
        sampler = Sampler(system, self.facts)
        try:
            self.facts.began = time.time()
            system.mend(system.parts)
            end = self.facts.began + self._plan.seconds - self._plan.tail
            self._wait(system, self.facts.began + self._plan.head)
            self.facts.normal_until = time.time()
            calms = Calms(system, self.facts)
            faults = Faults(system, self._plan.seed)
            while not self._stop.is_set() and time.time() < end:
                self._fault(system, faults, end)
                if len(self.facts.faults) % FAULTS_BETWEEN_CALMS == 0 and time.time() < end:
                    self._calm(calms)
                    system.mend(system.parts)
                    self._wait(system, min(end, time.time() + self._plan.every / 2))
            self._wait(system, time.time() + self._plan.tail)
            self._calm(calms)
        finally:
            system.kill_servers()  # lets the sampler's sessions go
            sampler.close()

    def _fault(self, system: System, faults: Faults, end: float) -> None:
        """One fault, and the time until the next."""
        began = time.time()
        kind = faults.draw()
        fault: Fault = faults.perform(kind)
        self.facts.faults.append(fault)
        self._wait(system, min(end, began + self._plan.every * self._random.uniform(0.6, 1.4)))

    def _calm(self, calms: Calms) -> None:
        self.is_calm = True
        self.facts.calms.append(calms.take())
        self.is_calm = False

    def _wait(self, system: System, until: float) -> None:
        while not self._stop.is_set() and time.time() < until:
            system.check_alive()
            time.sleep(min(_CHECK_ALIVE_SECONDS, max(0.0, until - time.time())))

    def _judge(self) -> None:
        """I8 and I9, which need the whole run."""
        checks = self.facts.checks
        growths = list(flat.growths(self.facts.samples))
        checks.judged("I8", len(growths), [str(growth) for growth in growths if growth.is_too_much])
        samples, log_bytes = self.facts.samples, self.facts.log_bytes
        found_at_any_time = flat.problems_at_any_time(samples, log_bytes)
        checks.judged("I8", len(samples) + len(log_bytes), found_at_any_time)
        found = latency.recoveries(self.facts)
        slots = sum(recovery.slots for recovery in found)
        checks.judged("I9", slots, latency.problems(found, self.facts.began))

    def progress(self) -> str:
        """One engine's part of the progress line."""
        rate = self._committed.rate()
        state = " calm" if self.is_calm else ""
        kind = f" ({self.facts.faults[-1].kind})" if self.facts.faults else ""
        return (
            f"{self.facts.engine}: {rate:6.1f} tps, {len(self.facts.faults)} faults{kind}, "
            f"{len(self.facts.calms)} checkpoints, {self.facts.checks.count} violations{state}"
        )


class _Counter:
    """Counts committed transfers in growing ledgers."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._read: dict[Path, int] = {}
        self._at = clock()

    def rate(self) -> float:
        """Per second, since the last call."""
        number = 0
        for path in self._directory.glob("*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                number += file.read().count(b'"outcome": "COMMITTED"')
                self._read[path] = file.tell()
        before, self._at = self._at, self._clock()
        return number / max(1e-9, self._at - before)
