"""Runs of the simulation with chosen faults only, for a defence that matters in a rare coincidence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from random import Random
from unittest.mock import patch

from tests.simulation import faults, plan

_STALLED_VERBS_AT_MOST = 6


@contextlib.contextmanager
def crowded() -> Iterator[None]:
    """No faults at all, but clients that all want the same rows, where there are several servers."""
    with (
        patch.object(plan, "_faults", autospec=True, return_value=()),
        patch.object(plan, "_CROWDED", 1.0),
    ):
        yield


@contextlib.contextmanager
def only(kinds: tuple[str, ...], stall: str = "") -> Iterator[None]:
    """Faults of these kinds only, and servers that stall do so at one verb (`stall`), if it is given."""

    def drawn(random: Random, seconds: float) -> tuple[tuple[float, str], ...]:
        count = random.randint(4, 12)
        return tuple(sorted((seconds * random.random(), random.choice(kinds)) for _ in range(count)))

    assert set(kinds) <= set(plan.FAULTS)
    assert not stall or stall in faults._STALLS
    stalls = (stall,) * _STALLED_VERBS_AT_MOST if stall else faults._STALLS
    with (
        patch.object(plan, "_faults", autospec=True, side_effect=drawn),
        patch.object(faults, "_STALLS", stalls),
    ):
        yield
