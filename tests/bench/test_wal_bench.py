"""`coordctl wal bench`: the report is whole and adds up, and nothing stays behind. No figure is judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from coordinator.ctl.wal_bench import APPENDERS

COMMAND = [sys.executable, "-m", "coordinator.ctl.main", "wal", "bench"]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments), "--allow-unsafe-filesystem"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    child = start(*arguments)
    stdout, stderr = child.communicate(timeout=120)
    return child.returncode, stdout, stderr


def test_the_report_is_whole(tmp_path: Path) -> None:
    status, stdout, stderr = run(tmp_path, "--quick", "--transactions", "20000", "-o", "json")
    assert status == 0, stderr
    document: dict[str, Any] = json.loads(stdout)
    assert document["quick"] is True
    assert document["directory"] == str(tmp_path)
    assert document["floor"]["flushes_per_second"] > 0
    assert [found["appenders"] for found in document["appenders"]] == list(APPENDERS)
    for found in (document["floor"], *document["appenders"]):
        assert 0 < found["p50_ms"] <= found["p99_ms"]
    for found in document["appenders"]:
        assert found["appends_per_second"] > 0
        ratio = found["p50_to_floor"]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    for found in document["restart"].values():
        assert found["read_records_per_second"] * found["read_seconds"] == pytest.approx(found["records"])
        assert found["open_records_per_second"] * found["open_seconds"] == pytest.approx(found["records"])
        assert found["start_seconds"] > 0
    many, single = document["restart"]["many"], document["restart"]["single"]
    assert many["transactions"] >= 20_000
    assert many["checkpoints"] > 0, "more went through it than it holds"
    assert many["records"] < 3 * many["transactions"]
    assert single["records"] > 3 * (single["transactions"] - 1), "the epoch and the participants, too"
    assert many["records"] / many["frames"] > 10
    assert single["records"] / single["frames"] < 2
    assert "round 1 of 1" in stderr
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_a_line_for_each(tmp_path: Path) -> None:
    status, stdout, stderr = run(tmp_path, "--quick", "--transactions", "100")
    assert status == 0, stderr
    for name in ("floor", "1 appender ", "64 appenders", "1,024 appenders", "64 at a time", "1 at a time"):
        assert name in stdout
    assert max(map(len, stdout.splitlines())) <= 110


@pytest.mark.parametrize("name", ["lock", "watermark", "wal-0000000000000001.log"])
def test_a_log_is_not_disturbed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    status, stdout, stderr = run(tmp_path, "--quick")
    assert (status, stdout) == (1, "")
    assert "LOG_IN_THE_WAY" in stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_there_must_be_a_directory(tmp_path: Path) -> None:
    assert run(tmp_path / "nothing", "--quick")[0] == 2
    (tmp_path / "file").touch()
    assert run(tmp_path / "file", "--quick")[0] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["round 2", "filling"])
def test_an_interruption_leaves_nothing(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    child = start(tmp_path, *(["--quick", "--transactions", "300000"] if moment == "filling" else []))
    assert child.stderr is not None
    for line in child.stderr:
        if moment in line:
            break
    time.sleep(0.05)
    os.kill(child.pid, number)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []
