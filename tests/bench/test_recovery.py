"""`coordctl bench recovery` in its shortest form: a whole report, every row there, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.bench.recovery.plan import RecoveryPlan
from deploy.bench.recovery.run import newest_first
from deploy.engines import Engine
from deploy.private_servers import PrivateServer
from dtp import Gtrid
from tests.bench.test_short_run import below, databases, given

_PATIENCE_SECONDS = 120


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "coordinator.ctl.main", "bench", "recovery", *arguments]
    environ = {**os.environ, "TMPDIR": str(directory)}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        start_new_session=True,
    )


def run(directory: Path, *arguments: str) -> tuple[int, str, str]:
    """(exit code, output, errors)."""
    with start(directory, *arguments) as child:
        try:
            output, errors = child.communicate(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            output, errors = child.communicate()
            raise AssertionError(f"it does not end\n{errors}") from None
    return child.returncode, output, errors


@pytest.mark.slow
@pytest.mark.engines("mysql")
def test_private_servers(engine: Engine, tmp_path: Path) -> None:
    code, output, errors = run(
        tmp_path, "--engine", engine, "--branches", "20,200", "--rounds", "2", "-o", "json"
    )
    assert code == 0, errors
    document = json.loads(output)
    assert document["engine"] == engine
    assert [server["private"] for server in document["servers"]] == [True, True]
    assert [case["branches"] for case in document["cases"]] == [20, 200]
    for case in document["cases"]:
        for name in ("raw_seconds", "seconds", "first_commit_seconds", "ratio"):
            assert 0 < case[name]["min"] <= case[name]["median"] <= case[name]["max"]
        assert case["first_commit_seconds"]["max"] <= case["seconds"]["max"]
    assert "20 branches in doubt" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engines("mysql")
def test_given_servers_are_as_before(
    two_servers: tuple[PrivateServer, PrivateServer], tmp_path: Path
) -> None:
    before = [databases(server) for server in two_servers]
    code, output, errors = run(tmp_path, *given(*two_servers), "--branches", "40", "--rounds", "1")
    assert code == 0, errors
    assert "every row is there" in output
    assert max(map(len, output.splitlines())) <= 110
    assert [databases(server) for server in two_servers] == before
    assert [server.prepared() for server in two_servers] == [[], []]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engines("mysql")
def test_an_interruption_leaves_no_branch_no_process_and_no_file(
    two_servers: tuple[PrivateServer, PrivateServer], tmp_path: Path
) -> None:
    before = [databases(server) for server in two_servers]
    with start(tmp_path, *given(*two_servers), "--branches", "2000", "--rounds", "500") as child:
        try:
            assert child.stderr is not None
            for line in child.stderr:
                if "branches in doubt" in line:
                    break
            os.killpg(child.pid, signal.SIGINT)
            output, errors = child.communicate(timeout=_PATIENCE_SECONDS)
        finally:
            child.kill()
    assert (child.returncode, output) == (130, ""), errors
    assert "Traceback" not in errors
    assert [databases(server) for server in two_servers] == before
    assert [server.prepared() for server in two_servers] == [[], []]
    assert (list(tmp_path.iterdir()), below(tmp_path)) == ([], [])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--branches", "3"],
        ["--branches", "0"],
        ["--branches", "many"],
        ["--rounds", "0"],
        ["--server", "x=/nowhere.sock"],
        ["--engine", "mysql", "--server", "x=/a.sock", "--server", "y=/b.sock"],
    ],
)
def test_bad_options(arguments: list[str], tmp_path: Path) -> None:
    code, output, errors = run(tmp_path, *arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("coordctl: USAGE: ")


def test_by_hand_the_newest_go_first() -> None:
    """MySQL searches from the newest on: any other order would make raw slower than it has to be."""
    counters = (1, 40, 300, 99_999)
    gtrids = [str(Gtrid.make("z001", 1, counter, 65_535 - counter % 60_000)).encode() for counter in counters]
    listed = [(gtrids[place], b"0001") for place in (2, 0, 3, 1)]
    assert [gtrid for gtrid, _ in newest_first(listed)] == gtrids[::-1]


def test_the_sides_take_turns() -> None:
    assert list(RecoveryPlan((2,), 3).order()) == [(False, True), (True, False), (False, True)]
