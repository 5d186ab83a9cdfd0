"""Derive: what is to be done when the log is lost (`coordctl recover --derive`; docs/decisions/0011).

Every participant is asked what it remembers of the coordinator, and what it knows of each transaction that is
prepared anywhere or that this log has decided. core/derive.py judges; takeover.py carries the plan out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.config import Config
from coordinator.core.derive import (
    Action,
    Basis,
    Case,
    Judgement,
    LogFacts,
    Memory,
    NumbersContradict,
    Presumption,
    Seen,
    Sight,
    contradicts,
    judge,
    numbering,
    strangers,
    why_not,
)
from coordinator.core.replay import Replayed
from coordinator.journal import JournalError, replay_entries
from coordinator.recall import Agents, Told, Unanswered
from dtp import Decision, Gtrid
from wal import Recovered

_LISTED = 5
_BY_HAND = "bring that participant into the configuration, or end the branches by hand (coordctl xid)"
_WHOSE = (
    "find out whose it is, and end it by hand (docs/operations.md#branches-that-this-log-never-gave): the "
    "coordinator would sooner or later take it for its own and roll it back"
)

# Until its pings fail an agent counts a coordinator whose machine has died as attached (the agent's
# daemon.py: they fail within 20 s).
NOTICED_SECONDS = 30


class DeriveRefused(Exception):
    """It was not done, or not to its end; `reason` is a stable code, the message says what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class Plan:
    """What is known, and what follows from it.

    Attributes:
        identity: of this log, empty where there is none.
        is_ours: a participant remembers this log, so its COMMIT records and keys are this coordinator's.
        horizon: the highest epoch that can have given ids; `epoch`: the one that a takeover begins.
        why: participant -> why it would put this log on HOLD.
        names: number -> participant.
        judged: every transaction with its evidence, in the order of gtrids.
        heuristic: (gtrid, outcome) of what others had ended otherwise, once it was carried out.
        result: (gtrid, participant) -> what became of the branch, once it was carried out.
    """

    coordinator_id: str
    directory: str
    identity: bytes
    is_ours: bool
    deriving: bool
    repaired: bool
    horizon: int
    epoch: int
    why: dict[str, str]
    told: dict[str, Told]
    numbers: dict[str, int]
    judged: list[tuple[Case, Judgement]]
    replayed: Replayed
    result: dict[tuple[str, str], str] = field(default_factory=dict)
    heuristic: list[tuple[str, str]] = field(default_factory=list)

    @property
    def names(self) -> dict[int, str]:
        return {number: name for name, number in self.numbers.items()}

    @property
    def attached(self) -> dict[str, int]:
        """Where a coordinator of this id is attached, with its epoch: it runs."""
        return {name: answer.attached for name, answer in self.told.items() if answer.attached}

    @property
    def needed(self) -> bool:
        """Whether a start with this log would not do."""
        return self.deriving or self.repaired or any(self.why.values())


