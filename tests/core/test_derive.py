"""Outcomes without the log, against a model that enumerates what may have happened.

A world says who took part, how each branch ended and what each participant's rows can prove; it leaves
evidence. The judgement sees only that, and has to be right in every world that leaves it: exactly (all
small worlds), and soundly (large ones, drawn).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.codec import decode_all, encode
from coordinator.core import effects, inputs
from coordinator.core.coordinator import Coordinator
from coordinator.core.derive import (
    Action,
    Basis,
    Case,
    LogFacts,
    Memory,
    NumbersContradict,
    Presumption,
    Seen,
    Sight,
    contradicts,
    judge,
    numbering,
    still_holds,
    strangers,
    why_not,
)
from coordinator.core.records import DeriveRecord
from coordinator.core.replay import OpenTransaction, Replayed, replay
from coordinator.core.settings import Settings
from dtp import Decision, Gtrid, Xid

ID = Gtrid.make("0001", 7, 5, 9)
COMMIT, ROLLBACK = Decision.COMMIT, Decision.ROLLBACK
FATES = ("prepared", "committed", "rolled back", "read only")
NOTHING = Presumption()


@dataclass(frozen=True)
class World:
    """What has happened.

    `fates`: (number, fate) of each branch. `rows`: (number, writes, purged) of each configured participant:
    whether it writes witness rows, and whether rows of that age may be gone. `recorded`: this log has the
    PREPARE record.
    """

    fates: tuple[tuple[int, str], ...]
    rows: tuple[tuple[int, bool, bool], ...]
    recorded: bool = False

    def evidence(self) -> tuple[tuple[tuple[int, Sight], ...], tuple[int, ...]]:
        """What the participants, and the log, tell of it."""
        fates = dict(self.fates)
        everybody = tuple(sorted(fates))
        sights = []
        for number, writes, purged in self.rows:
            fate = fates.get(number)
            if fate == "prepared":
                sight = Sight(Seen.PREPARED, everybody if writes else ())
            elif fate == "committed" and writes and not purged:
                sight = Sight(Seen.COMMITTED, everybody)
            else:
                sight = Sight(Seen.ABSENT if writes and not purged else Seen.UNPROVED)
            sights.append((number, sight))
        return tuple(sights), everybody if self.recorded else ()

    def equal_after(self, decision: Decision) -> bool:
        """Whether ending what is prepared in this way leaves every server with the same outcome."""
        wanted = "committed" if decision is COMMIT else "rolled back"
        return all(fate in (wanted, "prepared", "read only") for _, fate in self.fates)


def worlds(configured: tuple[int, ...], strangers: tuple[int, ...]) -> Iterator[World]:
    """All of them: some of the participants took part, a stranger among them is not configured."""
    everybody = (*configured, *strangers)
    flags = list(itertools.product((True, False), repeat=2))
    for size in range(1, len(everybody) + 1):
        for involved in itertools.combinations(everybody, size):
            for fates in itertools.product(FATES, repeat=size):
                for kept in itertools.product(flags, repeat=len(configured)):
                    rows = tuple((n, *flag) for n, flag in zip(configured, kept, strict=True))
                    for recorded in (True, False):
                        yield World(tuple(zip(involved, fates, strict=True)), rows, recorded)


def case_of(
    evidence: tuple[tuple[tuple[int, Sight], ...], tuple[int, ...]], others: tuple[int, ...] = ()
) -> Case:
    sights, begun = evidence
    return Case(ID, dict(sights), begun=begun, strangers=frozenset(others))


@pytest.mark.parametrize(
    ("configured", "others", "known"), [((1, 2, 3), (), True), ((1, 2), (4,), False), ((1, 2), (4,), True)]
)
def test_what_may_be_presumed_is_exactly_what_is_safe(
    configured: tuple[int, ...], others: tuple[int, ...], known: bool
) -> None:
    """`others` are not configured; `known`: that they exist can be told from the numbers."""
    by_evidence = defaultdict(list)
    for world in worlds(configured, others):
        by_evidence[world.evidence()].append(world)
    bases = set()
    for evidence, possible in by_evidence.items():
        case = case_of(evidence, others if known else ())
        if not any(sight.seen is Seen.PREPARED for sight in case.sights.values()):
            continue  # nothing is left to do
        if not case.named and not known:
            # Nothing tells that there are others; that all are configured is the operator's to see to.
            possible = [w for w in possible if not set(others) & dict(w.fates).keys()]
        judged = judge(case, 7, NOTHING)
        bases.add(judged.basis)
        if judged.basis is Basis.WITNESS_ROW:
            assert judged.action is Action.COMMIT
            assert not any(world.equal_after(ROLLBACK) for world in possible)
            continue
        assert judged.action is Action.OPEN
        safe = {decision for decision in Decision if all(w.equal_after(decision) for w in possible)}
        assert judged.safe == safe, (evidence, possible[:3])
    expected = {Basis.WITNESS_ROW, Basis.ALL_PREPARED, Basis.MAY_HAVE_ROLLED_BACK, Basis.MAY_HAVE_COMMITTED}
    assert bases == (expected | {Basis.NOT_CONFIGURED} if others else expected)


numbers = st.integers(1, 8)


@st.composite
def drawn_worlds(draw: st.DrawFn) -> World:
    configured = draw(st.sets(numbers, min_size=1))
    fates = draw(st.dictionaries(numbers, st.sampled_from(FATES), min_size=1))
    rows = tuple((n, draw(st.booleans()), draw(st.booleans())) for n in sorted(configured))
    return World(tuple(sorted(fates.items())), rows, draw(st.booleans()))


@given(drawn_worlds(), st.sampled_from([None, COMMIT, ROLLBACK]))
@settings(max_examples=1_000, deadline=None)
def test_a_presumption_never_makes_servers_differ(world: World, presumed: Decision | None) -> None:
    case = case_of(world.evidence())
    others = dict(world.fates).keys() - case.sights.keys()
    if not case.named:
        case = replace(case, strangers=frozenset(others))
    judged = judge(case, 7, Presumption(presumed))
    if judged.basis is Basis.WITNESS_ROW:
        assert "committed" in dict(world.fates).values()
    elif judged.action is Action.OPEN:
        assert presumed is None or judged.refused is presumed
    else:
        assert judged.presumed
        assert judged.action.value == presumed.value.lower()  # type: ignore[union-attr]
        assert world.equal_after(presumed)  # type: ignore[arg-type]
    there = {n for n, sight in case.sights.items() if sight.seen in (Seen.PREPARED, Seen.COMMITTED)}
    assert set(judged.missing) == case.named - there
    prepared = {n for n, sight in case.sights.items() if sight.seen is Seen.PREPARED}
    if judged.action is Action.COMMIT:
        assert prepared <= set(judged.commit_at) <= there
    else:
        assert judged.commit_at == ()


@given(drawn_worlds(), st.booleans())
@settings(max_examples=500, deadline=None)
def test_a_record_of_this_log_is_a_proof(world: World, over: bool) -> None:
    sights, _ = world.evidence()
    logged = tuple(number for number, fate in world.fates if fate != "read only")
    if not logged:
        return
    case = Case(ID, dict(sights), logged)
    judged = judge(case, 7, Presumption(ROLLBACK))
    assert not judged.presumed
    if judged.action is Action.LEAVE:
        assert judged.basis is Basis.ENDED
        assert all(dict(sights)[number].seen in (Seen.COMMITTED, Seen.UNPROVED) for number in logged)
    else:
        assert (judged.action, judged.basis) == (Action.COMMIT, Basis.LOG_RECORD)
        assert set(logged) <= set(judged.commit_at)
    assert judge(case, 6, NOTHING).basis is Basis.NEVER_GIVEN


@pytest.mark.parametrize("presumed", [None, COMMIT, ROLLBACK])
def test_an_epoch_that_nobody_remembers_has_no_plan(presumed: Decision | None) -> None:
    """Whatever the evidence and whatever is presumed: the next epochs come up to it."""
    prepared, committed = Sight(Seen.PREPARED, (1, 2)), Sight(Seen.COMMITTED, (1, 2))
    for sights in ({1: prepared, 2: prepared}, {1: prepared, 2: committed}):
        judged = judge(Case(ID, sights), 6, Presumption(presumed, {str(ID): presumed} if presumed else {}))
        assert (judged.action, judged.basis) == (Action.OPEN, Basis.NEVER_GIVEN)
        assert (judged.safe, judged.presumed, judged.refused) == (frozenset(), False, presumed)


@pytest.mark.parametrize(
    ("numbers", "configured", "taken", "others"),
    [
        ({"orders": 1, "payments": 2}, ("orders", "payments"), set(), set()),
        ({"orders": 1, "payments": 2, "old": 3}, ("orders", "payments"), set(), {3}),  # the log knows it
        ({"orders": 1, "payments": 2}, ("orders", "payments"), {1, 4}, {3, 4}),  # a row names it
        ({"orders": 1, "payments": 3}, ("orders", "payments"), set(), {2}),  # numbers are given in order
        ({}, (), set(), set()),
    ],
)
def test_who_has_been_taken_out_is_known_by_number(
    numbers: dict[str, int], configured: tuple[str, ...], taken: set[int], others: set[int]
) -> None:
    assert strangers(numbers, configured, taken) == others


def test_who_has_been_taken_out_may_have_committed() -> None:
    """Witness rows are off, so nobody is named; what is prepared everywhere else is not safe."""
    sights = {1: Sight(Seen.PREPARED), 2: Sight(Seen.PREPARED)}
    assert judge(Case(ID, sights), 7, NOTHING).basis is Basis.ALL_PREPARED
    judged = judge(Case(ID, sights, strangers=frozenset({3})), 7, Presumption(ROLLBACK))
    assert (judged.basis, judged.safe, judged.action) == (Basis.NOT_CONFIGURED, frozenset(), Action.OPEN)
    named = {1: Sight(Seen.PREPARED, (1, 2)), 2: Sight(Seen.PREPARED, (1, 2))}
    assert judge(Case(ID, named, strangers=frozenset({3})), 7, NOTHING).basis is Basis.ALL_PREPARED


def test_single_presumptions_come_before_the_general_one() -> None:
    both = Case(ID, {1: Sight(Seen.PREPARED, (1, 2)), 2: Sight(Seen.PREPARED, (1, 2))})
    presumption = Presumption(COMMIT, {str(ID): ROLLBACK})
    assert judge(both, 7, presumption).action is Action.ROLLBACK
    assert judge(both, 7, Presumption(COMMIT)).commit_at == (1, 2)


@pytest.mark.parametrize(
    ("case", "horizon", "followed"),
    [
        (Case(ID, {1: Sight(Seen.COMMITTED, (1, 2)), 2: Sight(Seen.PREPARED, (1, 2))}), 7, {COMMIT}),
        (Case(ID, {1: Sight(Seen.PREPARED, (1,))}, logged=(1,)), 7, {COMMIT}),
        (Case(ID, {1: Sight(Seen.COMMITTED, (1,))}, logged=(1,)), 7, {COMMIT}),
        (Case(ID, {1: Sight(Seen.PREPARED, (1, 2)), 2: Sight(Seen.PREPARED, (1, 2))}), 7, {COMMIT, ROLLBACK}),
        (Case(ID, {1: Sight(Seen.PREPARED, (1, 2)), 2: Sight(Seen.ABSENT)}), 7, {ROLLBACK}),
        (Case(ID, {1: Sight(Seen.PREPARED, (1, 2)), 2: Sight(Seen.UNPROVED)}), 7, set()),
        (Case(ID, {1: Sight(Seen.PREPARED, (1,))}), 6, set()),
    ],
)
def test_a_single_presumption_is_followed_or_contradicts(
    case: Case, horizon: int, followed: set[Decision]
) -> None:
    """Nobody's presumption is swallowed."""
    for presumed in Decision:
        judged = judge(case, horizon, Presumption(single={str(ID): presumed}))
        assert contradicts(judged, presumed) == (presumed not in followed)


