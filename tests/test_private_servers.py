"""The servers that every other test stands on are durable, can be crashed and frozen, and leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import MySQLdb
import pytest

from deploy.engines import Engine, ServerError
from deploy.private_servers import PrivateServer

REPOSITORY = Path(__file__).resolve().parent.parent
NewServer = Callable[..., PrivateServer]
TwoServers = tuple[PrivateServer, PrivateServer]


def test_shared_servers_are_two_of_the_engine(engine: Engine, two_servers: TwoServers) -> None:
    first, second = two_servers
    [(version,)] = first.sql("SELECT VERSION()")
    assert version.startswith(first.version)
    assert ("MariaDB" in version) == (engine == "mariadb")
    assert first.sql("SELECT @@server_id") != second.sql("SELECT @@server_id")
    assert first.pid != second.pid
    assert first.port != second.port


def test_durability_is_on(two_servers: TwoServers) -> None:
    settings = "SELECT @@innodb_flush_log_at_trx_commit, @@log_bin, @@sync_binlog"
    assert two_servers[0].sql(settings) == [(1, 1, 1)]


def test_copies_have_server_uuids_of_their_own(engine: Engine, two_servers: TwoServers) -> None:
    first, second = two_servers
    uuid = "SELECT @@server_uuid" if engine == "mysql" else "SELECT @@server_uid"
    assert first.sql(uuid) != second.sql(uuid)


def test_prepared_branch_survives_kill(new_server: NewServer) -> None:
    server = new_server()
    server.sql("CREATE DATABASE shop")
    server.sql("CREATE TABLE shop.stock (id INT PRIMARY KEY)")
    with closing(server.root_connect()) as connection, closing(connection.cursor()) as cursor:
        for statement in (
            "XA START 'one'",
            "INSERT INTO shop.stock VALUES (1)",
            "XA END 'one'",
            "XA PREPARE 'one'",
        ):
            cursor.execute(statement)
        pid, port = server.pid, server.port
        server.kill()
        assert not server.running
        with pytest.raises(ProcessLookupError):  # reaped, not a zombie
            os.kill(pid, 0)
    server.start()
    assert server.port == port
    assert [row[3] for row in server.sql("XA RECOVER")] in (["one"], [b"one"])
    server.sql("XA COMMIT 'one'")
    assert server.sql("SELECT id FROM shop.stock") == [(1,)]


def test_restart_keeps_data_and_takes_options(new_server: NewServer) -> None:
    server = new_server(options={"innodb_lock_wait_timeout": "3"}, binlog=False)
    server.sql("CREATE DATABASE kept")
    server.restart()
    assert ("kept",) in server.sql("SHOW DATABASES")
    assert server.sql("SELECT @@innodb_lock_wait_timeout, @@log_bin") == [(3, 0)]


def test_paused_server_keeps_connections_and_does_not_answer(new_server: NewServer) -> None:
    server = new_server()
    with closing(server.root_connect()) as connection:
        server.pause()
        with pytest.raises(MySQLdb.OperationalError):
            server.root_connect(connect_timeout=1)
        server.resume()
        connection.query("SELECT 1")
        assert connection.store_result().fetch_row() == ((1,),)
    server.pause()
    server.stop()
    assert not server.running


def test_directory_is_reused_and_belongs_to_one_engine(engine: Engine, tmp_path: Path) -> None:
    other: Engine = "mariadb" if engine == "mysql" else "mysql"
    with PrivateServer.create(engine, tmp_path / "server") as server:
        server.sql("CREATE DATABASE kept")
        server.stop()
    with pytest.raises(ServerError, match="holds a"):
        PrivateServer.create(other, tmp_path / "server")
    with PrivateServer.create(engine, tmp_path / "server") as again:
        assert again.port == server.port
        assert ("kept",) in again.sql("SHOW DATABASES")


def test_long_directory_names_still_get_a_socket(engine: Engine, tmp_path: Path) -> None:
    with PrivateServer.create(engine, tmp_path / ("long" * 30)) as server:
        assert server.sql("SELECT 1") == [(1,)]
        socket = server.socket
    assert not socket.parent.exists()


def test_failed_start_tells_the_error_log_and_leaves_no_process(new_server: NewServer) -> None:
    with pytest.raises(ServerError, match="no_such_option"):
        new_server(options={"no_such_option": "1"})


@pytest.mark.engines("mariadb")
def test_server_that_ended_by_itself_is_told_as_such(new_server: NewServer) -> None:
    server = new_server()
    process = server.pid
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ServerError, match="ended by itself with status -9"):
        server.sql("SELECT 1")
    assert not server.running


@pytest.mark.parametrize("way", ["socket", "port"])
def test_agent_account_can_do_its_work_and_no_more(engine: Engine, two_servers: TwoServers, way: str) -> None:
    server = two_servers[0]
    user, password = f"agent_{way}", "it's \\ secret"
    server.sql("CREATE DATABASE IF NOT EXISTS ledger_1")
    server.sql("CREATE DATABASE IF NOT EXISTS ledgerx1")
    server.create_agent_account(user, password, ["ledger_1"])
    server.create_agent_account(user, password, ["ledger_1"])  # may be repeated
    where = {"host": "127.0.0.1"} if way == "port" else {}
    with (
        closing(server.connect(user, password, **where)) as connection,
        closing(connection.cursor()) as cursor,
    ):
        for statement in (
            "CREATE DATABASE IF NOT EXISTS xacoord",
            f"CREATE TABLE xacoord.witness_{way} (gtrid CHAR(20) PRIMARY KEY) ENGINE=InnoDB",
            f"CREATE TABLE ledger_1.account_{way} (id INT PRIMARY KEY) ENGINE=InnoDB",
            f"XA START '{way}'",
            f"INSERT INTO ledger_1.account_{way} VALUES (1)",
            f"INSERT INTO xacoord.witness_{way} VALUES ('1')",
            f"XA END '{way}'",
            f"XA PREPARE '{way}'",
            "XA RECOVER CONVERT XID" if engine == "mysql" else "XA RECOVER",
            f"XA COMMIT '{way}'",
            "SELECT trx_id FROM information_schema.innodb_trx",
            "SELECT id FROM information_schema.processlist",
        ):
            cursor.execute(statement)
        if engine == "mysql":
            cursor.execute("SELECT processlist_id FROM performance_schema.threads")
        for statement in (
            "SELECT user FROM mysql.user",
            "CREATE TABLE ledgerx1.t (id INT)",
            "DROP DATABASE ledger_1",
        ):
            with pytest.raises(MySQLdb.OperationalError):
                cursor.execute(statement)


def test_agent_account_kills_its_own_sessions_only(two_servers: TwoServers) -> None:
    server = two_servers[0]
    server.create_agent_account("agent_killer", "", [])
    with (
        closing(server.connect("agent_killer")) as connection,
        closing(server.connect("agent_killer")) as own,
        closing(server.root_connect()) as foreign,
        closing(connection.cursor()) as cursor,
    ):
        cursor.execute(f"KILL {own.thread_id()}")
        with pytest.raises(MySQLdb.OperationalError):
            cursor.execute(f"KILL {foreign.thread_id()}")


PARENT = """
import sys, time
from pathlib import Path
from threading import Thread
from deploy.private_servers import PrivateServer
server = PrivateServer.create(sys.argv[1], Path(sys.argv[2]))
starter = Thread(target=server.start)  # a server must outlive the thread that started it ...
starter.start()
starter.join()
time.sleep(0.2)
server.sql("SELECT 1")
print(server.pid, flush=True)
time.sleep(600)
"""


def test_server_dies_with_its_parent(engine: Engine, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, engine, str(tmp_path / "server")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)  # ... but not the process
    deadline = time.monotonic() + 10
    while _alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    "body",
    [
        "@pytest.mark.skip(reason='later')\ndef test_one(): pass",
        "@pytest.mark.xfail(reason='later')\ndef test_one(): assert False",
        "def test_one(): pytest.skip('later')",
        "pytest.importorskip('no_such_module')",
    ],
)
def test_skips_turn_the_run_red(body: str, tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(f"import pytest\n{body}\n\ndef test_two(): pass\n")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.conftest",
            "--rootdir",
            tmp_path,
            tmp_path / "test_one.py",
        ],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "the run is red" in run.stdout
