"""A scripted coordinator on 127.0.0.1 (real gRPC, real statuses) and a way to run coordctl against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from coordinator.ctl.main import run
from coordinator.v1 import admin_pb2, admin_pb2_grpc, coordinator_pb2, coordinator_pb2_grpc
from dtp import Reason, XacoordError
from tests.ctl.messages import log_status, participant, transaction


def _status(error: XacoordError) -> grpc.Status:
    """The error as the head of coordinator.proto says."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain="xacoord")
    detail = any_pb2.Any()
    detail.Pack(info)
    code = grpc.StatusCode[error.status]
    return rpc_status.to_status(
        status_pb2.Status(code=code.value[0], message=error.message, details=[detail])
    )


class Fake(admin_pb2_grpc.AdminServicer, coordinator_pb2_grpc.CoordinatorServicer):
    """Answers what a test put into `answers` (a message, an error, or a function) and keeps the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.requests: list[tuple[str, Message]] = []
        self.health = health.HealthServicer()

    def _answer(self, name: str, request: Message, context: grpc.ServicerContext) -> Any:
        self.requests.append((name, request))
        answer = self.answers[name]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, XacoordError):
            context.abort_with_status(_status(answer))
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "without details")
        return answer

    def Recover(self, request, context):
        return self._answer("Recover", request, context)

    def Resolve(self, request, context):
        return self._answer("Resolve", request, context)

    def Forget(self, request, context):
        return self._answer("Forget", request, context)

    def Participants(self, request, context):
        return self._answer("Participants", request, context)

    def LogStatus(self, request, context):
        return self._answer("LogStatus", request, context)

    def Get(self, request, context):
        return self._answer("Get", request, context)

    def List(self, request, context):
        return self._answer("List", request, context)

    def Watch(self, request, context):
        yield from self._answer("Watch", request, context)

    def of(self, name: str) -> list[Any]:
        """The requests of one method."""
        return [request for method, request in self.requests if method == name]


@dataclass
class Result:
    code: int
    out: str
    err: str


@dataclass
class Coordctl:
    """Runs coordctl in this process against the fake."""

    address: str
    fake: Fake
    capsys: pytest.CaptureFixture[str] = field(repr=False)

    def __call__(self, *arguments: str) -> Result:
        code = run(["--address", self.address, "--timeout", "5", *arguments])
        out, err = self.capsys.readouterr()
        return Result(code, out, err)


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[str, Fake]]:
    fake = Fake()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    admin_pb2_grpc.add_AdminServicer_to_server(fake, server)
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(fake, server)
    health_pb2_grpc.add_HealthServicer_to_server(fake.health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", fake
    server.stop(None).wait()


@pytest.fixture
def fake(server: tuple[str, Fake]) -> Fake:
    """The fake coordinator: well, and without transactions."""
    fake = server[1]
    fake.requests.clear()
    fake.health.set("", health_pb2.HealthCheckResponse.SERVING)
    fake.answers = {
        "LogStatus": log_status(),
        "Participants": admin_pb2.ParticipantsResponse(participants=[participant("orders", 1)]),
        "List": coordinator_pb2.ListResponse(),
        "Get": coordinator_pb2.GetResponse(transaction=transaction(), evidence="live"),
        "Recover": admin_pb2.RecoverResponse(),
        "Resolve": admin_pb2.ResolveResponse(transaction=transaction()),
        "Forget": admin_pb2.ForgetResponse(),
    }
    return fake


@pytest.fixture
def coordctl(server: tuple[str, Fake], fake: Fake, capsys: pytest.CaptureFixture[str]) -> Coordctl:
    return Coordctl(server[0], fake, capsys)


@pytest.fixture
def error() -> Callable[..., XacoordError]:
    """Makes errors as the coordinator's."""
    return lambda reason, message="the message": XacoordError(Reason(reason), message)
