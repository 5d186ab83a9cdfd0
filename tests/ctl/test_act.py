"""Commands that act: recover, resolve, forget; and those that work on a stopped coordinator's log."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import coordinator
from coordinator.v1 import admin_pb2, coordinator_pb2
from dtp import XacoordError
from tests.ctl.conftest import Coordctl
from tests.ctl.messages import GTRID, OTHER, transaction

PLAN = admin_pb2.RecoverResponse(
    items=[
        admin_pb2.PlanItem(
            participant="stock",
            format_id=1,
            gtrid=GTRID.encode(),
            bqual=b"0002",
            action="commit",
            reason="COMMIT_RECORD",
            explanation="the log has its COMMIT record",
            result="done",
        ),
        admin_pb2.PlanItem(
            participant="stock",
            format_id=7,
            gtrid=b"\x00\xff\x1b[2J",
            bqual=b"",
            action="leave",
            reason="FOREIGN",
            explanation="not ours",
        ),
    ],
    scans=[admin_pb2.ParticipantScan(participant="stock", scanned=True)],
)


def test_recover_dry_run_asks_for_the_plan_only(coordctl: Coordctl) -> None:
    coordctl.fake.answers["Recover"] = PLAN
    result = coordctl("recover", "--dry-run", "-p", "stock", "--participant", "orders")
    assert (result.code, result.err) == (0, "")
    assert coordctl.fake.of("Recover") == [admin_pb2.RecoverRequest(participants=["stock", "orders"])]
    lines = result.out.splitlines()
    assert lines[1].split()[:6] == ["stock", GTRID, "2", "commit", "COMMIT_RECORD", "done"]
    assert lines[2].split()[:4] == ["stock", "X'00ff1b5b324a',X'',7", "leave", "FOREIGN"]
    assert lines[-1] == (
        "plan, nothing was changed: 1 commit, 0 rollback, 1 leave, 0 hold; 1 of 1 participants scanned"
    )


def test_recover_applies_without_asking(coordctl: Coordctl) -> None:
    coordctl.fake.answers["Recover"] = PLAN
    result = coordctl("recover")
    assert coordctl.fake.of("Recover")[0].apply
    assert result.out.splitlines()[-1].startswith("carried out: 1 commit")


def test_recover_tells_scripts_what_is_on_hold(coordctl: Coordctl) -> None:
    held = admin_pb2.PlanItem(participant="stock", action="hold", reason="PARTICIPANT_ON_HOLD")
    coordctl.fake.answers["Recover"] = admin_pb2.RecoverResponse(items=[*PLAN.items, held], scans=PLAN.scans)
    result = coordctl("recover")
    assert (result.code, "1 hold" in result.out) == (4, True)
    assert coordctl("recover", "--dry-run").code == 0


def test_recover_as_json(coordctl: Coordctl) -> None:
    coordctl.fake.answers["Recover"] = PLAN
    document = json.loads(coordctl("recover", "--dry-run", "-o", "json").out)
    assert document["applied"] is False
    ours, foreign = document["items"]
    assert (ours["gtrid"], ours["number"], ours["result"]) == (GTRID, 2, "done")
    assert foreign == {
        "participant": "stock",
        "gtrid": None,
        "number": None,
        "format_id": 7,
        "gtrid_hex": "00ff1b5b324a",
        "bqual_hex": "",
        "action": "leave",
        "reason": "FOREIGN",
        "explanation": "not ours",
        "result": None,
    }
    assert document["scans"] == [{"participant": "stock", "scanned": True, "error": None}]


def test_recover_says_which_participants_it_did_not_see(coordctl: Coordctl) -> None:
    scan = admin_pb2.ParticipantScan(participant="orders", error="agent does not answer")
    coordctl.fake.answers["Recover"] = admin_pb2.RecoverResponse(items=PLAN.items, scans=[*PLAN.scans, scan])
    result = coordctl("recover")
    assert result.code == 69
    assert "1 of 2 participants scanned" in result.out
    assert result.err == (
        "coordctl: PARTICIPANT_UNAVAILABLE: not scanned, so nothing was done there: "
        "orders (agent does not answer); run it again when it is back\n"
    )


def test_resolve_sends_who_and_why(coordctl: Coordctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.ctl.decisions.operator_name", lambda: "ada")
    result = coordctl("resolve", GTRID, "--rollback", "--reason", "  log lost, INC-7 ", "--yes")
    assert result.code == 0
    assert coordctl.fake.of("Resolve") == [
        admin_pb2.ResolveRequest(gtrid=GTRID, action="rollback", reason="log lost, INC-7", operator="ada")
    ]
    assert coordctl.fake.of("Get") == []
    assert "evidence   resolve rollback by ada\n" in result.out


def test_resolve_against_a_logged_decision_is_refused(
    coordctl: Coordctl, error: Callable[..., XacoordError]
) -> None:
    coordctl.fake.answers["Resolve"] = error("DECISION_CONTRADICTED", "the log has its COMMIT record")
    result = coordctl("resolve", GTRID, "--rollback", "--reason", "x", "--yes")
    assert (result.code, result.out) == (1, "")
    assert result.err == "coordctl: DECISION_CONTRADICTED: the log has its COMMIT record\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["resolve", GTRID, "--reason", "x", "--yes"],
        ["resolve", GTRID, "--commit", "--yes"],
        ["resolve", GTRID, "--commit", "--reason", " ", "--yes"],
        ["resolve", GTRID, "--commit", "--reason", "x" * 501, "--yes"],
        ["resolve", GTRID, "--commit", "--reason", "a\x1b[2Jb", "--yes"],
        ["resolve", GTRID, "--commit", "--reason", "nobody can be asked"],
        ["forget", GTRID],
    ],
)
def test_decisions_that_are_not_clear_are_not_sent(coordctl: Coordctl, arguments: list[str]) -> None:
    result = coordctl(*arguments)
    assert result.code == 2
    assert result.err.startswith("coordctl: USAGE: ")
    assert result.err.count("\n") == 1
    assert coordctl.fake.of("Resolve") == coordctl.fake.of("Forget") == []


@pytest.mark.parametrize(("answer", "code", "sent"), [("y\n", 0, 1), ("n\n", 1, 0), ("\n", 1, 0)])
def test_on_a_terminal_a_person_is_asked(
    coordctl: Coordctl, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, sent: int
) -> None:
    monkeypatch.setattr("coordinator.ctl.options.is_terminal", lambda stream: True)
    for command in (["resolve", GTRID, "--commit", "--reason", "x"], ["forget", GTRID]):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        result = coordctl(*command)
        assert result.code == code
        assert "COMMITTING, outcome COMMITTED: orders NON_EXISTENT, stock PREPARED" in result.err
    assert len(coordctl.fake.of("Resolve")) == len(coordctl.fake.of("Forget")) == sent


def test_a_transaction_that_the_log_lost_can_be_resolved(
    coordctl: Coordctl, monkeypatch: pytest.MonkeyPatch, error: Callable[..., XacoordError]
) -> None:
    monkeypatch.setattr("coordinator.ctl.options.is_terminal", lambda stream: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    coordctl.fake.answers["Get"] = error("UNKNOWN_TRANSACTION")
    result = coordctl("resolve", GTRID, "--commit", "--reason", "x")
    assert result.code == 0
    assert "the coordinator's log does not know it" in result.err


@pytest.mark.parametrize("around", ["ask()", "asyncio.run(in_a_loop())"])
def test_ctrl_c_ends_a_question_at_once(around: str) -> None:
    """Also in an event loop, which takes SIGINT over and would wait for the answer first."""
    code = (
        "import asyncio, sys\n"
        "from coordinator.ctl import main\n"
        "from coordinator.ctl.options import confirm\n"
        "def ask(): confirm('Really?', False)\n"
        "async def in_a_loop(): ask()\n"
        f"main.cli.main = lambda **_: {around}\n"
        "sys.exit(main.run([]))\n"
    )
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    written = b""
    try:
        while b"[y/N]" not in written:
            written += os.read(leader, 65536)
        time.sleep(0.5)  # the prompt is written before input() reads, and people are not that quick
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        written += os.read(leader, 65536)
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    assert b"coordctl: INTERRUPTED: nothing was changed" in written


def test_forget(coordctl: Coordctl, error: Callable[..., XacoordError]) -> None:
    assert coordctl("forget", GTRID, "--yes").code == 0
    coordctl.fake.answers["Forget"] = error("NOT_HEURISTIC", "it has no heuristic outcome")
    assert coordctl("forget", GTRID, "--yes").code == 1


def test_the_operator_is_the_login_name_and_not_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from coordinator.ctl.decisions import operator_name

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "mallory")
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert operator_name() == "root"
    monkeypatch.setenv("SUDO_USER", "ada")
    assert operator_name() == "ada as root"
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    assert operator_name() == "uid 4000000"


# --- without the coordinator ---


class Offline:
    """Stands in for coordinator.offline and coordinator.config and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.transactions = [
            transaction(OTHER, in_doubt=False, state=coordinator_pb2.STATE_COMMITTED),
            transaction(),
        ]
        self.error: Exception | None = None
        self.data_dir = "/srv/log"
        self.agents = {"orders": "127.0.0.1:7430", "stock": "127.0.0.1:7440"}

    def list(self, directory: Path) -> list[coordinator_pb2.Transaction]:
        self.asked.append(directory)
        if self.error:
            raise self.error
        return self.transactions

    def recover(self, config_path: Path, apply: bool, participants: list[str]) -> admin_pb2.RecoverResponse:
        self.asked.append((config_path, apply, participants))
        if self.error:
            raise self.error
        return PLAN

    def load_config(self, path: Path) -> SimpleNamespace:
        from shell.config import ConfigError

        if path.name != "coordinator.toml":
            raise ConfigError(f"cannot read {path}: No such file or directory; give a readable file")
        return SimpleNamespace(
            coordinator=SimpleNamespace(data_dir=self.data_dir),
            participants={name: SimpleNamespace(agent=agent) for name, agent in self.agents.items()},
        )


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Offline:
    stand_in = Offline()
    log, config = ModuleType("coordinator.offline"), ModuleType("coordinator.config")
    log.transactions, log.recover = stand_in.list, stand_in.recover  # type: ignore[attr-defined]
    config.load_config = stand_in.load_config  # type: ignore[attr-defined]
    for name, module in (("offline", log), ("config", config)):
        monkeypatch.setitem(sys.modules, f"coordinator.{name}", module)
        monkeypatch.setattr(coordinator, name, module, raising=False)
    return stand_in


