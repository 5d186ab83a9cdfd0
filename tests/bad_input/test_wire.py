"""What is wrong below the messages: bytes that are no protobuf, too much of everything, no gRPC at all."""

from __future__ import annotations

import asyncio
import random
import socket
import time
import zlib
from collections import Counter
from typing import Any

import grpc
import pytest

from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc
from dtp import Reason
from participant_agent.v1 import participant_agent_pb2 as agent_pb
from participant_agent.v1 import participant_agent_pb2_grpc as agent_rpc
from tests.bad_input.support import INSERT, System, check_refusal, resident, statement

COORDINATOR = "/coordinator.v1.Coordinator/"
ADMIN = "/coordinator.v1.Admin/"
AGENT = "/participant_agent.v1.ParticipantAgent/"
MAX = 4 << 20


def raw(channel: grpc.Channel, method: str, data: bytes, **options: Any) -> bytes:
    """A unary call with these bytes as the request."""
    same = lambda given: given  # noqa: E731
    call = channel.unary_unary(method, request_serializer=same, response_deserializer=same)
    answer: bytes = call(data, timeout=10, **options)
    return answer


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    length, varint = len(data), b""
    while length > 127:
        varint += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + varint + bytes([length]) + data


def nested(depth: int) -> bytes:
    """Groups of an unknown field, `depth` deep."""
    return b"\x7b" * depth + b"\x7c" * depth


GOOD_GTRID = b"k10001" + b"0" * 14
# No protobuf message of ours: method, bytes.
BROKEN: dict[str, tuple[str, bytes]] = {
    "truncated Begin": (COORDINATOR + "Begin", b"\x0a\x05\x08"),
    "truncated Run": (COORDINATOR + "Run", field(1, field(1, b"orders"))[:-1]),
    "truncated Commit": (COORDINATOR + "Commit", b"\x0a\x14k1"),
    "endless varint": (COORDINATOR + "Begin", b"\xff" * 11),
    "field 0": (COORDINATOR + "Commit", b"\x00\x00"),
    "wire type 7": (COORDINATOR + "Commit", b"\x0f"),
    "end of no group": (COORDINATOR + "Commit", b"\x7c"),
    "open group": (COORDINATOR + "Commit", b"\x7b"),
    "101 deep": (COORDINATOR + "Commit", nested(101)),
    "100,000 deep": (COORDINATOR + "Commit", nested(100_000)),
    "length 2^31": (COORDINATOR + "Commit", b"\x0a\xff\xff\xff\xff\x07x"),
    "length 2^64-1": (COORDINATOR + "Commit", b"\x0a" + b"\xff" * 9 + b"\x01x"),
    "gtrid not UTF-8": (COORDINATOR + "Commit", field(1, b"\xff\xfe" + GOOD_GTRID[2:])),
    "gtrid with a surrogate": (COORDINATOR + "Get", field(1, b"\xed\xa0\x80" + GOOD_GTRID[3:])),
    "gtrid overlong": (COORDINATOR + "Watch", field(1, b"\xc0\xaf" + GOOD_GTRID[2:])),
    "key not UTF-8": (COORDINATOR + "Begin", field(2, b"\x80")),
    "participant not UTF-8": (COORDINATOR + "Run", field(1, field(1, b"\xc3("))),
    "SQL not UTF-8": (COORDINATOR + "Run", field(1, field(1, b"orders") + field(2, field(1, b"DO '\xff'")))),
    "reason not UTF-8": (ADMIN + "Resolve", field(3, b"\xff")),
    "truncated Recover": (ADMIN + "Recover", b"\x12\x7f"),
    "truncated Execute": (AGENT + "Execute", field(1, GOOD_GTRID)[:-1]),
    "Execute's gtrid": (AGENT + "Execute", field(1, b"\xff" * 20)),
    "Execute's SQL": (AGENT + "Execute", field(1, GOOD_GTRID) + field(2, field(1, b"DO '\xf8'"))),
    "Execute's text": (AGENT + "Execute", field(2, field(1, b"DO %s") + field(2, field(6, b"\xa0")))),
    "truncated Fence": (AGENT + "Fence", b"\x1a\x10"),
    "Lookup's gtrid": (AGENT + "Lookup", field(2, b"\xff")),
    "Scan's group": (AGENT + "Scan", b"\x7b"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_no_protobuf(system: System, case: str) -> None:
    method, data = BROKEN[case]
    channel = system.agent_channels["orders"] if method.startswith(AGENT) else system.channel
    with system.nothing_changes():
        if method.endswith("Watch"):
            same = lambda given: given  # noqa: E731
            stream = channel.unary_stream(method, request_serializer=same, response_deserializer=same)
            with pytest.raises(grpc.RpcError) as caught:
                list(stream(data, timeout=10))
        else:
            with pytest.raises(grpc.RpcError) as caught:
                raw(channel, method, data)
    assert caught.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    check_refusal(caught.value, Reason.INVALID_REQUEST)


def test_attach_with_broken_first_message(system: System) -> None:
    same = lambda given: given  # noqa: E731
    channel = system.agent_channels["orders"]
    stream = channel.stream_stream(AGENT + "Attach", request_serializer=same, response_deserializer=same)
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(iter([b"\x0a\x05\x08"]), timeout=10))
    check_refusal(caught.value, Reason.INVALID_REQUEST)


def test_random_bytes_as_messages(system: System) -> None:
    """Whatever they are: a status, and no error in the log."""
    random_bytes = random.Random(7).randbytes
    for turn in range(60):
        method = [COORDINATOR + "Run", COORDINATOR + "Begin", AGENT + "Execute", AGENT + "Fence"][turn % 4]
        channel = system.agent_channels["orders"] if method.startswith(AGENT) else system.channel
        with pytest.raises(grpc.RpcError) as caught:
            raw(channel, method, b"\x07" + random_bytes(1 + turn * 3))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value


def test_unknown_fields_are_ignored(system: System) -> None:
    """A newer client's fields do no harm."""
    answer = raw(system.channel, COORDINATOR + "Begin", b"\xba\x3e\x03abc" + nested(10))
    gtrid = pb.BeginResponse.FromString(answer).gtrid
    assert system.rollback(gtrid) == "ROLLED_BACK"


@pytest.mark.parametrize("method", ["/coordinator.v1.Coordinator/Nothing", "/x.Y/Z", "/", "/a" * 3000])
def test_unknown_method(system: System, method: str) -> None:
    for channel in (system.channel, system.agent_channels["orders"]):
        with pytest.raises(grpc.RpcError) as caught:
            raw(channel, method, b"")
        assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)


