"""`coordctl xid`: what a transaction id says, and the SQL names of its branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from coordinator.ctl import identifiers
from coordinator.ctl.options import output_option
from coordinator.ctl.output import Screen, View, emit

if TYPE_CHECKING:
    from dtp import Gtrid

_MAX_NUMBER = 36**4 - 1
_SHOWN_NUMBERS = (1, 2, 3)
_WARNING = (
    "WARNING: a branch that is ended by hand can break the transaction for good (committed here, rolled back "
    "there). First run `coordctl show {gtrid}` and `coordctl recover --dry-run`: they say what was decided. "
    "MariaDB answers 1397 while the agent's session that owns the branch lives: stop that agent first."
)


@click.command()
@click.argument("gtrid")
@click.option(
    "--number",
    "numbers",
    type=click.IntRange(0, _MAX_NUMBER),
    multiple=True,
    help="A participant's number, can be repeated. Default: that of the branch named, or 1 to 3.",
)
@output_option
def xid(gtrid: str, numbers: tuple[int, ...], form: str) -> None:
    """Explain a transaction id; needs no coordinator.

    GTRID is the id as text, or hexadecimal as XA RECOVER CONVERT XID shows it (gtrid alone or with bqual).

    The SQL is for reading a server's log or XA RECOVER. Ending a branch by hand can break the transaction:
    `coordctl recover` and `coordctl resolve` end branches as the log says.
    """
    parsed, named = identifiers.parse(gtrid)
    chosen = numbers or ((named,) if named is not None else _SHOWN_NUMBERS)
    emit(_explain(parsed, chosen), form)


def _explain(gtrid: Gtrid, numbers: tuple[int, ...]) -> View:
    from dtp import FORMAT_ID, Xid

    text = str(gtrid)
    warning = _WARNING.format(gtrid=text)
    branches = []
    for number in numbers:
        name = Xid.of(text, number)
        branches.append(
            {
                "number": number,
                "bqual": name.bqual.decode("ascii"),
                "xid": name.sql(),
                "commit_sql": f"XA COMMIT {name.sql()}",
                "rollback_sql": f"XA ROLLBACK {name.sql()}",
                "recover_data": f"0x{name.gtrid.hex()}{name.bqual.hex()}",
            }
        )
    document: dict[str, object] = {
        "gtrid": text,
        "coordinator_id": gtrid.coordinator_id,
        "epoch": gtrid.epoch,
        "counter": gtrid.counter,
        "format_id": FORMAT_ID,
        "gtrid_hex": text.encode("ascii").hex(),
        "warning": warning,
        "branches": branches,
    }

    def draw(screen: Screen) -> None:
        screen.fields(
            [
                ("gtrid", text),
                ("coordinator", gtrid.coordinator_id),
                ("epoch", f"{gtrid.epoch} (the coordinator's start number {gtrid.epoch})"),
                ("counter", f"{gtrid.counter} (transaction number {gtrid.counter} of that epoch)"),
                ("hexadecimal", text.encode("ascii").hex()),
            ]
        )
        screen.line()
        screen.line(warning, style="bold red")
        screen.line()
        screen.table(
            ["NUMBER", "BQUAL", "SQL"],
            [
                [str(branch["number"]), str(branch["bqual"]), str(branch[key])]
                for branch in branches
                for key in ("commit_sql", "rollback_sql")
            ],
            empty="",
        )

    return View(document, draw)
