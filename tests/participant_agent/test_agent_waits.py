"""Who waits for whom: what the server's rows say about branches, and how the server is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from participant_agent.core.effects import Lost, Ok, Query, Result, ServerError
from participant_agent.core.engine import Engine
from participant_agent.core.waits import Held, Seen, Wait, look, waits_of

A, B, C = (f"k1c0010001{n:010}" for n in (1, 2, 3))
OTHER = "k1c0020001" + "0" * 10
TABLE = "xacoord.witness"


def held(gtrid: str, *, prepared: bool = False, waits: bool = True) -> Held:
    return Held(gtrid, gtrid[2:6], prepared, waits)


def blockers(*pairs: tuple[str, str]) -> dict[str, tuple[str, ...]]:
    """Who waits -> for whom."""
    waiters = dict.fromkeys(waiter for waiter, _ in pairs)
    return {waiter: tuple(b for w, b in pairs if w == waiter) for waiter in waiters}


# What it says about branches


def test_a_branch_waits_for_a_branch() -> None:
    seen = Seen(blockers(("1", "2")), {"1": 11, "2": 12})
    assert waits_of(seen, {11: held(A), 12: held(B)}) == {"c001": (Wait(A, B),)}


def test_one_that_has_just_begun_is_not_told_but_blocks() -> None:
    seen = Seen(blockers(("1", "2"), ("2", "3")), {"1": 11, "2": 12, "3": 13})
    sessions = {11: held(A), 12: held(B, waits=False), 13: held(C)}
    assert waits_of(seen, sessions) == {"c001": (Wait(A, B),)}


def test_prepared_branches_with_a_session_without_one_and_of_nobody() -> None:
    seen = Seen(
        blockers(("1", "2"), ("1", "3"), ("1", "4")), {"1": 11, "2": 12, "3": 0, "4": 0}, detached={"3": C}
    )
    found = waits_of(seen, {11: held(A), 12: held(B, prepared=True)})["c001"]
    assert set(found) == {Wait(A, B, prepared=True), Wait(A, C, prepared=True), Wait(A, prepared=True)}


def test_a_foreign_session_is_shown_and_looked_through() -> None:
    seen = Seen(blockers(("1", "2"), ("2", "3")), {"1": 11, "2": 99, "3": 13}, {99: "app@host"})
    shown = Wait(A, connection_id=99, account="app@host")
    behind = Wait(A, C, connection_id=99, account="app@host")
    assert waits_of(seen, {11: held(A), 13: held(C)}) == {"c001": (shown, behind)}


def test_two_foreign_sessions_in_a_row_and_in_a_ring() -> None:
    seen = Seen(
        blockers(("1", "2"), ("2", "3"), ("3", "2"), ("3", "4")), {"1": 11, "2": 98, "3": 99, "4": 14}, {}
    )
    assert waits_of(seen, {11: held(A), 14: held(B)}) == {
        "c001": (Wait(A, connection_id=98), Wait(A, B, connection_id=98))
    }


def test_each_coordinator_hears_of_its_own() -> None:
    seen = Seen(blockers(("1", "2"), ("2", "3")), {"1": 11, "2": 12, "3": 13})
    found = waits_of(seen, {11: held(A), 12: held(OTHER), 13: held(B)})
    assert found == {"c001": (Wait(A, OTHER), Wait(A, B, connection_id=12)), "c002": (Wait(OTHER, B),)}


def test_what_has_ended_meanwhile_blocks_nobody() -> None:
    seen = Seen(blockers(("1", "2"), ("3", "1")), {"1": 11})
    assert waits_of(seen, {11: held(A)}) == {}


def test_nobody_waits_for_himself() -> None:
    seen = Seen(blockers(("1", "2"), ("2", "1")), {"1": 11, "2": 99})
    assert waits_of(seen, {11: held(A)}) == {"c001": (Wait(A, connection_id=99),)}


# How the server is asked


class Server:
    """Answers by the first of `answers` whose key is in the query; `asked` has the queries."""

    def __init__(self, answers: Mapping[str, Result]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def look(self, engine: Engine, *, table: str | None = TABLE, ours: Any = (), known: Any = None) -> Seen:
        procedure = look(engine, table, ours, known or {})
        try:
            effect = next(procedure)
            while True:
                assert isinstance(effect, Query), "the control connection has other things to do"
                self.asked.append(effect.sql)
                answer = next((a for key, a in self.answers.items() if key in effect.sql), None)
                assert answer is not None, effect.sql
                effect = procedure.send(answer)
        except StopIteration as stop:
            seen: Seen = stop.value
            return seen


def rows(*rows: tuple[object, ...]) -> Ok:
    return Ok(rows, len(rows))


def transactions(*pairs: tuple[str, str]) -> Ok:
    """(transaction, connection), and what innodb_trx says of the lock that it wants."""
    return rows(*((transaction, connection, None) for transaction, connection in pairs))


WAITS = {Engine.MYSQL: "data_lock_waits", Engine.MARIADB: "INNODB_LOCK_WAITS"}
ACCOUNTS = {Engine.MYSQL: "performance_schema.threads", Engine.MARIADB: "PROCESSLIST"}
makes = pytest.mark.parametrize("make", list(Engine))


@makes
def test_where_nobody_waits_nothing_else_is_asked(make: Engine) -> None:
    server = Server({WAITS[make]: rows()})
    assert server.look(make) == Seen()
    assert len(server.asked) == 1


@makes
def test_sessions_that_are_not_ours_have_an_account(make: Engine) -> None:
    server = Server(
        {
            WAITS[make]: rows(("7", "8", "l7", "l8"), ("9", "8", "l9", "l8"), ("9", "7", "l9", "l7")),
            "innodb_trx": transactions(("7", "11"), ("8", "99"), ("9", "12")),
            ACCOUNTS[make]: rows(("99", b"app", "host:4711" if make is Engine.MARIADB else "host")),
        }
    )
    seen = server.look(make, ours=(11, 12))
    assert seen.blockers == blockers(("7", "8"), ("9", "8"))
    assert seen.connections == {"7": 11, "8": 99, "9": 12}
    assert seen.accounts == {99: "app@host"}
    assert server.asked[-1].endswith("IN (99)")
    assert not seen.unseen


def test_the_queue_is_left_out_where_somebody_has_the_lock() -> None:
    """A thousand that wait for one row: a thousand edges."""
    queue = [(str(n), str(m), f"w{n}", f"w{m}") for n in range(2, 101) for m in range(1, n)]
    behind = [(str(n), "0", f"w{n}", "held") for n in range(1, 101)]
    connections = transactions(*((str(n), str(n + 10)) for n in range(101)))
    server = Server({"data_lock_waits": rows(*queue, *behind), "innodb_trx": connections})
    seen = server.look(Engine.MYSQL, ours=range(10, 111))
    assert seen.blockers == {str(n): ("0",) for n in range(1, 101)}


def test_where_the_rows_were_cut_it_is_still_known_who_only_waits() -> None:
    """7's own row is missing: that it waits, too, is known from its transaction."""
    answer = rows(("8", "7", "w8", "w7"), ("8", "5", "w8", "held"))
    connections = rows(("5", "1", None), ("7", "2", "w7"), ("8", "3", "w8"))
    server = Server({"data_lock_waits": answer, "innodb_trx": connections})
    assert server.look(Engine.MYSQL, ours=range(5)).blockers == {"8": ("5",)}


