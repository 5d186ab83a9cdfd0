"""Statements that must not run inside a branch, and values that are none.

With both engines, because their grammars differ.
"""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest

from coordinator.v1 import coordinator_pb2 as pb
from dtp import Reason
from participant_agent.v1 import participant_agent_pb2 as agent_pb
from participant_agent.v1 import statement_pb2 as sql_pb
from tests.bad_input.support import INSERT, System, check_refusal, check_text, refused, resident, statement

R = Reason
V = sql_pb.Value
NBSP = "\u00a0"
MIB = 1 << 20

# Refused by the text alone. In a comment why it would be dangerous, where that is not plain.
REFUSED = [
    *("BEGIN", "START TRANSACTION", "COMMIT", "COMMIT AND CHAIN", "ROLLBACK", "rollback", "(COMMIT)"),
    *("CREATE TABLE x (id INT)", "DROP TABLE ledger", "ALTER TABLE ledger ADD x INT", "TRUNCATE ledger"),
    *("XA END 'x'", "XA COMMIT X'00'", "xa rollback 'x'", "XA RECOVER", "/* */ XA END 'x'", "-- x\nCOMMIT"),
    *("/*! COMMIT */", "/*!40000 XA END 'x' */", "/*M! COMMIT */", "/*m!100000 COMMIT */", "SELECT 1 /*! */"),
    *("SET autocommit=0", "SET @@autocommit=1", "SET SESSION sql_mode=''", "SET GLOBAL read_only=1"),
    *("SET NAMES gbk", "SET TRANSACTION READ ONLY", "SET STATEMENT x=1 FOR SELECT 1", "SET @@x=1"),
    *("SET @a=1, autocommit=0", "SET @a=1, @@autocommit=0", "SET @a=1 , /**/ autocommit = 0"),
    "SET @a=1, `autocommit`=0",
    "SET @a=1, SESSION autocommit=0",
    "SET @a=1, LOCAL innodb_lock_wait_timeout=100",
    "SET @a=1, GLOBAL max_connections=1",
    "SET @a=1, NAMES gbk",  # the server would read literals otherwise than the client library writes them
    "SET @a=1, CHARACTER SET gbk",
    "SET @a=1, SESSION sql_mode='NO_BACKSLASH_ESCAPES'",
    *("LOCK TABLES ledger WRITE", "UNLOCK TABLES", "FLUSH TABLES", "LOCK INSTANCE FOR BACKUP"),
    *("SELECT 1; COMMIT", "SELECT 1;;SELECT 2", "DO 1; DO 2;", "SELECT ';'; SELECT 1"),
    *("PREPARE x FROM 'COMMIT'", "EXECUTE x", "EXECUTE IMMEDIATE 'COMMIT'", "DEALLOCATE PREPARE x"),
    *("SELECT GET_LOCK('x', 0)", "DO RELEASE_ALL_LOCKS()", "SELECT get_lock /**/ ('x', 0)"),
    "SELECT `GET_LOCK`('bad', 0)",  # a quoted name calls the function all the same
    "DO `release_all_locks`()",
    "INSERT INTO ledger VALUES (77777, `GET_LOCK`('bad', 0))",
    *(
        "SELECT 1 INTO OUTFILE '/tmp/x'",
        "SELECT 1 INTO/**/DUMPFILE '/tmp/x'",
        "TABLE ledger INTO\nOUTFILE 'x'",
    ),
    # U+00A0 after -- is a comment to no server
    f"SELECT 1 FROM (SELECT 5 AS `{NBSP}`) t WHERE 1 --{NBSP} - GET_LOCK('bad', 0)",
    # DEL after -- begins a comment for the server: the quote in it is none
    "SELECT 1 --\x7f '\n, GET_LOCK('bad', 0) -- '",
    *("KILL 1", "SHUTDOWN", "USE mysql", "LOAD DATA INFILE 'x' INTO TABLE ledger", "HANDLER ledger OPEN"),
    *("GRANT ALL ON *.* TO x", "ANALYZE TABLE ledger", "OPTIMIZE TABLE ledger", "RESET MASTER", "HELP 'x'"),
    *("BEGIN NOT ATOMIC COMMIT; END", "IF 1 THEN COMMIT; END IF", "CHANGE MASTER TO x=1", "INSTALL PLUGIN x"),
    *(
        "",
        " ",
        ";",
        "--",
        "/**/",
        "/*",
        "'",
        '"',
        "`",
        "SELECT 'x",
        "SELECT 1\0",
        "\0",
        "%",
        "(",
        "\ufeffSELECT 1",
    ),
    *("ROLLBACK TO a; COMMIT", "RELEASE SAVEPOINT", "ROLLBACK AND CHAIN", "\u00a0COMMIT", "\u2028COMMIT"),
]
TOO_LONG = "DO '" + "x" * (MIB - 4) + "'"