WORKING, ABSENT, PREPARED = Sight(Seen.WORKING), Sight(Seen.ABSENT), Sight(Seen.PREPARED, (1, 2))


@pytest.mark.parametrize(
    ("before", "after", "holds"),
    [
        ({1: PREPARED, 2: ABSENT}, {1: PREPARED, 2: ABSENT}, True),
        ({1: PREPARED, 2: WORKING}, {1: PREPARED, 2: ABSENT}, True),
        ({1: PREPARED, 2: WORKING}, {1: PREPARED, 2: PREPARED}, True),
        ({1: PREPARED, 2: WORKING}, {1: PREPARED, 2: Sight(Seen.COMMITTED, (1, 2))}, False),
        ({1: PREPARED, 2: WORKING}, {1: PREPARED, 2: Sight(Seen.UNPROVED)}, False),
        ({1: PREPARED, 2: PREPARED}, {1: PREPARED, 2: ABSENT}, False),
        ({1: PREPARED, 2: PREPARED}, {1: PREPARED, 2: Sight(Seen.COMMITTED, (1, 2))}, False),
        ({1: PREPARED, 2: ABSENT}, {1: PREPARED}, False),
        ({1: PREPARED, 2: ABSENT}, {1: PREPARED, 2: ABSENT, 3: ABSENT}, False),
    ],
)
def test_what_counts_as_the_same_evidence(
    before: dict[int, Sight], after: dict[int, Sight], holds: bool
) -> None:
    presumption = Presumption(ROLLBACK)
    pairs = [(Case(ID, sights), judge(Case(ID, sights), 7, presumption)) for sights in (before, after)]
    assert still_holds(*pairs) is holds