def test_who_only_stands_behind_others_waits_for_one_of_them() -> None:
    """A shared lock is held, and exclusive ones were asked for before ours: all wait for the holder."""
    answer = rows(
        ("7", "8", "w7", "w8"), ("7", "9", "w7", "w9"), ("8", "5", "w8", "s5"), ("9", "5", "w9", "s5")
    )
    connections = transactions(("5", "1"), ("7", "2"), ("8", "3"), ("9", "4"))
    server = Server({"data_lock_waits": answer, "innodb_trx": connections})
    assert server.look(Engine.MYSQL, ours=range(5)).blockers == {"7": ("8",), "8": ("5",), "9": ("5",)}


def prepared(*gtrids: str) -> Ok:
    return rows(*((1, 20, 4, "0x" + (g + "0007").encode().hex()) for g in gtrids))


def test_a_branch_without_a_session_is_known_by_its_witness_row() -> None:
    server = Server(
        {
            "data_lock_waits": rows(("7", "8", "l7", "l8"), ("7", "9", "l7", "l9")),
            "innodb_trx": transactions(("7", "11"), ("8", "0"), ("9", "0")),
            "XA RECOVER": prepared(A, B),
            "SKIP LOCKED": rows(),
            "data_locks": rows(("8", f"'{A}', '0007'"), ("8", "supremum pseudo-record")),
        }
    )
    seen = server.look(Engine.MYSQL, ours=(11,))
    assert seen.detached == {"8": A}
    touched = next(sql for sql in server.asked if "SKIP LOCKED" in sql)
    assert f"X'{A.encode().hex()}'" in touched
    assert f"X'{b'0007'.hex()}'" in touched
    assert "OBJECT_SCHEMA = 'xacoord'" in server.asked[-1]
    assert server.asked[-1].endswith("IN (8, 9)")


