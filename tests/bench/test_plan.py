"""The plan: sides, their order, and what it needs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from coordinator.ctl import bench
from deploy.bench import plan
from deploy.bench.bed import agent_config, connections_of, coordinator_config
from deploy.bench.crew import shares
from deploy.bench.plan import RETENTION_SECONDS, Case, Plan, Side, Variant
from deploy.bench.servers import Target

BOTH = plan.all_variants((plan.PROCESSES, plan.IN_PROCESS), (True,), (1,))


def make(**changes: object) -> Plan:
    values = {"cases": (Case(2, 8),), "sides": plan.all_sides(plan.KINDS, BOTH), "rounds": 4, "seconds": 1.0}
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


def test_rounds_go_forwards_and_backwards() -> None:
    sides = plan.all_sides(plan.KINDS, (Variant(),))
    names = [[side.kind for side in order] for order in make(sides=sides, rounds=3).order()]
    forwards = ["raw", "raw-fast", "one-shot", "interactive"]
    assert names == [forwards, forwards[::-1], forwards]


def test_each_side_comes_once_a_round_and_has_a_name_of_its_own() -> None:
    variants = plan.all_variants((plan.PROCESSES, plan.IN_PROCESS), (True, False), (1, 2))
    sides = plan.all_sides(plan.KINDS, variants)
    assert len(variants) == 8
    assert len(sides) == 2 + 2 * 8
    assert len({side.label for side in sides}) == len(sides)
    for order in make(sides=sides).order():
        assert sorted(side.label for side in order) == sorted(side.label for side in sides)
    assert make(sides=sides).variants == variants


def test_sides_keep_their_order_whatever_order_is_asked_for() -> None:
    sides = plan.all_sides(("interactive", "raw"), BOTH)
    assert sides == (Side("raw"), Side("interactive", BOTH[0]), Side("interactive", BOTH[1]))
    assert [side.label for side in sides] == ["raw", "interactive", "interactive, in-process"]


def test_the_standard_cases_are_those_of_the_goals() -> None:
    cases = plan.standard_cases()
    assert [case.clients for case in cases if case.branches == 2 and not case.read_only] == [1, 8, 32, 128]
    assert Case(1, 32) in cases
    assert Case(4, 32) in cases
    assert Case(2, 32, read_only=True) in cases
    assert len(set(cases)) == len(cases) == 7


def test_all_cases_are_every_combination() -> None:
    cases = plan.all_cases((1, 2), (3, 4), read_only=True)
    assert cases == (Case(1, 3, True), Case(1, 4, True), Case(2, 3, True), Case(2, 4, True))


def test_titles_are_for_people() -> None:
    assert Case(1, 1).title == "1 branch writing, 1 client"
    assert Case(2, 32, read_only=True).title == "2 branches reading, 32 clients"


def test_the_estimate_grows_with_every_slot() -> None:
    once = make(rounds=1).estimate_seconds()
    twice = make(rounds=2).estimate_seconds()
    assert twice - once == pytest.approx(6 * (1.0 + Case(2, 8).warm_up_seconds))
    assert make(cases=(Case(2, 8), Case(4, 128))).estimate_seconds() > make().estimate_seconds()


def test_a_plan_says_what_it_needs() -> None:
    wide = make(cases=(Case(2, 8), Case(4, 128)))
    assert (wide.branches, wide.clients) == (4, 128)
    # Two raw sides, and two variants with as many sessions.
    assert connections_of(wide) > 4 * 128


@pytest.mark.parametrize(
    ("clients", "processes", "expected"),
    [(1, 2, [1]), (2, 2, [1, 1]), (128, 2, [64, 64]), (8, 3, [3, 3, 2]), (2, 8, [1, 1])],
)
def test_clients_are_shared_out_equally(clients: int, processes: int, expected: list[int]) -> None:
    assert shares(clients, processes) == expected


def test_the_command_offers_the_sides_and_settings_that_there_are() -> None:
    """The command line names them itself, because it must not import the benchmark for its help."""
    assert bench.KINDS == plan.KINDS
    offered = {hosting for choice in bench.AGENTS.values() for hosting in choice}
    assert offered == {plan.PROCESSES, plan.IN_PROCESS}


def test_configurations_are_read_as_they_are_meant() -> None:

    target = Target("a", "o'brien", 'quo"te\\', socket="/run/x.sock")
    agent = tomllib.loads(agent_config("bench-z-a", "127.0.0.1:1", target, Variant(witness=False), 128))
    assert agent["mysql"]["password"] == 'quo"te\\'
    assert agent["mysql"]["unix_socket"] == "/run/x.sock"
    assert agent["mysql"]["schema"] == agent["mysql"]["database"] == target.database
    assert agent["sessions"] == {"max": 128, "warm": 128}
    assert agent["witness"] == {"enabled": False}
    there = tomllib.loads(
        agent_config("p", "127.0.0.1:1", Target("b", "u", host="::1", port=7), Variant(), 1)
    )
    assert (there["mysql"]["host"], there["mysql"]["port"]) == ("::1", 7)
    assert there["witness"] == {"enabled": True}

    agents = {"bench-z-a": ("127.0.0.1:1", Path("/x/agent.toml"))}
    for hosted, expected in ((True, {"agent_config": "/x/agent.toml"}), (False, {"agent": "127.0.0.1:1"})):
        text = coordinator_config("z001", Path("/x/log"), "127.0.0.1:2", agents, Variant(), hosted)
        coordinator = tomllib.loads(text)
        assert coordinator["coordinator"]["id"] == "z001"
        assert coordinator["participants"] == {"bench-z-a": expected}
        assert coordinator["transactions"] == {"witness_retention": RETENTION_SECONDS}
    as_it_comes = coordinator_config("z", Path("/x"), "127.0.0.1:2", {}, Variant(retention_seconds=0), False)
    assert tomllib.loads(as_it_comes)["transactions"] == {}
