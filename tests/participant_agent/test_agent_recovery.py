"""Scans, evidence, purging, values and limits on real servers; doctor; bad inputs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import Any

import grpc
import pytest

from deploy.private_servers import PrivateServer
from participant_agent.v1 import participant_agent_pb2 as pb
from participant_agent.v1 import statement_pb2 as st
from tests.participant_agent.agent_support import (
    COMMITTED,
    ROLLED_BACK,
    AgentProcess,
    Coordinator,
    bump,
    coordinating,
    info,
    python_value,
    reason,
    rows,
    statement,
    witnesses,
)


def test_scan_shows_foreign_binary_xids_and_blocked_sessions(
    agent: AgentProcess, shop: PrivateServer
) -> None:
    foreign = [(b"\x00\xff\x80", b"\n(;'", 2), (b"x" * 64, b"y" * 64, 1), ("grün".encode("latin-1"), b"", 77)]

    async def play() -> None:
        async with coordinating(agent) as c:
            for number, (gtrid, bqual, format_id) in enumerate(foreign):
                name = f"X'{gtrid.hex()}',X'{bqual.hex()}',{format_id}"
                with contextlib.closing(shop.root_connect()) as other:
                    for sql in (
                        f"XA START {name}",
                        f"UPDATE shop.a SET v = v + 1 WHERE id = {number + 1}",
                        f"XA END {name}",
                        f"XA PREPARE {name}",
                    ):
                        other.cursor().execute(sql)
            await asyncio.sleep(0.1)
            with contextlib.closing(shop.root_connect()) as waiter:
                waiter_id = waiter.thread_id()
                waiting = asyncio.create_task(
                    asyncio.to_thread(waiter.cursor().execute, "UPDATE shop.a SET v = 9 WHERE id = 1")
                )
                await asyncio.sleep(0.5)
                scan = await c.stub.Scan(pb.ScanRequest())
                listed = {(xid.gtrid, xid.bqual, xid.format_id) for xid in scan.prepared}
                assert set(foreign) <= listed
                assert scan.ghosts == 0
                (blocked,) = scan.blocked
                assert (blocked.user, blocked.table, blocked.connection_id) == (
                    "root",
                    "shop.a",
                    waiter_id,
                )
                for gtrid, bqual, format_id in foreign:
                    shop.sql(f"XA ROLLBACK X'{gtrid.hex()}',X'{bqual.hex()}',{format_id}")
                await waiting
            with pytest.raises(grpc.RpcError) as stale:
                await c.stub.Scan(pb.ScanRequest(coordinator_id=c.id, epoch=9))
            assert reason(stale.value) == "UNKNOWN_EPOCH"

    asyncio.run(play())


def test_evidence_and_purging(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c, coordinating(agent) as other:
            committed, rolled_back, prepared, active, never = (c.gtrid() for _ in range(5))
            theirs = other.gtrid()
            for gtrid, key in ((committed, 1), (rolled_back, 2), (prepared, 3)):
                assert (await c.run(gtrid, bump(key))).vote == pb.VOTE_OK
            await c.execute(active, bump(4))
            assert (await other.run(theirs, bump(5))).vote == pb.VOTE_OK
            assert (await other.commit(theirs)).state == COMMITTED
            assert (await c.commit(committed)).state == COMMITTED
            assert (await c.rollback(rolled_back)).state == ROLLED_BACK
            everything = (committed, rolled_back, prepared, active, never)
            yes, no, open_, nothing = (
                pb.EVIDENCE_STATE_COMMITTED,
                pb.EVIDENCE_STATE_NOT_COMMITTED,
                pb.EVIDENCE_STATE_UNDECIDED,
                pb.EVIDENCE_STATE_NONE,
            )
            assert await c.lookup(*everything) == [yes, no, open_, open_, no]

            await c.purge_below(prepared)
            for _ in range(200):
                if not shop.sql("SELECT 1 FROM xacoord.witness WHERE gtrid = %s", (committed,)):
                    break
                await asyncio.sleep(0.02)
            assert await c.lookup(*everything) == [nothing, nothing, open_, open_, no]
            purged_to = shop.sql(
                "SELECT purged_to FROM xacoord.coordinator WHERE coordinator_id = %s", (c.id,)
            )
            assert purged_to == [(prepared,)]
            # What was purged is not proof of anything any more; others' rows stay.
            c2 = Coordinator(agent, coordinator_id=c.id)
            assert await other.lookup(theirs) == [yes]
            with pytest.raises(grpc.RpcError) as alien:
                await c2.lookup(theirs)
            assert reason(alien.value) == "INVALID_GTRID"
            await c2.channel.close()
            assert (await c.commit(prepared)).state == COMMITTED
            assert (await c.rollback(active)).state == ROLLED_BACK

    asyncio.run(play())


def test_a_purge_that_failed_is_tried_again(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            assert (await c.run(gtrid, bump(1), one_phase=True)).state == COMMITTED
            shop.sql("RENAME TABLE xacoord.witness TO xacoord.away")
            try:
                await c.purge_below(c.gtrid())
                await asyncio.sleep(0.3)
            finally:
                shop.sql("RENAME TABLE xacoord.away TO xacoord.witness")
            assert witnesses(shop, gtrid) == 1
            for _ in range(200):
                if witnesses(shop, gtrid) == 0:
                    break
                await asyncio.sleep(0.02)
            assert witnesses(shop, gtrid) == 0

    asyncio.run(play())


VALUES: list[tuple[str, st.Value]] = [
    ("INT", st.Value(integer=-5)),
    ("BIGINT UNSIGNED", st.Value(unsigned_integer=2**64 - 1)),
    ("BIGINT", st.Value(integer=-(2**63))),
    ("DOUBLE", st.Value(real=0.1)),
    ("DOUBLE", st.Value(real=-1.7976931348623157e308)),
    ("DECIMAL(65,30)", st.Value(decimal="12345678901234567890.000000000000000000000000000001")),
    ("VARCHAR(99) CHARACTER SET utf8mb4", st.Value(text='it\'s \\ "%s" \n\u0000 \U0001f600 grün')),
    ("TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", st.Value(text="bin")),
    ("BLOB", st.Value(blob=bytes(range(256)))),
    ("VARBINARY(10)", st.Value(blob=b"\xff\x00'\\")),
    ("DATE", st.Value(date="2024-02-29")),
    ("DATETIME(6)", st.Value(datetime="2024-02-29 23:59:59.123456")),
    ("TIMESTAMP(3) NULL", st.Value(datetime="2024-02-29 23:59:59.123")),
    ("TIME(1)", st.Value(time="-838:59:58.9")),
    ("YEAR", st.Value(integer=1999)),
    ("ENUM('x','y')", st.Value(text="y")),
    ("INT", st.Value(null=True)),
]


def test_values_come_back_as_they_went(agent: AgentProcess, shop: PrivateServer) -> None:
    columns = ", ".join(f"c{n} {kind}" for n, (kind, _) in enumerate(VALUES))
    shop.sql("DROP TABLE IF EXISTS shop.kinds")
    shop.sql(f"CREATE TABLE shop.kinds (id INT PRIMARY KEY AUTO_INCREMENT, {columns}) ENGINE = InnoDB")
    names = ", ".join(f"c{n}" for n in range(len(VALUES)))
    places = ", ".join(["%s"] * len(VALUES))

    async def play() -> None:
        async with coordinating(agent) as c:
            voted = await c.run(
                c.gtrid(),
                statement(f"INSERT INTO kinds ({names}) VALUES ({places})", *(value for _, value in VALUES)),
                statement(f"SELECT {names} FROM kinds"),
                one_phase=True,
            )
            assert voted.state == COMMITTED, voted
            assert voted.results[0].last_insert_id == 1
            (row,) = voted.results[1].rows
            for (kind, sent), received in zip(VALUES, row.values, strict=True):
                if kind.startswith("DECIMAL"):
                    assert received.decimal == sent.decimal
                else:
                    assert received == sent, kind
            assert [column.name for column in voted.results[1].columns] == names.split(", ")
            results = await c.run(c.gtrid(), statement("SELECT JSON_OBJECT('a', 1), TRUE, 1.50, NULL"))
            assert [python_value(v) for v in results.results[0].rows[0].values] == [
                '{"a": 1}',
                1,
                "1.50",
                None,
            ]

    asyncio.run(play())


def test_procedures_with_several_results(agent: AgentProcess, shop: PrivateServer) -> None:
    shop.sql("DROP PROCEDURE IF EXISTS shop.several")
    shop.sql(
        "CREATE PROCEDURE shop.several() BEGIN SELECT 1 AS x; SELECT SLEEP(0.2); UPDATE shop.a SET v = 50 "
        "WHERE id = 5; SELECT 2; END"
    )

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            voted = await c.run(gtrid, statement("CALL several()"), statement("SELECT v FROM a WHERE id = 5"))
            assert voted.vote == pb.VOTE_OK, voted
            assert rows(voted.results[0]) == [(1,)]
            assert rows(voted.results[1]) == [(50,)]
            assert (await c.rollback(gtrid)).state == ROLLED_BACK

    asyncio.run(play())


def test_result_limits(agent: AgentProcess, shop: PrivateServer) -> None:
    shop.sql("CREATE TABLE IF NOT EXISTS shop.lots (id INT PRIMARY KEY, pad VARCHAR(1000))")
    ten = "(SELECT 0 n" + "".join(f" UNION SELECT {n}" for n in range(1, 10)) + ")"
    shop.sql(
        "REPLACE INTO shop.lots SELECT a.n * 1000 + b.n * 100 + c.n * 10 + d.n, REPEAT('x', 900) "
        f"FROM {ten} a, {ten} b, {ten} c, {ten} d"
    )

    async def play() -> None:
        async with coordinating(agent) as c:
            exact = await c.run(c.gtrid(), statement("SELECT id FROM lots"))
            assert len(exact.results[0].rows) == 10_000
            for sql in (
                "SELECT id FROM lots UNION ALL SELECT 1",  # one row too many
                "SELECT id, pad FROM lots",  # 9 MB
            ):
                gtrid = c.gtrid()
                with pytest.raises(grpc.RpcError) as large:
                    await c.execute(gtrid, bump(1), statement(sql))
                assert reason(large.value) == "RESULT_TOO_LARGE"
                assert info(large.value).metadata["statement"] == "1"
                assert (await c.prepare(gtrid)).failure.reason == "RESULT_TOO_LARGE"
            big = await c.run(c.gtrid(), statement("SELECT id, pad FROM lots WHERE id < 3000"))
            assert len(big.results[0].rows) == 3000
            gtrid = c.gtrid()
            assert (await c.run(gtrid, bump(1), seconds=1)).vote == pb.VOTE_OK
            assert (await c.rollback(gtrid)).state == ROLLED_BACK

    asyncio.run(play())


# --- Bad inputs ---


BAD_GTRIDS = [
    "",
    "x",
    "k1test0001000000000",
    "k1test000100000000012",
    "k1TEST00010000000001",
    "k2test00010000000001",
    "k1te';DROP TABLE a;--",
    "k1test000100000000\x00\x01",
    "x" * 65,
    "k1ünïcödé0000000000",
]


@pytest.mark.parametrize("gtrid", BAD_GTRIDS)
def test_bad_gtrids(agent: AgentProcess, gtrid: str) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            with pytest.raises(grpc.RpcError) as bad:
                await c.execute(gtrid, statement("SELECT 1"))
            assert reason(bad.value) == "INVALID_GTRID"
            voted = await c.run(gtrid, statement("SELECT 1"))
            assert (voted.vote, voted.failure.reason) == (pb.VOTE_ROLLBACK, "INVALID_GTRID")
            assert (await c.commit(gtrid)).state == pb.FINISHED_STATE_RETRY

    asyncio.run(play())


def test_other_coordinators_branches_are_not_touched(agent: AgentProcess) -> None:
    async def play() -> None:
        async with coordinating(agent) as c, coordinating(agent) as thief:
            gtrid = c.gtrid()
            assert (await c.run(gtrid, bump(1))).vote == pb.VOTE_OK
            for ask in (thief.commit, thief.rollback):
                finished = await ask(gtrid)
                assert (finished.state, finished.failure.reason) == (pb.FINISHED_STATE_RETRY, "INVALID_GTRID")
            assert await c.prepared() == {gtrid}
            assert (await c.rollback(gtrid)).state == ROLLED_BACK

    asyncio.run(play())


def test_bad_requests_leave_the_agent_serving(agent: AgentProcess) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            c.post(c.gtrid())  # no verb
            refused = await c.run(c.gtrid(), statement("COMMIT"))
            assert (refused.vote, refused.failure.reason) == (pb.VOTE_ROLLBACK, "STATEMENT_REFUSED")
            refused = await c.run(c.gtrid(), statement("SELECT 1"), participants=range(65))
            assert refused.failure.reason == "INVALID_REQUEST"
            refused = await c.run(c.gtrid(), statement("SELECT 1"), participants=[36**4])
            assert refused.failure.reason == "INVALID_REQUEST"
            with pytest.raises(grpc.RpcError) as unknown:
                await c.execute("k1zzzz00010000000001", statement("SELECT 1"))
            assert reason(unknown.value) == "UNKNOWN_EPOCH"
            with pytest.raises(grpc.RpcError) as many:
                await c.lookup(*[c.gtrid() for _ in range(1001)])
            assert reason(many.value) == "INVALID_REQUEST"
            with pytest.raises(grpc.RpcError) as large:
                await c.execute(c.gtrid(), *[statement("SELECT '" + "x" * 1_000_000 + "'")] * 5)
            assert large.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(agent.address.removeprefix("unix:"))
                raw.sendall(os.urandom(4096))
            assert agent.healthy()

    asyncio.run(play())


# --- Doctor and start ---


def test_doctor(shop: PrivateServer, new_agent: Any) -> None:
    agent = new_agent(shop)
    examined = agent.run_doctor("-o", "json")
    checks = {check["name"]: check for check in json.loads(examined.stdout)}
    assert checks["xa_recover"]["severity"] == "ok"
    assert examined.returncode == max(check["severity"] != "ok" for check in checks.values())
    assert "xa_recover" in agent.run_doctor().stdout


def test_refused_without_privileges(shop: PrivateServer, new_agent: Any) -> None:
    """MySQL needs XA_RECOVER_ADMIN (1401 without); both need the agent's schema."""
    shop.sql("CREATE USER IF NOT EXISTS poor@'%' IDENTIFIED BY 'secret'")
    shop.sql("GRANT SELECT ON shop.* TO poor@'%'")
    agent = new_agent(shop, "poor")
    text = agent.config.read_text().replace('user = "root"', 'user = "poor"')
    agent.config.write_text(text.replace('password = ""', 'password = "secret"'))
    examined = agent.run_doctor("-o", "json")
    assert examined.returncode == 78
    refused = {check["name"] for check in json.loads(examined.stdout) if check["severity"] == "refuse"}
    assert refused == ({"xa_recover", "schema"} if shop.engine == "mysql" else {"schema"})
    agent.start(ready=False)
    assert agent.process.wait(20) == 78
    assert "GRANT" in agent.log.read_text()
    assert "secret" not in agent.log.read_text() + examined.stdout


