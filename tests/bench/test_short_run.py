"""The real command in its shortest form: the report is whole, the books agree, and nothing is left behind.

Nothing here asserts a time or a ratio: a machine that runs tests is no place for figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.engines import Engine
from deploy.private_servers import PrivateServer

ROOT = Path(__file__).resolve().parents[2]
DATABASE = "xacoord_bench"
_PATIENCE_SECONDS = 120
SHORT = ("--rounds", "1", "--seconds", "0.3")


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """`coordctl bench`, with everything it makes below `directory`."""
    command = [sys.executable, "-m", "coordinator.ctl.main", "bench", *arguments]
    environ = {**os.environ, "TMPDIR": str(directory), "PYTHONPATH": str(ROOT)}
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


def check(document: dict[str, Any], sides: list[str], cases: list[tuple[int, int, bool]]) -> None:
    """The report is whole: every side of every case has all its figures."""
    assert document["problems"] == []
    found = [(case["branches"], case["clients"], case["read_only"]) for case in document["cases"]]
    assert found == cases
    for case in document["cases"]:
        assert [side["side"] for side in case["sides"]] == sides
        for side in case["sides"]:
            context = (case["branches"], case["clients"], side["side"], side["reasons"])
            assert side["measured"] > 0, context
            assert side["committed"] >= side["measured"], context
            assert side["unknown"] == 0, context
            assert side["tps"] > 0, context
            assert 0 < side["p50_ms"] <= side["p99_ms"], context
            for name in ("ratio", "p50_ratio", "p99_ratio"):
                assert 0 < side[name]["min"] <= side[name]["median"] <= side[name]["max"], context
            variants = side["ratios_to_variants"]
            usual = side["kind"] if side["agents"] == "in-process" else None
            assert [ratio["to"] for ratio in variants] == ([usual] if usual in sides else []), context
            assert all(0 < ratio["min"] <= ratio["median"] <= ratio["max"] for ratio in variants), context
            assert side["cpu_us"]["clients"] is not None, context
            ours = side["kind"] in ("one-shot", "interactive")
            assert (side["cpu_us"]["coordinators"] is not None) is ours, context
            assert (side["cpu_us"]["agents"] is not None) is (side["agents"] == "processes"), context


@pytest.mark.slow
@pytest.mark.engines("mysql")
def test_private_servers(engine: Engine, tmp_path: Path) -> None:
    plot = tmp_path / "bench.svg"
    work = tmp_path / "work"
    work.mkdir()
    options = ["--engine", engine, "--clients", "2", *SHORT, "-o", "json", "--plot", str(plot)]
    code, output, errors = run(work, *options)
    assert code == 0, errors
    document = json.loads(output)
    sides = ["raw", "raw-fast", "one-shot", "one-shot, in-process", "interactive", "interactive, in-process"]
    check(document, sides, [(2, 2, False)])
    assert document["engine"] == engine
    assert document["machine"]["cores"] == os.cpu_count()
    assert [server["private"] for server in document["servers"]] == [True, True]
    for server in document["servers"]:
        assert server["settings"]["sync_binlog"] == "1"
        assert server["settings"]["innodb_flush_log_at_trx_commit"] == "1"
    for case in document["cases"]:
        assert all(side["cpu_us"]["servers"] is not None for side in case["sides"])
    assert b"raw-fast" in plot.read_bytes()
    assert "this takes about" in errors
    assert "2 branches writing, 2 clients (1 of 1)" in errors
    assert list(work.iterdir()) == []


@pytest.mark.engines("mariadb")
def test_variants_reading_and_other_branches(engine: Engine, tmp_path: Path) -> None:
    """Without witness rows, and with two coordinators on the same agents; a table, because people read it."""
    options = ["--engine", engine, "--clients", "2", "--branches", "1,3", *SHORT]
    variants = [
        "--agents",
        "processes",
        "--witness",
        "off",
        "--coordinators",
        "1,2",
        "--set",
        "sync_binlog=7",
    ]
    code, output, errors = run(tmp_path, *options, *variants, "--read-only", "--sides", "raw,one-shot")
    assert code == 0, errors
    assert "sync_binlog 7, " in output, "the server's own answer"
    assert "with sync_binlog = 7" in output
    assert "1 branch reading, 2 clients" in output
    assert "3 branches reading, 2 clients" in output
    assert output.count("\none-shot, no witness, 2 coordinators  ") == 2
    assert output.count("\none-shot, no witness, 2 coordinators / one-shot, no witness: ") == 2
    assert "PROBLEM" not in output
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def database(server: PrivateServer, *statements: str) -> Iterator[None]:
    """A database in the benchmark's way, dropped afterwards."""
    server.sql(f"CREATE DATABASE {DATABASE}")
    try:
        for statement in statements:
            server.sql(statement)
        yield
    finally:
        server.sql(f"DROP DATABASE IF EXISTS {DATABASE}")


def given(*servers: PrivateServer) -> list[str]:
    """The options that name them."""
    return [
        part
        for name, server in zip("xyz", servers, strict=False)
        for part in ("--server", f"{name}={server.socket}")
    ]


def databases(server: PrivateServer) -> set[str]:
    return {str(row[0]) for row in server.sql("SHOW DATABASES")}


