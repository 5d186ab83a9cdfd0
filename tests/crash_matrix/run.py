"""One run: bring a process to a place, kill, start again what died, wait for calm, judge.

A run in which the place was not reached raises NotReached: it proves nothing and counts as an error.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.bank.bank import ClientProcess, tail
from tests.crash_matrix.places import Cell
from tests.crash_matrix.rig import NAMES, NotReached, Rig, poll
from tests.crash_matrix.triggers import BURST, TRIGGERS, Aim

# Places that one burst reaches more than once: which time is drawn.
_MOST_PASSINGS = 4
_CLIENT_TRANSFERS = 60


@dataclass(frozen=True)
class Report:
    """What a run has found. `error`: it could not be judged."""

    cell: Cell
    violations: tuple[str, ...] = ()
    error: str = ""
    tails: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Reached, judged, and nothing wrong."""
        return not self.violations and not self.error


def perform(rig: Rig, cell: Cell) -> list[str]:
    """Do the run; its violations. Raises NotReached, ClusterError, ServerError, BurstError..."""
    choice = random.Random(str(cell))
    site = choice.choice(NAMES)
    if cell.holder == "client":
        _at_client(rig, cell, site, choice)
    else:
        _at_daemon(rig, cell, site, choice)
    rig.disarm()
    rig.restore()
    rig.end_burst()
    return rig.judge()


def _at_daemon(rig: Rig, cell: Cell, site: str, choice: random.Random) -> None:
    owner = "coordinator" if cell.holder == "coordinator" else site
    kills_itself = cell.victim == cell.holder
    count = choice.randint(1, _MOST_PASSINGS) if cell.trigger in ("traffic", "decisions") else 1
    action = "kill" if kills_itself else "pause"
    aim = Aim(rig, owner, cell.place, count, action, site, choice)
    with TRIGGERS[cell.trigger](aim) as burst:
        rig.await_hit(owner, cell.place, burst)
        if kills_itself:
            rig.await_death(owner, cell.place)
        else:
            _kill(rig, cell.victim, site, choice, lambda: rig.go(owner, cell.place))
    if cell.again:
        _again(rig, cell.again)


def _again(rig: Rig, place: str) -> None:
    """The coordinator is killed on its way up, too."""
    rig.arm("coordinator", place)
    rig.start_coordinator()
    rig.await_hit("coordinator", place)
    rig.await_death("coordinator", place)


def _kill(rig: Rig, victim: str, site: str, choice: random.Random, go: Callable[[], object]) -> None:
    """Kill whoever is to die while the holder waits, and let the holder go on, now or after the restart."""
    victims = victim.split("+") if victim != "everything" else ["coordinator", "agent", "mysqld"]
    sites = NAMES if victim == "everything" else (site,)
    choice.shuffle(victims)
    for name in victims:
        if name == "coordinator":
            rig.cluster.coordinator.kill()
        elif name == "client":
            rig.kill_client()
            rig.new_bursts()
        for each in sites:
            if name == "agent":
                rig.cluster.sites[each].agent.kill()
            elif name == "mysqld":
                rig.cluster.sites[each].server.kill()
    if choice.random() < 0.5:
        go()
        return
    # What comes back finds the holder still at its place.
    for each in sites:
        server = rig.cluster.sites[each].server
        if not server.running:
            server.start()
    go()


def _at_client(rig: Rig, cell: Cell, site: str, choice: random.Random) -> None:
    """A client of its own is at the place; it or another dies. The bursts go on beside it."""
    count = choice.randint(1, 3)
    kills_itself = cell.victim == "client"
    mark = rig.cluster.directory / "client"
    for old in (mark.with_suffix(".hit"), mark.with_suffix(".go")):
        old.unlink(missing_ok=True)
    environ = {
        "BANK_KILL" if kills_itself else "BANK_HOLD": f"{cell.place}:{count}",
        "BANK_HOLD_FILE": str(mark),
    }
    client = rig.bank.start_client(
        seed=choice.getrandbits(30),
        environ=environ,
        transfers=_CLIENT_TRANSFERS,
        threads=2,
        timeout=2.0,
        grace=1.0,
        rollback_share=0.3,
    )
    rig.begin_burst(BURST)
    if kills_itself:
        _await_client(client, cell.place)
        return
    try:
        poll(mark.with_suffix(".hit").exists, f"the client did not come to {cell.place}")
        _kill(rig, cell.victim, site, choice, mark.with_suffix(".go").touch)
        rig.restore()
        if client.wait() != 0:
            raise NotReached(f"the held client failed\n{tail([client.output])}")
    finally:
        client.kill()


def _await_client(client: ClientProcess, place: str) -> None:
    code = client.wait(30)
    if code != -signal.SIGKILL or '"killed", "at"' not in client.ledger.read_text():
        raise NotReached(f"the client ended with {code}, not at {place}\n{tail([client.output])}")
