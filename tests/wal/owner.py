"""What the tests of the log share: a small log on simulated files, and a model of its user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.wal.simulated_files import SimulatedFiles
from wal import Entry, Log, Options, Recovered

DIRECTORY = Path("/log")
SMALL = Options(segment_bytes=16384)


class Owner:
    """A user of the log: a map from sequence to payload. Knows every state it has ever been in.

    `states[lsn]` is the map after that record; `acknowledged` is the highest lsn reported durable.
    """

    def __init__(self, files: Any, directory: Path = DIRECTORY, options: Options = SMALL) -> None:
        self.files = files
        self.directory = directory
        self.options = options
        self.states: dict[int, dict[int, bytes]] = {0: {}}
        self.acknowledged = 0
        self.failures: list[BaseException] = []
        self.flushes: list[tuple[int, int]] = []
        self.threaded = False
        self.log: Log

    def heir(self, files: Any) -> Owner:
        """The same user on another machine, with this one's disk: knows what this one knows now."""
        heir = Owner(files, self.directory, self.options)
        heir.states = dict(self.states)
        heir.acknowledged = self.acknowledged
        return heir

    def open(self) -> Recovered:
        self.log, recovered = Log.open(
            self.directory,
            self.options,
            on_durable=self._durable,
            on_failure=self.failures.append,
            flush_observer=lambda seconds, records, size: self.flushes.append((records, size)),
            files=self.files,
            threaded=self.threaded,
        )
        self.check(recovered)
        return recovered

    def start(self, recovered: Recovered) -> None:
        """Starts from what was read: from here on all of it has to last."""
        read = recovered.next_lsn - 1
        self.states = {lsn: state for lsn, state in self.states.items() if lsn <= read}
        self.log.start(recovered.epoch + 1, self.live(read))
        self.acknowledged = read

    def begin(self) -> Recovered:
        recovered = self.open()
        self.start(recovered)
        return recovered

    def check(self, recovered: Recovered) -> None:
        """What was read is a state that the owner was in, and nothing acknowledged is missing."""
        read = recovered.next_lsn - 1
        assert read >= self.acknowledged, f"read up to {read}, acknowledged up to {self.acknowledged}"
        assert read in self.states, f"lsn {read} was never written"
        state: dict[int, bytes] = {}
        for entry in recovered.entries:
            state[entry.sequence] = entry.payload
        assert state == self.states[read]

    def append(self, sequence: int, payload: bytes, *, kick: bool = True) -> int:
        lsn = self.log.append(1, 1, sequence, payload, kick=kick)
        self.states[lsn] = self.states[lsn - 1] | {sequence: payload}
        return lsn

    def live(self, lsn: int) -> list[Entry]:
        return [Entry(2, 1, sequence, payload) for sequence, payload in self.states[lsn].items()]

    def rotate(self) -> bool:
        return self.log.rotate(self.live(self.log.next_lsn - 1))

    def drain(self) -> None:
        while self.log.step():
            pass

    def _durable(self, lsn: int) -> None:
        assert lsn > self.acknowledged
        self.acknowledged = lsn


def small_log(payloads: list[list[bytes]], options: Options = SMALL) -> tuple[SimulatedFiles, Owner]:
    """A log with one frame per list of payloads, all acknowledged."""
    files = SimulatedFiles()
    owner = Owner(files, options=options)
    owner.begin()
    sequence = 0
    for batch in payloads:
        for payload in batch:
            sequence += 1
            owner.append(sequence, payload)
        owner.drain()
    return files, owner


def segment_names(files: SimulatedFiles) -> list[str]:
    return [name for name in sorted(files.cached_names) if name.startswith("wal-") and name.endswith(".log")]
