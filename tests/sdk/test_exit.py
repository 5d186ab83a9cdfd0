"""Processes with a stream end like others: without close(), with a frozen server, after a fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.sdk.streaming import PATIENCE_SECONDS

_SERVER = """
import sys
sys.path.insert(0, {root!r})
from tests.sdk.fakes import World
world = World()
print(world.address, flush=True)
sys.stdin.read()
world.servers.stop()
"""

_CLIENT = """
import contextlib, os, signal, sys, threading, time
sys.path.insert(0, {root!r})
from xacoord import Branch, Statement, TransactionManager, line
line.CALLS_BEFORE_A_STREAM = 0
tm = TransactionManager.connect(sys.argv[1], grace=1.0)
def run():
    tm.run([Branch("orders", [Statement("SELECT 1")])], timeout=2)
def try_to():  # in a thread: that its call fails is right, and not what is looked for
    with contextlib.suppress(Exception):
        run()
while not tm._session.driver._lines or not getattr(tm._session.driver._lines[""]._stream, "usable", False):
    run()
run()
{then}
print("the end", flush=True)
"""


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    code = _SERVER.format(root=os.getcwd())
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "then",
    [
        "",  # ends without close()
        "tm.close()",
        "del tm; import gc; gc.collect()",
        # The server is frozen, also with calls under way; the first is awaited, the others are not.
        "os.kill(int(sys.argv[2]), signal.SIGSTOP)",
        "os.kill(int(sys.argv[2]), signal.SIGSTOP)\n"
        "for _ in range(5): threading.Thread(target=try_to, daemon=True).start()\n"
        "time.sleep(0.3)",
        "os.kill(int(sys.argv[2]), signal.SIGSTOP)\n"
        "threading.Thread(target=try_to, daemon=True).start(); time.sleep(0.3); tm.close()",
        # A child that is forked while the stream stands ends as its parent does.
        "child = os.fork()\n"
        "if child == 0: sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "run()",
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try: run()\n"
        "    except RuntimeError as error: assert 'fork' in str(error)\n"
        "    tm.close(); sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "run()",
    ],
)
def test_a_process_ends_whatever_becomes_of_its_stream(server: subprocess.Popen[str], then: str) -> None:
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    code = _CLIENT.format(root=os.getcwd(), then=then)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, address, str(server.pid)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS + 10,
    )
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr
    assert "Traceback" not in done.stderr
