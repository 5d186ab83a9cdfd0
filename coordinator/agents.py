"""Agents: the coordinator's connection to one participant's agent.

A link connects, tells the core (AgentConnected), and then does what the core asks: Fence, Attach,
Scan, Send. Anything that breaks it is told once (AgentLost); then it connects again, with a new link
number, after a short pause, for ever.

Commands gather while a message is being written and go out together in the next one: batching
without timers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from coordinator.core import effects, inputs
from dtp import Outcome, Reason, Vote, Xid
from dtp.errors import INDEFINITE
from dtp.xid import GTRID_LENGTH, is_gtrid
from participant_agent.v1 import participant_agent_pb2 as pb
from participant_agent.v1 import participant_agent_pb2_grpc as rpc
from shell.text import clean

_CONNECT_SECONDS = 2.0
_FENCE_SECONDS = 30.0
_SCAN_SECONDS = 10.0
_LOOKUP_SECONDS = 2.0
_MAX_NAME = 128
_MAX_WAITS = 5_000
_PING_MILLISECONDS = 5_000  # agents allow one every 2 s
_PAUSE_SECONDS = (0.1, 0.2, 0.5, 1.0)
_HOLD_REASONS = (Reason.STALE_EPOCH, Reason.LOG_IDENTITY_CHANGED, Reason.PARTICIPANT_MISMATCH)
_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # an agent is a neighbour, never behind the environment's proxy
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.keepalive_time_ms", _PING_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # one that hangs still acknowledges: gRPC would wait a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

_VOTES = {pb.VOTE_OK: Vote.OK, pb.VOTE_READ_ONLY: Vote.READ_ONLY, pb.VOTE_ROLLBACK: Vote.ROLLBACK}
_OUTCOMES: dict[int, Outcome] = {
    pb.FINISHED_STATE_COMMITTED: Outcome.COMMITTED,
    pb.FINISHED_STATE_ROLLED_BACK: Outcome.ROLLED_BACK,
    pb.FINISHED_STATE_HEURISTIC_COMMIT: Outcome.HEURISTIC_COMMIT,
    pb.FINISHED_STATE_HEURISTIC_ROLLBACK: Outcome.HEURISTIC_ROLLBACK,
    pb.FINISHED_STATE_HEURISTIC_HAZARD: Outcome.HEURISTIC_HAZARD,
}


Connect: TypeAlias = Callable[[str], grpc.aio.Channel]
"""How a channel to an address is made: `dial`, or what the simulation has in its place."""


def dial(address: str) -> grpc.aio.Channel:
    """A channel to an agent."""
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


class LinkDown(Exception):
    """The connection cannot be used; the message says why."""


class Identity:
    """Who the coordinator is, for its agents: id, epoch, the log's identity and the epochs' nonces."""

    def __init__(self, coordinator_id: str, epoch: int, log_identity: bytes, nonces: dict[int, int]) -> None:
        self.coordinator_id = coordinator_id
        self.epoch = epoch
        self.log_identity = log_identity
        self.nonces = nonces


class AgentLink:
    """One participant's link. All methods belong to the event loop's thread."""

    def __init__(
        self,
        participant: str,
        address: str,
        identity: Identity,
        submit: Callable[[inputs.Input], None],
        clock: Callable[[], float],
        purge_mark: Callable[[], str],
        connect: Connect = dial,
    ) -> None:
        self.participant = participant
        self.address = address
        self._identity = identity
        self._submit = submit
        self._clock = clock
        self._purge_mark = purge_mark
        self._connect = connect
        self._purged = ""
        self._link = 0
        self._fenced = False
        self._last_error = ""
        self._stub: Any = None
        self._broken: asyncio.Future[str] | None = None
        self._outbox: list[pb.Command] = []
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger().bind(participant=participant)

    async def run(self) -> None:
        """Connect, and connect again, until cancelled."""
        failures = 0
        while True:
            self._link += 1
            connected = self._fenced = False
            channel = self._connect(self.address)
            try:
                await asyncio.wait_for(channel.channel_ready(), _CONNECT_SECONDS)
                connected = True
                self._stub = rpc.ParticipantAgentStub(channel)
                self._broken = asyncio.get_running_loop().create_future()
                self._submit(inputs.AgentConnected(self.participant, self._link))
                error = await self._broken
            except TimeoutError:
                error = f"no agent answers at {self.address}"
            except LinkDown as reason:
                error = str(reason)
            except Exception as unexpected:
                self._log.exception("agent link failed")
                error = f"{type(unexpected).__name__}: {unexpected}"
            finally:
                await self._disconnect(channel)
            self._submit(inputs.AgentLost(self.participant, self._link if connected else 0, error))
            failures = 0 if self._fenced else failures + 1
            if error != self._last_error:  # one line when it goes, not one for each attempt
                self._log.warning("agent lost", error=error)
            self._last_error = "" if self._fenced else error
            await asyncio.sleep(_PAUSE_SECONDS[min(failures, len(_PAUSE_SECONDS) - 1)])

    async def _disconnect(self, channel: grpc.aio.Channel) -> None:
        self._stub = None
        self._broken = None
        self._outbox.clear()
        for task in list(self._tasks):
            task.cancel()
        await channel.close(grace=None)

    def _break(self, link: int, error: str) -> None:
        if link == self._link and self._broken is not None and not self._broken.done():
            self._broken.set_result(error)

    def _spawn(self, link: int, work: Callable[..., Awaitable[None]], *args: object) -> None:
        async def guarded() -> None:
            try:
                await work(*args)
            except grpc.aio.AioRpcError as error:
                self._break(link, clean(f"{error.code().name}: {error.details()}"))
            except asyncio.CancelledError:
                raise
            except LinkDown as error:
                self._break(link, str(error))
            except Exception as error:
                self._log.exception("agent link failed")
                self._break(link, f"{type(error).__name__}: {error}")

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # What the core asks for

    def fence(self, effect: effects.Fence) -> None:
        """Shut older epochs out."""
        self._spawn(effect.link, self._fence, effect)

    async def _fence(self, effect: effects.Fence) -> None:
        identity = self._identity
        request = pb.FenceRequest(
            coordinator_id=identity.coordinator_id,
            epoch=identity.epoch,
            log_identity=identity.log_identity,
            participant=self.participant,
            number=effect.number,
            history=[pb.Epoch(epoch=epoch, nonce=nonce) for epoch, nonce in identity.nonces.items()],
        )
        try:
            response = await self._stub.Fence(request, timeout=_FENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
            if reason not in _HOLD_REASONS:
                raise
            message = clean(error.details() or "")
            self._submit(inputs.AgentHeld(self.participant, effect.link, reason, message))
            return
        self._fenced = True
        server = response.server
        self._submit(
            inputs.AgentFenced(
                self.participant,
                effect.link,
                clean(f"{server.engine} {server.version}", _MAX_NAME),
                server.witness,
                clean(server.address, _MAX_NAME) or self.address,
                response.last_committed if is_gtrid(response.last_committed) else "",
            )
        )

    def scan(self, effect: effects.Scan) -> None:
        """XA RECOVER."""
        self._spawn(effect.link, self._scan, effect)

    async def _scan(self, effect: effects.Scan) -> None:
        started_at = self._clock()
        response = await self.inspect(self._identity.epoch if effect.fenced else 0)
        self._submit(scanned(self.participant, effect.link, started_at, response))

    async def inspect(self, epoch: int = 0) -> pb.ScanResponse:
        """What XA RECOVER lists now. Raises LinkDown or a gRPC error."""
        if self._stub is None:
            raise LinkDown(f"no agent answers at {self.address}")
        request = pb.ScanRequest(coordinator_id=self._identity.coordinator_id, epoch=epoch)
        response: pb.ScanResponse = await self._stub.Scan(request, timeout=_SCAN_SECONDS)
        return response

    async def lookup(self, gtrid: str) -> int:
        """What the witness row says: a value of EvidenceState. Raises LinkDown or a gRPC error."""
        if self._stub is None:
            raise LinkDown(f"no agent answers at {self.address}")
        request = pb.LookupRequest(coordinator_id=self._identity.coordinator_id, gtrids=[gtrid])
        response = await self._stub.Lookup(request, timeout=_LOOKUP_SECONDS)
        if [evidence.gtrid for evidence in response.evidence] != [gtrid]:
            raise LinkDown(f"the agent of {self.participant} answered for another transaction")
        return int(response.evidence[0].state)

    @property
    def link(self) -> int:
        """Number of the present connection."""
        return self._link

    def attach(self, effect: effects.Attach) -> None:
        """Open the command stream."""
        self._spawn(effect.link, self._attach, effect.link)

    async def _attach(self, link: int) -> None:
        identity = self._identity
        call = self._stub.Attach()
        hello = pb.Hello(
            coordinator_id=identity.coordinator_id, epoch=identity.epoch, log_identity=identity.log_identity
        )
        await call.write(pb.AttachRequest(hello=hello))
        self._spawn(link, self._write, call)
        async for response in call:
            for report in response.reports:
                self._report(link, report)
            if response.HasField("waits"):
                self._submit(inputs.WaitsReported(self.participant, link, waits_of(response.waits)))
        self._break(link, "the agent closed the stream")

    async def _write(self, call: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            commands, self._outbox = self._outbox, []
            mark = self._purge_mark()
            purge_below = mark if mark != self._purged else ""
            try:
                await call.write(pb.AttachRequest(commands=commands, purge_below=purge_below))
            except asyncio.InvalidStateError:  # the stream has just ended; its reader is about to hear why
                return
            self._purged = mark

    def send(self, effect: effects.Send) -> None:
        """Queue one command."""
        self._outbox.append(_command(effect))
        self._wake.set()

    def _report(self, link: int, report: pb.Report) -> None:
        kind = report.WhichOneof("event")
        name, gtrid = self.participant, report.gtrid
        if len(gtrid) != GTRID_LENGTH:
            self._log.warning("report without a transaction of ours; ignored", size=len(gtrid))
            return
        if kind == "voted":
            voted = report.voted
            vote = _VOTES.get(voted.vote)
            if vote is None:
                self._break(link, "the agent sent a vote without a value")
                return
            failure = failure_of(voted.failure) if vote is Vote.ROLLBACK else None
            self._submit(inputs.BranchVoted(name, link, gtrid, vote, failure, voted.results, voted.in_doubt))
        elif kind == "finished":
            finished = report.finished
            outcome = _OUTCOMES.get(finished.state)
            failure = failure_of(finished.failure) if finished.HasField("failure") else None
            self._submit(inputs.BranchFinished(name, link, gtrid, outcome, failure, finished.results))
        elif kind == "enlist":
            self._submit(inputs.BranchEnlisted(name, link, gtrid))

    async def close(self) -> None:
        """Let queued commands go out before the process ends."""
        for _ in range(20):
            if not self._outbox:
                break
            await asyncio.sleep(0.01)


def scanned(participant: str, link: int, started_at: float, response: pb.ScanResponse) -> inputs.AgentScanned:
    """A scan's answer as the core's input."""
    return inputs.AgentScanned(
        participant, link, started_at, xids(response), len(response.blocked), response.ghosts
    )


def xids(response: pb.ScanResponse) -> tuple[Xid, ...]:
    """The prepared XIDs of a scan. Raises LinkDown where they are no XIDs."""
    try:
        return tuple(Xid(x.format_id, x.gtrid, x.bqual) for x in response.prepared)
    except ValueError as error:
        raise LinkDown(f"the agent's scan cannot be read: {error}") from error


def reason_of(error: grpc.aio.AioRpcError) -> Reason | None:
    """The stable reason in an error's ErrorInfo, or None where it has none."""
    status = None
    with contextlib.suppress(ValueError):
        status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            with contextlib.suppress(ValueError):
                return Reason(info.reason)
    return None


