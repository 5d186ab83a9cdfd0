"""The log with its threads on real files: group commit, lazy records, locks, modes, failures."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.wal.owner import Owner
from wal import (
    Entry,
    Log,
    LogFailed,
    LogLocked,
    LogMissing,
    LogUnsafe,
    Options,
    SystemFiles,
    TailState,
    read,
    verify,
)

OPTIONS = Options(segment_bytes=65536, allow_unsafe_filesystem=True, tick_seconds=0.05)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


class GatedFiles(SystemFiles):
    """Flushes wait for the gate, or fail."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.fail: OSError | None = None

    def fdatasync(self, fd: int) -> None:
        if not self.gate.is_set():
            self.waiting.set()
        assert self.gate.wait(10)
        if self.fail is not None:
            raise self.fail
        super().fdatasync(fd)


def make_owner(directory: Path, files: Any = None, options: Options = OPTIONS) -> Owner:
    owner = Owner(files or SystemFiles(), directory, options)
    owner.threaded = True
    return owner


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_records_are_acknowledged_and_read_again(directory: Path) -> None:
    owner = make_owner(directory)
    assert owner.begin().created
    for sequence in range(500):
        owner.append(sequence, b"p" * 50)
        if owner.log.should_rotate():
            owner.rotate()
    eventually(lambda: owner.acknowledged == 500)
    eventually(lambda: owner.log.status().spare_ready)
    assert read(directory).next_lsn == 501
    owner.log.close()
    assert verify(directory).verdict == "closed"
    assert owner.open().tail.state is TailState.CLOSED
    owner.log.close()


def test_what_gathers_during_a_flush_is_one_frame(directory: Path) -> None:
    files = GatedFiles()
    owner = make_owner(
        directory, files, Options(allow_unsafe_filesystem=True, segment_bytes=1 << 20, tick_seconds=5)
    )
    owner.begin()
    eventually(lambda: owner.log.status().spare_ready)
    files.gate.clear()
    owner.append(0, b"first")
    assert files.waiting.wait(10)
    assert owner.log.status().running_flush_seconds >= 0
    for sequence in range(1, 200):
        owner.append(sequence, b"x")
    assert owner.acknowledged == 0
    files.gate.set()
    eventually(lambda: owner.acknowledged == 200)
    assert [records for records, _ in owner.flushes] == [1, 199]
    owner.log.close()


def test_lazy_records_go_with_the_next_batch_or_the_tick(directory: Path) -> None:
    owner = make_owner(
        directory, options=Options(allow_unsafe_filesystem=True, segment_bytes=65536, tick_seconds=0.4)
    )
    owner.begin()
    owner.append(1, b"lazy", kick=False)
    time.sleep(0.05)
    assert owner.acknowledged == 0
    eventually(lambda: owner.acknowledged == 1)
    owner.append(2, b"lazy", kick=False)
    owner.append(3, b"forced")
    eventually(lambda: owner.acknowledged == 3)
    assert [records for records, _ in owner.flushes] == [1, 2]
    owner.log.close()


def test_backlog_of_many_segments_is_written_on_close(directory: Path) -> None:
    owner = make_owner(directory)
    owner.begin()
    for sequence in range(60):
        owner.append(sequence, b"p" * 10_000, kick=False)
    owner.log.close()
    assert owner.acknowledged == 60
    owner.begin()
    owner.log.close()


def test_failed_flush_is_final(directory: Path) -> None:
    files = GatedFiles()
    owner = make_owner(directory, files)
    owner.begin()
    eventually(lambda: owner.log.status().spare_ready)
    files.fail = OSError(errno.EIO, "simulated")
    owner.append(1, b"x")
    eventually(lambda: len(owner.failures) == 1)
    files.fail = None
    with pytest.raises(LogFailed):
        owner.append(2, b"y")
    assert owner.log.status().failed
    owner.log.close()
    assert (owner.acknowledged, len(owner.failures)) == (0, 1)


def test_callback_that_raises_is_a_failure(directory: Path) -> None:
    failures: list[BaseException] = []

    def refuse(lsn: int) -> None:
        raise RuntimeError("nobody listens")

    log, _ = Log.open(directory, OPTIONS, on_durable=refuse, on_failure=failures.append)
    log.start(1, [])
    log.append(1, 1, 1, b"", kick=True)
    eventually(lambda: len(failures) == 1)
    log.close()


def test_lock_modes_and_missing_directory(directory: Path) -> None:
    owner = make_owner(directory)
    with pytest.raises(LogMissing):
        Log.open(directory, OPTIONS, on_durable=print, on_failure=print, create=False)
    owner.begin()
    with pytest.raises(LogLocked, match=f"process {os.getpid()}"):
        make_owner(directory).open()
    eventually(lambda: owner.log.status().spare_ready)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    owner.log.close()


def test_unsafe_directories(directory: Path, tmp_path: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(LogUnsafe, match="everyone"):
        make_owner(directory).open()
    directory.chmod(0o700)
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(LogUnsafe, match="symbolic link"):
        make_owner(tmp_path / "link").open()


@pytest.mark.parametrize("filesystem", ["tmpfs", "nfs4", "fuse.sshfs"])
def test_unsafe_filesystems(directory: Path, filesystem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wal.files._filesystem", lambda device: filesystem)
    with pytest.raises(LogUnsafe, match=filesystem):
        make_owner(directory, options=Options(segment_bytes=65536)).open()
    make_owner(directory).begin()  # allowed by OPTIONS


def test_reading_while_it_is_written(directory: Path) -> None:
    owner = make_owner(directory)
    owner.begin()
    done = threading.Event()
    problems: list[object] = []

    def look() -> None:
        while not done.is_set():
            report = verify(directory)
            if report.problem is not None:
                problems.append(report.problem)

    reader = threading.Thread(target=look)
    reader.start()
    for sequence in range(1500):
        owner.append(sequence % 20, b"p" * (sequence % 3000))
        if owner.log.should_rotate():
            owner.rotate()
        if sequence % 10 == 0:
            eventually(lambda: owner.log.status().queued < 20)
    done.set()
    reader.join()
    owner.log.close()
    assert problems == []


def test_many_entries_in_a_checkpoint(directory: Path) -> None:
    owner = make_owner(directory)
    owner.open()
    state = [Entry(1, 1, sequence, b"s" * 50) for sequence in range(20_000)]
    owner.log.start(1, state)
    owner.log.close()
    assert [entry.sequence for entry in read(directory).entries] == list(range(20_000))
