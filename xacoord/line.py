"""Line: the way to one address: a stream that all threads share, and unary calls where there is none.

A call costs both sides less on a stream, and the less the more threads call at once. It is opened in the
background when a few calls have been made, so that a process that makes few does without. Nothing depends
on it: while it is not open (yet, or any more, or the server knows none) calls are unary, and what it
certainly did not carry out is called again so.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import grpc

from coordinator.v1 import coordinator_pb2, coordinator_pb2_grpc
from participant_agent.v1 import participant_agent_pb2, participant_agent_pb2_grpc
from xacoord.faults import Fault, decode_fault, decode_status
from xacoord.stream import LARGEST_REQUEST_BYTES, End, NotSent, Stream

# So many calls, and a stream is opened; counted anew when it has ended.
CALLS_BEFORE_A_STREAM = 8
# For so long no stream is opened after one has ended so. gRPC itself tries to connect about once a second.
_PAUSE_SECONDS: dict[End, float] = {"in order": 0.0, "broken": 1.0, "never opened": 1.0, "not served": 60.0}


class Line:
    """The calls of one process to one address. Thread-safe.

    Args:
        channel: to the address.
        to_agent: an agent is there, not a coordinator.
    """

    def __init__(self, channel: grpc.Channel, to_agent: bool) -> None:
        self._channel = channel
        module: Any
        if to_agent:
            module, name = participant_agent_pb2, "ParticipantAgent"
            self._stub: Any = participant_agent_pb2_grpc.ParticipantAgentStub(channel)
        else:
            module, name = coordinator_pb2, "Coordinator"
            self._stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        service = module.DESCRIPTOR.services_by_name[name].full_name
        self._fields = {field.name: field.number for field in module.Call.DESCRIPTOR.fields}
        # Not the stub's: messages are put together in their serialised form.
        self._session: Any = channel.stream_stream(
            f"/{service}/Session", response_deserializer=module.SessionResponse.FromString
        )
        self._lock = threading.Lock()
        self._calls = 0
        self._stream: Stream | None = None
        self._no_stream_before = 0.0

    def call(self, method: str, request: Any, timeout_seconds: float) -> Any:
        """The response to a call, or the Fault that there is instead."""
        until = time.monotonic() + timeout_seconds
        stream = self._stream or self._open_stream()
        try:
            if stream is not None and stream.usable:
                name, payload = method.lower(), request.SerializeToString()
                if len(payload) <= LARGEST_REQUEST_BYTES:
                    try:
                        answer = stream.call(self._fields[name], payload, timeout_seconds)
                        return answer if isinstance(answer, Fault) else _decode(answer, name)
                    except NotSent:
                        timeout_seconds = max(0.001, until - time.monotonic())
            return getattr(self._stub, method)(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            return decode_fault(error)

    def close(self) -> None:
        """Calls under way fail. Repeating it is harmless."""
        self._channel.close()

    def _open_stream(self) -> Stream | None:
        """Begin to open a stream where it is time to."""
        with self._lock:
            self._calls += 1
            due = self._calls > CALLS_BEFORE_A_STREAM and time.monotonic() >= self._no_stream_before
            if self._stream is None and due:
                self._stream = Stream(self._session, self._ended)
            return self._stream

    def _ended(self, end: End) -> None:
        with self._lock:
            self._stream = None
            self._calls = 0 if end == "in order" else CALLS_BEFORE_A_STREAM
            self._no_stream_before = time.monotonic() + _PAUSE_SECONDS[end]


def _decode(answer: Any, name: str) -> Any:
    kind = answer.WhichOneof("response")
    if kind == name:
        return getattr(answer, name)
    if kind == "status":
        return decode_status(answer.status)
    return Fault("INTERNAL", "", f"INTERNAL: {name} was answered by {kind}", False, False)
