"""Daemons that must refuse to start: the documented exit code, one line of error, nothing changed."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import pytest

from deploy import processes
from tests.bad_input.support import ROOT, System, check_one_line, own_lines, python

DAEMON = "coordinator.daemon"
AGENT = "participant_agent.daemon"


def coordinator_toml(directory: Path, **changes: str) -> str:
    """A good file, but for `changes` of keys in [coordinator]."""
    values = {
        "id": '"0aaa"',
        "data_dir": f'"{directory / "log"}"',
        "listen": '"127.0.0.1:1"',
        "http_listen": '""',
        **changes,
    }
    lines = "".join(f"{key} = {value}\n" for key, value in values.items() if value)
    return f'[coordinator]\n{lines}[participants.orders]\nagent = "127.0.0.1:1"\n'


def start(module: str, config: Path, seconds: float = 3, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a daemon that should end at once."""
    command = ["serve"] if module == AGENT else []
    return python(module, *command, "--config", str(config), seconds=seconds, **environ)


def check_refused(done: subprocess.CompletedProcess[str], *codes: int, word: str = "") -> None:
    assert done.returncode in codes, f"exit {done.returncode}: {done.stderr[-2000:]}"
    assert done.stdout == ""
    check_one_line(done.stderr, word)


def tree(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        content = path.read_bytes()[: 1 << 20] if path.is_file() and path.name != "lock" else b""
        found[str(path.relative_to(directory))] = (status.st_mode, status.st_size if content else 0, content)
    return found


# --- Configuration of the coordinator ---

TEXTS: dict[str, Callable[[Path], str | bytes]] = {
    "empty": lambda d: "",
    "no TOML": lambda d: "[coordinator\nid=",
    "no UTF-8": lambda d: b"\xff\xfe",
    "NUL": lambda d: coordinator_toml(d) + "\0",
    "twice": lambda d: coordinator_toml(d) + '[coordinator]\nid = "x"\n',
    "deep": lambda d: "a = " + "[" * 5000 + "]" * 5000,
    "unknown key": lambda d: coordinator_toml(d, colour='"red"'),
    "unknown section": lambda d: coordinator_toml(d) + "[colours]\nred = 1\n",
    "unknown key of a participant": lambda d: coordinator_toml(d) + "colour = 1\n",
    "control characters in a key": lambda d: coordinator_toml(d) + '"a\\u001b[2J" = 1\n',
    "no id": lambda d: coordinator_toml(d, id=""),
    "id of 5": lambda d: coordinator_toml(d, id='"00001"'),
    "id upper case": lambda d: coordinator_toml(d, id='"ABCD"'),
    "id a number": lambda d: coordinator_toml(d, id="1"),
    "no data_dir": lambda d: coordinator_toml(d, data_dir=""),
    "empty data_dir": lambda d: coordinator_toml(d, data_dir='""'),
    "NUL in data_dir": lambda d: coordinator_toml(d, data_dir='"/tmp/a\\u0000b"'),
    "listen a number": lambda d: coordinator_toml(d, listen="7420"),
    "listen without port": lambda d: coordinator_toml(d, listen='"localhost"'),
    "listen port 65536": lambda d: coordinator_toml(d, listen='"127.0.0.1:65536"'),
    "listen port minus": lambda d: coordinator_toml(d, listen='"127.0.0.1:-1"'),
    "listen port Arabic": lambda d: coordinator_toml(d, listen='"127.0.0.1:\u0661\u0662\u0663\u0664"'),
    "listen of no one": lambda d: coordinator_toml(d, listen='"192.0.2.1:7420"'),
    "listen of no name": lambda d: coordinator_toml(d, listen='"no.such.host.invalid:7420"'),
    "http_listen without port": lambda d: coordinator_toml(d, http_listen='"localhost"'),
    "log_level": lambda d: coordinator_toml(d, log_level='"LOUD"'),
    "log_level a number": lambda d: coordinator_toml(d, log_level="10"),
    "drain_seconds negative": lambda d: coordinator_toml(d, drain_seconds="-1"),
    "drain_seconds nan": lambda d: coordinator_toml(d, drain_seconds="nan"),
    "max_message_bytes -1": lambda d: coordinator_toml(d, max_message_bytes="-1"),
    "max_message_bytes 0": lambda d: coordinator_toml(d, max_message_bytes="0"),
    "max_message_bytes 2^40": lambda d: coordinator_toml(d, max_message_bytes=str(2**40)),
    "no participants": lambda d: coordinator_toml(d).partition("[participants")[0],
    "participants a list": lambda d: coordinator_toml(d).partition("[participants")[0] + "[[participants]]\n",
    "participant without agent": lambda d: coordinator_toml(d).partition("agent")[0],
    "participant's name": lambda d: coordinator_toml(d) + '[participants."A b"]\nagent = "127.0.0.1:1"\n',
    "participant's name of 41": lambda d: coordinator_toml(d) + f"[participants.{'x' * 41}]\nagent='h:1'\n",
    "agent's address": lambda d: coordinator_toml(d).replace('agent = "127.0.0.1:1"', 'agent = "x"'),
    "agent's port 0": lambda d: coordinator_toml(d).replace('agent = "127.0.0.1:1"', 'agent = "127.0.0.1:0"'),
    "default above max": lambda d: coordinator_toml(d) + "[transactions]\ndefault_timeout = 301\n",
    "timeout nan": lambda d: coordinator_toml(d) + "[transactions]\ndefault_timeout = nan\n",
    "timeout 0": lambda d: coordinator_toml(d) + "[transactions]\ndefault_timeout = 0\n",
    "retry_max nan": lambda d: coordinator_toml(d) + "[transactions]\nretry_max = nan\n",
    "rescan_every inf": lambda d: coordinator_toml(d) + "[transactions]\nrescan_every = inf\n",
    "keep_ended -1": lambda d: coordinator_toml(d) + "[transactions]\nkeep_ended = -1\n",
    "max_open 0": lambda d: coordinator_toml(d) + "[transactions]\nmax_open = 0\n",
    "segment_mib 0": lambda d: coordinator_toml(d) + "[log]\nsegment_mib = 0\n",
    "alignment 513": lambda d: coordinator_toml(d) + "[log]\nalignment = 513\n",
    "unsafe a word": lambda d: coordinator_toml(d) + '[log]\nallow_unsafe_filesystem = "yes"\n',
}


@pytest.mark.parametrize("case", TEXTS)
def test_coordinator_file(tmp_path: Path, case: str) -> None:
    config = tmp_path / "c.toml"
    text = TEXTS[case](tmp_path)
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = start(DAEMON, config)
    check_refused(done, 78, word="coordinator: ")
    assert all(line.isprintable() for line in own_lines(done.stderr))
    if not case.startswith("listen of no"):  # that is known only when the log is open
        assert sorted(path.name for path in tmp_path.iterdir()) == ["c.toml"]


@pytest.mark.parametrize("module", [DAEMON, AGENT])
@pytest.mark.parametrize("name", ["missing.toml", ".", "no/such/place.toml", "/dev/null/x", "x" * 300])
def test_file_that_cannot_be_read(tmp_path: Path, module: str, name: str) -> None:
    check_refused(start(module, tmp_path / name), 78)


@pytest.mark.parametrize("module", [DAEMON, AGENT])
def test_as_a_process_of_its_own(tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the others do in a fork, once with everything."""
    monkeypatch.setattr(processes, "fork", None)
    (tmp_path / "c.toml").write_text("colour = 1\n")
    check_refused(python(module, "--config", str(tmp_path / "c.toml")), 78)


def test_environment(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(coordinator_toml(tmp_path))
    for name, value in (
        ("XACOORD__COORDINATOR__COLOUR", "red"),
        ("XACOORD__COORDINATOR__ID", "toolong"),
        ("XACOORD__COORDINATOR__ID__X", "1"),
        ("XACOORD__COORDINATOR", "x"),
        ("XACOORD__", "x"),
        ("XACOORD__COORDINATOR__ID", "'"),
    ):
        check_refused(start(DAEMON, config, **{name: value}), 78)


# --- Configuration of an agent ---


def agent_toml(
    system: System, listen: str = '"127.0.0.1:1"', name: str = '"a"', rest: str = "", **mysql: str
) -> str:
    values = {
        "unix_socket": f'"{system.cluster.sites["orders"].server.socket}"',
        "user": '"xacoord_agent"',
        "password": '"private"',
        "database": '"orders"',
        **mysql,
    }
    lines = "".join(f"{key} = {value}\n" for key, value in values.items() if value)
    return f"[agent]\nparticipant = {name}\nlisten = {listen}\n[mysql]\n{lines}{rest}"


AGENT_TEXTS: dict[str, tuple[Callable[[System], str], tuple[int, ...]]] = {
    "empty": (lambda s: "", (78,)),
    "no TOML": (lambda s: "]", (78,)),
    "unknown key": (lambda s: agent_toml(s, colour="1"), (78,)),
    "unknown section": (lambda s: agent_toml(s, rest="[colours]\n"), (78,)),
    "name": (lambda s: agent_toml(s, name='"A b"'), (78,)),
    "name of 41": (lambda s: agent_toml(s, name='"' + "x" * 41 + '"'), (78,)),
    "no user": (lambda s: agent_toml(s, user=""), (78,)),
    "port a word": (lambda s: agent_toml(s, port='"x"'), (78,)),
    "port 65536": (lambda s: agent_toml(s, unix_socket="", port="65536"), (78,)),
    "port -1": (lambda s: agent_toml(s, unix_socket="", port="-1"), (78,)),
    "schema": (lambda s: agent_toml(s, schema='"x;y"'), (78,)),
    "password file": (lambda s: agent_toml(s, password="", password_file='"/no/such/file"'), (78,)),
    "password file a directory": (lambda s: agent_toml(s, password="", password_file='"/tmp"'), (78,)),
    "password file no UTF-8": (lambda s: agent_toml(s, password="", password_file='"/bin/true"'), (78,)),
    "two passwords": (lambda s: agent_toml(s, password_file='"/tmp/x"'), (78,)),
    "timeout 0": (lambda s: agent_toml(s, connect_timeout_seconds="0"), (78,)),
    "listen": (lambda s: agent_toml(s, listen='"nowhere"'), (78,)),
    "listen port": (lambda s: agent_toml(s, listen='"127.0.0.1:99999"'), (78,)),
    "listen of no one": (lambda s: agent_toml(s, listen='"192.0.2.1:7430"'), (78,)),
    "log_level": (lambda s: agent_toml(s).replace("[mysql]", 'log_level = "LOUD"\n[mysql]'), (78,)),
    "sessions 0": (lambda s: agent_toml(s, rest="[sessions]\nmax = 0\n"), (78,)),
    "statement timeout nan": (
        lambda s: agent_toml(s, rest="[sessions]\nstatement_timeout_seconds = nan\n"),
        (78,),
    ),
    "statement timeout inf": (
        lambda s: agent_toml(s, rest="[sessions]\nstatement_timeout_seconds = inf\n"),
        (78,),
    ),
    "acquire -1": (lambda s: agent_toml(s, rest="[sessions]\nacquire_timeout_seconds = -1\n"), (78,)),
    "isolation": (lambda s: agent_toml(s, rest='[sessions]\nisolation = "CHAOS"\n'), (78,)),
    "rows -1": (lambda s: agent_toml(s, rest="[limits]\nresult_rows = -1\n"), (78,)),
    "bytes 2^40": (lambda s: agent_toml(s, rest=f"[limits]\nresult_bytes = {2**40}\n"), (78,)),
    "wrong password": (lambda s: agent_toml(s, password='"wrong"'), (69,)),
    "wrong database": (lambda s: agent_toml(s, database='"nothing"'), (69, 78)),
    "no server": (lambda s: agent_toml(s, unix_socket='"/no/such/socket"'), (69,)),
    "taken participant": (lambda s: agent_toml(s, name='"orders"'), (69,)),
}


@pytest.mark.parametrize("case", AGENT_TEXTS)
def test_agent_file(system: System, tmp_path: Path, case: str) -> None:
    make, codes = AGENT_TEXTS[case]
    config = tmp_path / "a.toml"
    config.write_text(make(system))
    done = start(AGENT, config, seconds=20 if case == "taken participant" else 3)
    assert done.returncode in codes, f"exit {done.returncode}: {done.stderr[-2000:]}"
    lines = [line for line in own_lines(done.stderr) if '"level": "info"' not in line]
    assert len(lines) == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "private" not in done.stderr


def test_agent_address_in_use(system: System, tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text(agent_toml(system, listen=f'"{system.cluster.address}"'))
    done = start(AGENT, config)
    assert done.returncode in (69, 78), done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert system.cluster.address in done.stderr


# --- Addresses and log directories ---


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A directory with the configuration of a coordinator that could start."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    (tmp_path / "c.toml").write_text(coordinator_toml(tmp_path, listen=f'"127.0.0.1:{port}"'))
    return tmp_path


def start_and_stop(config: Path) -> None:
    """A coordinator that starts, says so, and is killed."""
    child = subprocess.Popen(
        [sys.executable, "-m", DAEMON, "--config", str(config)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
    )
    assert child.stderr is not None
    with child, child.stderr:
        for line in child.stderr:
            if '"serving"' in line:
                child.kill()
        assert child.wait(20) == -9


@pytest.mark.parametrize("key", ["listen", "http_listen"])
def test_address_in_use(lab: Path, key: str) -> None:
    """One that somebody else has; and both the same."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        text = (lab / "c.toml").read_text().splitlines()
        lines = [f'{key} = "{address}"' if line.startswith(f"{key} =") else line for line in text]
        (lab / "c.toml").write_text("\n".join(lines))
        done = start(DAEMON, lab / "c.toml")
    assert done.returncode == 78, done.stderr[-2000:]
    last = [line for line in own_lines(done.stderr) if '"level": "info"' not in line]
    check_one_line("\n".join(last), address)


def _log(lab: Path) -> Path:
    start_and_stop(lab / "c.toml")
    return lab / "log"


def test_log_in_use(lab: Path) -> None:
    log = _log(lab)
    with (log / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = tree(log)
        check_refused(start(DAEMON, lab / "c.toml"), 75, word="in use by process")
        assert tree(log) == before
    start_and_stop(lab / "c.toml")


def _symlink(log: Path) -> None:
    log.rename(log.with_name("elsewhere"))
    log.symlink_to(log.with_name("elsewhere"))


def _new_version(log: Path) -> None:
    """The newest segment's header says version 2, with a right checksum."""
    path = max(log.glob("wal-*.log"))
    header = bytearray(path.read_bytes()[:96])
    struct.pack_into("<H", header, 8, 2)
    struct.pack_into("<I", header, 92, google_crc32c.value(bytes(header[:92])))
    with path.open("r+b") as file:
        file.write(header)


def _noise(log: Path) -> None:
    path = max(log.glob("wal-*.log"))
    with path.open("r+b") as file:
        file.seek(0)
        file.write(os.urandom(4096))


def _empty_segment(log: Path) -> None:
    os.truncate(max(log.glob("wal-*.log")), 0)


def _other_id(log: Path) -> None:
    config = log.parent / "c.toml"
    config.write_text(config.read_text().replace('"0aaa"', '"0bbb"'))


def _file_instead(log: Path) -> None:
    shutil.rmtree(log)
    log.write_text("not a directory")


def _linked_segment(log: Path) -> None:
    path = max(log.glob("wal-*.log"))
    path.rename(log.parent / "segment")
    path.symlink_to(log.parent / "segment")


def _linked_lock(log: Path) -> None:
    (log / "lock").unlink()
    (log / "lock").symlink_to(log.parent / "c.toml")


DIRECTORIES: dict[str, tuple[Callable[[Path], None], tuple[int, ...], str]] = {
    "symlink": (_symlink, (78,), "symbolic link"),
    "world-writable": (lambda log: log.chmod(0o777), (78,), "everyone"),
    "another's": (_other_id, (78,), "0aaa"),
    "newer version": (_new_version, (78,), "wal-"),
    "noise": (_noise, (78,), "wal-"),
    "empty segment": (_empty_segment, (78,), "wal-"),
    "a file": (_file_instead, (74, 78), "log"),
    "linked segment": (_linked_segment, (74, 78), "wal-"),
    "linked lock": (_linked_lock, (74, 78), "lock"),
}


@pytest.mark.parametrize("case", DIRECTORIES)
def test_log_directory(lab: Path, case: str) -> None:
    """Refused, and not a byte of it (or of what it links to) is changed."""
    damage, codes, word = DIRECTORIES[case]
    damage(_log(lab))
    before = tree(lab)
    check_refused(start(DAEMON, lab / "c.toml"), *codes, word=word)
    assert tree(lab) == before


def test_log_directory_on_memory(lab: Path) -> None:
    shared = Path("/dev/shm") / f"xacoord-{os.getpid()}"
    (lab / "c.toml").write_text(coordinator_toml(lab, data_dir=f'"{shared}"'))
    try:
        check_refused(start(DAEMON, lab / "c.toml"), 78, word="memory")
        assert not list(shared.glob("wal-*"))
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def test_log_directory_that_is_read_only(lab: Path) -> None:
    """As a user without rights to it, because nothing is read-only to root."""
    log = _log(lab)
    for path in (log, *log.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in lab.parents:
        if parent.stat().st_mode & 0o005 != 0o005 and os.stat(parent).st_uid == os.getuid():
            parent.chmod(parent.stat().st_mode | 0o055)
    lab.chmod(0o755)
    before = tree(lab)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*nobody, sys.executable, "-m", DAEMON, "--config", str(lab / "c.toml")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=ROOT,
    )
    check_refused(done, 74, 78, word="coordinator: ")
    assert str(log) in done.stderr
    assert tree(lab) == before
