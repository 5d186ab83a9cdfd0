"""The world of one run: all parts, and the three acts of it.

1. chaos: clients work, and faults happen (faults.py), until the chaos' time is over;
2. calm: every fault ends, everything is started, nobody begins anything new; within 60 virtual seconds and
   the time that agents give a statement nothing of ours may be prepared, no row locked, no transaction
   open, every client answered, every participant UP;
3. judgement: an auditor asks for each transaction what became of it, and the oracle compares ledgers and
   servers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from random import Random
from typing import Any

from coordinator.core.settings import Settings
from coordinator.core.states import ParticipantState, State
from dtp import Xid
from tests.simulation.agents import AgentNode
from tests.simulation.clients import PRIVATE, SHARED, Client
from tests.simulation.coordinators import CoordinatorNode
from tests.simulation.deadlocks import Deadlocks
from tests.simulation.faults import Faults
from tests.simulation.ledger import Work
from tests.simulation.loop import SimulatedLoop
from tests.simulation.mysql import Server
from tests.simulation.network import Network, Weather
from tests.simulation.oracle import Oracle
from tests.simulation.plan import Plan, plan_of
from tests.simulation.trace import Trace

CALM_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_AFTERMATH_SECONDS = 3.0
MAX_WORKS = 200


class World:
    """Everything of one run."""

    def __init__(self, seed: int, loop: SimulatedLoop, trace: Trace) -> None:
        self.seed = seed
        self.loop = loop
        self.trace = trace
        self.counters: Counter[str] = Counter()
        self.plan: Plan = plan_of(self.stream("plan"))
        self.network = Network(loop, self.stream("network"), trace)
        self.network.weather = self.plan.weather
        self.network.counters = self.counters
        self.oracle = Oracle(self)
        self.calm = False
        self.works: list[Work] = []
        self.forgotten: set[str] = set()
        self.servers = {
            name: Server(engine, name, self.stream(f"server {name}"))
            for name, engine in self.plan.engines.items()
        }
        self.agents = {
            name: AgentNode(self, name, self.servers[server])
            for name, server in self.plan.participants.items()
        }
        self.coordinators: dict[str, CoordinatorNode] = {}
        for coordinator_id in self.plan.coordinators:
            settings = Settings(
                coordinator_id,
                rescan_every=self.plan.rescan_every,
                keep_ended=self.plan.keep_ended,
                witness_retention=self.plan.witness_retention,
            )
            addresses = {name: node.address for name, node in self.agents.items()}
            self.coordinators[coordinator_id] = CoordinatorNode(self, coordinator_id, addresses, settings)
        self.clients: list[Client] = []
        self.faults = Faults(self)
        self.deadlocks = Deadlocks(self)

    def stream(self, name: str) -> Random:
        """Randomness of one part, so that a change elsewhere does not change its run."""
        return Random(f"{self.seed}/{name}")

    # the acts

    async def run(self) -> None:
        """All three acts."""
        self._furnish()
        for server_side in self.agents.values():
            server_side.start()
        for node in self.coordinators.values():
            node.start()
        names = list(self.coordinators)
        for number in range(self.plan.clients):
            client = Client(self, number, names[number % len(names)])
            self.clients.append(client)
            client.start(self.plan.works)
        self.faults.schedule()
        watching = self.loop.create_task(self.deadlocks.watch())
        await asyncio.sleep(self.plan.chaos_seconds)
        self.calm = True
        self.faults.end()
        self.network.weather = Weather()
        self.trace("WORLD", "is calm from now on")
        if await self._come_to_rest():
            await self._audit()
            self.oracle.judge()
        watching.cancel()
        self._count()

    def _furnish(self) -> None:
        for node in self.agents.values():
            accounts = [(PRIVATE + n, 0) for n in range(MAX_WORKS)] + [(n + 1, 0) for n in range(SHARED)]
            node.server.load(f"{node.participant}.account", accounts)
            node.server.load(f"{node.participant}.transfer", [("twice", 1)])

    def new_work(self, coordinator: str, writes: tuple[str, ...], key: str) -> Work:
        """A client wants something done."""
        work = Work(len(self.works), coordinator, writes, key)
        self.works.append(work)
        return work

    async def _come_to_rest(self) -> bool:
        # What an agent was at may take as long as it lets its server.
        until = self.loop.time() + CALM_SECONDS + self.plan.statement_timeout_seconds
        quiet_since = None
        while True:
            restless = self._restless()
            if restless is not None:
                quiet_since = None
                if self.loop.time() >= until:
                    self.oracle.violated("LIVENESS", restless)
                    return False
            elif quiet_since is None:
                quiet_since = self.loop.time()
            elif self.loop.time() - quiet_since >= _AFTERMATH_SECONDS:
                return True
            await asyncio.sleep(_LOOK_SECONDS)

    def _restless(self) -> str | None:
        """What keeps the world from being at rest, or None."""
        for client in self.clients:
            if client.process.alive and not client.done:
                return f"{client.name} waits"
        for node in self.coordinators.values():
            why = self._restless_coordinator(node) if not node.on_hold else None
            if why:
                return f"{node.name}: {why}"
        if any(node.on_hold for node in self.coordinators.values()):
            return None  # its branches stay prepared, and keep their locks
        for server in self.servers.values():
            ours = [xid for xid in server.prepared_xids() if xid not in self.faults.foreign]
            if ours:
                return f"{server.name}: prepared: {', '.join(map(str, ours))}"
            locked = [row for row in server.locked_rows() if not row[0].endswith("foreign.transfer")]
            if locked:
                return f"{server.name}: locked: {locked}"
        for agent in self.agents.values():
            if agent.agent is None or not agent.agent.serving.is_set():
                return f"{agent.name} does not serve"
            if agent.agent.branches.registry.entries:
                return f"{agent.name} has branches: {list(agent.agent.branches.registry.entries)}"
        return None

    def _restless_coordinator(self, node: CoordinatorNode) -> str | None:
        driver = node.driver
        if driver is None or not node.alive:
            return "does not run"
        for name, participant in driver.core.participants.items():
            if participant.state is not ParticipantState.UP:
                return f"{name} is {participant.state.value}: {participant.last_error}"
        for gtrid, transaction in driver.core.open.items():
            if transaction.state is not State.HEURISTIC or not transaction.durable:
                return f"{gtrid} is {transaction.state.value}"
        if driver._waiting:
            return "callers wait"
        return None

    async def _audit(self) -> None:
        """Somebody asks for every transaction that a client has heard of."""
        for name in self.coordinators:
            auditor = Client(self, 1_000 + len(self.clients), name)
            self.clients.append(auditor)
            auditor.process.spawn(auditor.audit([w for w in self.works if w.coordinator == name]))
        async with asyncio.timeout(CALM_SECONDS + len(self.works)):
            while not all(client.done for client in self.clients if client.process.alive):
                await asyncio.sleep(_LOOK_SECONDS)

    def _count(self) -> None:
        if any(node.on_hold for node in self.coordinators.values()):
            self.counters["runs with a justified hold"] += 1
        for work in self.works:
            done = any(self.private(name, PRIVATE + work.number) for name in work.writes)
            self.counters["works done" if done else "works not done"] += 1
        for node in self.coordinators.values():
            if node.driver is not None:  # of its last life only
                self.counters["deadlocks across servers"] += node.driver.core.deadlocks
        self.counters["works"] += len(self.works)
        self.counters["virtual seconds"] += int(self.loop.time())

    # what others may read

    @property
    def unknown_tampered(self) -> set[str]:
        """What operators have touched and no client knows by its id."""
        return self.oracle.tampered - {a.gtrid for work in self.works for a in work.attempts}

    def private(self, participant: str, number: int) -> int:
        """How often a work was done at a participant."""
        rows = self.agents[participant].server.tables[f"{participant}.account"].rows
        return int(str(rows[(number,)][1]))

    def number_of(self, node: CoordinatorNode, participant: str) -> int | None:
        """The participant's number in a coordinator's log, as soon as it has one."""
        if node.driver is None:
            return None
        return node.driver.core.participants[participant].number

    def witnesses(self) -> dict[str, set[str]]:
        """gtrid -> participants that have a witness row of it."""
        found: dict[str, set[str]] = {}
        for participant, node in self.agents.items():
            for row in node.server.committed_rows("xacoord.witness"):
                gtrid, bqual = _text(row[0]), _text(row[1])
                coordinator = self.coordinators.get(gtrid[2:6])
                if coordinator is not None and self.number_of(coordinator, participant) == int(bqual, 36):
                    found.setdefault(gtrid, set()).add(participant)
        return found

    def known_as_heuristic(self, gtrid: str) -> bool:
        """Whether its coordinator says that it did not end as decided."""
        if gtrid in self.forgotten:
            return True
        driver = self.coordinators[gtrid[2:6]].driver
        transaction = driver.core.open.get(gtrid) if driver is not None else None
        return transaction is not None and transaction.state is State.HEURISTIC

    def is_ours(self, xid: Xid) -> bool:
        """Whether a coordinator of this world gave it."""
        return xid.ours() is not None and xid.gtrid[2:6].decode() in self.coordinators

    def end(self) -> None:
        """After the run: let everything unwind, so that nothing is left for the garbage collector to say."""
        processes: list[Any] = [n.process for n in (*self.agents.values(), *self.coordinators.values())]
        for node in (*self.agents.values(), *self.coordinators.values()):
            node.may_run = False
        for process in (*processes, *(client.process for client in self.clients)):
            if process is not None:
                process.kill()


def _text(cell: object) -> str:
    return cell.decode() if isinstance(cell, bytes) else str(cell)


def unwind(loop: SimulatedLoop) -> None:
    """Cancel what is left of the tasks. Their processes are dead, so nothing comes of what they still do."""
    for task in loop.tasks:
        if not task.done():
            task._log_destroy_pending = False  # type: ignore[attr-defined]
    for task in loop.tasks:
        coroutine = task.get_coro()
        with contextlib.suppress(BaseException):
            if not task.done() and coroutine is not None:
                coroutine.close()
