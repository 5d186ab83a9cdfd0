"""Net: a system of real processes with a proxy in every link; the bank's oracle judges its clients' deals.

    coordinator ── agents[name] ──► agent ── servers[name] ──► server
    client ── front ──► coordinator        client ── doors[name] ──► agent

`payments` (the taker of every deal) has a server of its own; `orders` (the giver) and `stock` share one. The
tests break a link of `payments` or of the client; `goes_on` shows that the other two work meanwhile, and
`settles` that afterwards everything ends by itself and is as everybody was told.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from pathlib import Path

from coordinator.v1 import coordinator_pb2, coordinator_pb2_grpc
from deploy.engines import Engine
from deploy.private_cluster import Cluster, wait_for
from deploy.private_servers import PrivateServer
from tests.bank.bank import Bank
from tests.bank.ledger import Ledger
from tests.network.proxy import UNIX, Background, Proxy
from tests.tiers import count
from xacoord import (
    Branch,
    HeuristicMixed,
    InDoubt,
    Statement,
    TransactionError,
    TransactionManager,
)

GIVER, TAKER, BYSTANDER = "orders", "payments", "stock"
NAMES = (GIVER, TAKER, BYSTANDER)

# Short, so that what waits for a time-out does not wait long. The pings between coordinator and agents (5 s)
# and the agent's time-out for its own queries (10 s) are not configurable.
SETTINGS = "[transactions]\nrescan_every = 0.5\nretry_max = 0.5\n"
AGENT_SETTINGS = (
    "connect_timeout_seconds = 1\n"
    "[sessions]\nmax = 16\nwarm = 2\nlock_wait_seconds = 1\nstatement_timeout_seconds = 2.0\n"
    "acquire_timeout_seconds = 2.0\n"
)
GRACE_SECONDS = 0.5
_IDS = itertools.count(1)

_BOOK = "INSERT INTO transfer (id, amount) VALUES (%s, %s)"
_CHANGE = "UPDATE account SET balance = balance + %s WHERE id = %s"
_ACCOUNTS = 50


def _work(number: int, amount: int) -> list[Statement]:
    """A branch's statements. No two deals that are open at the same time use the same account."""
    book = Statement(_BOOK, (number, amount), expect_rows=1)
    change = Statement(_CHANGE, (amount, number % _ACCOUNTS + 1), expect_rows=1)
    return [book, change] if amount else [book]