def waits_of(message: pb.Waits) -> tuple[inputs.Wait, ...]:
    """Lock waits as the core's; what names no transaction of our shape is left out."""
    return tuple(
        inputs.Wait(
            wait.gtrid, wait.blocker, wait.prepared, wait.connection_id, clean(wait.account, _MAX_NAME)
        )
        for wait in message.waits[:_MAX_WAITS]
        if is_gtrid(wait.gtrid) and (not wait.blocker or is_gtrid(wait.blocker))
    )


def failure_of(failure: pb.Failure) -> inputs.Failure:
    """A failure as the core's."""
    try:
        reason = Reason(failure.reason)
    except ValueError:
        reason = Reason.PREPARE_FAILED
    if reason in INDEFINITE:  # the coordinator's own words: an agent's refusal is definite
        reason = Reason.PREPARE_FAILED
    statement = failure.statement if failure.HasField("statement") else None
    return inputs.Failure(reason, clean(failure.message), failure.errno, statement)


def _command(effect: effects.Send) -> pb.Command:
    command = effect.command
    match command:
        case effects.Prepare():
            return pb.Command(gtrid=effect.gtrid, prepare=pb.Prepare(participants=command.participants))
        case effects.Commit():
            return pb.Command(gtrid=effect.gtrid, commit=pb.Commit(one_phase=command.one_phase))
        case effects.Rollback():
            why = command.why
            rollback = pb.Rollback(reason=why.reason.value, message=why.message) if why else pb.Rollback()
            return pb.Command(gtrid=effect.gtrid, rollback=rollback)
        case effects.Enlisted():
            return pb.Command(gtrid=effect.gtrid, enlisted=enlisted_message(command))
        case effects.Run():
            run = pb.Run(
                statements=command.branch.payload,
                read_only=command.branch.read_only,
                participants=command.participants,
                remaining_milliseconds=max(1, int(command.remaining_seconds * 1000)),
                one_phase=command.one_phase,
            )
            return pb.Command(gtrid=effect.gtrid, run=run)


def enlisted_message(command: effects.Enlisted) -> pb.Enlisted:
    """The answer to a branch that was enlisted."""
    return pb.Enlisted(
        accepted=command.accepted,
        reason=command.reason.value if command.reason else "",
        remaining_milliseconds=int(command.remaining_seconds * 1000),
    )
