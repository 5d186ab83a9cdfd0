"""Branches: performs what the registry says, one task a command.

A command arrives, the registry says perform, queue, interrupt or answer; performing means: get a session,
drive a procedure of core/, settle session and state by its result, report. Nothing is decided here.

Crash windows: before the report of a vote OK is sent the branch is prepared durably; if we die in between,
the coordinator hears nothing and rolls back. A vote whose branch is in doubt is reported at once, and the
branch is rolled back by our own `Rollback` for as long as it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from dtp import BranchEvent, BranchState, Reason, Vote, XacoordError
from participant_agent.control import Control
from participant_agent.core import batch, finish, work
from participant_agent.core.errors import Failure
from participant_agent.core.finish import Finished, Names, SessionUse, State
from participant_agent.core.registry import (
    Action,
    Answer,
    Command,
    Commit,
    Ended,
    EndedAs,
    Entry,
    Execute,
    Interrupt,
    Perform,
    Prepare,
    Registry,
    Rollback,
    Run,
)
from participant_agent.core.sessions import end_session
from participant_agent.core.work import Fate, Voted, Work, Worked
from participant_agent.pool import Pool
from participant_agent.recovered import Recovered, takes
from participant_agent.session import Session

_E = BranchEvent
_ROLLBACK_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
_LOST = Failure(Reason.BRANCH_LOST, "the agent lost the branch's session")
_NOT_ENDED = Failure(Reason.PARTICIPANT_UNAVAILABLE, "a former session of the branch has not ended yet")
_FENCED = Failure(Reason.STALE_EPOCH, "a newer epoch of the coordinator began")
_DEADLINE = Failure(Reason.DEADLINE_PASSED, "the transaction's deadline passed")

ReportTo = Callable[[str, str, Voted | Finished], None]


class Branches:
    """The branches of one agent.

    Args:
        control: the control connection.
        workers: sessions for work.
        finishers: sessions for commit and rollback of branches that have none; apart, so that finishing never
            waits for sessions that wait for locks of what is to be finished.
        names: (gtrid, coordinator id) -> the branch's names.
        report: (coordinator id, gtrid, result): tells the coordinator.
        log: structlog's.
    """

    def __init__(
        self, control: Control, workers: Pool, finishers: Pool, names: Names, report: ReportTo, log: Any
    ) -> None:
        self._control = control
        self._workers = workers
        self._finishers = finishers
        self._names = names
        self._report = report
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._recovered = Recovered(control, finishers, self.spawn)
        self.registry = Registry()
        self.begun = asyncio.Event()  # a command has begun since somebody cleared it

    # -- arrival
    # ----------------------------------------------------------------------------------------------------

    def command(self, gtrid: str, coordinator_id: str, epoch: int, command: Command) -> None:
        """A command of the coordinator arrived. Does not wait for it."""
        self._act(gtrid, coordinator_id, self.registry.arrive(gtrid, coordinator_id, epoch, command))

    def _act(self, gtrid: str, coordinator_id: str, action: Action) -> None:
        if isinstance(action, Perform):
            self.begun.set()
            self.spawn(self._perform(action.entry, action.command))
        elif isinstance(action, Answer):
            self._report(coordinator_id, gtrid, action.result)
        elif isinstance(action, Interrupt):
            if action.answer is not None:
                self._report(coordinator_id, gtrid, action.answer)
            self.spawn(self.kill(action.entry))

    def spawn(self, coroutine: Any) -> asyncio.Task[None]:
        """Run in the background; the task is kept alive, and an error of ours is logged."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.error("a task failed", exc_info=task.exception())

    async def kill(self, entry: Entry) -> bool:
        """End the session of a branch; what runs on it answers `Lost`."""
        session = entry.session
        if not isinstance(session, Session):
            return True
        session.condemned = True
        return await self._control.drive(end_session(session.known_as))

    # -- performing
    # -------------------------------------------------------------------------------------------------

    async def _perform(self, entry: Entry, command: Command) -> None:
        result: Voted | Finished | None = None
        try:
            if isinstance(command, Run):
                result = await self._run(entry, command)
            elif isinstance(command, Prepare):
                result = await self._prepare(entry, command)
            elif isinstance(command, Commit):
                result = await self._commit(entry, command)
            elif isinstance(command, Rollback):
                result = await self._rollback(entry, command)
        except Exception:
            result = self._after_bug(entry, command)
            raise
        finally:
            try:
                unasked = isinstance(command, Rollback) and command.own
                if result is not None and not unasked and not entry.dropped:
                    self._report(entry.coordinator_id, entry.gtrid, result)
            finally:
                self.finish_command(entry)

    def _after_bug(self, entry: Entry, command: Command) -> Voted | Finished:
        """An error of ours: nothing is known, so the session goes; what was not prepared is rolled back."""
        why = Failure(Reason.INTERNAL, "internal error of the agent; see its log")
        self._give_up_session(entry)
        self._settle_session(entry, SessionUse.CLOSE)
        if entry.state in (BranchState.ACTIVE, BranchState.IDLE):
            self.roll_back_later(entry, why)
        if isinstance(command, Prepare) or (isinstance(command, Run) and not command.one_phase):
            return Voted(Vote.ROLLBACK, SessionUse.CLOSE, why, in_doubt=True)
        return Finished(State.RETRY, SessionUse.CLOSE, why)

    def finish_command(self, entry: Entry) -> None:
        """The running command of `entry` is over; go on with those that waited."""
        for action in self.registry.done(entry):
            self._act(entry.gtrid, entry.coordinator_id, action)

    async def begin(self, entry: Entry, read_only: bool) -> Session:
        """Get a session for a new branch. Raises XacoordError; the entry is then remembered as rolled
        back."""
        try:
            session = await self._workers.acquire()
        except XacoordError as error:
            self._remember(entry, EndedAs.ROLLED_BACK, Failure(error.reason, error.message))
            raise
        if entry.doom is not None or self.registry.entries.get(entry.gtrid) is not entry:
            self._workers.release(session)
            why = entry.doom or _LOST
            self._remember(entry, EndedAs.ROLLED_BACK, why)
            raise XacoordError(why.reason, why.message, gtrid=entry.gtrid)
        entry.session = session
        branch = self._names(entry.gtrid, entry.coordinator_id)
        entry.work = Work(branch, session.known_as, read_only)
        return session

    async def _run(self, entry: Entry, run: Run) -> Voted | Finished:
        try:
            session = await self.begin(entry, run.read_only)
        except XacoordError as error:
            why = Failure(error.reason, error.message)
            if run.one_phase:
                return Finished(State.ROLLED_BACK, SessionUse.CLOSE, why)
            return Voted(Vote.ROLLBACK, SessionUse.CLOSE, why)
        assert entry.work is not None
        entry.move(_E.STARTED)
        late = asyncio.get_running_loop().call_later(run.remaining_seconds, self._too_late, entry)
        try:
            result = await self._control.drive(
                batch.run(entry.work, run.statements, run.participants, run.one_phase), session
            )
        finally:
            late.cancel()
        if isinstance(result, Finished):
            return self._settle_one_phase(entry, result)
        return self._settle_vote(entry, result)

    def _too_late(self, entry: Entry) -> None:
        entry.doom = entry.doom or _DEADLINE
        self.spawn(self.kill(entry))

    async def _prepare(self, entry: Entry, prepare: Prepare) -> Voted:
        session = entry.session
        if entry.doom is not None or entry.work is None or not isinstance(session, Session):
            worked = await self.give_up(entry, Worked(Fate.LOST, (), _LOST))
            return Voted(Vote.ROLLBACK, SessionUse.CLOSE, worked.failure)
        session.begin_call()
        voted = await self._control.drive(batch.prepare(entry.work, prepare.participants), session)
        return self._settle_vote(entry, voted)

    def _settle_vote(self, entry: Entry, voted: Voted) -> Voted:
        """Session and state after phase 1."""
        if voted.in_doubt:
            self._give_up_session(entry)
        self._settle_session(entry, voted.use)
        entry.deadline = None
        if entry.doom is not None and voted.vote is Vote.ROLLBACK:
            voted = Voted(voted.vote, voted.use, entry.doom, (), voted.in_doubt)
        if voted.vote is Vote.ROLLBACK:
            failure = voted.failure or _LOST
            if voted.in_doubt:
                self.roll_back_later(entry, failure)
            else:
                entry.move(_E.ROLLED_BACK)
                self._remember(entry, EndedAs.ROLLED_BACK, failure)
            return voted
        entry.move(_E.ENDED)
        if voted.vote is Vote.READ_ONLY:
            entry.move(_E.VOTED_READ_ONLY)
            self._remember(entry, EndedAs.READ_ONLY, None)
        else:
            entry.move(_E.PREPARED)
        return voted

    def roll_back_later(self, entry: Entry, failure: Failure) -> None:
        """The branch is not known to be rolled back: our own rollback goes before all that waits."""
        entry.doom = entry.doom or failure
        if entry.state is not BranchState.ROLLBACK_ONLY:
            entry.move(_E.DOOMED)
        entry.waiting.appendleft(Rollback(own=True))

    async def _commit(self, entry: Entry, commit: Commit) -> Finished:
        if entry.state is BranchState.ACTIVE:
            return await self._commit_active(entry)
        branch = entry.work.branch if entry.work else self._names(entry.gtrid, entry.coordinator_id)
        in_doubt = commit.one_phase and entry.state is not BranchState.PREPARED
        if not in_doubt and takes(entry, branch) and await self._recovered.commit(entry, branch.xid):
            return self._settle_end(entry, Finished(State.COMMITTED, SessionUse.FREE), owned=False)
        if not await self._unended_is_gone(entry):
            return Finished(State.RETRY, SessionUse.CLOSE, _NOT_ENDED)
        try:
            session, owned = await self._finisher(entry)
        except XacoordError as error:
            return Finished(State.RETRY, SessionUse.CLOSE, Failure(error.reason, error.message))
        procedure = finish.commit_in_doubt if in_doubt else finish.commit
        result = await self._control.drive(procedure(branch, session.known_as), session)
        return self._settle_end(entry, result, owned)

    async def _commit_active(self, entry: Entry) -> Finished:
        session = entry.session
        if entry.doom is None and entry.work is not None and isinstance(session, Session):
            number = entry.work.branch.xid.number or 0
            result = await self._control.drive(work.end_and_commit(entry.work, (number,)), session)
            return self._settle_one_phase(entry, result)
        entry.doom = entry.doom or _LOST
        result = await self._rollback_once(entry)
        done = result.state is State.ROLLED_BACK
        return Finished(result.state, result.use, entry.doom) if done else result

    def _give_up_session(self, entry: Entry) -> None:
        """The branch's session is to be closed, and may go on with what it was asked for all the same."""
        if isinstance(entry.session, Session):
            entry.unended = entry.session.known_as

    async def _unended_is_gone(self, entry: Entry) -> bool:
        """End the session that was given up before: until then the server's answers prove nothing."""
        if entry.unended is not None:
            if not await self._control.drive(end_session(entry.unended)):
                return False
            entry.unended = None
        return True

    def all_sessions_ended(self) -> None:
        """The participant was taken over (core/sessions.py): no session of before is left."""
        for entry in list(self.registry.entries.values()):
            entry.unended = None
            if entry.running is None and entry.state is BranchState.NON_EXISTENT:
                self.registry.forget(entry)  # it was kept for that session, and nobody may ask for it again

    async def _finisher(self, entry: Entry) -> tuple[Session, bool]:
        """The branch's own session where it lives (then True), else any. Raises XacoordError."""
        if isinstance(entry.session, Session):
            if not entry.session.dead and not entry.session.condemned:
                return entry.session, True
            self._workers.discard(entry.session)
            entry.session = None
        session = await self._finishers.acquire()
        if entry.dropped:
            self._finishers.release(session)
            raise XacoordError(Reason.STALE_EPOCH, _FENCED.message)
        entry.session = session
        return session, False

    async def _rollback(self, entry: Entry, rollback: Rollback) -> Finished:
        attempt = 0
        while True:
            result = await self._rollback_once(entry, rollback.own)
            if not rollback.own or result.state is not State.RETRY or entry.dropped:
                return result
            why = result.failure or _LOST
            for answer in self.registry.release_waiting(entry, why):
                self._report(entry.coordinator_id, entry.gtrid, answer)
            await asyncio.sleep(_ROLLBACK_BACKOFF_SECONDS[min(attempt, len(_ROLLBACK_BACKOFF_SECONDS) - 1)])
            attempt += 1

    async def _rollback_once(self, entry: Entry, own: bool = False) -> Finished:
        branch = entry.work.branch if entry.work else self._names(entry.gtrid, entry.coordinator_id)
        active = entry.state is BranchState.ACTIVE and isinstance(entry.session, Session)
        if not await self._unended_is_gone(entry):
            return Finished(State.RETRY, SessionUse.CLOSE, _NOT_ENDED)
        if own and entry.work and not (active or entry.work.may_be_prepared):  # gone with its session
            return self._settle_end(entry, Finished(State.ROLLED_BACK, SessionUse.CLOSE), owned=True)
        if active and isinstance(entry.session, Session):
            session, owned = entry.session, True
        else:
            try:
                session, owned = await self._finisher(entry)
            except XacoordError as error:
                return Finished(State.RETRY, SessionUse.CLOSE, Failure(error.reason, error.message))
        result = await self._control.drive(finish.rollback(branch, session.known_as, active), session)
        return self._settle_end(entry, result, owned)

    # -- settling
    # ---------------------------------------------------------------------------------------------------

    def _settle_one_phase(self, entry: Entry, result: Finished) -> Finished:
        if result.state is State.RETRY:
            self._give_up_session(entry)
        self._settle_session(entry, result.use)
        entry.deadline = None
        if result.state is State.COMMITTED:
            entry.move(_E.ENDED)
            entry.move(_E.COMMITTED_ONE_PHASE)
            self._remember(entry, EndedAs.COMMITTED, None)
        elif result.state is State.ROLLED_BACK:
            entry.move(_E.ROLLED_BACK)
            self._remember(entry, EndedAs.ROLLED_BACK, entry.doom or result.failure)
        elif result.state is State.RETRY:
            entry.move(_E.ENDED)  # only the server knows; the next commit asks it (finish.commit_in_doubt)
        else:
            self._log.error("heuristic outcome", gtrid=entry.gtrid, state=result.state.value)
            entry.state = BranchState.NON_EXISTENT
            self._remember(entry, EndedAs.HEURISTICALLY, result.failure)
        if entry.doom is not None and result.state is State.ROLLED_BACK:
            return Finished(result.state, result.use, entry.doom)
        return result

    def _settle_end(self, entry: Entry, result: Finished, owned: bool) -> Finished:
        """Session and state after phase 2 or a rollback. A session that is not the owner's holds nothing."""
        if result.state is State.RETRY and result.use is SessionUse.CLOSE:
            self._give_up_session(entry)
        if isinstance(entry.session, Session):
            if owned:
                self._settle_session(entry, result.use)
            else:
                free = result.use is SessionUse.FREE
                (self._finishers.release if free else self._finishers.discard)(entry.session)
                entry.session = None
        if result.state is State.RETRY:
            return result
        known = entry.state is not BranchState.NON_EXISTENT
        if result.state is State.COMMITTED:
            if known:
                one_phase = entry.state is BranchState.IDLE
                entry.move(_E.COMMITTED_ONE_PHASE if one_phase else _E.COMMITTED)
            self._remember(entry, EndedAs.COMMITTED, None)
        elif result.state is State.ROLLED_BACK:
            if known:
                entry.move(_E.ROLLED_BACK)
            self._remember(entry, EndedAs.ROLLED_BACK, entry.doom)
        else:
            self._log.error("heuristic outcome", gtrid=entry.gtrid, state=result.state.value)
            entry.state = BranchState.NON_EXISTENT
            self._remember(entry, EndedAs.HEURISTICALLY, result.failure)
        entry.deadline = None
        return result

    def _settle_session(self, entry: Entry, use: SessionUse) -> None:
        session = entry.session
        if not isinstance(session, Session) or use is SessionUse.HOLDS:
            return
        free = use is SessionUse.FREE and (entry.work is None or not entry.work.called)
        (self._workers.release if free else self._workers.discard)(session)
        entry.session = None

    def _remember(self, entry: Entry, how: EndedAs, failure: Failure | None) -> None:
        self.registry.remember(entry.gtrid, Ended(how, failure))

    # -- clients
    # ----------------------------------------------------------------------------------------------------

    async def statements(self, entry: Entry, execute: Execute) -> Worked:
        """Run a client's statements in its branch, starting it where it is new. Rolls back what failed."""
        if entry.work is None:
            session = await self.begin(entry, execute.read_only)
            assert entry.work is not None
            entry.move(_E.STARTED)
            worked = await self._control.drive(batch.begin(entry.work, execute.statements), session)
        elif isinstance(entry.session, Session):
            session = entry.session
            session.begin_call()
            worked = await self._control.drive(work.execute(entry.work, execute.statements), session)
        else:
            return await self.give_up(entry, Worked(Fate.LOST, (), _LOST))
        if worked.fate is Fate.REFUSED:
            self._settle_session(entry, SessionUse.CLOSE)
            entry.move(_E.ROLLED_BACK)
            self._remember(entry, EndedAs.ROLLED_BACK, worked.failure)
            return worked
        if worked.failure is not None or entry.doom is not None:
            return await self.give_up(entry, worked)
        return worked

    async def give_up(self, entry: Entry, worked: Worked) -> Worked:
        """Roll back a branch whose work failed, so that its locks are free at once."""
        why = entry.doom or worked.failure or _LOST
        entry.doom = why
        session = entry.session
        if entry.work is None or not isinstance(session, Session):
            if entry.unended is not None:
                self.roll_back_later(entry, why)
            else:
                entry.move(_E.ROLLED_BACK)
                self._remember(entry, EndedAs.ROLLED_BACK, why)
            return Worked(Fate.LOST, (), why)
        voted = await self._control.drive(work.vote_rollback(entry.work, why), session)
        self._settle_vote(entry, voted)
        return Worked(Fate.LOST, (), why)

    async def drop_lower_epochs(self, coordinator_id: str, epoch: int) -> int:
        """End the sessions that work for lower epochs and forget their branches. Returns how many sessions.

        Raises:
            XacoordError: SERVER_UNAVAILABLE where one is not known to be gone.
        """
        ended = 0
        lower = self.registry.of_lower_epochs(coordinator_id, epoch)
        for entry in lower:  # all of them first, so that none takes a new session while others are ended
            self.registry.drop(entry, _FENCED)
        for entry in lower:
            worked = isinstance(entry.session, Session)
            if not await self.kill(entry) or not await self._unended_is_gone(entry):
                raise XacoordError(
                    Reason.SERVER_UNAVAILABLE, "a session of a lower epoch does not end; fence again"
                )
            ended += worked
            if entry.running is None:
                self._settle_session(entry, SessionUse.CLOSE)
            self.registry.forget(entry)
        return ended

    def control_lost(self) -> None:
        """The agent is not the participant's agent any more: its sessions are closed, and what was ACTIVE is
        gone."""
        for entry in list(self.registry.entries.values()):
            if isinstance(entry.session, Session):
                entry.session.close()
                if entry.running is None:
                    self._give_up_session(entry)
                    self._settle_session(entry, SessionUse.CLOSE)
            if entry.state is BranchState.ACTIVE:
                entry.doom = entry.doom or Failure(Reason.BRANCH_LOST, "the agent lost its server")
                if entry.running is None:
                    self.roll_back(entry)

    def roll_back(self, entry: Entry) -> None:
        """Roll a branch back without being told."""
        self.command(entry.gtrid, entry.coordinator_id, entry.epoch, Rollback(own=True))

    async def drain(self, seconds: float) -> None:
        """Let what runs end for at most `seconds`, then roll back what is ACTIVE and close every session."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while any(e.running is not None for e in self.registry.entries.values()) and loop.time() < until:
            await asyncio.sleep(0.02)
        for entry in list(self.registry.entries.values()):
            if isinstance(entry.session, Session):
                entry.session.close()
        for task in list(self._tasks):
            task.cancel()
        self._workers.close_idle()
        self._finishers.close_idle()
