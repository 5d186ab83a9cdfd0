"""The command line as a whole: exit codes, errors, what reaches a terminal, repeating, start-up."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import grpc
import pytest

from coordinator.ctl import main, output
from coordinator.ctl.documents import bytes_text, duration_text
from coordinator.ctl.errors import EXIT_CODES, CtlError, ExitCode
from coordinator.v1 import admin_pb2, coordinator_pb2
from dtp import Reason, XacoordError
from dtp.errors import STATUS
from tests.ctl.conftest import Coordctl, Fake
from tests.ctl.messages import GTRID, participant, transaction
from tests.wal.owner import Owner
from wal import Options, SystemFiles

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "coordinator.ctl.main"]
EXPECTED_BY_STATUS = {
    "INVALID_ARGUMENT": 65,
    "NOT_FOUND": 3,
    "FAILED_PRECONDITION": 1,
    "ALREADY_EXISTS": 1,
    "ABORTED": 1,
    "UNAVAILABLE": 69,
    "RESOURCE_EXHAUSTED": 75,
    "UNKNOWN": 70,
    "INTERNAL": 70,
}


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_its_exit_code(coordctl: Coordctl, reason: Reason) -> None:
    coordctl.fake.answers["List"] = XacoordError(reason, "the message")
    result = coordctl("list")
    expected = 74 if reason in (Reason.LOG_FULL, Reason.LOG_FAILED) else EXPECTED_BY_STATUS[STATUS[reason]]
    assert (result.code, result.out) == (expected, "")
    assert result.err == f"coordctl: {reason}: the message\n"


def test_a_status_without_details_is_reported_as_it_is(coordctl: Coordctl) -> None:
    coordctl.fake.answers["List"] = grpc.StatusCode.PERMISSION_DENIED
    result = coordctl("list")
    assert (result.code, result.err) == (1, "coordctl: PERMISSION_DENIED: without details\n")


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    "command", [["status"], ["list"], ["show", GTRID], ["recover"], ["watch", GTRID], ["log"]]
)
def test_no_coordinator(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    address = f"127.0.0.1:{closed_port()}"
    assert main.run(["--address", address, *command]) == 69
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        f"coordctl: COORDINATOR_UNAVAILABLE: no coordinator answers at {address} (Connection refused); "
    )
    assert err.count("\n") == 1
    named = re.search(r"read its log with `coordctl ([^`]+)`", err)
    assert named is not None
    assert "--offline --config FILE" in named[1] or named[1] == "wal verify DIR"


def test_a_coordinator_that_does_not_answer(coordctl: Coordctl) -> None:
    def slow(_request: object) -> coordinator_pb2.ListResponse:
        time.sleep(0.6)
        return coordinator_pb2.ListResponse()

    coordctl.fake.answers["List"] = slow
    result = coordctl("--timeout", "0.2", "list")
    assert result.code == 69
    assert result.err.startswith("coordctl: TIMEOUT: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["lsit"],
        ["list", "--no-such"],
        ["list", "--older-than", "5"],
        ["list", "--older-than", "5s junk"],
        ["list", "--limit", "0"],
        ["list", "--state", "MAYBE"],
        ["list", "--watch", "0"],
        ["list", "-o", "xml"],
        ["show"],
        ["--timeout", "0", "list"],
        ["--address", "nowhere", "list"],
        ["--address", "host:70000", "list"],
        ["--address", "bad host:1", "list"],
        ["status", "--check", "--watch", "1"],
        ["xid", GTRID, "--number", "1679616"],
    ],
)
def test_wrong_usage(coordctl: Coordctl, arguments: list[str]) -> None:
    code = main.run(arguments)
    out, err = coordctl.capsys.readouterr()
    assert (code, out) == (2, "")
    if arguments:
        assert err.startswith("coordctl: USAGE: ")
        assert err.count("\n") == 1
    assert coordctl.fake.requests == []


def test_the_address_comes_from_the_environment(coordctl: Coordctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XACOORD_ADDRESS", coordctl.address)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    assert main.run(["list"]) == 0
    assert len(coordctl.fake.of("List")) == 1


HOSTILE = "\x1b[2J\x9b2J\x07\x7f\u202e\u2028\nsecond line"
HARMLESS = "\\x1b[2J\\x9b2J\\x07\\x7f\\u202e\\u2028\\nsecond line"


def test_control_characters_never_reach_the_output(
    coordctl: Coordctl, error: Callable[..., XacoordError]
) -> None:
    pb = coordinator_pb2
    branch = pb.Branch(participant="stock", last_error=HOSTILE)
    event = pb.Event(what=HOSTILE, participant=HOSTILE)
    rejection = pb.Rejection(reason="STATEMENT_FAILED", message=HOSTILE)
    hostile = transaction(branches=[branch], timeline=[event], rejection=rejection)
    coordctl.fake.answers |= {
        "Get": pb.GetResponse(transaction=hostile, evidence=HOSTILE),
        "List": pb.ListResponse(transactions=[hostile]),
        "Watch": [pb.WatchResponse(transaction=transaction(branches=[pb.Branch(participant=HOSTILE)]))],
        "Participants": admin_pb2.ParticipantsResponse(participants=[participant(HOSTILE, 1, state=HOSTILE)]),
        "Recover": admin_pb2.RecoverResponse(
            items=[admin_pb2.PlanItem(participant="a", action="hold", explanation=HOSTILE)],
            scans=[admin_pb2.ParticipantScan(participant="b", error=HOSTILE)],
        ),
        "Forget": error("NOT_HEURISTIC", HOSTILE),
    }
    for command in (
        ["show", GTRID], ["list"], ["watch", GTRID], ["participants"], ["status"], ["recover"],
        ["forget", GTRID, "--yes"], ["list", HOSTILE],
    ):  # fmt: skip
        result = coordctl(*command)
        text = result.out + result.err
        assert HARMLESS in text, command
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", text), command
        assert result.err.count("\n") <= 1
        if command[0] in ("show", "list") and len(command) < 3 and HOSTILE not in command:
            plain = coordctl(*command, "-o", "json").out
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\U0010ffff]", plain)
            json.loads(plain)


def on_a_terminal(address: str, *arguments: str) -> str:
    """What coordctl writes when its standard output is a terminal of 100 columns."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [*COMMAND, "--address", address, *arguments],
        cwd=ROOT,
        stdout=follower,
        stderr=follower,
        env=environment,
    )
    os.close(follower)
    written = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # EIO: the last writer has closed the terminal
            break
        if not chunk:
            break
        written += chunk
    os.close(leader)
    assert process.wait(10) == 0, written
    return written.decode()


