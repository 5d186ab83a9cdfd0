"""The pure procedures against a scripted server: every (verb, result) drawn; no outcome without proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dtp import Reason, Vote, XacoordError, Xid
from participant_agent.core import batch, finish
from participant_agent.core.effects import (
    Answers,
    Batch,
    Lost,
    Ok,
    OnControl,
    Query,
    Result,
    ServerError,
    Sleep,
    TooLarge,
    Verb,
)
from participant_agent.core.engine import Engine
from participant_agent.core.errors import MEANINGS
from participant_agent.core.finish import Branch, Finished, SessionUse, State
from participant_agent.core.recovery import Fenced, contradiction
from participant_agent.core.resolve import Evidence
from participant_agent.core.sessions import Session, end_session, lock_query
from participant_agent.core.work import Statement, Voted, Work
from participant_agent.fences import read_fence
from participant_agent.v1 import participant_agent_pb2 as pb

GTRID = "k1test00010000000001"
XID = Xid.of(GTRID, 7)
SESSION = Session(42, "xacoord.p.3")

ERRNOS = sorted({errno for _, errno in MEANINGS} | {1040, 1197, 1264, 1290, 1305, 2014, 3024, 4095})
RESULTS = st.one_of(
    st.just(Ok((), 1)),
    st.sampled_from(ERRNOS).map(lambda errno: ServerError(errno, "XAER_RMFAIL: ... ROLLBACK ONLY state")),
    st.sampled_from(ERRNOS).map(lambda errno: ServerError(errno, "said the server")),
    st.booleans().map(lambda timed_out: Lost("gone", timed_out)),
)


class Twin:
    """A server of which a test knows the truth: is the branch listed, is its witness row there?"""

    def __init__(
        self, engine: Engine, answers: Callable[[Verb], Result], listed: bool, witness: bool, reachable: bool
    ) -> None:
        self.engine, self.answers = engine, answers
        self.listed, self.witness, self.reachable = listed, witness, reachable
        self.verbs: list[Verb] = []
        self.said: list[str] = []
        self.killed = 0
        self.lockless = False

    def perform(self, procedure: Any) -> Any:
        try:
            effect = next(procedure)
            while True:
                effect = procedure.send(self._answer(effect))
        except StopIteration as stop:
            return stop.value

    def _answer(self, effect: Any) -> Any:
        if isinstance(effect, Batch):
            return self._answer_batch(effect)
        if isinstance(effect, Sleep):
            return Ok()
        if isinstance(effect, OnControl):
            return self._control(effect.query.sql) if self.reachable else Lost("no control connection")
        assert isinstance(effect, Query)
        if effect == lock_query(SESSION):
            return Ok(((None if self.lockless else 1,),), 1)
        self.verbs.append(effect.verb)
        self.said.append(effect.sql)
        if effect.verb is Verb.OTHER:
            return Ok((("Handler_write", "0"),), 1)
        if effect.verb is Verb.WITNESS and self.lockless:
            return ServerError(1242, "Subquery returns more than 1 row")
        return self.answers(effect.verb)

    def _answer_batch(self, effect: Batch) -> Answers:
        """Where our connection is lost in the middle, the server goes on."""
        results: list[Result] = []
        for query in effect.queries:
            result = self._answer(query)
            if not results or isinstance(results[-1], Ok):
                results.append(result)
            if isinstance(result, ServerError):
                break
        return Answers(tuple(results))

    def _control(self, sql: str) -> Result:
        if sql.startswith("KILL"):
            self.killed += 1
            return Ok()
        if "IS_USED_LOCK" in sql:
            return Ok(((None if self.killed else SESSION.connection_id,),), 1)
        if sql.startswith("XA RECOVER"):
            raw = XID.gtrid + XID.bqual
            data = raw if self.engine is Engine.MARIADB else f"0x{raw.hex()}"
            return Ok(((1, 20, 4, data),) if self.listed else (), int(self.listed))
        assert "witness" in sql, sql
        return Ok(((int(self.witness),),), 1)


def branch(engine: Engine, witness: bool = True, write_less: bool = False) -> Branch:
    return Branch(engine, XID, Evidence("xacoord.witness" if witness else None), write_less)


@st.composite
def twins(draw: st.DrawFn) -> Twin:
    results = {verb: draw(RESULTS) for verb in Verb}
    return Twin(
        draw(st.sampled_from(list(Engine))),
        lambda verb: results[verb],
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([True, True, True, False])),
    )


@settings(max_examples=300, deadline=None)
@given(twins(), st.booleans(), st.booleans())
def test_commit_never_invents_an_outcome(twin: Twin, table: bool, write_less: bool) -> None:
    result = twin.perform(finish.commit(branch(twin.engine, table, write_less), SESSION))
    answer = twin.answers(Verb.COMMIT)
    proven = isinstance(answer, Ok)
    if result.state is State.COMMITTED:
        assert proven or (twin.reachable and not twin.listed and ((table and twin.witness) or write_less))
    elif result.state is State.HEURISTIC_ROLLBACK:
        assert twin.reachable
        assert (twin.listed, table, twin.witness) == (False, True, False)
    elif result.state is State.HEURISTIC_HAZARD:
        assert twin.reachable
        assert not twin.listed
        assert not table
    else:
        assert result.state is State.RETRY
        assert result.failure is not None
    if isinstance(answer, Lost):
        assert twin.killed or not twin.reachable
        assert result.use is SessionUse.CLOSE


@settings(max_examples=300, deadline=None)
@given(twins(), st.booleans(), st.booleans())
def test_rollback_never_invents_an_outcome(twin: Twin, table: bool, active: bool) -> None:
    result = twin.perform(finish.rollback(branch(twin.engine, table), SESSION, active))
    said_so = isinstance(twin.answers(Verb.ROLLBACK), Ok) and Verb.ROLLBACK in twin.verbs
    if result.state is State.ROLLED_BACK:
        assert said_so or (twin.reachable and not twin.listed and not (table and twin.witness))
    elif result.state is State.HEURISTIC_COMMIT:
        assert twin.reachable
        assert table
        assert twin.witness
        assert not twin.listed
    else:
        assert result.state is State.RETRY
    if result.use is SessionUse.FREE:
        assert not isinstance(twin.answers(Verb.ROLLBACK), Lost)


@settings(max_examples=300, deadline=None)
@given(twins(), st.booleans(), st.booleans())
def test_one_phase_never_invents_an_outcome(twin: Twin, table: bool, write_less: bool) -> None:
    assume(twin.engine is Engine.MYSQL or write_less)
    result = twin.perform(finish.commit_one_phase(branch(twin.engine, table, write_less), SESSION))
    answer = twin.answers(Verb.COMMIT_ONE_PHASE)
    if result.state is State.COMMITTED:
        assert isinstance(answer, Ok) or (twin.reachable and table and twin.witness and not twin.listed)
    elif result.state is State.ROLLED_BACK:
        gone = isinstance(answer, ServerError) and answer.errno in (1205, 1317, 1613, 1614)
        assert gone or (twin.reachable and not twin.listed and (write_less or (table and not twin.witness)))
    elif result.state is State.HEURISTIC_HAZARD:
        assert not table
    else:
        assert result.state is State.RETRY
    assert Verb.PREPARE not in twin.verbs


@settings(max_examples=300, deadline=None)
@given(twins(), st.booleans())
def test_mariadb_is_not_trusted_with_one_phase(twin: Twin, table: bool) -> None:
    """It may forget one that it has acknowledged; so the branch is prepared, then committed."""
    twin.engine = Engine.MARIADB
    result = twin.perform(finish.commit_one_phase(branch(twin.engine, table), SESSION))
    prepare, answer = twin.answers(Verb.PREPARE), twin.answers(Verb.COMMIT_ONE_PHASE)
    assert not [sql for sql in twin.said if "ONE PHASE" in sql]
    assert (Verb.COMMIT_ONE_PHASE in twin.verbs) == isinstance(prepare, Ok)
    gone = twin.reachable and not twin.listed
    if result.state is State.COMMITTED:
        said_so = isinstance(prepare, Ok) and isinstance(answer, Ok)
        assert said_so or (gone and table and twin.witness)
    elif result.state is State.ROLLED_BACK:
        refused = isinstance(prepare, ServerError)
        assert refused or (isinstance(prepare, Lost) and gone and table and not twin.witness)
    elif result.state is State.HEURISTIC_ROLLBACK:
        assert isinstance(prepare, Ok)
        assert (gone, table, twin.witness) == (True, True, False)
    elif result.state is State.HEURISTIC_COMMIT:
        assert (gone, table, twin.witness) == (True, True, True)
    elif result.state is State.HEURISTIC_HAZARD:
        assert not table
    else:
        assert result.state is State.RETRY


@settings(max_examples=300, deadline=None)
@given(twins(), st.booleans())
def test_what_a_one_phase_commit_left_prepared_is_committed(twin: Twin, table: bool) -> None:
    result = twin.perform(finish.commit_in_doubt(branch(twin.engine, table), SESSION))
    assert (Verb.COMMIT in twin.verbs) == (twin.reachable and twin.listed)
    if twin.reachable and twin.listed:
        assert result.state is State.COMMITTED or not isinstance(twin.answers(Verb.COMMIT), Ok)
    elif twin.reachable and table:
        assert result.state is (State.COMMITTED if twin.witness else State.ROLLED_BACK)
    else:
        assert result.state is (State.HEURISTIC_HAZARD if twin.reachable else State.RETRY)


def _willing(engine: Engine) -> Twin:
    """A server that does all that it is asked for."""
    return Twin(engine, lambda verb: Ok((), 1), listed=False, witness=False, reachable=True)


TWINS = st.one_of(twins(), st.sampled_from(list(Engine)).map(_willing))


@settings(max_examples=300, deadline=None)
@given(TWINS, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_a_vote_ok_means_prepared(
    twin: Twin, reads: bool, read_only: bool, table: bool, simple: bool, stepwise: bool
) -> None:
    statement = Statement("SELECT 1" if reads else "UPDATE a SET v = 1", plain_read=reads, simple=simple)
    job = Work(branch(twin.engine, table), SESSION, read_only)
    result: Any
    if stepwise:
        worked = twin.perform(batch.begin(job, (statement,)))
        if worked.failure is not None:
            return
        result = twin.perform(batch.prepare(job, (7, 8)))
    else:
        result = twin.perform(batch.run(job, (statement,), (7, 8), one_phase=False))
    assert isinstance(result, Voted)
    ok = {verb: isinstance(twin.answers(verb), Ok) for verb in Verb}
    began = ok[Verb.START] and ok[Verb.STATEMENT]
    if result.vote is Vote.OK:
        assert began
        assert ok[Verb.END]
        assert ok[Verb.PREPARE]
        assert not read_only
        assert ok[Verb.WITNESS]
        assert any(sql.startswith("INSERT INTO xacoord.witness") for sql in twin.said) is table
        assert result.use is (SessionUse.FREE if twin.engine is Engine.MYSQL else SessionUse.HOLDS)
    elif result.vote is Vote.READ_ONLY:
        assert began
        assert read_only or reads
        assert Verb.PREPARE not in twin.verbs
        assert Verb.WITNESS not in twin.verbs
    else:
        assert result.failure is not None
        unanswered = Verb.PREPARE in twin.verbs and not isinstance(twin.answers(Verb.PREPARE), ServerError)
        assert result.in_doubt or not unanswered


@settings(max_examples=300, deadline=None)
@given(TWINS, st.booleans(), st.booleans())
def test_one_phase_run_is_committed_only_by_the_server(twin: Twin, table: bool, simple: bool) -> None:
    job = Work(branch(twin.engine, table), SESSION, read_only=False)
    statement = Statement("UPDATE a SET v = 1", simple=simple)
    result = twin.perform(batch.run(job, (statement,), (7,), one_phase=True))
    assert isinstance(result, Finished)
    if result.state is State.COMMITTED:
        committed = isinstance(twin.answers(Verb.COMMIT_ONE_PHASE), Ok)
        prepared = isinstance(twin.answers(Verb.PREPARE), Ok)
        two_steps = twin.engine is Engine.MARIADB
        assert (Verb.COMMIT_ONE_PHASE in twin.verbs) == (prepared or not two_steps)
        assert committed or (table and twin.witness)


@settings(max_examples=300, deadline=None)
@given(
    TWINS,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_session_without_its_lock_is_for_nobody_else(
    twin: Twin, reads: bool, one_phase: bool, table: bool, simple: bool
) -> None:
    twin.lockless = True
    sql = "SELECT f()" if reads else "UPDATE a SET v = f()"
    statement = Statement(sql, plain_read=reads, simple=simple)
    job = Work(branch(twin.engine, witness=table), SESSION, read_only=False)
    result = twin.perform(batch.run(job, (statement,), (7,), one_phase))
    assert result.use is SessionUse.CLOSE
    assert reads or isinstance(result, Finished) or result.vote is Vote.ROLLBACK
    assert reads or not {Verb.PREPARE, Verb.COMMIT_ONE_PHASE} & set(twin.verbs)
    undone = twin.perform(finish.rollback(branch(twin.engine), SESSION, active=True))
    assert undone.use is SessionUse.CLOSE


def test_a_statement_that_fails_is_never_prepared() -> None:
    for result in (ServerError(1062, "dup"), ServerError(1205, "wait"), TooLarge("much"), Lost("gone")):
        for simple in (False, True):
            if simple and isinstance(result, TooLarge):
                continue  # what goes in a packet has no rows
            answers = {Verb.STATEMENT: result}
            twin = Twin(Engine.MYSQL, lambda verb, a=answers: a.get(verb, Ok()), False, False, True)
            job = Work(branch(Engine.MYSQL), SESSION, read_only=False)
            statement = Statement("UPDATE a SET v = 1", simple=simple)
            voted = twin.perform(batch.run(job, (statement,), (7,), one_phase=False))
            assert voted.vote is Vote.ROLLBACK
            lost_in_a_packet = simple and isinstance(result, Lost)  # the server may have gone on
            assert voted.in_doubt is lost_in_a_packet
            assert (Verb.PREPARE in twin.verbs) is lost_in_a_packet


@settings(max_examples=300, deadline=None)
@given(twins(), st.booleans(), st.booleans())
def test_an_expectation_that_is_not_met_is_rolled_back(twin: Twin, simple: bool, one_phase: bool) -> None:
    """Also where the branch is prepared by the time it is looked at."""
    undone = twin.answers(Verb.ROLLBACK)
    twin.answers = lambda verb: undone if verb is Verb.ROLLBACK else Ok((), 0)
    statement = Statement("UPDATE a SET v = 1", simple=simple, expect_rows=1)
    job = Work(branch(twin.engine), SESSION, read_only=False)
    result = twin.perform(batch.run(job, (statement,), (7, 8), one_phase))
    assert result.failure is not None
    assert result.failure.reason is Reason.EXPECTATION_FAILED
    assert not {Verb.COMMIT, Verb.COMMIT_ONE_PHASE} & set(twin.verbs)
    assert (Verb.PREPARE in twin.verbs) is (simple and not one_phase)
    if isinstance(result, Finished):
        assert result.state is State.ROLLED_BACK
    else:
        assert result.vote is Vote.ROLLBACK
        undone_for_sure = isinstance(undone, Ok) or (twin.reachable and not twin.listed)
        assert result.in_doubt or undone_for_sure or not simple


def test_the_first_reason_is_told() -> None:
    """Of a packet in which one statement changed nothing and the next one failed."""
    statements = (
        Statement("UPDATE a SET v = 1", simple=True, expect_rows=1),
        Statement("UPDATE b SET v = 1", simple=True),
    )
    answers = iter([Ok((), 0), ServerError(1205, "wait")])
    twin = Twin(Engine.MYSQL, lambda v: next(answers) if v is Verb.STATEMENT else Ok(), False, False, True)
    voted = twin.perform(batch.run(Work(branch(Engine.MYSQL), SESSION, False), statements, (7, 8), False))
    assert (voted.failure.reason, voted.failure.statement) == (Reason.EXPECTATION_FAILED, 0)
    assert not voted.in_doubt


def test_end_session_kills_nobody_who_does_not_hold_the_lock() -> None:
    procedure = end_session(SESSION)
    next(procedure)
    with pytest.raises(StopIteration) as stop:
        procedure.send(Ok(((43,),), 1))  # the slot is another session's by now: ours is gone
    assert stop.value.value is True


# --- Fences ---

NONCES = st.dictionaries(st.integers(1, 6), st.integers(0, 3), min_size=1)


@given(NONCES, st.integers(1, 6), st.integers(0, 3), st.booleans(), st.booleans())
def test_a_fence_is_raised_only_by_a_log_that_knows_the_remembered_epoch(
    history: dict[int, int], epoch: int, nonce: int, same_log: bool, same_number: bool
) -> None:
    """`contradiction` has words for all that the WHERE of the write refuses, and for nothing else."""
    wanted = Fenced("test", 7, max(history), b"i" * 16, history[max(history)])
    remembered = Fenced("test", 7 if same_number else 8, epoch, (b"i" if same_log else b"j") * 16, nonce)
    refusal = contradiction(remembered, wanted, history)
    known = (epoch, nonce) in [(e, n) for e, n in history.items() if e <= wanted.epoch]
    assert (refusal is None) is (same_number and same_log and known)
    if refusal is not None:
        assert refusal.metadata["remembered_epoch"] == str(epoch)
        if same_number and same_log:
            lost = Reason.LOG_IDENTITY_CHANGED if epoch <= wanted.epoch else Reason.STALE_EPOCH
            assert refusal.reason is lost


@pytest.mark.parametrize(
    "epochs",
    [
        [],
        [(4, 1)],  # not the request's own
        [(5, 1), (6, 1)],  # one that is not given yet
        [(5, 1), (5, 1)],
        [(0, 1), (5, 1)],
        [(e, 1) for e in range(5, 1007)],
    ],
)
def test_histories_that_are_none(epochs: list[tuple[int, int]]) -> None:
    request = pb.FenceRequest(
        coordinator_id="test",
        epoch=5 if len(epochs) < 9 else 1006,
        log_identity=b"i" * 16,
        history=[pb.Epoch(epoch=epoch, nonce=nonce) for epoch, nonce in epochs],
    )
    with pytest.raises(XacoordError) as error:
        read_fence(request)
    assert error.value.reason is Reason.INVALID_REQUEST


@pytest.mark.parametrize(("participants", "named"), [((7,), "0007,0007"), ((7, 8), "0007,0008")])
def test_the_witness_row_of_what_a_log_decides_names_two(participants: tuple[int, ...], named: str) -> None:
    """One that is alone, but prepared, proves, too, that the log had a record: recovery.last_committed."""
    twin = Twin(Engine.MYSQL, lambda verb: Ok((), 1), False, False, True)
    job = Work(branch(Engine.MYSQL), SESSION, read_only=False)
    twin.perform(batch.run(job, (Statement("UPDATE a SET v = 1"),), participants, one_phase=False))
    [insert] = [sql for sql in twin.said if sql.startswith("INSERT INTO xacoord.witness")]
    assert f"'{named}'" in insert
    twin.said.clear()
    job = Work(branch(Engine.MYSQL), SESSION, read_only=False)
    twin.perform(batch.run(job, (Statement("UPDATE a SET v = 1"),), (7,), one_phase=True))
    [insert] = [sql for sql in twin.said if sql.startswith("INSERT INTO xacoord.witness")]
    assert "'0007'" in insert
