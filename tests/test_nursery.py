"""The nursery's children are what exec would have made of the same command, and nobody outlives anybody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from deploy import processes
from tests import nursery as nurseries
from tests.nursery import ROOT, Forked, Nursery

PROBE = "tests.nursery_probe"
COMMAND = (sys.executable, "-m", PROBE)
Start = Callable[..., processes.Child]


@pytest.fixture(scope="module")
def probing() -> Iterator[Nursery]:
    """A nursery whose children can become the probe."""
    nursery = Nursery((PROBE,), ())
    yield nursery
    nursery.close()


@pytest.fixture(params=["forked", "executed"])
def start(request: pytest.FixtureRequest, probing: Nursery, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts the probe, in both ways: what is tested holds for real processes."""
    forked = request.param == "forked"
    monkeypatch.setattr(processes, "fork", probing.fork if forked else None)

    def start(output: Path, *arguments: str, **environ: str) -> processes.Child:
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
        child = processes.spawn([*COMMAND, *arguments], output, variables)
        assert isinstance(child, Forked) == forked
        return child

    return start


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def state(pid: int) -> str:
    """As /proc says: R, S, Z...; "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def says_ready(output: Path) -> bool:
    return "ready" in output.read_text()


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("end", 0, "an end"),
        ("exit 7", 7, ""),
        ("exit text", 1, "text"),
        ("raise", 1, "RuntimeError: on purpose"),
        ("abort", -signal.SIGABRT, ""),
        ("interrupt", -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_exit_codes(start: Start, tmp_path: Path, what: str, code: int, says: str) -> None:
    output = tmp_path / "output"
    child = start(output, *what.split())
    assert child.wait(20) == code
    assert child.poll() == code
    assert says in output.read_text()
    assert ("Traceback" in output.read_text()) == (what in ("raise", "interrupt"))
    assert state(child.pid) == ""  # no zombie


def test_a_child_looks_like_a_process_of_its_own(start: Start, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.write_text("before\n")
    child = start(output, "show", "--option", ONE="1")
    assert child.wait(20) == 0
    before, line = output.read_text().splitlines()
    found = json.loads(line)
    assert before == "before"
    assert found["arguments"] == [str(ROOT / "tests/nursery_probe.py"), "show", "--option"]
    assert (found["name"], found["directory"], found["input"]) == ("__main__", "/", "")
    assert (found["session"], found["group"]) == (child.pid, child.pid)
    assert found["threads"] == ["MainThread"]
    assert found["descriptors"] == ["0", "1", "2"]
    ours = {
        name: "" for name in ("SIGHUP", "SIGQUIT") if signal.getsignal(signal.Signals[name]) is signal.SIG_IGN
    }
    assert found["signals"] == {"SIGINT": "default_int_handler", "SIGPIPE": "", "SIGXFSZ": "", **ours}
    assert found["blocked"] == 0
    expected = {**os.environ, "PYTHONPATH": str(ROOT), "ONE": "1"}
    assert found["environ"] == found["inherited"] == expected


def test_children_draw_different_numbers(start: Start, tmp_path: Path) -> None:
    drawn = []
    for number in range(2):
        output = tmp_path / str(number)
        start(output, "show").wait(20)
        drawn.append(json.loads(output.read_text())["random"])
    assert drawn[0] != drawn[1]


def test_failpoints_are_those_of_the_child(start: Start, tmp_path: Path) -> None:
    found = []
    for points in ("one=kill", "", "two=pause"):
        output = tmp_path / f"output-{points}"
        start(output, "show", XACOORD_FAILPOINTS=points).wait(20)
        found.append(json.loads(output.read_text())["failpoints"])
    assert found == [["one"], None, ["two"]]


def test_signals(start: Start, tmp_path: Path) -> None:
    """SIGTERM ends it, unless it has a handler; SIGKILL does always; SIGSTOP does not."""
    child = start(tmp_path / "plain", "sleep")
    until(lambda: says_ready(tmp_path / "plain"))
    child.terminate()
    assert child.wait(10) == -signal.SIGTERM
    handling = start(tmp_path / "handling", "handle")
    until(lambda: says_ready(tmp_path / "handling"))
    handling.send_signal(signal.SIGTERM)
    assert handling.wait(10) == 43
    child = start(tmp_path / "killed", "handle")
    until(lambda: says_ready(tmp_path / "killed"))
    child.send_signal(signal.SIGSTOP)
    until(lambda: state(child.pid) == "T")
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.05)
    child.kill()
    assert child.wait(10) == -signal.SIGKILL
    for _ in range(2):
        child.kill()  # nobody
        child.terminate()


def test_an_end_is_seen_at_once(start: Start, tmp_path: Path) -> None:
    child = start(tmp_path / "output", "sleep")
    assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: state(child.pid) in ("Z", ""))
    assert child.poll() == -signal.SIGKILL


def test_run(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """`start` chooses the way; both streams come back, from our directory."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = processes.run([*COMMAND, "both"], 20)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"out {os.getcwd()}\n", "err\n")
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run([*COMMAND, "sleep"], 0.05)