def test_least_privileges_suffice(shop: PrivateServer, new_agent: Any) -> None:
    shop.create_agent_account("agent", "secret", ["shop"])
    agent = new_agent(shop, "modest")
    text = agent.config.read_text().replace('user = "root"', 'user = "agent"')
    agent.config.write_text(text.replace('password = ""', 'password = "secret"'))
    agent.start()

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid, killed = c.gtrid(), c.gtrid()
            assert (await c.run(gtrid, bump(1))).vote == pb.VOTE_OK
            assert (await c.commit(gtrid)).state == COMMITTED
            call = asyncio.ensure_future(c.execute(killed, statement("SELECT SLEEP(9)")))
            await asyncio.sleep(0.2)
            assert (await c.rollback(killed)).state == ROLLED_BACK
            with pytest.raises(grpc.RpcError):
                await call
            await c.stub.Scan(pb.ScanRequest())

    asyncio.run(play())
    agent.kill()
    agent.start()


def test_weak_durability_is_refused(shop: PrivateServer, new_agent: Any) -> None:
    agent = new_agent(shop)
    shop.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    try:
        agent.start(ready=False)
        assert agent.process.wait(20) == 78
        assert "innodb_flush_log_at_trx_commit" in agent.log.read_text()
        allowing = new_agent(shop, extra='[preflight]\nallow = ["innodb_flush_log_at_trx_commit"]\n')
        assert allowing.run_doctor().returncode == 1
    finally:
        shop.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 1")


