"""tests/bench/profile.py counts what it says; it asserts no time."""

from __future__ import annotations

import os
import pstats
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.profile import switches, tell


def test_a_sleep_is_a_switch() -> None:
    before = switches(os.getpid())
    for _ in range(5):
        time.sleep(0.001)
    assert switches(os.getpid()) >= before + 5


def test_a_module_runs_under_the_profiler_and_keeps_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "profile"
    asked = [sys.executable, "-m", "tests.bench.under_profile", str(file)]
    asked += [sys.executable, "-m", "coordinator.daemon", "--config", str(tmp_path / "nothing.toml")]
    assert subprocess.run(asked, capture_output=True, check=False).returncode == 78
    tell(pstats.Stats(str(file)).stats)  # type: ignore[attr-defined]
    assert "coordinator: edge" in capsys.readouterr().out
