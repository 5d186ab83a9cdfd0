"""The snippets of docs/sdk.md run, one after the other, as a reader would try them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import xacoord
from tests.sdk.fakes import World
from xacoord import errors

GUIDE = Path(__file__).parents[2] / "docs" / "sdk.md"


def test_snippets_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 6
    world = World(["north", "south"])
    world.coordinator.keys["transfer:4712"] = "k1test00010000004712"
    monkeypatch.setenv("XACOORD_ADDRESS", world.address)
    names: dict[str, Any] = {}
    try:
        for snippet in snippets:
            exec(compile(snippet, str(GUIDE), "exec"), names)
    finally:
        world.servers.stop()
    printed = capsys.readouterr().out
    assert "transferred 12.50\n" in printed
    assert "done before, as k1test00010000004712\n" in printed
    assert "COMMITTED" in printed
    assert "nothing was changed" not in printed


def test_every_error_is_in_the_table() -> None:
    text = GUIDE.read_text()
    classes = [name for name in xacoord.__all__ if hasattr(errors, name) and name != "TransactionError"]
    assert len(classes) == 8
    for name in classes:
        assert f"| `{name}` |" in text
