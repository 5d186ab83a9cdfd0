"""Interruption: Ctrl-C and SIGTERM end a program in order, and nothing that it began stays behind.

An interruption comes at any moment: between the making of a directory and the `try` after it, or when a
server runs and nobody has its handle yet; that server would go on writing below a directory that is being
removed. So `scratch` has no moment before its `try`, and ends every child that writes below its directory.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.processes import end_below

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_IMPATIENCE_SECONDS = 5.0
_REMOVE_SECONDS = 5.0
_POLL_SECONDS = 0.02


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came. asyncio lets every KeyboardInterrupt through. `status`: the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """The first signal raises Interrupted. More of them change nothing while what was begun is put away;
    where that takes long, the next one ends the process (and the kernel its children).
    """
    first: list[float] = []
    owner = os.getpid()

    def handle(number: int, _: object) -> None:
        if os.getpid() != owner:
            return  # a child that was just forked: its parent deals with it
        if not first:
            first.append(time.monotonic())
            raise Interrupted(number)
        if time.monotonic() - first[0] > _IMPATIENCE_SECONDS:
            os._exit(128 + number)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A temporary directory for processes and their files. On the way out both end."""
    directory = Path(tempfile.gettempdir()).absolute() / f"{prefix}{secrets.token_hex(6)}"
    try:
        directory.mkdir(mode=0o700)
        yield directory
    finally:
        end_below(directory)
        deadline = time.monotonic() + _REMOVE_SECONDS
        shutil.rmtree(directory, ignore_errors=True)
        while directory.exists() and time.monotonic() < deadline:  # cp or a client may still be writing
            time.sleep(_POLL_SECONDS)
            shutil.rmtree(directory, ignore_errors=True)
