"""Private MySQL and MariaDB servers: real database servers without installation, service or root.

The demonstration and the tests need several servers that they may stop, freeze and kill, with every
durability setting on. One `PrivateServer` is one server process with its data below one directory, listening
on a unix socket and on a port of 127.0.0.1. `deploy/setup.sh` finds the binaries and writes where they are to
`.venv/xacoord-engines.json`.

How a server comes to be:

1. The first server of an engine and version initialises a *template* data directory in the cache, starts it
   once and shuts it down cleanly. That takes some seconds.
2. Every server's data directory is a copy of the template (each with a server_uuid of its own), so that it is
   up in about a second.
3. The server process is a child of this one; only its own pid is ever signalled, and it is always reaped.
   When this process dies, however it dies, the kernel kills the server: none is left over. (It does so before
   atexit handlers run: stop servers that should end cleanly before the interpreter begins to exit.)

    with PrivateServer.create("mysql", Path("/tmp/one")) as server:
        server.sql("SELECT VERSION()")
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import MySQLdb

from deploy.engines import Binaries, Engine, ServerError, user_argument
from deploy.interruption import scratch
from deploy.processes import Child, free_port, spawn

START_TIMEOUT_SECONDS = 120.0
STOP_TIMEOUT_SECONDS = 60.0

# Changes whenever `_initialise` would leave other files behind, so that old templates are not used.
_TEMPLATE_FORMAT = 1

# Unix socket addresses have 108 bytes, one of them for the final NUL; MySQL appends ".lock" for a file beside
# it.
_SOCKET_PATH_BYTES = 100


class PrivateServer:
    """One server process and its data. Made by `create`; every method is for one thread at a time."""

    def __init__(
        self, binaries: Binaries, directory: Path, port: int, options: Mapping[str, str], binlog: bool
    ) -> None:
        self._binaries = binaries
        self._directory = directory
        self._port = port
        self._options = dict(options)
        self._binlog = binlog
        self._process: Child | None = None
        self._socket_directory: tempfile.TemporaryDirectory[str] | None = None
        self._socket = directory / "mysqld.sock"
        if len(os.fsencode(self._socket)) > _SOCKET_PATH_BYTES:
            self._socket_directory = tempfile.TemporaryDirectory(
                prefix="xacoord-", ignore_cleanup_errors=True
            )
            self._socket = Path(self._socket_directory.name) / "mysqld.sock"

    @classmethod
    def create(
        cls, engine: Engine, directory: Path, *, options: Mapping[str, str] | None = None, binlog: bool = True
    ) -> PrivateServer:
        """Prepares a server, which `start` then starts.

        Arguments: `directory` holds everything of this server; when a server of the same engine was created
        there before, its data and port are kept. `options` are server options without dashes, e.g.
        `{"innodb_lock_wait_timeout": "3"}`; they come last on the command line and so override ours.
        `binlog=False` switches the binary log off.

        Errors: ServerError when the engine is missing or the template cannot be made.
        """
        binaries = Binaries.find(engine)
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        description = directory / "server.json"
        if description.exists():
            known = json.loads(description.read_text())
            if known["engine"] != engine:
                raise ServerError(f"{directory} holds a {known['engine']} server, not {engine}")
            port = int(known["port"])
        else:
            shutil.rmtree(directory / "data", ignore_errors=True)  # an earlier copy that was cut short
            _copy_tree(_template(binaries), directory / "data")
            port = free_port()
            description.write_text(json.dumps({"engine": engine, "version": binaries.version, "port": port}))
        return cls(binaries, directory, port, options or {}, binlog)

    # --- Properties ---

    @property
    def engine(self) -> Engine:
        return self._binaries.engine

    @property
    def version(self) -> str:
        """The version of the server program, e.g. "9.7.4" or "10.11.19"."""
        return self._binaries.version

    @property
    def directory(self) -> Path:
        return self._directory

    @property
    def data_directory(self) -> Path:
        return self._directory / "data"

    @property
    def error_log(self) -> Path:
        return self._directory / "error.log"

    @property
    def socket(self) -> Path:
        """The unix socket; the same after a restart."""
        return self._socket

    @property
    def port(self) -> int:
        """The port on 127.0.0.1; the same after a restart."""
        return self._port

    @property
    def running(self) -> bool:
        """Whether the process exists (a paused one does)."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's process id. Raises ServerError when it is not running."""
        return self._child().pid

    # --- The process ---

    def start(self, wait: bool = True, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Starts the process, unless it runs, and waits until it answers, unless told otherwise.

        Raises ServerError when the process ends or does not answer in time; then no process is left.
        """
        if not self.running:
            self._process = None
            for leftover in (self._socket, self._socket.with_name(self._socket.name + ".lock")):
                leftover.unlink(missing_ok=True)  # a killed server's; its pid may by now be someone else's
            self._process = spawn(self._binaries.command(*self._arguments()), self._directory / "output.log")
        if wait:
            self.wait_until_ready(timeout_seconds)

    def wait_until_ready(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Waits until the server answers. Raises ServerError, and kills the process, when it does not."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            process = self._child()
            try:
                self.root_connect().close()
                return
            except MySQLdb.OperationalError as error:
                status = process.poll()
                if status is not None:
                    raise self._error(f"ended with status {status} while starting") from error
                if time.monotonic() > deadline:
                    self.kill()
                    raise self._error(f"did not answer within {timeout_seconds:g} s: {error}") from error
            time.sleep(0.01)

    def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Shuts the server down cleanly (SIGTERM) and reaps it. Does nothing to a server that is not running.

        Raises ServerError when it had to be killed after `timeout_seconds`.
        """
        if not self.running:
            return
        self.resume()  # a stopped process does not see SIGTERM
        process = self._child()
        process.terminate()
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise self._error(f"did not stop within {timeout_seconds:g} s; killed") from error
        self._process = None

    def kill(self) -> None:
        """Crashes the server (SIGKILL) and reaps it. Does nothing to a server that is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Shuts the server down cleanly, starts it and waits until it answers."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freezes the process (SIGSTOP): connections stay open, nothing answers any more."""
        self._child().send_signal(signal.SIGSTOP)
        self._await_state(frozen=True)

    def resume(self) -> None:
        """Lets a frozen process go on (SIGCONT); harmless for one that is not frozen."""
        self._child().send_signal(signal.SIGCONT)
        self._await_state(frozen=False)

    def __enter__(self) -> PrivateServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills the server if it runs; the data stays. For a clean shutdown, call `stop` before."""
        self.kill()
        if self._socket_directory is not None:
            self._socket_directory.cleanup()

    # --- Connections ---

    def connect(self, user: str, password: str = "", **arguments: Any) -> Any:
        """A MySQLdb connection with autocommit on, by the unix socket unless `arguments` has a `host`.

        Arguments: those of MySQLdb.connect. Raises MySQLdb.OperationalError.
        """
        if "host" in arguments:
            arguments.setdefault("port", self._port)
        else:
            arguments.setdefault("unix_socket", str(self._socket))
        arguments = {"autocommit": True, "charset": "utf8mb4", "connect_timeout": 10} | arguments
        return MySQLdb.connect(user=user, password=password, **arguments)

    def root_connect(self, **arguments: Any) -> Any:
        """`connect` as the administrator, who has no password and is let in by the unix socket only."""
        return self.connect("root", **arguments)

    def sql(self, statement: str, arguments: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Executes one statement as the administrator, on a connection of its own, and returns the rows.

        Raises ServerError, with the end of the error log, when the server has ended without being told to.
        """
        try:
            with (
                contextlib.closing(self.root_connect()) as connection,
                contextlib.closing(connection.cursor()) as cursor,
            ):
                cursor.execute(statement, arguments)
                return list(cursor.fetchall()) if cursor.description else []
        except MySQLdb.OperationalError as error:
            status = self._process and self._process.poll()
            if status is None:
                raise
            raise self._error(f"has ended by itself with status {status}") from error

    def prepared(self) -> list[tuple[int, bytes, bytes]]:
        """What XA RECOVER lists: (formatID, gtrid, bqual), whatever bytes they have."""
        form = "XA RECOVER CONVERT XID" if self.engine == "mysql" else "XA RECOVER"
        found = []
        for format_id, gtrid_length, _, data in self.sql(form):
            if self.engine == "mysql":
                data = bytes.fromhex((data if isinstance(data, str) else data.decode())[2:])
            found.append((int(format_id), data[:gtrid_length], data[gtrid_length:]))
        return found

    def create_agent_account(self, user: str, password: str, databases: Sequence[str]) -> None:
        """Creates (or changes) an account with exactly the rights that a participant agent needs.

        That is: data access in the `databases`, its own schema `xacoord`, XA RECOVER, and sight of other
        sessions, which fencing needs. Killing needs no right, because the agent kills its own account's
        sessions only. The databases need not exist.
        """
        account = f"{_quoted(user)}@'%'"
        statements = [
            f"CREATE USER IF NOT EXISTS {account}",
            f"ALTER USER {account} IDENTIFIED BY {_quoted(password)}",
            f"GRANT ALL ON `xacoord`.* TO {account}",
            f"GRANT PROCESS ON *.* TO {account}",
        ]
        # `_` and `%` are wildcards in the database name of a GRANT.
        for database in databases:
            name = database.replace("`", "``").replace("_", r"\_").replace("%", r"\%")
            rights = "SELECT, INSERT, UPDATE, DELETE, CREATE, EXECUTE"
            statements.append(f"GRANT {rights} ON `{name}`.* TO {account}")
        if self.engine == "mysql":
            statements.append(f"GRANT XA_RECOVER_ADMIN ON *.* TO {account}")
            statements.append(f"GRANT SELECT ON performance_schema.* TO {account}")
        for statement in statements:
            self.sql(statement)

    # --- Details ---

    def _child(self) -> Child:
        if self._process is None:
            raise ServerError(f"{self.engine} server in {self._directory} is not running")
        return self._process

    def _arguments(self) -> list[str]:
        return [
            f"--datadir={self.data_directory}",
            f"--log-error={self.error_log}",
            f"--pid-file={self._directory / 'mysqld.pid'}",
            f"--socket={self._socket}",
            f"--port={self._port}",
            f"--server-id={self._port}",
            *(["--log-bin=binlog", "--sync-binlog=1"] if self._binlog else ["--skip-log-bin"]),
            *_common_arguments(self.engine),
            *(f"--{name}={value}" for name, value in self._options.items()),
        ]

    def _await_state(self, *, frozen: bool) -> None:
        # Signals are delivered asynchronously: the third field of /proc/PID/stat is T once it is frozen.
        process = self._child()
        status = Path(f"/proc/{process.pid}/stat")
        while process.poll() is None and (status.read_text().rpartition(")")[2].split()[0] == "T") != frozen:
            time.sleep(0.001)

    def _error(self, what: str) -> ServerError:
        self._process = None
        return ServerError(f"{self.engine} server in {self._directory} {what}\n{_tail(self.error_log)}")


def _common_arguments(engine: Engine) -> list[str]:
    """Options of every server: durable, reachable from this machine only, small."""
    arguments = [
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        "--secure-file-priv=",
        "--innodb-flush-log-at-trx-commit=1",
        "--innodb-buffer-pool-size=64M",
        "--max-connections=500",
        "--table-open-cache=400",
        "--table-definition-cache=400",
    ]
    if engine == "mysql":
        arguments += [
            "--mysqlx=OFF",
            "--innodb-redo-log-capacity=32M",
            "--performance-schema=ON",
            # Tables that nobody here reads; at their automatic sizes they are most of the server's memory.
            "--performance-schema-events-statements-history-long-size=0",
            "--performance-schema-events-stages-history-long-size=0",
            "--performance-schema-events-waits-history-long-size=0",
            "--performance-schema-events-transactions-history-long-size=0",
            "--performance-schema-digests-size=200",
        ]
    else:
        arguments.append("--innodb-log-file-size=32M")
    return arguments


def _cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xacoord"


def _template(binaries: Binaries) -> Path:
    """The template data directory of an engine and version, made when it is not there."""
    name = f"{binaries.engine}-{binaries.version}-{_TEMPLATE_FORMAT}"
    templates = _cache_directory() / "templates"
    template = templates / name
    templates.mkdir(parents=True, exist_ok=True)
    with _locked(templates / f"{name}.lock"):
        if not template.exists():
            with scratch("xacoord-") as temporary:
                _initialise(binaries, temporary)
                unfinished = templates / f"{name}.new"
                shutil.rmtree(unfinished, ignore_errors=True)
                _copy_tree(temporary / "data", unfinished)
                unfinished.rename(template)
    return template


def _initialise(binaries: Binaries, directory: Path) -> None:
    """Makes a data directory, does there what a server does at its first start, and stops it cleanly."""
    data = directory / "data"
    if binaries.engine == "mysql":
        data.mkdir()
        command = binaries.command(
            "--initialize-insecure", f"--datadir={data}", "--innodb-redo-log-capacity=32M"
        )
    else:
        command = [
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--innodb-log-file-size=32M",
            *user_argument(),
        ]
    output = directory / "initialise.log"
    if spawn(command, output).wait() != 0:
        raise ServerError(f"{binaries.engine} does not initialise a data directory\n{_tail(output)}")
    server = PrivateServer(binaries, directory, free_port(), {}, binlog=False)
    with server:
        server.stop()
    (data / "auto.cnf").unlink(missing_ok=True)  # holds server_uuid, which every copy makes for itself


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy_tree(source: Path, target: Path) -> None:
    # cp knows sparse files and copy-on-write file systems; shutil does not.
    subprocess.run(["cp", "--archive", "--reflink=auto", "--sparse=always", source, target], check=True)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _tail(path: Path, lines: int = 20) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return f"(no {path.name})"
