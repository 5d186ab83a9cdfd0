"""`coordctl list`, `show` and `watch`: transactions, from a running coordinator or from a log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coordinator.ctl import documents, logfiles, timeline
from coordinator.ctl.client import Client
from coordinator.ctl.errors import ExitCode
from coordinator.ctl.identifiers import gtrid_argument
from coordinator.ctl.options import (
    Settings,
    config_option,
    data_dir_option,
    duration,
    offline_option,
    output_option,
    watch_option,
)
from coordinator.ctl.output import Screen, View, emit, note, present, screen, to_json
from coordinator.ctl.participants import fetch_participants, on_hold

if TYPE_CHECKING:
    from coordinator.v1 import coordinator_pb2

STATES = ("ACTIVE", "PREPARING", "COMMITTING", "ROLLING_BACK", "COMMITTED", "ROLLED_BACK", "HEURISTIC")
_PAGE_SIZE = 200


@click.command("list")
@click.option("--in-doubt", is_flag=True, help="Only those with a branch that is or may be prepared.")
@click.option(
    "--older-than", callback=duration, metavar="DURATION", help="Only those at least this old: 30s, 5m."
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(STATES, case_sensitive=False),
    help="Only these states; can be repeated.",
)
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most this many."
)
@click.option("--check", is_flag=True, help="Exit code 4 if anything is listed (with --in-doubt).")
@offline_option
@config_option
@data_dir_option
@watch_option
@output_option
@click.pass_obj
def list_transactions(
    settings: Settings,
    in_doubt: bool,
    older_than: float | None,
    states: tuple[str, ...],
    limit: int,
    check: bool,
    offline: bool,
    config_path: Path | None,
    data_dir: Path | None,
    watch_seconds: float | None,
    form: str,
) -> int:
    """List transactions, newest first.

    Without options: those that have not ended, and the last ones that have. With --offline a stopped
    coordinator's log is read instead; it knows only transactions that have reached phase 1.
    """
    _check_offline(offline, config_path, data_dir)
    if check and (not in_doubt or watch_seconds is not None):
        raise click.UsageError("--check goes with --in-doubt and not with --watch")

    def fetch() -> View:
        if offline:
            found = _select_offline(config_path, data_dir, in_doubt, older_than, states)
        else:
            found = _list_online(settings, in_doubt, older_than, states, limit + 1)
        rows = [documents.transaction(message) for message in found[:limit]]
        return _list_view(rows, truncated=len(found) > limit)

    view = present(fetch, form, watch_seconds)
    if view.document["truncated"]:
        note(f"there are more than these {limit}; give --limit")
    return ExitCode.IN_DOUBT if check and view.document["transactions"] else ExitCode.OK


@click.command()
@click.argument("gtrid", callback=gtrid_argument)
@offline_option
@config_option
@data_dir_option
@output_option
@click.pass_obj
def show(
    settings: Settings, gtrid: str, offline: bool, config_path: Path | None, data_dir: Path | None, form: str
) -> None:
    """Show one transaction with its timeline.

    A running coordinator also asks the participants' witness rows where its log has dropped the transaction;
    with --offline only the log is read.
    """
    _check_offline(offline, config_path, data_dir)
    if offline:
        emit(
            transaction_view(documents.transaction(logfiles.find(gtrid, config_path, data_dir)), "log"), form
        )
        return
    from coordinator.v1 import coordinator_pb2

    with Client(settings, f"coordctl show {gtrid} --offline --config FILE") as client:
        response = client.call(client.coordinator.Get, coordinator_pb2.GetRequest(gtrid=gtrid))
    emit(transaction_view(documents.transaction(response.transaction), response.evidence), form)


@click.command()
@click.argument("gtrid", callback=gtrid_argument)
@output_option
@click.pass_obj
def watch(settings: Settings, gtrid: str, form: str) -> None:
    """Follow one transaction until it has ended.

    One line for every change; with -o json one document a line.
    """
    from coordinator.v1 import coordinator_pb2

    with Client(settings, f"coordctl show {gtrid} --offline --config FILE") as client:
        for response in client.stream(client.coordinator.Watch, coordinator_pb2.WatchRequest(gtrid=gtrid)):
            document = documents.transaction(response.transaction)
            if form == "json":
                sys.stdout.write(f"{to_json({'transaction': document}, indent=None)}\n")
            else:
                screen().line(_change_line(document))
            sys.stdout.flush()


def _check_offline(given: bool, config_path: Path | None, data_dir: Path | None) -> None:
    logfiles.require(given, config=config_path, data_dir=data_dir)


def _select_offline(
    config_path: Path | None,
    data_dir: Path | None,
    in_doubt: bool,
    older_than: float | None,
    states: tuple[str, ...],
) -> list[coordinator_pb2.Transaction]:
    return logfiles.select(logfiles.transactions(config_path, data_dir), in_doubt, older_than, states)


def _list_online(
    settings: Settings, in_doubt: bool, older_than: float | None, states: tuple[str, ...], limit: int
) -> list[coordinator_pb2.Transaction]:
    """Up to `limit` transactions."""
    from coordinator.v1 import coordinator_pb2

    request = coordinator_pb2.ListRequest(
        in_doubt=in_doubt, states=[coordinator_pb2.State.Value(f"STATE_{state}") for state in states]
    )
    if older_than is not None:
        whole = int(older_than)
        request.older_than.seconds, request.older_than.nanos = whole, round((older_than - whole) * 1e9)
    with Client(settings) as client:
        held = on_hold(fetch_participants(client))
        found = fetch_list(client, request, limit)
    if held:
        note(held)  # what is prepared there is not among the transactions of this log
    return found


def fetch_list(
    client: Client, request: coordinator_pb2.ListRequest, limit: int
) -> list[coordinator_pb2.Transaction]:
    """Up to `limit` transactions of what `request` selects, page by page."""
    found: list[coordinator_pb2.Transaction] = []
    while True:
        request.page_size = min(_PAGE_SIZE, limit - len(found))
        response = client.call(client.coordinator.List, request)
        found += response.transactions
        if len(found) >= limit or not response.next_page_token:
            return found[:limit]
        request.page_token = response.next_page_token


def _list_view(rows: list[documents.Document], truncated: bool) -> View:
    def draw(screen: Screen) -> None:
        screen.table(
            [
                *("GTRID", "STATE", "OUTCOME", "AGE", "ATTENTION", "BRANCHES", "WAITS FOR", "LAST ERROR"),
                "ROLLED BACK FOR",
            ],
            [
                [
                    row["gtrid"],
                    row["state"],
                    row["outcome"],
                    documents.duration_text(row["age_seconds"]),
                    attention(row),
                    ", ".join(f"{branch['participant']} {branch['state']}" for branch in row["branches"]),
                    _waits_text(row),
                    _last_error(row),
                    str(row["rejection"]["reason"]) if row["rejection"] else "",
                ]
                for row in rows
            ],
            empty="no transactions",
        )

    return View({"transactions": rows, "truncated": truncated}, draw)


def attention(row: documents.Document) -> str:
    """BLOCKED, IN DOUBT, HEURISTIC, forgotten or nothing."""
    if row["forgotten"]:
        return "forgotten"
    if row["state"] == "HEURISTIC":
        return "HEURISTIC"
    if row["blocked"]:
        return "BLOCKED"
    return "IN DOUBT" if row["in_doubt"] else ""


def _last_error(row: documents.Document) -> str:
    for branch in row["branches"]:
        if branch["last_error"]:
            return f"{branch['participant']}: {branch['last_error']}"
    return ""


def _waits_text(row: documents.Document) -> str:
    """The first wait of each branch."""
    waiting = (branch for branch in row["branches"] if branch["waits_for"])
    return ", ".join(f"{b['participant']}: {documents.blocker_text(b['waits_for'][0])}" for b in waiting)


def transaction_view(row: documents.Document, evidence: str) -> View:
    """One transaction in full."""

    def draw(screen: Screen) -> None:
        screen.fields(
            [
                ("gtrid", row["gtrid"]),
                ("state", row["state"]),
                ("outcome", row["outcome"]),
                ("begun", row["begun_at"] or ""),
                (
                    "age",
                    documents.duration_text(row["age_seconds"]) if row["age_seconds"] is not None else "",
                ),
                ("attention", _attention_text(row)),
                ("rolled back for", _rejection_text(row["rejection"])),
                ("evidence", evidence),
                ("recovered", "read from the log after a restart" if row["recovered"] else ""),
            ]
        )
        screen.line()
        screen.table(
            ["PARTICIPANT", "NUMBER", "STATE", "OUTCOME", "ATTEMPTS", "WAITS FOR", "LAST ERROR"],
            [
                [
                    branch["participant"],
                    str(branch["number"]),
                    branch["state"],
                    branch["outcome"],
                    str(branch["attempts"]),
                    ", ".join(map(documents.blocker_text, branch["waits_for"])),
                    branch["last_error"] or "",
                ]
                for branch in row["branches"]
            ],
            empty="no branches",
        )
        if row["timeline"]:
            screen.line()
            lanes = [branch["participant"] for branch in row["branches"]]
            for line in timeline.draw(row["timeline"], lanes, screen.width, screen.unicode):
                screen.line(line)

    return View({"transaction": row, "evidence": evidence}, draw)


def _attention_text(row: documents.Document) -> str:
    """The same with what to do about it."""
    if row["forgotten"]:
        return "forgotten: an operator has dealt with the heuristic outcome"
    if row["state"] == "HEURISTIC":
        return f"HEURISTIC: make the databases agree, then `coordctl forget {row['gtrid']}`"
    return attention(row)


def _rejection_text(rejection: dict[str, Any] | None) -> str:
    if rejection is None:
        return ""
    where = f" at {rejection['participant']}" if rejection["participant"] else ""
    number = f" (error {rejection['errno']})" if rejection["errno"] else ""
    return f"{rejection['reason']}{where}{number}: {rejection['message']}"


def _change_line(row: documents.Document) -> str:
    branches = ", ".join(
        f"{branch['participant']} {branch['state']}"
        + (f" after {branch['attempts']} attempts" if branch["attempts"] > 1 else "")
        for branch in row["branches"]
    )
    parts = [
        f"{documents.duration_text(row['age_seconds']):>8}",
        f"{row['state']:<12}",
        f"{row['outcome']:<11}",
    ]
    return "  ".join([*parts, *([attention(row)] if attention(row) else []), branches]).rstrip()
