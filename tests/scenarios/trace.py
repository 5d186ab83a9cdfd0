"""Effects, records and plans as one line each: what a scenario expects.

A transaction is shown as EPOCH.COUNTER, a participant of a record by its number.
"""

from __future__ import annotations

from typing import Any

from coordinator.core import effects, records
from coordinator.core.reconcile import PlanItem
from dtp import Gtrid, Xid


def short(gtrid: str | Gtrid) -> str:
    """`1.2` for the second transaction of epoch 1."""
    id_ = Gtrid.parse(gtrid) if isinstance(gtrid, str) else gtrid
    return f"{id_.epoch}.{id_.counter}"


def effect(what: effects.Effect) -> str:
    """One effect."""
    match what:
        case effects.Write(inner, kick):
            return f"  write {record(inner)}" + ("" if kick else ", lazily")
        case effects.Force(inner, number):
            return f"  force {record(inner)} -> durable {number}"
        case effects.Send(participant, gtrid, inner):
            return f"  send {participant} {short(gtrid)} {_command(inner)}"
        case effects.Reply(ticket, inner):
            return f"  reply #{ticket} {_answer(inner)}"
        case effects.Changed(gtrid, before, state, _):
            return f"  {short(gtrid)}: {before.value if before else 'begins'} -> {state.value}"
        case effects.Alert(kind, message, gtrid, participant):
            about = " ".join(x for x in (short(gtrid) if gtrid else "", participant) if x)
            return f"  alert {kind.value} {about}: {message}"
        case effects.Fence(participant, number, link):
            return f"  fence {participant} as {number}, link {link}"
        case effects.Attach(participant, link):
            return f"  attach {participant}, link {link}"
        case effects.Scan(participant, link, fenced):
            return f"  scan {participant}, link {link}" + ("" if fenced else ", to look only")
    raise AssertionError(what)


def _command(command: effects.Command) -> str:
    match command:
        case effects.Run(branch, participants, remaining, one_phase):
            how = "one phase" if one_phase else f"of {_numbers(participants)}"
            return f"Run {branch.payload} {how}, {remaining:g} s left"
        case effects.Prepare(participants):
            return f"Prepare {_numbers(participants)}"
        case effects.Commit(one_phase):
            return "Commit one phase" if one_phase else "Commit"
        case effects.Enlisted(accepted, reason, remaining):
            return f"Enlisted, {remaining:g} s left" if accepted else f"Enlisted: refused {reason}"
    return type(command).__name__


def _answer(answer: effects.Answer) -> str:
    match answer:
        case effects.Begun(gtrid, timeout, already):
            return f"begun {short(gtrid)}" + (", committed already" if already else f", {timeout:g} s")
        case effects.Decided(gtrid, outcome, completed, rejection, results, replayed):
            text = f"{short(gtrid)} {outcome.value}" + ("" if completed else ", not completed")
            text += " (replayed)" if replayed else ""
            text += f" because {rejection.reason.value}: {rejection.message}" if rejection else ""
            return text + (f" results {dict(results)}" if any(r for _, r in results) else "")
        case effects.Accepted(gtrid):
            return f"accepted {short(gtrid)}"
        case effects.Refused(reason, message):
            return f"refused {reason.value}: {message}"
    raise AssertionError(answer)


def record(what: records.Record) -> str:
    """One record."""
    match what:
        case records.EpochRecord():
            return f"EPOCH {what.epoch}"
        case records.ParticipantRecord():
            return f"PARTICIPANT {what.name} {what.number}"
        case records.PrepareRecord():
            return f"PREPARE {short(what.id)} {_numbers(what.participants)}{_key(what)}"
        case records.CommitRecord():
            return f"COMMIT {short(what.id)} {_numbers(what.participants)}{_key(what)}"
        case records.EndRecord():
            how = "committed" if what.committed else "rolled back"
            return f"END {short(what.id)} {how}{_key(what)}"
        case records.HeuristicRecord():
            ends = ", ".join(f"{number} {outcome.value}" for number, outcome in what.branches)
            return f"HEURISTIC {short(what.id)} decided {what.decision.value}: {ends}"
    return f"FORGET {short(what.id)}"


def _key(what: Any) -> str:
    return f" key {what.idempotency_key!r}" if what.idempotency_key else ""


def _numbers(participants: tuple[int, ...]) -> str:
    return "+".join(map(str, participants))


def plan_item(item: PlanItem) -> str:
    """One line of a plan."""
    return f"  {item.action.value} {xid(item.xid)}: {item.reason.name}, {item.reason.value}"


def xid(what: Xid) -> str:
    """`1.2@1` for our branch at participant 1, else all of it."""
    id_ = what.ours()
    if id_ is None or id_.coordinator_id != "test":
        return str(what)
    return f"{short(id_)}@{what.number}"
