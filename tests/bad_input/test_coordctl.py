"""coordctl with arguments that cannot be right: the documented exit code and one line on standard error."""

from __future__ import annotations

import socket

import pytest

from tests.bad_input.support import System, check_one_line, python

USAGE, NOT_FOUND, BAD_INPUT, UNAVAILABLE, CONFIGURATION = 2, 3, 65, 69, 78
GOOD = "k10001" + "0001" + "0" * 10

CASES: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "no gtrid": (["show"], (USAGE,)),
    "empty gtrid": (["show", ""], (BAD_INPUT, USAGE)),
    "odd gtrid": (["show", "';DROP TABLE x;-----"], (BAD_INPUT,)),
    "control gtrid": (["show", "\x1b[2J"], (BAD_INPUT,)),
    "no UTF-8": (["show", "\udcff\udcfe"], (BAD_INPUT, USAGE)),
    "long gtrid": (["show", "k" * 100_000], (BAD_INPUT,)),
    "never given": (["show", GOOD], (NOT_FOUND,)),
    "another's": (["show", "k1zzzz" + "0" * 14], (NOT_FOUND,)),
    "watch never given": (["watch", GOOD], (NOT_FOUND,)),
    "xid odd": (["xid", "hello"], (BAD_INPUT,)),
    "xid of NUL escapes": (["xid", "k1\\x00"], (BAD_INPUT,)),
    "resolve no action": (["resolve", GOOD, "--yes"], (USAGE,)),
    "resolve odd action": (["resolve", GOOD, "perhaps", "--yes", "--reason", "x"], (USAGE,)),
    "forget never given": (["forget", GOOD, "--yes"], (NOT_FOUND,)),
    "forget odd": (["forget", "x", "--yes"], (BAD_INPUT,)),
    "forget unasked": (["forget", GOOD], (USAGE,)),
    "output": (["list", "-o", "xml"], (USAGE,)),
    "output empty": (["list", "-o", ""], (USAGE,)),
    "duration word": (["list", "--older-than", "long"], (USAGE,)),
    "duration number": (["list", "--older-than", "5"], (USAGE,)),
    "duration negative": (["list", "--older-than", "-5s"], (USAGE,)),
    "duration nan": (["list", "--older-than", "nans"], (USAGE,)),
    "duration Arabic": (["list", "--older-than", "\u0665s"], (USAGE,)),
    "duration long": (["list", "--older-than", "9999999999s"], (USAGE,)),
    "duration as long as goes": (
        ["list", "--older-than", "999999999d999999999d999999999d999999999d"],
        (USAGE, 0),
    ),
    "timeout 0": (["--timeout", "0", "list"], (USAGE,)),
    "timeout nan": (["--timeout", "nan", "list"], (USAGE,)),
    "timeout inf": (["--timeout", "inf", "list"], (USAGE,)),
    "watch nan": (["list", "--watch", "nan"], (USAGE,)),
    "unknown command": (["explode"], (USAGE,)),
    "unknown option": (["list", "--explode"], (USAGE,)),
    "control option": (["list", "--\x1b[2J"], (USAGE,)),
    "recover nobody": (["recover", "--participant", "nobody", "--yes"], (NOT_FOUND, USAGE)),
    "offline without place": (["list", "--offline"], (USAGE, CONFIGURATION)),
    "offline nowhere": (["list", "--offline", "--data-dir", "/no/such/dir"], (BAD_INPUT, CONFIGURATION)),
    "offline a file": (["list", "--offline", "--data-dir", "/etc/passwd"], (BAD_INPUT, CONFIGURATION, 74)),
    "config missing": (["config", "check", "/no/such.toml"], (USAGE, CONFIGURATION)),
    "wal nowhere": (["wal", "verify", "/no/such/dir"], (BAD_INPUT, USAGE)),
}


@pytest.mark.parametrize("case", CASES)
def test_arguments(system: System, case: str) -> None:
    arguments, codes = CASES[case]
    done = python("coordinator.ctl.main", "--address", system.cluster.address, *arguments)
    assert done.returncode in codes, f"exit {done.returncode}: {done.stdout[:500]} {done.stderr[-1500:]}"
    if done.returncode:
        check_one_line(done.stderr, "coordctl")
        assert all(line.isprintable() for line in done.stderr.splitlines())


ADDRESSES = {
    "word": ("nowhere", USAGE),
    "empty": ("", USAGE),
    "port 0": ("127.0.0.1:0", USAGE),
    "port 65536": ("127.0.0.1:65536", USAGE),
    "control": ("\x1b[2J:1", USAGE),
    "nobody there": ("127.0.0.1:1", UNAVAILABLE),
    "no such host": ("no.such.host.invalid:7420", UNAVAILABLE),
    "no such socket": ("unix:/no/such/socket", UNAVAILABLE),
}


@pytest.mark.parametrize("case", ADDRESSES)
def test_address(system: System, case: str) -> None:
    address, code = ADDRESSES[case]
    done = system.cluster.coordctl("--timeout", "2", "--address", address, "list", check=False)
    assert done.returncode == code, done.stderr
    check_one_line(done.stderr, "coordctl")


def test_addresses_of_others(system: System) -> None:
    """An agent, the HTTP port and a port that says nothing are no coordinators."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        agent = system.cluster.sites["orders"].address
        for address in (agent, system.cluster.http_address, f"127.0.0.1:{silent.getsockname()[1]}"):
            done = system.cluster.coordctl("--timeout", "1", "--address", address, "list", check=False)
            assert done.returncode in (1, UNAVAILABLE), (address, done.returncode, done.stderr)
            check_one_line(done.stderr, "coordctl")
