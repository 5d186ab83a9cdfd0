"""Derive: outcomes without the log, as a pure function from evidence to a plan (docs/decisions/0011).

For each transaction that is prepared anywhere, or that this log has decided to commit:

1. its epoch is above all that anybody remembers     -> open     NEVER_GIVEN
2. this log has its COMMIT record
   a. and every branch that it names has ended       -> leave    ENDED
   b. otherwise                                      -> commit   LOG_RECORD
3. a participant has its committed witness row       -> commit   WITNESS_ROW
4. none has, so nothing proves what was decided:
   a. one that is not configured may have taken part -> open     NOT_CONFIGURED
   b. a participant may have committed it unseen     -> open     MAY_HAVE_COMMITTED
   c. all that took part are prepared                -> presume rollback or commit   ALL_PREPARED
   d. otherwise                                      -> presume rollback   MAY_HAVE_ROLLED_BACK

Why 3 is a proof: a branch commits only after the decision, or by another hand, and then the rest has to
follow. Why 4d may not be committed: a participant without branch and row has rolled back, or only read (a
branch that changed nothing leaves neither); nobody can tell which. Who took part, rows or a PREPARE record
say; where there is neither, every participant may have that ever had a number, also one that has been taken
out of the configuration. 1 cannot be presumed and not be left alone: the epoch that a takeover begins may be
its own, and then it would be an orphan without record and be rolled back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dtp import Decision, Gtrid
from dtp.term import Term


class Seen(Term):
    """What one participant knows of one transaction."""

    COMMITTED = "its witness row is committed"
    PREPARED = "XA RECOVER lists its branch"
    WORKING = "a session still works on it"
    ABSENT = "no branch and no row: it did not commit here"
    UNPROVED = "no branch, and no row could be expected: nothing is proved"


@dataclass(frozen=True, slots=True)
class Sight:
    """One participant's evidence; `named`: the numbers in its witness row, empty where none can be read."""

    seen: Seen
    named: tuple[int, ...] = ()


class Action(Term):
    """What to do with a transaction. OPEN: people have to presume its outcome, or to find it out."""

    COMMIT = "commit"
    ROLLBACK = "rollback"
    LEAVE = "leave"
    OPEN = "open"


class Basis(Term):
    """Why. The value explains it to people."""

    NEVER_GIVEN = (
        "its epoch is above all that anybody remembers: nobody knows who gave it; end its branches by hand"
    )
    ENDED = "this log has its COMMIT record, and it has ended everywhere"
    LOG_RECORD = "this log has its COMMIT record"
    WITNESS_ROW = "a participant has committed it"
    NOT_CONFIGURED = (
        "a participant that is not in the configuration took part, or may have, and may know its outcome"
    )
    MAY_HAVE_COMMITTED = "a participant may have committed it without leaving a row; look at its data"
    ALL_PREPARED = (
        "nothing proves the decision; all its branches are prepared, so either keeps the servers equal"
    )
    MAY_HAVE_ROLLED_BACK = (
        "nothing proves the decision; not all are prepared and none has committed, so only a rollback surely "
        "keeps the servers equal"
    )


_BOTH = frozenset({Decision.COMMIT, Decision.ROLLBACK})
_ROLLBACK = frozenset({Decision.ROLLBACK})
_NEITHER: frozenset[Decision] = frozenset()
_THERE = (Seen.COMMITTED, Seen.PREPARED, Seen.WORKING)


@dataclass(frozen=True, slots=True)
class Case:
    """The evidence about one transaction.

    Attributes:
        sights: of every configured participant, by number.
        logged: the numbers in this log's COMMIT record, None where it has none.
        begun: the numbers in this log's PREPARE record.
        strangers: the numbers of participants that are not configured; they matter where nobody is named.
    """

    id: Gtrid
    sights: Mapping[int, Sight]
    logged: tuple[int, ...] | None = None
    begun: tuple[int, ...] = ()
    strangers: frozenset[int] = frozenset()

    @property
    def named(self) -> frozenset[int]:
        """Everybody that a row or the log names."""
        rows = (number for sight in self.sights.values() for number in sight.named)
        return frozenset(rows) | frozenset(self.logged or ()) | frozenset(self.begun)


