"""The main job, shown on two real servers: commit, rollback, a killed coordinator, recovery.

    python -m deploy.demo [--engine mysql|mariadb] [--keep]

deploy/demonstration.py has the steps; here are the arguments, and what an interruption means. Ctrl-C or
SIGTERM ends everything that was started and removes its files.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=["any", "mysql", "mariadb"], default="any")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    arguments = parser.parse_args()
    # Imports take a second. Until there is something to put away, Ctrl-C just ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from deploy import demonstration
    from deploy.engines import available_engines
    from deploy.interruption import Interrupted, interruptible, scratch

    with interruptible():
        try:
            engine = arguments.engine if arguments.engine != "any" else available_engines()[0]
            with scratch("xacoord-demo-") as directory:
                return demonstration.run(engine, directory, arguments.keep)
        except Interrupted as interruption:
            demonstration.say("interrupted")
            return interruption.status


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after an interruption it would wait for purchases that still ask for their outcome.
    os._exit(status)
