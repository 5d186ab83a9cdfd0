"""Triggers: what brings a process to a place. Each is a context: entered, the place is about to be reached.

`Aim` says who is armed, where and how. Leaving the context puts right what the trigger has disturbed.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import MySQLdb

from coordinator.v1 import admin_pb2, coordinator_pb2
from deploy.private_servers import PrivateServer
from dtp import Gtrid, Xid
from tests.bank.bank import ClientProcess
from tests.crash_matrix.bursts import Burst
from tests.crash_matrix.rig import NAMES, NotReached, Rig, first, poll

BURST = Burst(12)
# Every commit of it is a decision in the log.
DECIDING = Burst(12, local=False)
_MUCH = Burst(150)
_SLOW = Burst(4, pause_seconds=0.4)
# A transaction that the coordinator has never begun.
_NEVER = str(Gtrid.make("0001", 1, 2**30, 99))


@dataclass(frozen=True)
class Aim:
    """`owner` (a key of Rig.owners) is armed at `place`; `site` is the participant that is disturbed."""

    rig: Rig
    owner: str
    place: str
    count: int
    action: str
    site: str
    choice: random.Random

    def arm(self) -> None:
        """From now on."""
        self.rig.arm(self.owner, self.place, self.count, self.action)

    def later(self, most_seconds: float) -> None:
        """Let some time pass, that traffic may be anywhere."""
        time.sleep(self.choice.uniform(0, most_seconds))


Trigger = Callable[[Aim], contextlib.AbstractContextManager[Burst | None]]


@contextlib.contextmanager
def traffic(aim: Aim) -> Iterator[Burst | None]:
    """Bank transfers."""
    aim.arm()
    yield BURST


@contextlib.contextmanager
def decisions(aim: Aim) -> Iterator[Burst | None]:
    """Transfers between participants only: a restart finds their decisions in the log."""
    aim.arm()
    yield DECIDING


@contextlib.contextmanager
def much_traffic(aim: Aim) -> Iterator[Burst | None]:
    """Enough of them for a rotation of the log."""
    aim.arm()
    yield _MUCH


@contextlib.contextmanager
def slow_traffic(aim: Aim) -> Iterator[Burst | None]:
    """A few now and then, until witness rows are old enough to be purged."""
    aim.arm()
    yield _SLOW


@contextlib.contextmanager
def start(aim: Aim) -> Iterator[Burst | None]:
    """The coordinator dies amid traffic and starts: a place on its way up, or of an agent that it finds."""
    rig = aim.rig
    rig.begin_burst(BURST)
    aim.later(0.15)
    rig.cluster.coordinator.kill()
    aim.arm()
    rig.start_coordinator()
    yield None


@contextlib.contextmanager
def unknown_transaction(aim: Aim) -> Iterator[Burst | None]:
    """A Commit of what was never begun."""
    aim.arm()
    rig = aim.rig
    rig.begin_burst(BURST)
    _ask(lambda: rig.stub().Commit(coordinator_pb2.CommitRequest(gtrid=_NEVER), timeout=5))
    yield None


@contextlib.contextmanager
def recover(aim: Aim) -> Iterator[Burst | None]:
    """An operator's `coordctl recover`."""
    aim.arm()
    rig = aim.rig
    rig.begin_burst(BURST)
    _ask(lambda: rig.admin().Recover(admin_pb2.RecoverRequest(apply=True), timeout=5))
    yield None


@contextlib.contextmanager
def orphan(aim: Aim) -> Iterator[Burst | None]:
    """A prepared branch that no log knows: it is reported and rolled back."""
    aim.arm()
    xid = Xid.of(str(Gtrid.make("0001", 1, 2**30, aim.choice.getrandbits(20))), NAMES.index(aim.site) + 1)
    server = aim.rig.cluster.sites[aim.site].server
    with (
        contextlib.closing(server.root_connect()) as connection,
        contextlib.closing(connection.cursor()) as c,
    ):
        work = f"INSERT INTO {aim.site}.transfer VALUES (-{aim.choice.getrandbits(30)}, 5)"
        for sql in (f"XA START {xid.sql()}", work, f"XA END {xid.sql()}", f"XA PREPARE {xid.sql()}"):
            c.execute(sql)
    yield BURST