def test_end_below(start: Start, tmp_path: Path) -> None:
    """At once, before the child can have done anything."""
    (tmp_path / "a").mkdir()
    inside, outside = start(tmp_path / "a/output", "sleep"), start(tmp_path / "output", "sleep")
    processes.end_below(tmp_path / "a")
    assert (inside.poll(), outside.poll()) == (-signal.SIGKILL, None)
    outside.kill()
    outside.wait()


def _fork(nursery: Nursery, command: Sequence[str], output: Path, **environ: str) -> Forked | None:
    with output.open("ab") as file:
        return nursery.fork(command, {**os.environ, **environ}, "/", file.fileno(), file.fileno())


def test_the_helper_takes_its_children_with_it(tmp_path: Path) -> None:
    nursery = Nursery((PROBE,), ())
    child = _fork(nursery, [*COMMAND, "handle"], tmp_path / "output")
    assert child is not None
    until(lambda: says_ready(tmp_path / "output"))
    assert nursery.pid is not None
    os.kill(nursery.pid, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    with pytest.raises(nurseries.NurseryError):
        _fork(nursery, [*COMMAND, "end"], tmp_path / "output")
    nursery.close()


def test_our_death_is_the_death_of_all(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, time\n"
        "from tests.test_nursery import COMMAND, PROBE, Nursery, _fork\n"
        f"nursery = Nursery((PROBE,), ())\n"
        f"child = _fork(nursery, [*COMMAND, 'handle'], pathlib.Path({str(tmp_path / 'output')!r}))\n"
        "print(nursery.pid, child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        until(lambda: says_ready(tmp_path / "output"))
        parent.kill()
    assert len(pids) == 2
    until(lambda: all(state(pid) in ("Z", "") for pid in pids))


def test_what_is_not_forked(probing: Nursery, tmp_path: Path) -> None:
    """Other programs and modules, and what Python or a library would only read when it starts."""
    output = tmp_path / "output"
    for command in (
        ["sleep", "1"],
        [sys.executable, "-m", "json.tool"],
        ["strace", *COMMAND],
        [sys.executable],
    ):
        assert _fork(probing, command, output) is None
    assert _fork(probing, COMMAND, output, PYTHONHASHSEED="1") is None
    assert _fork(probing, COMMAND, output, LC_ALL="C") is None


def test_what_cannot_be_imported_is_told(tmp_path: Path) -> None:
    nursery = Nursery(("tests.no_such_module",), ())
    with pytest.raises(nurseries.NurseryError, match="no_such_module"):
        _fork(nursery, [sys.executable, "-m", "tests.no_such_module"], tmp_path / "output")
    nursery.close()
