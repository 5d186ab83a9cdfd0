"""Faults: each kind of plan.FAULTS, when its time has come. Each is a short function that begins it and says
when it ends; what is still broken when the chaos is over is mended by `end`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dtp import Xid
from participant_agent.core.effects import Verb
from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.agents import AgentNode
    from tests.simulation.coordinators import CoordinatorNode
    from tests.simulation.world import World

_AIMED_VERBS = (Verb.COMMIT, Verb.COMMIT, Verb.COMMIT, Verb.COMMIT_ONE_PHASE, Verb.PREPARE, Verb.ROLLBACK)
_AIMED_FAULTS = ("cut_before", "cut_after", "cut_after", "silence")
_STALLS = ("prepare", "commit", "rollback", "one_phase", "autocommit", "write")
_FOREIGN = (
    Xid(1, b"somebody-else", b"1"),
    Xid(77, b"k1aaaa00010000000001", b"0001"),
    Xid(1, b"k1zzzz00010000065537", b"0001"),
    Xid(1, bytes(range(20)), b"\xff"),
)


class Faults:
    """The faults of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.stream("faults")
        self.foreign: set[Xid] = set()
        self._kinds: dict[str, Callable[[], bool]] = {
            "coordinator killed": self._coordinator_killed,
            "coordinator killed at a place": lambda: self._fuse(self._coordinator_process(), 60),
            "coordinator power cut": self._coordinator_power_cut,
            "coordinator stopped": self._coordinator_stopped,
            "coordinator frozen": lambda: self._freeze(self._coordinator_process()),
            "agent killed": self._agent_killed,
            "agent killed at a place": lambda: self._fuse(self._agent().process, 60),
            "agent host lost": self._agent_host_lost,
            "agent stopped": self._agent_stopped,
            "agent doubled": self._agent_doubled,
            "agent frozen": lambda: self._freeze(self._agent().process),
            "server killed": lambda: self._server_down(clean=False),
            "server stopped": lambda: self._server_down(clean=True),
            "server stalled": self._server_stalled,
            "sessions cut": self._sessions_cut,
            "host power cut": self._host_power_cut,
            "one-way cut": lambda: self._cut(both=False),
            "cut": lambda: self._cut(both=True),
            "connection broken": self._connection_broken,
            "client vanished": self._client_vanished,
            "client vanished at a place": lambda: self._fuse(self._client(), 12),
            "flush failed": self._flush_failed,
            "disk full": self._disk_full,
            "operator commits": lambda: self._operator(commit=True),
            "operator rolls back": lambda: self._operator(commit=False),
            "operator resolves": self._operator_resolves,
            "operator recovers": self._operator_recovers,
        }

    def schedule(self) -> None:
        """Set the timers of the plan's faults."""
        for when, kind in self._world.plan.faults:
            self._world.network.later(when, self._begin, kind)
        self._aim()
        # A stream of its own: one run in 25, whatever else the seed says.
        random, seconds = self._world.stream("log loss"), self._world.plan.chaos_seconds
        if random.random() < 0.04:
            node = random.choice(list(self._world.coordinators.values()))
            when = seconds * random.uniform(0.1, 0.7)
            self._world.network.later(when, self._back_up, node, random.uniform(0.05, seconds - when))

    def _aim(self) -> None:
        """The queries after which nobody knows an outcome are few among many; so some are chosen."""
        random, seconds = self._world.stream("answers lost"), self._world.plan.chaos_seconds
        if random.random() < 0.5:
            return
        for _ in range(random.randint(1, 5)):
            aims = random.choice(list(self._world.agents.values())).conditions.aims
            aim = random.choice(_AIMED_VERBS), random.choice(_AIMED_FAULTS)
            self._world.network.later(seconds * random.random(), self._unless_calm, aims.append, aim)

    def _unless_calm(self, callback: Callable[..., object], *arguments: object) -> None:
        if not self._world.calm:
            callback(*arguments)

    def _begin(self, kind: str) -> None:
        if not self._world.calm and self._kinds[kind]():
            self._world.counters[f"fault: {kind}"] += 1

    def end(self) -> None:
        """Mend everything."""
        world = self._world
        world.network.heal_all()
        for coordinator in world.coordinators.values():
            coordinator.disk.capacity = None
            coordinator.disk.fail_next = False
            self._thaw(coordinator.process)
            coordinator.start_again()
        for agent in world.agents.values():
            agent.conditions.heal()
            agent.conditions.aims.clear()
            agent.conditions.cut_before = agent.conditions.cut_after = agent.conditions.silence = 0.0
            for zombie in agent.zombies:
                zombie.kill()
            self._thaw(agent.process)
        for client in world.clients:
            client.process.fuse = None
        for server in world.servers.values():
            server.release()
            server.start()

    # who

    def _coordinator_process(self) -> Process | None:
        return self._random.choice(list(self._world.coordinators.values())).process

    def _agent(self) -> AgentNode:
        return self._random.choice(list(self._world.agents.values()))

    def _client(self) -> Process:
        return self._random.choice(self._world.clients).process

    def _later(self, least: float, most: float, callback: Callable[[], None]) -> None:
        """Some time from now; short times are as likely as long ones."""
        self._world.network.later(least * (most / least) ** self._random.random(), callback)

    # processes

    def _fuse(self, process: Process | None, most: int) -> bool:
        if process is None or not process.alive:
            return False
        process.fuse = self._random.randint(1, most)
        return True

    def _freeze(self, process: Process | None) -> bool:
        if process is None or not process.alive or process.halted:
            return False
        process.freeze()
        self._world.trace(process.name, "is frozen")
        self._world.network.ping()
        self._later(0.05, 20.0, lambda: self._thaw(process))
        return True

    def _thaw(self, process: Process | None) -> None:
        if process is not None and process.alive:
            process.fuse = None if self._world.calm else process.fuse
            if process.halted:
                self._world.trace(process.name, "goes on")
                process.thaw()

    def _coordinator_killed(self) -> bool:
        node = self._random.choice(list(self._world.coordinators.values()))
        was = node.alive
        node.kill()
        return was

    def _coordinator_power_cut(self) -> bool:
        node = self._random.choice(list(self._world.coordinators.values()))
        self._world.trace(node.name, "power cut")
        if node.alive:
            node.kill()
        node.disk.cut_power()
        return True

    def _agent_killed(self) -> bool:
        node = self._agent()
        was = node.alive
        node.kill()
        return was

    def _agent_stopped(self) -> bool:
        node = self._agent()
        node.stop()
        return node.alive

    def _agent_host_lost(self) -> bool:
        """The agent's machine goes off: its server, elsewhere, does not see the sessions end for a while."""
        node = self._agent()
        was = node.alive
        node.conditions.drop_delay = self._random.choice((1.0, 5.0, 20.0))
        node.kill()
        node.conditions.drop_delay = 0.0
        return was

    def _agent_doubled(self) -> bool:
        zombie = self._agent().double()
        if zombie is None:
            return False
        self._world.trace(zombie.name, "is frozen, and another one is started")
        self._world.network.ping()
        self._later(0.05, 30.0, lambda: self._thaw(zombie))
        return True

    def _coordinator_stopped(self) -> bool:
        node = self._random.choice(list(self._world.coordinators.values()))
        return node.stop()

    def _client_vanished(self) -> bool:
        process = self._client()
        was = process.alive
        process.kill()
        return was

    # servers

    def _server_down(self, clean: bool) -> bool:
        server = self._random.choice(list(self._world.servers.values()))
        if not server.running:
            return False
        self._world.trace(server.name, "is stopped" if clean else "is killed")
        if clean:
            server.stop()
        else:
            server.kill()
        self._later(0.1, 8.0, server.start)
        return True

    def _server_stalled(self) -> bool:
        server = self._random.choice(list(self._world.servers.values()))
        verbs = self._random.sample(_STALLS, self._random.choice((1, 1, 2, 6)))
        disk_full = self._random.random() < 0.5
        self._world.trace(server.name, "stalls", *verbs, "full disk" if disk_full else "global read lock")
        server.stall(*verbs, disk_full=disk_full)
        self._later(0.1, 15.0, server.release)
        return True

    def _host_power_cut(self) -> bool:
        """An agent and its server on one machine."""
        node = self._agent()
        node.kill()
        if node.server.running:
            node.server.kill()
            self._later(0.5, 8.0, node.server.start)
        return True

    def _sessions_cut(self) -> bool:
        conditions = self._agent().conditions
        kind = self._random.choice(("cut_before", "cut_after", "silence", "part", "part"))
        if kind == "part":
            conditions.part()
        else:
            setattr(conditions, kind, self._random.choice((0.02, 0.1, 0.5)))

        def mend() -> None:
            conditions.heal()
            conditions.cut_before = conditions.cut_after = conditions.silence = 0.0

        self._later(0.1, 20.0, mend)
        return True

    # network

    def _cut(self, both: bool) -> bool:
        world, random = self._world, self._random
        agents = [node.host for node in world.agents.values()]
        coordinators = [node.host for node in world.coordinators.values()]
        one, other = random.choice(coordinators), random.choice(agents)
        if random.random() < 0.2:
            one = random.choice(world.clients).name
            other = random.choice(agents + coordinators)
        if random.random() < 0.5:
            one, other = other, one
        pairs = [(one, other), (other, one)] if both else [(one, other)]
        for pair in pairs:
            world.network.cut(*pair)

        def heal() -> None:
            for pair in pairs:
                world.network.heal(*pair)

        self._later(0.05, 20.0, heal)
        return True

    def _connection_broken(self) -> bool:
        connections = self._world.network.connections
        if not connections:
            return False
        connection = self._random.choice(connections)
        tell = self._random.random() < 0.5
        if self._random.random() < 0.5:
            connection.break_client("broken", tell)
        else:
            connection.break_server(tell)
        return True

    # disks

    def _flush_failed(self) -> bool:
        node = self._random.choice(list(self._world.coordinators.values()))
        node.disk.fail_next = True
        return True

    def _disk_full(self) -> bool:
        disk = self._random.choice(list(self._world.coordinators.values())).disk
        disk.capacity = disk.used + self._random.choice((0, 512, 20_000))

        def room() -> None:
            disk.capacity = None

        self._later(0.5, 20.0, room)
        return True

    def _back_up(self, node: CoordinatorNode, then: float) -> None:
        """Somebody copies the log, and puts the copy in its place some time later."""
        backup = node.disk.copy()

        def restore() -> None:
            if not self._world.calm:
                self._world.trace(node.name, "its log is restored from a backup")
                self._world.counters["fault: log restored"] += 1
                self._world.oracle.log_restored(node, backup)
                node.kill()
                node.disk.restore(backup)

        self._world.network.later(then, restore)

    # operators

    def _operator(self, commit: bool) -> bool:
        """Somebody ends a prepared branch by hand."""
        world = self._world
        candidates = [
            (server, xid)
            for server in world.servers.values()
            if server.running
            for xid in server.prepared_xids()
            if world.is_ours(xid)
        ]
        if not candidates:
            self._later(0.05, 1.0, lambda: self._again(commit))
            return False
        server, xid = self._random.choice(candidates)
        answer = server.root_commit(xid) if commit else server.root_rollback(xid)
        world.trace(server.name, "operator", "commits" if commit else "rolls back", xid, answer)
        if type(answer).__name__ != "Ok":
            return False
        gtrid = xid.gtrid.decode()
        world.oracle.tamper(world.coordinators[gtrid[2:6]], gtrid)
        return True

    def _again(self, commit: bool) -> None:
        """Nothing was prepared: the operator looks again."""
        self._begin("operator commits" if commit else "operator rolls back")

    def _operator_recovers(self) -> bool:
        """`coordctl recover`: it may find what the next scan would find, and nothing else."""
        node = self._random.choice(list(self._world.coordinators.values()))
        return node.alive and node.recover()

    def _operator_resolves(self) -> bool:
        """`coordctl resolve` and `forget`: they may hasten and be refused, never break anything."""
        nodes = [node for node in self._world.coordinators.values() if node.alive and node.driver]
        if not nodes:
            return False
        node = self._random.choice(nodes)
        open_ = list(node.driver.core.open)
        if not open_:
            return False
        node.operate(self._random.choice(open_), self._random.choice(("commit", "rollback", "forget")))
        return True
