"""The demonstration itself: commit, rollback, a killed coordinator, recovery. `deploy/demo.py` runs it.

1. Two servers (orders, payments), one coordinator with an agent for each in its own process.
2. Success: an order and its payment. 3. Rollback: balance 50, price 500 -> nothing anywhere.
4. 200 concurrent purchases; the coordinator is killed with SIGKILL after a decision is on disk and
   before anyone has heard it. Rows stay locked; the log says what is in doubt.
5. A prepared branch of ours that no log knows, and one of somebody else.
6. Restart: what was decided commits, the rest rolls back, the orphan too; the stranger stays.
7. The books are checked against both servers and against what each caller was told.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

from deploy import books
from deploy.engines import Engine
from deploy.private_cluster import Cluster, ClusterError, wait_for
from deploy.private_servers import PrivateServer
from dtp import Gtrid, Xid
from xacoord import InDoubt, RolledBack, TransactionManager, Unavailable

PURCHASES = 200
WORKERS = 16
KILL_AT_DECISION = 60  # the failpoint counts commands of phase 2: two a transaction
FOREIGN = "txn-foreign-001"
_started = time.monotonic()


def say(text: str = "") -> None:
    """One line of progress."""
    print(f"[{time.monotonic() - _started:6.1f} s] {text}" if text else "", flush=True)


def indent(text: str) -> None:
    """Somebody else's output."""
    for line in text.rstrip().splitlines():
        print(f"           {line}", flush=True)


