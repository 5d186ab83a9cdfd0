"""Bank: the workload on a cluster, in one object: tables, client processes, and the judge's verdict.

    bank = Bank.open(cluster, directory)
    client = bank.start_client(seed=1, seconds=5)
    ...faults...
    client.wait()
    assert bank.violations() == []

The clients are processes of their own; the judge (tests/bank/oracle.py) shares no code with the system.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.private_cluster import Cluster
from deploy.processes import Child, spawn
from tests.bank import oracle
from tests.bank.accounts import START_BALANCE, create_tables
from tests.bank.ledger import Ledger

_ROOT = Path(__file__).resolve().parent.parent.parent
_POLL_SECONDS = 0.02


class ClientProcess:
    """One client process that works by itself (--seconds or --transfers)."""

    def __init__(self, child: Child, ledger: Path, output: Path) -> None:
        self.child = child
        self.ledger = ledger
        self.output = output

    @property
    def running(self) -> bool:
        """Started and not ended."""
        return self.child.poll() is None

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self.child.kill()
        self.child.wait()

    def wait(self, timeout_seconds: float = 60.0) -> int:
        """Its exit code, once it has ended by itself (negative: the signal). Raises TimeoutExpired."""
        return self.child.wait(timeout_seconds)


@dataclass
class Bank:
    """The workload on one cluster."""

    cluster: Cluster
    directory: Path
    accounts: int
    ledgers: list[Path] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def open(cls, cluster: Cluster, directory: Path, accounts: int = 20) -> Bank:
        """Make the tables at all participants (their servers run) and a folder for the ledgers."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, site in cluster.sites.items():
            create_tables(site.server, name, accounts)
        return cls(cluster, directory, accounts)

    def reset(self) -> None:
        """Empty tables, closed ledgers: what was judged is not judged again."""
        self.ledgers.clear()
        for name, site in self.cluster.sites.items():
            create_tables(site.server, name, self.accounts)

    def new_ledger(self) -> Path:
        """A ledger's path, which the judge will read."""
        path = self.directory / f"ledger-{next(self._numbers)}.jsonl"
        path.touch()
        self.ledgers.append(path)
        return path

    def command(self, ledger: Path, *, seed: int, **options: object) -> list[str]:
        """The client's command line; `options` are its options with underscores, True for a flag."""
        command = [sys.executable, "-m", "tests.bank.client", "--coordinator", self.cluster.address]
        command += ["--participants", ",".join(self.cluster.sites), "--accounts", str(self.accounts)]
        command += ["--ledger", str(ledger), "--seed", str(seed)]
        for name, value in options.items():
            command.append("--" + name.replace("_", "-"))
            if value is not True:
                command.append(str(value))
        return command

    def start_client(
        self, *, seed: int, environ: Mapping[str, str] | None = None, **options: object
    ) -> ClientProcess:
        """Start a client with a ledger of its own, for example `seconds=5, threads=4`."""
        ledger = self.new_ledger()
        output = ledger.with_suffix(".log")
        child = spawn(self.command(ledger, seed=seed, **options), output, client_environ(environ or {}))
        return ClientProcess(child, ledger, output)

    def interfered(self, gtrid: str) -> None:
        """Note for the judge that the harness has ended all prepared branches of a transaction by hand."""
        ledger = Ledger(self.new_ledger())
        ledger.write("interfered", gtrid=gtrid)
        ledger.close()

    def servers(self) -> dict[str, oracle.Server]:
        """Where the judge reads."""
        return {
            name: oracle.Server({"unix_socket": str(site.server.socket), "user": "root"}, name)
            for name, site in self.cluster.sites.items()
        }

    def violations(self, calm_seconds: float = 30.0) -> list[str]:
        """The verdict, once the traffic has stopped: I4 may take up to `calm_seconds` to become true."""
        servers = self.servers()
        wait_until_calm(servers, calm_seconds)
        return oracle.judge(self.ledgers, servers, START_BALANCE)

    def disagreements(self, ask: Callable[[str], str]) -> list[str]:
        """`ask` (gtrid -> outcome) about all that the clients were not told, against the rows."""
        claims, _ = oracle.read_ledgers(self.ledgers)
        open_ones = [c.gtrid for c in claims.values() if c.gtrid and c.outcome == "UNKNOWN"]
        books = {name: oracle.read_books(server) for name, server in self.servers().items()}
        return oracle.judge_answers(self.ledgers, books, {gtrid: ask(gtrid) for gtrid in open_ones})


def wait_until_calm(servers: Mapping[str, oracle.Server], timeout_seconds: float) -> bool:
    """Poll until nothing of ours is prepared and no row is locked; whether that came true."""
    deadline = time.monotonic() + timeout_seconds
    while any(oracle.judge_rest(name, server) for name, server in servers.items()):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def client_environ(more: Mapping[str, str]) -> dict[str, str]:
    """A client's environment: the repository's modules, wherever it is started."""
    return {**os.environ, "PYTHONPATH": str(_ROOT), **more}


def tail(paths: Sequence[Path], lines: int = 12) -> str:
    """The ends of ledgers and logs, for messages."""
    parts = []
    for path in paths:
        if path.exists():
            text = "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            parts.append(f"--- {path.name}\n{text}")
    return "\n".join(parts)
