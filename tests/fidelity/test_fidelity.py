"""The simulation's MySQL against the real ones: what the simulation proves is worth what this compares.

Each engine has a server of its own, because sequences kill it. More of the same by hand:
`python -m tests.fidelity --engine mysql --sequences 2000`.
"""

from __future__ import annotations

from collections.abc import Callable

from deploy.engines import Engine
from deploy.private_servers import PrivateServer
from tests.fidelity.run import run
from tests.tiers import count

SEQUENCES = 220
_SEED = 20_000


def test_the_twin_and_the_server_agree(engine: Engine, new_server: Callable[..., PrivateServer]) -> None:
    disagreement = run(new_server(), _SEED, SEQUENCES)
    assert disagreement is None, disagreement
    count(f"fidelity: sequences, {engine}", SEQUENCES)