@contextlib.contextmanager
def drain(aim: Aim) -> Iterator[Burst | None]:
    """SIGTERM amid traffic."""
    aim.arm()
    aim.rig.begin_burst(BURST)
    aim.later(0.1)
    aim.rig.cluster.coordinator.send(signal.SIGTERM)
    yield None


@contextlib.contextmanager
def agent_lost(aim: Aim) -> Iterator[Burst | None]:
    """An agent dies amid traffic."""
    aim.arm()
    aim.rig.begin_burst(BURST)
    aim.later(0.1)
    aim.rig.cluster.sites[aim.site].agent.kill()
    yield None


@contextlib.contextmanager
def lock_wait(aim: Aim) -> Iterator[Burst | None]:
    """Somebody has locked all accounts of a participant by hand: who wants one waits, and that is told."""
    server = aim.rig.cluster.sites[aim.site].server
    with contextlib.closing(server.root_connect()) as connection:
        connection.query("BEGIN")
        connection.query(f"SELECT * FROM {aim.site}.account FOR UPDATE")
        connection.store_result()
        aim.arm()
        yield BURST
        connection.rollback()


@contextlib.contextmanager
def held(aim: Aim) -> Iterator[Burst | None]:
    """The participant remembers a higher epoch than the log gives: nothing may be resolved there."""
    rig, server = aim.rig, aim.rig.cluster.sites[aim.site].server
    rig.begin_burst(BURST)
    aim.later(0.1)
    rig.cluster.coordinator.kill()
    server.sql("UPDATE xacoord.coordinator SET epoch = epoch + 1000")
    try:
        aim.arm()
        rig.start_coordinator()
        yield None
    finally:
        server.sql("UPDATE xacoord.coordinator SET epoch = epoch - 1000")


@contextlib.contextmanager
def _waiting_commit(aim: Aim) -> Iterator[ClientProcess]:
    """A client's Commit that waits for the vote of a held agent."""
    rig = aim.rig
    rig.arm(aim.site, "before_prepare", action="pause")
    client = rig.bank.start_client(
        seed=aim.choice.getrandbits(30),
        transfers=1,
        timeout=4.0,
        one_shot_share=0.0,
        rollback_share=0.0,
        overdraw_share=0.0,
    )
    try:
        poll(lambda: rig.hit(aim.site, "before_prepare"), f"agent {aim.site} came to no prepare")
        yield client
    finally:
        rig.go(aim.site, "before_prepare")
        client.kill()


@contextlib.contextmanager
def caller_leaves(aim: Aim) -> Iterator[Burst | None]:
    """A client dies while it waits for its Commit."""
    with _waiting_commit(aim) as client:
        aim.arm()
        client.kill()
        yield None


@contextlib.contextmanager
def resolve(aim: Aim) -> Iterator[Burst | None]:
    """An operator has a transaction that still votes rolled back."""
    rig = aim.rig
    with _waiting_commit(aim):
        aim.arm()
        listed = rig.stub().List(
            coordinator_pb2.ListRequest(states=[coordinator_pb2.STATE_PREPARING]), timeout=5
        )
        gtrid = first((t.gtrid for t in listed.transactions), "no transaction is voting")
        request = admin_pb2.ResolveRequest(gtrid=gtrid, action="rollback", reason="matrix", operator="test")
        _ask(lambda: rig.admin().Resolve(request, timeout=5))
        yield None


