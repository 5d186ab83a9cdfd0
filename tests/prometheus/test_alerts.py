"""The alert rules: promtool's own tests, and that those tests notice a rule which is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"
ALERTS = (RULES / "alerts.yml").read_text(encoding="utf-8")
TESTS = (RULES / "alerts_test.yml").read_text(encoding="utf-8")
NAMES = re.findall(r"- alert: (\w+)", ALERTS)
METRICS = {
    "xacoord_transactions_total",
    "xacoord_transactions_active",
    "xacoord_phase_duration_seconds",
    "xacoord_blocked_transactions",
    "xacoord_in_doubt_branches",
    "xacoord_in_doubt_oldest_age_seconds",
    "xacoord_blocked_sessions",
    "xacoord_orphan_branches",
    "xacoord_foreign_branches",
    "xacoord_heuristic_outcomes_total",
    "xacoord_recovery_runs_total",
    "xacoord_recovery_last_success_timestamp_seconds",
    "xacoord_wal_fsync_duration_seconds",
    "xacoord_wal_batch_records",
    "xacoord_wal_bytes",
    "xacoord_wal_room",
    "xacoord_participant_up",
    "xacoord_participant_hold",
    "xacoord_build_info",
}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool: the one that PROMTOOL names, or that of the PATH."""
    program = os.environ.get("PROMTOOL") or shutil.which("promtool")
    assert program, (
        "promtool is missing: tests/run.sh installs it, or set PROMTOOL (Debian package prometheus)"
    )
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)


def run_tests(directory: Path) -> subprocess.CompletedProcess[str]:
    return promtool("test", "rules", directory / "alerts_test.yml")


def with_alerts(directory: Path, text: str) -> Path:
    """A copy of the rules' directory in which alerts.yml says `text`."""
    (directory / "alerts.yml").write_text(text, encoding="utf-8")
    (directory / "alerts_test.yml").write_text(TESTS, encoding="utf-8")
    return directory


def rule(name: str) -> re.Match[str]:
    found = re.search(rf"- alert: {name}\n.*?(?=\n *(?:#.*\n *)?- alert: |\Z)", ALERTS, re.DOTALL)
    assert found is not None
    return found


def test_the_example_configuration_is_valid() -> None:
    done = promtool("check", "config", RULES / "prometheus.yml")
    assert done.returncode == 0, done.stderr


def test_every_alert_fires_and_does_not() -> None:
    done = run_tests(RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_that_never_fires_is_noticed(name: str, tmp_path: Path) -> None:
    text = rule(name)[0]
    silent = re.sub(r"expr:.*?(?=\n +(?:for|labels):)", "expr: vector(1) > 2", text, flags=re.DOTALL)
    assert silent != text
    assert run_tests(with_alerts(tmp_path, ALERTS.replace(text, silent))).returncode != 0


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_has_a_case_in_which_it_is_quiet(name: str) -> None:
    assert re.search(rf"alertname: {name}, eval_time: \w+, exp_alerts: \[\]", TESTS)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("XacoordDown", ' or absent(up{job="xacoord"})', ""),
        ("XacoordDown", "for: 1m", "for: 0m"),
        ("XacoordBlockedTransactions", "> 0", ">= 0"),
        ("XacoordBlockedSessions", "> 0", ">= 0"),
        ("XacoordInDoubtTooLong", "> 120", "> 3"),
        ("XacoordParticipantDown", "== 0", ">= 0"),
        ("XacoordHold", "> 0", ">= 0"),
        ("XacoordHeuristicOutcome", "or (xacoord", "or (0 * xacoord"),
        ("XacoordHeuristicOutcome", "unless xacoord_heuristic_outcomes_total offset 15m", ""),
        ("XacoordHeuristicNotForgotten", '{state="heuristic"}', ""),
        ("XacoordRecoveryStale", "> 300", "> -300"),
        ("XacoordOrphanBranches", "> 0", ">= 0"),
        ("XacoordForeignBranches", "> 0", ">= 0"),
        ("XacoordLogFlushSlow", "> 0.05", "> 0.0001"),
    ],
)
def test_a_rule_that_is_wrong_is_noticed(name: str, old: str, new: str, tmp_path: Path) -> None:
    text = rule(name)[0]
    assert old in text
    changed = ALERTS.replace(text, text.replace(old, new))
    assert run_tests(with_alerts(tmp_path, changed)).returncode != 0


def test_only_metrics_that_exist_are_used() -> None:
    for text in (ALERTS, TESTS):
        used = {re.sub(r"_(sum|count|bucket)$", "", name) for name in re.findall(r"\bxacoord_\w+", text)}
        assert used
        assert used <= METRICS


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_has_a_severity_a_summary_and_a_runbook(name: str) -> None:
    text = rule(name)[0]
    assert re.search(r"severity: (critical|warning)\n", text)
    assert re.search(r"summary: .+", text)
    assert f"runbook: docs/operations.md#{name.lower()}" in text
    runbook = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert re.search(rf"^### {name}$", runbook, re.MULTILINE)
