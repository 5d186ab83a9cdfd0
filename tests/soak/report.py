"""The report: Markdown with every number that the verdict rests on. It names no machine and no path."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.soak import latency
from tests.soak.calm import PURGED_AFTER, WITNESS_SLACK
from tests.soak.facts import Facts
from tests.soak.flat import LIMITS, LIVES, LOG_BYTES, SPAN, WARM, growths
from tests.soak.latency import Latencies, Recovery
from tests.soak.robust import median, quantile
from tests.soak.soak import FAULTS_BETWEEN_CALMS, Plan
from tests.soak.system import ACCOUNTS, CLIENTS

HOW = {
    "I1": "the oracle sums all accounts, and each server's against its transfers, at each checkpoint",
    "I2": "the oracle looks for every transfer on both servers, at each checkpoint",
    "I3": "the oracle compares what clients were told with the rows, at each checkpoint",
    "I4": "at each checkpoint, within 30 s: XA RECOVER, every row lockable, no transaction open",
    "I5": "Get of up to 100 told transactions a checkpoint, after all the restarts; `wal verify` of a copy",
    "I6": "each start takes a higher epoch; epochs of the log's segments; fences, read every second",
    "I7": "not provoked here: no flush fails in a soak. See tests/wal",
    "I8": "slopes of memory, descriptors and threads; bytes of the log; witness and fence rows (rules below)",
    "I9": "slots of 2 s from 10 s after a fault until the next (rule below)",
    "liveness": "after each fault everything is up again within 60 s",
    "processes": "nobody ends unasked, orderly ends are 0, no traceback in a log",
    "harness": "errors of the soak itself",
}


def write(runs: Sequence[Facts], plan: Plan, path: Path, plot: str) -> None:
    """Write it. `plot`: the SVG's name beside it."""
    violations = sum(facts.checks.count for facts in runs)
    verdict = "**No violation.**" if not violations else f"**{violations} violations.**"
    parts = [
        f"# Soak\n\n{verdict} Made by `tests/soak.sh`; `tests/soak/` says what is done and how it is judged."
    ]
    parts.append(configuration(runs, plan))
    parts.append(f"![throughput, with the faults marked]({plot})")
    parts.append("## Transactions\n\n" + transactions(runs))
    parts.append("## Invariants\n\n" + invariants(runs))
    parts += [_faults(facts) for facts in runs]
    parts.append(_rest(runs))
    parts.append(_flat(runs))
    if violations:
        parts.append("## Violations\n\n" + "\n".join(_violations(runs)))
    path.write_text("\n\n".join(parts) + "\n")


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def configuration(runs: Sequence[Facts], plan: Plan) -> str:
    """What ran, where and for how long."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    rows: list[tuple[str, object]] = [
        ("date", datetime.fromtimestamp(runs[0].began, UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("machine", f"{os.cpu_count()} cores, {memory:.0f} GiB of memory"),
        ("Python", platform.python_version()),
        ("engines", ", ".join(f"{facts.engine} {facts.version}" for facts in runs)),
        ("at the same time", "yes, with half of the load each" if len(runs) > 1 else "one engine"),
        ("an engine", f"2 servers, 2 agents, coordinator, {CLIENTS} clients of {plan.threads} threads"),
        ("accounts", f"{ACCOUNTS} on each server"),
        ("asked for", f"{plan.seconds / 60:g} minutes, a fault every {plan.every:g} s, seed {plan.seed}"),
        ("ran", ", ".join(f"{facts.engine} {facts.ended - facts.began:.0f} s" for facts in runs)),
        ("undisturbed", f"the first {plan.head:.0f} s and the last {plan.tail:.0f} s"),
        ("checkpoints of calm", f"after every {FAULTS_BETWEEN_CALMS} faults, and at the end"),
    ]
    return table(("", ""), rows)


def outcomes(facts: Facts) -> Counter[str]:
    """What became of the transfers that clients asked for. The values add up to `facts.asked`."""
    found: Counter[str] = Counter()
    for item in facts.told:
        if item.intent != "none":  # its end was asked for
            failed = item.outcome == "ROLLED_BACK" and item.intent == "commit"
            found["failed" if failed else item.outcome] += 1
    found["never told"] = facts.asked - found.total()
    return found


def transactions(runs: Sequence[Facts]) -> str:
    """The table of outcomes."""
    names = ("COMMITTED", "ROLLED_BACK", "failed", "UNKNOWN", "never told")
    rows = []
    for facts in runs:
        found = outcomes(facts)
        others = found.total() - sum(found[name] for name in names)
        resolved = facts.found_in_the_end
        latencies = Latencies(facts)
        rows.append(
            [
                facts.engine,
                f"{facts.asked:,}",
                *(f"{found[name]:,}" for name in names),
                others,
                f"{resolved['COMMITTED']:,} / {resolved['ROLLED_BACK']:,}",
                f"{latencies.normal_rate:.1f}",
                f"{latencies.normal * 1000:.1f} ms",
            ]
        )
    head = ["engine", "asked to end", "told committed", "rolled back on purpose"]
    head += ["told rolled back for a fault", "told unknown", "client died"]
    head += ["told anything else", "of those not told, in the end committed / rolled back"]
    head += ["normal rate per second", "normal latency (median)"]
    text = table(head, rows)
    return text + (
        "\n\n*Told unknown* and *client died*: the client does not know the outcome; the servers agree on it"
        "\nin the end (I2). What failed before its end was asked for is not counted."
    )


def invariants(runs: Sequence[Facts]) -> str:
    """Checks and violations of each invariant."""
    head = ["", "how", *(f"{facts.engine}: checks / violations" for facts in runs)]
    rows = []
    for name, how in HOW.items():
        cells = []
        for facts in runs:
            number, found = facts.checks.numbers[name], len(facts.checks.violations.get(name, ()))
            nothing = "-" if name in ("I7", "harness") else "**not checked**"
            cells.append(f"{number:,} / {found}" if number or found else nothing)
        rows.append([name, how, *cells])
    return table(head, rows)


def _faults(facts: Facts) -> str:
    """Faults by kind."""
    found = latency.recoveries(facts)
    rows = [[kind, *_row(items)] for kind, items in latency.by_kind(found).items()]
    rows.append(["**all**", *_row(found)])
    head = ["fault", "count", "lasted, p50", "all up after its end, p50 / max"]
    head += ["longest without a commit, p50 / max"]
    head += ["normal again after its end, p50 / max", "not normal before the next", "slow slots"]
    notes = (
        "*Lasted*: until nothing was frozen or locked, the last process had been started again, and a dead\n"
        "server answered. *All up*: the coordinator has fenced and scanned every participant. *Normal\n"
        "again*: the first second with half of the normal throughput and a median latency below twice the\n"
        "normal."
    )
    return f"## Faults: {facts.engine}\n\n{table(head, rows)}\n\n{notes}"


def _row(items: Sequence[Recovery]) -> list[str]:
    lasted = [item.fault.ended - item.fault.began for item in items]
    up = [max(0.0, item.fault.up - item.fault.ended) for item in items]
    gaps = [item.unavailable for item in items]
    back = [item.back for item in items if item.back is not None]
    return [
        str(len(items)),
        f"{quantile(lasted, 0.5):.1f} s",
        f"{quantile(up, 0.5):.1f} / {max(up, default=0):.1f} s",
        f"{quantile(gaps, 0.5):.1f} / {max(gaps, default=0):.1f} s",
        f"{quantile(back, 0.5):.1f} / {max(back, default=0):.1f} s",
        str(len(items) - len(back)),
        f"{sum(item.slow for item in items)} of {sum(item.slots for item in items)}",
    ]


def _rest(runs: Sequence[Facts]) -> str:
    """What the checkpoints measured."""
    rows = []
    for facts in runs:
        calms = facts.calms
        if not calms:
            continue
        seconds = [calm.seconds_until_clean for calm in calms]
        fullest = max(calms, key=lambda calm: calm.witness_rows / max(1, calm.witness_allowed))
        rows.append(
            [
                facts.engine,
                len(calms),
                f"{median(seconds):.2f} / {max(seconds):.2f} s",
                f"{max(calm.log_bytes for calm in calms) / 2**20:.1f} MiB",
                f"{max(facts.log_bytes, default=0) / 2**20:.1f} MiB",
                f"{fullest.witness_rows:,} of {fullest.witness_allowed:,}",
                calms[-1].epoch,
            ]
        )
    head = ["engine", "checkpoints", "until all is at rest, p50 / max", "log at rest, max"]
    head += [f"log at any time, max (limit {LOG_BYTES / 2**20:g} MiB)"]
    head += ["witness rows of a server, of those allowed, worst", "last epoch"]
    note = (
        "*Allowed* are the witness rows of what was committed after the last time at which a coordinator\n"
        f"had lived long enough to have them purged ({PURGED_AFTER:g} s), and {WITNESS_SLACK} more."
    )
    return f"## At rest\n\n{table(head, rows)}\n\n{note}"


def _flat(runs: Sequence[Facts]) -> str:
    """I8's slopes, the worst of each kind."""
    rows = []
    for facts in runs:
        found = list(growths(facts.samples))
        for key in sorted({(item.process, item.measure, item.where) for item in found}):
            same = [item for item in found if (item.process, item.measure, item.where) == key]
            worst = max(same, key=lambda item: item.growth / item.limit)
            value = f"{worst.growth:+.1f} {worst.unit}"
            rows.append([facts.engine, *key, len(same), value, f"{worst.limit:.1f} {worst.unit}"])
    limits = ", ".join(limit.name for limit in LIMITS)
    rule = (
        f"Theil-Sen slopes of {limits}, sampled every 2 s. *In a life*: of each life of a process that goes\n"
        f"on for {SPAN:g} s or more after its first {WARM:g} s, by how much. *From life to life*: what it\n"
        "needs 10 to 20 s after its start, over the whole run. `tests/soak/flat.py` has the bounds of\n"
        "log, fence and witness rows."
    )
    head = ("engine", "process", "measure", "where", "slopes", "worst", "limit")
    slopes = table(head, rows) if rows else _no_slopes(runs)
    text = f"## I8: flat\n\n{rule}\n\n{slopes}\n\n{_most(runs)}\n\n"
    return text + f"## I9: the rule\n\n{latency.RULE}\n\n{_foreign(runs)}"


