"""`coordctl wal` with the records in the coordinator's words: the group itself knows only bytes."""

from __future__ import annotations

from typing import Any

from coordinator.ctl.wal import make_group
from wal import Entry


def describe(entry: Entry) -> dict[str, Any]:
    """What `wal dump` shows of a record besides its lsn, epoch, sequence and flags."""
    from coordinator import offline

    return dict(offline.describe(entry))


wal = make_group(describe)
