"""Xid: the name of one transaction branch, and Gtrid: what our own global ids say.

An XID is (formatID, gtrid, bqual). Foreign XIDs may hold any bytes, any formatID and any
length up to 64 + 64, so `Xid` keeps raw bytes. Ours have one fixed shape:

    formatID 1
    gtrid    k1 iiii eeee ssssssssss    20 characters of [0-9a-z]
             |  |    |    sequence within the epoch (counter * 2^16 + 16 random bits)
             |  |    epoch: grows by one at every start of the coordinator
             |  coordinator id
             magic and version of the layout
    bqual    the participant's number, 4 characters, base 36

Why this shape: MySQL drops acknowledged prepared branches at restart when XIDs with
different formatIDs or with NUL bytes coexist (bug #120125); formatID 1 with a short NUL-free
ASCII gtrid of fixed length was never the one that got lost. Fixed length also makes the
order of the strings the order of (epoch, sequence), which purging relies on. The random bits
keep other accounts of a server from guessing a branch's name, because any account may commit
any XID that it can name.
"""

from __future__ import annotations

from dataclasses import dataclass

from dtp.errors import Reason, XacoordError

FORMAT_ID = 1
MAGIC = "k1"
COORDINATOR_ID_LENGTH = 4
EPOCH_LENGTH = 4
SEQUENCE_LENGTH = 10
GTRID_LENGTH = len(MAGIC) + COORDINATOR_ID_LENGTH + EPOCH_LENGTH + SEQUENCE_LENGTH
BQUAL_LENGTH = 4
MAX_EPOCH = 36**EPOCH_LENGTH - 1
RANDOM_BITS = 16
MAX_COUNTER = (36**SEQUENCE_LENGTH - 1) >> RANDOM_BITS
MAX_PARTICIPANT_NUMBER = 36**BQUAL_LENGTH - 1
MAX_PART_LENGTH = 64

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_DIGIT_SET = frozenset(_DIGITS)
_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]


# Ids are made and read on the hot path: two digits a step, and no loop.


def _four_digits(number: int) -> str:
    """`number` in base 36, below 36^4."""
    return _PAIRS[number // 1296] + _PAIRS[number % 1296]


def _ten_digits(number: int) -> str:
    """`number` in base 36, below 36^10."""
    high, low = divmod(number, 36**4)
    top, middle = divmod(high, 36**4)
    return _PAIRS[top] + _four_digits(middle) + _four_digits(low)


def format_bqual(number: int) -> str:
    """The bqual of participant `number` (0 to 36^4 - 1)."""
    if not 0 <= number <= MAX_PARTICIPANT_NUMBER:
        raise ValueError(f"participant number {number} is outside 0..{MAX_PARTICIPANT_NUMBER}")
    return _four_digits(number)


def parse_bqual(bqual: bytes) -> int | None:
    """The participant number that `bqual` names, or None where it has not our shape."""
    try:
        text = bqual.decode("ascii")
    except UnicodeDecodeError:
        return None
    if len(text) != BQUAL_LENGTH or not _DIGIT_SET.issuperset(text):
        return None
    return int(text, 36)


def is_coordinator_id(text: str) -> bool:
    """True where `text` is 4 characters of [0-9a-z]."""
    return len(text) == COORDINATOR_ID_LENGTH and _DIGIT_SET.issuperset(text)


def is_gtrid(text: str) -> bool:
    """True where `text` has the shape of one of our gtrids."""
    return len(text) == GTRID_LENGTH and _DIGIT_SET.issuperset(text) and text.startswith(MAGIC)


@dataclass(frozen=True, slots=True, order=True)
class Gtrid:
    """What one of our global transaction ids says.

    Attributes:
        coordinator_id: 4 characters of [0-9a-z].
        epoch: 1 to 36^4 - 1, the start of the coordinator that gave the id.
        sequence: counter * 2^16 + random bits, unique within the epoch.
    """

    coordinator_id: str
    epoch: int
    sequence: int

    @classmethod
    def make(cls, coordinator_id: str, epoch: int, counter: int, random_bits: int) -> Gtrid:
        """The id of transaction number `counter` of this epoch; `random_bits` below 2^16."""
        if counter > MAX_COUNTER:
            raise XacoordError(
                Reason.EPOCH_EXHAUSTED,
                "this epoch has given all its ids; restart the coordinator to begin a new epoch",
            )
        return cls(coordinator_id, epoch, counter << RANDOM_BITS | random_bits)

    @classmethod
    def parse(cls, text: str) -> Gtrid:
        """Read a gtrid from its 20 characters.

        Raises:
            XacoordError: INVALID_GTRID where the text has not our shape.
        """
        if not is_gtrid(text):
            shown = text[:GTRID_LENGTH].encode("unicode_escape").decode("ascii")
            raise XacoordError(
                Reason.INVALID_GTRID,
                f"{shown!r} is not a transaction id of xacoord: give the {GTRID_LENGTH} characters "
                f"of [0-9a-z] that begin with {MAGIC!r}, as Begin returned them",
            )
        return cls(text[2:6], int(text[6:10], 36), int(text[10:], 36))

    @property
    def counter(self) -> int:
        """The transaction's number within its epoch, without the random bits."""
        return self.sequence >> RANDOM_BITS

    def __str__(self) -> str:
        return f"{MAGIC}{self.coordinator_id}{_four_digits(self.epoch)}{_ten_digits(self.sequence)}"


@dataclass(frozen=True, slots=True, order=True)
class Xid:
    """One branch's name, ours or foreign.

    Attributes:
        format_id: as the server reports it; ours is 1.
        gtrid: 0 to 64 bytes (MySQL accepts an empty gtrid, MariaDB does not).
        bqual: 0 to 64 bytes.
    """

    format_id: int
    gtrid: bytes
    bqual: bytes

    def __post_init__(self) -> None:
        if len(self.gtrid) > MAX_PART_LENGTH or len(self.bqual) > MAX_PART_LENGTH:
            raise ValueError(f"gtrid and bqual have at most {MAX_PART_LENGTH} bytes each")

    @classmethod
    def of(cls, gtrid: str, number: int) -> Xid:
        """The XID of our branch of `gtrid` at participant `number`."""
        return cls(FORMAT_ID, gtrid.encode("ascii"), format_bqual(number).encode("ascii"))

    def sql(self) -> str:
        """The XID as SQL: hexadecimal literals, which no charset or sql_mode can change."""
        return f"X'{self.gtrid.hex()}',X'{self.bqual.hex()}',{self.format_id}"

    def ours(self) -> Gtrid | None:
        """What the gtrid says, where formatID, gtrid and bqual all have our shape, else None."""
        if self.format_id != FORMAT_ID or parse_bqual(self.bqual) is None:
            return None
        try:
            return Gtrid.parse(self.gtrid.decode("ascii"))
        except (UnicodeDecodeError, XacoordError):
            return None

    @property
    def number(self) -> int | None:
        """The participant number in the bqual, or None where it has not our shape."""
        return parse_bqual(self.bqual)

    def __str__(self) -> str:
        gtrid = self.gtrid.decode("latin-1").encode("unicode_escape").decode("ascii")
        bqual = self.bqual.decode("latin-1").encode("unicode_escape").decode("ascii")
        return f"{gtrid}.{bqual}:{self.format_id}"
