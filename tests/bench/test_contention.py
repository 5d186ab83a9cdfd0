"""Contention: what clients do when they are rolled back, what counts, and the command in its shortest form.

Nothing here asserts a time or a ratio.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from coordinator.ctl.output import Screen
from deploy.bench.bed import coordinator_config
from deploy.bench.contention.hot import ACROSS as ACROSS_SERVERS
from deploy.bench.contention.hot import ENDED_WITH_THE_SLOT, HotWork, Keen, Pair, Probe, why
from deploy.bench.contention.plan import ContentionPlan
from deploy.bench.contention.report import rates, side_document, view
from deploy.bench.load import Done, Slot, Threads
from deploy.bench.plan import IN_PROCESS, INTERACTIVE, ONE_SHOT, PROCESSES, RAW, Side, Variant
from deploy.bench.run import Measured
from deploy.bench.work import Told
from deploy.engines import Engine
from xacoord import RolledBack

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 120
PROBE_SECONDS = 10.0


class Scripted:
    """A client whose attempts end as they are told; the last one again and again."""

    def __init__(self, *outcomes: tuple[Told, str]) -> None:
        self._outcomes = list(outcomes)
        self.attempts = 0

    def transact(self) -> tuple[Told, str]:
        time.sleep(0.002)
        self.attempts += 1
        return self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]

    def close(self) -> None:
        pass


def slot(warm_up: float, seconds: float) -> Slot:
    now = time.monotonic()
    return Slot(now, now + warm_up, now + warm_up + seconds)


COMMITTED = (Told.COMMITTED, "")
ACROSS = (Told.ROLLED_BACK, "DEADLOCK: deadlock across servers, and this transaction began last: ...")


def test_who_is_rolled_back_begins_again_and_that_counts() -> None:
    client = Scripted(ACROSS, ACROSS, COMMITTED)
    done = Keen(client).work(slot(0.0, 0.05))
    assert done.told["rolled_back"] == done.told["deadlock across servers"] == 2
    assert done.told["committed"] == client.attempts - 2
    assert len(done.latencies) in (done.told["in_time"], done.told["in_time"] + 1)
    assert max(done.latencies) >= 6_000, "the first one has taken three attempts"


def test_what_never_commits_counts_with_all_its_time() -> None:
    done = Keen(Scripted(ACROSS)).work(slot(0.0, 0.05))
    assert done.told["in_time"] == done.told["committed"] == 0
    (latency,) = done.latencies
    assert latency > 20_000
    assert done.told["stuck"] == 0, "that is more than a second"


def test_what_nobody_knows_is_not_done_again() -> None:
    client = Scripted((Told.UNKNOWN, "lost"), COMMITTED)
    done = Keen(client).work(slot(0.0, 0.02))
    assert done.told["unknown"] == 1
    assert done.reasons == ["lost"]


def test_half_of_the_clients_go_the_other_way() -> None:
    there, back = HotWork((0, 1), rows=5, seed=1), HotWork((1, 0), rows=5, seed=1)
    assert [change for change, _ in there.parameters()] == [1, -1]
    assert [change for change, _ in back.parameters()] == [-1, 1]
    rows = {row for _ in range(200) for _, row in there.parameters()}
    assert rows == {1, 2, 3, 4, 5}


def test_why_an_attempt_was_rolled_back() -> None:
    told = {
        ACROSS[1]: "deadlock across servers",
        "DEADLOCK: (1213) Deadlock found when trying to get lock": "deadlock at one server",
        "1213 Deadlock found when trying to get lock": "deadlock at one server",
        "1205 Lock wait timeout exceeded": "lock wait time-out",
        "LOCK_TIMEOUT: (1205) Lock wait timeout exceeded": "lock wait time-out",
        "DEADLINE_PASSED: the transaction's time-out passed before the decision": "deadline passed",
        "1317 Query execution was interrupted": ENDED_WITH_THE_SLOT,
        "POOL_EXHAUSTED: all sessions of the agent are in use": "other",
        "": "other",
    }
    assert {reason: why(reason) for reason in told} == told


def test_the_plan_has_raw_first_and_all_its_variants() -> None:
    plan = ContentionPlan(agents=(PROCESSES, IN_PROCESS), lock_wait_seconds=7, seconds=1.0, raw_seconds=9.0)
    assert [side.kind for side in plan.sides] == [RAW, ONE_SHOT, ONE_SHOT, INTERACTIVE, INTERACTIVE]
    assert {side.variant.lock_wait_seconds for side in plan.sides if side.variant} == {7}
    assert [plan.seconds_of(side) for side in plan.sides] == [9.0, 1.0, 1.0, 1.0, 1.0]
    assert list(plan.order()) == [plan.sides, plan.sides[::-1]]
    assert plan.estimate_seconds() > 2 * (9.0 + 4.0)


def measured(seconds: float, latencies: list[int], **told: int) -> Measured:
    return Measured(seconds, sorted(latencies), {}, None, Counter(told), [])


def test_what_is_reported_of_a_side() -> None:
    ours = Side(ONE_SHOT, Variant())
    base = [measured(10.0, [1], in_time=10), measured(10.0, [1], in_time=20)]
    slots = [
        measured(2.0, [1_000, 2_000], in_time=20, committed=21, rolled_back=3, stuck=1),
        measured(2.0, [3_000], in_time=40, committed=40, **{"deadlock across servers": 2}),
    ]
    slots[0].told.update({"deadlock across servers": 1, "lock wait time-out": 1, ENDED_WITH_THE_SLOT: 1})
    assert rates(slots) == [10.0, 20.0]
    lasted = {ACROSS_SERVERS: [400_000, 300_000, 900_000], "lock wait time-out": [50_000_000, 50_100_000]}
    found = side_document(ContentionPlan(), ours, slots, base, lasted)
    assert (found["tps"], found["ratio"]) == (15.0, {"median": 10.0, "min": 10.0, "max": 10.0})
    assert (found["p50_ms"], found["p99_ms"]) == (2.0, 3.0)
    assert found["aborted"] == 2
    assert found["aborted_by"] == {"deadlock across servers": 3, "lock wait time-out": 1}
    assert (found["committed"], found["in_time"], found["stuck"]) == (61, 60, 1)
    assert found["deadlocks"] == {
        "measured": 5,
        "not_found": 2,
        "p50_ms": 900.0,
        "max_ms": 50_100.0,
        "ended_by": {
            ACROSS_SERVERS: {"count": 3, "max_ms": 900.0},
            "lock wait time-out": {"count": 2, "max_ms": 50_100.0},
        },
    }
    raw = side_document(ContentionPlan(), Side(RAW), base, base, {})
    assert raw["deadlocks"] is None
    text = drawn([raw, found | {"side": "interactive, in-process"}])
    assert "interactive, in-process: deadlocks that were not found: 2 by lock wait time-out" in text
    assert max(map(len, text.splitlines())) <= 110


def drawn(sides: list[dict[str, Any]]) -> str:
    """What people see of a report."""
    document = {"engine": "e", "version": "1", "machine": {"cores": 2}, "clients": 32, "rows": 100}
    document |= {"branches": 2, "lock_wait_seconds": 50, "rounds": 2, "busy_elsewhere_cores": None}
    stream = io.StringIO()
    view(document | {"sides": sides, "problems": []}).draw(Screen(stream, terminal=False))
    return stream.getvalue()


class FakeManager:
    """Its transactions' second statements end as they are told: (seconds, why, or "" for well)."""

    def __init__(self, *ends: tuple[float, str]) -> None:
        self._ends = ends

    def transaction(self) -> FakeManager:
        return self

    def begin(self) -> FakeTransaction:
        return FakeTransaction(self._ends)


