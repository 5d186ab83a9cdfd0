"""No place is forgotten, and places cost nothing where no test asks for them."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.config import load_config
from coordinator.driver import Driver
from coordinator.failpoint_driver import FailpointDriver
from coordinator.runtime import Runtime
from deploy.processes import free_port
from participant_agent.core.effects import Verb
from shell.failpoints import Failpoints
from tests.crash_matrix.conftest import RUNS_PER_ENGINE, SEEDS
from tests.crash_matrix.places import AGENT, COORDINATOR, PLACES, TOGETHER, TWICE, Cell, choose, pairs
from tests.crash_matrix.triggers import TRIGGERS

ROOT = Path(__file__).resolve().parent.parent.parent
# How product code names places: literally, or by the effect, the input or the verb at hand.
BY_NAME = {"before_{}": COORDINATOR, "after_{}": COORDINATOR, "input_{}": COORDINATOR}
METHODS = ("hit", "drops", "wants")
# The command `coordctl recover --derive` has places of its own, which its own tests kill it at.
COMMANDS = {"coordinator/takeover.py"}


def named_in(source: str) -> Iterator[str]:
    """What is given to a failpoint's methods; a part that is computed is {}."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        owner = node.func.value
        if node.func.attr not in METHODS or "failpoints" not in ast.unparse(owner):
            continue
        [name] = node.args
        if isinstance(name, ast.Constant):
            yield str(name.value)
        else:
            assert isinstance(name, ast.JoinedStr), ast.unparse(node)
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in name.values)


def test_every_place_that_the_code_names_is_in_the_matrix() -> None:
    found = set()
    for package in ("coordinator", "participant_agent", "shell", "wal", "dtp", "xacoord"):
        for path in (ROOT / package).rglob("*.py"):
            if str(path.relative_to(ROOT)) not in COMMANDS:
                found |= set(named_in(path.read_text()))
    computed = {name for name in found if "{}" in name}
    assert computed == BY_NAME.keys()
    assert found - computed == {"before_epoch", "after_epoch", "before_rotate"}
    assert found - computed <= set(COORDINATOR)


def test_a_named_place_is_found() -> None:
    source = (
        "async def f(self):\n    await self._failpoints.hit('x')\n    failpoints.drops(f'before_{name}')\n"
    )
    assert set(named_in(source)) == {"x", "before_{}"}


def test_the_pages_name_the_places() -> None:
    # docs/protocol.md is drawn from the code and checked by tests/core/test_protocol_page.py.
    page = (ROOT / "docs/protocol.md").read_text()
    for place in COORDINATOR:
        bare = place if place.startswith("input_") else re.sub("^(before|after)_", "", place)
        assert f"`{bare}`" in page, place
    [line] = re.findall(r"^before_ and after_ each of: (.*)\.$", (ROOT / "docs/agent.md").read_text(), re.M)
    assert pairs(line.split(", ")) == AGENT == pairs([verb.value for verb in Verb])


def test_the_normal_run_has_every_place_with_the_death_of_its_process() -> None:
    for seed in SEEDS.values():
        cells = choose(RUNS_PER_ENGINE, seed)
        assert len(cells) == len(set(map(str, cells))) == RUNS_PER_ENGINE
        for holder, places in PLACES.items():
            own = {cell.place for cell in cells if cell.holder == cell.victim == holder and not cell.again}
            assert own == set(places)
        assert {cell.place for cell in cells if cell.victim == "mysqld"} >= set(AGENT)
        assert {cell.trigger for cell in cells} == TRIGGERS.keys()
        assert {cell.victim for cell in cells} == {"coordinator", "agent", "mysqld", "client", *TOGETHER}
        assert {(cell.place, cell.again) for cell in cells if cell.again} == set(TWICE)


def test_more_runs_are_other_runs() -> None:
    many = choose(1_000, 1)
    assert len(set(many)) == 1_000
    assert many[:RUNS_PER_ENGINE] == choose(RUNS_PER_ENGINE, 1)
    assert choose(1_000, 1) == many
    assert Cell("coordinator", "before_scan", "coordinator", 9).trigger == "start"


# No cost when off


async def _driver_of(directory: Path) -> type[Driver]:
    config = directory / "coordinator.toml"
    config.write_text(
        f'[coordinator]\nid = "0001"\ndata_dir = "{directory / "log"}"\n'
        f'[participants.east]\nagent = "127.0.0.1:{free_port()}"\n'
    )
    runtime = await Runtime.start(load_config(config, {}))
    try:
        return type(runtime.driver)
    finally:
        await runtime.close()


def test_without_failpoints_the_ordinary_driver_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XACOORD_FAILPOINTS", raising=False)
    assert Failpoints.from_environment() is None
    assert asyncio.run(_driver_of(tmp_path)) is Driver
    monkeypatch.setenv("XACOORD_FAILPOINTS", "before_scan:1000=kill")
    assert asyncio.run(_driver_of(tmp_path)) is FailpointDriver


def test_what_runs_without_failpoints_does_not_know_them() -> None:
    """Between a request and the disk nothing knows of them; an agent tests for None once a query."""
    knowing = {
        str(path.relative_to(ROOT))
        for package in ("coordinator", "participant_agent", "wal", "dtp", "xacoord")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^\s*(from|import) \S*failpoint", path.read_text(), re.M)
    }
    assert knowing - COMMANDS == {
        "coordinator/runtime.py",  # chooses the driver, once
        "coordinator/failpoint_driver.py",
        "participant_agent/host.py",  # hands over None, once
        "participant_agent/agent.py",
        "participant_agent/control.py",
    }
    control = (ROOT / "participant_agent/control.py").read_text()
    for call in re.findall(r"^.*self\._failpoints\..*$", control, re.M):
        assert "await self._failpoints.hit(" in call or "map(self._failpoints.wants, places)" in call
    assert control.count("self._failpoints is") == 4


def test_a_followed_file_arms_a_running_process(tmp_path: Path) -> None:
    environ = {"XACOORD_FAILPOINTS": "@points", "XACOORD_FAILPOINT_DIR": str(tmp_path)}
    failpoints = Failpoints.from_environment(environ)
    assert failpoints is not None
    asyncio.run(failpoints.hit("before_scan"))  # no file: nothing is armed
    new = tmp_path / "new"
    new.write_text("before_scan:2=drop\n")
    new.rename(tmp_path / "points")
    assert [failpoints.drops("before_scan") for _ in range(3)] == [False, True, True]
    assert (tmp_path / "before_scan.hit").exists()
    new.write_text("")
    new.rename(tmp_path / "points")
    assert not failpoints.drops("before_scan")


def test_a_malformed_point_is_refused() -> None:
    for text in ("before_scan", "before_scan=stop", "before_scan:x=kill"):
        with pytest.raises(ValueError, match=r"before_scan|invalid literal"):
            Failpoints.from_environment({"XACOORD_FAILPOINTS": text})
