"""What deciding costs: microseconds of CPU for one transaction on two branches in the pure core, its records'
encoding, the metrics and the response, with everything else taken away.

    python -m tests.bench.core_cost [TRANSACTIONS]
"""

from __future__ import annotations

import sys
import time

from coordinator import convert
from coordinator.codec import encode
from coordinator.core import effects, inputs
from coordinator.core.coordinator import Coordinator
from coordinator.core.replay import replay
from coordinator.core.settings import Settings
from coordinator.metrics import Metrics
from dtp import Outcome, Vote
from participant_agent.v1 import statement_pb2

_NAMES = ("a", "b")
_ROUNDS = 20


class Deciding:
    """A coordinator's core with two participants, whose messages are made up."""

    def __init__(self) -> None:
        replayed = replay([])
        replayed.numbers.update({name: number for number, name in enumerate(_NAMES, 1)})
        self._now = 100.0
        self._core = Coordinator(Settings("0001"), 1, replayed, list(_NAMES), self._now)
        self._metrics = Metrics(list(_NAMES))
        for name in _NAMES:
            self._core.step(inputs.AgentConnected(name, 1), self._now)
            self._core.step(inputs.AgentFenced(name, 1, "x", True, "", ""), self._now)
            self._core.step(inputs.AgentScanned(name, 1, self._now, (), 0, 0), self._now)
        statement = statement_pb2.Statement(sql="UPDATE t SET v = v + 1 WHERE id = 1")
        self._branches = tuple(inputs.RunBranch(name, [statement], False) for name in _NAMES)

    def transaction(self, ticket: int) -> None:
        """One, from its arrival to its answer."""
        self._now += 0.001
        asked = inputs.RunRequested(
            ticket, self._branches, None, inputs.WaitFor.COMPLETED, False, ticket & 0xFFFF, True, "", b""
        )
        sent = self._step(asked)
        gtrid = next(effect.gtrid for effect in sent if isinstance(effect, effects.Send))
        for name in _NAMES:
            sent = self._step(inputs.BranchVoted(name, 1, gtrid, Vote.OK, None, []))
        forced = next(effect.number for effect in sent if isinstance(effect, effects.Force))
        self._step(inputs.RecordsDurable(forced))
        for name in _NAMES:
            sent = self._step(inputs.BranchFinished(name, 1, gtrid, Outcome.COMMITTED, None, []))
        reply = next(effect for effect in sent if isinstance(effect, effects.Reply))
        convert.run_response(reply.answer).SerializeToString()

    def _step(self, event: inputs.Input) -> list[effects.Effect]:
        sent = self._core.step(event, self._now)
        for effect in sent:
            if isinstance(effect, effects.Write | effects.Force):
                encode(effect.record)
            elif isinstance(effect, effects.Changed):
                self._metrics.changed(effect)
        return sent


def measure(transactions: int) -> float:
    """Microseconds of CPU each, in the best of some rounds."""
    deciding = Deciding()
    best = float("inf")
    for turn in range(_ROUNDS):
        began = time.process_time()
        for number in range(transactions):
            deciding.transaction(turn * transactions + number)
        best = min(best, time.process_time() - began)
    return best / transactions * 1e6


if __name__ == "__main__":
    print(f"{measure(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000):.1f} us of CPU for a transaction")
