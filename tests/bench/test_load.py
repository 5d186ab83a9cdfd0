"""Clients and their processes: what counts in a slot, and what happens when one cannot go on."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from deploy.bench.cpu import Meter, busy, used_seconds
from deploy.bench.crew import Crew
from deploy.bench.load import Done, Job, Slot, Threads, work_through
from deploy.bench.plan import RAW
from deploy.bench.servers import BenchError
from deploy.bench.work import Told
from deploy.processes import spawn

NOW = Slot(0.0, 0.0, 0.0)


class Scripted:
    """A client that does what it is told and says so; each transaction takes a while."""

    def __init__(self, *outcomes: tuple[Told, str]) -> None:
        self._outcomes = list(outcomes)
        self.closed = False

    def transact(self) -> tuple[Told, str]:
        time.sleep(0.002)
        if not self._outcomes:
            raise RuntimeError("the script is over")
        return self._outcomes.pop(0)

    def close(self) -> None:
        self.closed = True


class Endless(Scripted):
    """It always commits."""

    def transact(self) -> tuple[Told, str]:
        time.sleep(0.002)
        return Told.COMMITTED, ""


def slot(warm_up: float, seconds: float) -> Slot:
    now = time.monotonic()
    return Slot(now, now + warm_up, now + warm_up + seconds)


def test_what_ends_in_the_warm_up_or_too_late_does_not_count() -> None:
    done = work_through(Endless(), slot(0.05, 0.05))
    assert 0 < len(done.latencies) < done.told["committed"]
    assert min(done.latencies) >= 2000
    nothing = work_through(Endless(), slot(0.05, 0.0))
    assert nothing.latencies == []
    assert nothing.told["committed"] > 0


def test_what_did_not_commit_has_no_latency_but_a_reason() -> None:
    client = Scripted((Told.COMMITTED, ""), (Told.ROLLED_BACK, "locked"), (Told.UNKNOWN, "lost"))
    now = time.monotonic()
    with pytest.raises(RuntimeError, match="script"):
        work_through(client, Slot(now, now, now + 60))
    client = Scripted(*[(Told.ROLLED_BACK, "locked")] * 1000)
    done = work_through(client, slot(0.0, 0.02))
    assert done.latencies == []
    assert done.told["rolled_back"] > 0
    assert done.reasons == ["locked"]


def test_answers_add_up() -> None:
    total = Done([1], Counter(committed=2), ["a"], lasted={"x": [7]})
    total.add(Done([2], Counter(committed=1, unknown=1), ["a", "b"], lasted={"x": [8], "y": [9]}))
    assert total.document() == {
        "latencies": [1, 2],
        "told": {"committed": 3, "unknown": 1},
        "reasons": ["a", "b"],
        "failed": "",
        "lasted": {"x": [7, 8], "y": [9]},
    }


def test_threads_work_together_and_close_their_clients() -> None:
    clients = [Endless(), Endless()]
    with Threads([lambda client=client: client for client in clients]) as threads:  # type: ignore[misc]
        assert threads.ready().failed == ""
        assert threads.run(slot(0.0, 0.03)).told["committed"] >= 2
        assert threads.run(NOW) == Done()
    assert all(client.closed for client in clients)


def test_a_client_that_cannot_go_on_is_told_in_every_slot() -> None:
    with Threads([lambda: Scripted()]) as threads:
        assert threads.ready().failed == ""
        assert threads.run(slot(0.0, 0.05)).failed == "RuntimeError: the script is over"
        assert threads.run(slot(0.0, 0.05)).failed != ""


def unreachable(clients: int) -> Job:
    """Of raw clients whose server is not there."""
    target = {"name": "a", "user": "u", "socket": "/nowhere/mysqld.sock"}
    return Job(RAW, clients, 0, 1, False, "abcd", targets=[target])


def test_a_crew_without_servers_says_why(tmp_path: Path) -> None:
    with Crew(unreachable(3), 2, tmp_path) as crew:
        assert len(crew.pids) == 2
        with pytest.raises(BenchError, match=r"a client has failed: OperationalError: .*nowhere"):
            crew.wait_until_ready()
    assert [used_seconds(pid) for pid in crew.pids] == [0.0, 0.0], "load processes are left"


def test_a_crew_whose_process_dies_says_so(tmp_path: Path) -> None:
    with Crew(unreachable(1), 1, tmp_path) as crew:
        spawn(["kill", "-9", str(crew.pids[0])], tmp_path / "kill.log").wait()
        with pytest.raises(BenchError, match="a load process has ended"):
            crew.wait_until_ready()


def test_used_seconds_grow_with_work() -> None:
    child = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    try:
        meter = Meter({"busy": child.pid})
        meter.start()
        deadline = time.monotonic() + 30
        while used_seconds(child.pid) < 0.1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        used, foreign = meter.stop()
    finally:
        child.kill()
        child.wait()
    assert used["busy"] > 0
    assert foreign >= 0
    assert used_seconds(child.pid) == 0.0


def test_busy_is_all_but_idle_and_waiting_for_disks() -> None:
    text = "cpu  100 10 30 999 888 1 2 7 5 5\ncpu0 1 1 1 1 1 1 1 1 1 1\ncpu1 1 1 1 1 1 1 1 1 1 1\nintr 5\n"
    assert busy(text, 2) == pytest.approx(1.5)
    assert busy(text, 4) == 0.0
