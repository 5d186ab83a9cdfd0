"""The registry: every command in every state of a branch; order, doom and memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtp import BranchEvent, BranchState, Reason, Vote
from participant_agent.core.errors import Failure
from participant_agent.core.finish import Finished, State
from participant_agent.core.registry import (
    Answer,
    Commit,
    Ended,
    EndedAs,
    Execute,
    Interrupt,
    Perform,
    Prepare,
    Queued,
    Refuse,
    Registry,
    Rollback,
    Run,
    Settled,
)
from participant_agent.core.work import Statement, Voted

GTRID = "k1test00010000000001"

RUN = Run((Statement("UPDATE a SET v = 1"),), False, (7,), 5.0, False)
ONE = Run((Statement("UPDATE a SET v = 1"),), False, (7,), 5.0, True)
EXECUTE = Execute((Statement("UPDATE a SET v = 1"),))
COMMANDS = [
    EXECUTE,
    RUN,
    ONE,
    Prepare((7,)),
    Commit(),
    Commit(one_phase=True),
    Rollback(),
    Rollback(own=True),
]


def arrive(registry: Registry, command: Any) -> Any:
    return registry.arrive(GTRID, "test", 1, command)


@given(
    st.sampled_from([None, *BranchState]),
    st.sampled_from([None, *COMMANDS]),
    st.booleans(),
    st.sampled_from([None, *EndedAs]),
    st.sampled_from(COMMANDS),
)
def test_every_command_in_every_state(
    state: Any, running: Any, doomed: bool, ended: Any, command: Any
) -> None:
    registry = Registry()
    if state is None or state is BranchState.NON_EXISTENT:
        if ended is not None:
            registry.remember(GTRID, Ended(ended))
    else:
        entry = arrive(registry, RUN).entry
        entry.state, entry.running = state, running
        entry.doom = Failure(Reason.DEADLOCK, "x") if doomed else None
    before = registry.entries.get(GTRID)
    action = arrive(registry, command)
    if isinstance(command, Execute):
        assert isinstance(action, Perform | Refuse)
    else:
        assert isinstance(action, Perform | Queued | Interrupt | Answer | Settled)
    if isinstance(action, Perform):
        assert action.entry.running is command
        assert before is None or running is None
    if before is not None and running is not None:
        assert not isinstance(action, Perform)
    voted = action.result if isinstance(action, Answer) else None
    if isinstance(voted, Voted) and voted.vote is Vote.OK:
        assert state is BranchState.PREPARED
    if isinstance(voted, Finished) and voted.state is State.COMMITTED:
        assert before is None
        assert ended in (EndedAs.COMMITTED, EndedAs.READ_ONLY)
    if isinstance(voted, Finished) and voted.state is State.ROLLED_BACK:
        assert before is None
        assert ended in (EndedAs.ROLLED_BACK, EndedAs.READ_ONLY)


def test_commands_of_a_branch_keep_their_order() -> None:
    registry = Registry()
    entry = arrive(registry, RUN).entry
    assert isinstance(arrive(registry, Commit()), Queued)
    assert isinstance(arrive(registry, Rollback()), Interrupt)
    entry.state = BranchState.PREPARED
    (first,) = registry.done(entry)
    assert isinstance(first, Perform)
    assert first.command == Commit()
    entry.state = BranchState.NON_EXISTENT
    registry.remember(GTRID, Ended(EndedAs.COMMITTED))
    (second,) = registry.done(entry)
    assert isinstance(second, Perform)
    assert second.command == Rollback()


def test_a_rollback_of_our_own_is_reported_to_nobody() -> None:
    registry = Registry()
    entry = arrive(registry, RUN).entry
    assert isinstance(arrive(registry, Rollback(own=True)), Interrupt)
    registry.remember(GTRID, Ended(EndedAs.ROLLED_BACK))
    assert registry.done(entry) == [Settled()]


def test_a_dropped_branch_starts_nothing_more() -> None:
    registry = Registry()
    entry = arrive(registry, RUN).entry
    registry.drop(entry, Failure(Reason.STALE_EPOCH, "x"))
    entry.waiting.append(Rollback(own=True))
    registry.forget(entry)
    assert registry.done(entry) == []
    assert not registry.entries


def test_memory_is_bounded_and_forgets_what_ended_for_good() -> None:
    registry = Registry()
    for n in range(10):
        registry.remember(f"k1test0001{n:010d}", Ended(EndedAs.COMMITTED))
    registry.remember("k1othr00010000000001", Ended(EndedAs.COMMITTED))
    registry.forget_below("test", "k1test00010000000005")
    assert len(registry.ended) == 6


def test_an_illegal_transition_is_an_error_of_ours() -> None:
    entry = arrive(Registry(), RUN).entry
    with pytest.raises(AssertionError):
        entry.move(BranchEvent.COMMITTED)
