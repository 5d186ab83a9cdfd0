"""The twin of the network between the parts: connections between processes, by address (calls.py: gRPC).

Fault model:
 1. latency: each message takes its time; now and then one takes long, and what follows on its connection
    waits.
 2. cut: one direction between two hosts carries nothing until it is healed; then everything that was held
    arrives, if its connection still stands at the receiver (TCP sends again). A connection with keepalive
    that crosses a cut, or whose peer is frozen, breaks at the pinging side only: the other is half open
    until it hears.
 3. break: a connection dies at one side first, at the other later or never before it sends.
 4. death: messages of a dead process are under way and arrive, also after a new life has connected.
 5. wild, which gRPC never does: single commands and reports of a stream are lost, doubled or overtaken.
"""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from shell.status import ErrorInterceptor
from tests.simulation.loop import SimulatedLoop
from tests.simulation.process import Process
from tests.simulation.trace import Trace

if TYPE_CHECKING:
    from tests.simulation.calls import ClientCall, ServerCall

_KEEPALIVE_SECONDS = (5.0, 10.0)


@dataclass
class Weather:
    """How the network is. Probabilities are per message.

    Attributes:
        latency: least and most seconds of a message.
        slow: probability of a message that takes up to `slow_seconds`.
        lost, doubled, overtaken: of a command or report in a stream (wild).
    """

    latency: tuple[float, float] = (0.0002, 0.003)
    slow: float = 0.0
    slow_seconds: float = 0.0
    lost: float = 0.0
    doubled: float = 0.0
    overtaken: float = 0.0

    @property
    def wild(self) -> bool:
        return bool(self.lost or self.doubled or self.overtaken)


@dataclass
class Listener:
    """What listens at an address."""

    process: Process
    methods: dict[str, Any] = field(default_factory=dict)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Called by generated code; the registered methods are all we need."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            self.methods[f"/{service}/{name}"] = _intercepted(f"/{service}/{name}", handler)


def _intercepted(method: str, handler: Any) -> Any:
    """The handler behind the daemons' interceptor."""

    async def continuation(details: Any) -> Any:
        return handler

    class Details:
        pass

    Details.method = method  # type: ignore[attr-defined]
    wrapping = ErrorInterceptor().intercept_service(continuation, Details())  # type: ignore[arg-type]
    try:
        wrapping.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the interceptor waits for something")


