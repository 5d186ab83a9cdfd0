"""`coordctl wal` with the records in the coordinator's words: the group itself knows only bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from coordinator.ctl.wal import make_group
from wal import Entry


@cache
def _describer() -> Callable[[Entry], dict[str, object]]:
    from coordinator.offline import Describer

    return Describer()


def describe(entry: Entry) -> dict[str, Any]:
    """What `wal dump` shows of a record besides its lsn, epoch, sequence and flags; asked in log order."""
    return dict(_describer()(entry))


wal = make_group(describe)
