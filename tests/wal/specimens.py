"""Logs to be damaged: made by the real code on simulated files, small, each in another moment of its life.

An `Author` writes them and keeps the ledger: what it has handed over, what was reported durable, which
checkpoint replaced what, and how far the watermark had been saved. The ledger is all that the tests
believe.

    many frames     one segment, nearly full, frames of one to five sectors, some masked
    sealed          a full segment and one that continues it
    checkpoint      one segment that begins with a checkpoint, the older ones are gone
    in place        a full disk: a checkpoint between the frames of the segment that continues another
    rotation        the moment after a rotation: both segments are there
    restart         the moment after a start: the fresh segment and the one it stands for
    closed          ended by a clean shutdown
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.wal.oracle import Record
from tests.wal.owner import DIRECTORY, SMALL
from tests.wal.simulated_files import Inode, SimulatedFiles
from wal import Entry, Log, LogError, Options
from wal.recovered import Recovered

WATERMARK = "watermark"
Content = tuple[int, int, int, bytes, int]


class Author:
    """Writes a log, one flush after the other, and keeps the ledger."""

    def __init__(self, options: Options = SMALL, identities: int = 0) -> None:
        self.files = SimulatedFiles()
        self.files.identities = identities
        self.options = options
        self.records: list[Record] = []
        self.states: dict[int, list[list[Content]]] = {0: [[]]}
        self.lsn = 0
        self.durable = 0
        self.watermark = 0
        self.epoch = 0
        self.log: Log

    def begin(self) -> None:
        """Open and start, with the live state as checkpoint."""
        self.log, recovered = Log.open(
            DIRECTORY,
            self.options,
            on_durable=self._durable,
            on_failure=_fail,
            files=self.files,
            threaded=False,
        )
        assert as_records(recovered) == self.records
        self.epoch += 1
        self.log.start(self.epoch, self._checkpoint())
        self.watermark = self.lsn  # a start saves it

    def _checkpoint(self) -> list[Entry]:
        """The last records; from here on they stand for everything so far."""
        self.records = [(*record[:5], self.lsn) for record in self.records[-8:]]
        self.states[self.lsn].append(contents(self.records))
        return [
            Entry(kind, epoch, number, payload, flags)
            for kind, epoch, number, payload, flags, _ in self.records
        ]

    def append(self, *payloads: bytes) -> None:
        """One frame."""
        for payload in payloads:
            self.lsn += 1
            kind, flags, sequence = 1 + self.lsn % 5, self.lsn % 7, self.lsn << 33 | self.lsn
            self.log.append(kind, self.epoch, sequence, payload, flags, kick=True)
            self.records.append((kind, self.epoch, sequence, payload, flags, self.lsn))
            self.states[self.lsn] = [contents(self.records)]
        self.drain()
        assert self.durable == self.lsn

    def drain(self) -> None:
        while self.log.step():
            pass

    def tend(self) -> None:
        """A round of the housekeeper."""
        self.log.tend()
        self.watermark = self.lsn

    def rotate(self) -> None:
        assert self.log.rotate(self._checkpoint())
        self.drain()

    def kill(self) -> None:
        """SIGKILL."""
        self.files.process_crash()

    def _durable(self, lsn: int) -> None:
        self.durable = lsn


def _fail(error: BaseException) -> None:
    raise AssertionError("the log failed while a specimen was made") from error


@dataclass
class Specimen:
    """A log as found, with what it must say. `images` are its files; the lock is not among them.

    Attributes:
        records: what a reader must get, oldest first.
        states: for each lsn what a log that ends there may say: all records, or the checkpoint made there.
        watermark: everything up to this lsn is covered by the watermark.
    """

    name: str
    images: dict[str, bytes]
    records: list[Record]
    states: dict[int, list[list[Content]]]
    next_lsn: int
    watermark: int
    options: Options
    _files: SimulatedFiles = field(default_factory=SimulatedFiles)
    _inodes: dict[str, Inode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._files.exists = True
        for name, image in self.images.items():
            self._inodes[name] = _inode(image)

    @property
    def segments(self) -> list[str]:
        return sorted(name for name in self.images if name.startswith("wal-") and name.endswith(".log"))

    @property
    def last(self) -> str:
        return self.segments[-1]

    def read(self, changes: dict[str, bytes | None]) -> Recovered | None:
        """Open the log with some files replaced (None: removed); None when it is refused.

        Opening is that of a starting process, lock and all; it must change nothing.
        """
        files = self._files
        files.cached_names = dict(self._inodes)
        for name, image in changes.items():
            if image is None:
                del files.cached_names[name]
            else:
                files.cached_names[name] = _inode(image)
        operations = files.operations
        try:
            _, recovered = Log.open(
                DIRECTORY, self.options, on_durable=print, on_failure=print, files=files, threaded=False
            )
        except LogError as error:
            if error.exit_status != 78:
                raise
            return None
        finally:
            assert files.operations == operations, "opening must not write"
            files.process_crash()
        return recovered

    def found(self, changes: dict[str, bytes | None]) -> list[Record] | None:
        """The records, or None when the log is refused."""
        recovered = self.read(changes)
        return None if recovered is None else as_records(recovered)


def contents(records: list[Record]) -> list[Content]:
    """Records without their lsn, which a checkpoint changes."""
    return [record[:5] for record in records]


def _inode(image: bytes) -> Inode:
    inode = Inode()
    inode.cache = image  # type: ignore[assignment]
    return inode


def as_records(recovered: Recovered) -> list[Record]:
    """Every field of every entry, for comparison with the ledger."""
    return [
        (entry.kind, entry.epoch, entry.sequence, entry.payload, entry.flags, entry.lsn)
        for entry in recovered.entries
    ]


def specimen(name: str, make: Callable[[Author], None], options: Options = SMALL) -> Specimen:
    """Let an author write a log, kill it, and check that it reads as its ledger says."""
    author = Author(options)
    author.begin()
    make(author)
    author.kill()
    images = {name: bytes(inode.cache) for name, inode in author.files.cached_names.items()}
    made = Specimen(name, images, author.records, author.states, author.lsn + 1, author.watermark, options)
    recovered = made.read({})
    assert recovered is not None
    assert (as_records(recovered), recovered.next_lsn) == (made.records, made.next_lsn)
    return made


def _many_frames(author: Author) -> None:
    sizes = (40, 700, 1200, 300, 1900, 90, 444, 445)
    for number, size in enumerate(sizes[:5]):
        author.append(bytes([number]) * size, bytes([number]))
    author.tend()
    for size in sizes[5:]:
        author.append(b"\xa5" * size)


def _sealed(author: Author) -> None:
    author.tend()
    for number in range(9):
        author.append(bytes([number]) * 1500)
    author.append(b"x" * 400, b"")
    assert len([name for name in author.files.cached_names if name.startswith("wal-")]) == 2


def _checkpoint(author: Author) -> None:
    author.append(b"a" * 100, b"b" * 500, b"c")
    author.tend()
    author.rotate()
    author.tend()
    author.append(b"d" * 300)
    author.append(b"e" * 600)


def _in_place(author: Author) -> None:
    author.tend()
    author.files.capacity = 0
    for number in range(6):
        author.append(bytes([number]) * 2600)
    author.records = author.records[-1:]  # what the others said is over
    author.rotate()
    author.append(b"i" * 90)


def _rotation(author: Author) -> None:
    author.append(b"a" * 450, bytes(900))
    author.tend()
    author.append(b"b" * 20)
    author.rotate()


def _restart(author: Author) -> None:
    author.append(b"a" * 300)
    author.append(b"b" * 700)
    author.kill()
    author.begin()
    author.append(b"c" * 30)


def _closed(author: Author) -> None:
    author.append(b"a" * 300, b"b")
    author.append(b"b" * 500)
    author.log.close()
    author.watermark = author.lsn


MAKERS: dict[str, Callable[[Author], None]] = {
    "many frames": _many_frames,
    "sealed": _sealed,
    "checkpoint": _checkpoint,
    "in place": _in_place,
    "rotation": _rotation,
    "restart": _restart,
    "closed": _closed,
}
NAMES = tuple(MAKERS)


def make(name: str) -> Specimen:
    """The specimen of that name."""
    return specimen(name, MAKERS[name])
