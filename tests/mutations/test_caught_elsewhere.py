"""Defences that the simulation does not need to see: each is switched off on a bench of its own.

Each test plays the same story with the defence and without it.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from participant_agent.core.finish import State
from participant_agent.core.registry import Rollback, Run
from participant_agent.core.work import Statement
from tests import tiers
from tests.mutations import switches
from tests.participant_agent.fake_server import World
from tests.scenarios.test_scenarios import play
from tests.wal.owner import Owner
from tests.wal.simulated_files import SimulatedFiles

SCENARIOS = Path(__file__).parents[1] / "scenarios"


@pytest.mark.parametrize("on", [False, True])
def test_room_reservation(on: bool) -> None:
    """On a disk that is full, every record whose room was promised becomes durable."""
    files = SimulatedFiles()
    owner = Owner(files)
    owner.begin()
    files.capacity = sum(len(inode.cache) for inode in files.cached_names.values())
    payload = b"decision" * 60
    with switches.room_reservation() if on else contextlib.nullcontext():
        promised = 0
        while promised < 100 and owner.log.reserve(owner.log.cost(len(payload))):
            promised += 1
    assert 0 < promised < 100 or on
    for sequence in range(1, promised + 1):
        owner.log.release(owner.log.cost(len(payload)))
        last = owner.append(sequence, payload)
        owner.drain()
        owner.log.tend()
    assert (owner.acknowledged == last) != on
    if on:
        tiers.count("mutations caught")


@pytest.mark.parametrize("on", [False, True])
def test_asking_the_server_to_roll_back(on: bool) -> None:
    """A rollback that the server had acknowledged is back after its crash, and the coordinator asks again."""
    gtrid = "k1test00010000000001"

    async def story() -> set[str]:
        world = World()
        await world.ask(gtrid, Run((Statement("UPDATE a SET v = 1"),), False, (7, 8), 30.0, one_phase=False))
        assert (await world.ask(gtrid, Rollback())).state is State.ROLLED_BACK
        assert world.server.prepared == set()
        world.server.prepared.add(gtrid)
        assert (await world.ask(gtrid, Rollback())).state is State.ROLLED_BACK
        return set(world.server.prepared)

    with switches.asking_the_server_to_roll_back() if on else contextlib.nullcontext():
        left = asyncio.run(story())
    assert bool(left) == on
    if on:
        tiers.count("mutations caught")


@pytest.mark.parametrize(
    ("name", "script", "command", "wrong"),
    [
        # p2 has not been heard yet.
        ("hearing_everyone", "presumption_waits", "up p1", "send p1 1.1 Rollback"),
        # p2 has committed what this log lacks.
        ("hold", "restored_log", "scan p2 1.3@2", "send p1 1.3 Rollback"),
    ],
)
def test_presuming(name: str, script: str, command: str, wrong: str) -> None:
    """What is only presumed is told to a branch, though another participant may know, or knows, better."""
    text = (SCENARIOS / f"{script}.txt").read_text()
    assert play(text) == text
    assert wrong not in _what_follows(command, text)
    with getattr(switches, name)():
        assert wrong in _what_follows(command, play(text))
    tiers.count("mutations caught")


def test_confirming_circles() -> None:
    """Each server has told its half of a circle once; that may have been at different moments."""
    script = "start p1 p2\nup p1 p2\nbegin\nbegin\n" + "".join(
        f"enlist {name} {transaction}\n" for name in ("p1", "p2") for transaction in ("1.1", "1.2")
    )
    script += "waits p1 1.1>1.2\nwaits p2 1.2>1.1\n"
    wrong = "1.2: ACTIVE -> ROLLING_BACK"
    assert wrong not in play(script)
    assert wrong in play(f"{script}waits p1 1.1>1.2\nwaits p2 1.2>1.1\n")
    with switches.confirming_circles():
        assert wrong in play(script)
    tiers.count("mutations caught")


def _what_follows(command: str, text: str) -> str:
    """The trace of the block with this command."""
    (found,) = [block for block in text.split("\n\n") if f"\n{command}\n" in f"\n{block}"]
    return found.partition("----\n")[2]
