"""The statement guard and typed values, without a server."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtp import Reason, XacoordError
from participant_agent.guard import guard
from participant_agent.v1 import statement_pb2 as pb
from participant_agent.values import read_statements, render

ALLOWED = [
    "SELECT 1",
    "(SELECT 1) UNION (SELECT 2)",
    "  -- why\n select 1;",
    "/* plain */ UPDATE a SET v = 1",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "INSERT INTO a VALUES (1, 'GET_LOCK(1); COMMIT')",
    "SELECT 'it''s', \"x\\\"; COMMIT\", `odd;name`",
    "SELECT 'a -- b' # tail",
    "SAVEPOINT s",
    "ROLLBACK TO SAVEPOINT s",
    "ROLLBACK WORK TO s",
    "RELEASE SAVEPOINT s",
    "SET @a = 1, @b := (SELECT MAX(v) FROM a)",
    "SET @`x` = CONCAT('a', 'b')",
    "CALL p(1, 2)",
    "DO SLEEP(0)",
    "SHOW TABLES",
    "EXPLAIN SELECT 1",
    "SELECT /*+ MAX_EXECUTION_TIME(1000) */ 1",
    "SELECT v INTO @x FROM a WHERE id = 1",
    "SELECT DATE_FORMAT(NOW(), '%s')",
    "VALUES ROW(1)",
    "TABLE a",
]
REFUSED = [
    "",
    ";",
    "COMMIT",
    "ROLLBACK",
    "ROLLBACK AND CHAIN",
    "ROLLBACK TO s; COMMIT",
    "BEGIN",
    "START TRANSACTION",
    "XA COMMIT 'x'",
    "xa end 'x'",
    "/* c */ XA START 'x'",
    "CREATE TABLE t (i INT)",
    "ALTER TABLE a ADD x INT",
    "DROP TABLE a",
    "TRUNCATE a",
    "LOCK TABLES a WRITE",
    "UNLOCK TABLES",
    "FLUSH TABLES WITH READ LOCK",
    "GRANT ALL ON *.* TO x",
    "SET autocommit = 0",
    "SET @a = 1, autocommit = 0",
    "SET @a = 1, GLOBAL max_connections = 2",
    "SET @a = 1, @@session.sql_mode = ''",
    "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET NAMES latin1",
    "SET STATEMENT max_statement_time = 1 FOR SELECT 1",
    "/*! COMMIT */",
    "SELECT 1 /*!50000 , GET_LOCK('x', 1) */",
    "SELECT 1 /*M! INTO OUTFILE '/x' */",
    "SELECT GET_LOCK('x', 1)",
    "SELECT `get_lock`('x', 1)",
    "SELECT release_all_locks ()",
    "UPDATE a SET v = RELEASE_LOCK('xacoord.p.1')",
    "SELECT 1 INTO OUTFILE '/tmp/x'",
    "SELECT 1 INTO/**/DUMPFILE '/tmp/x'",
    "LOAD DATA INFILE 'x' INTO TABLE a",
    "SELECT 1; SELECT 2",
    "SELECT 1;; COMMIT",
    "PREPARE s FROM 'COMMIT'",
    "EXECUTE s",
    "HANDLER a OPEN",
    "KILL 5",
    "USE other",
    "SELECT 'unfinished",
    "SELECT /* unfinished",
    "SELECT 1\x00",
    "SELECT 1 --x\n; COMMIT",
    "SET @a = 1, `autocommit` = 0",
    "SET @a = 1, NAMES gbk",
    "SELECT 1 --\u00a0 - GET_LOCK('x', 0)",
    "SELECT 1 --\x7f '\n, GET_LOCK('x', 0) -- '",
    "DO `release_all_locks`()",
    "TABLE a INTO\nOUTFILE 'x'",
]


@pytest.mark.parametrize("sql", ALLOWED)
def test_allowed(sql: str) -> None:
    guard(sql)


@pytest.mark.parametrize("sql", REFUSED)
def test_refused(sql: str) -> None:
    with pytest.raises(XacoordError) as error:
        guard(sql)
    assert error.value.reason == "STATEMENT_REFUSED"
    assert sql == "" or len(sql) < 12 or sql not in error.value.message


def test_backslashes_follow_the_sql_mode() -> None:
    sql = r"SELECT 'a\'; COMMIT; -- '"
    guard(sql, True)
    with pytest.raises(XacoordError):
        guard(sql, False)


def test_double_quotes_follow_the_sql_mode() -> None:
    sql = r'''SELECT 1 AS "a\", GET_LOCK('x', 0) AS "b\" -- "'''
    guard(sql, True, False)
    with pytest.raises(XacoordError):
        guard(sql, True, True)
    with pytest.raises(XacoordError):
        guard('SELECT "GET_LOCK"(1, 0)', True, True)


def test_a_refusal_is_one_line() -> None:
    with pytest.raises(XacoordError) as error:
        guard("SELECT 1 INTO \n\t OUTFILE '/x'")
    assert error.value.message.startswith("INTO OUTFILE cannot")


def test_length() -> None:
    guard("SELECT '" + "x" * ((1 << 20) - 9) + "'")
    with pytest.raises(XacoordError):
        guard("SELECT '" + "x" * (1 << 20) + "'")


@given(st.text(max_size=60))
def test_any_text_is_refused_or_passes_but_never_breaks(sql: str) -> None:
    with contextlib.suppress(XacoordError):
        guard(sql)


@given(st.text(alphabet="'\"`\\ab;%s-/*#\n", max_size=40))
def test_a_literal_hides_everything_inside(content: str) -> None:
    quoted = content.replace("\\", "\\\\").replace("'", "''")
    assert guard(f"SELECT '{quoted}'").plain_read


def quote(content: bytes) -> bytes:
    return b"'" + content.replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"


def test_rendering() -> None:
    parameters = [
        pb.Value(null=True),
        pb.Value(integer=-5),
        pb.Value(unsigned_integer=2**64 - 1),
        pb.Value(real=1.5),
        pb.Value(real=1e300),
        pb.Value(decimal="-12.50"),
        pb.Value(text="it's"),
        pb.Value(blob=b"\x00'"),
        pb.Value(date="0000-00-00"),
    ]
    sql = "SELECT " + ", ".join(["%s"] * len(parameters)) + ", '100%%'"
    rendered = render(sql, parameters, quote)
    assert rendered == (
        b"SELECT NULL, -5, 18446744073709551615, 1.5e0, 1e+300, -12.50, 'it\\'s', _binary'\x00\\'', "
        b"'0000-00-00', '100%'"
    )
    assert render("SELECT '100%', '%s'", (), quote) == b"SELECT '100%', '%s'"


@pytest.mark.parametrize(
    "value",
    [
        pb.Value(),
        pb.Value(real=float("nan")),
        pb.Value(real=float("inf")),
        pb.Value(decimal="1e5"),
        pb.Value(decimal="1;--"),
        pb.Value(decimal=""),
        pb.Value(date="2026-1-1"),
        pb.Value(datetime="2026-01-01"),
        pb.Value(datetime="2026-01-01 00:00:00' OR '1"),
        pb.Value(time="1:2"),
        pb.Value(decimal="\u0661"),
        pb.Value(date="\u0662\u0660\u0662\u0660-01-01"),
    ],
)
def test_values_without_an_sql_form(value: pb.Value) -> None:
    with pytest.raises(XacoordError) as error:
        read_statements([pb.Statement(sql="SELECT %s", parameters=[value])], True)
    assert error.value.reason == "INVALID_REQUEST"
    assert error.value.metadata["statement"] == "0"


@pytest.mark.parametrize(
    ("sql", "count"), [("SELECT %s", 2), ("SELECT %s, %s", 1), ("SELECT '%s'", 1), ("SELECT 1 /* %s */", 1)]
)
def test_placeholders_must_match(sql: str, count: int) -> None:
    with pytest.raises(XacoordError) as error:
        read_statements([pb.Statement(sql=sql, parameters=[pb.Value(integer=1)] * count)], True)
    assert error.value.reason == "INVALID_REQUEST"


def test_how_many_statements() -> None:
    statement = pb.Statement(sql="SELECT 1")
    read_statements([statement] * 256, True)
    for count in (0, 257):
        with pytest.raises(XacoordError):
            read_statements([statement] * count, True)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM xacoord.witness",
        "UPDATE `xacoord`.coordinator SET epoch = 1",
        "SELECT * FROM XACOORD . witness",
        "INSERT INTO `Xacoord`.`witness` VALUES (1)",
    ],
)
def test_the_agents_own_tables_are_refused(sql: str) -> None:
    """They are what proves outcomes."""
    with pytest.raises(XacoordError) as refused:
        guard(sql)
    assert refused.value.reason is Reason.STATEMENT_REFUSED
    guard("SELECT 'xacoord.witness', xacoord FROM t")
    guard("DELETE FROM xacoord.witness", schema="elsewhere")
