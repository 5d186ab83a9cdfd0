"""Faults: what is done to the system, drawn by a seed. Each function returns when the cause is gone.

| kind | what |
|---|---|
| kill coordinator, agent, server, client | SIGKILL |
| kill two, kill everything | at the same moment |
| freeze coordinator, agent, server | SIGSTOP, 1 to 8 s later SIGCONT |
| restart coordinator, agent, server | SIGTERM: the orderly way |
| lock rows | a session holds every account's row for 1 to 5 s |
| read lock | FLUSH TABLES WITH READ LOCK for 1 to 5 s: a backup |
| lock tables | LOCK TABLES ... WRITE for 1 to 5 s: a DBA |
| cut network | coordinator and an agent, or only one of them, do not hear the other for 1 to 8 s |
| reset network | their connections are reset |

Not among them: a full disk (tests/wal does that) and people who end branches by hand (tests/heuristics),
because they make outcomes legal that are violations here.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence

import MySQLdb

from tests.network.proxy import Way
from tests.soak.facts import Fault
from tests.soak.parts import Part
from tests.soak.system import NAMES, System

_FREEZE = (1.0, 8.0)
_LOCK = (1.0, 5.0)
_LOCK_WAIT_SECONDS = 5

Perform = Callable[["Faults"], str]


class Faults:
    """Draws and performs faults. `faults.next(...)` returns the fault with its times."""

    def __init__(self, system: System, seed: int) -> None:
        self.system = system
        self.random = random.Random(f"{seed} {system.cluster.engine}")
        self._bag: list[str] = []

    def draw(self) -> str:
        """The next kind: every kind once, in random order, then again. So a short run sees many kinds."""
        if not self._bag:
            self._bag = sorted(KINDS)
            self.random.shuffle(self._bag)
        return self._bag.pop()

    def perform(self, kind: str) -> Fault:
        """Do it, and start what it has ended; the fault with its times."""
        began = time.time()
        targets = KINDS[kind](self)
        over = time.time()
        last_start = self.system.mend(self.system.parts)
        return Fault(kind, targets, began, max(over, last_start), time.time())

    def sleep(self, between: tuple[float, float]) -> None:
        """A random time."""
        time.sleep(self.random.uniform(*between))

    def one_of(self, parts: Sequence[Part]) -> Part:
        return self.random.choice(parts)

    def of_role(self, role: str) -> list[Part]:
        return [part for part in self.system.parts if part.role == role]


def _kill(role: str) -> Perform:
    def perform(faults: Faults) -> str:
        part = faults.one_of(faults.of_role(role))
        part.kill()
        faults.sleep((0.0, 1.5))  # until its manager notices
        return part.name

    return perform


def _kill_two(faults: Faults) -> str:
    parts = faults.random.sample(faults.system.parts, 2)
    for part in parts:
        part.kill()
    faults.sleep((0.0, 1.5))
    return ", ".join(sorted(part.name for part in parts))


def _kill_everything(faults: Faults) -> str:
    parts = list(faults.system.parts)
    faults.random.shuffle(parts)
    for part in parts:
        part.kill()
    return "all processes"


def _freeze(role: str) -> Perform:
    def perform(faults: Faults) -> str:
        part = faults.one_of(faults.of_role(role))
        part.freeze()
        try:
            faults.sleep(_FREEZE)
        finally:
            part.thaw()
        return part.name

    return perform


def _restart(role: str) -> Perform:
    def perform(faults: Faults) -> str:
        part = faults.one_of(faults.of_role(role))
        code = part.stop()
        if code != 0:
            faults.system.checks.violated("processes", f"{part.name} ended with {code} at SIGTERM")
        faults.sleep((0.0, 1.0))
        return part.name

    return perform


def _sql(*statements: str) -> Perform:
    """A session of the administrator runs these and holds what it got for a while.

    A statement that waits in vain has disturbed, too: others queue behind it.
    """

    def perform(faults: Faults) -> str:
        name = faults.random.choice(NAMES)
        site = faults.system.cluster.sites[name]
        with contextlib.closing(site.server.root_connect(database=name, autocommit=False)) as connection:
            cursor = connection.cursor()
            cursor.execute(f"SET SESSION lock_wait_timeout = {_LOCK_WAIT_SECONDS}")
            cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {_LOCK_WAIT_SECONDS}")
            with contextlib.suppress(MySQLdb.OperationalError):
                for statement in statements:
                    cursor.execute(statement)
                faults.sleep(_LOCK)
        return f"server {name}"

    return perform


def _cut_network(faults: Faults) -> str:
    name = faults.random.choice(NAMES)
    ways = faults.random.choice(((Way.THERE,), (Way.BACK,), tuple(Way)))
    proxy = faults.system.proxies[name]
    proxy.cut(*ways)
    try:
        faults.sleep(_FREEZE)
    finally:
        proxy.heal(lose=faults.random.random() < 0.5)
    return f"agent {name}, " + " and ".join(way.value for way in ways)


def _reset_network(faults: Faults) -> str:
    name = faults.random.choice(NAMES)
    faults.system.proxies[name].reset()
    return f"agent {name}"


def _kinds() -> Iterator[tuple[str, Perform]]:
    for role in ("coordinator", "agent", "server", "client"):
        yield f"kill {role}", _kill(role)
    for role in ("coordinator", "agent", "server"):
        yield f"freeze {role}", _freeze(role)
        yield f"restart {role}", _restart(role)
    yield "kill two", _kill_two
    yield "kill everything", _kill_everything
    yield "lock rows", _sql("SELECT id FROM account ORDER BY id FOR UPDATE")
    yield "read lock", _sql("FLUSH TABLES WITH READ LOCK")
    yield "lock tables", _sql("LOCK TABLES account WRITE, transfer WRITE")
    yield "cut network", _cut_network
    yield "reset network", _reset_network


KINDS: dict[str, Perform] = dict(_kinds())
