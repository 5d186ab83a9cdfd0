"""A file system of a few MiB that can be filled: ext4 in a file, mounted over a loop device.

Where there is no loop device (some containers), a tmpfs of that size takes its place; the log has to be
told to accept it (`unsafe`). Where nothing can be mounted the test fails: it needs root and a system that
allows mounts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A mounted file system. `kind` is ext4 or tmpfs."""

    path: Path
    kind: str

    @property
    def unsafe(self) -> bool:
        """Whether the log refuses it unless told otherwise."""
        return self.kind == "tmpfs"

    def free(self) -> int:
        """Bytes that can still be allocated."""
        facts = os.statvfs(self.path)
        return facts.f_bavail * facts.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all room but `leave` bytes; a second call begins anew."""
        self.empty()
        with (self.path / "filler").open("wb") as file:
            size, step = 0, 1 << 20
            while step >= 1024:
                if self.free() - step < leave:
                    step //= 2
                    continue
                try:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step //= 2

    def hold(self, *paths: Path) -> None:
        """Keep the room of these files taken when they are removed, as an open file would."""
        for path in paths:
            os.link(path, self.path / f"held-{path.stat().st_ino}")

    def empty(self) -> None:
        """Give it back."""
        for path in (self.path / "filler", *self.path.glob("held-*")):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(path: Path, image: Path, mib: int) -> Iterator[SmallDisk]:
    """Mount a file system of so many MiB at `path`, its content in `image`; unmount it in any case."""
    path.mkdir(parents=True, exist_ok=True)
    image.parent.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(mib << 20)
    kind = "ext4"
    problems = _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image)) or _run(
        "mount", "-o", "loop", str(image), str(path)
    )
    if problems:
        kind = "tmpfs"
        again = _run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", str(path))
        if again:
            pytest.fail(
                f"a full disk needs a small file system, and none can be mounted here (not root? a container "
                f"without mounts?)\nloop device: {problems}\ntmpfs: {again}"
            )
        print(f"no loop device, so a tmpfs: {problems}")
    try:
        path.chmod(0o700)
        yield SmallDisk(path, kind)
    finally:
        if left := _run("umount", str(path)):
            _run("umount", "--lazy", str(path))
            print(f"unmounted lazily: {left}")
        image.unlink()


def _run(*command: str) -> str:
    """What went wrong, or ""."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PATH": _PATH},
        )
    except FileNotFoundError as error:
        return str(error)
    return done.stderr.strip() or f"{command[0]}: exit {done.returncode}" if done.returncode else ""