def _shown(sql: str) -> str:
    return sql.encode("unicode_escape").decode()[:40]


@pytest.mark.parametrize("sql", [*REFUSED, TOO_LONG], ids=_shown)
def test_refused_statement(each_system: System, sql: str) -> None:
    """The call is refused and the branch is as it was: what was done before commits, this does nothing."""
    system = each_system
    gtrid = system.begin()
    row = system.work(gtrid)
    try:
        info = refused(
            lambda: system.execute("orders", gtrid, statement(sql)), R.STATEMENT_REFUSED, R.INVALID_REQUEST
        )
        assert info.metadata["statement"] == "0"
    except AssertionError:
        system.rollback(gtrid)
        raise
    assert system.commit(gtrid) == "COMMITTED"
    assert system.where(row) == ["orders", "payments"]
    assert 77777 not in system.rows("orders")


def test_refused_in_one_shot(each_system: System) -> None:
    """The same guard stands before Run, and the good statement before the bad one is undone."""
    row = each_system.new_row()
    for sql in ("COMMIT", "XA END 'x'", "SET @a=1, `autocommit`=0", "SELECT 1; COMMIT"):
        statements = [statement(INSERT, row, 1), statement(sql)]
        request = pb.RunRequest(branches=[pb.RunBranch(participant="orders", statements=statements)])
        response = each_system.coordinator.Run(request, timeout=10)
        assert response.outcome == pb.OUTCOME_ROLLED_BACK, sql
        assert response.rejection.reason == R.STATEMENT_REFUSED
        assert response.rejection.statement == 1
        check_text(response.rejection.message)
    assert each_system.where(row) == []


def test_user_locks_are_as_before(each_system: System) -> None:
    """After everything above no session holds a lock that a client asked for."""
    for site in each_system.cluster.sites.values():
        assert site.server.sql("SELECT IS_FREE_LOCK('bad')")[0][0] == 1


def test_sql_of_one_mebibyte(each_system: System) -> None:
    gtrid = each_system.begin()
    sql = "SELECT LENGTH('" + "x" * (MIB - 17) + "')"
    assert len(sql) == MIB
    response = each_system.execute("orders", gtrid, statement(sql))
    assert response.results[0].rows[0].values[0].integer == MIB - 17
    assert each_system.commit(gtrid) == "COMMITTED"


# Values that have no SQL form.
VALUES: dict[str, sql_pb.Value] = {
    "unset": V(),
    "infinite": V(real=math.inf),
    "NaN": V(real=math.nan),
    "decimal empty": V(decimal=""),
    "decimal word": V(decimal="NULL"),
    "decimal injection": V(decimal="1 OR 1=1"),
    "decimal hexadecimal": V(decimal="0x10"),
    "decimal exponent": V(decimal="1e400"),
    "decimal comma": V(decimal="1,5"),
    "decimal newline": V(decimal="1\n"),
    "decimal of 66 digits": V(decimal="9" * 66),
    "decimal Arabic": V(decimal="\u0661\u0662"),  # would be sent without quotes: a column's name
    "decimal full width": V(decimal="\uff11"),
    "date word": V(date="today"),
    "date injection": V(date="2020-01-01' OR '1"),
    "date Arabic": V(date="\u0662\u0660\u0662\u0660-\u0661\u0661-\u0661\u0661"),
    "date short": V(date="2020-1-1"),
    "date with time": V(date="2020-01-01 00:00:00"),
    "datetime T": V(datetime="2020-01-01T00:00:00"),
    "datetime zone": V(datetime="2020-01-01 00:00:00+00:00"),
    "datetime date": V(datetime="2020-01-01"),
    "time word": V(time="noon"),
    "time long": V(time="1000:00:00"),
    "time dots": V(time="10:00:00."),
}