def error(code: grpc.StatusCode, details: str, trailing: Any = ()) -> grpc.aio.AioRpcError:
    """What the client side of gRPC raises."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


def unavailable(details: str) -> grpc.aio.AioRpcError:
    return error(grpc.StatusCode.UNAVAILABLE, details)


class Network:
    """All hosts and what is between them. `outside` is the context of what belongs to no process."""

    def __init__(self, loop: SimulatedLoop, random: Random, trace: Trace) -> None:
        self.loop = loop
        self.random = random
        self.trace = trace
        self.weather = Weather()
        self.listeners: dict[str, Listener] = {}
        self.connections: list[Connection] = []
        self.observers: list[Callable[[str, str, Any], None]] = []
        self.counters: Counter[str] = Counter()
        self._cut: dict[tuple[str, str], list[tuple[Pipe, Callable[[], None]]]] = {}

    def listen(self, address: str, process: Process) -> Listener:
        """Serve at an address until the process ends."""
        listener = Listener(process)
        self.listeners[address] = listener

        def ended() -> None:
            if self.listeners.get(address) is listener:
                del self.listeners[address]
            self.ended(process)

        process.on_end.append(ended)
        return listener

    def client(self, process: Process) -> None:
        """A process that only calls: its connections end with it."""
        process.on_end.append(lambda: self.ended(process))

    def ended(self, process: Process) -> None:
        """The kernel closes the sockets of a dead process: the peer hears behind what was sent."""
        for connection in [c for c in self.connections if process in (c.client, c.server)]:
            connection.end_of(process)

    # cuts

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cut

    def cut(self, source: str, target: str) -> None:
        """Nothing passes from one host to another from now on."""
        if (source, target) not in self._cut:
            self.trace("network", "cut", source, target)
            self._cut[(source, target)] = []
            self.ping()

    def heal(self, source: str, target: str) -> None:
        """What was held goes on its way."""
        held = self._cut.pop((source, target), None)
        if held is not None:
            self.trace("network", "heal", source, target, len(held))
            for pipe, deliver in held:
                pipe.send(deliver)

    def heal_all(self) -> None:
        for source, target in list(self._cut):
            self.heal(source, target)

    def hold(self, pipe: Pipe, deliver: Callable[[], None]) -> bool:
        """Keep a message that meets a cut."""
        held = self._cut.get((pipe.source, pipe.target))
        if held is None:
            return False
        held.append((pipe, deliver))
        return True

    def ping(self) -> None:
        """A cut or a freeze has begun: keepalive notices in a while."""
        for connection in self.connections:
            if connection.keepalive and connection.client_open:
                least, most = _KEEPALIVE_SECONDS
                self.later(least + (most - least) * self.random.random(), connection.check)

    # time

    def latency(self) -> float:
        weather, random = self.weather, self.random
        least, most = weather.latency
        seconds = least + (most - least) * random.random()
        if weather.slow and random.random() < weather.slow:
            seconds += weather.slow_seconds * random.random()
        return seconds

    def scatter(self, message: Any, items: str) -> list[tuple[float, Any]]:
        """What becomes of a stream's message: parts with their delays (wild)."""
        weather, random = self.weather, self.random
        if not weather.wild:
            return [(0.0, message)]
        parts: list[tuple[float, Any]] = []
        kept = []
        for item in getattr(message, items):
            if random.random() < weather.lost:
                self.counters["messages lost"] += 1
                continue
            late = random.random() < weather.overtaken
            if late or random.random() < weather.doubled:
                part = type(message)()
                getattr(part, items).append(item)
                parts.append((0.001 + 3.0 * random.random() ** 3, part))
                self.counters["messages overtaken" if late else "messages doubled"] += 1
            if not late:
                kept.append(item)
        del getattr(message, items)[:]
        getattr(message, items).extend(kept)
        return [(0.0, message), *parts]

    def later(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        """Call in the context of nobody's process."""
        self.loop.call_later(delay, callback, *args, context=OUTSIDE)


OUTSIDE = contextvars.Context()  # of no process


class Pipe:
    """One direction of a connection: what is sent arrives in order."""

    def __init__(self, network: Network, source: str, target: str) -> None:
        self.network = network
        self.source = source
        self.target = target
        self._last = 0.0

    def send(self, deliver: Callable[[], None]) -> None:
        network = self.network
        if network.hold(self, deliver):
            return
        self._last = max(self._last, network.loop.time() + network.latency())
        network.loop.call_at(self._last, deliver, context=OUTSIDE)


class Connection:
    """One TCP connection with what runs over it. Each side has its own opinion on whether it stands."""

    def __init__(self, network: Network, client: Process, listener: Listener, keepalive: bool) -> None:
        self.network = network
        self.client, self.server = client, listener.process
        self.methods = listener.methods
        self.keepalive = keepalive
        self.up = Pipe(network, client.host, self.server.host)
        self.down = Pipe(network, self.server.host, client.host)
        self.client_open = self.server_open = True
        self.calls: list[ClientCall] = []
        self.handlers: list[ServerCall] = []
        network.connections.append(self)

    def check(self) -> None:
        """Keepalive has waited for an answer to its ping."""
        network = self.network
        up, down = (self.up.source, self.up.target), (self.down.source, self.down.target)
        silent = network.is_cut(*up) or network.is_cut(*down) or self.server.halted or not self.server_open
        if silent and self.client_open and not self.client.halted:
            self.break_client("ping timeout")

    def end_of(self, process: Process) -> None:
        if process is self.client:
            if self.client_open:
                self.client_open = False
                self.up.send(self.break_server)
        elif self.server_open:
            self.server_open = False
            self.handlers.clear()
            self.down.send(lambda: self.break_client("Socket closed"))
        self._forget()

    def break_client(self, why: str, tell: bool = True) -> None:
        """The client's side is gone; the server hears behind what was sent, if it is told at all."""
        if not self.client_open:
            return
        self.client_open = False
        self.network.trace(self.client.name, "connection lost", self.server.name, why)
        calls, self.calls = self.calls, []
        for call in calls:
            call.fail(unavailable(why))
        if tell:
            self.up.send(self.break_server)
        self._forget()

    def break_server(self, tell: bool = True) -> None:
        """The server's side is gone: its handlers are cancelled."""
        if not self.server_open:
            return
        self.server_open = False
        self.network.trace(self.server.name, "connection lost", self.client.name)
        handlers, self.handlers = self.handlers, []
        for handler in handlers:
            handler.cancel()
        if tell:
            self.down.send(lambda: self.break_client("Connection reset by peer"))
        else:
            self.network.ping()
        self._forget()

    def _forget(self) -> None:
        if not self.client_open and not self.server_open and self in self.network.connections:
            self.network.connections.remove(self)

    def to_server(self, deliver: Callable[[], None]) -> None:
        """Send from the client; an end that knows nothing of the connection answers with a reset."""

        def arrive() -> None:
            if self.server_open:
                deliver()
            elif self.client_open:
                self.down.send(lambda: self.break_client("Connection reset by peer"))

        self.up.send(arrive)

    def to_client(self, deliver: Callable[[], None]) -> None:
        """Send from the server."""

        def arrive() -> None:
            if self.client_open:
                deliver()
            elif self.server_open:
                self.up.send(self.break_server)

        self.down.send(arrive)


def host_of(address: str) -> str:
    """The host in "host:port"."""
    return address.partition(":")[0]
