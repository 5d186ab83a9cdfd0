"""Calls to the coordinator: one channel for one command, every failure mapped once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from coordinator.ctl.errors import CtlError, ExitCode, from_rpc
from coordinator.ctl.options import Settings

if TYPE_CHECKING:
    import grpc

Q = TypeVar("Q")
R = TypeVar("R")

CALL_SECONDS = 10.0
OFFLINE_LIST = "coordctl list --offline --config FILE"
_MAX_MESSAGE_BYTES = 64 << 20


class Client:
    """The coordinator's services; a context manager.

    Arguments:
        settings: the global options.
        offline: the command that does the same, or something like it, without the coordinator.
        timeout_seconds: for one call, unless the user says otherwise.
    """

    def __init__(
        self, settings: Settings, offline: str = OFFLINE_LIST, timeout_seconds: float = CALL_SECONDS
    ) -> None:
        os.environ.setdefault(
            "GRPC_VERBOSITY", "NONE"
        )  # its messages would spoil the one line on standard error
        import grpc

        from coordinator.v1.admin_pb2_grpc import AdminStub
        from coordinator.v1.coordinator_pb2_grpc import CoordinatorStub

        self._address = settings.address
        self._offline = offline
        self._timeout_seconds = settings.timeout_seconds or timeout_seconds
        self._stream_seconds = settings.timeout_seconds
        self._channel = grpc.insecure_channel(
            settings.address,
            options=[
                ("grpc.enable_http_proxy", 0),
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                # A stream through which nothing comes must notice that the other side has gone.
                ("grpc.keepalive_time_ms", 30_000),
            ],
        )
        self.coordinator = CoordinatorStub(self._channel)
        self.admin = AdminStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self, method: grpc.UnaryUnaryMultiCallable[Q, R], request: Q) -> R:
        """One call.

        Raises:
            CtlError: it failed.
        """
        import grpc

        try:
            return method(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            raise from_rpc(error, self._address, self._offline) from error

    def stream(self, method: grpc.UnaryStreamMultiCallable[Q, R], request: Q) -> Iterator[R]:
        """The responses of one call, without a time-out unless the user gave one.

        Raises:
            CtlError: it failed.
        """
        import grpc

        try:
            yield from method(request, timeout=self._stream_seconds)
        except grpc.RpcError as error:
            raise from_rpc(error, self._address, self._offline) from error

    def health(self) -> str:
        """The answer of grpc.health.v1: SERVING, NOT_SERVING or, where it is not offered, UNKNOWN."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        stub = health_pb2_grpc.HealthStub(self._channel)
        try:
            response = self.call(stub.Check, health_pb2.HealthCheckRequest())
        except CtlError as error:
            if error.code in (ExitCode.REFUSED, ExitCode.NOT_FOUND):
                return "UNKNOWN"
            raise
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