# --- Too much ---


def run_of(size: int) -> bytes:
    """A refused Run (the participant is unknown) of exactly `size` bytes."""
    statement_bytes = field(1, b"DO 1")
    parameter_size = 60_000
    while True:
        request = field(1, field(1, b"nobody") + field(2, statement_bytes))
        missing = size - len(request)
        if missing == 0:
            return request
        if missing < 0:
            raise AssertionError("cannot be made")
        filler = min(parameter_size, missing - 8) if missing > 16 else missing - 2
        if missing <= 130:  # an unknown field of the rest
            return request + field(15, b"x" * (missing - 2))
        statement_bytes += field(2, field(7, b"x" * max(1, filler - 8)))


@pytest.mark.parametrize("size", [MAX - 1, MAX, MAX + 1, 2 * MAX])
def test_message_size(system: System, size: int) -> None:
    data = run_of(size)
    assert len(data) == size
    execute = agent_pb.ExecuteRequest(gtrid=GOOD_GTRID.decode()).SerializeToString()
    execute += field(15, b"x" * (size - len(execute) - 5))
    assert len(execute) == size
    calls = [
        (system.channel, COORDINATOR + "Run", data),
        (system.agent_channels["orders"], AGENT + "Execute", execute),
    ]
    for channel, method, message in calls:
        with system.nothing_changes(), pytest.raises(grpc.RpcError) as caught:
            raw(channel, method, message)
        if size <= MAX:
            check_refusal(caught.value, Reason.UNKNOWN_PARTICIPANT, Reason.INVALID_REQUEST)
        else:
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_compression_bomb(system: System) -> None:
    """1 GiB of zeros in a message of 1 MiB: the server gives up at its limit, not at the end."""
    sizes = [resident(process.pid) for process in system.processes]
    for channel, method in (
        (system.channel, COORDINATOR + "Run"),
        (system.agent_channels["orders"], AGENT + "Execute"),
    ):
        for size in (MAX + 1, 256 << 20):
            with pytest.raises(grpc.RpcError) as caught:
                raw(channel, method, bytes(size), compression=grpc.Compression.Gzip)
            assert caught.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
    grown = [resident(process.pid) - size for process, size in zip(system.processes, sizes, strict=True)]
    assert max(grown) < 200 << 20, grown


