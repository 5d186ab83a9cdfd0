"""Work: phase 1 of a branch: start, statements, end, witness row, prepare.

 1. SET TRANSACTION READ ONLY where promised, XA START;
 2. statements; the first that fails dooms the branch, because the server would still prepare what is left of
    it;
 3. the witness row, as the last statement and only where the branch wrote (a row in every branch would turn
    the cheap read-only ones into flushed ones). It fails where the session no longer has its user lock: a
    stored function may have released it, and without it nobody could prove that the session has ended (such
    a session goes back to no pool);
 4. XA END; a read-only branch ends here with XA ROLLBACK, which releases it without a flush;
 5. XA PREPARE: OK means durable. No answer means unknown: the vote is ROLLBACK, and the branch is rolled back
    however late it turns out to be prepared (the session is killed first, see sessions.py).

Did it write? Branches whose statements all were plain reads are asked, by the session's Handler_write,
_update and _delete counters before and after: equal means that no row was written, through functions either.
Unequal may be a temporary table of a GROUP BY: then it counts as written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dtp import Reason, Vote, format_bqual
from dtp.term import Term

from .effects import Lost, Ok, Procedure, Query, Result, ServerError, TooLarge, Verb, number
from .errors import Failure, Meaning, failure, meaning, statement_failure
from .finish import Branch, Finished, SessionUse, State, commit_one_phase, rollback, unless_lockless
from .sessions import Session, end_session

_LOCK_RELEASED = "a stored routine has released the session's user lock (RELEASE_ALL_LOCKS): it must not"
_CHARSET_SQL = "SET NAMES utf8mb4"
# Fails where it is evaluated (1242), whatever the sql_mode.
_FAILS = "(SELECT 1 UNION ALL SELECT 2)"
_SUBQUERY_RETURNS_MORE_THAN_ONE_ROW = 1242
_WRITES_SQL = (
    "SHOW SESSION STATUS WHERE Variable_name IN ('Handler_write', 'Handler_update', 'Handler_delete')"
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a client.

    Attributes:
        plain_read: it begins like a query, so it wrote only if a function did.
        expect_rows, min_rows: how many rows it must affect or return, None for any.
        calls: it calls a procedure.
        simple: its text cannot be read in two ways, and it returns no rows: others may follow in its packet.
        size: bytes of text and parameters, about.
    """

    sql: str
    parameters: tuple[object, ...] = ()
    plain_read: bool = False
    expect_rows: int | None = None
    min_rows: int | None = None
    calls: bool = False
    simple: bool = False
    size: int = 0

    def query(self) -> Query:
        """What is sent."""
        return Query(self.sql, self.parameters, Verb.STATEMENT, alone=not self.simple)


@dataclass(slots=True)
class Work:
    """What a branch has done so far.

    Attributes:
        branch: its names.
        session: the session that it lives in.
        read_only: the client promised it; the server enforces it.
        writes_before: the session's write counters at the start, None where they were not asked.
        maybe_wrote: a statement that is no plain read ran.
        called: a procedure ran, which may have changed any setting of the session: nobody else may have it.
        may_be_prepared: XA PREPARE was sent. Before, what is prepared by this name is not this work's.
    """

    branch: Branch
    session: Session
    read_only: bool
    writes_before: int | None = None
    maybe_wrote: bool = False
    called: bool = False
    may_be_prepared: bool = False


class Fate(Term):
    """Where statements left the branch."""

    INTACT = "active"
    DOOMED = "active, but must be rolled back"
    LOST = "its session is gone"
    REFUSED = "never started by this session: no XA verb may be sent for it"


