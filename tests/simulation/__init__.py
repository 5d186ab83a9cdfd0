"""The deterministic simulation: the daemons' own code in one thread, on a clock that jumps; the ports are
made up.

`python -m tests.simulation --seed N --trace` shows one run; docs/decisions/0010-proof.md says what is what.
"""

from tests.simulation.runner import Result, run

__all__ = ["Result", "run"]
