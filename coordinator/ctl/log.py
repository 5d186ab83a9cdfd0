"""`coordctl log`: the log of a running coordinator; `coordctl wal` looks into the files themselves."""

from __future__ import annotations

import click

from coordinator.ctl import documents
from coordinator.ctl.client import Client
from coordinator.ctl.options import Settings, output_option
from coordinator.ctl.output import Screen, View, emit


@click.command()
@output_option
@click.pass_obj
def log(settings: Settings, form: str) -> None:
    """Show the state of the log of a running coordinator."""
    with Client(settings, "coordctl wal verify DIR") as client:
        status = fetch_log_status(client)

    def draw(screen: Screen) -> None:
        screen.fields(
            [
                ("directory", status["directory"]),
                ("identity", status["identity"]),
                ("coordinator", status["coordinator_id"]),
                ("epoch", str(status["epoch"])),
                ("next lsn", str(status["next_lsn"])),
                ("durable lsn", str(status["durable_lsn"])),
                ("segments", str(status["segments"])),
                ("size", documents.bytes_text(status["bytes"])),
                ("reserved", documents.bytes_text(status["reserved_bytes"])),
                ("room", "yes" if status["room"] else "NO: new transactions are refused"),
                ("last flush", f"{status['last_flush_seconds'] * 1000:.2f} ms"),
            ]
        )

    emit(View(status, draw), form)


def fetch_log_status(client: Client) -> documents.Document:
    """The log's status as a document."""
    from coordinator.v1 import admin_pb2

    return documents.log_status(client.call(client.admin.LogStatus, admin_pb2.LogStatusRequest()))
