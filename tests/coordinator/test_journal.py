"""The journal over a real log whose thread is the test: what is reported durable is on disk, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.codec import decode_all
from coordinator.core.coordinator import Coordinator
from coordinator.core.records import CommitRecord, EndRecord, PrepareRecord, Record
from coordinator.core.replay import Replayed, replay
from coordinator.core.settings import Settings
from coordinator.journal import JournalError, LogJournal, Opened, open_log, replay_entries, start_epoch
from dtp import Decision, Gtrid
from dtp.xid import MAX_EPOCH
from tests.wal.simulated_files import SimulatedFiles
from wal import Log, LogFailed, Options

SETTINGS = Settings("test")
OPTIONS = Options(segment_bytes=1 << 16)
DIRECTORY = Path("/log")


class Loop:
    """Keeps what a thread hands to the event loop until the test lets it run."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[[int], None], int]] = []

    def call_soon_threadsafe(self, callback: Callable[[int], None], lsn: int) -> None:
        self.calls.append((callback, lsn))

    def run(self) -> None:
        calls, self.calls = self.calls, []
        for callback, lsn in calls:
            callback(lsn)


class Bench:
    """One process after the other over the same simulated disk."""

    def __init__(self) -> None:
        self.files = SimulatedFiles()
        self.loop = Loop()
        self.reported: list[int] = []
        self.failures: list[BaseException] = []
        self.log: Log
        self.journal: LogJournal

    def open(self, options: Options = OPTIONS) -> Opened:
        self.log, recovered = Log.open(
            DIRECTORY,
            options,
            on_durable=lambda lsn: self.journal.durable_from_thread(lsn),
            on_failure=self.failures.append,
            files=self.files,
            threaded=False,
        )
        return Opened(self.log, recovered, replay_entries(recovered.entries))

    def start(self, nonce: int, *names: str, settings: Settings = SETTINGS) -> Coordinator:
        """A process begins: what the runtime does."""
        opened = self.open()
        core = start_epoch(opened, settings, names, nonce, 100.0)
        loop: asyncio.AbstractEventLoop = self.loop  # type: ignore[assignment]
        self.journal = LogJournal(self.log, opened.recovered.identity, loop)
        self.journal.on_durable = self.reported.append
        self.log.tend()
        return core

    def kill(self) -> None:
        self.files.process_crash()

    def flush(self) -> None:
        while self.log.step():
            pass
        self.loop.run()

    def read(self) -> Replayed:
        """What the next process would find."""
        self.kill()
        opened = self.open()
        self.log.close()
        return opened.replayed


def prepare(counter: int, epoch: int = 1) -> PrepareRecord:
    return PrepareRecord(Gtrid.make("test", epoch, counter, 0), (1, 2), 1.5)


def commit(counter: int, epoch: int = 1, key: str = "") -> CommitRecord:
    return CommitRecord(Gtrid.make("test", epoch, counter, 0), (1, 2), 1.5, 2.5, key, b"F" if key else b"")


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.start(7, "a", "b")
    return bench


def test_a_number_is_reported_when_its_record_is_on_disk_and_not_before(bench: Bench) -> None:
    bench.journal.append(commit(1), 1, kick=True)
    bench.loop.run()
    assert bench.reported == []
    bench.log.step()
    assert bench.reported == [], "the callback comes from the log's thread, the report from the loop's"
    bench.journal.append(commit(2), 2, kick=True)
    bench.loop.run()
    assert bench.reported == [1], "the second record was appended after that flush"
    bench.log.step()
    bench.loop.run()
    assert bench.reported == [1, 2]
    assert len(bench.read().transactions) == 2


def test_numbers_of_one_flush_are_reported_once_with_the_last(bench: Bench) -> None:
    bench.journal.append(prepare(1), None, kick=True)
    for number in (1, 2, 3):
        bench.journal.append(commit(number), number, kick=True)
    bench.journal.append(prepare(4), None, kick=True)
    bench.flush()
    assert bench.reported == [3]
    bench.journal.append(commit(4), 4, kick=True)
    bench.log.step()
    bench.journal.append(commit(5), 5, kick=True)
    bench.log.step()
    bench.journal.append(commit(6), 6, kick=True)
    bench.loop.run()
    assert bench.reported == [3, 4, 5], "in order, and never one that is not on disk"


def test_records_that_nobody_waits_for_report_nothing(bench: Bench) -> None:
    bench.journal.append(prepare(1), None, kick=True)
    bench.flush()
    bench.journal.append(EndRecord(commit(1).id, 3.0, True), None, kick=False)
    bench.flush()
    assert bench.reported == []
    bench.journal.append(commit(2), 1, kick=True)
    bench.flush()
    assert bench.reported == [1]


def test_a_flush_that_fails_reports_nothing_and_everything_after_it_raises(bench: Bench) -> None:
    bench.files.fail_at = bench.files.operations + 2  # the write, then the flush
    bench.journal.append(commit(1), 1, kick=True)
    bench.flush()
    assert (bench.reported, len(bench.failures)) == ([], 1)
    for use in (
        lambda: bench.journal.append(commit(2), 2, kick=True),
        lambda: bench.journal.rotate([]),
        lambda: bench.journal.reserve(),
        lambda: bench.journal.release(),
    ):
        with pytest.raises(LogFailed):
            use()
    assert not bench.journal.should_rotate()
    assert bench.journal.status().failed


