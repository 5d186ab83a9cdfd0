"""Runs a daemon's `main` many times, each in a process of its own, without importing it anew every time.

A child that has imported everything and started nothing forks for each request; the fork runs `main` with
its own arguments, environment and output, and ends with its exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

TIMED_OUT = -9


class Forks:
    """Call `run`; close it in the end."""

    def __init__(self, root: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.bad_input.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )

    def run(
        self, module: str, *arguments: str, seconds: float = 3, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `module`.main to its end; exit code -9 where it had not ended after `seconds`."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        request = dict(module=module, arguments=arguments, seconds=seconds, environ=environ)
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        return subprocess.CompletedProcess([module, *arguments], answer["code"], answer["out"], answer["err"])

    def close(self) -> None:
        with self._child:
            assert self._child.stdin is not None
            self._child.stdin.close()
            self._child.wait(10)


def _run_main(request: dict[str, Any], out: int, err: int) -> None:
    """In the fork: never returns."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.setsid()
    code = 70
    try:
        os.environ.update(request["environ"])
        sys.argv = [request["module"], *request["arguments"]]
        sys.modules[request["module"]].main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_IMPORTED = (
    *(
        "coordinator.daemon",
        "participant_agent.daemon",
        "participant_agent.agent",
        "participant_agent.service",
    ),
    *("grpc.aio", "uvloop"),
)


def _serve() -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if pid == 0:
                _run_main(request, out.fileno(), err.fileno())
            deadline = time.monotonic() + request["seconds"]
            done, status = os.waitpid(pid, os.WNOHANG)
            while not done:
                if time.monotonic() > deadline:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    done, status = os.waitpid(pid, 0)
                    break
                time.sleep(0.01)
                done, status = os.waitpid(pid, os.WNOHANG)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        answer = dict(code=os.waitstatus_to_exitcode(status), out=texts[0], err=texts[1])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
