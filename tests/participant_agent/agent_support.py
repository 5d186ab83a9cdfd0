"""What the agent's tests share: real agent processes, a coordinator's side of the stream, and statements."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from deploy.private_servers import PrivateServer
from deploy.processes import Child, spawn
from dtp import Gtrid
from participant_agent.v1 import participant_agent_pb2 as pb
from participant_agent.v1 import participant_agent_pb2_grpc as rpc
from participant_agent.v1 import statement_pb2 as st

REPOSITORY = Path(__file__).resolve().parents[2]
IDENTITY = b"0123456789abcdef"
_counter = iter(range(1, 1 << 30))


def value(python: Any) -> st.Value:
    """A Python value as a parameter."""
    if python is None:
        return st.Value(null=True)
    if isinstance(python, st.Value):
        return python
    if isinstance(python, int):
        return st.Value(integer=python)
    return st.Value(blob=python) if isinstance(python, bytes) else st.Value(text=python)


def statement(
    sql: str, *parameters: Any, expect: int | None = None, at_least: int | None = None
) -> st.Statement:
    """A statement with parameters."""
    return st.Statement(
        sql=sql, parameters=list(map(value, parameters)), expect_rows=expect, min_rows=at_least
    )


def python_value(message: st.Value) -> Any:
    """The content of a Value, None for NULL."""
    kind = message.WhichOneof("kind")
    return None if kind == "null" else getattr(message, str(kind))


def rows(result: st.StatementResult) -> list[tuple[Any, ...]]:
    """Rows as tuples."""
    return [tuple(map(python_value, row.values)) for row in result.rows]


def reason(error: grpc.RpcError) -> str:
    """The reason in an error's ErrorInfo."""
    return info(error).reason


def info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """An error's ErrorInfo."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    detail = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(detail)
    return detail


class AgentProcess:
    """One agent daemon as a process."""

    def __init__(
        self,
        server: PrivateServer,
        directory: Path,
        participant: str,
        extra: str = "",
        take_over_seconds: float = 10,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.participant = participant
        self.address = f"unix:{directory / 'agent.sock'}"
        self.log = directory / "agent.log"
        self.config = directory / "agent.toml"
        self.directory = directory
        user, password = ("root", "")
        self.config.write_text(
            f'[agent]\nparticipant = "{participant}"\nlisten = "{self.address}"\n'
            f"take_over_seconds = {take_over_seconds}\n"
            f'[mysql]\nunix_socket = "{server.socket}"\nuser = "{user}"\npassword = "{password}"\n'
            f'database = "shop"\n' + extra
        )
        self._process: Child | None = None

    def start(
        self, failpoints: str = "", ready: bool = True, environ: Mapping[str, str] | None = None
    ) -> None:
        """Start it and wait until it serves."""
        environment = {**os.environ, "PYTHONPATH": _path(), **(environ or {})}
        if failpoints:
            environment |= {"XACOORD_FAILPOINTS": failpoints, "XACOORD_FAILPOINT_DIR": str(self.directory)}
        command = [sys.executable, "-m", "participant_agent.daemon", "serve", "--config", str(self.config)]
        self._process = spawn(command, self.log, environment)
        if ready:
            self.wait_ready()

    def wait_ready(self, seconds: float = 20) -> None:
        """Wait until its health is SERVING."""
        deadline = time.monotonic() + seconds
        while not self.healthy():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def healthy(self) -> bool:
        """Whether its health is SERVING."""
        with grpc.insecure_channel(self.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    @property
    def process(self) -> Child:
        """The running process."""
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        """SIGKILL it."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM it and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def print_log(self) -> None:
        """Show what it logged."""
        if self.log.exists():
            print(self.log.read_text())

    def stop(self) -> None:
        """End it in whatever state."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def run_doctor(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`participant-agent doctor`."""
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "participant_agent.daemon",
                "doctor",
                "--config",
                str(self.config),
                *arguments,
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": _path()},
            cwd=REPOSITORY,
            check=False,
        )


def _path() -> str:
    return os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH", ""))))


