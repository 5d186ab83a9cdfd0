"""The directory of a log: whether it can be trusted, and whose it is (R10).

A log is only as good as the place that it is kept in. A memory file system forgets at a power cut,
a network file system may acknowledge a flush it did not do and may not honour the lock, and a
directory that everyone may write to, or that a link points to, can be exchanged under us.
"""

from __future__ import annotations

from pathlib import Path

from wal.errors import LogLocked, LogMissing, LogUnsafe
from wal.files import Files
from wal.format import LOCK_NAME

FORGETFUL = frozenset({"tmpfs", "ramfs", "devtmpfs"})
REMOTE = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "gfs2",
        "ocfs2",
        "vboxsf",
    }
)


def take(files: Files, directory: Path, *, create: bool, allow_unsafe_filesystem: bool) -> int:
    """Checks the directory and takes its lock.

    Arguments:
        create: whether an absent directory is made (mode 0700).

    Returns:
        The handle of the lock; closing it gives the lock back.

    Raises:
        LogMissing, LogUnsafe, LogLocked.
    """
    facts = files.facts(directory)
    if not facts.exists:
        if not create:
            raise LogMissing(
                f"{directory}: there is no such directory; name the directory of an existing log"
            )
        files.make_directory(directory)
        facts = files.facts(directory)
    if facts.is_link:
        raise LogUnsafe(f"{directory} is a symbolic link; name the directory it points to instead")
    if facts.world_writable:
        raise LogUnsafe(
            f"{directory} can be written by everyone; run `chmod 0700 {directory}` and look who wrote to it"
        )
    remote = facts.filesystem in REMOTE or facts.filesystem.startswith("fuse")
    if (remote or facts.filesystem in FORGETFUL) and not allow_unsafe_filesystem:
        what = "a network file system" if remote else "memory"
        raise LogUnsafe(
            f"{directory} is on {facts.filesystem}, {what}, where a flushed record can be lost; move the log "
            "to a local disk, or allow unsafe file systems if losing it does not matter"
        )
    try:
        return files.lock(directory / LOCK_NAME)
    except BlockingIOError:
        raise LogLocked(
            f"{directory} is in use by process {_owner(files, directory)}; stop that process, "
            f"or look at the log with `coordctl wal dump {directory}`, which needs no lock"
        ) from None


def _owner(files: Files, directory: Path) -> str:
    try:
        fd = files.open(directory / LOCK_NAME)
    except OSError:
        return "unknown"
    try:
        return files.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        files.close(fd)
