"""A coordinator and agents to test the SDK against: real gRPC servers on 127.0.0.1, scripted.

Fault model. Without a script the servers are a small honest coordinator whose transactions live
in memory, and agents that answer what `answers` holds. A script puts actions in front of that, one a call:

- `refuse(reason)`: an error with ErrorInfo, nothing done.
- `lost_before()`: the answer is lost and the request took no effect.
- `lost_after()`: the request took effect and the answer is lost.
- any function (request, context) -> response.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc as pb_grpc
from dtp import Reason
from dtp.errors import INDEFINITE, RETRYABLE, STATUS
from participant_agent.v1 import participant_agent_pb2 as agent_pb
from participant_agent.v1 import participant_agent_pb2_grpc as agent_grpc
from participant_agent.v1 import statement_pb2
from tests.sdk.streaming import Session

Action = Callable[[Any, grpc.ServicerContext, Callable[[], Any]], Any]


def error_info_trailers(
    reason: str, message: str = "", domain: str = "xacoord", **metadata: str
) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata as our servers send it."""
    status = Status(code=2, message=message)
    status.details.add().Pack(ErrorInfo(reason=reason, domain=domain, metadata=metadata))
    return (("grpc-status-details-bin", status.SerializeToString()),)


def refuse(reason: str, message: str = "refused", **metadata: str) -> Action:
    """Answer with an error of ours."""

    def action(request: Any, context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
        flags = {
            "definite": str(reason not in INDEFINITE).lower(),
            "retryable": str(reason in RETRYABLE).lower(),
        }
        context.set_trailing_metadata(error_info_trailers(reason, message, **(flags | metadata)))
        known = reason in Reason.__members__
        name = STATUS[Reason(reason)] if known else metadata.get("status", "ABORTED")
        context.abort(grpc.StatusCode[name], message)

    return action


def transport(status: str, effect: bool, details: str = "Socket closed") -> Action:
    """Lose the answer: `status` without ErrorInfo, with or without the request's effect."""

    def action(request: Any, context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
        if effect:
            work()
        context.abort(grpc.StatusCode[status], details)

    return action


def lost_before(status: str = "UNAVAILABLE") -> Action:
    """The request never took effect."""
    return transport(status, effect=False)


def lost_after(status: str = "UNAVAILABLE") -> Action:
    """The request took effect."""
    return transport(status, effect=True)


def hang(seconds: float, effect: bool = True) -> Action:
    """Answer too late."""

    def action(request: Any, context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
        response = work() if effect else None
        time.sleep(seconds)
        return response

    return action


def answer(response: Any) -> Action:
    """Answer with `response`, whatever was asked."""
    return lambda request, context, work: response


class Scripted(Session):
    """Actions to take before the honest behaviour, per method; and all requests seen."""

    def __init__(self) -> None:
        super().__init__()
        self.script: dict[str, deque[Action]] = defaultdict(deque)
        self.seen: list[tuple[str, Any]] = []
        self.time_left: dict[str, float] = {}
        self.lock = threading.RLock()

    def on(self, method: str, *actions: Action) -> None:
        """Take `actions` for the next calls of `method`, one each."""
        self.script[method].extend(actions)

    def always(self, method: str, action: Action) -> None:
        """Take `action` for every call of `method` that the tests will make."""
        self.script[method].extend([action] * 1000)

    def methods(self) -> list[str]:
        """The methods called so far, in order."""
        with self.lock:
            return [method for method, _ in self.seen]

    def requests(self, method: str) -> list[Any]:
        """The requests of `method` so far."""
        with self.lock:
            return [request for name, request in self.seen if name == method]

    def handle(
        self, method: str, request: Any, context: grpc.ServicerContext, work: Callable[[], Any]
    ) -> Any:
        with self.lock:
            self.seen.append((method, request))
            self.time_left[method] = context.time_remaining()
            queue = self.script[method]
            action = queue.popleft() if queue else None
        return work() if action is None else action(request, context, work)


class FakeCoordinator(Scripted, pb_grpc.CoordinatorServicer):
    """Transactions in memory."""

    module = pb

    def __init__(self) -> None:
        super().__init__()
        self.directory: dict[str, str] = {}
        self.transactions: dict[str, pb.Transaction] = {}
        self.keys: dict[str, str] = {}
        self.count = 0

    def new_gtrid(self) -> str:
        with self.lock:
            self.count += 1
            gtrid = f"k1test0001{self.count:010d}"
            self.transactions[gtrid] = pb.Transaction(
                gtrid=gtrid, state=pb.STATE_ACTIVE, outcome=pb.OUTCOME_UNKNOWN
            )
            return gtrid

    def set(self, gtrid: str, state: int, outcome: int, **fields: Any) -> None:
        """Make transaction `gtrid` be in `state` with `outcome`."""
        with self.lock:
            self.transactions[gtrid] = pb.Transaction(gtrid=gtrid, state=state, outcome=outcome, **fields)

    def outcome(self, gtrid: str) -> str:
        """The outcome's name of transaction `gtrid`."""
        return pb.Outcome.Name(self.transactions[gtrid].outcome)

    def Begin(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            if request.idempotency_key in self.keys:
                return pb.BeginResponse(gtrid=self.keys[request.idempotency_key], already_committed=True)
            response = pb.BeginResponse(gtrid=self.new_gtrid())
            response.timeout.CopyFrom(request.timeout)
            if not request.HasField("timeout"):
                response.timeout.seconds = 30
            if request.directory:
                for participant, address in self.directory.items():
                    response.participants.add(participant=participant, address=address)
            return response

        return self.handle("Begin", request, context, work)

    def Run(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            with self.lock:
                key = request.idempotency_key
                if key and key in self.keys:
                    return pb.RunResponse(
                        gtrid=self.keys[key], outcome=pb.OUTCOME_COMMITTED, completed=True, replayed=True
                    )
                gtrid = self.new_gtrid()
                self.set(gtrid, pb.STATE_COMMITTED, pb.OUTCOME_COMMITTED)
                if key:
                    self.keys[key] = gtrid
            response = pb.RunResponse(gtrid=gtrid, outcome=pb.OUTCOME_COMMITTED, completed=True)
            for branch in request.branches:
                response.results.add(
                    participant=branch.participant, results=[echo(s) for s in branch.statements]
                )
            return response

        return self.handle("Run", request, context, work)

    def Commit(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            with self.lock:
                transaction = self.transactions[request.gtrid]
                if transaction.outcome == pb.OUTCOME_UNKNOWN:
                    self.set(request.gtrid, pb.STATE_COMMITTED, pb.OUTCOME_COMMITTED)
                return pb.CommitResponse(
                    outcome=self.transactions[request.gtrid].outcome,
                    completed=request.wait_for == pb.WAIT_FOR_COMPLETED,
                )

        return self.handle("Commit", request, context, work)

    def Rollback(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            self.set(request.gtrid, pb.STATE_ROLLED_BACK, pb.OUTCOME_ROLLED_BACK)
            return pb.RollbackResponse(outcome=pb.OUTCOME_ROLLED_BACK, completed=True)

        return self.handle("Rollback", request, context, work)

    def Get(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            transaction = self.transactions.get(request.gtrid)
            if transaction is None:
                return refuse(Reason.UNKNOWN_TRANSACTION, gtrid=request.gtrid)(request, context, work)
            return pb.GetResponse(transaction=transaction, evidence="live")

        return self.handle("Get", request, context, work)


class FakeAgent(Scripted, agent_grpc.ParticipantAgentServicer):
    """Answers every statement with its parameters as the only row."""

    module = agent_pb

    def Execute(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            return agent_pb.ExecuteResponse(results=[echo(s) for s in request.statements])

        return self.handle("Execute", request, context, work)


def echo(statement: statement_pb2.Statement) -> statement_pb2.StatementResult:
    """A result with the statement's parameters as its only row."""
    result = statement_pb2.StatementResult(row_count=1, last_insert_id=7, warnings=2)
    for index in range(len(statement.parameters)):
        result.columns.add(name=f"c{index}")
    if statement.parameters:
        result.rows.add(values=statement.parameters)
    return result


class Servers:
    """gRPC servers of a test."""

    def __init__(self) -> None:
        self._servers: list[grpc.Server] = []

    def serve(
        self, add: Callable[[grpc.Server], None], address: str = "127.0.0.1:0"
    ) -> tuple[grpc.Server, str]:
        """Serve what `add` registers; returns the server and its address."""
        server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        add(server)
        port = server.add_insecure_port(address)
        server.start()
        self._servers.append(server)
        return server, f"127.0.0.1:{port}"

    def stop(self) -> None:
        for server in self._servers:
            server.stop(None).wait()


class World:
    """One coordinator and two participants, `orders` and `stock`."""

    def __init__(self, participants: Iterable[str] = ("orders", "stock")) -> None:
        self.servers = Servers()
        self.coordinator = FakeCoordinator()
        self.coordinator_server, self.address = self.servers.serve(
            lambda server: pb_grpc.add_CoordinatorServicer_to_server(self.coordinator, server)
        )
        self.agents: dict[str, FakeAgent] = {}
        for participant in participants:
            self.add_agent(participant)

    def add_agent(self, participant: str) -> FakeAgent:
        """Serve another participant (or the same one elsewhere)."""
        agent = FakeAgent()
        _, address = self.servers.serve(
            lambda server: agent_grpc.add_ParticipantAgentServicer_to_server(agent, server)
        )
        self.agents[participant] = agent
        self.coordinator.directory[participant] = address
        return agent