class Net:
    """One system. `close` ends it."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.background = Background()
        self.agents: dict[str, Proxy] = {}
        self.servers: dict[str, Proxy] = {}
        self.doors: dict[str, Proxy] = {}
        self._directory = directory
        shared = PrivateServer.create(engine, directory / GIVER)
        self.cluster = Cluster.create(
            engine,
            directory,
            NAMES,
            settings=SETTINGS,
            agent_settings=AGENT_SETTINGS,
            servers={GIVER: shared, BYSTANDER: shared},
            via=self._via,
        )
        self.front = Proxy(self.background, self.cluster.address)
        self.bank = Bank.open(self.cluster, directory / "bank", accounts=_ACCOUNTS)
        self.cluster.start()

    def _via(self, link: str, address: str) -> str:
        kind, _, name = link.partition("-")
        if kind == "server":
            path = self._directory / f"{name}.sock"
            self.servers[name] = Proxy(self.background, f"{UNIX}{address}", f"{UNIX}{path}", mysql=True)
            return str(path)
        proxies = {"coordinator": self.agents, "client": self.doors}[kind]
        proxies[name] = Proxy(self.background, address)
        return proxies[name].address

    @property
    def proxies(self) -> list[Proxy]:
        return [*self.agents.values(), *self.servers.values(), *self.doors.values(), self.front]

    def close(self) -> None:
        self.cluster.close()
        self.background.close()

    def restore(self) -> None:
        """Whatever a test has broken or killed is whole again; the books are empty."""
        for proxy in self.proxies:
            proxy.clear()
        for site in self.cluster.sites.values():
            if not site.server.running:
                site.server.start()
            if not site.agent.running:
                site.agent.start()
        if not self.cluster.coordinator.running:
            self.cluster.start_coordinator(wait=False)
            self.cluster.wait_until_ready()
        self.cluster.wait_until_up()
        assert self.rest() == "", self.rest()
        self.bank.reset()

    # What operators see; past the proxies

    @property
    def coordinator(self) -> coordinator_pb2_grpc.CoordinatorStub:
        """A fresh channel to the coordinator, because it comes and goes."""
        return coordinator_pb2_grpc.CoordinatorStub(self.cluster.channel(self.cluster.address))

    def outcome(self, gtrid: str) -> str:
        """What Get says."""
        response = self.coordinator.Get(coordinator_pb2.GetRequest(gtrid=gtrid), timeout=5)
        return coordinator_pb2.Outcome.Name(response.transaction.outcome).removeprefix("OUTCOME_")

    def in_doubt(self) -> list[str]:
        """The gtrids that `coordctl list --in-doubt` shows."""
        listed = self.coordinator.List(coordinator_pb2.ListRequest(in_doubt=True), timeout=5)
        return [transaction.gtrid for transaction in listed.transactions]

    def is_prepared(self, name: str, gtrid: str) -> bool:
        """Whether XA RECOVER lists the branch."""
        return any(found == gtrid for _, found, _ in self.cluster.prepared(name))

    def is_up(self, name: str) -> bool:
        """The metric that alerts look at."""
        return self.cluster.metric("xacoord_participant_up", participant=name) == 1

    def has_row(self, name: str, deal: Deal) -> bool:
        """Whether the deal's row is committed there."""
        sql = f"SELECT id FROM {name}.transfer WHERE id = {deal.number}"
        return bool(self.cluster.sites[name].server.sql(sql))

    def until(self, condition: object, what: str, seconds: float = 10.0) -> float:
        """Wait until it holds; how long that took."""
        assert callable(condition)
        started = time.monotonic()
        wait_for(condition, seconds, lambda: f"not within {seconds:g} s: {what}\n{self.cluster.tails()}")
        return time.monotonic() - started

    # What clients do

    def deal(self, timeout_seconds: float = 1.0, **options: object) -> Deal:
        """A transfer from orders to payments, step by step."""
        return Deal(self, timeout_seconds, **options)

    def goes_on(self, within_seconds: float = 1.0) -> None:
        """The two participants whose links are whole do a transaction, as fast as ever."""
        started = time.monotonic()
        deal = Deal(self, 5.0, taker=BYSTANDER, address=self.cluster.address)
        deal.run()
        assert deal.told == "COMMITTED", f"{deal.told}: {deal.error}\n{self.cluster.tails()}"
        took = time.monotonic() - started
        assert took < within_seconds, f"{took:.2f} s: held up by a link that is not its own"

    def rest(self) -> str:
        """ "" where nothing is open any more, else what is."""
        cluster = self.cluster
        up = [name for name in NAMES if not self.is_up(name)]
        listed = self.coordinator.List(coordinator_pb2.ListRequest(), timeout=5).transactions
        ended = (
            coordinator_pb2.STATE_COMMITTED,
            coordinator_pb2.STATE_ROLLED_BACK,
            coordinator_pb2.STATE_HEURISTIC,
        )
        going = [f"{t.gtrid} {coordinator_pb2.State.Name(t.state)}" for t in listed if t.state not in ended]
        doubts = [name for name in NAMES if cluster.metric("xacoord_in_doubt_branches", participant=name)]
        blocked = cluster.metric("xacoord_blocked_transactions")
        found = {"not up": up, "open": going, "in doubt": doubts, "blocked": blocked}
        return ", ".join(f"{what}: {values}" for what, values in found.items() if values)

    def settles(self, seconds: float = 8.0) -> float:
        """Without an operator all ends within `seconds`, truthfully; how long it took. The case counts."""
        started = time.monotonic()
        last = [""]

        def rests() -> bool:
            last[0] = self.rest()
            return not last[0]

        wait_for(rests, seconds, lambda: f"after {seconds:g} s {last[0]}\n{self.cluster.tails()}")
        left = max(0.1, seconds - (time.monotonic() - started))
        violations = self.bank.violations(left)
        violations += self.bank.disagreements(self.outcome)
        assert violations == [], "\n".join([*violations, self.cluster.tails()])
        took = time.monotonic() - started
        self.goes_on(within_seconds=5.0)
        final = self.deal(5.0)
        final.run()
        assert final.told == "COMMITTED", f"not usable again: {final.told} {final.error}"
        count("network: cases")
        return took


