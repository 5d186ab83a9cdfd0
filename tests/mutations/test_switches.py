"""Every switch is used by a test and described."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from tests.mutations import switches

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "decisions" / "0012-mutations.md"
NAMES = [
    name
    for name, made in vars(switches).items()
    if inspect.isfunction(made) and made.__module__ == switches.__name__
]


@pytest.mark.parametrize("name", NAMES)
def test_used_and_described(name: str) -> None:
    tests = "".join(path.read_text() for path in HERE.glob("test_caught_*.py"))
    assert name in tests
    assert f"| `{name}` |" in PAGE.read_text()
    assert getattr(switches, name).__doc__


def test_there_are_switches() -> None:
    assert len(NAMES) >= 23
