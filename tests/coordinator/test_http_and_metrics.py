"""What monitoring sees: it must be true, also while the event loop hangs."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from typing import Any

import pytest

from coordinator import http
from coordinator.core import effects, inputs
from coordinator.core.effects import AlertKind
from coordinator.core.states import State
from coordinator.http import Answer, HttpServer
from coordinator.metrics import Metrics
from dtp import Outcome
from tests.coordinator.driver_bench import changed
from tests.coordinator.transactions import begin, decide, deliver, make_durable, world_that_is_up
from wal import LogStatus

STATUS = LogStatus(
    identity="", epoch=1, directory="", segments=1, bytes=4096, durable_lsn=1, next_lsn=2, queued=0,
    reserved=0, spare_ready=True, last_flush_seconds=0.0, running_flush_seconds=0.0, room_ok=True,
    blocked=False, failed=False,
)  # fmt: skip


def values(metrics: Metrics, core: Any, now: float) -> dict[str, float]:
    """The exposition as a table."""
    lines = metrics.expose(core, STATUS, lambda: now).decode().splitlines()
    return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if x[0] != "#")}


def test_counters_of_ends_and_phases() -> None:
    metrics = Metrics(["p1", "p2", "p3"])
    core = world_that_is_up().core
    for effect in (
        changed(None, State.ACTIVE),
        changed(State.ACTIVE, State.PREPARING),
        changed(State.PREPARING, State.COMMITTING),
        changed(State.COMMITTING, State.COMMITTING),
        changed(State.COMMITTING, State.HEURISTIC),
        changed(State.HEURISTIC, State.HEURISTIC),
        changed(State.ROLLING_BACK, State.ROLLED_BACK),
    ):
        metrics.changed(effect)
    found = values(metrics, core, 0.0)
    ends = ("committed", "rolled_back", "heuristic")
    assert [found[f'xacoord_transactions_total{{outcome="{e}"}}'] for e in ends] == [0, 1, 1]
    phases = ("work", "prepare", "commit", "rollback")
    counts = [found[f'xacoord_phase_duration_seconds_count{{phase="{p}"}}'] for p in phases]
    assert counts == [1, 1, 1, 1]


def test_heuristic_branches_are_counted_and_other_alerts_are_not() -> None:
    metrics = Metrics(["p1", "p2", "p3"])
    alert = effects.Alert(AlertKind.HEURISTIC, "", "g", "p1", Outcome.HEURISTIC_ROLLBACK)
    metrics.alerted(alert)
    metrics.alerted(effects.Alert(AlertKind.ORPHAN, "", "g", "p1"))
    metrics.scanned(inputs.AgentScanned("p1", 1, 0.0, (), 0, 0))
    metrics.lost(inputs.AgentLost("p1", 1, ""))
    metrics.flushed(0.01, 3, 512)
    found = values(metrics, world_that_is_up().core, 0.0)
    name = "xacoord_heuristic_outcomes_total"
    kinds = ("commit", "rollback", "mixed", "hazard")
    counts = [found[f'{name}{{kind="{k}",participant="p1"}}'] for k in kinds]
    assert counts == [0, 1, 0, 0]
    assert found['xacoord_recovery_runs_total{result="success"}'] == 1
    assert found['xacoord_recovery_runs_total{result="failure"}'] == 1
    assert found["xacoord_wal_batch_records_sum"] == 3


def test_a_blocked_commit_is_seen_at_the_participant_that_it_waits_for() -> None:
    world = world_that_is_up()
    metrics = Metrics(world.core.participants)
    found = begin(world)
    decide(world, found)
    world.lose(world.servers["p2"], executed=0)
    make_durable(world)
    deliver(world, "p1")
    for _ in range(2):  # a scrape leaves nothing behind
        table = values(metrics, world.core, world.now + 60.0)
        assert table['xacoord_transactions_active{state="committing"}'] == 1
        assert table["xacoord_blocked_transactions"] == 1
        by_name = [
            tuple(table[f'xacoord_{m}{{participant="{p}"}}'] for p in ("p1", "p2", "p3"))
            for m in ("in_doubt_branches", "in_doubt_oldest_age_seconds", "participant_up")
        ]
        assert by_name == [(0, 1, 0), (0, 60, 0), (1, 0, 1)]
        assert table["xacoord_wal_bytes"] == 4096


def test_lock_waits_are_counted_by_who_has_the_lock_and_deadlocks_as_they_end() -> None:
    world = world_that_is_up()
    metrics = Metrics(world.core.participants)
    first, second = begin(world), begin(world)
    wait, name = inputs.Wait, "xacoord_lock_waits"
    waits = (
        wait(first.gtrid, second.gtrid),
        wait(first.gtrid, prepared=True),
        wait(first.gtrid, connection_id=17),
    )
    link = world.servers["p1"].link
    world.feed(inputs.WaitsReported("p1", link, (*waits, wait(second.gtrid, connection_id=17))))
    table = values(metrics, world.core, world.now)
    kinds = ("transaction", "prepared", "foreign")
    assert [table[f'{name}{{blocker="{k}",participant="p1"}}'] for k in kinds] == [1, 1, 2]
    assert [table[f'{name}{{blocker="{k}",participant="p2"}}'] for k in kinds] == [0, 0, 0]
    assert table["xacoord_deadlocks_total"] == 0
    for _ in range(2):
        world.feed(inputs.WaitsReported("p1", link, waits[:1]))
        other = (wait(second.gtrid, first.gtrid),)
        world.feed(inputs.WaitsReported("p2", world.servers["p2"].link, other))
    table = values(metrics, world.core, world.now)
    assert table["xacoord_deadlocks_total"] == 1
    assert table[f'{name}{{blocker="transaction",participant="p1"}}'] == 1


def get(port: int, path: str) -> tuple[int, bytes]:
    """From another thread, as a scraper does."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_answers_come_from_the_event_loop_and_a_loop_that_hangs_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_ANSWER_SECONDS", 0.2)

    async def main() -> None:
        async def respond(path: str) -> Answer:
            if path == "/hang":
                await asyncio.Event().wait()
            return (200, "text/plain", b"yes") if path == "/healthz" else (404, "text/plain", b"no")

        server = HttpServer("127.0.0.1", 0, respond)
        try:
            assert await asyncio.to_thread(get, server.port, "/healthz") == (200, b"yes")
            assert await asyncio.to_thread(get, server.port, "/else") == (404, b"no")
            status, body = await asyncio.to_thread(get, server.port, "/hang")
            assert (status, b"event loop" in body) == (503, True)
            assert await asyncio.to_thread(get, server.port, "/healthz") == (200, b"yes")
        finally:
            await asyncio.to_thread(server.close)
        hanging = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)

    asyncio.run(main())
