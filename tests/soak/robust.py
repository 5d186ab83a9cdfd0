"""Robust statistics: medians and Theil-Sen slopes, which one bad second on a busy machine does not move."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

median = statistics.median
_MOST_POINTS = 100


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them are (nearest rank); 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil-Sen: the median of the slopes between all pairs; 0 with fewer than two times.

    Nearly a third of the points may be anything without moving it. Many points are thinned out evenly.
    """
    step = max(1, len(points) // _MOST_POINTS)
    slopes = [
        (second[1] - first[1]) / (second[0] - first[0])
        for first, second in itertools.combinations(points[::step], 2)
        if second[0] != first[0]
    ]
    return median(slopes) if slopes else 0.0
