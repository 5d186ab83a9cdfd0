"""By hand: `python -m tests.fidelity --engine mysql --sequences 1000 --seed 1`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import get_args

from deploy import engines
from deploy.interruption import Interrupted, interruptible, scratch
from deploy.private_servers import PrivateServer
from tests.command import positive
from tests.fidelity.run import run


def main(arguments: list[str]) -> int:
    """Compare; 1 where the sides disagree."""
    parser = argparse.ArgumentParser(prog="python -m tests.fidelity", description=__doc__)
    parser.add_argument("--engine", choices=get_args(engines.Engine), required=True)
    parser.add_argument("--sequences", type=positive, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    agreed: list[int] = []
    began = time.monotonic()
    with interruptible():
        try:
            with (
                scratch("xacoord-fidelity-") as directory,
                PrivateServer.create(chosen.engine, directory) as server,
            ):
                began = time.monotonic()
                disagreement = run(server, chosen.seed, chosen.sequences, agreed.append)
        except Interrupted as interruption:
            seconds = time.monotonic() - began
            print(f"interrupted: {len(agreed)} of {chosen.sequences} sequences agree, {seconds:.1f} s")
            return interruption.status
    seconds = time.monotonic() - began
    print(disagreement or f"{chosen.sequences} sequences agree, {seconds:.1f} s")
    return int(disagreement is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
