"""Finish: phase 2, one phase, and rollback in every state.

Each procedure answers a `Finished`. COMMITTED and ROLLED_BACK come with proof (the server's own OK, or
`resolve.py`); RETRY means not done or not known yet, and the coordinator asks again for ever; the heuristic
states say that someone else, or a server that lost the branch, decided. Nothing here turns a time-out into an
outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from dtp import Reason, Xid
from dtp.term import Term

from .effects import Lost, Ok, Procedure, Query, Result, ServerError, TooLarge, Verb
from .engine import Engine
from .errors import RBROLLBACK, Failure, Meaning, failure, meaning
from .resolve import Evidence, Proof, resolve
from .sessions import Session, end_session, has_lock, lock_query

_ENDED = Lost("the session was ended")


class State(Term):
    """How a branch ended, if it did (participant_agent.v1.FinishedState)."""

    COMMITTED = "COMMITTED"
    ROLLED_BACK = "ROLLED_BACK"
    RETRY = "RETRY"
    HEURISTIC_COMMIT = "HEURISTIC_COMMIT"
    HEURISTIC_ROLLBACK = "HEURISTIC_ROLLBACK"
    HEURISTIC_HAZARD = "HEURISTIC_HAZARD"


class SessionUse(Term):
    """What may be done with the session afterwards."""

    FREE = "in no XA state, may be used again"
    HOLDS = "keeps the prepared branch (MariaDB); only phase 2 may use it"
    CLOSE = "to be closed"


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer to commit and rollback."""

    state: State
    use: SessionUse
    failure: Failure | None = None
    results: tuple[Ok, ...] = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """The names of a branch and how its evidence is kept.

    Attributes:
        write_less: the branch certainly changed nothing: losing it loses nothing.
        unprepared: its session was never asked to prepare it: what is prepared by that name is the work of an
            agent of before, and not to be rolled back unasked.
    """

    engine: Engine
    xid: Xid
    evidence: Evidence
    write_less: bool = False
    unprepared: bool = False


Names: TypeAlias = Callable[[str, str], Branch]
"""(gtrid, coordinator id) -> its branch here."""


def names_of(
    engine_of: Callable[[], Engine], number_of: Callable[[str], int], evidence: Callable[[str], Evidence]
) -> Names:
    """The function that names branches: engine, number and evidence may change while the agent runs."""

    def name(gtrid: str, coordinator_id: str) -> Branch:
        return Branch(engine_of(), Xid.of(gtrid, number_of(coordinator_id)), evidence(coordinator_id))

    return name


def commit(branch: Branch, session: Session, verb: Verb = Verb.COMMIT) -> Procedure[Finished]:
    """Commit a prepared branch, on the session that owns it or, where none does, on any other."""
    answer = yield Query(f"XA COMMIT {branch.xid.sql()}", verb=verb)
    if isinstance(answer, Ok):
        return Finished(State.COMMITTED, SessionUse.FREE)
    what = _meaning(Verb.COMMIT, answer)
    if what in (Meaning.STILL_PREPARED, Meaning.DIRTY_SESSION):
        return Finished(State.RETRY, _after_refusal(what), _retry(answer, "XA COMMIT"))
    if what is Meaning.UNKNOWN and not (yield from end_session(session)):
        return Finished(State.RETRY, SessionUse.CLOSE, _retry(answer, "XA COMMIT"))
    return (yield from _prove_commit(branch, answer))


def _prove_commit(branch: Branch, answer: Result) -> Procedure[Finished]:
    use = SessionUse.FREE if _is_nota(answer) else SessionUse.CLOSE
    proof = yield from resolve(branch.engine, branch.evidence, branch.xid)
    if proof in (Proof.PREPARED, Proof.UNREACHABLE):
        return Finished(State.RETRY, SessionUse.CLOSE, _retry(answer, "XA COMMIT"))
    if proof is Proof.COMMITTED or branch.write_less:
        return Finished(State.COMMITTED, use)
    if proof is Proof.NO_WITNESS:
        return Finished(
            State.HEURISTIC_ROLLBACK, use, _heuristic(answer, "the branch is not prepared any more")
        )
    return Finished(State.HEURISTIC_HAZARD, use, _heuristic(answer, "the branch is gone without evidence"))


