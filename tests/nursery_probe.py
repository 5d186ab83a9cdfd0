"""What tests/test_nursery.py starts: says how it finds itself, and ends in various ways."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

from shell.failpoints import Failpoints


def _show() -> None:
    points = Failpoints.from_environment()
    handlers = {number.name: signal.getsignal(number) for number in signal.Signals}
    variables = subprocess.run(["env", "-0"], stdout=subprocess.PIPE, check=True).stdout.decode()
    found = dict(
        arguments=sys.argv,
        name=__name__,
        directory=os.getcwd(),
        input=sys.stdin.read(),
        session=os.getsid(0),
        group=os.getpgrp(),
        threads=[thread.name for thread in threading.enumerate()],
        descriptors=[name for name in os.listdir("/proc/self/fd") if _is_open(int(name))],
        signals={name: getattr(handler, "__name__", "") for name, handler in handlers.items() if handler},
        blocked=len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        environ=dict(os.environ),
        inherited=dict(item.split("=", 1) for item in variables.split("\0") if item),
        random=random.random(),
        failpoints=None if points is None else [name for name in ("one", "two") if points.wants(name)],
    )
    print(json.dumps(found))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:  # the one that listdir had
        return False
    return True


def _sleep() -> None:
    print("ready", flush=True)
    time.sleep(60)


def _main(what: str, *arguments: str) -> None:
    match what:
        case "show":
            _show()
        case "end":
            print("an end")  # flushed by Python's own end
        case "exit":
            sys.exit(int(arguments[0]) if arguments[0].isdigit() else arguments[0])
        case "raise":
            raise RuntimeError("on purpose")
        case "abort":
            os.abort()
        case "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        case "both":
            print("out", os.getcwd())
            print("err", file=sys.stderr)
            sys.exit(3)
        case "handle":
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(43))
            _sleep()
        case "sleep":
            _sleep()


if __name__ == "__main__":
    _main(*sys.argv[1:])
