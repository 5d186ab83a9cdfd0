"""The report: medians of ratios of one round, percentiles, processor time; the table and the plot."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest

from coordinator.ctl.output import Screen, to_json
from deploy.bench import plot, report
from deploy.bench.plan import KINDS, RAW, Case, Plan, Side, all_sides, all_variants
from deploy.bench.run import Measured, Results

WIDTH = 110


def slot(count: int, each: int = 1000, seconds: float = 1.0, **changes: Any) -> Measured:
    """`count` transactions of `each` microseconds."""
    values: dict[str, Any] = {
        "seconds": seconds,
        "latencies": [each] * count,
        "cpu": {"server a": 0.5, "server b": 0.25, "load 1": 0.1, "load 2": 0.1},
        "foreign": 0.0,
        "told": Counter(committed=count),
        "reasons": [],
    }
    return Measured(**{**values, **changes})


class FakeServer:
    """What the report asks of a server."""

    name = "a"
    pid: int | None = 4711
    engine = "mysql"

    def settings(self) -> dict[str, str]:
        return {"version": "9.9.9", "sync_binlog": "1", "innodb_flush_log_at_trx_commit": "1"}


class FakeBed:
    """What the report asks of a bed."""

    servers = (FakeServer(),)
    settings: ClassVar[dict[str, str]] = {}


def document(results: Results, sides: tuple[Side, ...]) -> dict[str, Any]:
    plan = Plan(tuple(results.slots), sides, 3, 1.0)
    made: dict[str, Any] = report.document(plan, FakeBed(), results)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([5], 0.5, 5),
        ([5], 0.99, 5),
        ([1, 2, 3, 4], 0.5, 2),
        (list(range(1, 101)), 0.99, 99),
        ([1, 2], 1.0, 2),
    ],
)
def test_quantiles(values: list[int], share: float, expected: int) -> None:
    assert report.quantile(values, share) == expected


def test_a_quantile_of_nothing_is_no_number() -> None:
    assert math.isnan(report.quantile([], 0.5))
    assert report.spread([math.nan]) is None
    assert report.spread([]) is None


def test_ratios_are_of_the_same_round() -> None:
    """The machine was twice as slow in the second round: that is no difference between the sides."""
    assert report.ratios([50, 25, 60], [100, 50, 100]) == {"median": 0.5, "min": 0.5, "max": 0.6}
    assert report.ratios([50, 25], [100, 0]) == {"median": 0.5, "min": 0.5, "max": 0.5}
    assert report.ratios([50], [0]) is None


def test_a_side_is_measured_against_raw() -> None:
    sides = all_sides((RAW, "one-shot"), all_variants(("processes",), (True,), (1,)))
    ours = [slot(50, 4000), slot(20, 4000), slot(40, 4000, told=Counter(committed=45, rolled_back=2))]
    raw = [slot(100, 2000), slot(50, 2000), slot(100, 1000)]
    case = Case(2, 32)
    [found] = document(Results({case: dict(zip(sides, (raw, ours), strict=True))}), sides)["cases"]
    first, second = found["sides"]
    assert (found["branches"], found["clients"], found["read_only"]) == (2, 32, False)
    assert first["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert second["ratio"] == {"median": 0.4, "min": 0.4, "max": 0.5}
    assert second["p50_ratio"] == {"median": 2.0, "min": 2.0, "max": 4.0}
    assert (second["tps"], second["tps_rounds"]) == (40.0, [50.0, 20.0, 40.0])
    assert (second["p50_ms"], second["p99_ms"]) == (4.0, 4.0)
    assert (second["measured"], second["committed"], second["rolled_back"]) == (110, 115, 2)
    # 3 rounds of 0.75 s in servers and 0.2 s in clients, for 110 transactions.
    assert second["cpu_us"]["servers"] == pytest.approx(3 * 0.75e6 / 110, abs=0.2)
    assert second["cpu_us"]["clients"] == pytest.approx(3 * 0.2e6 / 110, abs=0.2)
    assert second["cpu_us"]["agents"] is None
    assert second["cpu_us_by_process"]["server b"] == pytest.approx(3 * 0.25e6 / 110, abs=0.1)


def test_without_raw_there_is_no_ratio() -> None:
    sides = all_sides(("raw-fast",), ())
    [found] = document(Results({Case(2, 1): {sides[0]: [slot(5)]}}), sides)["cases"]
    assert found["sides"][0]["ratio"] is None
    assert found["sides"][0]["p99_ratio"] is None


def test_a_side_that_did_nothing_is_no_error() -> None:
    sides = all_sides((RAW, "raw-fast"), ())
    empty = slot(0, told=Counter(rolled_back=4), reasons=["1205 Lock wait timeout exceeded"])
    made = document(Results({Case(2, 1): {sides[0]: [empty], sides[1]: [empty]}}), sides)
    side = made["cases"][0]["sides"][1]
    assert (side["tps"], side["p50_ms"], side["ratio"], side["rolled_back"]) == (0.0, None, None, 4)
    assert json.loads(to_json(made)) == made
    assert "raw-fast: 4 did not commit: 1205 Lock wait" in drawn(made)


def drawn(made: dict[str, Any]) -> str:
    stream = io.StringIO()
    report.view(made).draw(Screen(stream, terminal=False))
    return stream.getvalue()


def whole() -> dict[str, Any]:
    """A report of every side, with figures as wide as they get."""
    sides = all_sides(KINDS, all_variants(("processes", "in-process"), (True,), (1,)))
    cpu = {"server a": 40.0, "agent a": 9.0, "coordinator 1": 8.0, "load 1": 12.0}
    slots = {side: [slot(12_345, 123_456, cpu=cpu) for _ in range(3)] for side in sides}
    cases = (Case(2, 1), Case(2, 128), Case(4, 32, read_only=True))
    return document(Results({case: slots for case in cases}, problems=["server 1: a problem"]), sides)


def test_the_table_fits_and_has_every_side_and_problem() -> None:
    text = drawn(whole())
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert text.count("interactive, in-process ") == 2 * 3, "in the table and against the other variant"
    assert "2 branches writing, 128 clients" in text
    assert "4 branches reading, 32 clients" in text
    assert "PROBLEM: server 1: a problem" in text
    assert "sync_binlog 1" in text


def test_a_machine_that_others_use_is_told() -> None:
    sides = all_sides((RAW,), ())
    quiet = document(Results({Case(2, 1): {sides[0]: [slot(5)]}}), sides)
    noisy = document(Results({Case(2, 1): {sides[0]: [slot(5, foreign=0.7)]}}), sides)
    assert "do not trust" not in drawn(quiet)
    assert "other programs kept up to 0.7 cores busy: do not trust these figures" in drawn(noisy)


def test_one_disturbed_slot_of_many_is_told_and_whose_it_was() -> None:
    """The ratios of its round are wrong, whatever the others were."""
    sides = all_sides((RAW, "raw-fast"), ())
    disturbed = [slot(5), slot(5, foreign=0.9), slot(5)]
    made = document(Results({Case(2, 1): {sides[0]: [slot(5)] * 3, sides[1]: disturbed}}), sides)
    (case,) = made["cases"]
    assert case["busy_elsewhere_cores"] == 0.9
    assert [side["busy_elsewhere_cores"] for side in case["sides"]] == [0.0, 0.9]
    assert "do not trust" in drawn(made)
    given = {sides[0]: [slot(5, foreign=None)]}  # servers of somebody else: nobody can tell
    (case,) = document(Results({Case(2, 1): given}), sides[:1])["cases"]
    assert case["busy_elsewhere_cores"] is None


def test_variants_are_compared_within_a_round() -> None:
    """The machine was half as fast in the second round."""
    variants = all_variants(("processes", "in-process"), (True, False), (1,))
    sides = all_sides(("one-shot", "interactive"), variants)
    counts = {
        "": (95, 45),
        "no witness": (100, 50),
        "in-process": (190, 90),
        "in-process, no witness": (200, 100),
    }
    slots = {side: [slot(count) for count in counts[side.variant.label]] for side in sides if side.variant}
    made = document(Results({Case(2, 1): slots}), sides)
    (case,) = made["cases"]
    found = {side["side"]: side["ratios_to_variants"] for side in case["sides"]}
    assert found["one-shot"] == [{"to": "one-shot, no witness", "median": 0.925, "min": 0.9, "max": 0.95}]
    both = [it["to"] for it in found["one-shot, in-process"]]
    assert both == ["one-shot", "one-shot, in-process, no witness"]
    assert found["one-shot, in-process"][0] == {"to": "one-shot", "median": 2.0, "min": 2.0, "max": 2.0}
    assert found["one-shot, no witness"] == [], "it has less than the others, and they tell"
    assert [it["to"] for it in found["interactive"]] == ["interactive, no witness"]
    text = drawn(made)
    assert "one-shot, in-process / one-shot: 2.00 (2.00-2.00)" in text
    assert max(len(line) for line in text.splitlines()) <= WIDTH


def test_coordinators_are_compared_with_fewer_of_them() -> None:
    sides = all_sides((RAW, "one-shot"), all_variants(("processes",), (True,), (1, 2)))
    counts = iter((50, 100, 120))
    made = document(Results({Case(2, 1): {side: [slot(next(counts))] for side in sides}}), sides)
    raw, one, two = made["cases"][0]["sides"]
    assert (raw["ratios_to_variants"], one["ratios_to_variants"]) == ([], [])
    assert two["ratios_to_variants"] == [{"to": "one-shot", "median": 1.2, "min": 1.2, "max": 1.2}]


@pytest.mark.parametrize("ending", plot.ENDINGS)
def test_the_plot(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"bench{ending}"
    plot.check(path)
    plot.draw(whole(), path)
    content = path.read_bytes()
    if ending == ".png":
        assert content.startswith(b"\x89PNG")
    else:
        assert b"interactive, in-process" in content
        assert b"4 branches reading" in content


def test_a_plot_that_cannot_be_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match=r"ends with \.svg or \.png"):
        plot.check(tmp_path / "bench.pdf")
    with pytest.raises(click.UsageError, match="there is no directory"):
        plot.check(tmp_path / "nowhere" / "bench.svg")
