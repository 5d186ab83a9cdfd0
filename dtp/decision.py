"""Decision: what the coordinator decides about a transaction, once and for all."""

from __future__ import annotations

from dtp.term import Term


class Decision(Term):
    """COMMIT exists only as a durable record; ROLLBACK is what every unrecorded transaction gets."""

    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"
