"""Processes: children that end with this process, however it ends, and ports for them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket as sockets
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The kernel sends a child its parent-death signal when the *thread* that started it ends, not only when the
# process does. So one thread, which lives as long as the process, starts all servers.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="private-server-spawner")
# The running children with their outputs; only the thread above touches it.
_children: list[tuple[subprocess.Popen[bytes], Path]] = []


def spawn(
    command: Sequence[str], output: Path, environ: Mapping[str, str] | None = None, *, talk: bool = False
) -> subprocess.Popen[bytes]:
    """Starts a child that the kernel kills when this process dies; its output goes to a file.

    With `talk` its standard input and output are pipes to us, and only its standard error goes to the file.
    """

    def start() -> subprocess.Popen[bytes]:
        _children[:] = [item for item in _children if item[0].poll() is None]
        with output.open("ab") as file:
            child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talk else file,
                stderr=file if talk else subprocess.STDOUT,
                cwd="/",
                env=environ,
                start_new_session=True,  # Ctrl-C in a terminal is for this process to deal with
            )
        _children.append((child, output.absolute()))
        return child

    return _spawner.submit(start).result()


def end_below(directory: Path) -> None:
    """Kills and reaps all children whose output is below a directory, with their own children.

    For an interruption, which may come when a child has been started and nobody has its handle yet.
    """

    def end() -> None:
        for child, output in _children:
            if child.poll() is None and output.is_relative_to(directory):
                with contextlib.suppress(ProcessLookupError):  # somebody else has just reaped it
                    os.killpg(child.pid, signal.SIGKILL)  # each has a session, and so a group, of its own
                child.wait()

    _spawner.submit(end).result()


def free_port() -> int:
    """A free port of 127.0.0.1 that nobody else is given while this process lives: free while its server is
    down, too. It lies below those that the kernel hands out.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        # An abstract name: the kernel drops it with the process.
        claim = sockets.socket(sockets.AF_UNIX)
        with sockets.socket() as listener:
            try:
                claim.bind(f"\0xacoord-port-{port}")
                listener.bind(("127.0.0.1", port))
            except OSError:
                claim.close()
                continue
        claim.detach()  # it stays open
        return port
