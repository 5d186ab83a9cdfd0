"""Replay: from the records of the log to what was open when the last process ended.

1. PREPARE without COMMIT: no decision was durable, so none was told: roll back (presumed abort).
2. COMMIT without END: tell every branch again; each says whether it is committed already.
3. END: forget it, but for the idempotency key of a committed transaction.
4. HEURISTIC without FORGET: keep it listed.
5. DERIVE without a later one that is done: nothing may be presumed; people have to end it.
6. EPOCH: the nonces of the last epochs prove to an agent that this log is the one it knows.

The fold is total: records may come twice (a checkpoint and the segment before it), never in an
order that contradicts itself; a contradiction means a damaged log and raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from coordinator.core.records import (
    CommitRecord,
    DeriveRecord,
    EndRecord,
    EpochRecord,
    ForgetRecord,
    HeuristicRecord,
    ParticipantRecord,
    PrepareRecord,
    Record,
)
from dtp import Decision, Gtrid, Outcome
from dtp.outcome import combine


class LogContradiction(Exception):
    """The log says two things that cannot both be true. Nothing may be resolved with it."""


@dataclass(slots=True)
class OpenTransaction:
    """A transaction that the log has not ended.

    `decision` None: it was preparing. `heuristic`: (participant number, outcome) of what others ended.
    """

    id: Gtrid
    participants: tuple[int, ...]
    begun_at: float
    decision: Decision | None = None
    decided_at: float = 0.0
    idempotency_key: str = ""
    fingerprint: bytes = b""
    prepare_record: bool = False
    heuristic: tuple[tuple[int, Outcome], ...] = ()
    heuristic_at: float = 0.0


@dataclass(slots=True)
class Replayed:
    """What the log knows. `nonces` and `marks` are by epoch; a mark is the highest counter with a record.

    `deriving`: outcomes were being worked out without the log, and that has not ended.
    """

    coordinator_id: str = ""
    epoch: int = 0
    nonces: dict[int, int] = field(default_factory=dict)
    marks: dict[int, int] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    transactions: dict[str, OpenTransaction] = field(default_factory=dict)
    keys: dict[str, EndRecord] = field(default_factory=dict)
    deriving: bool = False

    @property
    def names(self) -> dict[int, str]:
        """Participant names by number."""
        return {number: name for name, number in self.numbers.items()}


def replay(records: Iterable[Record], marks: Mapping[int, int] | None = None) -> Replayed:
    """Fold `records`, in log order.

    Args:
        records: the log's; those of transactions that have ended without a trace may be missing.
        marks: what the missing ones say: see Replayed.

    Raises:
        LogContradiction: two records cannot both be true.
    """
    state = Replayed(marks=dict(marks or {}))
    for record in records:
        _fold(state, record)
    return state


def _fold(state: Replayed, record: Record) -> None:
    match record:
        case EpochRecord():
            if state.coordinator_id and record.coordinator_id != state.coordinator_id:
                raise LogContradiction(
                    f"the log belongs to coordinator {state.coordinator_id!r} and to "
                    f"{record.coordinator_id!r}"
                )
            state.coordinator_id = record.coordinator_id
            if state.nonces.setdefault(record.epoch, record.nonce) != record.nonce:
                raise LogContradiction(f"epoch {record.epoch} has two nonces")
            state.epoch = max(state.epoch, record.epoch)
            state.marks[record.epoch] = max(state.marks.get(record.epoch, 0), record.last_counter)
        case ParticipantRecord():
            if state.names.get(record.number, record.name) != record.name:
                raise LogContradiction(f"participant number {record.number} has two names")
            if state.numbers.setdefault(record.name, record.number) != record.number:
                raise LogContradiction(f"participant {record.name!r} has two numbers")
        case PrepareRecord():
            transaction = _transaction(state, record.id, record.participants, record.begun_at)
            transaction.prepare_record = True
            transaction.idempotency_key = record.idempotency_key
            transaction.fingerprint = record.fingerprint
        case CommitRecord():
            transaction = _transaction(state, record.id, record.participants, record.begun_at)
            transaction.participants = record.participants
            transaction.decision = Decision.COMMIT
            transaction.decided_at = record.decided_at
            transaction.idempotency_key = record.idempotency_key
            transaction.fingerprint = record.fingerprint
        case EndRecord():
            ended = state.transactions.pop(str(record.id), None)
            if ended is not None and ended.decision is Decision.COMMIT and not record.committed:
                raise LogContradiction(f"{record.id} was decided to commit and ended as rolled back")
            if record.committed and record.idempotency_key:
                state.keys[record.idempotency_key] = record
        case HeuristicRecord():
            transaction = _transaction(state, record.id, record.participants, record.begun_at)
            if transaction.decision is Decision.COMMIT and record.decision is Decision.ROLLBACK:
                raise LogContradiction(f"{record.id} has two decisions")
            transaction.decision = record.decision
            transaction.heuristic = record.branches
            transaction.heuristic_at = record.at
        case ForgetRecord():
            forgotten = state.transactions.pop(str(record.id), None)
            if forgotten is not None and forgotten.idempotency_key:
                _remember_forgotten(state, forgotten, record)
        case DeriveRecord():
            state.deriving = not record.done


def _remember_forgotten(state: Replayed, forgotten: OpenTransaction, record: ForgetRecord) -> None:
    """Keep the key of a heuristic outcome that may be committed in part."""
    decision = forgotten.decision or Decision.ROLLBACK
    outcome = combine(decision, (outcome for _, outcome in forgotten.heuristic))
    if outcome is not Outcome.HEURISTIC_ROLLBACK:
        key = forgotten.idempotency_key
        state.keys[key] = EndRecord(record.id, record.at, True, key, forgotten.fingerprint, outcome)


def _transaction(
    state: Replayed, id_: Gtrid, participants: tuple[int, ...], begun_at: float
) -> OpenTransaction:
    gtrid = str(id_)
    state.marks[id_.epoch] = max(state.marks.get(id_.epoch, 0), id_.counter)
    if gtrid not in state.transactions:
        state.transactions[gtrid] = OpenTransaction(id_, participants, begun_at)
    return state.transactions[gtrid]
