"""One engine's soak as a process of its own: judging one engine must not slow the other's proxies down.

    python -m tests.soak.one DIRECTORY ENGINE PLAN

PLAN is a JSON object. A progress line every 10 s goes to standard output, the facts to
DIRECTORY/facts.pickle. SIGTERM ends the faults; a last checkpoint follows.
"""

from __future__ import annotations

import json
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.soak.facts import Facts
from tests.soak.soak import Plan, Soak

FACTS = "facts.pickle"
_PROGRESS_SECONDS = 10.0


def load(directory: Path) -> Facts:
    """What the process has left behind."""
    facts = pickle.loads((directory / FACTS).read_bytes())
    assert isinstance(facts, Facts)
    return facts


def main(directory: Path, engine: Any, plan: Plan) -> None:
    """Run it."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    soak = Soak(engine, plan, directory, stop)
    thread = threading.Thread(target=soak.run, name="soak")
    began = time.monotonic()
    thread.start()
    while thread.is_alive():
        thread.join(_PROGRESS_SECONDS)
        print(f"[{time.monotonic() - began:5.0f} s] {soak.progress()}", flush=True)
    directory.mkdir(exist_ok=True)
    (directory / FACTS).write_bytes(pickle.dumps(soak.facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Plan(**json.loads(sys.argv[3])))
