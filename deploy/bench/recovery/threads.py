"""Threads: several connections at work at the same time, all of them measured as one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from MySQLdb import Error

from deploy.bench.servers import BenchError


def at_once(jobs: Sequence[tuple[Any, ...]]) -> float:
    """Call the first of each job with the others and a function that says when to give up, each in a thread.

    Returns:
        Seconds from the moment that all threads were there until the last one had ended.

    Raises:
        BenchError: a server has refused something.
    """
    ready = threading.Barrier(len(jobs) + 1)
    stop = threading.Event()

    def run(work: Callable[..., None], *arguments: object) -> None:
        ready.wait()
        try:
            work(*arguments, stop.is_set)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            futures = [pool.submit(run, *job) for job in jobs]
            ready.wait()
            began = time.monotonic()
            for future in futures:
                future.result()
            return time.monotonic() - began
        except Error as error:
            text = " ".join(str(part) for part in error.args)
            raise BenchError(f"a server refuses what the benchmark asks of it: {text}") from error
        finally:
            stop.set()
