"""Lost answers, sessions that do not end, fences in between: nothing is guessed. On a server in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dtp import Reason, Vote, XacoordError
from participant_agent.config import AgentSection, Config, MysqlSection
from participant_agent.core import recovery, sessions
from participant_agent.core.effects import Ok, Verb
from participant_agent.core.errors import Failure
from participant_agent.core.finish import State
from participant_agent.core.recovery import Fenced
from participant_agent.core.registry import Commit, Execute, Perform, Prepare, Rollback, Run
from participant_agent.core.work import Statement
from participant_agent.fences import Fences
from participant_agent.link import Link
from participant_agent.v1 import participant_agent_pb2 as pb
from tests.participant_agent.agent_support import history
from tests.participant_agent.fake_server import World

GTRID = "k1test00010000000001"
UPDATE = (Statement("UPDATE a SET v = 1"),)
RUN = Run(UPDATE, False, (7, 8), 30.0, one_phase=False)
ONE = Run(UPDATE, False, (7,), 30.0, one_phase=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that does not end is given up after a few looks."""
    monkeypatch.setattr(sessions, "_WAITS", 3)


async def settle() -> None:
    await asyncio.sleep(0.2)


def test_a_prepare_without_answer_is_ended_before_anything_is_said() -> None:
    """The server prepares it late; until its session has ended, nobody may say that it is rolled back."""

    async def play() -> None:
        world = World()
        world.server.hang.add(Verb.PREPARE)
        world.server.immune = True
        voted = await world.ask(GTRID, RUN)
        assert (voted.vote, voted.failure.reason) == (Vote.ROLLBACK, Reason.BRANCH_LOST)
        assert (await world.ask(GTRID, Rollback())).state is State.RETRY
        assert world.branches.registry.entries
        world.server.go_on()
        assert world.server.prepared == {GTRID}
        for _ in range(300):
            finished = await world.ask(GTRID, Rollback())
            if finished.state is not State.RETRY:
                break
            await asyncio.sleep(0.01)
        assert finished.state is State.ROLLED_BACK
        await settle()
        assert (world.server.prepared, world.server.committed) == (set(), set())
        assert not world.branches.registry.entries

    asyncio.run(play())


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_one_phase_commit_without_answer_is_not_guessed(goes_on: bool) -> None:
    async def play() -> None:
        world = World()
        world.server.hang.add(Verb.COMMIT_ONE_PHASE)
        world.server.immune = True
        assert (await world.ask(GTRID, ONE)).state is State.RETRY
        # Nothing is listed and no witness row is to be seen, and yet it may commit.
        assert (await world.ask(GTRID, Commit(one_phase=True))).state is State.RETRY
        assert (await world.ask(GTRID, Rollback())).state is State.RETRY
        if goes_on:
            world.server.go_on()
        world.server.immune = False
        finished = await world.ask(GTRID, Commit(one_phase=True))
        assert finished.state is (State.COMMITTED if goes_on else State.ROLLED_BACK)
        assert (GTRID in world.server.committed) is goes_on
        assert not world.branches.registry.entries

    asyncio.run(play())


@pytest.mark.parametrize("command", [Commit(), Rollback()])
def test_phase_two_without_answer_on_a_branch_of_a_former_agent(command: Any) -> None:
    """The branch is unknown to this process: the session that works on it must be remembered all the same."""

    async def play() -> None:
        world = World()
        world.server.prepared.add(GTRID)
        verb = Verb.COMMIT if isinstance(command, Commit) else Verb.ROLLBACK
        world.server.hang.add(verb)
        world.server.immune = True
        assert (await world.ask(GTRID, command)).state is State.RETRY
        world.server.prepared.clear()  # the server is in the middle of it: not listed, no row to be seen
        assert (await world.ask(GTRID, command)).state is State.RETRY
        world.server.prepared.add(GTRID)
        world.server.go_on()
        ended = State.COMMITTED if isinstance(command, Commit) else State.ROLLED_BACK
        assert (await world.ask(GTRID, command)).state is ended

    asyncio.run(play())


def test_a_fenced_epoch_does_nothing_more_and_tells_nobody() -> None:
    """Its commit waits for a session, its own rollback for the server."""

    async def play() -> None:
        world = World()
        waiting, undecided = GTRID, "k1test00010000000002"
        world.server.prepared.add(waiting)
        world.finishers.free.clear()
        world.branches.command(waiting, "test", 1, Commit())
        world.server.hang.add(Verb.PREPARE)
        assert (await world.ask(undecided, RUN)).vote is Vote.ROLLBACK
        await settle()
        reports, log = len(world.reports), list(world.server.log)
        assert await world.branches.drop_lower_epochs("test", 2) == 0
        world.finishers.free.set()
        await settle()
        assert (len(world.reports), world.server.log) == (reports, log)
        assert not world.branches.registry.entries
        assert world.server.prepared == {waiting}

    asyncio.run(play())


