"""Nursery: daemons for tests without the half second of imports that every start of one costs.

One helper process for each pytest process has imported what our commands import, and started nothing: no
thread, no event loop, no channel. It forks for each request, and the fork becomes what `python -m MODULE
ARGUMENT...` would have been, with its own session, directory, environment and output.

    1. asked for the first time, we start the helper (deploy.processes: the kernel kills it when we die)
    2. a request goes to it: the command's words, the environment, and the two files for output
    3. it forks, and once the fork has a session and its files, answers with the process id, a pidfd and the
       pipe on which it will tell the exit code
    4. signals go through the pidfd, which never means another process
    5. the helper, being the parent, reaps the child and tells the exit code

Whoever of the three dies: the helper's death kills its children (their parent-death signal), ours the helper.
What reads the environment must do so when it runs, not when it is imported: a test has it so. Hash seeds are
the same in all children of a helper. Start-up by exec is tested where a test asks for `started_by_exec`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# What the helper can become.
MODULES = (
    "coordinator.daemon",
    "coordinator.ctl.main",
    "participant_agent.daemon",
    "tests.bank.client",
)
# What these import when they run.
_LATER = (
    *("coordinator.embedded", "coordinator.local", "coordinator.offline", "coordinator.takeover"),
    *("participant_agent.host", "participant_agent.doctor"),
    *(f"coordinator.ctl.{name}" for name in ("client", "transactions", "status", "participants", "recovery")),
    *("coordinator.ctl.decisions", "coordinator.ctl.derivation", "coordinator.ctl.records"),
    *("rich.console", "rich.table", "rich.box", "rich.text", "grpc_status.rpc_status"),
)
# Read by Python and by libraries when they start: with other ones than the helper's, no fork is the same.
EARLY = ("PYTHON", "LC_", "LANG", "LD_", "GRPC_", "MALLOC_")
_UNBUFFERED = "PYTHONUNBUFFERED"  # the helper always is
_PATH = "PYTHONPATH"  # a child takes its own
_ANSWER_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


class NurseryError(Exception):
    """The helper does not answer; the message has its output."""


class Forked:
    """A child of the helper; as a subprocess.Popen."""

    def __init__(self, command: Sequence[str], pid: int, pidfd: int, status: int) -> None:
        self.args = list(command)
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = pidfd
        self._status = status
        self._reading = threading.Lock()

    def __del__(self) -> None:
        os.close(self._pidfd)
        os.close(self._status)

    def poll(self) -> int | None:
        """The exit code (negative: the signal), or None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The same once it has ended. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        code = self._ended(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                return None
            with self._reading:
                if self.returncode is None:
                    # Where nobody tells any more, it was killed: the helper's death is the child's.
                    self.returncode = int(os.read(self._status, 16) or -signal.SIGKILL)
        return self.returncode

    def send_signal(self, sig: int, /) -> None:
        """Send a signal; nothing where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, sig)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """`fork` is a deploy.processes.Fork, and always called in the same thread. `close` ends everything."""

    def __init__(self, modules: Sequence[str] = MODULES, imports: Sequence[str] = _LATER) -> None:
        self._modules = tuple(modules)
        self._imports = tuple(imports)
        self._helper: subprocess.Popen[bytes] | None = None
        self._early = _early(os.environ)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(_ANSWER_SECONDS)

    def fork(
        self, command: Sequence[str], environ: Mapping[str, str], directory: str, out: int, err: int
    ) -> Forked | None:
        """Start a command; None where it is not one of ours, or asks Python for something special."""
        python, option, module, *arguments = [*command, "", "", ""][: max(3, len(command))]
        if (python, option) != (sys.executable, "-m") or module not in self._modules:
            return None
        if _early(environ) != self._early:
            return None
        if self._helper is None:
            self._start()
        request = dict(module=module, arguments=arguments, environ=dict(environ), directory=directory)
        try:
            socket.send_fds(self._ours, [json.dumps(request).encode()], [out, err])
            answer, descriptors, _, _ = socket.recv_fds(self._ours, 64, 2)
        except OSError as error:
            raise NurseryError(f"{error}\n{self._said()}") from error
        if not answer:
            raise NurseryError(f"the helper has ended\n{self._said()}")
        pidfd, status = descriptors
        return Forked(command, int(answer), pidfd, status)

    def _start(self) -> None:
        self._helper = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
                sys.executable,
                "-m",
                "tests.nursery",
                *self._modules,
                *self._imports,
            ],
            stdin=self._theirs.fileno(),
            stdout=self._errors,
            stderr=self._errors,
            cwd=ROOT,
            env={**os.environ, _UNBUFFERED: "1"},
            start_new_session=True,
        )
        self._theirs.close()

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    @property
    def pid(self) -> int | None:
        """The helper's process id, once there is one."""
        return None if self._helper is None else self._helper.pid

    def close(self) -> None:
        """End the helper, and with it whatever children still run."""
        if self._helper is not None:
            self._helper.kill()
            self._helper.wait()
        for end in (self._ours, self._theirs, self._errors):
            end.close()


def _early(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(EARLY) and name not in (_UNBUFFERED, _PATH)
    }


# In the helper


def _serve(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for every request. Returns in a fork, what it is to become and its files; or None, in the end."""
    running: dict[int, tuple[int, int]] = {}  # pidfd -> (process id, where to tell the exit code)
    poller = select.poll()
    poller.register(control, select.POLLIN)
    while True:
        for ready, _ in poller.poll():
            if ready != control.fileno():
                poller.unregister(ready)
                _reap(ready, *running.pop(ready))
                continue
            message, files, _, _ = socket.recv_fds(control, 1 << 20, 2)
            if not message:
                return None
            begun, begins = os.pipe()
            pid = os.fork()
            if pid == 0:
                control.detach()  # _become closes it
                return json.loads(message), files
            pidfd = os.pidfd_open(pid)
            os.close(begins)
            os.read(begun, 1)  # until it has closed the other end: from then on it can be killed by its group
            os.close(begun)
            theirs, status = os.pipe()
            socket.send_fds(control, [str(pid).encode()], [pidfd, theirs])
            for descriptor in (*files, theirs):
                os.close(descriptor)
            running[pidfd] = (pid, status)
            poller.register(pidfd, select.POLLIN)


def _reap(pidfd: int, pid: int, status: int) -> None:
    _, code = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):  # nobody wants to know
        os.write(status, str(os.waitstatus_to_exitcode(code)).encode())
    os.close(status)
    os.close(pidfd)


def _become(request: dict[str, Any], files: list[int], helper: int, prctl: Any) -> None:
    """In a fork: the command, up to its end, which is Python's as after an exec."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != helper:
        os._exit(1)  # it died before the kernel knew what we want then
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number, descriptor in enumerate((null, *files)):
        os.dup2(descriptor, number)
    os.closerange(3, 1 << 20)  # so the helper hears that it has begun
    os.chdir(request["directory"])
    environ, module = request["environ"], request["module"]
    os.environ.clear()
    os.environ.update(environ)
    paths = filter(None, environ.get(_PATH, "").split(os.pathsep))
    sys.path[:1] = [request["directory"], *paths]
    sys.argv = [module, *request["arguments"]]
    Path("/proc/self/comm").write_text(module.partition(".")[0])  # what ps and top show
    sys.modules.pop(module)  # it is __main__ from now on
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _main() -> None:
    prctl = ctypes.CDLL(None).prctl
    helper = os.getpid()
    for name in sys.argv[1:]:
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) != 1:
        raise SystemExit("an import has started a thread: a fork would not have it")
    gc.collect()
    gc.freeze()  # no collection in a child needs to look at these, and to copy their pages
    child = _serve(socket.socket(fileno=0))
    if child is not None:
        _become(*child, helper, prctl)


if __name__ == "__main__":
    _main()
