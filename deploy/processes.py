"""Processes: children that end with this process, however it ends, and ports for them."""

from __future__ import annotations

import random
import socket as sockets
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The kernel sends a child its parent-death signal when the *thread* that started it ends, not only when the
# process does. So one thread, which lives as long as the process, starts all servers.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="private-server-spawner")


def spawn(
    command: Sequence[str], output: Path, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a child that the kernel kills when this process dies; its output goes to a file."""

    def start() -> subprocess.Popen[bytes]:
        with output.open("ab") as file:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=environ,
                start_new_session=True,  # Ctrl-C in a terminal is for this process to deal with
            )

    return _spawner.submit(start).result()


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