def test_what_is_known_of_it_is_not_asked_again() -> None:
    server = Server(
        {"data_lock_waits": rows(("7", "8", "l7", "l8")), "innodb_trx": transactions(("7", "11"), ("8", "0"))}
    )
    assert server.look(Engine.MYSQL, known={"8": A, "5": B}).detached == {"8": A}


@pytest.mark.parametrize(("make", "table"), [(Engine.MARIADB, TABLE), (Engine.MYSQL, None)])
def test_where_no_row_can_tell_it_has_no_name(make: Engine, table: str | None) -> None:
    server = Server(
        {WAITS[make]: rows(("7", "8", "l7", "l8")), "innodb_trx": transactions(("7", "1"), ("8", "0"))}
    )
    seen = server.look(make, table=table, ours=(1,))
    assert waits_of(seen, {1: held(A)}) == {"c001": (Wait(A, prepared=True),)}


DENIED = ServerError(1142, "SELECT command denied")


QUESTIONS = ("data_lock_waits", "innodb_trx", "XA RECOVER", "SKIP LOCKED", "data_locks")


@pytest.mark.parametrize("failing", QUESTIONS)
@pytest.mark.parametrize("how", [DENIED, Lost("gone")])
def test_what_may_not_be_seen_is_said(failing: str, how: Result) -> None:
    answers: dict[str, Result] = {
        "data_lock_waits": rows(("7", "8", "l7", "l8")),
        "innodb_trx": transactions(("7", "11"), ("8", "0")),
        "XA RECOVER": prepared(A),
        "SKIP LOCKED": rows(),
        "data_locks": rows(),
    }
    assert Server(answers).look(Engine.MYSQL).unseen == ""
    seen = Server(answers | {failing: how}).look(Engine.MYSQL)
    assert seen.unseen
    assert bool(seen.blockers) is (failing in QUESTIONS[2:]), "what is seen all the same is told"


@makes
def test_an_account_that_may_not_be_seen_is_left_out(make: Engine) -> None:
    server = Server(
        {
            WAITS[make]: rows(("7", "8", "l7", "l8")),
            "innodb_trx": transactions(("7", "1"), ("8", "9")),
            ACCOUNTS[make]: DENIED,
        }
    )
    seen = server.look(make, ours=(1,))
    assert waits_of(seen, {1: held(A)}) == {"c001": (Wait(A, connection_id=9),)}
    assert not seen.unseen
