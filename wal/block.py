"""The records of a log as they were read: frame by frame, and not taken apart before somebody asks.

At a start nearly every record belongs to something that is over long since. To make an object of each would
be most of the time that a start takes, so a reader of many records goes through the heads and takes only
the entries it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload

from wal.entry import Entry
from wal.format import ENTRY, decode_entries


class Block(NamedTuple):
    """One frame.

    Attributes:
        records: how many.
        lsn: of the first.
        step: 1; or 0 in a checkpoint, whose records share one lsn.
    """

    body: bytes
    records: int
    lsn: int
    step: int

    @property
    def payloads(self) -> int:
        """Where in the body the payloads begin. They follow each other without a gap."""
        return self.records * ENTRY.size

    def heads(self) -> Iterator[tuple[int, int, int, int, int]]:
        """(sequence, epoch, kind, flags, length of the payload) of each record."""
        return ENTRY.iter_unpack(self.body[: self.payloads])

    def entries(self) -> Iterator[Entry]:
        """The records."""
        return decode_entries(self.body, self.records, self.lsn, self.step)


class Entries(Sequence[Entry]):
    """Entries that are made when they are asked for, each time anew.

    Attributes:
        blocks: the same, not taken apart.
    """

    def __init__(self, blocks: Iterable[Block] = ()) -> None:
        self.blocks = tuple(blocks)

    def __len__(self) -> int:
        return sum(block.records for block in self.blocks)

    def __iter__(self) -> Iterator[Entry]:
        for block in self.blocks:
            yield from block.entries()

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        return list(self)[index]