class Demo:
    """The running demonstration."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.orders: PrivateServer = cluster.sites["orders"].server
        self.payments: PrivateServer = cluster.sites["payments"].server
        self.told = books.Told()
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.pool = ThreadPoolExecutor(WORKERS)

    def buy(self, manager: TransactionManager, user: int, product: str, amount: Decimal) -> int:
        """An order on one server and its payment on the other; the order's id."""
        order = 0
        try:
            with manager.transaction(timeout=20) as tx:
                inserted = tx.branch("orders").execute(
                    "INSERT INTO orders (user_id, product, amount, status) VALUES (%s, %s, %s, 'confirmed')",
                    (user, product, amount),
                )
                order = inserted.last_insert_id
                tx.branch("payments").execute(
                    "UPDATE accounts SET balance = balance - %s WHERE user_id = %s AND balance >= %s",
                    (amount, user, amount),
                    expect_rows=1,
                )
                tx.branch("payments").execute(
                    "INSERT INTO payments (order_id, user_id, amount, status) VALUES (%s, %s, %s, %s)",
                    (order, user, amount, "completed"),
                )
        except RolledBack:
            self._tell(self.told.rolled_back, order)
            raise
        except InDoubt as error:
            with self.lock:
                self.told.unknown[order] = error.gtrid
            raise
        self._tell(self.told.committed, order)
        return order

    def _tell(self, ledger: list[int], order: int) -> None:
        with self.lock:
            if order:
                ledger.append(order)

    def success(self, manager: TransactionManager) -> None:
        """Step 2."""
        order = self.buy(manager, 1, "Laptop", Decimal("800.00"))
        balance = self.payments.sql("SELECT balance FROM payments.accounts WHERE user_id = 1")[0][0]
        say(f"success: order {order} (Laptop, 800.00) is on both servers; user 1 has {balance} left")

    def rollback(self, manager: TransactionManager) -> None:
        """Step 3."""
        try:
            self.buy(manager, 2, "Phone", Decimal("500.00"))
        except RolledBack as error:
            say(
                f"rollback: user 2 has 50.00, the phone costs 500.00 -> {error.reason} at {error.participant}"
            )
        count = self.orders.sql("SELECT COUNT(*) FROM orders.orders WHERE user_id = 2")[0][0]
        balance = self.payments.sql("SELECT balance FROM payments.accounts WHERE user_id = 2")[0][0]
        say(f"          orders of user 2: {count}, balance: {balance}: nothing happened anywhere")

    def purchases(self) -> list[Callable[[], None]]:
        """Step 4: what the workers do; each purchase by its own thread of a pool."""
        dice = random.Random(20)
        manager = TransactionManager.connect(self.cluster.address, grace=20.0)

        def one(user: int, amount: Decimal) -> Callable[[], None]:
            def run() -> None:
                while not self.over.is_set():
                    try:
                        self.buy(manager, user, "Thing", amount)
                    except Unavailable:
                        time.sleep(0.1)  # nothing began: the coordinator is down, try again
                    except (RolledBack, InDoubt):
                        return  # the ledger has it
                    else:
                        return

            return run

        users = list(books.CUSTOMERS)
        return [one(dice.choice(users), Decimal(dice.randrange(100, 9000)) / 100) for _ in range(PURCHASES)]

    def crash(self) -> int:
        """Step 4: kill the coordinator between a durable decision and phase 2; branches left in doubt."""
        cluster = self.cluster
        cluster.coordinator.stop()
        hit = cluster.directory / "before_send_commit.hit"
        hit.unlink(missing_ok=True)
        cluster.start_coordinator(
            XACOORD_FAILPOINTS=f"before_send_commit:{2 * KILL_AT_DECISION}=drop",
            XACOORD_FAILPOINT_DIR=str(cluster.directory),
        )
        cluster.wait_until_up()
        say(f"{PURCHASES} purchases from {WORKERS} threads; the coordinator will die in the middle")
        for purchase in self.purchases():
            self.pool.submit(purchase)
        wait_for(hit.exists, 60, cluster.tails)
        time.sleep(0.5)  # the other threads reach the same place: decided, and nobody has heard it
        pid = cluster.coordinator.pid
        cluster.coordinator.kill()
        say(f"kill -9 {pid}: COMMIT records are on disk, and their participants have not heard of them")
        in_doubt = sum(len(cluster.prepared(name)) for name in cluster.sites)
        free = "SELECT COUNT(*) FROM (SELECT id FROM payments.accounts FOR UPDATE SKIP LOCKED) AS free"
        total = self.payments.sql("SELECT COUNT(*) FROM payments.accounts")[0][0]
        locked = total - self.payments.sql(free)[0][0]
        say(f"XA RECOVER lists {in_doubt} prepared branches; {locked} of {total} accounts are locked")
        say("what the log says (coordctl list --in-doubt --offline):")
        indent(cluster.coordctl("list", "--in-doubt", "--offline", "--config", str(cluster.config)).stdout)
        return in_doubt

    def plant(self) -> Xid:
        """Step 5: an orphan of ours from an older epoch, and a stranger's branch."""
        orphan = Xid.of(str(Gtrid.make("0001", 1, 999_999, 4711)), 1)
        ghost = "INSERT INTO orders.orders (user_id, product, amount) VALUES (99, 'Ghost Order', 1.00)"
        _leave_prepared(self.orders, orphan.sql(), ghost)
        note = "INSERT INTO payments.payments (order_id, user_id, amount) VALUES (-1, 99, 1.00)"
        _leave_prepared(self.payments, f"'{FOREIGN}'", note)
        say(f"an orphan that no log knows: {orphan}; and somebody else's branch: {FOREIGN}")
        return orphan

    def recover(self) -> None:
        """Step 6."""
        cluster = self.cluster
        say("what a start would do (coordctl recover --offline --dry-run):")
        plan = cluster.coordctl("recover", "--offline", "--dry-run", "--config", str(cluster.config))
        lines = plan.stdout.splitlines()
        decided = [line for line in lines if "COMMIT_RECORD" in line]
        indent("\n".join(line for line in lines if line not in decided[3:]))
        before = set(self.ours())
        cluster.start_coordinator()
        wait_for(lambda: not before & set(self.ours()), 20, cluster.tails)
        say("restarted: no branch of ours that was in doubt is left in XA RECOVER")
        indent(cluster.coordctl("participants").stdout)
        self.pool.shutdown(wait=True)
        say(f"all {PURCHASES} purchases are done")

    def ours(self) -> list[str]:
        """Our prepared branches."""
        return [
            gtrid
            for name in self.cluster.sites
            for _, gtrid, _ in self.cluster.prepared(name)
            if gtrid.startswith("k1")
        ]

    def settle(self) -> None:
        """Ask for the outcomes that callers did not hear."""
        with TransactionManager.connect(self.cluster.address) as manager:
            for order, gtrid in self.told.unknown.items():
                outcome = manager.status(gtrid).outcome if gtrid else "UNKNOWN"
                ledger = {"COMMITTED": self.told.committed, "ROLLED_BACK": self.told.rolled_back}.get(
                    str(outcome)
                )
                if ledger is not None:
                    ledger.append(order)


