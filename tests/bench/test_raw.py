"""What the sides without a coordinator send, and how they give up, on connections that only write it down."""

from __future__ import annotations

import re
from typing import Any

import pytest
from MySQLdb import OperationalError

from deploy.bench.raw import Raw, RawFast
from deploy.bench.servers import Target
from deploy.bench.work import Told, Work, change

LOST, LOCK_WAIT, NOTA = 2013, 1205, 1397
TARGETS = [Target("a", "u"), Target("b", "u")]
NAME = "abcd0001"


class Wire:
    """All connections of a test: what was sent where, in order, and which statements fail."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.fails: dict[str, int] = {}

    def connect(self, target: Target, _flag: int = 0) -> Connection:
        return Connection(self, target.name)

    def verbs(self, gtrid: str = "xacbench" + NAME + "00000000") -> list[str]:
        """What was sent, with XIDs and rows left out."""
        assert all(gtrid in text for text in self.sent if "XA" in text)
        short = [re.sub(rf" '{gtrid}','\d{{4}}'", "", text) for text in self.sent]
        return [
            re.sub(r"UPDATE account .*?= \d+$|UPDATE account .*?= \d+;", "UPDATE;", text) for text in short
        ]


class Connection:
    """The part of `_mysql.connection` that is used."""

    def __init__(self, wire: Wire, name: str) -> None:
        self.wire = wire
        self.name = name
        self._answers = 0

    def query(self, text: bytes) -> None:
        if not text.startswith(b"SET"):
            self.send_query(text)
            self._fail(text.decode())

    def send_query(self, text: bytes) -> None:
        self.wire.sent.append(f"{self.name}: {text.decode()}")
        self._text = text.decode()
        self._answers = self._text.count(";")

    def read_query_result(self) -> None:
        self.wire.sent.append(f"{self.name}: reads")
        self._fail(self._text)

    def next_result(self) -> int:
        self._answers -= 1
        return 0 if self._answers >= 0 else -1

    def field_count(self) -> int:
        return 0

    def close(self) -> None:
        self.wire.sent.append(f"{self.name}: closed")

    def _fail(self, text: str) -> None:
        for part, errno in self.wire.fails.items():
            if part in f"{self.name}: {text}":
                raise OperationalError(errno, f"{part} fails")


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    monkeypatch.setattr(Target, "connect", lambda target, flag: wire.connect(target, flag))
    return wire


def raw(kind: type[Raw] = Raw, branches: int = 2, read_only: bool = False) -> Raw:
    return kind(TARGETS[:branches], Work(branches, read_only, 1), NAME)


def test_raw_is_one_verb_a_round_trip_branch_after_branch(wire: Wire) -> None:
    assert raw().transact() == (Told.COMMITTED, "")
    branch = ["XA START", "UPDATE;", "XA END", "XA PREPARE"]
    expected = [f"{name}: {verb}" for name in "ab" for verb in branch]
    assert wire.verbs() == [*expected, "a: XA COMMIT", "b: XA COMMIT"]


def test_one_branch_commits_in_one_phase(wire: Wire) -> None:
    raw(branches=1).transact()
    assert wire.verbs() == ["a: XA START", "a: UPDATE;", "a: XA END", "a: XA COMMIT ONE PHASE"]


def test_reading_commits_in_one_phase_everywhere(wire: Wire) -> None:
    raw(read_only=True).transact()
    verbs = wire.verbs()
    assert [verb for verb in verbs if "SELECT" in verb] == verbs[1:5:3]
    assert verbs[-2:] == ["a: XA COMMIT ONE PHASE", "b: XA COMMIT ONE PHASE"]
    assert not any("PREPARE" in verb for verb in verbs)


def test_raw_fast_is_one_packet_a_branch_and_phase_all_sent_before_any_answer(wire: Wire) -> None:
    assert raw(RawFast).transact() == (Told.COMMITTED, "")
    packet = "XA START;UPDATE;XA END;XA PREPARE"
    sent = [f"{name}: {packet}" for name in "ab"]
    commits = ["a: XA COMMIT", "b: XA COMMIT"]
    reads = ["a: reads", "b: reads"]
    assert wire.verbs() == [*sent, *reads, *commits, *reads]


def test_raw_fast_needs_one_packet_for_one_phase(wire: Wire) -> None:
    raw(RawFast, branches=1).transact()
    assert wire.verbs() == ["a: XA START;UPDATE;XA END;XA COMMIT ONE PHASE", "a: reads"]


@pytest.mark.parametrize("kind", [Raw, RawFast])
def test_no_two_transactions_have_one_xid(wire: Wire, kind: type[Raw]) -> None:
    client = raw(kind)
    for _ in range(3):
        client.transact()
    started = re.findall(r"XA START ('\w{24}','\d{4}')", "\n".join(wire.sent))
    assert len(started) == len(set(started)) == 6
    assert not any(xid.startswith("'k1") for xid in started)


@pytest.mark.parametrize("kind", [Raw, RawFast])
def test_a_statement_that_fails_rolls_every_branch_back(wire: Wire, kind: type[Raw]) -> None:
    wire.fails = {"b: XA START": LOCK_WAIT} if kind is RawFast else {"b: UPDATE": LOCK_WAIT}
    told, reason = raw(kind).transact()
    assert told is Told.ROLLED_BACK
    assert "1205" in reason
    assert [verb for verb in wire.verbs() if "ROLLBACK" in verb] == ["a: XA ROLLBACK", "b: XA ROLLBACK"]
    assert not any("COMMIT" in verb for verb in wire.verbs())


def test_a_connection_that_does_not_obey_goes(wire: Wire) -> None:
    wire.fails = {"b: UPDATE": LOST, "b: XA ROLLBACK": LOST, "a: XA ROLLBACK": NOTA}
    assert raw().transact()[0] is Told.ROLLED_BACK
    assert [verb for verb in wire.verbs() if "closed" in verb] == ["b: closed"]


@pytest.mark.parametrize("kind", [Raw, RawFast])
def test_a_commit_that_fails_leaves_the_outcome_open_and_the_others_commit(
    wire: Wire, kind: type[Raw]
) -> None:
    wire.fails = {"a: XA COMMIT": LOST}
    assert raw(kind).transact()[0] is Told.UNKNOWN
    verbs = wire.verbs()
    assert "b: XA COMMIT" in verbs
    assert not any("ROLLBACK" in verb for verb in verbs)


def test_a_lost_answer_to_one_phase_leaves_the_outcome_open(wire: Wire) -> None:
    wire.fails = {"a: XA START": LOST}
    assert raw(RawFast, branches=1).transact()[0] is Told.UNKNOWN
    wire.fails = {"a: XA START": LOCK_WAIT}
    assert raw(RawFast, branches=1).transact()[0] is Told.ROLLED_BACK


def test_work_moves_one_unit_from_branch_to_branch() -> None:
    parameters = Work(4, False, 1).parameters()
    assert [amount for amount, _ in parameters] == [1, -1, 1, -1] == [change(branch) for branch in range(4)]
    assert Work(4, False, 1).parameters() == parameters != Work(4, False, 2).parameters()
    rows = [row for _ in range(500) for (row,) in Work(2, True, _).parameters()]
    assert min(rows) >= 1
    assert max(rows) <= 10_000
    [text] = Work(1, True, 1).texts()
    assert re.fullmatch(r"SELECT balance FROM account WHERE id = \d+", text)


def test_texts_are_what_agents_send() -> None:
    """Both sides' servers see the same statements."""
    work: Any = Work(2, False, 3)
    again = Work(2, False, 3)
    assert work.texts() == [again.statement % parameters for parameters in again.parameters()]
