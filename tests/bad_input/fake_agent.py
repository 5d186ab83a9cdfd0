"""A participant agent that speaks the protocol and lies as a script tells it to; it has no server."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc

from participant_agent.v1 import participant_agent_pb2 as pb
from participant_agent.v1 import participant_agent_pb2_grpc as rpc

Answer = Callable[[pb.Command], list[pb.Report]]


def voted(gtrid: str, vote: int = pb.VOTE_OK, **failure: object) -> pb.Report:
    """A Voted report."""
    why = pb.Failure(**failure) if failure else None
    return pb.Report(gtrid=gtrid, voted=pb.Voted(vote=vote, failure=why))


def finished(gtrid: str, state: int, **failure: object) -> pb.Report:
    """A Finished report."""
    why = pb.Failure(**failure) if failure else None
    return pb.Report(gtrid=gtrid, finished=pb.Finished(state=state, failure=why))


def honest(command: pb.Command) -> list[pb.Report]:
    """What an agent answers when all goes well."""
    match command.WhichOneof("verb"):
        case "run" if command.run.one_phase:
            return [finished(command.gtrid, pb.FINISHED_STATE_COMMITTED)]
        case "run" | "prepare":
            return [voted(command.gtrid)]
        case "commit":
            return [finished(command.gtrid, pb.FINISHED_STATE_COMMITTED)]
        case "rollback":
            return [finished(command.gtrid, pb.FINISHED_STATE_ROLLED_BACK)]
    return []


class FakeAgent(rpc.ParticipantAgentServicer):
    """Set `answer`, `prepared`, `server` or `fence_error` to make it misbehave."""

    def __init__(self) -> None:
        self.reset()
        self._out: queue.Queue[pb.AttachResponse | None] = queue.Queue()
        self.commands: list[pb.Command] = []
        self.fences = 0
        self.release = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(32), options=[("grpc.max_send_message_length", 64 << 20)]
        )
        rpc.add_ParticipantAgentServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def reset(self) -> None:
        """Behave."""
        self.answer: Answer = honest
        self.prepared: list[pb.PreparedXid] = []
        self.server = pb.ServerInfo(engine="mysql", version="0", witness=True)
        self.fence_error: tuple[grpc.StatusCode, str] | None = None
        self.hang_fence = False
        self.evidence: list[pb.Evidence] | None = None
        self.blocked: list[pb.BlockedSession] = []

    def report(self, *reports: pb.Report) -> None:
        """Send reports unasked."""
        self._out.put(pb.AttachResponse(reports=reports))

    def drop(self) -> None:
        """End the stream, so that the coordinator comes again from the start."""
        self._out.put(None)

    def close(self) -> None:
        self.release.set()
        self._out.put(None)
        self._server.stop(0).wait()

    # --- The service ---

    def Fence(self, request: pb.FenceRequest, context: grpc.ServicerContext) -> pb.FenceResponse:
        self.fences += 1
        if self.hang_fence:
            self.release.wait(60)
        if self.fence_error is not None:
            context.abort(*self.fence_error)
        return pb.FenceResponse(server=self.server)

    def Scan(self, request: pb.ScanRequest, context: grpc.ServicerContext) -> pb.ScanResponse:
        return pb.ScanResponse(prepared=self.prepared, server=self.server, blocked=self.blocked)

    def Lookup(self, request: pb.LookupRequest, context: grpc.ServicerContext) -> pb.LookupResponse:
        if self.evidence is not None:
            return pb.LookupResponse(evidence=self.evidence)
        state = pb.EVIDENCE_STATE_NOT_COMMITTED
        return pb.LookupResponse(evidence=[pb.Evidence(gtrid=g, state=state) for g in request.gtrids])

    def Attach(
        self, requests: Iterator[pb.AttachRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.AttachResponse]:
        self._out = out = queue.Queue()
        threading.Thread(target=self._read, args=(requests, out), daemon=True).start()
        while (message := out.get()) is not None:
            yield message

    def _read(self, requests: Iterator[pb.AttachRequest], out: queue.Queue[pb.AttachResponse | None]) -> None:
        try:
            for request in requests:
                for command in request.commands:
                    self.commands.append(command)
                    reports = self.answer(command)
                    if reports:
                        out.put(pb.AttachResponse(reports=reports))
        except Exception:
            pass  # the stream broke
        out.put(None)


def wait_for_commands(agent: FakeAgent, verb: str, count: int, seconds: float = 10) -> None:
    """Until the agent has been sent so many commands of a kind."""
    deadline = time.monotonic() + seconds
    while sum(c.WhichOneof("verb") == verb for c in agent.commands) < count:
        assert time.monotonic() < deadline, agent.commands
        time.sleep(0.01)
