"""Scenarios: scripts whose full trace of effects and log records is expected, line by line.

A script is a list of blocks: comments, a command, `----`, what the core does, an empty line. With
REWRITE=1 in the environment the expectations are written anew; read the difference before you believe it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.scenarios.language import VERBS, Scenario, __doc__

NOTHING = "  nothing\n"
SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


def play(script: str) -> str:
    """The script with what its commands really do."""
    scenario = Scenario()
    blocks = []
    for block in script.strip().split("\n\n"):
        asked, *_ = block.partition("\n----")
        commands = [line for line in asked.split("\n") if not line.startswith("#")]
        done = "".join([scenario.do(line) for line in commands])
        blocks.append(f"{asked}\n----\n{done or NOTHING}" if commands else f"{asked}\n")
    return "\n".join(blocks)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    expected = path.read_text()
    found = play(expected)
    if os.environ.get("REWRITE"):
        path.write_text(found)
    else:
        assert found == expected


def test_there_are_scenarios_and_each_verb_is_used() -> None:
    scripts = "\n".join(path.read_text() for path in SCRIPTS)
    unused = [verb for verb in VERBS if not re.search(rf"^{verb}\b", scripts, re.MULTILINE)]
    assert len(SCRIPTS) >= 20
    assert not unused
    assert __doc__ is not None
    assert all(re.search(rf"\b{verb}\b", __doc__) for verb in VERBS)


def test_a_wrong_expectation_is_noticed() -> None:
    assert play("start p1\n----\n  something\n") == "start p1\n----\n  nothing\n"
