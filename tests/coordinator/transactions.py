"""A transaction of two branches, moved step by step through a real core, for the tests of this folder."""

from __future__ import annotations

from coordinator.core import inputs
from coordinator.core.inputs import WaitFor
from coordinator.core.transaction import Transaction
from dtp import Vote
from tests.core.servers import Server
from tests.core.world import World

BOTH = ("p1", "p2")


def world_that_is_up() -> World:
    """All participants are fenced and scanned."""
    world = World()
    for server in world.servers.values():
        world.connect(server)
    world._deliver_all()
    return world


def begin(world: World, names: tuple[str, ...] = BOTH) -> Transaction:
    """An active transaction with a branch at each of `names`."""
    before = set(world.core.open)
    world.feed(inputs.BeginRequested(world.new_ticket(""), 10.0, 0, True))
    (gtrid,) = set(world.core.open) - before
    world.key_of[gtrid] = ""
    for name in names:
        world.servers[name].enlist(gtrid)
        deliver(world, name)
    return world.core.open[gtrid]


def deliver(world: World, name: str) -> None:
    """Everything that is under way to and from one participant arrives."""
    server: Server = world.servers[name]
    while server.reports or server.commands:
        while server.reports:
            world.feed(server.reports.popleft())
        if server.commands:
            server.execute(Vote.OK, busy=False)


def decide(world: World, transaction: Transaction) -> None:
    """Commit is asked for and everybody votes OK: decided, but not on disk."""
    gtrid = transaction.gtrid
    ticket = world.new_ticket(gtrid)
    world.feed(inputs.CommitRequested(ticket, gtrid, WaitFor.COMPLETED))
    for name in transaction.branches:
        deliver(world, name)


def make_durable(world: World) -> None:
    """The log has been flushed."""
    world.flush(100)
