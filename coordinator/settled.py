"""Settled: the transactions in a log that are over, recognised without making an object of their records.

A log that is read at a start holds up to a million transactions, nearly all of which have ended. Replay would
build each of them up from its records only to drop it at its END. `unsettled` leaves these records out:
replaying what it keeps gives what replaying everything gives (tests/core/test_settled.py).

1. Go through the heads of all records. A PREPARE or COMMIT is noted, and struck out again by an END that says
   no more than "committed, at this time". Its 11 bytes have one shape, checked for a whole frame at once.
2. An END that says "rolled back" strikes out, too, unless the log has the COMMIT: a contradiction, which is
   replay's to find. One with an idempotency key strikes out and is kept itself: the key is remembered.
3. All that a transaction with another record has left (HEURISTIC, FORGET) is kept.
4. What left-out records say all the same is how far the counters of an epoch had got: `marks`.
5. What was not struck out is taken out of its frames at the end.

A PREPARE or COMMIT that comes twice without an END between them is not what the coordinator writes: then
everything is kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from coordinator.codec import Kind
from coordinator.v1 import record_pb2 as pb
from dtp.xid import RANDOM_BITS
from wal import Block, Entries, Entry

_PREPARE, _COMMIT, _END = int(Kind.PREPARE), int(Kind.COMMIT), int(Kind.END)
_OF_NO_TRANSACTION = frozenset({Kind.EPOCH, Kind.PARTICIPANT, Kind.DERIVE})

# A plain EndRecord as protobuf writes it: 0x08, `at` in microseconds as a varint of 8 bytes (all times from
# 1987 to 4253) and, where it is committed, 0x20 0x01. Of a varint all bytes but the last are high ones.
_ROLLED_BACK_BYTES, _COMMITTED_BYTES = 9, 11
_TAG_AT, _LAST_OF_AT = b"\x08", 8
_COMMITTED = b"\x20\x01"
_HIGH = bytes(range(0x80, 0x100))


@dataclass(slots=True)
class _Epoch:
    """The transactions of an epoch that have no END yet: sequence -> which record of the log it is.

    `top` is the highest sequence that was struck out.
    """

    prepared: dict[int, int] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    top: int = -1

    def strike_out(self, sequence: int) -> None:
        """The transaction has ended."""
        noted = self.prepared.pop(sequence, None) is not None
        noted = self.committed.pop(sequence, None) is not None or noted
        if noted and sequence > self.top:
            self.top = sequence


class _Unclear(Exception):
    """Not such records as the coordinator writes: replay shall see them all."""


def unsettled(entries: Entries) -> tuple[Sequence[Entry], dict[int, int]]:
    """What replay has to see of a log.

    Returns:
        The entries, in log order, and what those left out say of each epoch: its highest counter.
    """
    try:
        return _Sieve(entries.blocks).run()
    except _Unclear:
        return entries, {}


class _Sieve:
    """Goes through the frames of one log."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self._epochs: dict[int, _Epoch] = {}
        self._others: list[int] = []  # records to be kept that no _Epoch knows
        self._whole: set[tuple[int, int]] = set()  # (epoch, sequence) of transactions that are kept whole

    def run(self) -> tuple[list[Entry], dict[int, int]]:
        """See `unsettled`."""
        first = 0
        for block in self._blocks:
            self._strike_out(first, block)
            first += block.records
        tops = {number: epoch.top for number, epoch in self._epochs.items()}
        marks = {number: top >> RANDOM_BITS for number, top in tops.items() if top >= 0}
        return list(self._take_out(self._kept())), marks

    def _kept(self) -> list[int]:
        kept = self._others
        for epoch in self._epochs.values():
            kept += epoch.prepared.values()
            kept += epoch.committed.values()
        return sorted(kept)

    def _take_out(self, kept: Sequence[int]) -> Iterator[Entry]:
        """The records with these numbers, which rise."""
        first = taken = 0
        for block in self._blocks:
            end = bisect_left(kept, first + block.records, taken)
            if end > taken:
                entries = list(block.entries())
                yield from (entries[number - first] for number in kept[taken:end])
            first, taken = first + block.records, end

    def _strike_out(self, number: int, block: Block) -> None:
        """One frame, whose first record has this number.

        Its loop is what a start waits for, so nothing is called in the common cases.
        """
        body, at = block.body, block.payloads
        ends: list[bytes] = []
        current, state = -1, _Epoch()
        prepared, committed = state.prepared, state.committed
        for sequence, epoch, kind, _, length in block.heads():
            if epoch != current:
                current, state = epoch, self._epochs.setdefault(epoch, _Epoch())
                prepared, committed = state.prepared, state.committed
            if kind == _PREPARE:
                if sequence in prepared:
                    raise _Unclear
                prepared[sequence] = number
            elif kind == _COMMIT:
                if sequence in committed:
                    raise _Unclear
                committed[sequence] = number
            elif kind == _END and length == _COMMITTED_BYTES and not self._whole:
                ends.append(body[at : at + _COMMITTED_BYTES])
                if sequence in prepared and sequence in committed:
                    del prepared[sequence], committed[sequence]
                    if sequence > state.top:
                        state.top = sequence
                else:
                    state.strike_out(sequence)
            else:
                self._other(number, (epoch, sequence), kind, body[at : at + length])
            at += length
            number += 1
        if ends and not _all_committed(ends):
            raise _Unclear

    def _other(self, number: int, key: tuple[int, int], kind: int, payload: bytes) -> None:
        """A record that is not common."""
        if kind != _END:
            self._others.append(number)
            if kind not in _OF_NO_TRANSACTION:
                self._whole.add(key)
            return
        state = self._epochs[key[0]]
        plain = _is_plain(payload)
        committed = len(payload) == _COMMITTED_BYTES if plain else pb.EndRecord.FromString(payload).committed
        if not committed and key[1] in state.committed:
            self._whole.add(key)
        if key in self._whole or not plain:
            self._others.append(number)
        if key not in self._whole:
            state.strike_out(key[1])


def _is_plain(payload: bytes) -> bool:
    """Whether an END says nothing but when, and whether it was committed."""
    if len(payload) == _ROLLED_BACK_BYTES:
        return _all_committed([payload + _COMMITTED])
    return len(payload) == _COMMITTED_BYTES and _all_committed([payload])


def _all_committed(payloads: Sequence[bytes]) -> bool:
    """Whether all of these ENDs, of 11 bytes each, are plain and committed."""
    joined, count = b"".join(payloads), len(payloads)
    return (
        joined[::_COMMITTED_BYTES] == _TAG_AT * count
        and joined[_LAST_OF_AT::_COMMITTED_BYTES].isascii()
        and joined[9::_COMMITTED_BYTES] == _COMMITTED[:1] * count
        and joined[10::_COMMITTED_BYTES] == _COMMITTED[1:] * count
        and len(joined.translate(None, _HIGH)) == 4 * count
    )
