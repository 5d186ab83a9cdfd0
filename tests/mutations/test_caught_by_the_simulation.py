"""The simulation with one defence switched off: it must object, for the right reason, within 300 seeds.

Control: every seed that was tried is run once more with all defences, and must be clean. Otherwise the
simulation would object to anything.
"""

from __future__ import annotations

import contextlib
import functools

import pytest

from tests import tiers
from tests.mutations import switches
from tests.mutations.directed import crowded, only
from tests.simulation import run

SEEDS = 300
_CROWD = "crowd"

# What is switched off -> the rules (tests/simulation/oracle.py) of which one has to be broken.
CAUGHT: dict[str, set[str]] = {
    "flush": {"I7", "I5"},
    "forced_commit": {"I7", "I5"},
    "rewriting_before_acting": {"I7", "I5"},
    "fence": {"I6"},
    "refusing_lower_epochs": {"I6"},
    "waiting_for_the_end_of_a_session": {"I6"},
    "a_new_id_for_each_transaction": {"I2", "I3"},
    "witness_check": {"HEURISTIC"},
    "asking_what_a_lost_answer_was": {"HEURISTIC"},
    "finishing_one_phase_in_doubt": {"I3"},
    "waiting_with_the_purge": {"I3"},
    "idempotency_keys": {"I2"},
    "a_decision_is_final": {"I2"},
    "asking_again": {"LIVENESS"},
}


@pytest.mark.parametrize("name", CAUGHT)
def test_caught(name: str) -> None:
    with getattr(switches, name)():
        seed = first_objection(CAUGHT[name])
    assert_clean(seed)
    tiers.count("mutations caught")


# Those that matter in a rare coincidence -> the rule, and the faults that lead there (directed.only).
DIRECTED: dict[str, tuple[str, tuple[str, ...], str]] = {
    # An agent dies while its server holds XA COMMIT ... ONE PHASE up.
    "kill_before_scan": ("I3", ("server stalled", "agent killed"), "one_phase"),
    # Somebody commits a branch that is to be rolled back, and the client tries again.
    "keeping_the_key_of_a_rollback": ("I2", ("operator commits",), ""),
}


@pytest.mark.parametrize("name", DIRECTED)
def test_caught_by_directed_faults(name: str) -> None:
    rule, faults, stall = DIRECTED[name]
    with getattr(switches, name)(), only(faults, stall):
        seed = first_objection({rule})
    assert_clean(seed, name)
    tiers.count("mutations caught")


CROWDED = ("breaking_circles", "naming_detached_branches")


@pytest.mark.parametrize("name", CROWDED)
def test_caught_in_a_crowd(name: str) -> None:
    with getattr(switches, name)(), crowded():
        seed = first_objection({"DEADLOCK"})
    assert_clean(seed, _CROWD)
    tiers.count("mutations caught")


def first_objection(rules: set[str]) -> int:
    """The first seed of which the oracle says that one of the rules is broken."""
    for seed in range(SEEDS):
        if any(violation.partition(":")[0] in rules for violation in run(seed).violations):
            return seed
    pytest.fail(f"{SEEDS} seeds, and nothing of {sorted(rules)}: the simulation does not see this defence")


def assert_clean(last: int, directed: str = "") -> None:
    """The control."""
    for seed in range(last + 1):
        assert _violations(seed, directed) == (), f"seed {seed}, with all defences"


@functools.cache
def _violations(seed: int, directed: str) -> tuple[str, ...]:
    around: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if directed:
        around = crowded() if directed == _CROWD else only(*DIRECTED[directed][1:])
    with around:
        return tuple(run(seed).violations)
