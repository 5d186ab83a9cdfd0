"""Ending sessions with proof, and taking a participant over from a dead agent.

Why: a server goes on with XA PREPARE or XA COMMIT after its client died, so "not in XA RECOVER" says nothing
while the session lives. And the process list proves nothing either: KILL closes the connection first, which
hides the entry, while the thread still works. Each session therefore holds a named user lock from its first
moment to its last; servers release it after the session's transaction is rolled back or detached. Lock gone =
session gone.

The names: `xacoord.<participant>` is held by the control connection (one agent per participant),
`xacoord.<participant>.<slot>` by each session, `xacoord.<participant>.<token>` by the control connection of
one take-over, and by no other connection ever.

Take-over, at start and after the control connection was lost:
 1. take the participant's lock. A second agent waits here and then refuses to start.
 2. find the sessions that hold slots, KILL them and wait until the slots are free.
 3. only now serve.
Crash windows: an agent that lost its control connection may still be opening a session during 2. That session
takes its slot first and then checks that the participant's lock is its own agent's: either 2 sees the slot or
the check fails. A connection id can be given again after a server restart, so nothing is killed unless it
holds one of our locks, and the check asks for the token's lock: an agent that slept through the restart would
take the control connection of its successor, which has the same id, for its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from dtp.term import Term

from .effects import Lost, Ok, OnControl, Procedure, Query, Result, Sleep, number

MAX_SLOTS = 1000
LOCK_RETRY_SECONDS = 0.5
_WAITS = 200
_FIRST_WAIT_SECONDS = 0.002
_LONGEST_WAIT_SECONDS = 0.1
_KILL_AGAIN_EVERY = 20


@dataclass(frozen=True, slots=True)
class Session:
    """How the server knows one of our sessions."""

    connection_id: int
    lock: str


def participant_lock(participant: str) -> str:
    """The lock that makes this agent the participant's only one."""
    return f"xacoord.{participant}"


def slot_lock(participant: str, slot: int) -> str:
    """The lock that session number `slot` holds as long as it lives."""
    return f"xacoord.{participant}.{slot}"


def lock_query(session: Session) -> Query:
    """Asks `session` itself whether it has its lock: a stored function of a client may have released it."""
    return Query(f"SELECT IS_USED_LOCK('{session.lock}') = CONNECTION_ID()")


def has_lock(answer: Result) -> bool:
    """Whether the answer to `lock_query` says so. Without it nobody else may have the session."""
    return isinstance(answer, Ok) and number(answer.rows[0][0]) == 1


def end_session(session: Session) -> Procedure[bool]:
    """KILL a session and wait until it is gone. False: not known to be gone (ask again)."""
    wait = _FIRST_WAIT_SECONDS
    for attempt in range(_WAITS):
        held = yield OnControl(Query("SELECT IS_USED_LOCK(%s)", (session.lock,)))
        if not isinstance(held, Ok):
            return False
        if number(held.rows[0][0]) != session.connection_id:
            return True
        if attempt % _KILL_AGAIN_EVERY == 0:
            killed = yield OnControl(Query(f"KILL {session.connection_id}"))
            if isinstance(killed, Lost):
                return False
        yield Sleep(wait)
        wait = min(wait * 1.5, _LONGEST_WAIT_SECONDS)
    return False


class TakeOver(Term):
    """What came of taking a participant over."""

    DONE = "done"
    HELD_BY_OTHER = "held by another agent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TakenOver:
    """The result of `take_over`: `holder` is the connection id in the way, `ended` how many sessions were
    ended."""

    state: TakeOver
    holder: int = 0
    ended: int = 0
    message: str = ""


def token_lock(participant: str, token: str) -> str:
    """The lock of one take-over. `token` is not a number: those are slots."""
    return f"xacoord.{participant}.{token}"


def take_over(
    participant: str, attempts: int, own_old_control: int | None, token: str
) -> Procedure[TakenOver]:
    """Take the participant's lock and end every session that an agent before us left.

    Args:
        participant: its name.
        attempts: tries at the lock, LOCK_RETRY_SECONDS apart.
        own_old_control: connection id of our own former control connection on this same run of the server,
            which is killed where the server has not noticed its end.
        token: letters and digits that no take-over has had before.
    """
    name = participant_lock(participant)
    for attempt in range(attempts):
        got = yield OnControl(Query("SELECT GET_LOCK(%s, 0), IS_USED_LOCK(%s)", (name, name)))
        if not isinstance(got, Ok):
            return TakenOver(TakeOver.FAILED, message=_say(got))
        holder = number(got.rows[0][1])
        if number(got.rows[0][0]) == 1:
            break
        if holder and holder == own_old_control:
            yield from end_session(Session(holder, name))
            continue
        if attempt + 1 == attempts:
            return TakenOver(TakeOver.HELD_BY_OTHER, holder=holder)
        yield Sleep(LOCK_RETRY_SECONDS)
    named = yield OnControl(Query("SELECT GET_LOCK(%s, 0)", (token_lock(participant, token),)))
    if not isinstance(named, Ok) or number(named.rows[0][0]) != 1:
        return TakenOver(TakeOver.FAILED, message=_say(named))
    return (yield from _end_former_sessions(participant))


def _end_former_sessions(participant: str) -> Procedure[TakenOver]:
    listed = yield OnControl(
        Query(
            "WITH RECURSIVE slot (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM slot WHERE n + 1 < %s) "
            "SELECT n, IS_USED_LOCK(CONCAT(%s, n)) FROM slot WHERE IS_USED_LOCK(CONCAT(%s, n)) IS NOT NULL",
            (MAX_SLOTS, slot_lock(participant, 0)[:-1], slot_lock(participant, 0)[:-1]),
        )
    )
    if not isinstance(listed, Ok):
        return TakenOver(TakeOver.FAILED, message=_say(listed))
    for slot, holder in listed.rows:
        if holder is None:
            continue
        session = Session(number(holder), slot_lock(participant, number(slot)))
        if not (yield from end_session(session)):
            return TakenOver(
                TakeOver.FAILED, holder=session.connection_id, message="a former session does not end"
            )
    return TakenOver(TakeOver.DONE, ended=len(listed.rows))


def _say(result: object) -> str:
    return str(getattr(result, "message", result))
