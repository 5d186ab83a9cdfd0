"""Every system call of a live log fails, or is the process's last: on real files, under strace.

Two lives: `fresh` in an empty directory, `restart` on a log with a torn tail and leftovers. Both append,
roll over, rotate, retire and close (`tests.wal.victim`). For each thread, call and n: the n-th call fails
with EIO, ENOSPC or EINTR, or the process is killed at its entry (killing "after" a call is killing at the
next).

    EIO      ends the process with 74, except where nothing depends on the call
    ENOSPC   the same, except that the making of a spare is tried again later
    EINTR    nothing was done yet; Python asks again (PEP 475), which is no retry of a failure. Calls that it
             does not ask again for end with 74
    KILL     no status

A short write cannot be had from strace: it could only lie about a write that was not made, or was made in
full. The kernel makes true ones at RLIMIT_FSIZE: it writes up to the limit and says how much that was.

Always: what was acknowledged is there at the next opening, in order, with the right content (I5); after a
failed write or flush nothing is acknowledged (I7), and the thread writes, flushes and renames nothing more
(R2).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiers import count
from tests.wal import oracle, strace
from tests.wal.strace import Run
from tests.wal.victim import PADS, payload, state_at
from wal import Log, Options, Recovered, TailState

LIVES = ("fresh", "restart")
RECORDS = 16
WRITING = frozenset({"pwrite64", "fdatasync", "fsync", "rename", "fallocate"})
ASKED_AGAIN = frozenset(
    {"openat", "pread64", "flock", "ftruncate", "fallocate", "pwrite64", "write", "fdatasync", "fsync"}
)
FRAME_WRITTEN = re.compile(r'"WFRM.*, (\d+), \d+\) += (-?\d+)')


def case(
    directory: Path, thread: str = "", call: str = "", number: int = 0, limit: int = 0
) -> dict[str, object]:
    who = {"thread": thread, "call": call, "number": number}
    return {"directory": str(directory), "records": RECORDS, "limit": limit, **who}


def reopen(directory: Path) -> Recovered:
    """Read it as a starting process does."""
    options = Options(segment_bytes=16384, allow_unsafe_filesystem=True)
    log, recovered = Log.open(directory, options, on_durable=print, on_failure=print, threaded=False)
    log.close()
    return recovered


class Lives:
    """Directories to live in, and how many calls of each kind a life makes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.old = directory / "old"
        self._number = 0
        self._make_old_log()
        runs = strace.run(self.new(), "", [case(self.place(life)) for life in LIVES])
        for life, made in zip(LIVES, runs, strict=True):
            assert made.status == 0, life
            judge(made)
        self.counts = {life: made.counts() for life, made in zip(LIVES, runs, strict=True)}
        self.first_lsn = {"fresh": 0, "restart": reopen(self.old).next_lsn - 1}

    def _make_old_log(self) -> None:
        """A process that was killed; then the power went: an unfinished frame, an unfinished file."""
        (made,) = strace.run(self.new(), "signal=KILL", [case(self.old, "writer", "write", 11)])
        assert (made.status, len(made.acknowledged)) == (-9, 10)
        last = max(self.old.glob("wal-*.log"))
        image = bytearray(last.read_bytes())
        end = oracle.frames(bytes(image))[-1].end
        image[end + 512 : end + 1024] = b"?" * 512
        last.write_bytes(image)
        (self.old / "fresh.tmp").write_bytes(b"unfinished")
        assert reopen(self.old).tail.state is TailState.TORN

    def new(self) -> Path:
        self._number += 1
        directory = self.directory / str(self._number)
        directory.mkdir()
        return directory

    def place(self, life: str) -> Path:
        """A directory for one life: absent, or with the old log in it."""
        place = self.new() / "log"
        if life == "restart":
            shutil.copytree(self.old, place)
        return place

    def cases(self, life: str) -> Iterator[dict[str, object]]:
        """Each call of each thread, and one number past the last."""
        for (thread, call), number in sorted(self.counts[life].items()):
            for n in range(1, number + 2):
                yield case(self.place(life), thread, call, n)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    return Lives(tmp_path_factory.mktemp("system-calls"))