def _interfere(aim: Aim) -> set[str]:
    """Branches that are decided to commit are rolled back by hand, on all servers: nothing is half done.
    The gtrids of those branches."""
    rig = aim.rig
    gtrids = set()
    rig.arm("coordinator", "before_send_commit")
    rig.await_hit("coordinator", "before_send_commit", DECIDING)
    rig.await_death("coordinator", "before_send_commit")
    for name, site in rig.cluster.sites.items():
        site.agent.kill()  # its sessions own their branches on MariaDB
        for format_id, gtrid, bqual in site.server.prepared():
            if gtrid.startswith(b"k1"):
                _roll_back(site.server, Xid(format_id, gtrid, bqual))
                rig.bank.interfered(gtrid.decode())
                gtrids.add(gtrid.decode())
        rig.start_agent(name)
    return gtrids


def _roll_back(server: PrivateServer, xid: Xid) -> None:
    """By hand; on MariaDB a branch is its dead session's for another moment."""

    def done() -> bool:
        try:
            server.sql(f"XA ROLLBACK {xid.sql()}")
        except MySQLdb.Error:
            return not [row for row in server.prepared() if row[1] == xid.gtrid]
        return True

    poll(done, f"{xid} cannot be rolled back by hand")


def _heuristic(rig: Rig) -> list[str]:
    listed = rig.stub().List(coordinator_pb2.ListRequest(states=[coordinator_pb2.STATE_HEURISTIC]), timeout=5)
    return [t.gtrid for t in listed.transactions]


_FOUND_OUT = (coordinator_pb2.STATE_HEURISTIC, coordinator_pb2.STATE_ROLLED_BACK)


def _find_out(rig: Rig, gtrids: set[str]) -> list[str]:
    """Everything is up, and the coordinator has found out about every branch that was rolled back by hand.

    Returns the heuristic outcomes: one that nobody forgets keeps all later witness rows from being purged.
    """
    rig.disarm()
    rig.restore()

    def states() -> list[coordinator_pb2.State.ValueType]:
        stub = rig.stub()
        return [
            stub.Get(coordinator_pb2.GetRequest(gtrid=g), timeout=5).transaction.state for g in sorted(gtrids)
        ]

    poll(lambda: all(state in _FOUND_OUT for state in states()), "what was done by hand is not found out")
    found = _heuristic(rig)
    if not found:
        raise NotReached("no heuristic outcome is shown")
    return found


def _forget(rig: Rig, gtrids: list[str]) -> None:
    for gtrid in gtrids:
        rig.admin().Forget(admin_pb2.ForgetRequest(gtrid=gtrid), timeout=5)


@contextlib.contextmanager
def heuristic(aim: Aim) -> Iterator[Burst | None]:
    """The coordinator finds what was done by hand, and records it."""
    gtrids = _interfere(aim)
    aim.arm()
    aim.rig.start_coordinator()
    yield None
    _forget(aim.rig, _find_out(aim.rig, gtrids))


@contextlib.contextmanager
def forget(aim: Aim) -> Iterator[Burst | None]:
    """An operator drops a heuristic outcome."""
    rig = aim.rig
    [gtrid, *_] = _find_out(rig, _interfere(aim))
    aim.arm()
    _ask(lambda: rig.admin().Forget(admin_pb2.ForgetRequest(gtrid=gtrid), timeout=5))
    yield None
    rig.disarm()
    rig.restore()
    _forget(rig, _heuristic(rig))


def _ask(call: Callable[[], object]) -> None:
    """A call in the background whose answer may never come."""

    def attempt() -> None:
        with contextlib.suppress(grpc.RpcError):
            call()

    threading.Thread(target=attempt, daemon=True).start()


TRIGGERS: dict[str, Trigger] = {
    trigger.__name__: trigger
    for trigger in (
        *(traffic, decisions, much_traffic, slow_traffic, start, unknown_transaction, recover, orphan, drain),
        *(agent_lost, lock_wait, held, caller_leaves, resolve, heuristic, forget),
    )
}
