"""Batch: phase 1 in as few packets as can be: START, statements, witness row, END and PREPARE in one.

A round trip costs the server, the agent and the caller a wake-up each, and there were six for a branch. The
server stops at the first error of a packet, so what follows a failed statement never runs. Two things differ
from sending query by query (work.py):

 1. An expectation (how many rows?) is checked when the branch is prepared already. One that is not met rolls
    it back; the vote is ROLLBACK either way, and a crash in between leaves a branch that nobody commits.
 2. A session whose connection is lost may go on to XA PREPARE by itself, however early in the packet we lost
    it. So no answer always means what no answer to XA PREPARE means: in doubt, end the session, then look.

Only what cannot be read in two ways goes into a packet: plain writes without anything that could hide a
semicolon (guard.py). Reads and calls return rows and go alone, as does everything of a branch that has
promised to be read-only.
"""

from __future__ import annotations

from dataclasses import replace

from dtp import Reason

from .effects import Lost, Ok, Procedure, Query, Result, Verb, together
from .errors import Failure, statement_failure
from .finish import Finished, SessionUse, State
from .work import (
    Fate,
    Statement,
    Voted,
    Work,
    Worked,
    commit_ended,
    end_query,
    execute,
    expectation,
    give_up,
    named,
    not_started,
    prepare_query,
    prepared,
    refuse,
    start,
    start_query,
    unended,
    vote_rollback,
    witness_query,
)
from .work import prepare as prepare_one_by_one
from .work import run as run_one_by_one

MAX_STATEMENTS = 16
MAX_BYTES = 1 << 15  # of a packet; the server's own limit is for each of them alone, and escaping doubles


def fits(work: Work, statements: tuple[Statement, ...]) -> bool:
    """Whether these may share a packet with the branch's start."""
    return (
        not work.read_only
        and 0 < len(statements) <= MAX_STATEMENTS
        and sum(s.size for s in statements) <= MAX_BYTES
        and all(s.simple and not s.plain_read and not s.calls for s in statements)
    )


def begin(work: Work, statements: tuple[Statement, ...]) -> Procedure[Worked]:
    """Start the branch and run its first statements."""
    if not fits(work, statements):
        started = yield from start(work, statements)
        if started.failure is not None:
            return started
        return (yield from execute(work, statements))
    answers = yield from together(start_query(work), *(statement.query() for statement in statements))
    return _worked(work, statements, answers)


def _worked(work: Work, statements: tuple[Statement, ...], answers: tuple[Result, ...]) -> Worked:
    """What the answers to START and the statements say; more may follow them."""
    started, *done = answers[: 1 + len(statements)]
    if isinstance(started, Lost) and started.timed_out:  # whichever of them took so long
        return Worked(Fate.LOST, failure=statement_failure(started, None))
    if not isinstance(started, Ok):
        return not_started(started)
    work.maybe_wrote = True
    results: list[Ok] = []
    for index, (statement, answer) in enumerate(zip(statements, done, strict=False)):
        if not isinstance(answer, Ok):
            fate = Fate.LOST if isinstance(answer, Lost) else Fate.DOOMED
            return Worked(fate, failure=statement_failure(answer, index))
        unmet = expectation(statement, answer.row_count)
        if unmet:
            return Worked(Fate.DOOMED, failure=Failure(Reason.EXPECTATION_FAILED, unmet, 0, index))
        results.append(answer)
    return Worked(Fate.INTACT, tuple(results))


def run(
    work: Work, statements: tuple[Statement, ...], participants: tuple[int, ...], one_phase: bool
) -> Procedure[Voted | Finished]:
    """A whole branch in one go: answers `Finished` with `one_phase`, else `Voted`."""
    if not fits(work, statements):
        return (yield from run_one_by_one(work, statements, participants, one_phase))
    queries = [start_query(work), *(statement.query() for statement in statements)]
    queries += [witness_query(work, participants if one_phase else named(participants)), end_query(work)]
    if not one_phase:
        queries.append(prepare_query(work))
    answers = yield from together(*queries)
    worked = _worked(work, statements, answers)
    last, verb = answers[-1], queries[len(answers) - 1].verb
    if verb is Verb.START and not isinstance(last, Ok | Lost) and worked.failure is not None:
        return refuse(worked.failure, SessionUse.CLOSE, one_phase)
    if one_phase:
        return (yield from _after_end(work, worked, verb, last))
    return (yield from _after_prepare(work, worked, verb, last))


def _after_end(work: Work, worked: Worked, verb: Verb, last: Result) -> Procedure[Voted | Finished]:
    """The end of a packet that ends with XA END; `verb` and `last` are its last answer."""
    if not isinstance(last, Ok):
        fate = Fate.LOST if isinstance(last, Lost) else Fate.DOOMED
        return (yield from give_up(work, fate, worked.failure or unended(verb, last), one_phase=True))
    if worked.failure is not None:
        voted = yield from vote_rollback(work, worked.failure, active=False)
        return Finished(State.ROLLED_BACK, voted.use, worked.failure)
    finished = yield from commit_ended(work, wrote=True)
    return replace(finished, results=worked.results)


def _after_prepare(work: Work, worked: Worked, verb: Verb, last: Result) -> Procedure[Voted | Finished]:
    """The end of a packet that ends with XA PREPARE."""
    if isinstance(last, Ok) and worked.failure is not None:
        return (yield from vote_rollback(work, worked.failure, active=False))
    if isinstance(last, Lost) or verb is Verb.PREPARE:
        voted = yield from prepared(work, last)
        return replace(voted, failure=worked.failure or voted.failure, results=worked.results)
    why = worked.failure or unended(verb, last)
    return (yield from give_up(work, Fate.DOOMED, why, one_phase=False))


def prepare(work: Work, participants: tuple[int, ...]) -> Procedure[Voted]:
    """Phase 1 of an active branch whose statements all succeeded."""
    if work.read_only or not work.maybe_wrote:  # whether it wrote has to be asked first
        return (yield from prepare_one_by_one(work, participants))
    queries: tuple[Query, ...] = (
        witness_query(work, named(participants)),
        end_query(work),
        prepare_query(work),
    )
    answers = yield from together(*queries)
    last, verb = answers[-1], queries[len(answers) - 1].verb
    if isinstance(last, Lost) or verb is Verb.PREPARE:
        return (yield from prepared(work, last))
    return (yield from vote_rollback(work, unended(verb, last)))
