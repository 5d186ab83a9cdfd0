"""The registry's memory of ended branches, and rollbacks nobody asked for: neither may decide anything."""

from __future__ import annotations

from typing import Any

import pytest

from dtp import BranchEvent, Vote
from participant_agent.branches import Branches
from participant_agent.core.finish import Finished, SessionUse, State
from participant_agent.core.registry import (
    Answer,
    Commit,
    Ended,
    EndedAs,
    Entry,
    Execute,
    Interrupt,
    Perform,
    Prepare,
    Queued,
    Registry,
    Rollback,
    Run,
    Settled,
)
from participant_agent.core.sessions import Session
from participant_agent.core.work import Voted

GTRID = "k1t00100010000001ekn"


def active() -> tuple[Registry, Entry]:
    """A registry with one ACTIVE branch at rest."""
    registry = Registry()
    action = registry.arrive(GTRID, "t001", 1, Execute(()))
    assert isinstance(action, Perform)
    action.entry.move(BranchEvent.STARTED)
    registry.done(action.entry)
    return registry, action.entry


def test_our_own_rollback_never_follows_a_vote_of_ok() -> None:
    """The deadline passes while XA PREPARE runs, and the answer is OK: only the coordinator decides now."""
    registry, entry = active()
    assert isinstance(registry.arrive(GTRID, "t001", 1, Prepare((1, 2))), Perform)
    registry.arrive(GTRID, "t001", 1, Rollback(own=True))
    entry.move(BranchEvent.ENDED)
    entry.move(BranchEvent.PREPARED)
    assert [type(action) for action in registry.done(entry)] == [Settled]
    assert isinstance(registry.arrive(GTRID, "t001", 1, Rollback(own=True)), Settled)
    assert isinstance(registry.arrive(GTRID, "t001", 1, Rollback()), Perform)


def test_our_own_rollback_never_follows_a_commit() -> None:
    registry, entry = active()
    registry.arrive(GTRID, "t001", 1, Commit(one_phase=True))
    registry.arrive(GTRID, "t001", 1, Rollback(own=True))
    entry.move(BranchEvent.ENDED)
    entry.move(BranchEvent.COMMITTED_ONE_PHASE)
    registry.remember(GTRID, Ended(EndedAs.COMMITTED))
    assert [type(action) for action in registry.done(entry)] == [Settled]
    assert registry.ended[GTRID].how is EndedAs.COMMITTED


def test_our_own_rollback_does_end_what_is_active() -> None:
    registry, _ = active()
    assert isinstance(registry.arrive(GTRID, "t001", 1, Rollback(own=True)), Perform)


@pytest.mark.parametrize("how", EndedAs)
def test_a_rollback_is_never_answered_from_memory(how: EndedAs) -> None:
    """The coordinator repeats it because a scan lists the branch: then the memory is what is wrong."""
    registry = Registry()
    registry.remember(GTRID, Ended(how))
    assert isinstance(registry.arrive(GTRID, "t001", 1, Rollback()), Perform)


def test_what_ended_cannot_come_back_to_life() -> None:
    registry = Registry()
    registry.remember(GTRID, Ended(EndedAs.ROLLED_BACK))
    assert isinstance(registry.arrive(GTRID, "t001", 1, Prepare((1,))), Answer)


def test_what_is_kept_for_a_session_goes_with_it() -> None:
    """A late copy of a rollback, interrupted: the coordinator has its answer, and will not ask again."""
    nothing: Any = None
    branches = Branches(nothing, nothing, nothing, nothing, nothing, nothing)
    action = branches.registry.arrive(GTRID, "t001", 1, Rollback())
    assert isinstance(action, Perform)
    action.entry.unended = Session(7, "lock")
    branches.finish_command(action.entry)
    assert branches.registry.entries
    branches.all_sessions_ended()
    assert not branches.registry.entries


def test_what_is_asked_again_and_again_is_done_once() -> None:
    """A coordinator repeats a rollback that nobody answers, here because the branch's session hangs."""
    registry, entry = active()
    registry.arrive(GTRID, "t001", 1, Execute(()))
    for _ in range(20):
        assert isinstance(registry.arrive(GTRID, "t001", 1, Rollback()), Interrupt)
    assert list(entry.waiting) == [Rollback()]
    [rolling_back] = registry.done(entry)
    assert isinstance(rolling_back, Perform)
    assert isinstance(registry.arrive(GTRID, "t001", 1, Rollback()), Queued)
    assert not entry.waiting


@pytest.mark.parametrize(
    "command", [Prepare((1, 2)), Run((), False, (1, 2), 5.0, False), Run((), False, (1,), 5.0, True)]
)
def test_what_ended_heuristically_is_not_begun_again(command: Prepare | Run) -> None:
    """A late copy of the command that began it. Only the server knows how it ended, so no outcome is told."""
    registry = Registry()
    registry.remember(GTRID, Ended(EndedAs.HEURISTICALLY))
    action = registry.arrive(GTRID, "t001", 1, command)
    assert isinstance(action, Answer)
    assert action.result in (
        Voted(Vote.ROLLBACK, SessionUse.CLOSE, action.result.failure),
        Finished(State.RETRY, SessionUse.CLOSE, action.result.failure),
    )
    for asked in (Commit(), Commit(one_phase=True), Rollback()):
        registry = Registry()
        registry.remember(GTRID, Ended(EndedAs.HEURISTICALLY))
        assert isinstance(registry.arrive(GTRID, "t001", 1, asked), Perform)
