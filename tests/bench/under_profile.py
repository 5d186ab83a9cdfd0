"""Runs a Python module under cProfile.

    python -m tests.bench.under_profile FILE python -m MODULE [ARGUMENTS]

The statistics are written when the module ends, however it does.
"""

from __future__ import annotations

import cProfile
import runpy
import sys
import time


def main(arguments: list[str]) -> None:
    """`arguments`: the file, and the command as it would be started without us."""
    file, _python, _m, module, *rest = arguments
    sys.argv = [module, *rest]
    profile = cProfile.Profile(time.thread_time)  # sleeping is no work
    try:
        profile.runcall(runpy.run_module, module, run_name="__main__", alter_sys=True)
    finally:
        profile.dump_stats(file)


if __name__ == "__main__":
    main(sys.argv[1:])
