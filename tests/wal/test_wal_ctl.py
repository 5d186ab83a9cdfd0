"""`coordctl wal`: what it prints, and its exit status."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from coordinator.ctl.errors import from_exception
from coordinator.ctl.wal import make_group
from tests.wal.owner import Owner
from wal import Entry, Options, SystemFiles


@pytest.fixture
def log(tmp_path: Path) -> Path:
    directory = tmp_path / "log"
    owner = Owner(SystemFiles(), directory, Options(segment_bytes=16384, allow_unsafe_filesystem=True))
    owner.begin()
    for sequence in range(4):
        owner.append(sequence, b"p%d" % sequence)
        owner.drain()
    owner.log.close()
    return directory


def describe_raw(entry: Entry) -> dict[str, Any]:
    return {"kind": entry.kind, "payload": entry.payload.hex()}


@dataclass
class Ended:
    """What a command printed and how it ended, with coordctl's own mapping of errors."""

    exit_code: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Ended:
    group = make_group(describe_raw)
    result = CliRunner().invoke(group, [str(argument) for argument in arguments])
    if result.exception is None:
        return Ended(0, result.stdout, result.stderr)
    assert isinstance(result.exception, Exception), result.exception
    error = from_exception(result.exception)
    assert error is not None, result.exception
    return Ended(error.code, result.stdout, f"coordctl: {error.reason}: {error.message}\n")


def damage(directory: Path) -> None:
    path = next(directory.glob("wal-*.log"))
    data = bytearray(path.read_bytes())
    data[512 * 4 + 60] ^= 1  # the third record
    path.write_bytes(data)


def test_dump(log: Path) -> None:
    result = run("dump", log, "-o", "json", "--from-lsn", 2, "--limit", 2)
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["lsn"] for row in rows] == [2, 3]
    assert rows[0] == {"lsn": 2, "epoch": 1, "sequence": 1, "flags": 0, "kind": 1, "payload": b"p1".hex()}
    assert "kind=1" in run("dump", log).stdout


def test_dump_names_records(log: Path) -> None:
    group = make_group(lambda entry: {"record": "EPOCH", "text": entry.payload.decode()})
    assert "record=EPOCH  text=p3" in CliRunner().invoke(group, ["dump", str(log)]).stdout


def test_verify(log: Path) -> None:
    assert "verdict closed" in run("verify", log).stdout
    fields = json.loads(run("verify", log, "-o", "json").stdout)
    assert (fields["verdict"], fields["next_lsn"], fields["entries"], fields["problem"]) == (
        "closed",
        5,
        4,
        None,
    )


def test_corruption_and_repair(log: Path) -> None:
    damage(log)
    result = run("verify", log)
    assert result.exit_code == 78
    assert result.stderr.count("\n") == 1
    assert "offset 2048, lsn 3" in result.stderr
    assert run("dump", log).exit_code == 78
    assert "epoch" not in run("repair", log, "--truncate-at", 3).stdout
    assert run("repair", log, "--truncate-at", 3).exit_code == 1
    assert run("repair", log, "--truncate-at", 4, "--accept-loss").exit_code == 1
    result = run("repair", log, "--truncate-at", 3, "--accept-loss")
    assert result.exit_code == 0, result.stderr
    assert "was repaired" in result.stdout
    assert len(run("dump", log).stdout.splitlines()) == 2


def test_wrong_directory(tmp_path: Path) -> None:
    for command in (("dump",), ("verify",)):
        result = run(*command, tmp_path)
        assert result.exit_code == 65
        assert "no log in this directory" in result.stderr
    assert run("verify", tmp_path / "absent").exit_code == 65


def test_locked(log: Path) -> None:
    owner = Owner(SystemFiles(), log, Options(segment_bytes=16384, allow_unsafe_filesystem=True))
    owner.acknowledged = 0
    owner.states = {4: {sequence: b"p%d" % sequence for sequence in range(4)}}
    owner.open()
    result = run("repair", log, "--truncate-at", 3, "--accept-loss")
    assert result.exit_code == 75
    assert run("verify", log).exit_code == 0
    owner.log.close()
