"""The decision table: what a server's error number means for the branch, per verb.

Found by experiment on MySQL 9.7 and MariaDB 10.11 (docs/agent.md lists the differences). What is absent gets
the verb's default, which is always the one that promises least: an unknown error never becomes an outcome.
"""

from __future__ import annotations

from dataclasses import dataclass

from dtp import Reason
from dtp.term import Term

from .effects import Lost, Result, ServerError, TooLarge, Verb


class Meaning(Term):
    """What an error says about the branch."""

    DUPLICATE_XID = "the XID is in use"
    DIRTY_SESSION = "the session is in the middle of something else; close it"
    STATEMENT_UNDONE = "only the statement is undone; PREPARE would still succeed, so we doom the branch"
    REFUSED = "refused, the branch is as it was"
    ROLLBACK_ONLY = "the server has rolled the branch back; END and ROLLBACK are left to do"
    GONE = "the branch is rolled back and forgotten"
    STILL_PREPARED = "the branch is prepared as before; ask again"
    NOT_FOUND = "the server knows no such XID here and now, which proves nothing"
    NOT_ENDED = "XA END is missing"
    UNKNOWN = "anything may have happened"


_M, _V = Meaning, Verb

NOTA, INVAL, RMFAIL, OUTSIDE, RMERR, RBROLLBACK, DUPID = 1397, 1398, 1399, 1400, 1401, 1402, 1440

MEANINGS: dict[tuple[Verb, int], Meaning] = {
    (_V.START, DUPID): _M.DUPLICATE_XID,
    (_V.START, OUTSIDE): _M.DIRTY_SESSION,
    (_V.START, RMFAIL): _M.DIRTY_SESSION,
    (_V.STATEMENT, 1213): _M.ROLLBACK_ONLY,
    (_V.STATEMENT, 1613): _M.ROLLBACK_ONLY,
    (_V.STATEMENT, 1614): _M.ROLLBACK_ONLY,
    (_V.STATEMENT, 4091): _M.REFUSED,
    (_V.STATEMENT, RMFAIL): _M.REFUSED,
    (_V.END, 1613): _M.ROLLBACK_ONLY,
    (_V.END, 1614): _M.ROLLBACK_ONLY,
    (_V.END, RMFAIL): _M.ROLLBACK_ONLY,
    (_V.PREPARE, RMFAIL): _M.ROLLBACK_ONLY,
    (_V.PREPARE, 1205): _M.GONE,
    (_V.PREPARE, 1317): _M.GONE,
    (_V.PREPARE, 1613): _M.ROLLBACK_ONLY,
    (_V.PREPARE, 1614): _M.ROLLBACK_ONLY,
    (_V.COMMIT, NOTA): _M.NOT_FOUND,
    (_V.COMMIT, RBROLLBACK): _M.NOT_FOUND,
    (_V.COMMIT, 1205): _M.STILL_PREPARED,
    (_V.COMMIT, 1317): _M.STILL_PREPARED,
    (_V.COMMIT, 1040): _M.STILL_PREPARED,
    (_V.COMMIT, 1290): _M.STILL_PREPARED,
    (_V.COMMIT, RMFAIL): _M.DIRTY_SESSION,
    (_V.COMMIT, OUTSIDE): _M.DIRTY_SESSION,
    (_V.COMMIT_ONE_PHASE, 1205): _M.GONE,
    (_V.COMMIT_ONE_PHASE, 1317): _M.GONE,
    (_V.COMMIT_ONE_PHASE, 1613): _M.GONE,
    (_V.COMMIT_ONE_PHASE, 1614): _M.GONE,
    (_V.ROLLBACK, NOTA): _M.NOT_FOUND,
    (_V.ROLLBACK, RBROLLBACK): _M.NOT_FOUND,
    (_V.ROLLBACK, 1205): _M.STILL_PREPARED,
    (_V.ROLLBACK, 1317): _M.STILL_PREPARED,
    (_V.ROLLBACK, 1290): _M.STILL_PREPARED,
    (_V.ROLLBACK, RMFAIL): _M.NOT_ENDED,
    (_V.ROLLBACK, OUTSIDE): _M.DIRTY_SESSION,
}

DEFAULTS: dict[Verb, Meaning] = {
    _V.START: _M.DIRTY_SESSION,
    _V.STATEMENT: _M.STATEMENT_UNDONE,
    _V.WITNESS: _M.STATEMENT_UNDONE,
    _V.END: _M.ROLLBACK_ONLY,
    _V.PREPARE: _M.UNKNOWN,
    _V.COMMIT: _M.UNKNOWN,
    _V.COMMIT_ONE_PHASE: _M.UNKNOWN,
    _V.ROLLBACK: _M.UNKNOWN,
}

# MySQL drops the connection together with these.
LOST_ERRNOS = frozenset(
    {1053, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 2000, 2003, 2006, 2013, 2014, 2055, 4031}
)

_STATEMENT_REASONS: dict[int, Reason] = {
    1205: Reason.LOCK_TIMEOUT,
    1213: Reason.DEADLOCK,
    1613: Reason.LOCK_TIMEOUT,
    1614: Reason.DEADLOCK,
    3058: Reason.DEADLOCK,
    3572: Reason.LOCK_TIMEOUT,
}

MAX_MESSAGE_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a branch could not do what was asked.

    Attributes:
        message: at most 1,024 characters without control characters; may quote the client's values, so it
            goes to the client and never into a log.
        errno: the server's, 0 where there is none.
        statement: index from 0, None where no statement failed.
    """

    reason: Reason
    message: str
    errno: int = 0
    statement: int | None = None


def meaning(verb: Verb, error: ServerError) -> Meaning:
    """What `error` on `verb` says about the branch.

    MariaDB has only 1399 for both "not in this state" and "rolled back already"; its text tells them apart.
    """
    if verb in (Verb.STATEMENT, Verb.WITNESS) and error.errno == RMFAIL and "ROLLBACK ONLY" in error.message:
        return Meaning.ROLLBACK_ONLY
    return MEANINGS.get((verb, error.errno)) or DEFAULTS.get(verb, Meaning.UNKNOWN)


def clean(message: str) -> str:
    """`message` cut to 1,024 characters, control characters replaced."""
    kept = message[:MAX_MESSAGE_CHARACTERS]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in kept)


def describe(result: Result) -> tuple[str, int]:
    """The message and error number of a result that is not Ok."""
    if isinstance(result, ServerError):
        return clean(f"({result.errno}) {result.message}"), result.errno
    if isinstance(result, Lost | TooLarge):
        return clean(result.message), 0
    return "unexpected answer", 0


def statement_failure(result: Result, index: int | None) -> Failure:
    """The failure that statement `index` (from 0) of a branch had."""
    message, errno = describe(result)
    if isinstance(result, TooLarge):
        return Failure(Reason.RESULT_TOO_LARGE, message, 0, index)
    if isinstance(result, Lost):
        reason = Reason.STATEMENT_FAILED if result.timed_out else Reason.BRANCH_LOST
        return Failure(reason, message, 0, index)
    return Failure(_STATEMENT_REASONS.get(errno, Reason.STATEMENT_FAILED), message, errno, index)


def failure(reason: Reason, result: Result, doing: str) -> Failure:
    """A failure of `doing`, with what the server said."""
    message, errno = describe(result)
    return Failure(reason, clean(f"{doing}: {message}"), errno)
