"""`coordctl recover --derive`: outcomes without the log: a plan with evidence, confirmed, then applied."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coordinator.ctl.documents import Document
from coordinator.ctl.errors import CtlError, ExitCode
from coordinator.ctl.identifiers import parse
from coordinator.ctl.options import confirm
from coordinator.ctl.output import Screen, View, emit, note, screen

if TYPE_CHECKING:
    from coordinator.core.derive import Presumption
    from coordinator.derive import Plan

_COST = (
    "What only the lost log knew is gone: idempotency keys of committed transactions (a repeated request "
    "would do its work again) and heuristic outcomes that nobody had forgotten."
)


def run(
    config_path: Path,
    presume: tuple[str, ...],
    apply: bool,
    overthrow: bool,
    yes: bool,
    fingerprint: str,
    form: str,
) -> None:
    """Print the plan; with `apply` carry it out and print what became of it."""
    from coordinator.takeover import derive

    presumption = _presumption(presume)

    def ask(plan: Plan) -> None:
        view = plan_view(plan, applied=False, asking=True)
        if form == "table":
            view.draw(screen())
        if fingerprint and fingerprint != view.document["fingerprint"]:
            raise CtlError(
                "PLAN_CHANGED",
                f"the plan's fingerprint is {view.document['fingerprint']} now; look at it and confirm that",
                ExitCode.REFUSED,
            )
        warning = "Overthrow the coordinator that runs, and carry" if plan.attached else "Carry"
        question = f"{warning} out plan {view.document['fingerprint']}? The lost log is of no use afterwards."
        confirm(question, yes)

    plan = derive(config_path, presumption, ask if apply else None, overthrow=overthrow)
    view = plan_view(plan, applied=apply)
    emit(view, form)
    if plan.attached and not apply and form != "table":
        note(_attached(view.document))
    left = sorted({gtrid for (gtrid, _), became in plan.result.items() if became == "still prepared"})
    if left:
        raise CtlError(
            "RECOVERY_INCOMPLETE",
            f"{len(left)} transactions still have prepared branches, {left[0]} for one; start the "
            "coordinator, which goes on",
            ExitCode.UNAVAILABLE,
        )


def _presumption(given: tuple[str, ...]) -> Presumption:
    """`rollback`, `commit` and GTRID=rollback|commit."""
    from coordinator.core.derive import Presumption
    from dtp import Decision

    words = {"rollback": Decision.ROLLBACK, "commit": Decision.COMMIT}
    general = None
    single = {}
    for text in given:
        name, separator, word = text.rpartition("=")
        if word not in words:
            raise click.UsageError(f"--presume {text!r}: give rollback, commit, or GTRID=rollback|commit")
        if separator:
            single[str(parse(name)[0])] = words[word]
        elif general not in (None, words[word]):
            raise click.UsageError("--presume rollback and --presume commit contradict each other")
        else:
            general = words[word]
    return Presumption(general, single)


def document_of(plan: Plan, applied: bool) -> Document:
    """The plan with its evidence; keys are only ever added."""
    document: Document = {
        "applied": applied,
        "coordinator_id": plan.coordinator_id,
        "directory": plan.directory,
        "log_identity": plan.identity.hex() or None,
        "log_is_remembered": plan.is_ours,
        "derivation_begun": plan.deriving,
        "log_repaired": plan.repaired,
        "epoch": plan.epoch,
        "participants": [_participant(plan, name) for name in plan.told],
        "transactions": [_transaction(plan, index) for index in range(len(plan.judged))],
    }
    document["heuristic"] = [{"gtrid": gtrid, "outcome": outcome} for gtrid, outcome in plan.heuristic]
    return {"fingerprint": fingerprint_of(document), **document}


def fingerprint_of(document: Document) -> str:
    """Names a plan: changes with what the participants remember, with the evidence, and with the actions."""
    memories = [{**row, "why": None, "attached_epoch": None} for row in document["participants"]]
    transactions = [
        {**row, "branches": [{**branch, "result": None} for branch in row["branches"]]}
        for row in document["transactions"]
    ]
    content = json.dumps([document["coordinator_id"], memories, transactions], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _participant(plan: Plan, name: str) -> Document:
    told = plan.told[name]
    memory = told.memory
    return {
        "participant": name,
        "number": plan.numbers[name],
        "witness": told.witness,
        "remembered_epoch": memory.epoch if memory else None,
        "remembered_log_identity": memory.log_identity.hex() if memory else None,
        "why": plan.why[name] or None,
        "attached_epoch": told.attached or None,
    }


def _transaction(plan: Plan, index: int) -> Document:
    from coordinator.takeover import involved

    case, judged = plan.judged[index]
    names = plan.names
    shown = involved(case) or set(case.sights)
    branches = []
    for number in sorted(shown):
        sight = case.sights.get(number)
        name = names.get(number)
        branches.append(
            {
                "participant": name,
                "number": number,
                "evidence": sight.seen.name if sight else "NOT_CONFIGURED",
                "names": sorted(sight.named) if sight else [],
                "result": plan.result.get((str(case.id), name or "")),
            }
        )
    return {
        "gtrid": str(case.id),
        "action": judged.action.value,
        "reason": judged.basis.name,
        "explanation": judged.basis.value,
        "presumed": judged.presumed,
        "may_presume": sorted(decision.value.lower() for decision in judged.safe),
        "refused": judged.refused.value.lower() if judged.refused else None,
        "missing": list(judged.missing),
        "branches": branches,
    }


def plan_view(plan: Plan, applied: bool, asking: bool = False) -> View:
    """The plan, or what became of it; `asking`: its question follows."""
    document = document_of(plan, applied)
    return View(document, lambda screen: _draw(screen, document, asking))


def _draw(screen: Screen, document: Document, asking: bool) -> None:
    screen.table(
        ["PARTICIPANT", "NUMBER", "WITNESS", "REMEMBERS", "WHY THIS LOG IS NOT THE ONE"],
        [
            [
                row["participant"],
                str(row["number"]),
                "yes" if row["witness"] else "no",
                f"epoch {row['remembered_epoch']} of log {row['remembered_log_identity'][:8]}"
                if row["remembered_epoch"]
                else "nothing",
                row["why"] or "",
            ]
            for row in document["participants"]
        ],
        empty="no participants",
    )
    attached = _attached(document)
    if attached:
        screen.line(f"! {attached}", style="bold red")
    if document["derivation_begun"]:
        screen.line("a derivation was begun in this log and has not ended")
    if document["log_repaired"]:
        screen.line("this log was repaired with loss")
    screen.line()
    screen.table(
        ["GTRID", "ACTION", "REASON", "MAY PRESUME", "PARTICIPANT", "EVIDENCE", "ROW NAMES", "RESULT"],
        [
            [
                row["gtrid"],
                f"{row['action']} (presumed)" if row["presumed"] else row["action"],
                row["reason"],
                ", ".join(row["may_presume"]) if row["action"] == "open" else "",
                branch["participant"] or f"number {branch['number']}",
                branch["evidence"],
                ", ".join(map(str, branch["names"])),
                branch["result"] or "",
            ]
            for row in document["transactions"]
            for branch in row["branches"]
        ],
        empty="no transaction is open anywhere",
    )
    screen.line()
    for line in _explanations(document["transactions"]):
        screen.line(line)
    for row in document["heuristic"]:
        screen.line(f"! heuristic outcome {row['outcome']}: {row['gtrid']} (coordctl show)", style="bold red")
    counts = Counter(row["action"] for row in document["transactions"])
    lead = "carried out" if document["applied"] else "plan, nothing was changed"
    done = ", ".join(f"{counts[action]} {action}" for action in ("commit", "rollback", "leave", "open"))
    screen.line(f"{lead}: {done}; epoch {document['epoch']}, fingerprint {document['fingerprint']}")
    screen.line(_COST)
    if not document["applied"] and not asking:
        screen.line(_what_next(counts["open"]))


def _what_next(open_: int) -> str:
    """What --apply would say to this plan."""
    if open_:
        return f"--apply refuses it: {open_} open; give --presume for what MAY PRESUME allows."
    return "--apply asks, then carries it out; the coordinator must be stopped."


def _attached(document: Document) -> str:
    """What it means that a coordinator runs; "" where none does."""
    from coordinator.derive import describe_attached

    attached = {
        row["participant"]: row["attached_epoch"] for row in document["participants"] if row["attached_epoch"]
    }
    if not attached:
        return ""
    if document["applied"]:
        return f"overthrown: the coordinator that was attached at {', '.join(attached)}; stop it"
    return describe_attached(document["coordinator_id"], attached)


def _explanations(rows: list[dict[str, Any]]) -> list[str]:
    """Each reason once, and what is missing where."""
    reasons = {row["reason"]: row["explanation"] for row in rows}
    found = [f"{reason}: {text}" for reason, text in sorted(reasons.items())]
    for row in rows:
        if row["missing"] and row["action"] in ("commit", "open"):
            numbers = ", ".join(map(str, row["missing"]))
            found.append(
                f"! {row['gtrid']}: no branch and no row at number {numbers}: it only read, or somebody "
                "rolled it back there; compare the data"
            )
        working = [str(branch["number"]) for branch in row["branches"] if branch["evidence"] == "WORKING"]
        if working:
            found.append(
                f"! {row['gtrid']}: at number {', '.join(working)} a session of the agent holds it, and XA "
                "RECOVER does not list it: work that goes on, or somebody ended the branch by hand; --apply "
                "ends the session and looks again"
            )
    return found