def judge(made: Run) -> None:
    """I5: what was acknowledged is there, and nothing that was never said."""
    directory = Path(str(made.case["directory"]))
    assert made.acknowledged == sorted(made.acknowledged)
    last = max(made.acknowledged, default=0)
    if not directory.exists():
        assert last == 0
        return
    recovered = reopen(directory)
    read = recovered.next_lsn - 1
    assert read >= last, made.case
    state: dict[int, bytes] = {}
    for entry in recovered.entries:
        state[entry.sequence] = entry.payload
    assert state == state_at(read), made.case
    if made.status == 0:
        assert read == last, made.case
        assert recovered.tail.state is TailState.CLOSED


def goes_on(error: str, thread: str, call: str, text: str) -> bool | None:
    """Whether the process survives this failure; None where it depends on what the file was."""
    if "mountinfo" in text:
        return True  # a system that does not tell the file system's type
    if error == "EINTR" and call in ASKED_AGAIN:
        return "O_NONBLOCK" not in text  # opendir: not asked again
    if call in ("close", "unlink"):
        return None  # suppressed where a file is given up anyway
    if error == "ENOSPC" and thread == "housekeeper":
        making_a_spare = call == "fallocate" or '"\\0' in text or "/spare-" in text
        return None if call == "fdatasync" else making_a_spare
    if error == "ENOSPC" and thread == "main" and call in ("pwrite64", "pread64"):
        return None  # the copy of a torn tail is for people
    return False


def check_failure(made: Run, error: str) -> None:
    """R2 and I7: what happened behind the call that failed."""
    at = made.injected
    if at is None:  # past the last, or a round less of the housekeeper
        assert made.status == 0, made.case
        return
    failed = made.calls[at]
    expected = goes_on(error, failed.thread, failed.name, failed.text)
    assert made.status == 0 if expected else made.status == 74 or (expected is None and made.status == 0), (
        made.case
    )
    if made.status == 0:
        return
    behind = [call for call in made.calls[at + 1 :] if not call.resumed]
    if failed.name in WRITING:
        again = [call for call in behind if call.thread == failed.thread and call.name in WRITING]
        assert again == [], (made.case, again)
    acknowledged = sum(call.name == "write" for call in behind)
    frames = sum(call.name == "pwrite64" and '"WFRM' in call.text for call in behind)
    if failed.thread == "writer":
        assert (acknowledged, frames) == (0, 0), made.case
    else:
        # What the writer was at, one frame or a rotation with its checkpoint, and what it begins before the
        # other thread's turn comes to say that it has failed: that is sound (`judge`), but it must end.
        assert acknowledged <= 4, made.case
        assert frames <= 6, made.case


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EINTR"])
@pytest.mark.parametrize("life", LIVES)
def test_each_call_fails(lives: Lives, life: str, error: str) -> None:
    runs = strace.run(lives.new(), f"error={error}", list(lives.cases(life)))
    for made in runs:
        check_failure(made, error)
        judge(made)
    broken = [made for made in runs if made.injected is not None]
    assert len(broken) > len(runs) * 0.7
    assert {made.status for made in broken} == {0, 74}
    count("log: failed system calls", len(broken))


@pytest.mark.parametrize("life", LIVES)
def test_killed_at_each_call(lives: Lives, life: str) -> None:
    runs = strace.run(lives.new(), "signal=KILL", list(lives.cases(life)))
    for made in runs:
        assert made.status in (0, -9), made.case
        judge(made)
    killed = sum(made.status == -9 for made in runs)
    assert killed > len(runs) * 0.7
    count("log: failed system calls", killed)


def test_short_writes(lives: Lives) -> None:
    """A frame across the limit is written in part, to any byte: not acknowledged, status 74, no damage."""
    cases = [case(lives.place(life), limit=limit) for life in LIVES for limit in range(4096, 14000, 199)]
    short = 0
    for made in strace.run(lives.new(), "", cases):
        written = [match for call in made.calls if (match := FRAME_WRITTEN.search(call.text))]
        missing = [match for match in written if match[1] != match[2]]
        assert made.status == (74 if missing else 0), made.case
        short += any(match[2] != "-1" for match in missing)
        judge(made)
    assert short > len(cases) // 3
    count("log: failed system calls", short)


def test_the_payloads_are_worth_it() -> None:
    """Frames of one sector and of several, with and without a mask."""
    sizes = {len(payload(lsn)) // 512 for lsn in range(1, RECORDS)}
    assert {0, 1, 2, 3} <= sizes
    assert set(PADS) >= WRITING | ASKED_AGAIN
