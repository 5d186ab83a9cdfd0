"""A process with a live log, for strace to break: `strace -f ... python victim.py RESULTS < cases`.

A warm parent forks one child for each case, so that a run costs a fork and not the start of Python. The
child lives a short life on the real files: start, frames, a spare, a roll-over, a rotation, retirement,
close. It writes each lsn that is reported durable to RESULTS.acks, with the case's number. When the log
fails it does what the daemon does, and a little worse: it tries to go on, and ends with status 74 only when
that was refused.

How strace can break the n-th call of one thread: its `when=` counts per thread and per call. The case's
thread first makes calls that do nothing, so that strace's number (`broken`), which no other thread ever
reaches, is the n-th.

The record with lsn n says `payload(n)` under the key n % 7, so the state after any lsn is known without a
ledger.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEYS = 7
SECONDS = 5.0


def payload(lsn: int) -> bytes:
    """What the record with this lsn says; some fill several sectors, some would leave sectors of zeros."""
    return b"%d:" % lsn + (b"\0" if lsn % 3 else b"x") * (lsn * 337 % 1900)


def state_at(lsn: int) -> dict[int, bytes]:
    """What a log that ends with this lsn holds."""
    return {number % KEYS: payload(number) for number in range(max(1, lsn - KEYS + 1), lsn + 1)}


def main() -> None:
    """Run the cases of standard input, one after the other; the results go to a file in one write."""
    results = sys.argv[1]
    acks = os.open(results + ".acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    done = []
    for number, case in enumerate(json.load(sys.stdin)):
        os.access(f"case {number}", os.F_OK)  # a mark in strace's output
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = Life(number, case, acks).run()
            finally:
                os._exit(status)
        done.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    Path(results).write_text(json.dumps(done))


class Life:
    """One child. `case`: directory, records to append, limit, and what to break (number 0: nothing)."""

    def __init__(self, number: int, case: dict[str, Any], acks: int) -> None:
        self.number = number
        self.case = case
        self.acks = acks
        self.durable = 0
        self.failed = threading.Event()

    def run(self) -> int:
        """The exit status."""
        from wal.housekeeper import Housekeeper
        from wal.writer import Writer

        self.enter("main")
        for name, part in (("writer", Writer), ("housekeeper", Housekeeper)):
            part.run = self.entered(name, part.run)  # type: ignore[method-assign]
        try:
            return self.live()
        except OSError:
            return 74  # as the daemon, when a start cannot be written

    def enter(self, thread: str) -> None:
        """A mark in strace's output; then the calls that do nothing, in the thread that is to be broken."""
        os.access(f"thread {thread}", os.F_OK)
        if self.case["thread"] == thread and self.case["number"]:
            name = self.case["call"]
            for _ in range(broken(name) - self.case["number"]):
                PADS[name]()
        os.access("padded", os.F_OK)

    def entered(self, thread: str, run: Callable[[Any], None]) -> Callable[[Any], None]:
        def enter_and_run(part: Any) -> None:
            self.enter(thread)
            run(part)

        return enter_and_run

    def live(self) -> int:
        from wal import Entry, Log, LogError, Options

        options = Options(segment_bytes=16384, allow_unsafe_filesystem=True, tick_seconds=0.01)
        try:
            log, recovered = Log.open(
                Path(self.case["directory"]),
                options,
                on_durable=self.tell,
                on_failure=lambda _: self.failed.set(),
            )
            log.start(recovered.epoch + 1, recovered.entries)
        except LogError as error:
            return error.exit_status
        self.durable = first = recovered.next_lsn - 1
        last = first + self.case["records"]
        for lsn in range(first + 1, last + 1):
            if lsn == first + 4:
                self.wait(lambda: log.status().spare_ready)
                if self.case["limit"]:
                    _limit_file_size(self.case["limit"])
            try:
                assert log.append(1, 1, lsn % KEYS, payload(lsn), kick=True) == lsn
                if log.should_rotate() or lsn == last - 3:
                    log.rotate([Entry(1, 1, key, text) for key, text in state_at(lsn).items()])
            except LogError:
                break
            if lsn % 4:
                self.wait(lambda lsn=lsn: self.durable >= lsn)  # type: ignore[misc]
            if lsn == last - 2:
                self.wait(lambda: log.status().segments == 1)
        return self.end(log, last)

    def end(self, log: Any, last: int) -> int:
        from wal import LogError, LogFailed

        if not self.failed.is_set():
            try:
                log.close()
            except LogFailed:
                return 74
            return 0 if self.durable == last else 3
        for _ in range(2):
            try:
                log.append(1, 1, 0, b"more", kick=True)
            except LogError:
                time.sleep(0.001)
            else:
                return 4
        log.close()
        return 74

    def tell(self, lsn: int) -> None:
        """Acknowledge: from here on somebody relies on it."""
        os.write(self.acks, b"%d %d\n" % (self.number, lsn))
        self.durable = lsn

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition() and not self.failed.is_set():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.0003)


def broken(call: str) -> int:
    """Which of a thread's calls strace breaks; more than Python makes of them while it starts."""
    return 400 if call in ("openat", "close") else 80


def _limit_file_size(offset: int) -> None:
    """From now on the kernel writes nothing behind this offset: a write across it is cut short, truly."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (offset, offset))


_libc = ctypes.CDLL(None, use_errno=True)
# Each makes its system call and does nothing: no file is open under -1, no file has an empty name.
PADS: dict[str, Callable[[], Any]] = {
    "openat": lambda: _libc.open(b"", 0),
    "close": lambda: _libc.close(-1),
    "pread64": lambda: _libc.pread(-1, None, 0, 0),
    "getdents64": lambda: _libc.getdents64(-1, None, 0),
    "flock": lambda: _libc.flock(-1, 0),
    "ftruncate": lambda: _libc.ftruncate(-1, 0),
    "mkdir": lambda: _libc.mkdir(b"", 0),
    "fallocate": lambda: _libc.fallocate(-1, 0, 0, 1),
    "pwrite64": lambda: _libc.pwrite(-1, None, 0, 0),
    "write": lambda: _libc.write(-1, None, 0),
    "fdatasync": lambda: _libc.fdatasync(-1),
    "fsync": lambda: _libc.fsync(-1),
    "rename": lambda: _libc.rename(b"", b""),
    "unlink": lambda: _libc.unlink(b""),
}

if __name__ == "__main__":
    import wal  # noqa: F401  (warm before the first fork)

    main()