def test_a_fence_waits_for_sessions_that_were_given_up() -> None:
    async def play() -> None:
        world = World()
        world.server.hang.add(Verb.COMMIT_ONE_PHASE)
        world.server.immune = True
        assert (await world.ask(GTRID, ONE)).state is State.RETRY
        with pytest.raises(XacoordError) as refused:
            await world.branches.drop_lower_epochs("test", 2)
        assert refused.value.reason is Reason.SERVER_UNAVAILABLE
        world.server.go_on()
        await world.branches.drop_lower_epochs("test", 2)
        assert not world.branches.registry.entries

    asyncio.run(play())


def test_commands_that_wait_are_answered_when_the_control_connection_is_lost() -> None:
    """A commit meets a server that is away and says so; a prepared branch is finished when it is back."""

    async def play() -> None:
        world = World()
        assert (await world.ask(GTRID, RUN)).vote is Vote.OK
        world.server.hang.add(Verb.COMMIT)
        world.server.away = True
        assert (await world.ask(GTRID, Commit())).state is State.RETRY
        assert (await world.ask(GTRID, Commit())).state is State.RETRY
        world.branches.control_lost()
        world.server.away = False
        assert (await world.ask(GTRID, Commit())).state is State.COMMITTED

    asyncio.run(play())


def test_an_active_branch_is_rolled_back_when_the_server_is_back() -> None:
    async def play() -> None:
        world = World()
        entry = await _active(world)
        world.server.away = True
        world.branches.control_lost()
        await settle()
        assert (await world.ask(GTRID, Prepare((7,)))).vote is Vote.ROLLBACK
        world.server.away = False
        for _ in range(300):
            if not world.branches.registry.entries:
                break
            await asyncio.sleep(0.01)
        assert not world.branches.registry.entries
        assert entry.unended is None
        # Nobody had asked for that rollback, and nobody is told.
        assert [type(result).__name__ for _, result in world.reports] == ["Voted"]

    asyncio.run(play())


async def _active(world: World) -> Any:
    execute = Execute(UPDATE)
    action = world.branches.registry.arrive(GTRID, "test", 1, execute)
    assert isinstance(action, Perform)
    assert (await world.branches.statements(action.entry, execute)).failure is None
    world.branches.finish_command(action.entry)
    return action.entry


@pytest.mark.parametrize("command", [Prepare((7,)), Commit(one_phase=True)])
def test_a_doomed_branch_is_rolled_back_by_the_command_that_finds_it(command: Any) -> None:
    async def play() -> None:
        world = World()
        entry = await _active(world)
        entry.doom = Failure(Reason.DEADLINE_PASSED, "too late")
        result = await world.ask(GTRID, command)
        assert result.failure.reason is Reason.DEADLINE_PASSED
        await settle()
        assert not world.branches.registry.entries
        assert world.server.log == [(Verb.ROLLBACK, GTRID)]

    asyncio.run(play())


def test_a_fence_does_not_undo_what_a_purge_has_told() -> None:
    """The fence's row is read before the purge's bound is stored, and comes back after it."""

    async def play() -> None:
        config = Config(AgentSection("p"), MysqlSection("u"))
        fences = Fences(config, None)  # type: ignore[arg-type]

        async def read_back(wanted: Fenced, history: dict[int, int], takeover: object) -> Fenced:
            if "k1" in purged:
                fences.purged("test", purged)
            return wanted

        fences._write = read_back  # type: ignore[method-assign]
        purged = ""
        request = pb.FenceRequest(
            coordinator_id="test", epoch=1, log_identity=b"i" * 16, participant="p", history=history(1)
        )
        await fences.raise_to(request)
        purged = "k1test00010000000009"
        await fences.raise_to(request)
        assert fences.evidence("test").purged_to == purged

    asyncio.run(play())


def test_a_link_that_is_closed_takes_no_enlistment() -> None:
    async def play() -> None:
        link = Link("test", 1)
        link.close(XacoordError(Reason.STALE_EPOCH, "x"))
        with pytest.raises(XacoordError) as closed:
            await asyncio.wait_for(link.enlist(GTRID), 1)
        assert closed.value.reason is Reason.COORDINATOR_UNAVAILABLE

    asyncio.run(play())


def test_the_row_that_is_read_back_decides() -> None:
    """A fence whose write did nothing is never answered as if it had."""
    wanted = Fenced("test", 7, 5, b"i" * 16, 50)
    procedure = recovery.fence("x", "p", wanted, {4: 40, 5: 50})
    next(procedure)
    procedure.send(Ok())
    procedure.send(Ok())
    with pytest.raises(XacoordError) as error:
        procedure.send(Ok((("test", 7, 4, (b"i" * 16).hex(), 40, ""),), 1))
    assert error.value.reason is Reason.SERVER_UNAVAILABLE