async def make_plan(
    config: Config, recovered: Recovered | None, agents: Agents, presumption: Presumption
) -> Plan:
    """Ask and judge; nothing is changed.

    Raises:
        DeriveRefused, JournalError; LogContradiction, UnknownRecord: the log cannot be used.
    """
    replayed = Replayed() if recovered is None else replay_entries(recovered.entries)
    coordinator_id = config.coordinator.id
    if replayed.coordinator_id not in ("", coordinator_id):
        raise JournalError(
            f"the log belongs to coordinator {replayed.coordinator_id!r}, the configuration says "
            f"{coordinator_id!r}: set [coordinator] id or data_dir right"
        )
    facts = _facts(recovered, replayed)
    try:
        told = await agents.ask(replayed.transactions)
    except Unanswered as error:
        raise DeriveRefused(
            "PARTICIPANT_UNAVAILABLE",
            f"every participant has to answer, and these did not: {error}; run it again when they are back",
        ) from error
    memories = {name: answer.memory for name, answer in told.items()}
    is_ours = facts.deriving or facts.repaired or _is_known(facts, memories)
    if not is_ours and replayed.transactions:
        raise DeriveRefused(
            "FOREIGN_LOG",
            f"{config.coordinator.data_dir} has a log with open transactions that no participant remembers: "
            "its decisions are others'; set data_dir right, or give it an empty directory",
        )
    numbers = _number(facts, is_ours, replayed, memories, told)
    remembered = max((m.epoch for m in memories.values() if m is not None), default=0)
    horizon = max(remembered, facts.epoch if is_ours else 0)
    plan = Plan(
        coordinator_id,
        config.coordinator.data_dir,
        facts.identity,
        is_ours,
        facts.deriving,
        facts.repaired,
        horizon,
        max(remembered, facts.epoch) + 1,
        {name: why_not(facts, name, memory) for name, memory in memories.items()},
        told,
        numbers,
        [],
        replayed,
    )
    cases = cases_of(told, numbers, replayed)
    plan.judged = [(case, judge(case, horizon, presumption)) for case in cases]
    if not plan.needed:
        raise _nothing_to_derive(plan)
    _check_single(plan, presumption)
    return plan


def _nothing_to_derive(plan: Plan) -> DeriveRefused:
    """Why a start with this log would do, and what it would leave alone."""
    never = [str(judged.id) for _, judged in plan.judged if judged.basis is Basis.NEVER_GIVEN]
    advice = ""
    if never:
        advice = f". It never gave {_some(never)}, which is prepared all the same: {_WHOSE}"
    if all(answer.memory is None for answer in plan.told.values()):
        return DeriveRefused(
            "UNKNOWN_COORDINATOR",
            f"no participant remembers coordinator {plan.coordinator_id}: check [coordinator] id and the "
            "addresses under [participants]; if the system is new, or every agent's schema was dropped, "
            f"there is nothing to derive from: start the coordinator{advice}",
        )
    return DeriveRefused(
        "NOTHING_TO_DERIVE",
        f"{plan.directory} has the log that every participant remembers: start the coordinator, or "
        f"`coordctl recover`{advice}",
    )


def _check_single(plan: Plan, presumption: Presumption) -> None:
    """Raises DeriveRefused where one transaction's presumption is not what would be done with it."""
    judgements = {str(judged.id): judged for _, judged in plan.judged}
    for gtrid, presumed in sorted(presumption.single.items()):
        judged = judgements.get(gtrid)
        if judged is None:
            raise DeriveRefused(
                "UNKNOWN_TRANSACTION", f"{gtrid} is not in the plan; nothing is to be presumed"
            )
        if contradicts(judged, presumed):
            way = "leave that presumption out"
            if judged.action is Action.OPEN:
                by_hand = _WHOSE if judged.basis is Basis.NEVER_GIVEN else _BY_HAND
                way = "only rollback may be presumed" if judged.safe else by_hand
            word = presumed.value.lower()
            raise DeriveRefused("PRESUMPTION_REFUSED", f"{gtrid}={word}: {judged.basis.value}; {way}")


def _is_known(facts: LogFacts, memories: Mapping[str, Memory | None]) -> bool:
    """Whether a participant knows this log, or what it was before a repair gave it another identity."""
    return any(
        memory.log_identity == facts.identity or facts.nonces.get(memory.epoch) == memory.nonce
        for memory in memories.values()
        if memory is not None
    )


def _facts(recovered: Recovered | None, replayed: Replayed) -> LogFacts:
    if recovered is None or recovered.created:
        return LogFacts()
    return LogFacts(
        recovered.identity,
        max(replayed.epoch, recovered.epoch),
        replayed.nonces,
        replayed.marks,
        replayed.numbers,
        replayed.deriving,
        recovered.repaired,
    )


def _number(
    facts: LogFacts,
    is_ours: bool,
    replayed: Replayed,
    memories: Mapping[str, Memory | None],
    told: Mapping[str, Told],
) -> dict[str, int]:
    try:
        return numbering(facts, is_ours, bool(replayed.transactions), memories, _taken(told))
    except NumbersContradict as error:
        raise DeriveRefused(
            "NUMBERS_CONTRADICT",
            f"{error}: agents or logs of two coordinators with one id are mixed up; compare the addresses "
            "under [participants] and the tables xacoord.coordinator",
        ) from error


