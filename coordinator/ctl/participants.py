"""`coordctl participants`: what the coordinator knows of every participant, from its last scan."""

from __future__ import annotations

import click

from coordinator.ctl import documents
from coordinator.ctl.client import Client
from coordinator.ctl.options import Settings, output_option, watch_option
from coordinator.ctl.output import Screen, View, present


@click.command()
@watch_option
@output_option
@click.pass_obj
def participants(settings: Settings, watch_seconds: float | None, form: str) -> None:
    """List the participants and what their scans found.

    UNREACHABLE: its agent or server does not answer. FENCING, SCANNING: it is being recovered. UP: well.
    HOLD: its agent remembers a newer epoch or another log: this log was lost or restored, and nothing is
    rolled back there.
    """

    def fetch() -> View:
        with Client(settings) as client:
            rows = fetch_participants(client)
        return View({"participants": rows}, lambda screen: _draw(screen, rows))

    present(fetch, form, watch_seconds)


def on_hold(rows: list[documents.Document]) -> str:
    """One line about the participants on HOLD, "" where there is none."""
    held = [row["participant"] for row in rows if row["state"] == "HOLD"]
    if not held:
        return ""
    return (
        f"on HOLD: {', '.join(held)}; nothing is presumed while that lasts. Put the right log back or, if it "
        "is lost for good, see `coordctl recover --derive` (docs/operations.md#hold)"
    )


def _draw(screen: Screen, rows: list[documents.Document]) -> None:
    draw_participants(screen, rows)
    if on_hold(rows):
        screen.line()
        screen.line(f"! {on_hold(rows)}", style="bold red")


def fetch_participants(client: Client) -> list[documents.Document]:
    """All participants, as documents."""
    from coordinator.v1 import admin_pb2

    response = client.call(client.admin.Participants, admin_pb2.ParticipantsRequest())
    return [documents.participant(message) for message in response.participants]


def draw_participants(screen: Screen, rows: list[documents.Document]) -> None:
    """The table of participants."""
    screen.table(
        [
            "PARTICIPANT", "NUMBER", "STATE", "IN DOUBT", "ORPHANS", "FOREIGN", "BLOCKED SESSIONS", "SCANNED",
            "WITNESS", "ADDRESS", "SERVER", "LAST ERROR",
        ],
        [
            [
                row["participant"],
                str(row["number"]),
                row["state"],
                str(row["in_doubt"]),
                str(row["orphans"]),
                str(row["foreign"]),
                str(row["blocked_sessions"]),
                _scanned(row["scanned_seconds_ago"]),
                "yes" if row["witness"] else "no",
                row["address"],
                row["server"] or "",
                row["last_error"] or "",
            ]
            for row in rows
        ],
        empty="no participants",
    )  # fmt: skip


def _scanned(ago: float | None) -> str:
    return "never" if ago is None else f"{documents.duration_text(ago)} ago"