def test_statements_in_the_binary_log_are_refused(shop: PrivateServer, new_agent: Any) -> None:
    """A replica would insert no witness row; without witness rows it does not matter."""
    agent = new_agent(shop)
    allowing = new_agent(shop, extra='[preflight]\nallow = ["binlog_format"]\n')
    without = new_agent(shop, extra="[witness]\nenabled = false\n")
    ((before,),) = shop.sql("SELECT @@global.binlog_format")
    try:
        for binlog_format, severities in (
            ("MIXED", (None, None, None)),
            ("STATEMENT", ("refuse", "warn", None)),
        ):
            shop.sql("SET GLOBAL binlog_format = %s", (binlog_format,))
            for one, expected in zip((agent, allowing, without), severities, strict=True):
                checks = {check["name"]: check for check in json.loads(one.run_doctor("-o", "json").stdout)}
                found = checks.get("binlog_format", {})
                assert found.get("severity") == expected
                assert expected is None or "ROW or MIXED" in found["fix"]
        agent.start(ready=False)
        assert agent.process.wait(20) == 78
        assert "binlog_format" in agent.log.read_text()
        # What the agent itself writes, its server's log takes (1665 at other isolation levels).
        without.start()
        asyncio.run(_commits(without))
    finally:
        shop.sql("SET GLOBAL binlog_format = %s", (before,))