def test_list_offline_selects_as_the_coordinator_would(coordctl: Coordctl, offline: Offline) -> None:
    def listed(*options: str) -> list[str]:
        result = coordctl("list", "--offline", "--data-dir", "/d", "-o", "json", *options)
        assert result.code == 0, result.err
        return [row["gtrid"] for row in json.loads(result.out)["transactions"]]

    assert listed() == [OTHER, GTRID]  # the newest first
    assert listed("--in-doubt") == [GTRID]
    assert listed("--state", "COMMITTED") == [OTHER]
    assert listed("--older-than", "245s") == [OTHER, GTRID]
    assert listed("--older-than", "246s") == []
    assert listed("--limit", "1") == [OTHER]
    assert set(offline.asked) == {Path("/d")}
    assert coordctl.fake.requests == []


def test_show_offline(coordctl: Coordctl, offline: Offline) -> None:
    result = coordctl("show", OTHER, "--offline", "--config", "coordinator.toml", "-o", "json")
    document = json.loads(result.out)
    assert (document["transaction"]["gtrid"], document["evidence"]) == (OTHER, "log")
    assert offline.asked == [Path("/srv/log")]
    offline.transactions.clear()
    result = coordctl("show", OTHER, "--offline", "--config", "coordinator.toml")
    assert result.code == 3
    assert result.err.startswith(f"coordctl: UNKNOWN_TRANSACTION: the log does not know {OTHER}")