LOG = LogFacts(b"l" * 16, 7, {6: 66, 7: 77}, {6: 3, 7: 5}, {"orders": 1})


@pytest.mark.parametrize(
    ("log", "memory", "why"),
    [
        (LOG, None, ""),
        (LOG, Memory(1, 7, 77, b"l" * 16), ""),
        (LOG, Memory(1, 6, 66, b"l" * 16, str(Gtrid.make("0001", 7, 5, 1))), ""),
        (LOG, Memory(1, 6, 66, b"l" * 16, str(Gtrid.make("0001", 2, 900, 1))), ""),
        (LOG, Memory(1, 7, 77, b"l" * 16, str(Gtrid.make("0001", 7, 6, 1))), "has committed"),
        (LOG, Memory(1, 7, 77, b"x" * 16), "another log"),
        (LOG, Memory(1, 8, 88, b"l" * 16), "above this log's"),
        (LOG, Memory(1, 7, 78, b"l" * 16), "did not begin"),
        (LOG, Memory(1, 5, 55, b"l" * 16), "has forgotten"),
        (LOG, Memory(2, 7, 77, b"l" * 16), "to be number 2"),
        (LogFacts(), Memory(1, 7, 77, b"x" * 16), "here is none"),
    ],
)
def test_why_a_log_is_not_the_one(log: LogFacts, memory: Memory | None, why: str) -> None:
    found = why_not(log, "orders", memory)
    assert why in found
    assert bool(found) is bool(why)


