"""Service: participant_agent.v1.ParticipantAgent on the wire: reads messages, asks the agent, writes
messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from dtp import Reason, XacoordError
from participant_agent import values
from participant_agent.agent import Agent
from participant_agent.commands import carry_out
from participant_agent.core.errors import Failure, clean
from participant_agent.core.recovery import Lookup
from participant_agent.core.registry import Command, Commit, Prepare, Rollback, Run
from participant_agent.fences import mismatch
from participant_agent.link import Link
from participant_agent.v1 import participant_agent_pb2 as pb
from participant_agent.v1 import participant_agent_pb2_grpc as rpc
from shell.streams import ANSWER_OVERHEAD, Method, Streams

MAX_ANSWER_BYTES = 5 << 20
_MAX_PARTICIPANTS = 64
_EVIDENCE: dict[Lookup, pb.EvidenceState.ValueType] = {
    Lookup.COMMITTED: pb.EVIDENCE_STATE_COMMITTED,
    Lookup.NOT_COMMITTED: pb.EVIDENCE_STATE_NOT_COMMITTED,
    Lookup.UNDECIDED: pb.EVIDENCE_STATE_UNDECIDED,
    Lookup.NONE: pb.EVIDENCE_STATE_NONE,
}

Context = grpc.aio.ServicerContext[Any, Any]


class Service(rpc.ParticipantAgentServicer):
    """The agent's gRPC interface; XacoordError leaves it as it is (shell.status maps it)."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        methods: dict[str, Method] = {"execute": self.Execute}
        self.streams = Streams(pb.Answer, methods, MAX_ANSWER_BYTES - ANSWER_OVERHEAD)

    async def Session(self, requests: AsyncIterator[pb.SessionRequest], context: Context) -> Any:
        """Many Executes on one stream; its messages come serialised."""
        async for message in self.streams.serve(requests):
            yield message

    async def Execute(self, request: pb.ExecuteRequest, context: Context) -> pb.ExecuteResponse:
        if request.participant not in ("", self._agent.config.agent.participant):
            raise mismatch(self._agent.config.agent.participant)
        statements = values.read_statements(request.statements, *self._agent.reading)
        results = await self._agent.execute(request.gtrid, statements, request.read_only)
        return pb.ExecuteResponse(results=[values.result_message(result) for result in results])

    async def Fence(self, request: pb.FenceRequest, context: Context) -> pb.FenceResponse:
        ended, last_committed = await self._agent.fence(request)
        server = self._agent.server_info()
        return pb.FenceResponse(ended_sessions=ended, server=server, last_committed=last_committed)

    async def Scan(self, request: pb.ScanRequest, context: Context) -> pb.ScanResponse:
        scanned = await self._agent.scan(request.coordinator_id, request.epoch)
        return pb.ScanResponse(
            prepared=[
                pb.PreparedXid(format_id=xid.format_id, gtrid=xid.gtrid, bqual=xid.bqual)
                for xid in scanned.prepared
            ],
            ghosts=scanned.ghosts,
            blocked=[
                pb.BlockedSession(
                    connection_id=b.connection_id, user=b.user, waited_seconds=b.waited_seconds, table=b.table
                )
                for b in scanned.blocked
            ],
            server=self._agent.server_info(),
        )

    async def Lookup(self, request: pb.LookupRequest, context: Context) -> pb.LookupResponse:
        found = await self._agent.lookup(request.coordinator_id, request.gtrids)
        return pb.LookupResponse(
            evidence=[
                pb.Evidence(gtrid=gtrid, state=_EVIDENCE[state])
                for gtrid, state in zip(request.gtrids, found, strict=True)
            ]
        )

    async def Recall(self, request: pb.RecallRequest, context: Context) -> pb.RecallResponse:
        if request.participant not in ("", self._agent.config.agent.participant):
            raise mismatch(self._agent.config.agent.participant)
        gtrids = request.gtrids
        fence, last_committed, found = await self._agent.recall(request.coordinator_id, gtrids)
        response = pb.RecallResponse(
            last_committed=last_committed,
            server=self._agent.server_info(),
            attached_epoch=self._agent.attached_epoch(request.coordinator_id),
        )
        if fence is not None:
            response.memory.CopyFrom(
                pb.Memory(
                    number=fence.number,
                    epoch=fence.epoch,
                    nonce=fence.nonce,
                    log_identity=fence.log_identity,
                    purged_to=fence.purged_to,
                )
            )
        for gtrid, known in zip(gtrids, found, strict=True):
            response.recollections.add(
                gtrid=gtrid,
                state=_EVIDENCE[known.state],
                prepared=known.prepared,
                participants=known.participants,
            )
        return response

    async def Attach(
        self, requests: AsyncIterator[pb.AttachRequest], context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        first = await anext(aiter(requests), None)
        if first is None or not first.HasField("hello"):
            raise XacoordError(Reason.INVALID_REQUEST, "the first message of the stream must carry hello")
        link = self._agent.attach(first.hello, Link)
        # The coordinator learns that it is attached before anything happens.
        await context.send_initial_metadata(())
        reading = asyncio.ensure_future(self._read(link, first, requests))
        try:
            async for message in link.messages():
                yield message
            if link.closed is not None and link.closed.reason is not Reason.COORDINATOR_UNAVAILABLE:
                raise link.closed
        finally:
            reading.cancel()
            self._agent.detach(link)

    async def _read(
        self, link: Link, first: pb.AttachRequest, requests: AsyncIterator[pb.AttachRequest]
    ) -> None:
        try:
            self._take(link, first)
            async for message in requests:
                if message.HasField("hello"):
                    raise XacoordError(Reason.INVALID_REQUEST, "hello comes once")
                self._take(link, message)
            link.close(XacoordError(Reason.COORDINATOR_UNAVAILABLE, "the stream ended"))
        except XacoordError as error:
            link.close(error)
        except grpc.aio.UsageError:
            link.close(XacoordError(Reason.COORDINATOR_UNAVAILABLE, "the stream ended"))
        except Exception:
            # The coordinator would wait for ever for a stream that nobody reads; a closed one it opens anew.
            self._agent.log.exception("a stream's command failed")
            link.close(XacoordError(Reason.INTERNAL, "internal error of the agent; see its log"))

    def _take(self, link: Link, message: pb.AttachRequest) -> None:
        """Carry out a message's commands, none waiting for another."""
        for command in message.commands:
            if link.closed is not None:
                return
            self._command(link, command)
        if message.purge_below:
            self._agent.purge_below(link.coordinator_id, message.purge_below)

    def _command(self, link: Link, message: pb.Command) -> None:
        verb = message.WhichOneof("verb")
        if verb == "enlisted":
            link.enlisted(message.gtrid, message.enlisted)
            return
        run = message.run if verb == "run" else None
        carry_out(
            self._agent.branches,
            link,
            message.gtrid,
            str(verb),
            run is not None and run.one_phase,
            lambda: _read_command(message, self._agent.reading),
        )


def _read_command(message: pb.Command, reading: tuple[bool, bool, str]) -> Command:
    verb = message.WhichOneof("verb")
    if verb == "run":
        run = message.run
        statements = values.read_statements(run.statements, *reading)
        participants = _participants(run.participants)
        remaining = run.remaining_milliseconds / 1000
        return Run(statements, run.read_only, participants, remaining, run.one_phase)
    if verb == "prepare":
        return Prepare(_participants(message.prepare.participants))
    if verb == "commit":
        return Commit(message.commit.one_phase)
    if verb == "rollback":
        return Rollback(why=_why(message.rollback))
    raise XacoordError(Reason.INVALID_REQUEST, "a command without a verb that this agent knows")


def _why(rollback: pb.Rollback) -> Failure | None:
    """Why the coordinator rolls back, where it says so in words that this agent knows."""
    known = rollback.reason in Reason.__members__
    return Failure(Reason(rollback.reason), clean(rollback.message)) if known else None


def _participants(numbers: Any) -> tuple[int, ...]:
    if len(numbers) > _MAX_PARTICIPANTS:
        raise XacoordError(Reason.INVALID_REQUEST, f"more than {_MAX_PARTICIPANTS} participants")
    if any(number >= 36**4 for number in numbers):
        raise XacoordError(Reason.INVALID_REQUEST, "a participant number is above 36^4 - 1")
    return tuple(numbers)
