"""Codec: the coordinator's records as log entries and back.

The entry's kind says which record it is, its key (epoch, sequence) which transaction; the payload
is the protobuf message of the same name (proto/coordinator/v1/record.proto).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any

from coordinator.core import records
from coordinator.v1 import record_pb2 as pb
from dtp import Decision, Gtrid, Outcome
from wal import Entry

_MICROSECONDS = 1_000_000


class Kind(IntEnum):
    """Numbers on disk: add, never change."""

    EPOCH = 1
    PARTICIPANT = 2
    PREPARE = 3
    COMMIT = 4
    END = 5
    HEURISTIC = 6
    FORGET = 7
    DERIVE = 8


class UnknownRecord(Exception):
    """The log has a record that this version does not know; a newer version wrote it."""


def encode(record: records.Record) -> Entry:
    """A record as an entry without lsn."""
    kind, key, make = _ENCODERS[type(record)]
    epoch, sequence = key(record)
    return Entry(kind, epoch, sequence, make(record).SerializeToString())


def _epoch_key(record: records.EpochRecord | records.DeriveRecord) -> tuple[int, int]:
    return record.epoch, 0


def _participant_key(record: records.ParticipantRecord) -> tuple[int, int]:
    return 0, record.number


def _transaction_key(record: Any) -> tuple[int, int]:
    id_ = record.id
    return id_.epoch, id_.sequence


def _microseconds(seconds: float) -> int:
    return int(seconds * _MICROSECONDS)


def _epoch(record: records.EpochRecord) -> pb.EpochRecord:
    return pb.EpochRecord(
        coordinator_id=record.coordinator_id,
        at=_microseconds(record.at),
        nonce=record.nonce,
        last_counter=record.last_counter,
    )


def _participant(record: records.ParticipantRecord) -> pb.ParticipantRecord:
    return pb.ParticipantRecord(name=record.name, number=record.number)


def _prepare(record: records.PrepareRecord) -> pb.PrepareRecord:
    return pb.PrepareRecord(
        participants=record.participants,
        begun_at=_microseconds(record.begun_at),
        idempotency_key=record.idempotency_key,
        fingerprint=record.fingerprint,
    )


def _commit(record: records.CommitRecord) -> pb.CommitRecord:
    return pb.CommitRecord(
        participants=record.participants,
        begun_at=_microseconds(record.begun_at),
        decided_at=_microseconds(record.decided_at),
        idempotency_key=record.idempotency_key,
        fingerprint=record.fingerprint,
    )


def _end(record: records.EndRecord) -> pb.EndRecord:
    return pb.EndRecord(
        at=_microseconds(record.at),
        committed=record.committed,
        outcome="" if record.outcome is Outcome.COMMITTED else record.outcome.value,
        idempotency_key=record.idempotency_key,
        fingerprint=record.fingerprint,
    )


def _heuristic(record: records.HeuristicRecord) -> pb.HeuristicRecord:
    return pb.HeuristicRecord(
        branches=[
            pb.HeuristicBranch(participant=number, outcome=outcome.value)
            for number, outcome in record.branches
        ],
        decision=record.decision.value,
        participants=record.participants,
        begun_at=_microseconds(record.begun_at),
        at=_microseconds(record.at),
    )


def _forget(record: records.ForgetRecord) -> pb.ForgetRecord:
    return pb.ForgetRecord(at=_microseconds(record.at))


def _derive(record: records.DeriveRecord) -> pb.DeriveRecord:
    return pb.DeriveRecord(at=_microseconds(record.at), done=record.done)


_ENCODERS: dict[type, tuple[Kind, Callable[[Any], tuple[int, int]], Callable[[Any], Any]]] = {
    records.EpochRecord: (Kind.EPOCH, _epoch_key, _epoch),
    records.ParticipantRecord: (Kind.PARTICIPANT, _participant_key, _participant),
    records.PrepareRecord: (Kind.PREPARE, _transaction_key, _prepare),
    records.CommitRecord: (Kind.COMMIT, _transaction_key, _commit),
    records.EndRecord: (Kind.END, _transaction_key, _end),
    records.HeuristicRecord: (Kind.HEURISTIC, _transaction_key, _heuristic),
    records.ForgetRecord: (Kind.FORGET, _transaction_key, _forget),
    records.DeriveRecord: (Kind.DERIVE, _epoch_key, _derive),
}


def decode_all(coordinator_id: str, entries: Iterable[Entry]) -> list[records.Record]:
    """The records of a log, in order.

    Raises:
        UnknownRecord: a newer version wrote a record that this one cannot read.
    """
    return [decode(coordinator_id, entry) for entry in entries]


def decode(coordinator_id: str, entry: Entry) -> records.Record:
    """One entry as a record. `coordinator_id`: the log's, which entries don't repeat."""
    id_ = Gtrid(coordinator_id, entry.epoch, entry.sequence)
    payload = entry.payload
    match entry.kind:
        case Kind.EPOCH:
            epoch = pb.EpochRecord.FromString(payload)
            return records.EpochRecord(
                epoch.coordinator_id,
                entry.epoch,
                epoch.nonce,
                epoch.at / _MICROSECONDS,
                epoch.last_counter,
            )
        case Kind.PARTICIPANT:
            participant = pb.ParticipantRecord.FromString(payload)
            return records.ParticipantRecord(participant.name, participant.number)
        case Kind.PREPARE:
            prepare = pb.PrepareRecord.FromString(payload)
            return records.PrepareRecord(
                id_,
                tuple(prepare.participants),
                prepare.begun_at / _MICROSECONDS,
                prepare.idempotency_key,
                prepare.fingerprint,
            )
        case Kind.COMMIT:
            commit = pb.CommitRecord.FromString(payload)
            return records.CommitRecord(
                id_,
                tuple(commit.participants),
                commit.begun_at / _MICROSECONDS,
                commit.decided_at / _MICROSECONDS,
                commit.idempotency_key,
                commit.fingerprint,
            )
        case Kind.END:
            end = pb.EndRecord.FromString(payload)
            return records.EndRecord(
                id_,
                end.at / _MICROSECONDS,
                end.committed,
                end.idempotency_key,
                end.fingerprint,
                Outcome(end.outcome or Outcome.COMMITTED.value),
            )
        case Kind.HEURISTIC:
            return _decode_heuristic(id_, payload)
        case Kind.FORGET:
            return records.ForgetRecord(id_, pb.ForgetRecord.FromString(payload).at / _MICROSECONDS)
        case Kind.DERIVE:
            derive = pb.DeriveRecord.FromString(payload)
            return records.DeriveRecord(entry.epoch, derive.at / _MICROSECONDS, derive.done)
    raise UnknownRecord(
        f"record {entry.lsn} is of kind {entry.kind}, which this version does not know; "
        "start the version that wrote it"
    )


def _decode_heuristic(id_: Gtrid, payload: bytes) -> records.HeuristicRecord:
    heuristic = pb.HeuristicRecord.FromString(payload)
    return records.HeuristicRecord(
        id_,
        Decision(heuristic.decision),
        tuple(heuristic.participants),
        tuple((branch.participant, Outcome(branch.outcome)) for branch in heuristic.branches),
        heuristic.begun_at / _MICROSECONDS,
        heuristic.at / _MICROSECONDS,
    )


def coordinator_id_of(entries: Iterable[Entry]) -> str:
    """The coordinator that the log belongs to, or "" where it says nothing yet."""
    for entry in entries:
        if entry.kind == Kind.EPOCH:
            return pb.EpochRecord.FromString(entry.payload).coordinator_id
    return ""
