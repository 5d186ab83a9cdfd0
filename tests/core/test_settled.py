"""Settled: what is left out of a replay makes no difference to it, whatever the log looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.codec import decode_all, encode
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
from coordinator.core.replay import LogContradiction, Replayed, replay
from coordinator.journal import replay_entries
from coordinator.settled import unsettled
from dtp import Decision, Gtrid, Outcome
from wal import Block, Entries
from wal.format import encode_entries

ID = "test"
NOW = 1.7e9
HEAD: list[Record] = [EpochRecord(ID, 1, 7, NOW), EpochRecord(ID, 2, 8, NOW), ParticipantRecord("p", 1)]


def gtrid(counter: int, epoch: int = 1) -> Gtrid:
    return Gtrid.make(ID, epoch, counter, counter * 7919 & 0xFFFF)


def prepare(id_: Gtrid, key: str = "", begun_at: float = NOW) -> PrepareRecord:
    return PrepareRecord(id_, (1, 2), begun_at, key, b"f" if key else b"")


def commit(id_: Gtrid, key: str = "", begun_at: float = NOW) -> CommitRecord:
    return CommitRecord(id_, (1, 2), begun_at, NOW + 1, key, b"f" if key else b"")


def end(id_: Gtrid, at: float = NOW + 2, committed: bool = True, key: str = "") -> EndRecord:
    return EndRecord(id_, at, committed, key, b"f" if key else b"")


def heuristic(id_: Gtrid, decision: Decision) -> HeuristicRecord:
    return HeuristicRecord(id_, decision, (1, 2), ((2, Outcome.HEURISTIC_COMMIT),), NOW, NOW + 2)


def entries_of(records: Sequence[Record], frame: int = 3) -> Entries:
    """A log of these records, `frame` to a frame."""
    blocks = []
    for start in range(0, len(records), frame):
        part = [encode(record) for record in records[start : start + frame]]
        blocks.append(Block(encode_entries(part), len(part), start + 1, 1))
    return Entries(blocks)


def all_of_it(entries: Entries) -> Replayed:
    """The replay that leaves nothing out."""
    return replay(decode_all(ID, list(entries)))


def kept_of(records: Sequence[Record], frame: int = 3) -> list[Record]:
    return decode_all(ID, unsettled(entries_of(records, frame))[0])


# What a transaction may leave: complete, cut off anywhere, or such as no coordinator writes.
ids = st.builds(gtrid, st.integers(1, 3), st.integers(1, 2))
ends = st.builds(
    end,
    ids,
    # 8 bytes as a varint, or fewer, or more
    st.sampled_from([0.0, 1.0, NOW, 2.0**49 / 1e6, 2.0**56 / 1e6 - 1.0, 2.0**56 / 1e6]),
    st.booleans(),
    st.sampled_from(["", "k", "kkkkk", "kkkkkkk"]),
)
heuristics = st.builds(heuristic, ids, st.sampled_from(Decision))
begun = st.sampled_from([NOW, NOW - 1])
records = st.one_of(
    st.builds(prepare, ids, begun_at=begun),
    st.builds(commit, ids, begun_at=begun),
    ends,
    ends.map(lambda record: replace(record, at=NOW)),
    heuristics,
    st.builds(lambda id_: ForgetRecord(id_, NOW + 3), ids),
    st.sampled_from(HEAD),
)


@given(st.lists(records, max_size=30), st.integers(1, 8))
@example([prepare(gtrid(1)), commit(gtrid(1)), end(gtrid(1)), prepare(gtrid(1), begun_at=0.0)], 8)
@example([commit(gtrid(1)), commit(gtrid(1), begun_at=0.0)], 8)
@example([prepare(gtrid(1)), prepare(gtrid(1), begun_at=0.0)], 1)
@example([prepare(gtrid(1)), heuristic(gtrid(1), Decision.COMMIT), end(gtrid(1)), end(gtrid(2))], 1)
@example([*HEAD, prepare(gtrid(1)), commit(gtrid(1)), end(gtrid(1), committed=False)], 1)
def test_leaving_out_what_is_settled_changes_nothing(log: list[Record], frame: int) -> None:
    entries = entries_of(HEAD + log, frame)
    try:
        expected = all_of_it(entries)
    except LogContradiction:
        with pytest.raises(LogContradiction):
            replay_entries(entries)
        return
    found = replay_entries(entries)
    assert found == expected
    assert list(found.transactions) == list(expected.transactions), "in the order of the log"
    assert list(found.keys) == list(expected.keys)


def test_settled_transactions_are_left_out_and_their_counters_are_known() -> None:
    log: list[Record] = list(HEAD)
    for counter in (1, 2, 5, 4, 3):
        log += [prepare(gtrid(counter)), commit(gtrid(counter)), end(gtrid(counter))]
    log += [prepare(gtrid(6, epoch=2)), end(gtrid(6, epoch=2), committed=False)]
    for frame in (1, 2, 100):
        assert kept_of(log, frame) == HEAD
    assert replay_entries(entries_of(log)).marks == {1: 5, 2: 6}


def test_what_is_open_is_kept_and_nothing_else() -> None:
    log = [*HEAD, prepare(gtrid(1)), prepare(gtrid(2)), commit(gtrid(1)), prepare(gtrid(3)), commit(gtrid(3))]
    log += [end(gtrid(1)), commit(gtrid(2))]
    assert kept_of(log, 100) == [
        *HEAD,
        prepare(gtrid(2)),
        prepare(gtrid(3)),
        commit(gtrid(3)),
        commit(gtrid(2)),
    ]


def test_of_a_transaction_with_a_key_only_the_end_is_kept() -> None:
    log = [*HEAD, prepare(gtrid(1), "k"), commit(gtrid(1), "k"), end(gtrid(1), key="k")]
    assert kept_of(log) == [*HEAD, end(gtrid(1), key="k")]
    assert replay_entries(entries_of(log)).keys == {"k": end(gtrid(1), key="k")}


def test_a_heuristic_outcome_is_kept_whole() -> None:
    one, two = gtrid(1), gtrid(2)
    log = [prepare(one), commit(one), prepare(two), heuristic(one, Decision.COMMIT), commit(two), end(two)]
    log.append(ForgetRecord(one, NOW + 2))
    assert kept_of(log, 1) == [log[0], log[1], log[3], log[6]]


@pytest.mark.parametrize(
    "odd",
    [
        b"\x08\x01\x12\x07abcde\x20\x01"[:11],  # at = 1 and a key, of the length of a plain one
        b"\x12\x07abcdefg\x20\x01"[:11],
        b"\x08\x80\x80\x80\x80\x80\x80\x80\x01\x20\x00",  # not as our encoder writes it: committed = 0
        b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x01\x20",
    ],
)
def test_an_end_that_only_looks_plain_is_not_taken_for_one(odd: bytes) -> None:
    entries = [encode(prepare(gtrid(1))), encode(end(gtrid(1)))._replace(payload=odd), encode(HEAD[2])]
    log = Entries([Block(encode_entries(entries), 3, 1, 1)])
    kept, _ = unsettled(log)
    assert [entry.payload for entry in kept] == [entry.payload for entry in entries]