class Deal:
    """One transfer by a client of its own; what it was told goes into a ledger."""

    def __init__(
        self,
        net: Net,
        timeout_seconds: float,
        *,
        taker: str = TAKER,
        address: str = "",
        wait_for: str = "completed",
        key: str | None = None,
        one_branch: bool = False,
    ) -> None:
        self.number = next(_IDS)
        self.told = ""
        self.error: Exception | None = None
        self.seconds = 0.0
        self._key = key
        self._amounts = {taker: 0} if one_branch else {GIVER: -1, taker: 1}
        self._ledger = Ledger(net.bank.new_ledger())
        self._manager = TransactionManager.connect(
            address or net.front.address, timeout=timeout_seconds, grace=GRACE_SECONDS
        )
        self._tx = self._manager.transaction(idempotency_key=key, wait_for=wait_for)  # type: ignore[arg-type]
        self._thread: threading.Thread | None = None

    @property
    def gtrid(self) -> str:
        return self._tx.gtrid

    def _asking(self) -> None:
        giver, taker = [*self._amounts, *self._amounts][:2]  # a deal of one branch gives itself nothing
        ends = {"from": giver, "to": taker, "amount": self._amounts[taker]}
        self._ledger.write("asking", id=self.number, intent="commit", gtrid=self.gtrid, **ends)

    def _finish(self, step: object) -> None:
        """Do the last step, and note what we were told."""
        assert callable(step)
        started = time.monotonic()
        try:
            step()
            self.told = "COMMITTED"
        except InDoubt as error:
            self.told, self.error = "UNKNOWN", error
        except HeuristicMixed as error:
            self.told, self.error = error.outcome.value, error
        except TransactionError as error:
            self.told, self.error = "ROLLED_BACK" if error.definite else "UNKNOWN", error
        self.seconds = time.monotonic() - started
        self._ledger.write("told", id=self.number, outcome=self.told, gtrid=self.gtrid)
        self._manager.close()

    def begin(self) -> Deal:
        """Begin; where that fails the deal has ended."""
        try:
            self._tx.begin()
        except TransactionError as error:
            self._finish(functools.partial(_throw, error))
        return self

    def work(self) -> Deal:
        """The statements of both branches; where one fails the deal has ended."""
        try:
            for name, amount in self._amounts.items():
                self._tx.branch(name).execute_many(_work(self.number, amount))
        except TransactionError as error:
            self._finish(functools.partial(_throw, error))
        return self

    def start_work(self) -> Deal:
        """The same in the background."""
        return self._start(self.work)

    def start_commit(self) -> Deal:
        """Commit in the background."""
        self._asking()
        return self._start(lambda: self._finish(self._tx.commit))

    def _start(self, step: object) -> Deal:
        assert callable(step)
        self._thread = threading.Thread(target=step, daemon=True)
        self._thread.start()
        return self

    def wait(self, timeout_seconds: float = 15.0) -> str:
        """What the client was told, once it was."""
        assert self._thread is not None
        self._thread.join(timeout_seconds)
        assert not self._thread.is_alive(), f"the client was told nothing within {timeout_seconds:g} s"
        return self.told

    def commit(self) -> str:
        """Commit, and wait."""
        return self.start_commit().wait()

    def run(self) -> str:
        """All in one call."""
        self._asking()
        branches = [Branch(name, _work(self.number, amount)) for name, amount in self._amounts.items()]
        self._finish(lambda: self._manager.run(branches, idempotency_key=self._key))
        return self.told

    def start_run(self) -> Deal:
        """The same in the background."""
        return self._start(self.run)


def _throw(error: Exception) -> None:
    raise error
