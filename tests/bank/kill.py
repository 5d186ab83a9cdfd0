"""Places in the client where it dies or waits, for tests that crash the others there.

BANK_KILL="after_begin:3" means SIGKILL at the third passing. A place within a call (`in_commit`, `in_run`) is
a thread that kills a moment after the call was begun. BANK_HOLD="after_begin:3" makes the file
BANK_HOLD_FILE.hit there and waits until BANK_HOLD_FILE.go appears. The ledger gets a line first, so that a
run can prove that the place was reached.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tests.bank.ledger import Ledger

PLACES = (
    "before_begin",
    "after_begin",
    "after_first_branch",
    "after_second_branch",
    "before_commit",
    "in_commit",
    "after_commit",
    "before_rollback",
    "after_rollback",
    "before_run",
    "in_run",
    "after_run",
)
# A commit takes a few milliseconds; somewhere within them, or just after.
_WITHIN_SECONDS = 0.008
_POLL_SECONDS = 0.01


class Kill:
    """What BANK_KILL or BANK_HOLD asks for."""

    def __init__(self, environ: Mapping[str, str], ledger: Ledger, choice: random.Random) -> None:
        text = environ.get("BANK_KILL") or environ.get("BANK_HOLD", "")
        place, _, count = text.partition(":")
        if text and place not in PLACES:
            raise ValueError(f"no place {place!r}")
        self._holds = not environ.get("BANK_KILL")
        self._file = environ.get("BANK_HOLD_FILE", "")
        self._place = place
        self._left = int(count or 1)
        self._ledger = ledger
        self._delay_seconds = choice.uniform(0, _WITHIN_SECONDS)
        self._lock = threading.Lock()

    def at(self, place: str) -> None:
        """Reach a place."""
        if place != self._place:
            return
        with self._lock:
            self._left -= 1
            if self._left != 0:
                return
        if self._holds:
            self._hold()
        elif place.startswith("in_"):
            threading.Thread(target=self._die, args=(self._delay_seconds,), daemon=True).start()
        else:
            self._die(0.0)

    def _die(self, delay_seconds: float) -> None:
        time.sleep(delay_seconds)
        self._ledger.write("killed", place=self._place)
        os.kill(os.getpid(), signal.SIGKILL)

    def _hold(self) -> None:
        self._ledger.write("held", place=self._place)
        Path(f"{self._file}.hit").touch()
        while not Path(f"{self._file}.go").exists():
            time.sleep(_POLL_SECONDS)