async def _commits(agent: AgentProcess) -> None:
    async with coordinating(agent) as c:
        gtrid = c.gtrid()
        assert (await c.run(gtrid, bump(1))).vote == pb.VOTE_OK
        assert (await c.commit(gtrid)).state == COMMITTED
        await c.purge_below(c.gtrid())


def test_formatids_and_detaching_are_watched(shop: PrivateServer, new_agent: Any) -> None:
    agent = new_agent(shop)
    with contextlib.closing(shop.root_connect()) as other:
        for sql in ("XA START 'f','g',5", "UPDATE shop.a SET v = 1 WHERE id = 1", "XA END 'f','g',5"):
            other.cursor().execute(sql)
        other.cursor().execute("XA PREPARE 'f','g',5")
    found = agent.run_doctor("-o", "json").stdout
    shop.sql("XA ROLLBACK 'f','g',5")
    assert ("foreign-format-ids" in found) == (shop.engine == "mysql")
    if shop.engine == "mysql":
        shop.sql("SET GLOBAL xa_detach_on_prepare = OFF")
        try:
            assert agent.run_doctor().returncode == 78
        finally:
            shop.sql("SET GLOBAL xa_detach_on_prepare = ON")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('participant = "A B"', "participant"),
        ("nonsense = 1", "nonsense"),
        ("take_over_seconds = 'x'", "take_over_seconds"),
    ],
)
def test_bad_configuration(change: str, says: str, tmp_path: Any) -> None:
    lines = ['participant = "p"', change] if "participant" not in change else [change]
    config = tmp_path / "agent.toml"
    config.write_text("[agent]\n" + "\n".join(lines) + '\n[mysql]\nuser = "u"\n')
    ended = subprocess.run(
        [sys.executable, "-m", "participant_agent.daemon", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
        cwd=os.getcwd(),
    )
    assert ended.returncode == 78
    assert says in ended.stderr


def test_unreachable_server(tmp_path: Any) -> None:
    config = tmp_path / "agent.toml"
    agent, mysql = 'participant = "p"\nlisten = "127.0.0.1:0"', 'user = "u"\nunix_socket = "/nowhere/at/all"'
    config.write_text(f"[agent]\n{agent}\n[mysql]\n{mysql}\n")
    command = [sys.executable, "-m", "participant_agent.daemon"]
    ended = subprocess.run([*command, "--config", str(config)], capture_output=True, text=True, check=False)
    assert ended.returncode == 69
    ended = subprocess.run(
        [*command, "doctor", "--config", str(config)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 78
    assert "/nowhere/at/all" in ended.stdout
