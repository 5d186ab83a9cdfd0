"""By hand: `python -m tests.fidelity --engine mysql --sequences 1000 --seed 1`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from deploy import engines
from deploy.private_servers import PrivateServer
from tests.fidelity.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fidelity", description=__doc__)
    parser.add_argument("--engine", choices=get_args(engines.Engine), required=True)
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fidelity-") as directory:
        server = PrivateServer.create(chosen.engine, Path(directory))
        with server:
            began = time.monotonic()
            disagreement = run(server, chosen.seed, chosen.sequences)
            seconds = time.monotonic() - began
    print(disagreement or f"{chosen.sequences} sequences agree, {seconds:.1f} s")
    return int(disagreement is not None)


if __name__ == "__main__":
    sys.exit(main())
