"""A soak of 15 seconds, as part of the normal tests: it runs, finds nothing, and its report says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.__main__ import EVIDENCE, main, parse
from tests.soak.plot import group, victim


def test_a_short_soak_finds_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--minutes", "0.25", "--engine", "mysql", "--seed", "1", "--every", "4"]
    code = main([*arguments, "--report", str(tmp_path)])
    output = capfd.readouterr().out
    assert code == 0, output
    text = (tmp_path / "soak.md").read_text()
    assert "**No violation.**" in text
    assert "<svg" in (tmp_path / "soak.svg").read_text()
    assert not (tmp_path / EVIDENCE).exists()
    assert " faults" in output


def test_every_kind_of_fault_has_a_colour() -> None:
    from tests.soak.faults import KINDS

    assert {group(kind) for kind in KINDS} == {"kill", "freeze", "restart", "lock", "network"}
    marks = {(group(kind), victim(kind)) for kind in KINDS}
    whom = {whom for what, whom in marks if what == "kill"}
    assert whom == {"coordinator", "agent", "server", "client", "several"}
    assert {whom for what, whom in marks if what in ("lock", "network")} == {""}


def test_senseless_arguments_are_refused() -> None:
    for arguments in (["--minutes", "0"], ["--every", "-1"], ["--minutes", "nan"], ["--engine", "oracle"]):
        with pytest.raises(SystemExit):
            parse(arguments)