@pytest.mark.engines("mariadb")
def test_given_servers_are_as_before(
    engine: Engine, two_servers: tuple[PrivateServer, PrivateServer], tmp_path: Path
) -> None:
    """Also after a run that was killed: its branch is rolled back, its database dropped and made again."""
    first, second = two_servers
    before = [databases(server) for server in two_servers]
    left = (
        f"CREATE TABLE {DATABASE}.coordctl_bench (coordinator_id CHAR(4) PRIMARY KEY)",
        f"INSERT INTO {DATABASE}.coordctl_bench VALUES ('z9zz')",
        f"CREATE TABLE {DATABASE}.account (id INT PRIMARY KEY, balance BIGINT NOT NULL)",
    )
    with database(first, *left):
        for row, gtrid in enumerate(("xacbenchaaaa000000000001", "k1z9zz00010000000001")):
            with contextlib.closing(first.root_connect()) as connection:
                insert = f"INSERT INTO {DATABASE}.account VALUES ({row}, 1)"
                for verb in (f"XA START '{gtrid}','0001'", insert, f"XA END '{gtrid}','0001'"):
                    connection.query(verb)
                connection.query(f"XA PREPARE '{gtrid}','0001'")
        assert len(first.prepared()) == 2
        options = [*given(first, second), "--clients", "2", *SHORT, "-o", "json"]
        code, output, errors = run(tmp_path, *options)
        assert code == 0, errors
        document = json.loads(output)
        assert [server["private"] for server in document["servers"]] == [False, False]
        assert document["engine"] == engine
        assert document["problems"] == []
        assert all(side["cpu_us"]["servers"] is None for side in document["cases"][0]["sides"])
    assert [databases(server) for server in two_servers] == before
    assert [server.prepared() for server in two_servers] == [[], []]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engines("mariadb")
def test_a_database_of_somebody_else_is_not_touched(
    two_servers: tuple[PrivateServer, PrivateServer], tmp_path: Path
) -> None:
    """Nor is the other server's left behind."""
    first, second = two_servers
    with database(second, f"CREATE TABLE {DATABASE}.account (id INT PRIMARY KEY)"):
        code, output, errors = run(tmp_path, *given(first, second), "--quick")
        assert (code, output) == (69, "")
        assert f"server y has a database {DATABASE} that `coordctl bench` has not made" in errors
        assert second.sql(f"SHOW TABLES FROM {DATABASE}") == [("account",)]
        assert DATABASE not in databases(first)


@pytest.mark.engines("mariadb")
def test_one_server_is_not_taken_for_two(
    two_servers: tuple[PrivateServer, PrivateServer], tmp_path: Path
) -> None:
    first, _ = two_servers
    code, _, errors = run(tmp_path, *given(first, first), "--quick")
    assert code == 69
    assert "server y is in a benchmark already" in errors
    assert DATABASE not in databases(first)


@pytest.mark.engines("mariadb")
def test_a_server_without_room_for_the_clients(
    two_servers: tuple[PrivateServer, PrivateServer], tmp_path: Path
) -> None:
    first, _ = two_servers
    code, _, errors = run(tmp_path, *given(first), "--branches", "1", "--clients", "800")
    assert code == 69
    assert "server x takes 500 connections" in errors
    assert "raise max_connections, or measure fewer --clients" in errors
    assert DATABASE not in databases(first)


def interrupt(directory: Path, *arguments: str) -> None:
    """Ctrl-C in the middle of a run: no process, no file, no traceback."""
    with start(directory, "--clients", "2", "--rounds", "500", *arguments) as child:
        try:
            assert child.stderr is not None
            for line in child.stderr:
                if "2 clients" in line:
                    break
            time.sleep(2.0)
            running = below(directory)
            child.send_signal(signal.SIGINT)
            output, errors = child.communicate(timeout=_PATIENCE_SECONDS)
        finally:
            child.kill()
    assert any("coordinator.daemon" in line for line in running)
    assert child.returncode == 130, errors
    assert output == ""
    assert "Traceback" not in errors
    assert list(directory.iterdir()) == []
    assert below(directory) == []


@pytest.mark.engines("mariadb")
def test_ctrl_c_leaves_no_process_and_no_file(engine: Engine, tmp_path: Path) -> None:
    interrupt(tmp_path, "--engine", engine)


@pytest.mark.engines("mariadb")
def test_ctrl_c_leaves_given_servers_as_before(
    two_servers: tuple[PrivateServer, PrivateServer], tmp_path: Path
) -> None:
    """The branches that were under way are rolled back."""
    before = [databases(server) for server in two_servers]
    interrupt(tmp_path, *given(*two_servers))
    assert [databases(server) for server in two_servers] == before
    assert [server.prepared() for server in two_servers] == [[], []]


def below(directory: Path) -> list[str]:
    """Command lines of processes that name the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if str(directory) in line:
                found.append(line)
    return found


@pytest.mark.engines("mariadb")
def test_an_account_without_rights_says_which(
    two_servers: tuple[PrivateServer, PrivateServer], tmp_path: Path
) -> None:
    first, _ = two_servers
    password = tmp_path / "password"
    password.write_text("secret\n")
    first.sql("CREATE USER bench_weak@'%' IDENTIFIED BY 'secret'")
    try:
        options = ["--user", "bench_weak", "--password-file", str(password), "--branches", "1", "--quick"]
        code, _, errors = run(tmp_path, *given(first), *options)
    finally:
        first.sql("DROP USER bench_weak@'%'")
    assert code == 69
    assert f"database {DATABASE}: 1044 Access denied" in errors