def test_recover_offline(coordctl: Coordctl, offline: Offline) -> None:
    command = ["recover", "--offline", "--config", "coordinator.toml", "-p", "stock"]
    assert coordctl(*command, "--dry-run").out.splitlines()[-1].startswith("plan, nothing was changed")
    assert coordctl(*command).out.splitlines()[-1].startswith("carried out")
    assert offline.asked == [
        (Path("coordinator.toml"), False, ["stock"]),
        (Path("coordinator.toml"), True, ["stock"]),
    ]
    unknown = coordctl(*command, "-p", "stok")
    assert (unknown.code, len(offline.asked)) == (3, 2)
    assert unknown.err == (
        "coordctl: UNKNOWN_PARTICIPANT: coordinator.toml has no participant 'stok', but: orders, stock\n"
    )
    assert coordctl.fake.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--offline"],
        ["list", "--config", "coordinator.toml"],
        ["list", "--data-dir", "/d"],
        ["show", GTRID, "--offline", "--config", "coordinator.toml", "--data-dir", "/d"],
        ["recover", "--offline"],
        ["recover", "--config", "coordinator.toml"],
    ],
)
def test_offline_options_that_do_not_go_together(
    coordctl: Coordctl, offline: Offline, arguments: list[str]
) -> None:
    assert coordctl(*arguments).code == 2
    assert offline.asked == coordctl.fake.requests == []