@dataclass(frozen=True, slots=True)
class Presumption:
    """What an operator presumes where nothing is proved: in general, and of single transactions."""

    general: Decision | None = None
    single: Mapping[str, Decision] = field(default_factory=dict)

    def of(self, gtrid: str) -> Decision | None:
        """Of one transaction."""
        return self.single.get(gtrid, self.general)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The plan of one transaction.

    Attributes:
        safe: what may be presumed, because it keeps the servers equal whatever has happened.
        presumed: the action is an operator's presumption.
        refused: an operator presumed what is not safe.
        missing: named, and neither a branch nor a row is there: rolled back, or it only read.
        commit_at: whom a COMMIT record has to name.
    """

    id: Gtrid
    action: Action
    basis: Basis
    safe: frozenset[Decision] = _NEITHER
    presumed: bool = False
    refused: Decision | None = None
    missing: tuple[int, ...] = ()
    commit_at: tuple[int, ...] = ()


def judge(case: Case, horizon: int, presumption: Presumption) -> Judgement:
    """What to do with one transaction.

    Args:
        horizon: the highest epoch that any participant or this log remembers.
    """
    there = {number for number, sight in case.sights.items() if sight.seen in _THERE}
    missing = tuple(sorted(case.named - there))
    if case.id.epoch > horizon:
        refused = presumption.of(str(case.id))
        return Judgement(case.id, Action.OPEN, Basis.NEVER_GIVEN, refused=refused, missing=missing)
    if case.logged is not None:
        if _is_over(case, there):
            return Judgement(case.id, Action.LEAVE, Basis.ENDED)
        # Whom the log names it has to ask, also one whose branch is gone: that is a heuristic outcome.
        commit_at = tuple(sorted(set(case.logged) | there))
        return Judgement(case.id, Action.COMMIT, Basis.LOG_RECORD, missing=missing, commit_at=commit_at)
    if any(sight.seen is Seen.COMMITTED for sight in case.sights.values()):
        commit_at = tuple(sorted(there))
        return Judgement(case.id, Action.COMMIT, Basis.WITNESS_ROW, missing=missing, commit_at=commit_at)
    basis, safe = _without_proof(case, there)
    presumed = presumption.of(str(case.id))
    if presumed is None or presumed not in safe:
        return Judgement(case.id, Action.OPEN, basis, safe, refused=presumed, missing=missing)
    action = Action.COMMIT if presumed is Decision.COMMIT else Action.ROLLBACK
    commit_at = tuple(sorted(there)) if action is Action.COMMIT else ()
    return Judgement(case.id, action, basis, safe, True, None, missing, commit_at)


def contradicts(judged: Judgement, presumed: Decision) -> bool:
    """Whether something else is to be done than what an operator presumes of this one transaction."""
    if judged.basis is Basis.ENDED:
        return presumed is Decision.ROLLBACK
    return judged.action.value != presumed.value.lower()


def _is_over(case: Case, there: set[int]) -> bool:
    """Whether nothing is left to do of a transaction that the log has decided to commit."""
    over = (Seen.COMMITTED, Seen.UNPROVED)
    asked = set(case.logged or ()) | there
    return all(number in case.sights and case.sights[number].seen in over for number in asked)


def _without_proof(case: Case, there: set[int]) -> tuple[Basis, frozenset[Decision]]:
    """Rule 4: what may be presumed."""
    named = case.named
    if (named or case.strangers) - set(case.sights):
        return Basis.NOT_CONFIGURED, _NEITHER
    involved = (named or frozenset(case.sights)) | there
    seen = {case.sights[number].seen for number in involved}
    if Seen.UNPROVED in seen:
        return Basis.MAY_HAVE_COMMITTED, _NEITHER
    if seen == {Seen.PREPARED}:
        return Basis.ALL_PREPARED, _BOTH
    return Basis.MAY_HAVE_ROLLED_BACK, _ROLLBACK


def still_holds(before: tuple[Case, Judgement], after: tuple[Case, Judgement]) -> bool:
    """Whether a judgement made before the fences is still that of the same evidence.

    A session that worked then has ended, one way or the other; that may not change what is done.
    """
    (case, judged), (later, judged_later) = before, after
    if (judged.action, judged.presumed) != (judged_later.action, judged_later.presumed):
        return False
    for number, sight in case.sights.items():
        now = later.sights.get(number)
        ended = sight.seen is Seen.WORKING and now is not None and now.seen is not Seen.COMMITTED
        if not ended and now != sight:
            return False
    return set(later.sights) == set(case.sights)


@dataclass(frozen=True, slots=True)
class Memory:
    """What one participant remembers of the coordinator."""

    number: int
    epoch: int
    nonce: int
    log_identity: bytes
    last_committed: str = ""


@dataclass(frozen=True, slots=True)
class LogFacts:
    """What this log says of itself; `identity` empty: there is none."""

    identity: bytes = b""
    epoch: int = 0
    nonces: Mapping[int, int] = field(default_factory=dict)
    marks: Mapping[int, int] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    deriving: bool = False
    repaired: bool = False


def why_not(log: LogFacts, participant: str, memory: Memory | None) -> str:
    """Why a participant would put this log on HOLD, "" where it would not; what a fence says, in advance."""
    if memory is None:
        return ""
    if log.identity != memory.log_identity:
        return "it remembers another log" if log.identity else "it remembers a log, and here is none"
    if log.numbers.get(participant) != memory.number:
        return f"it remembers to be number {memory.number}"
    if log.nonces.get(memory.epoch) != memory.nonce:
        newer = memory.epoch > log.epoch
        return f"it remembers epoch {memory.epoch}, which " + (
            f"is above this log's, {log.epoch}" if newer else "this log did not begin or has forgotten"
        )
    if memory.last_committed:
        last = Gtrid.parse(memory.last_committed)
        if last.epoch in log.nonces and last.counter > log.marks.get(last.epoch, 0):
            return f"it has committed {memory.last_committed}, of which this log has no record"
    return ""


def strangers(numbers: Mapping[str, int], configured: Iterable[str], taken: set[int]) -> frozenset[int]:
    """Numbers that were given to participants that are not configured: known by name, named in a row, or left
    out below these, because numbers are given in order and only once."""
    highest = max({0, *numbers.values(), *taken})
    return frozenset(range(1, highest + 1)) - {numbers[name] for name in configured}


class NumbersContradict(Exception):
    """Participants, or a participant and the log's open transactions, use one number twice."""


def numbering(
    log: LogFacts, is_ours: bool, has_open: bool, memories: Mapping[str, Memory | None], taken: set[int]
) -> dict[str, int]:
    """The participants' numbers: those that they remember, then the log's, then new ones.

    Args:
        is_ours: a participant remembers this log, or a derivation has begun in it.
        has_open: the log has open transactions, which name its numbers.
        taken: numbers that witness rows name; nobody else may get them.

    Raises:
        NumbersContradict: there is no way to number them.
    """
    numbers = {name: memory.number for name, memory in memories.items() if memory is not None}
    owners: dict[int, str] = {}
    for name, number in numbers.items():
        if owners.setdefault(number, name) != name:
            raise NumbersContradict(f"{owners[number]} and {name} both remember to be number {number}")
    for name, number in log.numbers.items() if is_ours else ():
        if numbers.get(name, number) == number and owners.get(number, name) == name:
            numbers[name] = number
            owners[number] = name
        elif has_open:
            raise NumbersContradict(
                f"this log gave {name} number {number}, and a participant remembers otherwise"
            )
    for name in memories:
        if name not in numbers:
            numbers[name] = max({0, *owners, *taken}) + 1
            owners[numbers[name]] = name
    return numbers