def _no_slopes(runs: Sequence[Facts]) -> str:
    """Why the table of slopes is empty, and what I8's checks are then."""
    samples = sum(len(facts.samples) for facts in runs)
    longest = max((sample.age for facts in runs for sample in facts.samples), default=0.0)
    return (
        f"**No slope was judged: the run was too short.** The longest life of a process had {longest:.0f} s, "
        f"where {WARM + SPAN:g} s are needed,\nand no process had {LIVES} lives of 10 s or more. I8's checks "
        f"are those of the bounds only: the {samples:,} samples\nbelow, the log's size, and the rows at rest."
    )


def _foreign(runs: Sequence[Facts]) -> str:
    """How busy others kept the machine: what the rule may have excused."""
    found = [load.foreign for facts in runs for load in facts.loads]
    return (
        f"Others kept {quantile(found, 0.5):.2f} of {runs[0].cores} cores busy in the middle, and "
        f"{quantile(found, 0.95):.2f} in the busiest twentieth of the time."
    )


def _most(runs: Sequence[Facts]) -> str:
    """The highest value of each measure at any time."""
    rows = []
    for facts in runs:
        for role in ("coordinator", "agent"):
            found = [sample for sample in facts.samples if sample.process.startswith(role)]
            cells = [max((limit.value(s) for s in found), default=0) / limit.scale for limit in LIMITS]
            units = [f"{cell:.0f} {limit.unit}" for cell, limit in zip(cells, LIMITS, strict=True)]
            rows.append([facts.engine, role, len(found), *units])
    limits = [f"{limit.most / limit.scale:g} {limit.unit}".strip() for limit in LIMITS]
    names = [f"{limit.name}, max (limit {most})" for limit, most in zip(LIMITS, limits, strict=True)]
    return table(["engine", "process", "samples", *names], rows)


def _violations(runs: Sequence[Facts]) -> list[str]:
    lines = []
    for facts in runs:
        for name, found in facts.checks.violations.items():
            for text in found[:50]:
                lines.append(f"- {facts.engine} {name}: {_one_line(text)}")
    return lines


def _one_line(text: str) -> str:
    """Without line breaks, and without the paths that tracebacks and logs are full of."""
    return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "", " ".join(text.split()))[:1000]
