"""What the coordinator writes down, as values. The journal encodes them; see docs/wal-format.md.

Presumed abort: there is no record for Begin, for a rollback or for a transaction with one branch.
Times are seconds since 1970 (for people; no rule depends on them).
"""

from __future__ import annotations

from dataclasses import dataclass

from dtp import Decision, Gtrid, Outcome


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """A start of the coordinator. Forced before anything is served.

    `nonce`: 64 random bits. Agents remember it with the epoch: a log restored from a backup gives the
    same epochs again, but never with the same nonce. `last_counter`: in a checkpoint, the highest
    transaction of the epoch that has had a PREPARE record: a participant that has committed a later one
    knows a later past than this log.
    """

    coordinator_id: str
    epoch: int
    nonce: int
    at: float
    last_counter: int = 0


@dataclass(frozen=True, slots=True)
class ParticipantRecord:
    """A participant's name has got its number (bqual), for ever. Forced before the number is used."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class PrepareRecord:
    """Phase 1 begins. Written; its flush overlaps phase 1 and is over before the decision's is."""

    id: Gtrid
    participants: tuple[int, ...]
    begun_at: float
    idempotency_key: str = ""
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """The decision to commit, with the branches that must hear it. Forced before anyone hears it."""

    id: Gtrid
    participants: tuple[int, ...]
    begun_at: float
    decided_at: float
    idempotency_key: str = ""
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class EndRecord:
    """Every branch has answered. Lazy: without it a restart only asks the branches again.

    With a key it remembers the key, in a checkpoint also that of a forgotten heuristic `outcome`.
    """

    id: Gtrid
    at: float
    committed: bool
    idempotency_key: str = ""
    fingerprint: bytes = b""
    outcome: Outcome = Outcome.COMMITTED


@dataclass(frozen=True, slots=True)
class HeuristicRecord:
    """Someone else ended branches of this transaction. Kept until FORGET."""

    id: Gtrid
    decision: Decision
    participants: tuple[int, ...]
    branches: tuple[tuple[int, Outcome], ...]
    begun_at: float
    at: float


@dataclass(frozen=True, slots=True)
class ForgetRecord:
    """An operator has dealt with a heuristic outcome. Forced."""

    id: Gtrid
    at: float


@dataclass(frozen=True, slots=True)
class DeriveRecord:
    """Outcomes are being worked out without the log. Until one that is `done`, everything is on HOLD."""

    epoch: int
    at: float
    done: bool


Record = (
    EpochRecord
    | ParticipantRecord
    | PrepareRecord
    | CommitRecord
    | EndRecord
    | HeuristicRecord
    | ForgetRecord
    | DeriveRecord
)
