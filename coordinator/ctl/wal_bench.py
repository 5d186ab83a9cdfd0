"""`coordctl wal bench`: what the log can do on the disk of a directory, and what a restart costs there.

The figures of the disk itself, one block written and flushed, are taken between the others, forwards and
backwards, and the others are given as multiples of their neighbour: a disk's mood changes faster than a log.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click

from coordinator.ctl.errors import CtlError, ExitCode
from coordinator.ctl.options import output_option
from coordinator.ctl.output import Screen, View, emit, note

if TYPE_CHECKING:
    from coordinator.bench.appends import Slot
    from coordinator.bench.replays import Restart
    from wal import Options

APPENDERS = (1, 64, 1024)
_CLIENTS = {"many": 64, "single": 1}
_PREFIX = "xacoord-wal-bench-"
_FILL_RATE = 30_000  # transactions a second, roughly; for saying how long it will take
_MICRO, _MILLI = 1e6, 1e3


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: rounds of slots of so many seconds, transactions through a log, restarts."""

    rounds: int
    seconds: float
    transactions: int
    restarts: int
    segment_bytes: int

    @property
    def duration(self) -> float:
        """About how many seconds it will take."""
        slots = self.rounds * (len(APPENDERS) + 1) * self.seconds * 1.2
        return slots + self.transactions / _FILL_RATE + 10


FULL = Plan(rounds=9, seconds=0.5, transactions=1_000_000, restarts=5, segment_bytes=64 << 20)
QUICK = Plan(rounds=1, seconds=0.1, transactions=2_000, restarts=1, segment_bytes=1 << 20)


@dataclass
class Round:
    """One slot of the floor and one for each number of appenders."""

    floor: list[float] = field(default_factory=list)
    slots: dict[int, Slot] = field(default_factory=dict)


@click.command("bench")
@click.argument(
    "directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path, file_okay=False, exists=True)
)
@click.option("--quick", is_flag=True, help="Only see that it works: the figures mean little.")
@click.option("--transactions", type=click.IntRange(min=1), help="Through the log, 1,000,000 by default.")
@click.option(
    "--allow-unsafe-filesystem", is_flag=True, help="Even in memory or over a network, where no log may be."
)
@output_option
def bench_command(
    directory: Path, quick: bool, transactions: int | None, allow_unsafe_filesystem: bool, form: str
) -> None:
    """Measure the log on the disk of DIR (the current directory by default).

    Works in a directory of its own below DIR, which it removes: about 300 MB. Nothing else is touched.
    """
    from wal import Options

    plan = QUICK if quick else FULL
    if transactions is not None:
        plan = replace(plan, transactions=transactions)
    options = Options(plan.segment_bytes, allow_unsafe_filesystem=allow_unsafe_filesystem)
    note(f"this takes about {plan.duration:.0f} s; the machine should have nothing else to do")
    with _interruptible(), _scratch(directory) as place:
        document = measure(place, plan, options, note)
    document = {"directory": str(directory.absolute()), "quick": quick} | document
    emit(View(document, lambda screen: draw(screen, document)), form)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM is a Ctrl-C: it must not leave files behind either."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A new directory below `directory`, removed at the end."""
    from wal.format import LOCK_NAME, WATERMARK_NAME, segment_seq

    names = os.listdir(directory)
    if any(name in (LOCK_NAME, WATERMARK_NAME) or segment_seq(name) is not None for name in names):
        raise CtlError(
            "LOG_IN_THE_WAY",
            f"{directory} holds a log, which this must not disturb; give another directory on the same disk",
            ExitCode.REFUSED,
        )
    place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def measure(place: Path, plan: Plan, options: Options, say: Callable[[str], None]) -> dict[str, object]:
    """Everything that is measured, in `place`; `say` hears what is being done."""
    import uvloop  # the coordinator's loop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rounds = runner.run(_appends(place, plan, options, say))
    shutil.rmtree(place / "appends")
    restarts = {}
    for name, clients in _CLIENTS.items():
        restarts[name] = _restart(place / name, plan, options, clients, say)
        shutil.rmtree(place / name)
    return {
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
        "alignment": options.alignment,
        "segment_bytes": options.segment_bytes,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "floor": _floor_document(rounds),
        "appenders": [_appenders_document(rounds, appenders) for appenders in APPENDERS],
        "restart": {name: _restart_document(found) for name, found in restarts.items()},
    }


