"""Metrics: counters and histograms fed by the driver, gauges read from the core when scraped.

No label is ever a gtrid; labels are participants (configured), states, outcomes and kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from coordinator import version
from coordinator.core import inputs
from coordinator.core.coordinator import Coordinator
from coordinator.core.effects import Alert, AlertKind, Changed
from coordinator.core.states import ParticipantState, State
from wal import LogStatus

_PHASES = {
    State.ACTIVE: "work",
    State.PREPARING: "prepare",
    State.COMMITTING: "commit",
    State.ROLLING_BACK: "rollback",
}
_OUTCOMES = {State.COMMITTED: "committed", State.ROLLED_BACK: "rolled_back", State.HEURISTIC: "heuristic"}
_FROM_THE_SCAN = (
    ("blocked_sessions", "Sessions that wait for locks of prepared branches.", "blocked_sessions"),
    ("foreign_branches", "Prepared branches of others.", "foreign"),
)
_BLOCKERS = ("transaction", "prepared", "foreign")
_PHASE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_FLUSH_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 10)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Metrics:
    """The registry of one coordinator. Implements driver.Observer."""

    def __init__(self, participants: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._transactions = Counter(
            "xacoord_transactions", "Transactions that have ended.", ["outcome"], registry=registry
        )
        self._phases = Histogram(
            "xacoord_phase_duration_seconds",
            "Time that transactions spent in a phase.",
            ["phase"],
            buckets=_PHASE_BUCKETS,
            registry=registry,
        )
        self._heuristics = Counter(
            "xacoord_heuristic_outcomes",
            "Branches that someone else ended.",
            ["participant", "kind"],
            registry=registry,
        )
        self._recoveries = Counter(
            "xacoord_recovery_runs", "Scans with reconciliation.", ["result"], registry=registry
        )
        self._last_recovery = Gauge(
            "xacoord_recovery_last_success_timestamp_seconds",
            "When a participant was last scanned and reconciled.",
            registry=registry,
        )
        self._flushes = Histogram(
            "xacoord_wal_fsync_duration_seconds",
            "Duration of the log's flushes.",
            buckets=_FLUSH_BUCKETS,
            registry=registry,
        )
        self._batches = Histogram(
            "xacoord_wal_batch_records",
            "Records per flush of the log.",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        build = Gauge("xacoord_build_info", "Always 1.", ["version"], registry=registry)
        build.labels(version.VERSION).set(1)
        for outcome in _OUTCOMES.values():
            self._transactions.labels(outcome)
        for participant in participants:
            for kind in ("commit", "rollback", "mixed", "hazard"):
                self._heuristics.labels(participant, kind)
        for result in ("success", "failure"):
            self._recoveries.labels(result)
        self._phase_children = {state: self._phases.labels(name) for state, name in _PHASES.items()}

    def changed(self, effect: Changed) -> None:
        """A transaction has changed its state."""
        if effect.before is effect.state:
            return
        if effect.before in self._phase_children:
            self._phase_children[effect.before].observe(effect.seconds)
        outcome = _OUTCOMES.get(effect.state)
        if outcome is not None:
            self._transactions.labels(outcome).inc()

    def alerted(self, effect: Alert) -> None:
        """People should look at something."""
        if effect.kind is AlertKind.HEURISTIC and effect.outcome is not None:
            kind = effect.outcome.value.removeprefix("HEURISTIC_").lower()
            self._heuristics.labels(effect.participant, kind).inc()

    def scanned(self, event: inputs.AgentScanned) -> None:
        """A participant was scanned."""
        self._recoveries.labels("success").inc()
        self._last_recovery.set_to_current_time()

    def lost(self, event: inputs.AgentLost) -> None:
        """A participant could not be reached."""
        self._recoveries.labels("failure").inc()

    def flushed(self, seconds: float, records: int, size: int) -> None:
        """The log was flushed. Called from the log's thread."""
        self._flushes.observe(seconds)
        self._batches.observe(records)

    def expose(self, core: Coordinator, log: LogStatus, clock: Callable[[], float]) -> bytes:
        """Everything in Prometheus' text format."""
        collector = _LiveCollector(core, log, clock())
        self.registry.register(collector)
        try:
            return generate_latest(self.registry)
        finally:
            self.registry.unregister(collector)


class _LiveCollector:
    """The gauges, computed from the core's state at one moment."""

    def __init__(self, core: Coordinator, log: LogStatus, now: float) -> None:
        self._core = core
        self._log = log
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        core = self._core
        active = GaugeMetricFamily(
            "xacoord_transactions_active", "Transactions that have not ended.", labels=["state"]
        )
        counts = {state.value: 0 for state in (*_PHASES, State.HEURISTIC)}
        for transaction in core.open.values():
            counts[transaction.state.value] += 1
        for state, count in counts.items():
            active.add_metric([state.lower()], count)
        yield active
        blocked = sum(core.blocked(transaction) for transaction in core.open.values())
        yield GaugeMetricFamily(
            "xacoord_blocked_transactions",
            "Transactions in doubt that wait for a participant that is away or failing.",
            value=blocked,
        )
        yield GaugeMetricFamily(
            "xacoord_wal_bytes", "Bytes used in the log's current segment.", value=self._log.bytes
        )
        yield GaugeMetricFamily(
            "xacoord_wal_room",
            "1 while there is room for the log's next segment; at 0 Begin is refused before long.",
            value=self._log.room_ok,
        )
        yield from self._by_participant()
        yield from self._lock_waits()

    def _lock_waits(self) -> Iterator[Metric]:
        core = self._core
        counts = {(name, kind): 0 for name in core.participants for kind in _BLOCKERS}
        for name, wait in core.lock_waits():
            kind = "prepared" if wait.prepared else "transaction" if wait.blocker else "foreign"
            counts[name, kind] += 1
        waits = GaugeMetricFamily(
            "xacoord_lock_waits",
            "Row lock waits of branches now, by who has the lock.",
            labels=["participant", "blocker"],
        )
        for labels, count in counts.items():
            waits.add_metric(labels, count)
        yield waits
        yield CounterMetricFamily(
            "xacoord_deadlocks",
            "Deadlocks across servers that were ended by rolling the youngest transaction back.",
            value=core.deadlocks,
        )

    def _by_participant(self) -> Iterator[Metric]:
        core = self._core
        in_doubt = _family("xacoord_in_doubt_branches", "Branches whose end is still open.")
        oldest = _family("xacoord_in_doubt_oldest_age_seconds", "Age of the oldest transaction in doubt.")
        orphans = _family("xacoord_orphan_branches", "Branches of ours that the log does not explain.")
        families = [(_family(f"xacoord_{name}", text), attribute) for name, text, attribute in _FROM_THE_SCAN]
        up = _family("xacoord_participant_up", "1 where the participant is fenced, scanned and attached.")
        hold = _family("xacoord_participant_hold", "1 where the participant remembers what this log lacks.")
        for name, doubt in core.doubts().items():
            participant = core.participants[name]
            begun_at = doubt.oldest_begun_at
            in_doubt.add_metric([name], doubt.branches)
            oldest.add_metric([name], 0.0 if begun_at is None else max(0.0, self._now - begun_at))
            orphans.add_metric([name], doubt.orphans)
            up.add_metric([name], participant.state is ParticipantState.UP)
            hold.add_metric([name], participant.state is ParticipantState.HOLD)
            for family, attribute in families:
                family.add_metric([name], getattr(participant, attribute))
        yield from (in_doubt, oldest, orphans, up, hold, *(family for family, _ in families))


def _family(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["participant"])
