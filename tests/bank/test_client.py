"""The client on a quiet system, and what becomes of one that is killed at each of its places."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.engines import Engine
from deploy.private_cluster import Cluster
from tests.bank import kill, oracle
from tests.bank.bank import Bank, tail


@pytest.fixture(scope="module")
def bank(engine: Engine) -> Iterator[Bank]:
    """A running cluster with the bank's tables."""
    with tempfile.TemporaryDirectory(prefix="xacoord-bank-") as name:
        cluster = Cluster.create(engine, Path(name), ("a", "b"))
        with cluster:
            yield Bank.open(cluster, Path(name) / "bank")


def test_a_quiet_system_commits_what_it_should(bank: Bank) -> None:
    client = bank.start_client(seed=5, transfers=120, threads=3, timeout=5, local_share=0.1)
    assert client.wait() == 0, tail([client.output])
    assert bank.violations() == []
    claims, _ = oracle.read_ledgers([client.ledger])
    outcomes = {(c.intent, c.outcome) for c in claims.values()}
    assert outcomes <= {("commit", "COMMITTED"), ("rollback", "ROLLED_BACK"), ("", "ROLLED_BACK")} | {
        ("overdraw", "ROLLED_BACK")
    }
    assert sum(c.outcome == "COMMITTED" for c in claims.values()) > 60
    assert outcomes >= {("commit", "COMMITTED"), ("rollback", "ROLLED_BACK"), ("overdraw", "ROLLED_BACK")}


@pytest.mark.parametrize("place", ["after_second_branch", "in_commit", "after_run"])
def test_a_client_dies_where_it_should(bank: Bank, place: str) -> None:
    assert place in kill.PLACES
    client = bank.start_client(seed=2, transfers=60, timeout=1, environ={"BANK_KILL": f"{place}:3"})
    assert client.wait() == -signal.SIGKILL, tail([client.output])
    assert f'"place": "{place}"' in client.ledger.read_text()
    assert bank.violations() == []