async def _appends(place: Path, plan: Plan, options: Options, say: Callable[[str], None]) -> list[Round]:
    """The floor and the appenders, slot by slot: forwards, backwards, forwards..."""
    from coordinator.bench.appends import Appenders, Started
    from coordinator.bench.floor import Floor
    from wal import SystemFiles

    files = SystemFiles()
    started = Started(place / "appends", options)
    try:
        await started.until_spare()
        floor = Floor(files, place / "floor", options)
        try:
            appenders = Appenders(started)
            floor.run(plan.seconds)
            rounds = []
            for number in range(plan.rounds):
                say(f"appending, round {number + 1} of {plan.rounds}")
                found = Round()
                order = (0, *APPENDERS)
                for count in order if number % 2 == 0 else reversed(order):
                    if count == 0:
                        found.floor = floor.run(plan.seconds)
                    else:
                        found.slots[count] = await appenders.run(count, plan.seconds)
                rounds.append(found)
            return rounds
        finally:
            floor.close()
    finally:
        started.log.close()


def _restart(place: Path, plan: Plan, options: Options, clients: int, say: Callable[[str], None]) -> Restart:
    from coordinator.bench.replays import Filler, restart

    filler = Filler(place, options)
    wanted = plan.transactions if clients > 1 else 0
    who = f"{clients} at a time" if clients > 1 else "one at a time"
    say(f"filling a log, {who}")
    filler.run(wanted, clients, lambda count: say(f"filling a log, {who}: {count:,} transactions"))
    say("restarting with it")
    return restart(place, options, filler, plan.restarts)


# The report


def _percentile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def _latency(samples: list[list[float]]) -> dict[str, float]:
    """p50 and p99 in ms: medians over the rounds."""
    ordered = [sorted(of_round) for of_round in samples]
    return {
        "p50_ms": median(_percentile(values, 0.50) for values in ordered) * _MILLI,
        "p99_ms": median(_percentile(values, 0.99) for values in ordered) * _MILLI,
    }


def _floor_document(rounds: list[Round]) -> dict[str, object]:
    rates = [len(one.floor) / sum(one.floor) for one in rounds]
    return {"flushes_per_second": median(rates), **_latency([one.floor for one in rounds])}


def _appenders_document(rounds: list[Round], appenders: int) -> dict[str, object]:
    slots = [one.slots[appenders] for one in rounds]
    ratios = [median(one.slots[appenders].latencies) / median(one.floor) for one in rounds]
    return {
        "appenders": appenders,
        "appends_per_second": median(len(slot.latencies) / slot.seconds for slot in slots),
        **_latency([slot.latencies for slot in slots]),
        "p50_to_floor": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def _restart_document(found: Restart) -> dict[str, object]:
    return {
        "transactions": found.transactions,
        "checkpoints": found.checkpoints,
        "records": found.records,
        "frames": found.frames,
        "read_seconds": found.read_seconds,
        "open_seconds": found.open_seconds,
        "start_seconds": found.start_seconds,
        "read_records_per_second": found.records / found.read_seconds,
        "open_records_per_second": found.records / found.open_seconds,
    }


def draw(screen: Screen, document: dict[str, object]) -> None:
    """The document for people."""
    floor, appenders, restarts = document["floor"], document["appenders"], document["restart"]
    assert isinstance(floor, dict)
    assert isinstance(appenders, list)
    assert isinstance(restarts, dict)
    rows = [["floor", f"{floor['flushes_per_second']:,.0f}", *_times(floor), ""]]
    for found in appenders:
        ratio = found["p50_to_floor"]
        rows.append(
            [
                f"{found['appenders']:,} appender{'s' if found['appenders'] > 1 else ''}",
                f"{found['appends_per_second']:,.0f}",
                *_times(found),
                f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
            ]
        )
    screen.table(("", "A SECOND", "P50", "P99", "P50 / FLOOR"), rows, "")
    if any(found["p50_to_floor"]["min"] < 1 for found in appenders):
        screen.line(
            "faster than the floor: something else was at the disk; do not trust these figures", "yellow"
        )
    screen.line()
    rows = []
    for name, found in restarts.items():
        rows.append(
            [
                f"{found['transactions']:,}, {_CLIENTS[name]} at a time",
                f"{found['records']:,}",
                f"{found['frames']:,}",
                f"{found['read_seconds']:.3f} s",
                f"{found['open_seconds']:.3f} s",
                f"{found['open_records_per_second'] / _MICRO:.2f} M",
                f"{found['start_seconds']:.3f} s",
            ]
        )
    columns = (
        "RESTART AFTER TRANSACTIONS",
        "RECORDS",
        "FRAMES",
        "READ",
        "AND REPLAYED",
        "RECORDS/S",
        "NEW EPOCH",
    )
    screen.table(columns, rows, "")


def _times(found: dict[str, float]) -> tuple[str, str]:
    return f"{found['p50_ms']:.3f} ms", f"{found['p99_ms']:.3f} ms"
