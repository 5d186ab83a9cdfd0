"""`coordctl resolve` and `forget`: what a person asks about one transaction. Neither contradicts the log."""

from __future__ import annotations

import os
import pwd

import click

from coordinator.ctl import documents
from coordinator.ctl.client import Client
from coordinator.ctl.errors import CtlError, ExitCode
from coordinator.ctl.identifiers import gtrid_argument
from coordinator.ctl.options import Settings, confirm, output_option, yes_option
from coordinator.ctl.output import clean, emit, note
from coordinator.ctl.transactions import transaction_view

_MAX_REASON = 500
_MAX_OPERATOR = 100


def _reason(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    text = value.strip()
    if not text or len(text) > _MAX_REASON:
        raise click.BadParameter(f"give 1 to {_MAX_REASON} characters; they go into the log of the daemon")
    if clean(text) != text:
        raise click.BadParameter("control characters are not allowed")
    return text


@click.command()
@click.argument("gtrid", callback=gtrid_argument)
@click.option("--commit", "action", flag_value="commit", help="It is decided to commit: try again at once.")
@click.option(
    "--rollback", "action", flag_value="rollback", help="Roll it back, unless it is decided to commit."
)
@click.option(
    "--reason",
    required=True,
    callback=_reason,
    metavar="TEXT",
    help="Why; recorded with your login name.",
)
@yes_option
@output_option
@click.pass_obj
def resolve(settings: Settings, gtrid: str, action: str | None, reason: str, yes: bool, form: str) -> None:
    """Roll an undecided transaction back, or hasten a decided one.

    What is decided is tried again at once; what is not decided can be rolled back. A request that
    contradicts a decision is refused. It needs a transaction that the coordinator has open. Who asks and why
    go into the transaction's timeline and the daemon's log.
    """
    from coordinator.v1 import admin_pb2

    if action is None:
        raise click.UsageError("give --commit or --rollback")
    operator = operator_name()
    with Client(settings) as client:
        verb = "COMMIT" if action == "commit" else "ROLL BACK"
        question = f"{verb} every branch of {gtrid} ({_described(client, gtrid, yes)}), as {operator}?"
        confirm(question, yes)
        request = admin_pb2.ResolveRequest(gtrid=gtrid, action=action, reason=reason, operator=operator)
        response = client.call(client.admin.Resolve, request)
    emit(
        transaction_view(documents.transaction(response.transaction), f"resolve {action} by {operator}"),
        form,
    )


@click.command()
@click.argument("gtrid", callback=gtrid_argument)
@yes_option
@click.pass_obj
def forget(settings: Settings, gtrid: str, yes: bool) -> None:
    """Drop a heuristic outcome that has been dealt with.

    The coordinator keeps a transaction that somebody else ended until you say this. It repairs no data: make
    the databases agree first.
    """
    from coordinator.v1 import admin_pb2

    with Client(settings) as client:
        confirm(
            f"Forget {gtrid} ({_described(client, gtrid, yes)})? Its record of what went wrong is dropped.",
            yes,
        )
        client.call(client.admin.Forget, admin_pb2.ForgetRequest(gtrid=gtrid))
    note(f"{gtrid} is forgotten")


def operator_name() -> str:
    """The login name of this process's user; for root under sudo also that of who called it."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    if os.getuid() == 0 and os.environ.get("SUDO_USER"):
        name = f"{os.environ['SUDO_USER']} as {name}"
    return name[:_MAX_OPERATOR]


def _described(client: Client, gtrid: str, yes: bool) -> str:
    """What a person should know before confirming; nothing is fetched when nobody will be asked."""
    from coordinator.v1 import coordinator_pb2

    if yes:
        return ""
    try:
        found = client.call(client.coordinator.Get, coordinator_pb2.GetRequest(gtrid=gtrid)).transaction
    except CtlError as error:
        if error.code != ExitCode.NOT_FOUND:
            raise
        return "the coordinator's log does not know it"
    row = documents.transaction(found)
    branches = ", ".join(f"{branch['participant']} {branch['state']}" for branch in row["branches"])
    return f"{row['state']}, outcome {row['outcome']}: {branches or 'no branches'}"
