"""Reconcile: a pure function from (what the log knows, what a scan lists) to a plan with reasons.

For each prepared branch that XA RECOVER lists:

1. not our shape (formatID, gtrid, bqual)             -> leave  FOREIGN
2. another coordinator's id                           -> leave  OTHER_COORDINATOR
3. another participant's number (two on one server)   -> leave  OTHER_PARTICIPANT
4. the participant is on HOLD                         -> hold   PARTICIPANT_ON_HOLD
5. epoch or counter that our log has never given      -> hold   EPOCH_AHEAD_OF_LOG
6. a transaction that is open here:
   a. decided to commit, durably                      -> commit COMMIT_RECORD
   b. decided to roll back                            -> rollback ROLLBACK_DECIDED (recovered: PRESUMED_ABORT)
   c. ended by others, kept until FORGET              -> leave  HEURISTIC_RECORDED
      but this branch is recorded as rolled back      -> rollback CAME_BACK
   d. still voting, or the decision not yet on disk   -> leave  LIVE_IN_THIS_EPOCH
7. it ended while the scan ran                        -> leave  ENDED_MEANWHILE
8. otherwise                                          -> rollback PRESUMED_ABORT

Why 8 is safe: a COMMIT record is on disk before any branch hears it and stays until every branch
has acknowledged; so a prepared branch without one was never told to commit. The order fence -> scan
-> reconcile guarantees that no older process can still decide (xa-facts: late PREPARE).

CAME_BACK: a server may lose a rollback that it has acknowledged, an operator's like anybody's. The outcome
that was recorded and told stands, whatever the decision was: people have acted on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter

from coordinator.core.states import State
from coordinator.core.transaction import Transaction
from dtp import Gtrid, Outcome, Xid
from dtp.term import Term


class Action(Term):
    """What to do with a prepared branch."""

    COMMIT = "commit"
    ROLLBACK = "rollback"
    LEAVE = "leave"
    HOLD = "hold"


class PlanReason(Term):
    """Why. The value explains it to people."""

    FOREIGN = "not an XID of xacoord; its owner must finish it"
    OTHER_COORDINATOR = "belongs to another coordinator"
    OTHER_PARTICIPANT = "belongs to another participant on the same server"
    PARTICIPANT_ON_HOLD = "the participant remembers another log or a higher epoch than this log knows"
    EPOCH_AHEAD_OF_LOG = "this log never gave that id; this branch is left prepared, nothing else is held up"
    COMMIT_RECORD = "the log has its COMMIT record"
    ROLLBACK_DECIDED = "decided to roll back; no COMMIT record exists"
    HEURISTIC_RECORDED = "others ended part of it; waits for an operator's forget"
    CAME_BACK = "others rolled it back, as is recorded, and its server has lost that: again"
    LIVE_IN_THIS_EPOCH = "its transaction is open and not yet decided"
    ENDED_MEANWHILE = "its transaction ended while the scan ran"
    PRESUMED_ABORT = "no COMMIT record: it was never decided to commit"


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One prepared branch, what to do and why."""

    participant: str
    xid: Xid
    action: Action
    reason: PlanReason


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the log and the live state know.

    Attributes:
        next_counter: the counter that this epoch gives next.
        find: an open transaction by gtrid, or None.
        ended_meanwhile: whether a gtrid has, or may have, ended after the scan was asked for.
    """

    coordinator_id: str
    epoch: int
    next_counter: int
    find: Callable[[str], Transaction | None]
    ended_meanwhile: Callable[[str], bool]


_IN_ORDER = attrgetter("format_id", "gtrid", "bqual")  # that of Xid; ten thousand of them are compared faster


def plan(
    knowledge: Knowledge, participant: str, number: int, on_hold: bool, prepared: Iterable[Xid]
) -> list[PlanItem]:
    """What to do with each prepared branch of one participant's scan."""
    return [_judge(knowledge, participant, number, on_hold, xid) for xid in sorted(prepared, key=_IN_ORDER)]


def _judge(knowledge: Knowledge, participant: str, number: int, on_hold: bool, xid: Xid) -> PlanItem:
    def item(action: Action, reason: PlanReason) -> PlanItem:
        return PlanItem(participant, xid, action, reason)

    id_ = xid.ours()
    if id_ is None:
        return item(Action.LEAVE, PlanReason.FOREIGN)
    if id_.coordinator_id != knowledge.coordinator_id:
        return item(Action.LEAVE, PlanReason.OTHER_COORDINATOR)
    if xid.number != number:
        return item(Action.LEAVE, PlanReason.OTHER_PARTICIPANT)
    if on_hold:
        return item(Action.HOLD, PlanReason.PARTICIPANT_ON_HOLD)
    if _ahead(knowledge, id_):
        return item(Action.HOLD, PlanReason.EPOCH_AHEAD_OF_LOG)
    gtrid = xid.gtrid.decode("ascii")
    transaction = knowledge.find(gtrid)
    if transaction is not None:
        return item(*_of_open(transaction, xid.number))
    if knowledge.ended_meanwhile(gtrid):
        return item(Action.LEAVE, PlanReason.ENDED_MEANWHILE)
    return item(Action.ROLLBACK, PlanReason.PRESUMED_ABORT)


def _ahead(knowledge: Knowledge, id_: Gtrid) -> bool:
    if id_.epoch != knowledge.epoch:
        return id_.epoch > knowledge.epoch
    return id_.counter >= knowledge.next_counter


def _of_open(transaction: Transaction, number: int) -> tuple[Action, PlanReason]:
    match transaction.state:
        case State.COMMITTING if transaction.durable:
            return Action.COMMIT, PlanReason.COMMIT_RECORD
        case State.ROLLING_BACK if transaction.durable:
            recovered = transaction.recovered
            return Action.ROLLBACK, PlanReason.PRESUMED_ABORT if recovered else PlanReason.ROLLBACK_DECIDED
        case State.HEURISTIC if transaction.durable and _was_rolled_back(transaction, number):
            return Action.ROLLBACK, PlanReason.CAME_BACK
        case State.HEURISTIC:
            return Action.LEAVE, PlanReason.HEURISTIC_RECORDED
        case _:
            return Action.LEAVE, PlanReason.LIVE_IN_THIS_EPOCH


def _was_rolled_back(transaction: Transaction, number: int) -> bool:
    return any(
        branch.number == number and branch.outcome in (Outcome.ROLLED_BACK, Outcome.HEURISTIC_ROLLBACK)
        for branch in transaction.branches.values()
    )
