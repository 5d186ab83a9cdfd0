"""Decision: what the coordinator decides about a transaction, once and for all."""

from __future__ import annotations

from enum import Enum


class Decision(Enum):
    """COMMIT exists only as a durable record; ROLLBACK is what every unrecorded transaction gets."""

    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"
