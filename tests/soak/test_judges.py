"""The judges of I8 and I9 and the report: they must find what is planted, and pass what is clean."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.soak import flat, latency, plot, report
from tests.soak.calm import contradiction, epochs_of, purged_until
from tests.soak.facts import Calm, Facts, Fault, Load, Probe, Sample, Told, read_ledgers
from tests.soak.machine import Machine, busy, family_seconds
from tests.soak.robust import quantile, slope
from tests.soak.soak import Plan

MIB = 2**20


def life(
    pid: int, began: float, seconds: float, *, rss_per_minute: float = 0.0, fds_per_minute: float = 0.0
) -> list[Sample]:
    """A process that fills up in its first half minute and is noisy."""
    noise = random.Random(pid)
    found = []
    for age in range(2, int(seconds), 2):
        filling = min(age, 30) / 30 * 20 * MIB
        rss = 60 * MIB + filling + rss_per_minute * age / 60 + noise.uniform(-0.3, 0.3) * MIB
        fds = 20 + noise.randrange(3) + fds_per_minute * age / 60
        found.append(Sample(began + age, "coordinator", pid, age, int(rss), int(fds), 12))
    return found


def too_much(samples: list[Sample]) -> set[tuple[str, str]]:
    return {(item.measure, item.where) for item in flat.growths(samples) if item.is_too_much}


def test_a_clean_life_is_flat() -> None:
    found = list(flat.growths(life(1, 0, 180)))
    assert len(found) == len(flat.LIMITS)
    assert not any(item.is_too_much for item in found)


def test_a_leak_within_a_life_is_found() -> None:
    assert too_much(life(1, 0, 180, rss_per_minute=5 * MIB)) == {("memory", "in a life")}
    assert too_much(life(1, 0, 180, fds_per_minute=6)) == {("descriptors", "in a life")}


def test_one_burst_is_no_leak() -> None:
    samples = life(1, 0, 180)
    for place in range(60, 75):  # half a minute with many connections
        old = samples[place]
        samples[place] = Sample(old.at, old.process, old.pid, old.age, old.rss_bytes + 30 * MIB, 90, 40)
    assert too_much(samples) == set()


def test_what_restarts_inherit_is_found() -> None:
    clean = [sample for number in range(8) for sample in life(number, 100.0 * number, 60)]
    assert too_much(clean) == set()
    growing = [
        Sample(s.at, s.process, s.pid, s.age, s.rss_bytes + s.pid * 3 * MIB, s.descriptors, s.threads)
        for s in clean
    ]
    assert too_much(growing) == {("memory", "from life to life")}


def test_bounds_at_any_time() -> None:
    clean = life(1, 0, 60)
    assert flat.problems_at_any_time(clean, [3 * MIB]) == []
    assert flat.problems_at_any_time([], []) == []
    bad = Sample(1.0, "agent north", 2, 1.0, 300 * MIB, 500, 90)
    assert len(flat.problems_at_any_time([*clean, bad], [9 * MIB])) == 4


def test_bounds_at_rest() -> None:
    good = Calm(0.0, log_bytes=3 * MIB, log_files=4, fence_rows=2, witness_rows=90, witness_allowed=100)
    assert flat.problems_at_rest(good, 2) == []
    bad = Calm(0.0, log_bytes=90 * MIB, log_files=90, fence_rows=3, witness_rows=101, witness_allowed=100)
    assert len(flat.problems_at_rest(bad, 2)) == 3


def facts(*, seconds: float = 200.0, slow: tuple[float, float] = (0, 0), probes_slow: bool = False) -> Facts:
    """Twenty commits a second of 20 ms each; a fault at 100 s, in which nothing commits for 3 s; then from
    and to `slow` everything takes 5 times as long."""
    found = Facts("mysql", "9.9.9", 0.0, normal_until=60.0, ended=seconds)
    noise = random.Random(1)
    found.faults = [Fault("kill agent", "agent north", 100.0, 102.0)]
    for number in range(int(seconds * 20)):
        at = number / 20
        if 100.0 <= at < 103.0:
            continue
        times = 5.0 if slow[0] <= at < slow[1] else 1.0
        found.told.append(
            Told(at, "COMMITTED", 0.02 * times * noise.uniform(0.7, 1.6), f"k{number}", "commit")
        )
        if number % 20 == 0:
            found.probes.append(Probe(at, 0.004 * (times if probes_slow else 1.0)))
    found.asked = len(found.told)
    return found


def test_a_clean_recovery_passes() -> None:
    run = facts()
    (recovery,) = latency.recoveries(run)
    assert recovery.slots == 10
    assert recovery.slow == 0
    assert 2.9 < recovery.unavailable < 3.2
    assert recovery.back is not None
    assert 0.4 < recovery.back < 2.5
    assert latency.problems([recovery], run.began) == []


def test_a_slow_recovery_is_found() -> None:
    run = facts(slow=(103.0, 160.0))
    (recovery,) = latency.recoveries(run)
    assert recovery.slow == recovery.slots == 10
    assert recovery.back is None
    assert len(latency.problems([recovery], run.began)) == 1


def test_a_recovery_that_commits_nothing_is_found() -> None:
    run = facts()
    run.told = [item for item in run.told if item.at < 100.0]
    assert len(latency.problems(latency.recoveries(run), run.began)) == 1


def test_a_slow_machine_is_no_slow_recovery() -> None:
    run = facts(slow=(103.0, 160.0), probes_slow=True)
    assert latency.problems(latency.recoveries(run), run.began) == []


def test_a_machine_that_others_keep_busy_is_no_slow_recovery() -> None:
    run = facts(slow=(103.0, 160.0))
    run.cores = 2
    run.loads = [Load(float(at), 1.7 if at > 103 else 0.1) for at in range(0, 200, 2)]
    assert latency.problems(latency.recoveries(run), run.began) == []
    run.loads = [Load(float(at), 0.1) for at in range(0, 200, 2)]
    assert len(latency.problems(latency.recoveries(run), run.began)) == 1


def test_what_others_use_of_the_machine() -> None:
    total, processors = busy("cpu  100 0 100 9 9 0 50 50 7 7\ncpu0 1 1 1 1 1\ncpu1 1 1 1 1 1\nintr 5\n")
    assert total == 300 / os.sysconf("SC_CLK_TCK")
    assert processors == 2
    assert 0 < family_seconds(os.getpid()) <= family_seconds(1)
    assert Machine(1).foreign() >= 0.0


def test_slow_for_less_than_ten_seconds_passes() -> None:
    run = facts(slow=(103.0, 111.0))
    assert latency.problems(latency.recoveries(run), run.began) == []


def test_many_faults_that_are_slow_a_little_are_found_together() -> None:
    fault = Fault("kill agent", "agent north", 0.0, 0.0)
    found = [latency.Recovery(fault, 1.0, 1.0, 5, 1)] * 10
    assert len(latency.problems(found, 0.0)) == 1
    assert latency.problems([latency.Recovery(fault, 1.0, 1.0, 10, 1)] * 10, 0.0) == []


def test_robust_statistics() -> None:
    points = [(float(x), 2.0 * x) for x in range(50)]
    points[10:20] = [(float(x), 1e9) for x in range(10, 20)]
    assert slope(points) == pytest.approx(2.0, rel=0.2)
    assert slope([(1.0, 5.0)]) == 0.0
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([], 0.5) == 0


@pytest.mark.parametrize(
    ("outcome", "answer", "age", "is_wrong"),
    [
        ("COMMITTED", "COMMITTED", 5, False),
        ("COMMITTED", "ROLLED_BACK", 5, True),
        ("COMMITTED", "UNKNOWN", 5, True),
        ("COMMITTED", "UNKNOWN", 500, False),
        ("COMMITTED", "ROLLED_BACK", 500, True),
        ("ROLLED_BACK", "COMMITTED", 500, True),
        ("ROLLED_BACK", "UNKNOWN", 5, False),
    ],
)
def test_answers(outcome: str, answer: str, age: float, is_wrong: bool) -> None:
    assert bool(contradiction(Told(1000.0, outcome, 0.1, "k1", "commit"), answer, 1000.0 + age)) == is_wrong


def test_epochs_of_segments(tmp_path: Path) -> None:
    for number, epoch in ((1, 3), (2, 3), (10, 4)):
        header = b"\0" * 48 + epoch.to_bytes(8, "little")
        (tmp_path / f"wal-{number:016x}.log").write_bytes(header)
    assert epochs_of(tmp_path) == [3, 3, 4]


def test_when_witness_rows_must_be_gone() -> None:
    run = facts()
    run.samples = life(1, 0.0, 50) + life(2, 60.0, 100)
    assert 90 < purged_until(run) < 110
    run.samples = life(1, 0.0, 50)
    assert purged_until(run) == run.began


def test_ledgers_are_read_up_to_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger-1.jsonl"
    path.write_text(
        '{"event": "asking", "id": 1, "at": 1.0, "intent": "commit"}\n'
        '{"event": "told", "id": 1, "at": 2.0, "outcome": "COMMITTED", "gtrid": "k1", "seconds": 0.5}\n'
        '{"event": "told", "id": 2, "at": 3.0, "outcome": "ROLLED_BACK", "gtrid": "", "seconds": 0.5}\n'
        '{"event": "asking", "id": 3, "at"'
    )
    asked, told = read_ledgers([path])
    assert asked == 1
    assert [(item.outcome, item.intent) for item in told] == [
        ("COMMITTED", "commit"),
        ("ROLLED_BACK", "none"),
    ]


def test_the_report_adds_up(tmp_path: Path) -> None:
    run = facts()
    run.told[3:8] = [Told(item.at, "UNKNOWN", 1.0, "k", "commit") for item in run.told[3:8]]
    run.told += [Told(199.0, "ROLLED_BACK", 0.1, "", intent) for intent in ("none", "overdraw", "commit")]
    run.asked += 4  # two clients died
    found = report.outcomes(run)
    assert found.total() == run.asked
    assert (found["UNKNOWN"], found["never told"], found["ROLLED_BACK"], found["failed"]) == (5, 2, 1, 1)
    run.checks.judged("I2", 5, ["transfer 7 is on one server"])
    report.write([run, facts()], Plan(200.0, 20.0, 1, 2), tmp_path / "soak.md", "soak.svg")
    text = (tmp_path / "soak.md").read_text()
    assert "**1 violations.**" in text
    assert "| 5 / 1 | **not checked** |" in text
    assert "transfer 7 is on one server" in text
    assert f"| mysql | {run.asked:,} | {run.asked - 9:,} | 1 | 1 | 5 | 2 | 0 |" in text
    assert str(tmp_path) not in text


def test_a_soak_that_has_not_even_begun_is_reported(tmp_path: Path) -> None:
    run = Facts("mysql", "", 5.0, ended=5.0)
    run.checks.violated("harness", "no server")
    plot.draw([run], tmp_path / "soak.svg")
    report.write([run], Plan(60.0, 20.0, 1, 2), tmp_path / "soak.md", "soak.svg")
    text = (tmp_path / "soak.md").read_text()
    assert "harness: no server" in text
    assert "**No slope was judged: the run was too short.**" in text


def test_the_plot_is_small_and_always_the_same(tmp_path: Path) -> None:
    run = facts(seconds=1800.0)
    run.faults = [Fault(kind, "x", 20.0 * n, 20.0 * n + 2) for n, kind in enumerate(KINDS * 5, start=1)]
    run.calms = [Calm(began, began + 2) for began in range(100, 1800, 100)]
    width, slots = plot.throughput(run)
    assert sum(slots) * width == len(run.told)
    plot.draw([run, run], tmp_path / "first.svg")
    plot.draw([run, run], tmp_path / "second.svg")
    first = (tmp_path / "first.svg").read_bytes()
    assert first == (tmp_path / "second.svg").read_bytes()
    assert len(first) < 300_000


KINDS = ["kill agent", "freeze server", "restart coordinator", "lock rows", "read lock", "cut network"] * 3
