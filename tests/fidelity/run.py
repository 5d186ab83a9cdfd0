"""Runs sequences on both sides, and says where they first disagree."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from deploy.private_servers import PrivateServer
from participant_agent.core.engine import Engine
from tests.fidelity.real import Disagreement, RealSide, compare
from tests.fidelity.sequences import Kind, make

STEPS = 25
_CRASH_EVERY = 55
_TIME_OUT_EVERY = 50
_ATTEMPTS = 12


def kind_of(seed: int) -> Kind:
    """Crashes and time-outs take a second each, so they are rare."""
    return Kind(crashes=seed % _CRASH_EVERY == 7, time_outs=seed % _TIME_OUT_EVERY == 13)


def run(
    server: PrivateServer, first_seed: int, sequences: int, tell: Callable[[int], object] = lambda seed: None
) -> str | None:
    """Compare; None where both sides agree, else the whole sequence with both answers.

    Args:
        tell: is called with each seed on which both sides agree.
    """
    real = RealSide(server)
    interrupted = False
    with asyncio.Runner() as runner:
        runner.run(real.prepare())
        try:
            for seed in range(first_seed, first_seed + sequences):
                disagreement = _disagreement(runner, real, Engine(server.engine), seed)
                if disagreement is not None:
                    where = f"seed {seed} on {server.engine} {server.version}"
                    return f"{where}\n{disagreement.story}"
                tell(seed)
        except KeyboardInterrupt:
            interrupted = True  # a comparison is under way and uses the sessions; the runner cancels it
            raise
        finally:
            if not interrupted:
                runner.run(real.close())
    return None


def _disagreement(runner: asyncio.Runner, real: RealSide, engine: Engine, seed: int) -> Disagreement | None:
    """Where a deadlock is the reason, the server may have chosen the other victim: then that is played.

    MySQL does not always choose the same one, so it may take some attempts until it chooses as the twin does.
    """
    other_victims: frozenset[int] = frozenset()
    found = None
    for _ in range(_ATTEMPTS):
        sequence = make(engine, seed, kind_of(seed), STEPS, other_victims)
        found = runner.run(compare(real, sequence))
        if found is None or found.step not in sequence.deadlocks:
            return found
        other_victims ^= {sequence.deadlocks.index(found.step)}
    return found
