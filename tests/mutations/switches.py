"""Switches that turn one defence off each, from outside: nothing in the product knows of them.

Each says what it removes and what has to go wrong then. They patch by name and signature (`autospec`), so a
defence that was renamed or moved makes its test fail instead of leaving it with nothing switched off.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from coordinator.core import two_phase, waits
from coordinator.core.context import Context
from coordinator.core.coordinator import Coordinator
from coordinator.core.memory import Memory
from coordinator.core.participants import Participants
from coordinator.core.states import TRANSITIONS, State, Trigger
from coordinator.journal import LogJournal
from dtp import Gtrid
from participant_agent import branches
from participant_agent.branches import Branches
from participant_agent.core import finish, registry, resolve, sessions, work
from participant_agent.core import waits as agent_waits
from participant_agent.core.effects import Lost
from participant_agent.core.finish import Finished, SessionUse
from participant_agent.core.registry import Answer, EndedAs, Rollback
from participant_agent.core.resolve import Evidence
from participant_agent.core.sessions import TakenOver, TakeOver
from participant_agent.fences import Fences
from wal import start
from wal.room import Room
from wal.segment import publish
from wal.writer import Writer

# -- the log


@contextlib.contextmanager
def flush() -> Iterator[None]:
    """Records count as durable when they are written. Decisions that were acted on go with the power."""

    def pretend(self: Writer) -> None:
        """Nothing reaches the disk."""

    with patch.object(Writer, "_flush", autospec=True, side_effect=pretend):
        yield


@contextlib.contextmanager
def forced_commit() -> Iterator[None]:
    """A forced record counts as durable at once. Branches are told to commit what the disk does not know."""
    append = LogJournal.append

    def hasty(self: LogJournal, record: Any, number: int | None, *, kick: bool) -> None:
        append(self, record, None, kick=kick)
        if number is not None:
            asyncio.get_running_loop().call_soon(self.on_durable, number)

    with patch.object(LogJournal, "append", autospec=True, side_effect=hasty):
        yield


class _Unflushed:
    """Files whose flushes do nothing."""

    def __init__(self, files: Any) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def fdatasync(self, fd: int) -> None:
        """Nothing."""

    def sync_directory(self, directory: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def rewriting_before_acting() -> Iterator[None]:
    """R3: a start does not make durable what it has read. A decision that was only in the page cache is told
    to branches, and is gone after a power cut."""

    def lazily(files: Any, *arguments: Any) -> Any:
        return publish(_Unflushed(files), *arguments)

    with patch.object(start, "publish", autospec=True, side_effect=lazily):
        yield


@contextlib.contextmanager
def room_reservation() -> Iterator[None]:
    """Room for decisions is promised without looking. On a full disk a decision finds none."""

    def always(self: Room, size: int) -> bool:
        self.reserved += size
        return True

    with patch.object(Room, "reserve", autospec=True, side_effect=always):
        yield


# -- ids, fences and sessions


@contextlib.contextmanager
def fence() -> Iterator[None]:
    """A fence raises the epoch and ends nothing. What an older epoch began goes on beside the new one."""

    async def leave(self: Branches, coordinator_id: str, epoch: int) -> int:
        return 0

    with patch.object(Branches, "drop_lower_epochs", autospec=True, side_effect=leave):
        yield


@contextlib.contextmanager
def kill_before_scan() -> Iterator[None]:
    """An agent takes over and lets the sessions of the one before it go on. They commit after the answer."""

    def serve(participant: str) -> Any:
        return TakenOver(TakeOver.DONE)
        yield

    with patch.object(sessions, "_end_former_sessions", autospec=True, side_effect=serve):
        yield


@contextlib.contextmanager
def waiting_for_the_end_of_a_session() -> Iterator[None]:
    """A session counts as ended when its connection is closed. What it was asked for still happens, after the
    server was asked what became of it."""

    def believe(session: sessions.Session) -> Any:
        return True
        yield

    with contextlib.ExitStack() as stack:
        for module in (branches, finish, work):
            stack.enter_context(patch.object(module, "end_session", autospec=True, side_effect=believe))
        yield


@contextlib.contextmanager
def a_new_id_for_each_transaction() -> Iterator[None]:
    """Ids depend on the counter alone, so that they come again after a restart. Two transactions are one."""

    def make(coordinator_id: str, epoch: int, counter: int, random_bits: int) -> Gtrid:
        return Gtrid(coordinator_id, 1, counter)

    with patch.object(Gtrid, "make", autospec=True, side_effect=make):
        yield


# -- evidence


@contextlib.contextmanager
def witness_check() -> Iterator[None]:
    """Nobody looks for the witness row. A branch that has committed already looks like one rolled back."""

    def blind(evidence: Evidence, xid: Any) -> Any:
        return False
        yield

    with patch.object(resolve, "has_witness", autospec=True, side_effect=blind):
        yield


@contextlib.contextmanager
def waiting_with_the_purge() -> Iterator[None]:
    """Witness rows go while their transactions are still open. Nothing proves any more how a branch ended."""

    def next_id(self: Coordinator) -> str:
        context = self._context
        return str(Gtrid.make(context.settings.coordinator_id, context.epoch, context.counter + 1, 0))

    assert isinstance(Coordinator.purge_mark, property)
    with patch.object(Coordinator, "purge_mark", property(next_id)):
        yield


@contextlib.contextmanager
def asking_the_server_to_roll_back() -> Iterator[None]:
    """An agent answers a rollback from memory. One that MariaDB lost in a crash keeps its locks for ever."""
    answer_ended = registry._answer_ended

    def from_memory(ended: registry.Ended, command: registry.Command) -> Any:
        if isinstance(command, Rollback) and ended.how is EndedAs.ROLLED_BACK:
            return Answer(Finished(finish.State.ROLLED_BACK, SessionUse.CLOSE))
        return answer_ended(ended, command)

    with patch.object(registry, "_answer_ended", autospec=True, side_effect=from_memory):
        yield


@contextlib.contextmanager
def asking_what_a_lost_answer_was() -> Iterator[None]:
    """No answer to XA COMMIT is taken for "it did not commit", and nobody looks. It had committed."""
    prove = finish._prove_commit

    def guess(branch: finish.Branch, answer: Any) -> Any:
        if isinstance(answer, Lost):
            return Finished(finish.State.HEURISTIC_ROLLBACK, SessionUse.CLOSE)
        return (yield from prove(branch, answer))

    with patch.object(finish, "_prove_commit", autospec=True, side_effect=guess):
        yield


@contextlib.contextmanager
def finishing_one_phase_in_doubt() -> Iterator[None]:
    """A one-phase commit without an answer counts as rolled back. Its client does it a second time."""

    def guess(branch: finish.Branch, answer: Any) -> Any:
        return Finished(finish.State.ROLLED_BACK, SessionUse.CLOSE)
        yield

    with patch.object(finish, "_resolve_one_phase", autospec=True, side_effect=guess):
        yield


# -- the core


@contextlib.contextmanager
def hearing_everyone() -> Iterator[None]:
    """What is only presumed is told at once, though a participant that has not been heard may know better."""

    def always(self: Context, transaction: Any) -> bool:
        return True

    with patch.object(Context, "may_tell", autospec=True, side_effect=always):
        yield


@contextlib.contextmanager
def hold() -> Iterator[None]:
    """A lost log is not noticed. What it had decided is presumed aborted."""

    def never(self: Participants, gtrid: str) -> bool:
        return False

    with patch.object(Participants, "_is_missing", autospec=True, side_effect=never):
        yield


@contextlib.contextmanager
def idempotency_keys() -> Iterator[None]:
    """Keys of what has committed are forgotten. A request that is repeated is done twice."""

    def forget(self: Memory, *arguments: Any, **options: Any) -> None:
        """Nothing is remembered."""

    with patch.object(Memory, "remember_key", autospec=True, side_effect=forget):
        yield


@contextlib.contextmanager
def keeping_the_key_of_a_rollback() -> Iterator[None]:
    """A rollback frees its key before its branches have ended. What a person has committed is done twice."""
    reject = two_phase.TwoPhase.reject

    def freely(self: two_phase.TwoPhase, transaction: Any, *arguments: Any, **options: Any) -> bool:
        done = reject(self, transaction, *arguments, **options)
        if done:
            self.free_key(transaction)
        return done

    with patch.object(two_phase.TwoPhase, "reject", autospec=True, side_effect=freely):
        yield


@contextlib.contextmanager
def a_decision_is_final() -> Iterator[None]:
    """The deadline counts after the decision, too. Some branches commit and others are rolled back."""
    assert Trigger.REJECTED not in TRANSITIONS[State.COMMITTING]
    with patch.dict(TRANSITIONS[State.COMMITTING], {Trigger.REJECTED: State.ROLLING_BACK}):
        yield


@contextlib.contextmanager
def asking_again() -> Iterator[None]:
    """Phase 2 is asked once. A branch whose answer was lost keeps its locks for ever."""

    def never(self: two_phase.TwoPhase, gtrid: str, participant: str) -> bool:
        """Once was enough."""
        return False

    with patch.object(two_phase.TwoPhase, "ask_again", autospec=True, side_effect=never):
        yield


@contextlib.contextmanager
def refusing_lower_epochs() -> Iterator[None]:
    """An agent serves any epoch. A coordinator that was thought dead goes on beside its successor."""
    of = Fences.of

    def any_epoch(self: Fences, coordinator_id: str, epoch: int) -> Any:
        return of(self, coordinator_id, self[coordinator_id].epoch)

    with patch.object(Fences, "of", autospec=True, side_effect=any_epoch):
        yield


# -- deadlocks


@contextlib.contextmanager
def breaking_circles() -> Iterator[None]:
    """Nobody looks for circles. Transactions wait for each other until a lock wait ends."""

    def never(self: waits.Waits, now: float) -> None:
        """Let them wait."""

    with patch.object(waits.Waits, "_break_circles", autospec=True, side_effect=never):
        yield


@contextlib.contextmanager
def confirming_circles() -> Iterator[None]:
    """Edges that were told at different moments make a circle. Somebody is rolled back for nothing."""

    def at_once(self: waits.Waits, edges: Any) -> set[str]:
        return next(iter(waits._components(edges)), set())

    with patch.object(waits.Waits, "_confirmed", autospec=True, side_effect=at_once):
        yield


@contextlib.contextmanager
def naming_detached_branches() -> Iterator[None]:
    """What is prepared and has no session any more has no name. Circles through it are not seen."""

    def nameless(engine: Any, table: Any, unnamed: Any, detached: Any) -> Any:
        return ""
        yield

    with patch.object(agent_waits, "_name", autospec=True, side_effect=nameless):
        yield