def remembers(number: int) -> Memory:
    return Memory(number, 7, 77, b"l" * 16)


def test_numbers_are_those_that_participants_remember() -> None:
    log = LogFacts(b"l" * 16, numbers={"orders": 2, "old": 9, "payments": 5})
    memories = {"orders": remembers(1), "payments": None, "new": None}
    assert numbering(log, True, False, memories, {11}) == {"orders": 1, "old": 9, "payments": 5, "new": 12}
    assert numbering(log, False, False, memories, {3}) == {"orders": 1, "payments": 4, "new": 5}
    assert numbering(LogFacts(), False, False, {"orders": None}, set()) == {"orders": 1}
    with pytest.raises(NumbersContradict, match="this log gave orders number 2"):
        numbering(log, True, True, memories, set())
    with pytest.raises(NumbersContradict, match="both remember to be number 4"):
        numbering(log, True, False, {"orders": remembers(4), "payments": remembers(4)}, set())
    taken = LogFacts(b"l" * 16, numbers={"old": 1})
    assert numbering(taken, True, False, {"orders": remembers(1)}, set()) == {"orders": 1}


def begun(numbers: dict[str, int]) -> Coordinator:
    """A start on a log in which a derivation has begun, with a COMMIT record."""
    replayed = Replayed("0001", 7, numbers=numbers, nonces={8: 88}, deriving=True)
    replayed.transactions[str(ID)] = OpenTransaction(ID, (1,), 1.0, COMMIT, 2.0)
    return Coordinator(Settings("0001"), 8, replayed, numbers, 10.0)


def test_a_begun_derivation_holds_everything_whatever_the_agents_say() -> None:
    core = begun({"orders": 1, "payments": 2})
    for name in ("orders", "payments"):
        core.step(inputs.AgentConnected(name, 1), 10.0)
        emitted = core.step(inputs.AgentFenced(name, 1, "server", True, "address", ""), 10.0)
        assert not any(isinstance(effect, (effects.Send, effects.Attach)) for effect in emitted)
    xids = (Xid.of(str(ID), 1), Xid.of(str(Gtrid.make("0001", 7, 6, 1)), 1))
    emitted = core.step(inputs.AgentScanned("orders", 1, 10.0, xids, 0, 0), 10.0)
    emitted += core.step(inputs.TimePassed(), 60.0)
    assert not any(isinstance(effect, (effects.Send, effects.Force)) for effect in emitted)
    assert {p.state.value for p in core.participants.values()} == {"HOLD"}
    assert {item.action.value for item in core.plan("orders", xids)} == {"hold"}
    [reply] = core.step(inputs.BeginRequested(1, 30.0, 5, True), 60.0)
    assert isinstance(reply, effects.Reply)
    assert isinstance(reply.answer, effects.Refused)
    assert "recover --derive" in reply.answer.message


def test_checkpoints_keep_a_derivation_until_it_is_done() -> None:
    """A segment that a held coordinator writes must not lose it."""
    records = begun({"orders": 1}).checkpoint()
    entries = [encode(record) for record in records]
    assert replay(decode_all("0001", entries)).deriving
    done = [*records, DeriveRecord(8, 20.0, done=True)]
    state = replay(decode_all("0001", [encode(record) for record in done]))
    assert not state.deriving
    assert state.transactions[str(ID)].decision is COMMIT
    core = Coordinator(Settings("0001"), 9, state, ["orders"], 30.0)
    assert not any(isinstance(record, DeriveRecord) for record in core.checkpoint())