@dataclass(frozen=True, slots=True)
class Worked:
    """What statements did; `failure` is None exactly where fate is INTACT."""

    fate: Fate
    results: tuple[Ok, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Voted:
    """The answer to prepare. `in_doubt`: rolled back by us later, because nobody knows yet whether it is
    prepared."""

    vote: Vote
    use: SessionUse
    failure: Failure | None = None
    results: tuple[Ok, ...] = ()
    in_doubt: bool = False


def start(work: Work, statements: tuple[Statement, ...]) -> Procedure[Worked]:
    """Start the branch. `statements` are those known to follow: they tell whether counting writes can pay."""
    if work.read_only:
        answer = yield Query("SET TRANSACTION READ ONLY")
        if not isinstance(answer, Ok):
            return not_started(answer)
    elif all(statement.plain_read for statement in statements):
        work.writes_before = yield from _writes()
    answer = yield start_query(work)
    if isinstance(answer, Ok):
        return Worked(Fate.INTACT)
    return not_started(answer)


def start_query(work: Work) -> Query:
    """XA START."""
    return Query(f"XA START {work.branch.xid.sql()}", verb=Verb.START)


def not_started(answer: Result) -> Worked:
    """Why there is no branch."""
    if not isinstance(answer, ServerError):
        return Worked(Fate.LOST, failure=failure(Reason.SERVER_UNAVAILABLE, answer, "XA START"))
    if meaning(Verb.START, answer) is Meaning.DUPLICATE_XID:
        why = failure(Reason.BRANCH_BUSY, answer, "XA START: the branch exists already")
        return Worked(Fate.REFUSED, failure=why)
    return Worked(Fate.REFUSED, failure=failure(Reason.SERVER_UNAVAILABLE, answer, "XA START"))


def _writes() -> Procedure[int | None]:
    answer = yield Query(_WRITES_SQL)
    return sum(number(row[1]) for row in answer.rows) if isinstance(answer, Ok) else None


def execute(work: Work, statements: tuple[Statement, ...]) -> Procedure[Worked]:
    """Run statements in the active branch until one fails or does not meet its expectation."""
    results: list[Ok] = []
    for index, statement in enumerate(statements):
        answer = yield statement.query()
        work.maybe_wrote = work.maybe_wrote or not statement.plain_read
        if statement.calls:
            work.called = True
            # Parameters are escaped for this charset, so the next statement must not meet another one.
            restored = yield Query(_CHARSET_SQL)
            answer = restored if isinstance(answer, Ok) and not isinstance(restored, Ok) else answer
        if not isinstance(answer, Ok):
            fate = Fate.LOST if isinstance(answer, Lost | TooLarge) else Fate.DOOMED
            return Worked(fate, failure=statement_failure(answer, index))
        unmet = expectation(statement, answer.row_count)
        if unmet:
            return Worked(Fate.DOOMED, failure=Failure(Reason.EXPECTATION_FAILED, unmet, 0, index))
        results.append(answer)
    return Worked(Fate.INTACT, tuple(results))


def expectation(statement: Statement, row_count: int) -> str:
    """What is wrong with the number of rows, or ""."""
    if statement.expect_rows is not None and row_count != statement.expect_rows:
        return f"the statement had {row_count} rows, expected were {statement.expect_rows}"
    if statement.min_rows is not None and row_count < statement.min_rows:
        return f"the statement had {row_count} rows, expected were at least {statement.min_rows}"
    return ""


def _wrote(work: Work) -> Procedure[bool]:
    if work.read_only:
        return False
    if work.maybe_wrote or work.writes_before is None:
        return True
    after = yield from _writes()
    return after is None or after != work.writes_before


def _end(work: Work, participants: tuple[int, ...], wrote: bool) -> Procedure[Failure | None]:
    """Witness row and XA END; None where both succeeded."""
    for query in (witness_query(work, participants), end_query(work)) if wrote else (end_query(work),):
        answer = yield query
        if not isinstance(answer, Ok):
            return unended(query.verb, answer)
    return None


def witness_query(work: Work, participants: tuple[int, ...]) -> Query:
    """The last statement of a branch that wrote: its witness row, and the proof of its session's lock."""
    xid, table = work.branch.xid, work.branch.evidence.table
    has_lock = f"IS_USED_LOCK('{work.session.lock}') = CONNECTION_ID()"
    if table is None:
        return Query(f"SET @xacoord = IF({has_lock}, 1, {_FAILS})", verb=Verb.WITNESS)
    names = ",".join(format_bqual(number) for number in participants)
    return Query(
        f"INSERT INTO {table} (gtrid, bqual, participants) "
        f"VALUES (X'{xid.gtrid.hex()}', X'{xid.bqual.hex()}', IF({has_lock}, '{names}', {_FAILS}))",
        verb=Verb.WITNESS,
    )


def end_query(work: Work) -> Query:
    """XA END."""
    return Query(f"XA END {work.branch.xid.sql()}", verb=Verb.END)


def prepare_query(work: Work) -> Query:
    """XA PREPARE."""
    work.may_be_prepared = True
    return Query(f"XA PREPARE {work.branch.xid.sql()}", verb=Verb.PREPARE)


def unended(verb: Verb, answer: Result) -> Failure:
    """Why the branch cannot be prepared, after the witness row or XA END failed."""
    if verb is Verb.END:
        return failure(_reason(answer, Reason.PREPARE_FAILED), answer, "XA END")
    if isinstance(answer, ServerError) and answer.errno == _SUBQUERY_RETURNS_MORE_THAN_ONE_ROW:
        return Failure(Reason.BRANCH_LOST, _LOCK_RELEASED)
    return failure(_reason(answer, Reason.PREPARE_FAILED), answer, "writing the witness row")


def _reason(answer: Result, default: Reason) -> Reason:
    if isinstance(answer, Lost):
        return Reason.BRANCH_LOST
    named = statement_failure(answer, None).reason
    return default if named is Reason.STATEMENT_FAILED else named


def prepare(work: Work, participants: tuple[int, ...]) -> Procedure[Voted]:
    """Phase 1 of an active branch whose statements all succeeded."""
    wrote = yield from _wrote(work)
    why = yield from _end(work, named(participants), wrote)
    if why is not None:
        return (yield from vote_rollback(work, why))
    if not wrote:
        return (yield from _leave_read_only(work))
    answer = yield prepare_query(work)
    return (yield from prepared(work, answer))


def named(participants: tuple[int, ...]) -> tuple[int, ...]:
    """The participants as the witness row of a prepared branch has them: one that is alone is named twice, so
    that its row shows, too, that the log had a record (last_committed)."""
    return participants if len(participants) > 1 else participants * 2


def prepared(work: Work, answer: Result) -> Procedure[Voted]:
    """The vote after XA PREPARE was answered, or was not."""
    if isinstance(answer, Ok):
        return Voted(Vote.OK, SessionUse.FREE if work.branch.engine.detaches else SessionUse.HOLDS)
    why = failure(_reason(answer, Reason.PREPARE_FAILED), answer, "XA PREPARE")
    if isinstance(answer, ServerError):
        what = meaning(Verb.PREPARE, answer)
        if what is Meaning.GONE:
            return Voted(Vote.ROLLBACK, SessionUse.CLOSE, why)
        if what is Meaning.ROLLBACK_ONLY:
            return (yield from vote_rollback(work, why, active=False))
    return Voted(Vote.ROLLBACK, SessionUse.CLOSE, why, in_doubt=True)


def _leave_read_only(work: Work) -> Procedure[Voted]:
    answer = yield Query(f"XA ROLLBACK {work.branch.xid.sql()}", verb=Verb.ROLLBACK)
    use = SessionUse.FREE if isinstance(answer, Ok) else SessionUse.CLOSE
    return Voted(Vote.READ_ONLY, (yield from unless_lockless(work.session, use)))


def vote_rollback(work: Work, why: Failure, active: bool = True) -> Procedure[Voted]:
    """Roll back a branch, and vote so. Closing the session of one that was never prepared always does it."""
    branch = replace(work.branch, unprepared=not work.may_be_prepared)
    finished = yield from rollback(branch, work.session, active)
    in_doubt = finished.state is State.RETRY
    return Voted(Vote.ROLLBACK, finished.use, why, in_doubt=in_doubt)


def run(
    work: Work, statements: tuple[Statement, ...], participants: tuple[int, ...], one_phase: bool
) -> Procedure[Voted | Finished]:
    """A whole branch, query by query: answers `Finished` with `one_phase`, else `Voted`."""
    started = yield from start(work, statements)
    if started.failure is not None:
        return refuse(started.failure, SessionUse.CLOSE, one_phase)
    worked = yield from execute(work, statements)
    if worked.failure is not None:
        return (yield from give_up(work, worked.fate, worked.failure, one_phase))
    if one_phase:
        finished = yield from end_and_commit(work, participants)
        return replace(finished, results=worked.results)
    voted = yield from prepare(work, participants)
    return replace(voted, results=worked.results)


def give_up(work: Work, fate: Fate, why: Failure, one_phase: bool) -> Procedure[Voted | Finished]:
    """The end of a branch whose statements failed."""
    if fate is Fate.LOST:
        yield from end_session(work.session)
        return refuse(why, SessionUse.CLOSE, one_phase)
    voted = yield from vote_rollback(work, why)
    return refuse(why, voted.use, one_phase)


def refuse(why: Failure, use: SessionUse, one_phase: bool) -> Voted | Finished:
    """The answer of a branch that never was, or is gone."""
    if one_phase:
        return Finished(State.ROLLED_BACK, use, why)
    return Voted(Vote.ROLLBACK, use, why)


def end_and_commit(work: Work, participants: tuple[int, ...]) -> Procedure[Finished]:
    """Commit an active branch, the only one of its transaction, in one phase."""
    wrote = yield from _wrote(work)
    why = yield from _end(work, participants, wrote)
    if why is not None:
        voted = yield from vote_rollback(work, why)
        return Finished(State.ROLLED_BACK, voted.use, why)
    return (yield from commit_ended(work, wrote))


def commit_ended(work: Work, wrote: bool) -> Procedure[Finished]:
    """The same after XA END."""
    work.branch = replace(work.branch, write_less=not wrote)
    work.may_be_prepared = True  # on the way, where one phase is not durable
    finished = yield from commit_one_phase(work.branch, work.session)
    if wrote:
        return finished
    return replace(finished, use=(yield from unless_lockless(work.session, finished.use)))
