"""One record of the log, as its users see it."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A record. The log does not look into it: what a kind means is its user's affair.

    Arguments:
        kind: number of the record type, 0..65535.
        epoch: epoch half of the key, 0..2**32-1 (the epoch in which the subject began, not
            necessarily the one in which the record was written).
        sequence: sequence half of the key, 0..2**64-1.
        payload: the bytes.
        flags: the user's, 0..65535.
        lsn: filled in on reading. An entry of a checkpoint carries the lsn of the last record
            that the checkpoint stands for, so several may share one.
    """

    kind: int
    epoch: int
    sequence: int
    payload: bytes
    flags: int = 0
    lsn: int = 0
