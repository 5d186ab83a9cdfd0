"""A trace can be followed: every line names its transaction in plain text."""

from __future__ import annotations

import re

from dtp import Gtrid, Xid
from tests.simulation import run
from tests.simulation.__main__ import summary
from tests.simulation.trace import plain, statement

_GTRID = str(Gtrid.make("aaaa", 2, 3, 4))
_SEED = 7


def test_statements_and_records_name_the_gtrid() -> None:
    xid = Xid.of(_GTRID, 1)
    assert plain(f"XA PREPARE {xid.sql()}").startswith(f"XA PREPARE '{_GTRID}','0001'")
    assert plain("0x" + (_GTRID + "0001").encode().hex().upper()) == f"'{_GTRID}0001'"
    assert plain(f"EndRecord(id={Gtrid.parse(_GTRID)!r}, at=1.0)") == f"EndRecord(id={_GTRID}, at=1.0)"
    other = "X'2b580a94d853c86e76109664f319c8a2'"
    assert plain(other) == other


def test_long_statements_are_one_short_line() -> None:
    table = "CREATE TABLE t (\n" + "    x INT,\n" * 50 + ")"
    assert len(statement(table)) == 160
    assert "\n" not in statement(table)
    insert = f"INSERT INTO t VALUES ('{'x' * 200}', X'{_GTRID.encode().hex()}')"
    assert statement(insert).endswith(f"'{_GTRID}')")


def test_a_transaction_can_be_followed_through_a_trace() -> None:
    result = run(_SEED, keep=True)
    trace = "\n".join(result.lines)
    assert len(trace.splitlines()) == len(result.lines)
    assert not re.search("6b31[0-9a-f]{36}|sequence=", trace, re.I)
    committed = re.findall(r"is told COMMITTED (k1\w{18})", trace)
    assert committed
    lines = "\n".join(line for line in result.lines if committed[0] in line)
    for part in (
        "XA START",
        "sends to agent-p1",
        "force_commit",
        "XA COMMIT",
        "write_end",
        "is told COMMITTED",
    ):
        assert part in lines, part
    assert re.search(r"client-\d+ +asks coordinator-aaaa to (Begin|Run) ", trace)
    assert "asks agent-p1 to Execute" in trace
    assert re.search(r"client-\d+ +has begun k1", trace)


def test_tracing_changes_nothing() -> None:
    traced, plain_run = run(_SEED, keep=True), run(_SEED)
    assert traced.counters == plain_run.counters
    assert plain_run.lines == []


def test_the_summary_says_what_came_of_the_run() -> None:
    result = run(_SEED)
    text = summary(result)
    assert text.startswith(
        f"seed {_SEED}: no violation, {result.counters['virtual seconds']} simulated seconds"
    )
    assert f"{result.counters['works']}: {result.counters['works done']} done" in text
    assert f"COMMITTED {result.counters['told COMMITTED']}" in text
    assert all(len(line) < 400 for line in text.splitlines())