def test_on_a_terminal_there_is_colour_and_still_no_foreign_control_character(coordctl: Coordctl) -> None:
    pb = coordinator_pb2
    branch = pb.Branch(participant="stock", last_error="\x1b]0;owned\x07[bold]markup[/bold] :smile:")
    coordctl.fake.answers["List"] = pb.ListResponse(transactions=[transaction(branches=[branch])])
    text = on_a_terminal(coordctl.address, "list")
    assert GTRID in text
    assert "\x1b[33m" in text  # COMMITTING
    assert "\x1b]" not in text
    assert "\x07" not in text
    assert ":smile:" in re.sub(r"\s+", "", text)
    drawn = on_a_terminal(coordctl.address, "show", GTRID)
    assert "BLOCKED" in drawn


def test_watch_repeats_and_survives_a_coordinator_that_is_away(
    coordctl: Coordctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(
        [
            coordinator_pb2.ListResponse(),
            XacoordError(Reason.NOT_READY, "replaying"),
            coordinator_pb2.ListResponse(transactions=[transaction()]),
            XacoordError(Reason.INVALID_REQUEST, "the end of this test"),
        ]
    )
    coordctl.fake.answers["List"] = lambda request: next(answers)
    waited: list[float] = []
    monkeypatch.setattr(output, "pause", waited.append)
    result = coordctl("list", "--watch", "2", "-o", "json")
    documents = [json.loads(line) for line in result.out.splitlines()]
    assert [len(document["transactions"]) for document in documents] == [0, 1]
    assert result.err.splitlines() == [
        "coordctl: NOT_READY: replaying",
        "coordctl: INVALID_REQUEST: the end of this test",
    ]
    assert (result.code, waited) == (65, [2.0, 2.0, 2.0])


def test_interrupting_a_watch_is_quiet(coordctl: Coordctl) -> None:
    with subprocess.Popen(
        [*COMMAND, "--address", coordctl.address, "list", "--watch", "30"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "no transactions\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err.strip()) == (130, "")


def test_a_broken_pipe_is_quiet(coordctl: Coordctl, fake: Fake) -> None:
    rows = [transaction(f"k1a0b10003{number:010}") for number in range(200)]
    fake.answers["List"] = coordinator_pb2.ListResponse(transactions=rows)
    with subprocess.Popen(
        [*COMMAND, "--address", coordctl.address, "list", "--limit", "200", "-o", "json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Without its buffer Python takes a write that is cut short by EPIPE for a complete one.
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(10) == 141


def test_an_unexpected_error_is_one_line(coordctl: Coordctl, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("coordinator.ctl.status.fetch_log_status", fail)
    result = coordctl("status")
    assert (result.code, result.err) == (70, "coordctl: INTERNAL: ZeroDivisionError: by\\nzero\n")


def test_help_imports_nothing_heavy() -> None:
    heavy = ("grpc", "google", "rich", "wal", "msgspec", "coordinator.v1", "coordinator.ctl.wal", "dtp")
    code = (
        "import sys\n"
        "from coordinator.ctl.main import run\n"
        "assert run(['--help']) == 0\n"
        f"loaded = [name for name in {heavy!r} if name in sys.modules]\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    for code, text in EXIT_CODES.items():
        assert re.search(rf"^  {int(code):<4} +{re.escape(text.split()[0])}", done.stdout, re.MULTILINE)


def test_short_helps_are_the_commands_own() -> None:
    context = click.Context(main.cli)
    for name, (_, _, short) in main.COMMANDS.items():
        if name == "wal":
            continue
        command = main.cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert (command.help or "").splitlines()[0] == short


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from coordinator.version import VERSION

    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"coordctl {VERSION}\n"


def written_log(directory: Path, key: str) -> Path:
    """A closed log of coordinator a0b1: its EPOCH record and a COMMIT record of GTRID."""
    from coordinator.codec import Kind
    from coordinator.v1 import record_pb2
    from dtp import Gtrid

    id_ = Gtrid.parse(GTRID)
    owner = Owner(SystemFiles(), directory, Options(segment_bytes=16384, allow_unsafe_filesystem=True))
    owner.begin()
    epoch = record_pb2.EpochRecord(coordinator_id="a0b1").SerializeToString()
    commit = record_pb2.CommitRecord(participants=[1, 2], idempotency_key=key).SerializeToString()
    owner.log.append(Kind.EPOCH, id_.epoch, 0, epoch, kick=True)
    owner.log.append(Kind.COMMIT, id_.epoch, id_.sequence, commit, kick=True)
    owner.drain()
    owner.log.close()
    return directory


def test_wal_dump_names_transactions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = str(written_log(tmp_path / "log", "order:\x1b[2J"))
    assert main.run(["wal", "dump", log]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split()[1] == GTRID
    assert "record=COMMIT" in line
    assert "order:\\x1b[2J" in line
    lsn = line.split()[0]
    # The coordinator's id stands in a record that is not shown here.
    assert main.run(["wal", "dump", log, "-o", "json", "--from-lsn", lsn]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (row["gtrid"], row["record"]) == (GTRID, "COMMIT")


def test_no_log_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main.run(["wal", "verify", str(tmp_path / "none")]) == 65
    assert capsys.readouterr().err.count("\n") == 1


def test_shell_completion_knows_the_commands() -> None:
    environment = {
        **os.environ,
        "_COORDCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "coordctl re",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20)
    assert done.stdout.splitlines() == ["plain,recover", "plain,resolve"]


def test_the_reference_has_every_command_and_the_same_exit_codes() -> None:
    text = (ROOT / "docs" / "coordctl.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == {int(k): v for k, v in EXIT_CODES.items()}
    for name in main.COMMANDS:
        assert re.search(rf"^### coordctl {name}\b", text, re.MULTILINE), name


def test_figures_for_people() -> None:
    seconds = [0, 0.25, 3.21, 59.94, 245.5, 7620, 3 * 86400 + 4 * 3600]
    assert [duration_text(value) for value in seconds] == [
        "0ms", "250ms", "3.2s", "59.9s", "4m05s", "2h07m", "3d04h",
    ]  # fmt: skip
    assert duration_text(None) == "-"
    assert [bytes_text(value) for value in (512, 1536, 1 << 26, 1 << 50)] == [
        "512 B", "1.5 KiB", "64.0 MiB", "1024.0 TiB",
    ]  # fmt: skip


def test_errors_carry_their_exit_code() -> None:
    assert CtlError("X", "y", ExitCode.TRY_AGAIN).code == 75
    assert set(EXIT_CODES) == set(ExitCode)
