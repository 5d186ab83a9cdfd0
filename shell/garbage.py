"""Garbage: how often Python looks for cycles in a daemon.

Nearly all that a daemon allocates is freed by its reference count. Looking for cycles cost 6 % of the
coordinator's time, and a full look, over everything imported and everything remembered, stopped it for 60 to
150 ms (docs/performance.md). So what is there once the daemon has started is never looked at, the rest less
often.
"""

from __future__ import annotations

import gc

# Allocations between two looks at the young, and how many of these go before a look at the older ones.
_YOUNG, _MIDDLE, _OLD = 20_000, 20, 50


def look_less() -> None:
    """Call once, when a daemon has started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
