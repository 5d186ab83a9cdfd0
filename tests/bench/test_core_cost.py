"""tests/bench/core_cost.py works; it asserts no time."""

from __future__ import annotations

from tests.bench.core_cost import measure


def test_it_measures() -> None:
    assert measure(20) > 0