def commit_one_phase(branch: Branch, session: Session) -> Procedure[Finished]:
    """Commit an IDLE branch, the only one of its transaction (the caller has sent XA END)."""
    if not (branch.engine.keeps_one_phase or branch.write_less):
        return (yield from _prepare_and_commit(branch, session))
    answer = yield Query(f"XA COMMIT {branch.xid.sql()} ONE PHASE", verb=Verb.COMMIT_ONE_PHASE)
    if isinstance(answer, Ok):
        return Finished(State.COMMITTED, SessionUse.FREE)
    if isinstance(answer, ServerError) and meaning(Verb.COMMIT_ONE_PHASE, answer) is Meaning.GONE:
        why = failure(Reason.PREPARE_FAILED, answer, "XA COMMIT ONE PHASE")
        return Finished(State.ROLLED_BACK, SessionUse.CLOSE, why)
    if not (yield from end_session(session)):
        return Finished(State.RETRY, SessionUse.CLOSE, _retry(answer, "XA COMMIT ONE PHASE"))
    return (yield from _resolve_one_phase(branch, answer))


def _prepare_and_commit(branch: Branch, session: Session) -> Procedure[Finished]:
    """Where a commit in one phase is not durable: what dies in between is prepared, and asked for again."""
    answer = yield Query(f"XA PREPARE {branch.xid.sql()}", verb=Verb.PREPARE)
    if isinstance(answer, Ok):
        return (yield from commit(branch, session, Verb.COMMIT_ONE_PHASE))
    why = failure(Reason.PREPARE_FAILED, answer, "XA PREPARE")
    what = meaning(Verb.PREPARE, answer) if isinstance(answer, ServerError) else Meaning.UNKNOWN
    if what is Meaning.GONE:
        return Finished(State.ROLLED_BACK, SessionUse.CLOSE, why)
    if what is Meaning.ROLLBACK_ONLY:
        undone = yield from rollback(branch, session, active=False)
        return replace(undone, failure=why) if undone.state is State.ROLLED_BACK else undone
    if not (yield from end_session(session)):
        return Finished(State.RETRY, SessionUse.CLOSE, _retry(answer, "XA PREPARE"))
    return (yield from _resolve_one_phase(branch, answer))


def commit_in_doubt(branch: Branch, session: Session) -> Procedure[Finished]:
    """The end of a commit in one phase that has not been answered, its own session having ended.

    What is only prepared is committed: that is what was asked for. `session` is any.
    """
    proof = yield from resolve(branch.engine, branch.evidence, branch.xid)
    if proof is Proof.PREPARED:
        return (yield from commit(branch, session))
    result = _one_phase_by(proof, branch, Lost("the branch is not known"))
    return replace(result, use=SessionUse.FREE)


def _resolve_one_phase(branch: Branch, answer: Result) -> Procedure[Finished]:
    """What became of a one-phase commit whose session has ended. `answer` is what made us ask."""
    proof = yield from resolve(branch.engine, branch.evidence, branch.xid)
    return _one_phase_by(proof, branch, answer)


def _one_phase_by(proof: Proof, branch: Branch, answer: Result) -> Finished:
    if proof is Proof.COMMITTED:
        return Finished(State.COMMITTED, SessionUse.CLOSE)
    if proof is Proof.NO_WITNESS or (proof is Proof.NOTHING and branch.write_less):
        why = failure(Reason.BRANCH_LOST, answer, "XA COMMIT ONE PHASE")
        return Finished(State.ROLLED_BACK, SessionUse.CLOSE, why)
    if proof is Proof.NOTHING:
        why = _heuristic(answer, "one-phase commit without evidence")
        return Finished(State.HEURISTIC_HAZARD, SessionUse.CLOSE, why)
    return Finished(State.RETRY, SessionUse.CLOSE, _retry(answer, "XA COMMIT ONE PHASE"))


