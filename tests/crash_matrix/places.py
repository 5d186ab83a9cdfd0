"""Places and cells: every named place of every part, what brings a part there, and who dies then.

The lists come from the code: the coordinator's effects and inputs, the agent's verbs, the client's list. So a
place that the code gains is in the matrix at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from coordinator.failpoint_driver import OTHER_PAIRS
from docs import generate_diagrams as page
from participant_agent.core.effects import Verb
from tests.bank import kill


def pairs(names: list[str]) -> list[str]:
    """before_ and after_ each."""
    return [f"{when}_{name}" for name in names for when in ("before", "after")]


COORDINATOR = [*pairs([*page.failpoints(), *OTHER_PAIRS]), *page.input_places()]
AGENT = pairs([verb.value for verb in Verb])
CLIENT = list(kill.PLACES)
PLACES = {"coordinator": COORDINATOR, "agent": AGENT, "client": CLIENT}

# What brings the coordinator to a place where bank traffic does not (or not surely); by the name without
# before_ and after_. tests/crash_matrix/triggers.py has a function for each.
COORDINATOR_TRIGGERS = {
    "epoch": "start",
    "fence": "start",
    "attach": "start",
    "scan": "start",
    "input_agent_connected": "start",
    "input_agent_fenced": "start",
    "input_agent_scanned": "start",
    "rotate": "much_traffic",
    "alert": "orphan",
    "reply_refused": "unknown_transaction",
    "reply_accepted": "resolve",
    "input_resolve_requested": "resolve",
    "force_heuristic": "heuristic",
    "force_forget": "forget",
    "input_forget_requested": "forget",
    "input_recovery_requested": "recover",
    "input_caller_left": "caller_leaves",
    "input_drain_started": "drain",
    "input_agent_held": "held",
    "input_agent_lost": "agent_lost",
    "input_waits_reported": "lock_wait",
}
AGENT_TRIGGERS = {"fence_write": "start", "purge": "slow_traffic"}

# Where the coordinator is held while others die, besides its own death at every place: around what is durable
# or told.
_HELD = (
    "force_commit",
    "write_prepare",
    "send_run",
    "send_prepare",
    "send_commit",
    "send_rollback",
    "write_end",
)
HELD = [*pairs(list(_HELD)), "before_reply_decided", "input_records_durable", "input_branch_voted"]
# A restart that does not get far: killed at the first place under traffic, at the second while starting.
TWICE = [
    ("before_force_commit", "before_epoch"),
    ("before_force_commit", "input_agent_scanned"),
    ("before_send_commit", "after_epoch"),
    ("before_send_commit", "before_send_commit"),
    ("before_send_commit", "after_send_commit"),
    ("before_send_commit", "before_write_end"),
    ("after_send_commit", "after_fence"),
    ("after_send_commit", "before_scan"),
    ("input_records_durable", "input_agent_fenced"),
    ("before_send_prepare", "after_scan"),
]
# More than one at once.
TOGETHER = ("agent+mysqld", "coordinator+agent", "coordinator+mysqld", "everything")
WORST = (("coordinator", "before_send_commit"), ("agent", "after_prepare"))


@dataclass(frozen=True)
class Cell:
    """One run: when `holder` is at `place`, `victim` dies. `again`: where the restarted one dies, too."""

    holder: str
    place: str
    victim: str
    seed: int
    again: str = ""

    def __str__(self) -> str:
        then = f"-then-{self.again}" if self.again else ""
        return f"{self.victim}-at-{self.holder}.{self.place}{then}-{self.seed}"

    @property
    def trigger(self) -> str:
        """What brings the holder there."""
        if self.again:
            return "decisions"
        bare = self.place.removeprefix("before_").removeprefix("after_")
        table = {"coordinator": COORDINATOR_TRIGGERS, "agent": AGENT_TRIGGERS, "client": {}}[self.holder]
        return table.get(bare, "traffic")


def required(seed: int) -> Iterator[Cell]:
    """Every place with the death of its own process, and of the server at each place of its agent."""
    for holder, places in PLACES.items():
        for place in places:
            yield Cell(holder, place, holder, seed)
    for place in AGENT:
        yield Cell("agent", place, "mysqld", seed)
    for place, again in TWICE:
        yield Cell("coordinator", place, "coordinator", seed, again)
    for holder, place in WORST:
        for victim in TOGETHER:
            yield Cell(holder, place, victim, seed)


def crossed(seed: int) -> Iterator[Cell]:
    """Everybody else at every place where that means something, and several at once."""
    for holder, places, victims in (
        ("coordinator", HELD, ("agent", "mysqld", "client", *TOGETHER)),
        ("agent", AGENT, ("coordinator", "client", *TOGETHER)),
    ):
        for place in places:
            for victim in victims:
                if (holder, place) not in WORST or victim not in TOGETHER:
                    yield Cell(holder, place, victim, seed)
    for place in CLIENT:
        if not place.startswith("in_"):
            for victim in ("coordinator", "agent", "mysqld"):
                yield Cell("client", place, victim, seed)


def choose(runs: int, seed: int) -> list[Cell]:
    """All that is required, then of the rest what the seed draws; then the same with other seeds.

    Fewer runs than all that is required: what the seed draws of everything.
    """
    cells = list(required(seed))
    choice = random.Random(seed)
    rest = list(crossed(seed))
    if runs < len(cells):
        return choice.sample(cells + rest, runs)
    choice.shuffle(rest)
    cells += rest
    while len(cells) < runs:
        seed += 1
        more = [*required(seed), *crossed(seed)]
        choice.shuffle(more)
        cells += more
    return cells[:runs]


def choose_only(runs: int, seed: int, part: str) -> list[Cell]:
    """Of those whose name has `part` in it all, or so many as the seed draws."""
    everything = len([*required(seed), *crossed(seed)])
    cells = [cell for cell in choose(max(runs, everything), seed) if part in str(cell)]
    return cells if len(cells) <= runs else random.Random(seed).sample(cells, runs)
