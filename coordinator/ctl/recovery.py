"""`coordctl recover`: the plan for every prepared branch, with its reason, and carrying it out.

It needs no confirmation: it does only what the log says, as the coordinator itself does at start and at every
scan, and repeating it changes nothing. Decisions of people are `coordctl resolve`'s, and where the log is
lost those of `--derive` (derivation.py).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coordinator.ctl import derivation, documents
from coordinator.ctl.client import Client
from coordinator.ctl.errors import CtlError, ExitCode
from coordinator.ctl.logfiles import require
from coordinator.ctl.options import Settings, config_option, offline_option, output_option
from coordinator.ctl.output import Screen, View, emit

if TYPE_CHECKING:
    from coordinator.v1 import admin_pb2

_RECOVER_SECONDS = 60.0
_ACTIONS = ("commit", "rollback", "leave", "hold")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only print the plan.")
@click.option(
    "-p", "--participant", "names", multiple=True, metavar="NAME", help="Only this one; can be repeated."
)
@offline_option
@config_option
@click.option("--derive", is_flag=True, help="The log is lost: work the outcomes out from the participants.")
@click.option(
    "--presume",
    multiple=True,
    metavar="[GTRID=]rollback|commit",
    help="With --derive: the outcome where nothing proves one; can be repeated.",
)
@click.option("--apply", is_flag=True, help="With --derive: carry the plan out.")
@click.option(
    "--overthrow",
    is_flag=True,
    help="With --apply: also while a coordinator of this id is attached. It is shut out, and what it has "
    "told its clients may be undone: only where it can neither be stopped nor cut off.",
)
@click.option("--fingerprint", default="", metavar="HEX", help="With --apply: only if this is the plan.")
@click.option("--yes", is_flag=True, help="With --apply: don't ask for confirmation.")
@output_option
@click.pass_obj
def recover(
    settings: Settings,
    dry_run: bool,
    names: tuple[str, ...],
    offline: bool,
    config_path: Path | None,
    derive: bool,
    presume: tuple[str, ...],
    apply: bool,
    overthrow: bool,
    fingerprint: str,
    yes: bool,
    form: str,
) -> int:
    """Finish the prepared branches as the log says.

    The participants are scanned and every prepared branch gets an action with its reason: commit, rollback,
    leave, or hold. Repeating it is harmless, so nothing is asked. With --offline a stopped coordinator's
    directory is used, and the participants are reached as its configuration says.

    Exit code 69 when a participant could not be scanned; the others are dealt with. Otherwise, without
    --dry-run, 4 when a branch is on hold.

    With --derive --config FILE, when the log is lost for good and everything is on HOLD: every participant is
    asked, and what its witness rows and prepared branches prove becomes a plan. It is only printed; --apply
    carries it out, on a stopped coordinator's directory, after a confirmation. docs/operations.md#hold first.
    """
    if derive:
        if offline or dry_run or names or config_path is None:
            raise click.UsageError("--derive needs --config, and goes without --offline, --dry-run and -p")
        if not apply and (yes or fingerprint or overthrow):
            raise click.UsageError("--yes, --fingerprint and --overthrow go with --apply")
        derivation.run(config_path, presume, apply, overthrow, yes, fingerprint, form)
        return ExitCode.OK
    if presume or apply or overthrow or yes or fingerprint:
        raise click.UsageError("--presume, --apply, --overthrow, --fingerprint and --yes go with --derive")
    require(offline, config=config_path)
    if config_path is not None:
        response = _recover_offline(config_path, dry_run, names)
    else:
        response = _recover_online(settings, dry_run, names)
    emit(_view(response, applied=not dry_run), form)
    _report_scans(response)
    held = not dry_run and any(item.action == "hold" for item in response.items)
    return ExitCode.IN_DOUBT if held else ExitCode.OK


def _recover_online(settings: Settings, dry_run: bool, names: tuple[str, ...]) -> admin_pb2.RecoverResponse:
    from coordinator.v1 import admin_pb2

    with Client(settings, "coordctl recover --offline --config FILE", _RECOVER_SECONDS) as client:
        request = admin_pb2.RecoverRequest(apply=not dry_run, participants=names)
        return client.call(client.admin.Recover, request)


def _recover_offline(config_path: Path, dry_run: bool, names: tuple[str, ...]) -> admin_pb2.RecoverResponse:
    from coordinator import offline
    from coordinator.config import load_config

    configured = load_config(config_path).participants
    for name in names:
        if name not in configured:
            known = ", ".join(sorted(configured))
            raise CtlError(
                "UNKNOWN_PARTICIPANT",
                f"{config_path} has no participant {name!r}, but: {known}",
                ExitCode.NOT_FOUND,
            )
    return offline.recover(config_path, apply=not dry_run, participants=list(names))


def _view(response: admin_pb2.RecoverResponse, applied: bool) -> View:
    document = documents.plan(response, applied)

    def draw(screen: Screen) -> None:
        screen.table(
            ["PARTICIPANT", "XID", "ACTION", "REASON", "RESULT", "EXPLANATION"],
            [
                [
                    item["participant"],
                    _xid_text(item),
                    item["action"],
                    item["reason"],
                    item["result"] or "",
                    item["explanation"],
                ]
                for item in document["items"]
            ],
            empty="no prepared branches",
        )
        screen.line()
        screen.line(_summary(document))

    return View(document, draw)


def _xid_text(item: dict[str, Any]) -> str:
    """Ours as gtrid and number; any other as XA COMMIT would take it."""
    if item["gtrid"] is not None:
        return f"{item['gtrid']} {item['number']}"
    return f"X'{item['gtrid_hex']}',X'{item['bqual_hex']}',{item['format_id']}"


def _summary(document: documents.Document) -> str:
    counts = Counter(item["action"] for item in document["items"])
    others = sorted(set(counts) - set(_ACTIONS))
    planned = ", ".join(f"{counts[action]} {action}" for action in (*_ACTIONS, *others))
    scanned = sum(scan["scanned"] for scan in document["scans"])
    lead = "carried out" if document["applied"] else "plan, nothing was changed"
    return f"{lead}: {planned}; {scanned} of {len(document['scans'])} participants scanned"


def _report_scans(response: admin_pb2.RecoverResponse) -> None:
    missed = [
        f"{scan.participant} ({scan.error or 'no reason given'})"
        for scan in response.scans
        if not scan.scanned
    ]
    if missed:
        raise CtlError(
            "PARTICIPANT_UNAVAILABLE",
            f"not scanned, so nothing was done there: {', '.join(missed)}; run it again when it is back",
            ExitCode.UNAVAILABLE,
        )
