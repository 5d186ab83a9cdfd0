"""Plan: what a seed stands for: the parts, their settings, the weather and the kinds of faults of one run.

Each run has a few kinds of faults only (swarm testing): where everything fails all the time nothing gets far
enough to fail in an interesting way.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from participant_agent.core.engine import Engine
from tests.simulation.network import Weather

FAULTS = (
    "coordinator killed",
    "coordinator killed at a place",
    "coordinator power cut",
    "coordinator stopped",
    "coordinator frozen",
    "agent killed",
    "agent killed at a place",
    "agent stopped",
    "agent host lost",
    "agent frozen",
    "agent doubled",
    "server killed",
    "server stopped",
    "server stalled",
    "sessions cut",
    "host power cut",
    "one-way cut",
    "cut",
    "connection broken",
    "client vanished",
    "client vanished at a place",
    "flush failed",
    "disk full",
    "operator commits",
    "operator rolls back",
    "operator resolves",
    "operator recovers",
)
_OFTEN = (
    "coordinator killed at a place",
    "coordinator power cut",
    "agent killed at a place",
    "server killed",
)
_CROWDED = 0.15  # of the runs with several servers


@dataclass
class Plan:
    """One run.

    Attributes:
        crowded: every branch that writes changes one of very few rows that everybody changes.
    """

    engines: dict[str, Engine]
    participants: dict[str, str]
    coordinators: tuple[str, ...]
    clients: int
    works: int
    think_seconds: float
    keep_ended: float
    witness_retention: float
    chaos_seconds: float
    keys: float
    failing_statements: float
    segment_bytes: int
    flush_seconds: tuple[float, float]
    sessions: int
    lock_wait_seconds: int
    statement_timeout_seconds: float
    acquire_timeout_seconds: float
    take_over_seconds: float
    rescan_every: float
    weather: Weather
    foreign: bool
    faults: tuple[tuple[float, str], ...]
    crowded: bool = False


def plan_of(random: Random) -> Plan:
    """Draw a plan."""
    names = ("p1", "p2", "p3")[: random.choice((1, 2, 2, 2, 3, 3))]
    servers = [f"s{i + 1}" for i in range(len(names))]
    shared = len(names) > 1 and random.random() < 0.25
    participants = {name: servers[0] if shared and i < 2 else servers[i] for i, name in enumerate(names)}
    chaos_seconds = random.choice((2.0, 5.0, 10.0, 25.0))
    works = random.randint(1, 5)
    plan = Plan(
        engines={name: random.choice(list(Engine)) for name in dict.fromkeys(participants.values())},
        participants=participants,
        coordinators=("aaaa", "bbbb")[: random.choice((1, 1, 1, 2))],
        clients=random.randint(2, 8),
        works=works,
        think_seconds=random.choice((0.2, 1.0, 2.0)) * chaos_seconds / works,
        keep_ended=random.choice((1.0, 600.0, 600.0)),
        witness_retention=random.choice((1.0, 3600.0, 3600.0)),
        chaos_seconds=chaos_seconds,
        keys=random.choice((0.0, 0.3, 1.0)),
        failing_statements=random.choice((0.0, 0.1)),
        segment_bytes=512 * random.choice((32, 36, 48, 128)),
        flush_seconds=random.choice(((0.0001, 0.001), (0.0001, 0.01), (0.001, 0.3))),
        sessions=random.choice((2, 4, 16)),
        lock_wait_seconds=random.choice((1, 3)),
        statement_timeout_seconds=random.choice((4.0, 60.0)),
        acquire_timeout_seconds=random.choice((0.5, 5.0)),
        take_over_seconds=random.choice((1.0, 10.0)),
        rescan_every=random.choice((2.0, 10.0)),
        weather=_weather(random),
        foreign=random.random() < 0.3,
        faults=_faults(random, chaos_seconds),
    )
    if len(plan.engines) > 1 and random.random() < _CROWDED:
        _crowd(plan, random)
    return plan


def _crowd(plan: Plan, random: Random) -> None:
    """Branches meet in opposite orders on two servers all the time. Often nothing else goes wrong."""
    plan.crowded = True
    plan.clients, plan.works, plan.think_seconds = random.randint(3, 6), random.randint(8, 20), 0.01
    plan.sessions, plan.lock_wait_seconds, plan.statement_timeout_seconds = 16, 20, 60.0
    plan.weather.slow = plan.weather.lost = plan.weather.doubled = plan.weather.overtaken = 0.0
    if random.random() < 0.6:
        plan.faults = ()


def _weather(random: Random) -> Weather:
    weather = Weather(latency=random.choice(((0.0001, 0.001), (0.001, 0.02), (0.0001, 0.2))))
    if random.random() < 0.3:
        weather.slow, weather.slow_seconds = random.choice((0.01, 0.05)), random.choice((0.5, 3.0, 12.0))
    if random.random() < 0.2:
        weather.lost = random.choice((0.0, 0.02, 0.1))
        weather.doubled = random.choice((0.0, 0.02, 0.1))
        weather.overtaken = random.choice((0.0, 0.02, 0.1))
    return weather


def _faults(random: Random, chaos_seconds: float) -> tuple[tuple[float, str], ...]:
    kinds = [kind for kind in FAULTS if random.random() < 0.2]
    kinds += [kind for kind in _OFTEN if random.random() < 0.2]
    if not kinds or random.random() < 0.03:
        return ()
    count = random.randint(1, 10)
    return tuple(sorted((chaos_seconds * random.random(), random.choice(kinds)) for _ in range(count)))