@pytest.mark.parametrize("case", VALUES)
def test_value(each_system: System, case: str) -> None:
    gtrid = each_system.begin()
    row = each_system.work(gtrid)
    bad = statement("SELECT %s", VALUES[case])
    info = refused(lambda: each_system.execute("orders", gtrid, bad), R.INVALID_REQUEST)
    assert info.metadata["statement"] == "0"
    assert each_system.commit(gtrid) == "COMMITTED"
    assert each_system.where(row) == ["orders", "payments"]


IMPOSSIBLE = {
    "date": V(date="2020-13-45"),
    "datetime": V(datetime="2020-02-30 25:61:61"),
    "text": V(text="not a number"),
    "decimal": V(decimal="9" * 65),
    "unsigned": V(unsigned_integer=2**64 - 1),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_value_that_the_column_refuses(each_system: System, case: str) -> None:
    """Right in form, but nothing that an INT column takes: the statement fails and dooms the branch."""
    gtrid = each_system.begin()
    bad = statement("INSERT INTO ledger (id, amount) VALUES (%s, 1)", IMPOSSIBLE[case])
    info = refused(lambda: each_system.execute("orders", gtrid, bad), R.STATEMENT_FAILED)
    assert int(info.metadata["errno"]) > 1000
    refused(lambda: each_system.execute("orders", gtrid, statement("SELECT 1")), R.BRANCH_DOOMED)
    assert each_system.commit(gtrid) == "ROLLED_BACK"


PARAMETERS: dict[str, tuple[str, list[Any]]] = {
    "one too many": ("SELECT %s", [1, 2]),
    "one too few": ("SELECT %s, %s", [1]),
    "none wanted": ("SELECT 1", [1]),
    "only escaped": ("SELECT '%%', %%s", [1]),
    "in quotes": ("SELECT '%s'", [1]),
    "in a comment": ("SELECT 1 /* %s */", [1]),
    "in a name": ("SELECT 1 AS `%s`", [1]),
    "65,536": ("SELECT 1", [1] * 65_536),
    "65,536 wanted": ("DO 0" + "+%s" * 65_536, [1] * 65_536),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters(each_system: System, case: str) -> None:
    sql, parameters = PARAMETERS[case]
    gtrid = each_system.begin()
    bad = statement(sql, *parameters)
    refused(lambda: each_system.execute("orders", gtrid, bad), R.INVALID_REQUEST, R.STATEMENT_REFUSED)
    assert each_system.rollback(gtrid) == "ROLLED_BACK"


def test_parameters_that_look_like_sql(each_system: System) -> None:
    """They come back as they went in."""
    odd = [
        "';DROP TABLE ledger;-- ",
        "\\' OR 1=1 -- ",
        "\0\x1a\r\n\t\x7f",
        "%s %% %",
        "\u202e\U0001f4a5",
        "\\",
    ]
    gtrid = each_system.begin()
    response = each_system.execute("orders", gtrid, statement("SELECT " + ", ".join(["%s"] * len(odd)), *odd))
    assert [value.text for value in response.results[0].rows[0].values] == odd
    blob = V(blob=bytes(range(256)))
    response = each_system.execute("orders", gtrid, statement("SELECT %s = %s, HEX(%s)", blob, blob, blob))
    assert response.results[0].rows[0].values[1].text == bytes(range(256)).hex().upper()
    assert each_system.commit(gtrid) == "COMMITTED"


CALLS = {
    "no statement": [],
    "257 statements": [statement("DO 1")] * 257,
}


@pytest.mark.parametrize("case", CALLS)
def test_number_of_statements(each_system: System, case: str) -> None:
    gtrid = each_system.begin()
    refused(lambda: each_system.execute("orders", gtrid, *CALLS[case]), R.INVALID_REQUEST)
    assert each_system.rollback(gtrid) == "ROLLED_BACK"


# Both agents are configured for 2,000 rows and 100,000 bytes.
DIGITS = (
    "(SELECT 0 d UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL"
    " SELECT 5 UNION ALL SELECT 6 UNION ALL SELECT 7 UNION ALL SELECT 8 UNION ALL SELECT 9)"
)
THOUSAND = f"{DIGITS} a, {DIGITS} b, {DIGITS} c"
RESULTS = {
    "rows": [statement(f"SELECT 1 FROM {THOUSAND}, (SELECT 1 UNION SELECT 2 UNION SELECT 3) e")],
    "rows of several statements": [statement(f"SELECT 1 FROM {THOUSAND}")] * 3,
    "bytes": [statement("SELECT REPEAT('x', 100001)")],
    "bytes of several statements": [statement("SELECT REPEAT('x', 60000)")] * 2,
    "bytes in cells of nothing": [statement("SELECT " + ", ".join(["NULL"] * 1000) + f" FROM {THOUSAND}")],
    "bytes in empty cells": [statement("SELECT " + ", ".join(["''"] * 1000) + f" FROM {THOUSAND}")],
    "bytes in small cells": [statement("SELECT " + ", ".join(["1"] * 90) + f" FROM {THOUSAND}, {DIGITS} d")],
}


@pytest.mark.parametrize("case", RESULTS)
def test_result_too_large(each_system: System, case: str) -> None:
    gtrid = each_system.begin()
    row = each_system.work(gtrid)
    call = lambda: each_system.execute("orders", gtrid, *RESULTS[case])  # noqa: E731
    try:
        refused(call, R.RESULT_TOO_LARGE)
    except AssertionError:
        each_system.rollback(gtrid)
        raise
    assert each_system.commit(gtrid) == "ROLLED_BACK"
    assert each_system.where(row) == []


@pytest.mark.parametrize("case", RESULTS)
def test_result_too_large_in_one_shot(each_system: System, case: str) -> None:
    """It is answered with a reason, and it does not disturb the stream that all transactions share."""
    branch = pb.RunBranch(participant="orders", statements=RESULTS[case])
    lost = each_system.cluster.coordinator.output.read_text().count("agent lost")
    response = each_system.coordinator.Run(pb.RunRequest(branches=[branch]), timeout=20)
    assert response.outcome == pb.OUTCOME_ROLLED_BACK, str(response)[:200]
    assert response.rejection.reason == R.RESULT_TOO_LARGE
    assert each_system.cluster.coordinator.output.read_text().count("agent lost") == lost


def test_result_as_large_as_allowed(each_system: System) -> None:
    gtrid = each_system.begin()
    sql = f"SELECT 1 FROM {THOUSAND}, (SELECT 1 UNION SELECT 2) e"
    assert len(each_system.execute("orders", gtrid, statement(sql)).results[0].rows) == 2000
    assert each_system.commit(gtrid) == "COMMITTED"


def test_error_text_in_another_charset(each_system: System) -> None:
    """A procedure changes the session's charset, so an error text is not UTF-8. The agent must live on."""
    server = each_system.cluster.sites["orders"].server
    server.sql("CREATE PROCEDURE orders.to_gbk() SET NAMES gbk")
    try:
        for _ in range(2):
            gtrid = each_system.begin()
            each_system.execute("orders", gtrid, statement("CALL to_gbk()"))
            bad = statement("SELECT 1 FROM ledger WHERE `\u4e2d\u6587\u5b57` = 1")
            refused(
                lambda gtrid=gtrid, bad=bad: each_system.execute("orders", gtrid, bad), R.STATEMENT_FAILED
            )
            assert each_system.rollback(gtrid) == "ROLLED_BACK"
        check_charset_of_sessions(each_system)
    finally:
        server.sql("DROP PROCEDURE orders.to_gbk")


def check_charset_of_sessions(system: System) -> None:
    """Whatever branches did, the next branch's session reads and writes utf8mb4 with backslash escapes."""
    for _ in range(3):
        gtrid = system.begin()
        wanted = "\u20ac' \\"
        sql = "SELECT %s, @@character_set_client, @@character_set_results, @@autocommit, @@sql_mode"
        response = system.execute("orders", gtrid, statement(sql, wanted))
        text, *names, autocommit, sql_mode = [v.text or v.integer for v in response.results[0].rows[0].values]
        assert (text, names, autocommit) == (wanted, ["utf8mb4"] * 2, 1)
        assert "NO_BACKSLASH_ESCAPES" not in sql_mode
        assert system.rollback(gtrid) == "ROLLED_BACK"


ERROR_TEXTS = {
    "control characters": "SELECT * FROM `a\x1b[2J\x07\u202e`",
    "newlines": "SELECT `a\n\r\nb` FROM ledger",
    "long": "SELECT " + "x" * 100_000,
    "much": "SELECT 1 FROM ledger WHERE\n" + "1 = 1 AND\n" * 10_000,
}


@pytest.mark.parametrize("case", ERROR_TEXTS)
def test_error_text_can_be_printed(each_system: System, case: str) -> None:
    """What the server quotes of the statement reaches the client without control characters, cut to size."""
    gtrid = each_system.begin()
    with pytest.raises(grpc.RpcError) as caught:
        each_system.execute("orders", gtrid, statement(ERROR_TEXTS[case]))
    check_refusal(caught.value, R.STATEMENT_FAILED, R.STATEMENT_REFUSED)
    each_system.rollback(gtrid)
    branch = pb.RunBranch(participant="orders", statements=[statement(ERROR_TEXTS[case])])
    response = each_system.coordinator.Run(pb.RunRequest(branches=[branch]), timeout=10)
    check_text(response.rejection.message)
    for transaction in (each_system.get(gtrid), each_system.get(response.gtrid)):
        for branch_told in transaction.branches:
            assert branch_told.last_error == "" or branch_told.last_error.isprintable()


def test_expectations_of_odd_size(each_system: System) -> None:
    for bounds in ({"expect_rows": 2**64 - 1}, {"min_rows": 2**64 - 1}):
        gtrid = each_system.begin()
        bad = statement("SELECT 1", **bounds)
        refused(lambda gtrid=gtrid, bad=bad: each_system.execute("orders", gtrid, bad), R.EXPECTATION_FAILED)
        assert each_system.commit(gtrid) == "ROLLED_BACK"


def test_read_only_branch_that_writes(each_system: System) -> None:
    gtrid, row = each_system.begin(), each_system.new_row()
    request = agent_pb.ExecuteRequest(gtrid=gtrid, statements=[statement(INSERT, row, 1)], read_only=True)
    refused(lambda: each_system.agents["orders"].Execute(request, timeout=10), R.STATEMENT_FAILED)
    assert each_system.commit(gtrid) == "ROLLED_BACK"
    assert each_system.where(row) == []


def test_long_statements_are_not_kept(each_system: System) -> None:
    """60 different statements of 1 MiB: the agent's memory does not grow by all of them."""
    pid = each_system.cluster.sites["orders"].agent.pid
    gtrid = each_system.begin()

    def send(number: int) -> None:
        sql = f"SELECT {number} /* " + "x" * 1_000_000 + " */"
        each_system.execute("orders", gtrid, statement(sql))

    for number in range(10):
        send(number)
    before = resident(pid)
    for number in range(10, 70):
        send(number)
    assert each_system.commit(gtrid) == "COMMITTED"
    assert resident(pid) - before < 30 << 20
