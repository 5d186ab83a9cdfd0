"""The tools that are started by hand refuse what makes no sense; an interruption leaves nothing behind."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.interruption import Interrupted, interruptible, scratch
from deploy.processes import Child, spawn
from tests.command import positive, positive_seconds, span, writable
from tests.crash_matrix.__main__ import main as crash_matrix
from tests.crash_matrix.places import choose, choose_only, crossed, required
from tests.fidelity.__main__ import main as fidelity
from tests.simulation.__main__ import main as simulation

ROOT = Path(__file__).resolve().parent.parent
_WAIT_SECONDS = 60.0


def test_numbers_and_spans() -> None:
    assert (positive("3"), positive_seconds("0.5"), span("2..4")) == (3, 0.5, range(2, 5))
    for text in ("0", "-3", "x", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError):
            positive(text)
    for text in ("0", "-1", "nan", "inf", "x"):
        with pytest.raises(argparse.ArgumentTypeError):
            positive_seconds(text)
    for text in ("abc", "5", "5..1", "..", "1..x", "-1..2"):
        with pytest.raises(ValueError, match=re.escape(repr(text))):
            span(text)


def test_a_place_for_reports_is_made_or_refused(tmp_path: Path) -> None:
    assert writable(str(tmp_path / "a/b")).is_dir()
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(argparse.ArgumentTypeError, match="cannot write into"):
            writable(str(place))


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--seeds abc",
        "--seeds 5..1",
        "--seeds 0..1 --jobs 0",
        "--seeds 0..1 --trace",
        "--seed 1 --seeds 0..1",
        "--seed -1",
        "--seed 1 --jobs 2",
    ],
)
def test_the_simulation_refuses(arguments: str) -> None:
    result = CliRunner().invoke(simulation, arguments.split())
    assert result.exit_code == 2, result.output
    assert "Error" in result.output


@pytest.mark.parametrize("arguments", ["--runs -3", "--runs 0", "--only nosuchcell"])
def test_the_crash_matrix_refuses(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as found:
        crash_matrix(arguments.split())
    assert found.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_the_fidelity_comparison_refuses(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as found:
        fidelity(["--engine", "mysql", "--sequences", number])
    assert found.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [("--help", 0, "--minutes"), ("--engine", 2, "needs a value"), ("--engine=x", 2, "must be mysql")],
)
def test_the_soak_says_at_once_what_is_wrong(arguments: str, status: int, says: str) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "tests/soak.sh"), *arguments.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert says in done.stdout + done.stderr
    assert "ready:" not in done.stdout  # nothing was installed


def test_few_runs_are_a_sample_of_all_cells() -> None:
    everything = {*required(7), *crossed(7)}
    few = choose(6, 7)
    assert len(set(few)) == 6
    assert set(few) <= everything
    assert few == choose(6, 7) != choose(6, 8)
    holders = {cell.holder for seed in range(20) for cell in choose(6, seed)}
    assert holders == {"coordinator", "agent", "client"}
    number = len(list(required(7)))
    assert choose(number, 7) == list(required(7))
    only = choose_only(3, 7, "mysqld-at-agent")
    assert len(only) == 3
    assert all("mysqld-at-agent" in str(cell) for cell in only)


def _interrupted(started: list[tuple[Path, Child]]) -> None:
    with interruptible(), scratch("xacoord-scratch-") as directory:
        started.append((directory, spawn(["sleep", "60"], directory / "output.log")))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_WAIT_SECONDS)


def test_scratch_ends_children_that_nobody_holds(tmp_path: Path) -> None:
    """Those of others stay."""
    other = spawn(["sleep", "60"], tmp_path / "other.log")
    started: list[tuple[Path, Child]] = []
    with pytest.raises(Interrupted) as found:
        _interrupted(started)
    [(directory, child)] = started
    assert found.value.status == 143
    assert not directory.exists()
    assert child.poll() == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def test_an_interrupted_simulation_says_what_it_has_done() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seeds", "0..99999", "--jobs", "2"]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    deadline = time.monotonic() + _WAIT_SECONDS
    while len(workers.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)
    began = time.monotonic()
    output, errors = child.communicate(timeout=_WAIT_SECONDS)
    assert time.monotonic() - began < 10.0
    assert child.returncode == 130, errors
    assert re.search(r"^interrupted: \d+ of 100,000 seeds .*, 0 with violations$", output, re.M), output
    assert "Traceback" not in errors
