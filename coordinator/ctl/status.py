"""`coordctl status`: one look that says whether anybody has to get up."""

from __future__ import annotations

import click

from coordinator.ctl import documents
from coordinator.ctl.client import Client
from coordinator.ctl.errors import ExitCode
from coordinator.ctl.log import fetch_log_status
from coordinator.ctl.options import Settings, output_option, watch_option
from coordinator.ctl.output import Screen, View, present
from coordinator.ctl.participants import draw_participants, fetch_participants, on_hold
from coordinator.ctl.transactions import fetch_list

_MAX_HEURISTICS = 10_000
_SHOWN_HEURISTICS = 10


@click.command()
@click.option("--check", is_flag=True, help="Exit code 4 if anything needs attention.")
@watch_option
@output_option
@click.pass_obj
def status(settings: Settings, check: bool, watch_seconds: float | None, form: str) -> int:
    """Is the coordinator well, and does anything need attention?

    Attention need: a coordinator that is not ready, a log without room, heuristic outcomes that nobody has
    forgotten yet, a participant that is not UP, blocked transactions, and orphan branches.
    """
    if check and watch_seconds is not None:
        raise click.UsageError("--check does not go with --watch")

    def fetch() -> View:
        with Client(settings) as client:
            health = client.health()
            log = fetch_log_status(client)
            participants = fetch_participants(client)
            heuristics = _fetch_heuristics(client)
        return _view(settings.address, health, log, participants, heuristics)

    view = present(fetch, form, watch_seconds)
    return ExitCode.IN_DOUBT if check and view.document["problems"] else ExitCode.OK


def _fetch_heuristics(client: Client) -> list[documents.Document]:
    """The transactions with a heuristic outcome that no operator has forgotten; the newest first."""
    from coordinator.v1 import coordinator_pb2

    request = coordinator_pb2.ListRequest(states=[coordinator_pb2.STATE_HEURISTIC])
    found = fetch_list(client, request, _MAX_HEURISTICS)
    return [documents.transaction(message) for message in found if not message.forgotten]


def problems(
    log: documents.Document,
    health: str,
    participants: list[documents.Document],
    heuristics: list[documents.Document],
) -> list[str]:
    """What needs attention, most urgent first; one line each."""
    found = []
    if not log["ready"] or health == "NOT_SERVING":
        found.append(f"the coordinator is not ready: {log['not_ready_reason'] or f'its health is {health}'}")
    if not log["room"]:
        found.append("the log has no room: new transactions are refused")
    for row in heuristics[:_SHOWN_HEURISTICS]:
        found.append(f"heuristic outcome {row['outcome']}: {row['gtrid']} (coordctl show {row['gtrid']})")
    if len(heuristics) > _SHOWN_HEURISTICS:
        more = len(heuristics) - _SHOWN_HEURISTICS
        found.append(f"{more} more heuristic outcomes (coordctl list --state HEURISTIC)")
    for row in participants:
        if row["state"] != "UP":
            error = f": {row['last_error']}" if row["last_error"] else ""
            found.append(f"participant {row['participant']} is {row['state']}{error}")
    if on_hold(participants):
        found.append(on_hold(participants))
    if log["blocked_transactions"]:
        found.append(f"blocked transactions: {log['blocked_transactions']} (coordctl list --in-doubt)")
    orphans = {row["participant"]: row["orphans"] for row in participants if row["orphans"]}
    for name, count in orphans.items():
        found.append(f"orphan branches at {name}: {count} (coordctl recover --dry-run)")
    return found


def _view(
    address: str,
    health: str,
    log: documents.Document,
    rows: list[documents.Document],
    heuristics: list[documents.Document],
) -> View:
    attention = problems(log, health, rows, heuristics)
    document: dict[str, object] = {
        "address": address,
        "health": health,
        "ready": log["ready"],
        "not_ready_reason": log["not_ready_reason"],
        "problems": attention,
        "active_transactions": log["active_transactions"],
        "blocked_transactions": log["blocked_transactions"],
        "heuristic_transactions": len(heuristics),
        "heuristic": [{"gtrid": row["gtrid"], "outcome": row["outcome"]} for row in heuristics],
        "in_doubt_branches": sum(row["in_doubt"] for row in rows),
        "blocked_sessions": sum(row["blocked_sessions"] for row in rows),
        "log": log,
        "participants": rows,
    }

    def draw(screen: Screen) -> None:
        screen.fields(
            [
                ("coordinator", f"{log['coordinator_id']} at {address}, version {log['version']}"),
                ("health", health),
                ("ready", "yes" if log["ready"] else f"NO: {log['not_ready_reason'] or 'no reason given'}"),
                ("epoch", str(log["epoch"])),
                (
                    "transactions",
                    f"{log['active_transactions']} active, {log['blocked_transactions']} blocked, "
                    f"{len(heuristics)} heuristic",
                ),
                (
                    "branches",
                    f"{document['in_doubt_branches']} in doubt; {document['blocked_sessions']} sessions wait",
                ),
                (
                    "log",
                    f"{documents.bytes_text(log['bytes'])}, {log['segments']} segments, {log['directory']}",
                ),
            ]
        )
        screen.line()
        draw_participants(screen, rows)
        screen.line()
        for problem in attention:
            screen.line(f"! {problem}", style="bold red")
        if not attention:
            screen.line("nothing needs attention", style="green")

    return View(document, draw)