def _taken(told: Mapping[str, Told]) -> set[int]:
    """Numbers that witness rows name."""
    rows = (sight.named for answer in told.values() for sight in answer.sights.values())
    return {number for named in rows for number in named}


def cases_of(told: Mapping[str, Told], numbers: Mapping[str, int], replayed: Replayed) -> list[Case]:
    """What is prepared at a participant, or decided in the log, with everybody's evidence."""
    open_: set[str] = set()
    for name, answer in told.items():
        open_ |= {xid.gtrid.decode("ascii") for xid in answer.prepared if xid.number == numbers[name]}
    decided = {
        gtrid: entry.participants
        for gtrid, entry in replayed.transactions.items()
        if entry.decision is Decision.COMMIT and not (entry.heuristic and gtrid not in open_)
    }
    nothing = Sight(Seen.UNPROVED)
    others = strangers(numbers, told, _taken(told))
    return [
        Case(
            Gtrid.parse(gtrid),
            {numbers[name]: answer.sights.get(gtrid, nothing) for name, answer in told.items()},
            decided.get(gtrid),
            replayed.transactions[gtrid].participants if gtrid in replayed.transactions else (),
            others,
        )
        for gtrid in sorted(open_ | set(decided))
    ]


def describe_attached(coordinator_id: str, attached: Mapping[str, int]) -> str:
    """What it means that a coordinator of this id runs, and what to do."""
    where = ", ".join(f"{name} (epoch {epoch})" for name, epoch in attached.items())
    return (
        f"a coordinator {coordinator_id} is attached at {where}: it runs, and its log knows what it has "
        "decided. If that is this id's real log there is nothing to derive: use that log. Otherwise stop it; "
        f"if it has just died, the agents notice that within {NOTICED_SECONDS} s: run it again then"
    )


def check_attached(coordinator_id: str, attached: Mapping[str, int], then: str) -> None:
    """Raises DeriveRefused where a coordinator is attached; `then`: what has been done so far."""
    if attached:
        message = f"{describe_attached(coordinator_id, attached)}; {then}"
        raise DeriveRefused("COORDINATOR_ATTACHED", message)


def check_applicable(plan: Plan) -> None:
    """Raises DeriveRefused where a transaction has no plan."""
    open_ = [judged for _, judged in plan.judged if judged.action is Action.OPEN]
    never = [judged for judged in open_ if judged.basis is Basis.NEVER_GIVEN]
    hopeless = [judged for judged in open_ if not judged.safe]
    refused = [judged for judged in open_ if judged.refused is not None]
    only = [judged for judged in open_ if Decision.COMMIT not in judged.safe]
    if not open_:
        return
    reason, found = "NO_PLAN", open_
    if never:
        found, way = never, _WHOSE
    elif hopeless:
        found, way = hopeless, _BY_HAND
    elif refused:
        reason, found = "PRESUMPTION_REFUSED", refused
        way = "give --presume GTRID=rollback for each, or --presume rollback for all"
    elif only:
        way = "give --presume rollback for all, or GTRID=rollback (GTRID=commit where it may be) for each"
    else:
        way = "give --presume rollback or --presume commit for all, or GTRID=... for each"
    listed = _some([f"{judged.id} ({_may_presume(judged)})" for judged in found])
    raise DeriveRefused(
        reason,
        f"{listed}: {found[0].basis.value}; {way}. Transactions without a plan: {len(open_)}",
    )


def _may_presume(judged: Judgement) -> str:
    words = sorted(decision.value.lower() for decision in judged.safe)
    return f"{' or '.join(words)} may be presumed" if words else "nothing may be presumed"


def _some(items: list[str]) -> str:
    """The first of them, and how many are left."""
    left = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {left} more" if left > 0 else "")
