"""Where a transaction's time goes: each process' CPU time and context switches a transaction, and what the
coordinator's process does in its own.

    python -m tests.bench.profile [--engine mysql] [--agents processes] [--clients 32] [--seconds 8]

First as it is, then once more with the coordinator under cProfile (which makes Python's calls dearer: shares
count there, not times). One-shot transactions on two branches, one UPDATE each, from threads of this process.
"""

from __future__ import annotations

import argparse
import pstats
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from deploy.bench.cpu import used_seconds
from deploy.private_cluster import Cluster
from tests.command import positive
from xacoord import Branch, Statement, TransactionManager

_NAMES = ("a", "b")
_ROWS = 10_000
_FUNCTIONS = 25

# Where a function's file is -> what it is called in the table; the first that fits.
_AREAS = {
    "participant_agent/core/": "agents: core",
    "participant_agent/": "agents: sessions and edge",
    "coordinator/core/": "coordinator: core",
    "/wal/": "log",
    "coordinator/": "coordinator: edge",
    "/dtp/": "vocabulary",
    "/shell/": "shell (streams, logging)",
    "grpc": "gRPC, in Python",
    "google/": "protobuf",
    "_pb2": "protobuf",
    "uvloop": "event loop and gRPC, in C",
    "asyncio": "event loop and gRPC, in C",
    "MySQLdb": "MySQL client",
    "socket": "sockets",
}
_NATIVE = {
    "uvloop": "event loop and gRPC, in C",
    "asyncio": "event loop and gRPC, in C",
    "epoll": "event loop and gRPC, in C",
    "socket": "sockets",
    "grpc": "gRPC, in Python",
    "_mysql": "MySQL client",
    "MySQL": "MySQL client",
    "SerializeToString": "protobuf",
    "ParseFromString": "protobuf",
    "FromString": "protobuf",
    "message": "protobuf",
    "repeated": "protobuf",
    "thread.lock": "waiting for other threads",
    "fdatasync": "flush",
}

Stats: TypeAlias = Mapping[tuple[str, int, str], tuple[int, int, float, float, object]]


def _area(function: tuple[str, int, str]) -> str:
    file, _, name = function
    names, text = (_NATIVE, name) if file == "~" else (_AREAS, file)
    return next((area for part, area in names.items() if part in text), "Python itself, other libraries")


def switches(pid: int) -> int:
    """Context switches of all threads of a process so far."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = status.read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return total


def load(address: str, clients: int, seconds: float) -> int:
    """Transactions from so many threads; how many were committed."""
    manager = TransactionManager.connect(address)
    done = [0] * clients
    until = time.monotonic() + seconds

    def work(number: int) -> None:
        choice = random.Random(number)
        while time.monotonic() < until:
            row = choice.randrange(_ROWS)
            change = Statement("UPDATE t SET v = v + 1 WHERE id = %s", (row,), expect_rows=1)
            manager.run([Branch(name, [change]) for name in _NAMES])
            done[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    manager.close()
    return sum(done)


def _fill(cluster: Cluster) -> None:
    for name, site in cluster.sites.items():
        site.server.sql(f"CREATE TABLE {name}.t (id BIGINT PRIMARY KEY, v INT) ENGINE=InnoDB")
        rows = ",".join(f"({number},0)" for number in range(_ROWS))
        site.server.sql(f"INSERT INTO {name}.t VALUES {rows}")


def _as_it_is(cluster: Cluster, clients: int, seconds: float) -> None:
    pids = {"coordinator": cluster.coordinator.pid}
    for name, site in cluster.sites.items():
        pids[f"server {name}"] = site.server.pid
        if site.agent is not cluster.coordinator:
            pids[f"agent {name}"] = site.agent.pid
    before = {name: (used_seconds(pid), switches(pid)) for name, pid in pids.items()}
    done = load(cluster.address, clients, seconds)
    print(f"{done / seconds:,.0f} transactions a second, {clients} clients\n")
    print(f"{'A TRANSACTION':<16}{'CPU, us':>10}{'SWITCHES':>10}")
    for name, pid in pids.items():
        cpu = (used_seconds(pid) - before[name][0]) / done * 1e6
        turns = (switches(pid) - before[name][1]) / done
        print(f"{name:<16}{cpu:>10,.0f}{turns:>10.1f}")


def tell(stats: Stats) -> None:
    """Shares of the main thread's CPU time, by area and by function."""
    own = {f: (calls, time_) for f, (calls, _, time_, _, _) in stats.items()}
    total = sum(time_ for _, time_ in own.values())
    areas: Counter[str] = Counter()
    for function, (_, time_) in own.items():
        areas[_area(function)] += int(time_ * 1e6)
    print(f"\n{'THE COORDINATOR UNDER CPROFILE':<44}{'SHARE':>8}")
    for area, microseconds in areas.most_common():
        print(f"{area:<44}{microseconds / 1e4 / total:>7.1f}%")
    print(f"\n{'FUNCTION':<64}{'CALLS':>10}{'SHARE':>8}")
    for (file, line, name), (calls, time_) in sorted(own.items(), key=lambda item: -item[1][1])[:_FUNCTIONS]:
        where = name if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} {name}"
        print(f"{where[:62]:<64}{calls:>10,}{100 * time_ / total:>7.1f}%")


def main(arguments: list[str]) -> int:
    """Both parts, on servers of our own."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile", description=__doc__)
    parser.add_argument("--engine", choices=("mysql", "mariadb"), default="mysql")
    parser.add_argument("--agents", choices=("processes", "in-process"), default="processes")
    parser.add_argument("--clients", type=positive, default=32)
    parser.add_argument("--seconds", type=positive, default=8)
    asked = parser.parse_args(arguments)
    embedded = asked.agents == "in-process"
    with tempfile.TemporaryDirectory(prefix="xacoord-profile-") as directory:
        file = Path(directory) / "profile"
        sessions = f"[sessions]\nmax = {2 * asked.clients}\nwarm = {asked.clients}\n"
        cluster = Cluster.create(
            asked.engine, Path(directory) / "cluster", _NAMES, agent_settings=sessions, embedded=embedded
        )
        with cluster:
            _fill(cluster)
            load(cluster.address, asked.clients, 1.0)
            _as_it_is(cluster, asked.clients, asked.seconds)
            cluster.coordinator.stop()
            cluster.coordinator.start(under=(sys.executable, "-m", "tests.bench.under_profile", str(file)))
            cluster.wait_until_up()
            load(cluster.address, asked.clients, asked.seconds)
            cluster.coordinator.stop()
            tell(pstats.Stats(str(file)).stats)  # type: ignore[attr-defined]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