def test_errors_of_the_log_end_with_their_own_exit_code(coordctl: Coordctl, offline: Offline) -> None:
    from coordinator.codec import UnknownRecord
    from coordinator.core.replay import LogContradiction
    from coordinator.journal import JournalError
    from wal.errors import LogCorrupt, LogFailed, LogLocked, LogMissing

    for error, code, reason in (
        (LogLocked("in use by process 7"), 75, "LOG_LOCKED"),
        (LogMissing("there is no log"), 65, "LOG_MISSING"),
        (LogFailed("EIO"), 74, "LOG_FAILED"),
        (LogCorrupt("/d/wal-1.log", 512, 9, "checksum"), 78, "LOG_CORRUPT"),
        (UnknownRecord("kind 99"), 78, "LOG_TOO_NEW"),
        (LogContradiction("decided twice"), 78, "LOG_CORRUPT"),
        (JournalError("of another coordinator"), 78, "LOG_UNUSABLE"),
        (PermissionError(13, "Permission denied", "/d"), 74, "IO_ERROR"),
    ):
        offline.error = error
        result = coordctl("list", "--offline", "--data-dir", "/d")
        assert (result.code, result.out) == (code, "")
        assert result.err.startswith(f"coordctl: {reason}: ")
        assert result.err.count("\n") == 1


def test_config_check(coordctl: Coordctl, offline: Offline) -> None:
    assert coordctl("config", "check", "coordinator.toml").out == "coordinator.toml: valid\n"
    document = json.loads(coordctl("config", "check", "coordinator.toml", "-o", "json").out)
    assert document == {"file": "coordinator.toml", "valid": True, "warnings": []}
    for command in (["config", "check", "no.toml"], ["recover", "--offline", "--config", "coordinator.toml"]):
        if command[0] == "recover":
            from shell.config import ConfigError

            offline.error = ConfigError(
                "cannot read no.toml: No such file or directory; give a readable file"
            )
        result = coordctl(*command)
        assert result.code == 78
        assert result.err == (
            "coordctl: CONFIGURATION: cannot read no.toml: No such file or directory; give a readable file\n"
        )


def test_config_check_warns_of_likely_mistakes(coordctl: Coordctl, offline: Offline) -> None:
    offline.data_dir = "var/log"
    offline.agents = {"orders": "h:7430", "stock": "h:7430", "other": "h:7440"}
    result = coordctl("config", "check", "coordinator.toml")
    assert (result.code, result.err) == (0, "")
    valid, address, relative = result.out.splitlines()
    assert valid == "coordinator.toml: valid"
    assert address.startswith("! participants orders, stock have one agent address, h:7430: ")
    assert relative.startswith("! coordinator.data_dir 'var/log' is relative: ")
    document = json.loads(coordctl("config", "check", "coordinator.toml", "-o", "json").out)
    assert [f"! {warning}" for warning in document["warnings"]] == [address, relative]
