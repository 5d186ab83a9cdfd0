"""Draws the generated parts of docs/protocol.md from the code, so that the page cannot lag behind it.

    python docs/generate_diagrams.py            rewrites the page
    python docs/generate_diagrams.py --check    exit status 1 where the page is out of date

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from coordinator.codec import Kind  # noqa: E402
from coordinator.core import effects, inputs, reconcile, records, states  # noqa: E402
from coordinator.failpoint_driver import OTHER_PAIRS, place  # noqa: E402
from dtp import branch  # noqa: E402

PAGE = ROOT / "docs/protocol.md"
# Which records the core appends how (the others are written when an epoch starts).
WRITTEN = (records.PrepareRecord, records.EndRecord)
FORCED = (records.CommitRecord, records.HeuristicRecord, records.ForgetRecord)

Table = Mapping[Any, Mapping[Any, Any]]


def diagram(table: Table, start: Enum) -> str:
    """A state diagram; triggers that lead the same way share an arrow."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {start.value}"]
    for state, ways in table.items():
        arrows: dict[Enum, list[str]] = {}
        for trigger, after in ways.items():
            arrows.setdefault(after, []).append(trigger.value)
        lines += [f"    {state.value} --> {after.value}: {', '.join(t)}" for after, t in arrows.items()]
        if not ways:
            lines.append(f"    {state.value} --> [*]")
    return "\n".join([*lines, "```"])


def transitions(table: Table) -> str:
    """All of a table; a dash is refused and changes nothing."""
    triggers = list(dict.fromkeys(trigger for ways in table.values() for trigger in ways))
    states_ = list(table)
    lines = [f"| | {' | '.join(state.value for state in states_)} |", "|---" * (len(states_) + 1) + "|"]
    for trigger in triggers:
        cells = [table[state].get(trigger) for state in states_]
        shown = " | ".join(after.value if after else "-" for after in cells)
        lines.append(f"| {trigger.value} | {shown} |")
    return "\n".join(lines)


def record_table() -> str:
    """What the log holds."""
    lines = ["| kind | record | appended | meaning |", "|---|---|---|---|"]
    for type_ in get_args(records.Record):
        name = type_.__name__.removesuffix("Record").upper()
        how = "forced" if type_ in FORCED else "written" if type_ in WRITTEN else "forced, at a start"
        lines.append(f"| {Kind[name].value} | {name} | {how} | {_first_line(type_)} |")
    return "\n".join(lines)


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def reconcile_rules() -> str:
    """The rules as the module states them, then what people are told."""
    rules = (reconcile.__doc__ or "").split("\n\n")[2]
    lines = ["```", rules, "```", "", "| reason | what people are told |", "|---|---|"]
    lines += [f"| {reason.name} | {reason.value} |" for reason in reconcile.PlanReason]
    return "\n".join(lines)


def failpoints() -> list[str]:
    """The places of all effects, without before_ and after_."""

    def bare(type_: type) -> object:
        return object.__new__(type_)

    samples: list[effects.Effect] = [effects.Write(bare(type_), False) for type_ in WRITTEN]  # type: ignore[arg-type]
    samples += [effects.Force(bare(type_), 0) for type_ in FORCED]  # type: ignore[arg-type]
    samples += [effects.Send("", "", bare(type_)) for type_ in get_args(effects.Command)]  # type: ignore[arg-type]
    samples += [effects.Reply(0, bare(type_)) for type_ in get_args(effects.Answer)]  # type: ignore[arg-type]
    others = set(get_args(effects.Effect)) - {effects.Write, effects.Force, effects.Send, effects.Reply}
    return [place(sample) for sample in samples] + sorted(place(bare(type_)) for type_ in others)  # type: ignore[arg-type]


def input_places() -> list[str]:
    """The places of all inputs."""
    names = [type_.__name__ for type_ in get_args(inputs.Input)]
    return ["input_" + re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in names]


def places() -> str:
    """All failpoints."""
    pairs = ", ".join(f"`{name}`" for name in (*failpoints(), *OTHER_PAIRS))
    single = ", ".join(f"`{name}`" for name in input_places())
    return f"Pairs `before_NAME` and `after_NAME`, NAME being one of: {pairs}.\n\nSingle: {single}."


PARTS: dict[str, Callable[[], str]] = {
    "transaction diagram": lambda: diagram(states.TRANSITIONS, states.State.ACTIVE),
    "transaction table": lambda: transitions(states.TRANSITIONS),
    "branch diagram": lambda: diagram(branch.TRANSITIONS, branch.BranchState.NON_EXISTENT),
    "participant diagram": lambda: diagram(
        states.PARTICIPANT_TRANSITIONS, states.ParticipantState.UNREACHABLE
    ),
    "participant table": lambda: transitions(states.PARTICIPANT_TRANSITIONS),
    "records": record_table,
    "reconcile": reconcile_rules,
    "failpoints": places,
}


def draw(page: str) -> str:
    """The page with all its parts drawn anew.

    Raises:
        KeyError: the page names a part that nobody draws.
    """

    def part(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n{PARTS[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- generated: ([\w ]+) -->\n.*?<!-- end -->", part, page, flags=re.DOTALL)


def main(arguments: list[str]) -> int:
    """Rewrite or check; the exit status."""
    page = PAGE.read_text(encoding="utf-8")
    drawn = draw(page)
    if arguments == ["--check"]:
        return int(drawn != page)
    PAGE.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