def _leave_prepared(server: PrivateServer, xid: str, statement: str) -> None:
    connection = server.root_connect()
    cursor = connection.cursor()
    for sql in (f"XA START {xid}", statement, f"XA END {xid}", f"XA PREPARE {xid}"):
        cursor.execute(sql)
    connection.close()


def run(engine: Engine, directory: Path, keep: bool) -> int:
    """The whole demonstration; the exit code."""
    say(f"starting two {engine} servers, and a coordinator with their agents")
    cluster = Cluster.create(engine, directory, ("orders", "payments"), embedded=True)
    demo = Demo(cluster)
    try:
        books.create(demo.orders, demo.payments)
        cluster.start()
        say(f"{engine} {demo.orders.version}: everything is up")
        with TransactionManager.connect(cluster.address) as manager:
            demo.success(manager)
            demo.rollback(manager)
        in_doubt = demo.crash()
        orphan = demo.plant()
        demo.recover()
        demo.settle()
        result = verdict(demo, engine, in_doubt, orphan)
        if keep:
            hints(cluster)
        print(json.dumps(result), flush=True)
        if keep:
            stay()
        return 0 if result["consistent"] else 1
    except ClusterError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        demo.over.set()
        demo.pool.shutdown(wait=False, cancel_futures=True)
        cluster.close()


def verdict(demo: Demo, engine: Engine, in_doubt: int, orphan: Xid) -> dict[str, object]:
    """Step 7: the check, and the summary that is the last line."""
    told = demo.told
    orphan_left = orphan.gtrid.decode() in demo.ours()
    ghosts = demo.orders.sql("SELECT COUNT(*) FROM orders.orders WHERE user_id = 99")[0][0]
    foreign = any(gtrid == FOREIGN for _, gtrid, _ in demo.cluster.prepared("payments"))
    checked = books.check(demo.orders, demo.payments, told)
    problems = list(checked.problems)
    still_unknown = len(told.unknown) - sum(
        o in told.committed or o in told.rolled_back for o in told.unknown
    )
    if still_unknown:
        problems.append(f"{still_unknown} outcomes are still unknown")
    if in_doubt == 0:
        problems.append("the crash left nothing in doubt: it showed nothing")
    if orphan_left or ghosts:
        problems.append("the orphan was not rolled back")
    if not foreign:
        problems.append("the foreign branch was touched")
    for problem in problems:
        say(f"PROBLEM: {problem}")
    say(f"books: {checked.orders} orders, {checked.payments} payments, {len(problems)} problems")
    return {
        "engine": f"{engine} {demo.orders.version}",
        "committed": len(told.committed),
        "rolled_back": len(told.rolled_back),
        "in_doubt_after_crash": in_doubt,
        "recovered": in_doubt - len(demo.ours()),
        "orphans_rolled_back": 0 if orphan_left or ghosts else 1,
        "foreign_untouched": foreign,
        "consistent": not problems,
        "seconds": round(time.monotonic() - _started, 1),
    }


def hints(cluster: Cluster) -> None:
    """--keep: the addresses, and what can be tried."""
    say("everything stays up until Ctrl-C; three things to try in another terminal:")
    programs = Path(sys.executable).parent
    indent(f"{programs}/coordctl --address {cluster.address} status")
    indent(f"{programs}/coordctl --address {cluster.address} list")
    indent(f"{programs}/coordctl --address {cluster.address} recover --dry-run")
    say(f"coordinator {cluster.address}, metrics http://{cluster.http_address}/metrics")
    for name, site in cluster.sites.items():
        say(f"{name}: agent {site.address}, server socket {site.server.socket} (user root)")
    say(f"files: {cluster.directory}")


def stay() -> None:
    """--keep: wait for Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