@pytest.mark.parametrize("size", [64 << 10, 1 << 20])
def test_metadata(system: System, size: int) -> None:
    for channel, method in (
        (system.channel, COORDINATOR + "Begin"),
        (system.agent_channels["orders"], AGENT + "Scan"),
    ):
        with system.nothing_changes(), pytest.raises(grpc.RpcError) as caught:
            raw(channel, method, b"", metadata=(("x-much", "m" * size),))
        assert caught.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


def test_many_streams(system: System) -> None:
    """2,000 watches of one transaction: those that gRPC lets in hear its end; others are served meanwhile."""

    async def watch(stub: coordinator_pb2_grpc.CoordinatorStub, gtrid: str) -> str:
        state = 0
        try:
            async for response in stub.Watch(pb.WatchRequest(gtrid=gtrid), timeout=40):
                state = response.transaction.state
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name} after {state}"
        return pb.State.Name(state)

    async def all_of_them(gtrid: str) -> Counter[str]:
        async with grpc.aio.insecure_channel(system.cluster.address) as channel:
            stub = coordinator_pb2_grpc.CoordinatorStub(channel)
            calls = [asyncio.create_task(watch(stub, gtrid)) for _ in range(2000)]
            await asyncio.sleep(1)
            response = await asyncio.to_thread(system.run, system.new_row())
            assert response.outcome == pb.OUTCOME_COMMITTED
            await asyncio.to_thread(system.rollback, gtrid)
            return Counter(await asyncio.gather(*calls))

    heard = asyncio.run(all_of_them(system.begin()))
    assert set(heard) <= {"STATE_ROLLED_BACK", "CANCELLED after 0", "RESOURCE_EXHAUSTED after 0"}, heard
    assert heard["STATE_ROLLED_BACK"] >= 1000


def test_many_silent_attaches(system: System) -> None:
    """500 streams that never say hello: the agent serves on."""

    async def silence() -> None:
        async with grpc.aio.insecure_channel(system.cluster.sites["orders"].address) as channel:
            stub = agent_rpc.ParticipantAgentStub(channel)
            calls = [stub.Attach() for _ in range(500)]
            await asyncio.sleep(0.3)
            response = await asyncio.to_thread(system.run, system.new_row())
            assert response.outcome == pb.OUTCOME_COMMITTED
            for call in calls[:250]:
                await call.done_writing()  # half closed
            for call in calls[250:]:
                call.cancel()

    asyncio.run(silence())


# --- No gRPC ---

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
NOISE = {
    "nothing": b"",
    "text": b"hello\r\n\r\n",
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(500),
    "preface only": PREFACE,
    "preface cut": PREFACE[:10],
    "preface and noise": PREFACE + random.Random(1).randbytes(2000),
    "settings and noise": PREFACE + SETTINGS + random.Random(2).randbytes(2000),
    "frame of 16 MiB": PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(10_000),
    "bad HPACK": PREFACE + SETTINGS + b"\0\0\4\1\5\0\0\0\1" + b"\xff\xff\xff\xff",
    "window overflow": PREFACE + SETTINGS + b"\0\0\4\x08\0\0\0\0\0\x7f\xff\xff\xff" * 3,
    "data on stream 0": PREFACE + SETTINGS + b"\0\0\4\0\0\0\0\0\0abcd",
    "noise": random.Random(3).randbytes(100_000),
    "zeros": bytes(100_000),
}


def send(address: str, data: bytes, *, half_close: bool, wait: float = 0.2) -> bytes:
    """Send bytes to a port and read what comes back for a moment."""
    host, _, port = address.rpartition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        try:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        except OSError:
            pass
    return answer


@pytest.mark.parametrize("case", NOISE)
def test_noise_on_a_grpc_port(system: System, case: str) -> None:
    addresses = [system.cluster.address, system.cluster.sites["orders"].address]
    with system.nothing_changes():
        for address in addresses:
            for half_close in (True, False):
                send(address, NOISE[case], half_close=half_close, wait=0.05)


