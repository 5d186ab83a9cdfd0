"""Storm: every few tenths of a second a link of the system breaks in some way, at random from a seed.

    python -m tests.network.storm --engine mysql --seconds 600 --seed 7

hunts by hand: rounds of some seconds, each with the bank's clients at work and judged by its oracle at rest.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from deploy.engines import Engine
from deploy.interruption import Interrupted, interruptible
from deploy.processes import end_below
from tests.command import positive_seconds
from tests.network.net import Net
from tests.network.proxy import Proxy, Way

_TEXTS = (b"XA START", b"XA END", b"XA PREPARE", b"XA COMMIT", b"XA ROLLBACK", b"XA RECOVER", b"IS_USED_LOCK")


class Storm:
    """Breaks links; `blow` for some seconds, then everything is whole again."""

    def __init__(self, net: Net, seed: int) -> None:
        self._net = net
        self._choice = random.Random(seed)
        self._mend: list[tuple[float, Callable[[], None]]] = []
        self.broken = 0

    def blow(self, seconds: float) -> None:
        """Break and mend for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._break(self._choice.choice(self._net.proxies))
            time.sleep(self._choice.uniform(0.02, 0.3))
            self._mend_what_is_due(time.monotonic())
        self._mend_what_is_due(float("inf"))
        for proxy in self._net.proxies:
            proxy.heal(lose=True)

    def _mend_what_is_due(self, now: float) -> None:
        for mend in [mend for due, mend in self._mend if due <= now]:
            mend()
        self._mend = [item for item in self._mend if item[0] > now]

    def _break(self, proxy: Proxy) -> None:
        choice = self._choice
        self.broken += 1
        kind = choice.choice(("cut", "cut", "delay", "reset", "half", "refuse", "strand", "hold", "hold"))
        lose = choice.random() < 0.5
        way = choice.choice(list(Way))
        mend: Callable[[], None] = lambda: proxy.heal(lose=lose)  # noqa: E731
        if kind == "cut":
            proxy.cut(way)
        elif kind == "delay":
            proxy.delay(choice.uniform(0.01, 0.3), way)
        elif kind == "reset":
            proxy.reset()
        elif kind == "half":
            proxy.half_close(way)
        elif kind == "refuse":
            proxy.refuse()
        elif kind == "strand":
            mend = proxy.strand()
        elif proxy.mysql:
            hold = proxy.hold(choice.choice(_TEXTS), times=choice.choice((1, 5)))
            mend = lambda: hold.release(lose=lose)  # noqa: E731
        self._mend.append((time.monotonic() + choice.uniform(0.1, 1.5), mend))


def weather(net: Net, seed: int, seconds: float) -> int:
    """One round: clients work while links break; then rest, and the verdict. How many links broke."""
    storm = Storm(net, seed)
    client = net.bank.start_client(
        seed=seed, coordinator=net.front.address, seconds=seconds, threads=4, timeout=1.0, grace=0.5
    )
    storm.blow(seconds)
    assert client.wait() == 0, client.output.read_text()
    net.settles(30)
    return storm.broken


def main() -> int:
    """Rounds by hand."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", choices=("mysql", "mariadb"), default="mariadb")
    parser.add_argument("--seconds", type=positive_seconds, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="xacoord-storm-"))
    with interruptible():
        try:
            _rounds(arguments.engine, directory, arguments.seed, arguments.seconds)
        except Interrupted as interruption:
            end_below(directory)
            shutil.rmtree(directory, ignore_errors=True)
            print("interrupted: every round above told the truth")
            return interruption.status
        except BaseException:
            end_below(directory)
            print(f"failed; see {directory}")
            raise
    shutil.rmtree(directory)
    return 0


def _rounds(engine: Engine, directory: Path, seed: int, seconds: float) -> None:
    net = Net(engine, directory)
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            net.restore()
            print(f"seed {seed}: {weather(net, seed, 8.0)} links broken, all told the truth", flush=True)
            seed += 1
    finally:
        net.close()


if __name__ == "__main__":
    sys.exit(main())
