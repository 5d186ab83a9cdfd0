"""A link to an agent that runs in the same event loop, answers as a test says and notes what it hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc.aio

from coordinator.agents import AgentLink, Identity
from coordinator.core import effects, inputs
from dtp import Gtrid, XacoordError
from participant_agent.v1 import participant_agent_pb2 as pb
from participant_agent.v1 import participant_agent_pb2_grpc as rpc
from shell import status

IDENTITY = Identity("test", 3, b"L" * 16, {1: 7, 2: 8, 3: 9})


def gtrid(counter: int) -> str:
    return str(Gtrid.make("test", 3, counter, 0))


class Agent(rpc.ParticipantAgentServicer):
    """Notes the requests of all calls, in order, in `heard`."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.fence_error: XacoordError | None = None
        self.response = pb.FenceResponse(
            server=pb.ServerInfo(engine="mysql", version="8", witness=True, address="db:1")
        )
        self.prepared: list[pb.PreparedXid] = []
        self.evidence: list[pb.Evidence] = []
        self.streams: list[asyncio.Queue[pb.AttachResponse | None]] = []
        self._server: Any = None
        self.port = 0

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        rpc.add_ParticipantAgentServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    def messages(self) -> list[pb.AttachRequest]:
        """What came over the streams, without the first message of each."""
        return [m for m in self.heard if isinstance(m, pb.AttachRequest) and not m.HasField("hello")]

    async def Fence(self, request: pb.FenceRequest, context: Any) -> pb.FenceResponse:
        self.heard.append(request)
        if self.fence_error is not None:
            await status.abort(context, self.fence_error)
        return self.response

    async def Scan(self, request: pb.ScanRequest, context: Any) -> pb.ScanResponse:
        self.heard.append(request)
        return pb.ScanResponse(prepared=self.prepared, ghosts=2, blocked=[pb.BlockedSession()])

    async def Lookup(self, request: pb.LookupRequest, context: Any) -> pb.LookupResponse:
        self.heard.append(request)
        return pb.LookupResponse(evidence=self.evidence)

    async def Attach(
        self, requests: AsyncIterator[pb.AttachRequest], context: Any
    ) -> AsyncIterator[pb.AttachResponse]:
        stream: asyncio.Queue[pb.AttachResponse | None] = asyncio.Queue()
        self.streams.append(stream)

        async def read() -> None:
            async for request in requests:
                self.heard.append(request)

        reader = asyncio.get_running_loop().create_task(read())
        try:
            while (message := await stream.get()) is not None:
                yield message
        finally:
            reader.cancel()


class Bench:
    """An agent, the link to it, and what the link has told the core."""

    def __init__(self) -> None:
        self.agent = Agent()
        self.told: list[inputs.Input] = []
        self.mark = ""
        self.link: AgentLink

    def answers(self, kind: type) -> list[Any]:
        """What the link has told of this kind."""
        return [event for event in self.told if isinstance(event, kind)]

    async def connect(self, count: int = 1) -> None:
        """Until the link has connected for the `count`-th time."""
        await until(lambda: len(self.answers(inputs.AgentConnected)) >= count)

    async def attach(self) -> int:
        """Open the stream of the present connection; returns its number."""
        number, streams = self.link.link, len(self.agent.streams)
        self.link.attach(effects.Attach("p", number))
        await until(lambda: len(self.agent.streams) > streams)
        return number


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, or fail."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def run(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    """Run the test with an agent and a link that tries to connect to it."""

    async def main() -> None:
        bench = Bench()
        await bench.agent.start()
        address = f"127.0.0.1:{bench.agent.port}"
        bench.link = AgentLink("p", address, IDENTITY, bench.told.append, lambda: 50.0, lambda: bench.mark)
        task = asyncio.create_task(bench.link.run())
        try:
            async with asyncio.timeout(15):
                await test(bench)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await bench.agent.stop()

    asyncio.run(main())
