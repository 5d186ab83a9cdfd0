"""A heuristic outcome is kept until somebody says forget, over checkpoints and restarts; people are paged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.v1 import admin_pb2
from coordinator.v1 import coordinator_pb2 as pb
from deploy.private_cluster import wait_for
from tests.heuristics.conftest import delete_rows
from tests.heuristics.person import end_by_hand
from tests.system.conftest import System, failpoints, statement

ALERTS = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
# Each of the four times that are looked at lasts 41 minutes. The counter begins anew with the process; the
# gauge is what pages people after a restart, and ends with forget.
FIRING = {
    "XacoordHeuristicOutcome": [("40m", 0), ("45m", 1), ("140m", 0)],
    "XacoordHeuristicNotForgotten": [("40m", 0), ("50m", 1), ("110m", 1), ("140m", 0)],
}
_AT_ONCE, _ROUNDS = 16, 400


def mixed(system: System) -> tuple[int, str]:
    """A transaction decided to roll back of which a person has committed one branch."""
    cluster = system.cluster
    system.restart_coordinator(**failpoints("before_force_commit=kill", cluster.directory))
    row = system.new_id()
    gtrid = system.begin_work(row)
    with pytest.raises(grpc.RpcError):
        system.commit(gtrid)
    assert cluster.coordinator.wait() == -9
    end_by_hand(cluster.sites["orders"].server, "commit", gtrid)
    cluster.start_coordinator()
    wait_for(lambda: system.outcome(gtrid) == "HEURISTIC_MIXED", 15, cluster.tails)
    return row, gtrid


def listed(system: System) -> list[str]:
    request = pb.ListRequest(states=[pb.STATE_HEURISTIC])
    found = system.coordinator.List(request, timeout=10).transactions
    return [transaction.gtrid for transaction in found if not transaction.forgotten]


def _has_no_room(call: Any) -> bool:
    error = call.exception(timeout=30)
    if error is not None and "no room" not in error.details():
        raise error
    return error is not None


def fill_until_a_checkpoint(system: System) -> None:
    """Transactions that read, with keys, so that the log keeps something of each."""
    coordinator, admin, used = system.coordinator, system.admin, 0
    branches = [pb.RunBranch(participant="orders", statements=[statement("SELECT 1")])]
    for _ in range(_ROUNDS):
        keys = [f"{system.new_id():0128}" for _ in range(_AT_ONCE)]
        until = time.monotonic() + 30
        while keys:
            runs = [pb.RunRequest(idempotency_key=key, branches=branches) for key in keys]
            calls = [coordinator.Run.future(run) for run in runs]
            # On a busy machine the next segment may be late. Then it is refused, and may be tried again.
            keys = [key for key, call in zip(keys, calls, strict=True) if _has_no_room(call)]
            assert {call.result().outcome for call in calls if not call.exception()} <= {pb.OUTCOME_COMMITTED}
            assert time.monotonic() < until, "LOG_FULL for 30 s"
        status = admin.LogStatus(admin_pb2.LogStatusRequest(), timeout=10)
        if status.bytes < used:
            return
        used = status.bytes
    pytest.fail("no checkpoint was written")


def test_kept_over_checkpoints_and_repaired(system: System) -> None:
    cluster = system.cluster
    row, gtrid = mixed(system)
    # A running coordinator writes checkpoints by itself: what is used of the log shrinks then.
    fill_until_a_checkpoint(system)
    assert listed(system) == [gtrid]
    cluster.coordinator.kill()
    cluster.start_coordinator()
    assert listed(system) == [gtrid]
    assert system.outcome(gtrid) == "HEURISTIC_MIXED"
    # The runbook: make the databases agree with the decision, take the proof of the wrong end away, forget.
    orders = cluster.sites["orders"].server
    orders.sql("DELETE FROM orders.ledger WHERE id = %s", (row,))
    refused = cluster.coordctl("forget", gtrid, "--yes", check=False)
    assert (refused.returncode, "DECISION_CONTRADICTED" in refused.stderr) == (1, True), refused.stderr
    assert listed(system) == [gtrid]
    cluster.sites["orders"].agent.kill()
    refused = cluster.coordctl("forget", gtrid, "--yes", check=False)
    assert (refused.returncode, "PARTICIPANT_UNAVAILABLE" in refused.stderr) == (69, True), refused.stderr
    cluster.sites["orders"].agent.start()
    cluster.wait_until_up()
    refused = cluster.coordctl("forget", gtrid, "--yes", check=False)
    [told] = re.findall(r"at orders: (DELETE FROM xacoord\.witness WHERE [^;(]+)", refused.stderr)
    orders.sql(told)
    cluster.coordctl("forget", gtrid, "--yes")
    system.restart_coordinator()
    assert listed(system) == []
    assert system.outcome(gtrid) == "ROLLED_BACK"
    assert not system.judge(row)


def test_people_are_paged(system: System, tmp_path: Path) -> None:
    """The alert rules, fed with what the coordinator really exposes before and after, and after a restart."""
    cluster = system.cluster
    before = samples(system)
    _, gtrid = mixed(system)
    after = samples(system)
    cluster.coordinator.kill()
    cluster.start_coordinator()
    restarted = samples(system)
    delete_rows(system, gtrid)
    cluster.coordctl("forget", gtrid, "--yes")
    forgotten = samples(system)
    moments = (before, after, restarted, forgotten)
    series = [{"series": name, "values": " ".join(f"{at[name]}x40" for at in moments)} for name in before]
    queries = [
        {
            "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
            "eval_time": when,
            "exp_samples": [{"value": count}],
        }
        for alert, found in FIRING.items()
        for when, count in found
    ]
    shutil.copy(ALERTS, tmp_path / "alerts.yml")
    test = {"interval": "1m", "input_series": series, "promql_expr_test": queries}
    document = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "test.yml").write_text(json.dumps(document))  # JSON is YAML
    program = os.environ.get("PROMTOOL") or shutil.which("promtool")
    assert program, "promtool is missing: tests/run.sh installs it"
    command = [program, "test", "rules", tmp_path / "test.yml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def samples(system: System) -> dict[str, str]:
    """What /metrics says of heuristic outcomes."""
    names = r"xacoord_heuristic_outcomes_total\{.*\}|xacoord_transactions_active\{state=\"heuristic\"\}"
    found = re.findall(rf"^({names}) (\S+)$", system.cluster.http("/metrics")[1], re.MULTILINE)
    assert len(found) == 9
    return {name: str(int(float(value))) for name, value in found}