def rollback(branch: Branch, session: Session, active: bool) -> Procedure[Finished]:
    """Roll a branch back: XA END where it is active (its errors mean nothing), XA ROLLBACK, else end the
    session.

    Args:
        branch: the branch.
        session: the one that owns it, or any.
        active: the session is in the middle of the branch, before a successful XA END.
    """
    finished = yield from _roll_back(branch, session, active)
    if not active:  # its lock was looked for before the branch was prepared, and nothing ran since
        return finished
    return replace(finished, use=(yield from unless_lockless(session, finished.use)))


def unless_lockless(session: Session, use: SessionUse) -> Procedure[SessionUse]:
    """`use`, but no session is FREE whose user lock a stored function has released."""
    if use is not SessionUse.FREE:
        return use
    return SessionUse.FREE if has_lock((yield lock_query(session))) else SessionUse.CLOSE


def _roll_back(branch: Branch, session: Session, active: bool) -> Procedure[Finished]:
    if active:
        ended = yield Query(f"XA END {branch.xid.sql()}", verb=Verb.END)
        if isinstance(ended, Lost | TooLarge):
            return (yield from roll_back_by_ending(branch, session))
    answer = yield Query(f"XA ROLLBACK {branch.xid.sql()}", verb=Verb.ROLLBACK)
    if isinstance(answer, ServerError) and meaning(Verb.ROLLBACK, answer) is Meaning.NOT_ENDED and not active:
        yield Query(f"XA END {branch.xid.sql()}", verb=Verb.END)
        answer = yield Query(f"XA ROLLBACK {branch.xid.sql()}", verb=Verb.ROLLBACK)
    if isinstance(answer, Ok):
        return Finished(State.ROLLED_BACK, SessionUse.FREE)
    if isinstance(answer, ServerError):
        what = meaning(Verb.ROLLBACK, answer)
        if what is Meaning.NOT_FOUND:
            return (yield from prove_rollback(branch, answer))
        if what is Meaning.STILL_PREPARED and not active:
            return Finished(State.RETRY, SessionUse.HOLDS, _retry(answer, "XA ROLLBACK"))
    return (yield from roll_back_by_ending(branch, session, answer))


def roll_back_by_ending(branch: Branch, session: Session, answer: Result = _ENDED) -> Procedure[Finished]:
    """Roll back by KILL: for branches whose session is busy, lost or in no state to be asked."""
    if not (yield from end_session(session)):
        return Finished(State.RETRY, SessionUse.CLOSE, _retry(answer, "XA ROLLBACK"))
    return (yield from prove_rollback(branch, answer))


def prove_rollback(branch: Branch, answer: Result) -> Procedure[Finished]:
    """Whether a branch that the server does not find is rolled back. A prepared one needs another XA
    ROLLBACK."""
    use = SessionUse.FREE if _is_nota(answer) else SessionUse.CLOSE
    if branch.unprepared:
        return Finished(State.ROLLED_BACK, use)
    proof = yield from resolve(branch.engine, branch.evidence, branch.xid)
    if proof in (Proof.PREPARED, Proof.UNREACHABLE):
        return Finished(State.RETRY, SessionUse.CLOSE, _retry(answer, "XA ROLLBACK"))
    if proof is Proof.COMMITTED:
        return Finished(State.HEURISTIC_COMMIT, use, _heuristic(answer, "the branch was committed"))
    return Finished(State.ROLLED_BACK, use)


def _meaning(verb: Verb, answer: Result) -> Meaning:
    return meaning(verb, answer) if isinstance(answer, ServerError) else Meaning.UNKNOWN


def _is_nota(answer: Result) -> bool:
    return isinstance(answer, ServerError) and answer.errno not in (RBROLLBACK,)


def _after_refusal(what: Meaning) -> SessionUse:
    """A session whose commit was refused still holds the branch if it was its owner (the driver knows)."""
    return SessionUse.HOLDS if what is Meaning.STILL_PREPARED else SessionUse.CLOSE


def _retry(answer: Result, doing: str) -> Failure:
    unreachable = isinstance(answer, Lost)
    reason = Reason.SERVER_UNAVAILABLE if unreachable else Reason.PARTICIPANT_UNAVAILABLE
    return failure(reason, answer, doing)


def _heuristic(answer: Result, what: str) -> Failure:
    return failure(Reason.BRANCH_LOST, answer, what)