class Coordinator:
    """A coordinator's side of one agent: fence, stream, commands."""

    def __init__(
        self, agent: AgentProcess, coordinator_id: str = "", epoch: int = 1, number: int = 7
    ) -> None:
        self.agent = agent
        self.id = coordinator_id or f"{next(_counter):04d}"
        self.epoch = epoch
        self.number = number
        self.identity = IDENTITY
        self.channel = grpc.aio.insecure_channel(agent.address)
        self.stub = rpc.ParticipantAgentStub(self.channel)
        self.accept = True
        self.silent = False
        self.refusal = "DEADLINE_PASSED"
        self.remaining_milliseconds = 30_000
        self.enlisted: list[str] = []
        self.reports: list[pb.Report] = []
        self.ended: grpc.aio.AioRpcError | None = None
        self._call: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: dict[str, list[asyncio.Future[Any]]] = {}
        self._outbox: list[pb.Command] = []
        self._filled = asyncio.Event()

    def gtrid(self, epoch: int | None = None) -> str:
        """A new transaction's name."""
        return str(Gtrid.make(self.id, epoch or self.epoch, next(_counter), random.getrandbits(16)))

    async def fence(self, **changes: Any) -> pb.FenceResponse:
        """Fence the agent with this epoch."""
        fields = {
            "coordinator_id": self.id,
            "epoch": self.epoch,
            "log_identity": self.identity,
            "participant": self.agent.participant,
            "number": self.number,
        } | changes
        fields.setdefault("history", history(int(fields["epoch"])))
        return await self.stub.Fence(pb.FenceRequest(**fields), timeout=20)

    async def attach(self) -> None:
        """Open the stream (again)."""
        for task in self._tasks:
            task.cancel()
        self._call = self.stub.Attach()
        hello = pb.Hello(coordinator_id=self.id, epoch=self.epoch, log_identity=self.identity)
        await self._call.write(pb.AttachRequest(hello=hello))
        await self._call.initial_metadata()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]

    async def detach(self) -> None:
        """Break the stream."""
        for task in self._tasks:
            task.cancel()
        self._call.cancel()
        await asyncio.sleep(0.05)

    async def _read(self) -> None:
        try:
            async for message in self._call:
                for report in message.reports:
                    self._take(report)
        except grpc.aio.AioRpcError as error:
            self.ended = error

    def _take(self, report: pb.Report) -> None:
        self.reports.append(report)
        if report.HasField("enlist"):
            self.enlisted.append(report.gtrid)
            if not self.silent:
                answer = pb.Enlisted(
                    accepted=self.accept,
                    reason="" if self.accept else self.refusal,
                    remaining_milliseconds=self.remaining_milliseconds,
                )
                self.post(report.gtrid, enlisted=answer)
        elif waiting := self._waiting.get(report.gtrid):
            waiting.pop(0).set_result(report.voted if report.HasField("voted") else report.finished)

    async def _write(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            batch, self._outbox = self._outbox, []
            await self._call.write(pb.AttachRequest(commands=batch))

    async def purge_below(self, gtrid: str) -> None:
        """Tell that everything below has ended."""
        await self._call.write(pb.AttachRequest(purge_below=gtrid))

    def post(self, gtrid: str, **verb: Any) -> None:
        """Send a command."""
        self._outbox.append(pb.Command(gtrid=gtrid, **verb))
        self._filled.set()

    def ask(self, gtrid: str, **verb: Any) -> asyncio.Future[Any]:
        """Send a command; the future is its Voted or Finished."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(gtrid, []).append(future)
        self.post(gtrid, **verb)
        return future

    async def run(self, gtrid: str, *statements: st.Statement, seconds: float = 20, **fields: Any) -> Any:
        """Run a branch."""
        fields = {"participants": [self.number], "remaining_milliseconds": int(seconds * 1000)} | fields
        return await asyncio.wait_for(self.ask(gtrid, run=pb.Run(statements=statements, **fields)), 30)

    async def prepare(self, gtrid: str) -> pb.Voted:
        """Prepare a branch."""
        voted: pb.Voted = await asyncio.wait_for(
            self.ask(gtrid, prepare=pb.Prepare(participants=[self.number, 9])), 30
        )
        return voted

    async def commit(self, gtrid: str, one_phase: bool = False) -> pb.Finished:
        """Commit a branch."""
        finished: pb.Finished = await asyncio.wait_for(
            self.ask(gtrid, commit=pb.Commit(one_phase=one_phase)), 30
        )
        return finished

    async def rollback(self, gtrid: str) -> pb.Finished:
        """Roll a branch back."""
        finished: pb.Finished = await asyncio.wait_for(self.ask(gtrid, rollback=pb.Rollback()), 30)
        return finished

    async def commit_for_ever(self, gtrid: str) -> pb.Finished:
        """Commit until the answer is not RETRY."""
        while True:
            finished = await self.commit(gtrid)
            if finished.state != pb.FINISHED_STATE_RETRY:
                return finished
            await asyncio.sleep(0.05)

    async def execute(self, gtrid: str, *statements: st.Statement, read_only: bool = False) -> list[Any]:
        """A client's call."""
        response = await self.stub.Execute(
            pb.ExecuteRequest(gtrid=gtrid, statements=statements, read_only=read_only), timeout=30
        )
        return list(response.results)

    async def lookup(self, *gtrids: str) -> list[int]:
        """Evidence about transactions."""
        answer = await self.stub.Lookup(pb.LookupRequest(coordinator_id=self.id, gtrids=gtrids), timeout=10)
        return [evidence.state for evidence in answer.evidence]

    async def prepared(self) -> set[str]:
        """Gtrids of this coordinator that XA RECOVER lists."""
        scan = await self.stub.Scan(pb.ScanRequest(coordinator_id=self.id, epoch=self.epoch), timeout=10)
        own = f"k1{self.id}".encode()
        return {xid.gtrid.decode() for xid in scan.prepared if xid.gtrid.startswith(own)}


def history(epoch: int, restored_after: int = 1 << 30) -> list[pb.Epoch]:
    """Epochs up to `epoch` with their nonces; those after `restored_after` were given by a restored log."""
    return [
        pb.Epoch(epoch=e, nonce=(1 << 63) + e + (e > restored_after))
        for e in range(max(1, epoch - 1000), epoch + 1)
    ]


@contextlib.asynccontextmanager
async def coordinating(agent: AgentProcess, **fields: Any) -> AsyncIterator[Coordinator]:
    """A coordinator that has fenced and attached. Where the body fails, its sessions are ended."""
    coordinator = Coordinator(agent, **fields)
    try:
        await coordinator.fence()
        await coordinator.attach()
        yield coordinator
    except BaseException:
        # What a failed test leaves must not hold locks that the next one waits for.
        with contextlib.suppress(grpc.RpcError):
            await coordinator.fence(epoch=coordinator.epoch + 1)
        raise
    finally:
        if coordinator._call is not None:
            await coordinator.detach()
        await coordinator.channel.close()


# --- The shop ---

COMMITTED = pb.FINISHED_STATE_COMMITTED
ROLLED_BACK = pb.FINISHED_STATE_ROLLED_BACK
RETRY = pb.FINISHED_STATE_RETRY


def v(shop: PrivateServer, key: int) -> int:
    return int(shop.sql("SELECT v FROM shop.a WHERE id = %s", (key,))[0][0])


def witnesses(shop: PrivateServer, gtrid: str) -> int:
    return int(shop.sql("SELECT COUNT(*) FROM xacoord.witness WHERE gtrid = %s", (gtrid,))[0][0])


def bump(key: int) -> Any:
    return statement("UPDATE a SET v = v + 1 WHERE id = %s", key, expect=1)


@contextlib.contextmanager
def read_lock(shop: PrivateServer) -> Iterator[Any]:
    """FLUSH TABLES WITH READ LOCK: nothing commits or prepares."""
    connection = shop.root_connect()
    cursor = connection.cursor()
    cursor.execute("FLUSH TABLES WITH READ LOCK")
    try:
        yield lambda: cursor.execute("UNLOCK TABLES")
    finally:
        connection.close()


def xid(gtrid: str, number: int = 7) -> str:
    return f"X'{gtrid.encode().hex()}',X'{f'{number:04d}'.encode().hex()}',1"


def sessions_of(shop: PrivateServer, agent: AgentProcess) -> list[tuple[int]]:
    """Connections that hold one of the agent's slots."""
    slots = ", ".join(f"IS_USED_LOCK('xacoord.{agent.participant}.{n}')" for n in range(90))
    return [(connection,) for connection in shop.sql(f"SELECT {slots}")[0] if connection]


async def waits_for_a_lock(shop: PrivateServer, seconds: float = 10) -> None:
    """Until some session of the server waits for a row lock.

    InnoDB shows what it showed before to those who look again within 0.1 s.
    """
    deadline = time.monotonic() + seconds
    await asyncio.sleep(0.15)
    while not shop.sql("SELECT 1 FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.15)