class FakeTransaction:
    """One of `FakeManager`'s; the first probe begins at "p0"."""

    def __init__(self, ends: tuple[tuple[float, str], ...]) -> None:
        self._ends = ends
        self._asked: list[str] = []

    def branch(self, participant: str) -> FakeTransaction:
        self._asked.append(participant)
        return self

    def execute(self, *_: object) -> None:
        if len(self._asked) < 2:
            return
        seconds, reason = self._ends[self._asked[0] != "p0"]
        time.sleep(seconds)
        if reason:
            raise RolledBack(reason, ACROSS_SERVERS if reason == "DEADLOCK" else "no")

    def commit(self) -> None:
        pass


def probed(*ends: tuple[float, str]) -> Done:
    """What two probes tell of a slot with one meeting that ends so."""
    pair, manager = Pair(), FakeManager(*ends)
    probes = [
        Probe(pair, manager, ("p0", "p1"), order, PROBE_SECONDS)  # type: ignore[arg-type]
        for order in ((0, 1), (1, 0))
    ]
    with Threads([lambda it=it: it for it in probes], lambda it, slot: it.work(slot)) as threads:  # type: ignore[misc]
        assert not threads.ready().failed
        done = threads.run(slot(0.0, 0.03))
    assert not done.failed, done.failed
    return done


