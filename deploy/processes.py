"""Processes: children that end with this process, however it ends, and ports for them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket as sockets
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol, overload


class Child(Protocol):
    """What is used of a subprocess.Popen whose input and output are files."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


# (command, environment, directory, standard output, standard error) -> a child that is started already, in
# another way than by exec; None: not this command.
Fork = Callable[[Sequence[str], Mapping[str, str], str, int, int], Child | None]

# For tests, which start daemons by the thousand (tests/nursery.py). Called in the thread below only.
fork: Fork | None = None

# The kernel sends a child its parent-death signal when the *thread* that started it ends, not only when the
# process does. So one thread, which lives as long as the process, starts all servers.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="private-server-spawner")
# The running children with their outputs; only the thread above touches it.
_children: list[tuple[Child, Path]] = []


@overload
def spawn(command: Sequence[str], output: Path, environ: Mapping[str, str] | None = None) -> Child: ...
@overload
def spawn(
    command: Sequence[str], output: Path, environ: Mapping[str, str] | None = None, *, talk: Literal[True]
) -> subprocess.Popen[bytes]: ...
def spawn(
    command: Sequence[str], output: Path, environ: Mapping[str, str] | None = None, *, talk: bool = False
) -> Child:
    """Starts a child that the kernel kills when this process dies; its output goes to a file.

    With `talk` its standard input and output are pipes to us, and only its standard error goes to the file.
    """

    def start() -> Child:
        _children[:] = [item for item in _children if item[0].poll() is None]
        with output.open("ab") as file:
            if talk:
                child = _exec(command, environ, "/", subprocess.PIPE, subprocess.PIPE, file.fileno())
            else:
                child = _start(command, environ, "/", file.fileno(), file.fileno())
        _children.append((child, output.absolute()))
        return child

    return _spawner.submit(start).result()


def run(
    command: Sequence[str], timeout_seconds: float, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a child of the same kind to its end, in our directory; what it wrote, as text.

    Raises subprocess.TimeoutExpired, when it has been killed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        where = os.getcwd()
        child = _spawner.submit(_start, command, environ, where, out.fileno(), err.fileno()).result()
        try:
            child.wait(timeout_seconds)
        finally:
            child.kill()  # nothing, where it has ended
            code = child.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(list(command), code, *texts)


def _start(
    command: Sequence[str], environ: Mapping[str, str] | None, directory: str, out: int, err: int
) -> Child:
    if fork is not None:
        child = fork(command, os.environ if environ is None else environ, directory, out, err)
        if child is not None:
            return child
    return _exec(command, environ, directory, subprocess.DEVNULL, out, err)


def _exec(
    command: Sequence[str], environ: Mapping[str, str] | None, directory: str, stdin: int, out: int, err: int
) -> Child:
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *command],
        stdin=stdin,
        stdout=out,
        stderr=err,
        cwd=directory,
        env=environ,
        start_new_session=True,  # Ctrl-C in a terminal is for this process to deal with
    )


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