HTTP = {
    "nothing": (b"", b""),
    "noise": (random.Random(4).randbytes(3000) + b"\r\n\r\n", b"40"),
    "zeros": (bytes(3000) + b"\r\n\r\n", b"40"),
    "TLS": (bytes.fromhex("1603010200010001fc0303") + b"\r\n\r\n", b"40"),
    "POST": (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"501"),
    "PUT": (b"PUT /healthz HTTP/1.0\r\n\r\n", b"501"),
    "version 9": (b"GET /healthz HTTP/9.9\r\n\r\n", b"50"),
    "long path": (b"GET /" + b"x" * 70_000 + b" HTTP/1.0\r\n\r\n", b"414"),
    "long header": (b"GET /healthz HTTP/1.0\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
    "many headers": (b"GET /healthz HTTP/1.0\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"431"),
    "path up": (b"GET /../../etc/passwd HTTP/1.0\r\n\r\n", b"404"),
    "script": (b"GET /<script>alert(1)</script> HTTP/1.0\r\n\r\n", b"404"),
    "NUL": (b"GET /\0 HTTP/1.0\r\n\r\n", b"40"),
    "query": (b"GET /healthz?x=\xff\xfe HTTP/1.0\r\n\r\n", b"200"),
    "not ours": (b"GET / HTTP/1.0\r\n\r\n", b"404"),
}


@pytest.mark.parametrize("case", HTTP)
def test_noise_on_the_http_port(system: System, case: str) -> None:
    data, status = HTTP[case]
    answer = send(system.cluster.http_address, data, half_close=True, wait=1)
    if status:
        head = answer.partition(b" ")[2].startswith(status)
        assert head or b"Error code: " + status in answer, answer[:200]
    assert b"<script>" not in answer
    assert b"root:" not in answer
    assert system.cluster.http("/healthz") == (200, "ok\n")


def test_http_clients_that_go_away(system: System) -> None:
    """Connections that are reset before the answer is written: no noise in the log."""
    host, _, port = system.cluster.http_address.rpartition(":")
    for _ in range(50):
        connection = socket.create_connection((host, int(port)), timeout=5)
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert system.cluster.http("/healthz") == (200, "ok\n")
    time.sleep(0.2)


def test_silent_http_clients(system: System) -> None:
    """60 connections that say nothing: others are answered, and the silent don't hold threads for ever."""
    host, _, port = system.cluster.http_address.rpartition(":")
    pid = system.cluster.coordinator.pid
    silent = [socket.create_connection((host, int(port)), timeout=5) for _ in range(60)]
    try:
        for connection in silent:
            connection.sendall(b"GET /healthz")
        assert system.cluster.http("/healthz") == (200, "ok\n")
        deadline = time.monotonic() + 12
        while (threads := _threads(pid)) > 50 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert threads <= 50, f"{threads} threads wait for 60 silent clients"
    finally:
        for connection in silent:
            connection.close()


def _threads(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Threads:"))


def test_deflate_of_noise(system: System) -> None:
    """A message that says it is compressed and is not."""
    connection_data = PREFACE + SETTINGS
    headers = b"\x83\x86" + b"".join(
        b"\x00" + bytes([len(k)]) + k + bytes([len(v)]) + v
        for k, v in (
            (b":path", (COORDINATOR + "Begin").encode()),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"grpc-encoding", b"gzip"),
        )
    )
    frame = len(headers).to_bytes(3, "big") + b"\1\4\0\0\0\1" + headers
    body = b"\1" + (20).to_bytes(4, "big") + zlib.compress(b"x")[:4] + random.Random(5).randbytes(16)
    data = len(body).to_bytes(3, "big") + b"\0\1\0\0\0\1" + body
    with system.nothing_changes():
        answer = send(system.cluster.address, connection_data + frame + data, half_close=False, wait=0.3)
    assert answer, "no answer at all"


def test_statement_cut_by_the_limit_is_not_run(system: System) -> None:
    """A good transaction beside one refused for its size."""
    gtrid = system.begin()
    row = system.new_row()
    big = statement("SELECT %s", "x" * MAX)
    with pytest.raises(grpc.RpcError) as caught:
        system.execute("orders", gtrid, statement(INSERT, row, 1), big)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert system.commit(gtrid) == "COMMITTED"
    assert system.where(row) == []