def test_a_deadlock_that_is_found_counts_once_with_its_time() -> None:
    done = probed((0.03, "DEADLOCK"), (0.03, ""))
    assert done.told["rolled_back"] == done.told["committed"] == 1
    ((why_it_ended, (duration,)),) = done.lasted.items()
    assert why_it_ended == ACROSS_SERVERS
    assert duration >= 30_000


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("LOCK_TIMEOUT", "lock wait time-out"),
        ("DEADLINE_PASSED", "deadline passed"),
        ("BRANCH_LOST", "other"),
    ],
)
def test_a_deadlock_that_is_not_found_counts_too(reason: str, expected: str) -> None:
    """Once, also where both are rolled back, and with the time until the first was."""
    done = probed((0.12, reason), (0.04, reason))
    assert done.told["rolled_back"] == 2
    ((why_it_ended, (duration,)),) = done.lasted.items()
    assert why_it_ended == expected
    assert duration >= 40_000


@pytest.mark.parametrize("lock_wait", [5, 50, 1000])
def test_whoever_waits_for_a_lock_is_ended_by_the_lock_wait_timeout(tmp_path: Path, lock_wait: int) -> None:
    """Not by its transaction's time-out: that would look as if something had been found."""
    variant = ContentionPlan(lock_wait_seconds=lock_wait).sides[1].variant
    assert variant is not None
    assert variant.timeout_seconds > lock_wait
    text = coordinator_config("z001", tmp_path, "127.0.0.1:1", {}, variant, hosted=False)
    assert tomllib.loads(text)["transactions"]["max_timeout"] >= variant.timeout_seconds


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coordinator.ctl.main", "bench", "contention", *arguments]
    environ = {**os.environ, "TMPDIR": str(directory), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, env=environ, timeout=_PATIENCE_SECONDS, check=False
    )


@pytest.mark.engines("mariadb")
def test_the_real_command(engine: Engine, tmp_path: Path) -> None:
    options = ["--rows", "4", "--clients", "4", "--lock-wait", "30", "--rounds", "1", "--seconds", "1.5"]
    done = run(tmp_path, "--engine", engine, *options, "--raw-seconds", "2.5", "-o", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["problems"] == []
    assert (document["engine"], document["rows"], document["clients"]) == (engine, 4, 4)
    sides = {side["side"]: side for side in document["sides"]}
    assert list(sides) == [
        "raw",
        "one-shot",
        "one-shot, in-process",
        "interactive",
        "interactive, in-process",
    ]
    for side in sides.values():
        assert side["unknown"] == 0, side
        if side["kind"] == "raw":
            assert side["deadlocks"] is None
            continue
        assert side["in_time"] > 0, side
        deadlocks = side["deadlocks"]
        assert deadlocks["measured"] > 0, side
        assert deadlocks["measured"] == sum(it["count"] for it in deadlocks["ended_by"].values())
        assert 0 < side["p50_ms"] <= side["p99_ms"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "why_not"),
    [
        (("--server", "x=127.0.0.1:1"), "give --server twice"),
        (("--server", "x=127.0.0.1:1", "--engine", "mysql"), "--engine is for private servers"),
        (("--rows", "0"), "0 is not in the range"),
        (("--lock-wait", "no"), "'no' is not a valid integer"),
    ],
)
def test_wrong_options(tmp_path: Path, options: tuple[str, ...], why_not: str) -> None:
    done = run(tmp_path, *options)
    assert done.returncode == 2
    assert why_not in done.stderr
