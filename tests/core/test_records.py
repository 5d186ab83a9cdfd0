"""Records: through the codec and back, and replay as a fold that refuses contradictions."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.codec import Kind, UnknownRecord, coordinator_id_of, decode, decode_all, encode
from coordinator.core.records import (
    CommitRecord,
    EndRecord,
    EpochRecord,
    ForgetRecord,
    HeuristicRecord,
    ParticipantRecord,
    PrepareRecord,
    Record,
)
from coordinator.core.replay import LogContradiction, replay
from dtp import Decision, Gtrid, Outcome
from dtp.xid import MAX_EPOCH, MAX_PARTICIPANT_NUMBER, SEQUENCE_LENGTH
from wal import Entry

ID = "test"
ids = st.builds(Gtrid, st.just(ID), st.integers(1, MAX_EPOCH), st.integers(1, 36**SEQUENCE_LENGTH - 1))
numbers = st.lists(st.integers(0, MAX_PARTICIPANT_NUMBER), max_size=64).map(tuple)
# Times are for people and kept to the microsecond; whole ones come back exactly.
times = st.integers(0, 2**33).map(float)
keys = st.text(max_size=128)
prints = st.binary(max_size=32)
records = st.one_of(
    st.builds(EpochRecord, st.just(ID), st.integers(1, MAX_EPOCH), st.integers(0, 2**64 - 1), times),
    st.builds(ParticipantRecord, st.text(min_size=1, max_size=63), st.integers(0, MAX_PARTICIPANT_NUMBER)),
    st.builds(PrepareRecord, ids, numbers, times, keys, prints),
    st.builds(CommitRecord, ids, numbers, times, times, keys, prints),
    st.builds(EndRecord, ids, times, st.booleans(), keys, prints),
    st.builds(
        HeuristicRecord,
        ids,
        st.sampled_from(Decision),
        numbers,
        st.lists(st.tuples(st.integers(0, 99), st.sampled_from(Outcome))).map(tuple),
        times,
        times,
    ),
    st.builds(ForgetRecord, ids, times),
)


@given(records)
def test_a_record_comes_back(record: Record) -> None:
    entry = encode(record)
    assert decode(ID, entry) == record
    assert Kind(entry.kind).name == type(record).__name__.removesuffix("Record").upper()
    if hasattr(record, "id"):
        assert (entry.epoch, entry.sequence) == (record.id.epoch, record.id.sequence)


def test_every_field_is_encoded() -> None:
    """Two records that differ in one field differ as bytes; a field that the codec forgets is found here."""
    id_ = Gtrid(ID, 1, 1)
    samples = [
        EpochRecord(ID, 1, 1, 1.0),
        ParticipantRecord("p", 1),
        PrepareRecord(id_, (1,), 1.0, "k", b"f"),
        CommitRecord(id_, (1,), 1.0, 1.0, "k", b"f"),
        EndRecord(id_, 1.0, True, "k", b"f"),
        HeuristicRecord(id_, Decision.COMMIT, (1,), ((1, Outcome.COMMITTED),), 1.0, 1.0),
        ForgetRecord(id_, 1.0),
    ]
    others = {str: "zzzz", int: 7, float: 2.0, bytes: b"z", bool: False, tuple: (), Gtrid: Gtrid(ID, 1, 2)}
    for sample in samples:
        for field in fields(sample):
            value = getattr(sample, field.name)
            other = others.get(type(value), Decision.ROLLBACK)
            assert encode(replace(sample, **{field.name: other})) != encode(sample), field.name


def test_a_kind_of_a_newer_version_is_refused() -> None:
    with pytest.raises(UnknownRecord, match="99"):
        decode(ID, Entry(99, 1, 1, b"", lsn=5))


def test_the_log_says_whose_it_is() -> None:
    log = [encode(ParticipantRecord("p", 1)), encode(EpochRecord(ID, 1, 1, 0.0))]
    assert coordinator_id_of(log) == ID
    assert coordinator_id_of(log[:1]) == ""


PREPARE = PrepareRecord(Gtrid(ID, 1, 1), (1, 2), 1.0, "k", b"f")
COMMIT = CommitRecord(Gtrid(ID, 1, 1), (2,), 1.0, 2.0, "k", b"f")
END = EndRecord(Gtrid(ID, 1, 1), 3.0, True, "k", b"f")
HEURISTIC = HeuristicRecord(
    Gtrid(ID, 1, 1), Decision.COMMIT, (1, 2), ((2, Outcome.HEURISTIC_ROLLBACK),), 1.0, 3.0
)
FORGET = ForgetRecord(Gtrid(ID, 1, 1), 4.0)


def test_replay_knows_how_far_each_transaction_was() -> None:
    (preparing,) = replay([PREPARE]).transactions.values()
    assert (preparing.decision, preparing.idempotency_key, preparing.fingerprint) == (None, "k", b"f")
    (committing,) = replay([PREPARE, COMMIT]).transactions.values()
    assert (committing.decision, committing.participants) == (Decision.COMMIT, (2,))
    assert (committing.idempotency_key, committing.prepare_record) == ("k", True)
    ended = replay([PREPARE, COMMIT, END])
    assert (ended.transactions, ended.keys) == ({}, {"k": END})
    rolled_back = replay([PREPARE, replace(END, committed=False)])
    assert (rolled_back.transactions, rolled_back.keys) == ({}, {})
    (heuristic,) = replay([PREPARE, COMMIT, HEURISTIC]).transactions.values()
    assert heuristic.heuristic == ((2, Outcome.HEURISTIC_ROLLBACK),)
    assert replay([PREPARE, COMMIT, HEURISTIC, FORGET]).transactions == {}


@pytest.mark.parametrize(
    "log",
    [
        [PREPARE],
        [PREPARE, COMMIT],
        [PREPARE, COMMIT, END],
        [PREPARE, COMMIT, HEURISTIC],
        [EpochRecord(ID, 1, 1, 0.0), ParticipantRecord("p", 1), PREPARE],
    ],
)
def test_records_may_come_twice(log: list[Record]) -> None:
    assert replay(log + log) == replay(log)
    assert replay(decode_all(ID, [encode(record) for record in log])) == replay(log)


@pytest.mark.parametrize(
    "log",
    [
        [EpochRecord(ID, 1, 1, 0.0), EpochRecord("othr", 2, 2, 0.0)],
        [EpochRecord(ID, 1, 1, 0.0), EpochRecord(ID, 1, 2, 0.0)],
        [ParticipantRecord("p", 1), ParticipantRecord("p", 2)],
        [ParticipantRecord("p", 1), ParticipantRecord("q", 1)],
        [PREPARE, COMMIT, replace(END, committed=False)],
        [PREPARE, COMMIT, replace(HEURISTIC, decision=Decision.ROLLBACK)],
    ],
)
def test_a_log_that_contradicts_itself_is_refused(log: list[Record]) -> None:
    with pytest.raises(LogContradiction):
        replay(log)
