"""The command line of `coordctl bench`: bad input, a wheel without benchmarks, other benchmarks."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click
import pytest

from coordinator.ctl import bench, main
from deploy.bench.plan import Plan


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, standard error); nothing may be on standard output."""
    code = main.run(["bench", *arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--clients", "0"], "whole numbers from 1 to"),
        (["--clients", ""], "whole numbers from 1 to"),
        (["--clients", "1,x"], "whole numbers from 1 to"),
        (["--clients", "801"], "whole numbers from 1 to 800"),
        (["--branches", "17"], "whole numbers from 1 to 16"),
        (["--coordinators", "-1"], "whole numbers from 1 to 16"),
        (["--sides", "raw,fast"], "'fast' is no side; there are raw, raw-fast, one-shot, interactive"),
        (["--engine", "oracle"], "oracle"),
        (["--agents", "none"], "none"),
        (["--rounds", "0"], "0"),
        (["--seconds", "0"], "0.0"),
        (["--seconds", "nan"], "nan"),
        (["--database", "a`b"], "A-Za-z0-9_"),
        (["--server", "a"], "NAME=host:port"),
        (["--server", "a=host"], "NAME=host:port"),
        (["--server", "A=/x.sock"], "NAME=host:port"),
        (["--server", "a=/x.sock", "--server", "a=/y.sock"], "a is given twice"),
        (["--server", "a=/x.sock", "--engine", "mysql"], "--engine is for private servers"),
        (["--set", "sync_binlog"], "give NAME=VALUE"),
        (["--set", "--sync-binlog=0"], "without its dashes"),
        (["--server", "a=/x.sock", "--set", "sync_binlog=0"], "--set is for private servers"),
        (["nothing"], "nothing"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    code, told = run(capsys, *arguments)
    assert code == 2
    assert says in told
    assert told.startswith("coordctl: USAGE: ")


def test_too_few_servers(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(capsys, "--server", "a=/nowhere/x.sock", "--branches", "2")
    assert code == 69
    assert "2 branches need as many servers, and 1 are given" in told


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(capsys, "--server", "a=/nowhere/x.sock", "--branches", "1")
    assert code == 69
    assert "coordctl: BENCHMARK_FAILED: server a cannot be reached" in told


def test_servers_and_logs_in_memory_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wal.files._filesystem", lambda device: "tmpfs")
    code, told = run(capsys, "--quick", "--sides", "raw")
    assert code == 69
    assert "is on tmpfs, in memory" in told
    assert "set TMPDIR to a directory on a disk" in told


@pytest.mark.parametrize(
    ("arguments", "rounds", "seconds"),
    [((), 2, 0.5), (("--rounds", "5"), 5, 0.5), (("--seconds", "3"), 2, 3.0)],
)
def test_quick_leaves_what_is_given(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], rounds: int, seconds: float
) -> None:
    plans: list[Plan] = []

    def measure(plan: Plan, *_: object) -> None:
        plans.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.bench.command.measure", measure)
    main.run(["bench", "--quick", *arguments])
    assert [(plan.rounds, plan.seconds) for plan in plans] == [(rounds, seconds)]


def test_a_plot_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(capsys, "--plot", "x.pdf", "--quick")
    assert code == 2
    assert "a plot ends with .svg or .png" in told
    assert "this takes" not in told


def test_a_password_file_that_is_not_there_or_no_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "password"
    code, told = run(capsys, "--server", "a=/x.sock", "--password-file", str(path))
    assert code == 74
    assert str(path) in told
    path.write_bytes(b"\xff\xfe")
    code, told = run(capsys, "--server", "a=/x.sock", "--password-file", str(path))
    assert code == 2
    assert "is no text" in told


def test_in_a_wheel_it_says_what_is_needed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without_source(name: str, *arguments: Any) -> Any:
        if name.startswith("deploy"):
            raise ModuleNotFoundError("No module named 'deploy'", name="deploy")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", without_source)
    code, told = run(capsys)
    assert code == 78
    assert "coordctl: SOURCE_NEEDED: " in told
    assert "deploy/setup.sh" in told


def test_another_module_that_is_missing_is_not_taken_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_driver(_name: str) -> Any:
        raise ModuleNotFoundError("No module named 'MySQLdb'", name="MySQLdb")

    monkeypatch.setattr(importlib, "import_module", without_driver)
    with pytest.raises(ModuleNotFoundError, match="MySQLdb"):
        bench.source("deploy.bench.command")


def test_other_benchmarks_have_their_own_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    other = click.Command("other", callback=lambda: ran.append("other"))
    monkeypatch.setitem(bench.COMMANDS, "other", ("x", "other", "Another one."))
    monkeypatch.setattr(bench.Benchmarks, "get_command", lambda *_: other)
    assert run(capsys, "other") == (0, "")
    assert ran == ["other"]
    code, told = run(capsys, "--rounds", "3", "other")
    assert code == 2
    assert "`coordctl bench other --rounds ...`" in told
    assert ran == ["other"]


def test_other_benchmarks_exist_and_have_the_short_help_of_the_list() -> None:
    context = click.Context(bench.bench)
    for name, (_, _, short) in bench.COMMANDS.items():
        command = bench.bench.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(limit=100) == short
