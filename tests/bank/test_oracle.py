"""The judge itself: nothing is wrong with right books, and every kind of wrong planted by hand is found."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from deploy.engines import Engine
from deploy.private_servers import PrivateServer
from tests.bank import oracle
from tests.bank.accounts import START_BALANCE, create_tables
from tests.bank.oracle import Books

ACCOUNTS = 4


def ledger(directory: Path, *lines: dict[str, object]) -> list[Path]:
    """A ledger with these lines."""
    path = directory / "ledger.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [path]


def asking(intent: str = "commit") -> dict[str, object]:
    values: dict[str, object] = {"event": "asking", "id": 7, "from": "a", "to": "b", "amount": 5}
    return values | {"intent": intent, "gtrid": "k1x"}


def told(outcome: str, at: float = 2.0) -> dict[str, object]:
    return {"event": "told", "id": 7, "at": at, "outcome": outcome, "gtrid": "k1x"}


def interfered(at: float) -> dict[str, object]:
    return {"event": "interfered", "at": at, "gtrid": "k1x"}


def books(*, a: int | None, b: int | None) -> dict[str, Books]:
    """Two servers that hold transfer 7 with these amounts, and accounts that agree with their rows."""
    made = {}
    for name, amount in (("a", a), ("b", b)):
        accounts = dict.fromkeys(range(1, ACCOUNTS + 1), START_BALANCE)
        accounts[1] += amount or 0
        made[name] = Books(accounts, {} if amount is None else {7: amount})
    return made


@pytest.mark.parametrize(
    ("lines", "a", "b"),
    [
        ((asking(), told("COMMITTED")), -5, 5),
        ((asking(), told("ROLLED_BACK")), None, None),
        ((told("ROLLED_BACK"),), None, None),
        ((asking("rollback"), told("ROLLED_BACK")), None, None),
        ((asking("overdraw"), told("UNKNOWN")), None, None),
        ((asking(), told("UNKNOWN")), -5, 5),
        ((asking(), told("UNKNOWN")), None, None),
        ((asking(),), -5, 5),
        ((asking(),), None, None),
        ((asking(), told("HEURISTIC_ROLLBACK"), interfered(1.0)), None, None),
        ((asking(), told("COMMITTED"), interfered(3.0)), None, None),
    ],
)
def test_right_books_are_right(
    tmp_path: Path, lines: tuple[dict[str, object], ...], a: int | None, b: int | None
) -> None:
    paths = ledger(tmp_path, *lines)
    assert oracle.judge_books(paths, books(a=a, b=b), START_BALANCE) == []


@pytest.mark.parametrize(
    ("lines", "a", "b", "expected"),
    [
        ((asking(), told("COMMITTED")), -5, None, "I2"),
        ((asking(), told("ROLLED_BACK")), None, 5, "I2"),
        ((asking(), told("UNKNOWN")), -5, None, "I2"),
        ((asking(),), -5, None, "I2"),
        ((asking(), told("COMMITTED")), -5, 6, "I2"),
        ((asking(), told("COMMITTED")), 5, -5, "I2"),
        ((asking(), told("COMMITTED")), None, None, "I3: transfer 7 (k1x, commit) was told COMMITTED and is"),
        ((asking(), told("ROLLED_BACK")), -5, 5, "I3: transfer 7 (k1x, commit) was told ROLLED_BACK and is"),
        ((asking("rollback"), told("UNKNOWN")), -5, 5, "could only be rolled back"),
        ((asking("overdraw"), told("COMMITTED")), -5, 5, "could only be rolled back"),
        ((asking(), told("HEURISTIC_MIXED")), -5, 5, "nobody has interfered"),
        ((asking(), told("COMMITTED"), interfered(1.0)), None, None, "was told COMMITTED and is nowhere"),
        ((asking(), told("ROLLED_BACK"), interfered(3.0)), -5, 5, "was told ROLLED_BACK and is on"),
        ((told("UNKNOWN"),), -5, 5, "never asked"),
        ((), -5, 5, "which no ledger knows"),
        (({"event": "failed", "error": "KeyError"},), None, None, "failed: KeyError"),
    ],
)
def test_a_wrong_transfer_is_found(
    tmp_path: Path, lines: tuple[dict[str, object], ...], a: int | None, b: int | None, expected: str
) -> None:
    found = oracle.judge_books(ledger(tmp_path, *lines), books(a=a, b=b), START_BALANCE)
    assert any(expected in text for text in found), found


def test_a_transfer_within_one_participant(tmp_path: Path) -> None:
    within = asking() | {"to": "a"}
    paths = ledger(tmp_path, within, told("COMMITTED"))
    assert oracle.judge_books(paths, books(a=0, b=None), START_BALANCE) == []
    for a, b in ((None, None), (-5, 5), (0, 0), (None, 0)):
        assert oracle.judge_books(paths, books(a=a, b=b), START_BALANCE) != []


def test_a_wrong_sum_is_found(tmp_path: Path) -> None:
    paths = ledger(tmp_path, asking(), told("COMMITTED"))
    wrong = books(a=-5, b=5)
    wrong["a"].accounts[2] -= 1
    found = oracle.judge_books(paths, wrong, START_BALANCE)
    assert len(found) == 2  # the total, and the server whose rows do not explain it
    wrong["b"].accounts[2] += 1
    assert (
        len(oracle.judge_books(paths, wrong, START_BALANCE)) == 2
    )  # both servers, though the total is right
    wrong = books(a=-5, b=5)
    wrong["a"].accounts |= {1: START_BALANCE - 5 + START_BALANCE + 1, 2: -1}
    assert any("below 0" in text for text in oracle.judge_books(paths, wrong, START_BALANCE))


def test_a_wrong_answer_is_found(tmp_path: Path) -> None:
    paths = ledger(tmp_path, asking(), told("UNKNOWN"))
    assert oracle.judge_answers(paths, books(a=-5, b=5), {"k1x": "COMMITTED"}) == []
    assert oracle.judge_answers(paths, books(a=None, b=None), {"k1x": "ROLLED_BACK"}) == []
    for wrong in ("ROLLED_BACK", "UNKNOWN"):
        assert len(oracle.judge_answers(paths, books(a=-5, b=5), {"k1x": wrong})) == 1
    assert len(oracle.judge_answers(paths, books(a=None, b=None), {"k1x": "COMMITTED"})) == 1


def test_what_is_not_at_rest_is_found(
    two_servers: tuple[PrivateServer, PrivateServer], engine: Engine
) -> None:
    private = two_servers[0]
    create_tables(private, "bank_oracle", ACCOUNTS)
    server = oracle.Server({"unix_socket": str(private.socket), "user": "root"}, "bank_oracle")
    assert oracle.judge_rest("a", server) == []
    xid = "'k1.bank.oracle','1',1"
    with (
        contextlib.closing(private.root_connect()) as connection,
        contextlib.closing(connection.cursor()) as c,
    ):
        c.execute(f"XA START {xid}")
        c.execute("UPDATE bank_oracle.account SET balance = balance - 1 WHERE id = 1")
        found = oracle.judge_rest("a", server)
        assert [text.split(":")[1] for text in found] == [" a row of account at a is locked"]
        c.execute(f"XA END {xid}")
        c.execute(f"XA PREPARE {xid}")
        found = oracle.judge_rest("a", server)
        assert len(found) == 2
        assert found[0] == "I4: k1.bank.oracle is still prepared at a"
        c.execute(f"XA ROLLBACK {xid}")
    assert oracle.judge_rest("a", server) == []
    assert oracle.judge([], {"a": server}, START_BALANCE) == []