def test_room_is_reserved_until_there_is_none_and_given_back(bench: Bench) -> None:
    count = 0
    while bench.journal.reserve():
        count += 1
        assert count < 1_000
    assert count > 5
    assert not bench.journal.reserve()
    one = bench.journal.status().reserved // count
    assert one >= 3 * bench.log.cost(640), "PREPARE, COMMIT and END, the longest there are"
    bench.journal.release()
    assert bench.journal.status().reserved == (count - 1) * one
    assert bench.journal.reserve()
    assert not bench.journal.reserve()
    for _ in range(count):
        bench.journal.release()
    assert bench.journal.status().reserved == 0
    with pytest.raises(ValueError, match="release"):
        bench.journal.release()


def test_what_was_reserved_is_there_when_the_disk_is_full(bench: Bench) -> None:
    bench.files.capacity = 0
    count = 0
    while bench.journal.reserve():
        count += 1
    for number in range(1, count + 1):
        for record in (prepare(number), commit(number, key="k" * 128)):
            bench.journal.append(record, number if isinstance(record, CommitRecord) else None, kick=True)
            bench.flush()
        bench.journal.append(EndRecord(commit(number).id, 3.0, True), None, kick=False)
        bench.flush()
        bench.journal.release()
    assert bench.reported == list(range(1, count + 1))
    assert not bench.failures


def test_a_rotation_leaves_the_state_that_was_there(bench: Bench) -> None:
    records: list[Record] = [prepare(1), commit(1, key="k"), prepare(2), prepare(3), commit(3)]
    records.append(EndRecord(commit(3).id, 3.0, True))
    for record in records:
        bench.journal.append(record, None, kick=True)
    bench.flush()
    before = bench.read()
    core = bench.start(8, "b", "c")
    bench.journal.append(commit(9, epoch=2), 1, kick=True)
    bench.journal.rotate(core.checkpoint())
    bench.journal.append(commit(10, epoch=2), 2, kick=True)
    bench.flush()
    assert bench.reported == [1, 2]
    after = bench.read()
    found = {g: t.decision for g, t in after.transactions.items()}
    later = str(commit(10, epoch=2).id)
    assert found.pop(later) is Decision.COMMIT, "what came after the checkpoint"
    assert str(commit(9, epoch=2).id) not in found, "the checkpoint stands for all that was before it"
    assert found == {g: t.decision for g, t in before.transactions.items()}
    for gtrid in found:
        left, right = after.transactions[gtrid], before.transactions[gtrid]
        assert (left.participants, left.begun_at) == (right.participants, right.begun_at)
        assert (left.idempotency_key, left.fingerprint) == (right.idempotency_key, right.fingerprint)
    assert after.nonces == {1: 7, 2: 8}
    assert after.numbers == {"a": 1, "b": 2, "c": 3}
    assert after.marks[1] == 3


def test_a_checkpoint_is_read_as_what_it_was_written_from(bench: Bench) -> None:
    bench.journal.append(commit(1, key="k"), None, kick=True)
    bench.flush()
    bench.kill()
    core = bench.start(8, "a")
    written = replay(core.checkpoint())
    assert bench.read() == written
    entries = bench.open().recovered.entries
    assert decode_all("test", entries) == core.checkpoint()


def test_a_new_epoch_is_higher_and_keeps_numbers_and_nonces(bench: Bench) -> None:
    bench.kill()
    core = bench.start(8, "c", "b")
    assert core.epoch == 2
    assert core.nonces == {1: 7, 2: 8}
    assert {n: (p.number, p.configured) for n, p in core.participants.items()} == {
        "a": (1, False),
        "b": (2, True),
        "c": (3, True),
    }
    bench.kill()
    core = bench.start(9, "d", "a")
    assert core.epoch == 3
    assert {n: p.number for n, p in core.participants.items()} == {"a": 1, "b": 2, "c": 3, "d": 4}
    replayed = bench.read()
    assert (replayed.epoch, replayed.nonces) == (3, {1: 7, 2: 8, 3: 9}), "on disk before anything is done"


def test_an_epoch_that_only_a_segment_knows_is_not_given_again() -> None:
    bench = Bench()
    bench.open()
    bench.log.start(5, [])
    bench.log.close()
    bench.kill()
    assert bench.start(7, "a").epoch == 6


def test_the_log_of_another_coordinator_is_refused_and_not_changed(bench: Bench) -> None:
    bench.kill()
    operations = bench.files.operations
    with pytest.raises(JournalError, match=r"'test'.*'othr'"):
        bench.start(8, "a", settings=Settings("othr"))
    assert bench.files.operations == operations
    assert bench.read().nonces == {1: 7}


def test_epochs_end() -> None:
    bench = Bench()
    opened = bench.open()
    opened.replayed.epoch = MAX_EPOCH
    with pytest.raises(JournalError, match="used up"):
        start_epoch(opened, SETTINGS, ["a"], 1, 0.0)


def test_an_unreadable_log_gives_its_lock_back(tmp_path: Path) -> None:
    options = Options(segment_bytes=1 << 16, allow_unsafe_filesystem=True)

    def opened() -> Opened:
        return open_log(tmp_path / "log", options, on_durable=lambda lsn: None, on_failure=lambda error: None)

    first = opened()
    start_epoch(first, SETTINGS, ["a"], 7, 0.0)
    first.log.append(99, 1, 1, b"", kick=True)
    first.log.close()
    for _ in range(2):  # the second one would find the lock taken
        with pytest.raises(Exception, match="does not know"):
            opened()
