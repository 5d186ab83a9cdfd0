"""Transaction ids as people have them: text, or hexadecimal as XA RECOVER shows them.

`XA RECOVER` shows gtrid and bqual as one text of 24 characters, `XA RECOVER CONVERT XID` the same as
0x and 48 hexadecimal digits, and our SQL names a branch as X'<gtrid>',X'<bqual>',1.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from coordinator.ctl.errors import CtlError, ExitCode

if TYPE_CHECKING:
    from dtp import Gtrid

_SQL = re.compile(r"[xX]'([0-9a-fA-F]*)'(?:\s*,\s*[xX]'([0-9a-fA-F]*)'(?:\s*,\s*1)?)?")
_HEX = re.compile(r"(?:0[xX])?([0-9a-fA-F]{40}(?:[0-9a-fA-F]{8})?)")


def parse(text: str) -> tuple[Gtrid, int | None]:
    """What `text` names, and the participant number where it names a branch.

    Raises:
        CtlError: INVALID_GTRID, it is not one of our ids in any of the forms above.
    """
    from dtp import Gtrid, XacoordError, parse_bqual
    from dtp.xid import BQUAL_LENGTH, GTRID_LENGTH

    plain = _plain(text.strip())
    number = None
    if len(plain) == GTRID_LENGTH + BQUAL_LENGTH:
        number = parse_bqual(plain[GTRID_LENGTH:].encode("utf-8", "replace"))
        plain = plain[:GTRID_LENGTH] if number is not None else plain
    try:
        return Gtrid.parse(plain), number
    except XacoordError as error:
        raise CtlError(error.reason.value, error.message, ExitCode.BAD_INPUT) from None


def _plain(text: str) -> str:
    if match := _SQL.fullmatch(text):
        digits = match[1] + (match[2] or "")
    elif match := _HEX.fullmatch(text):
        digits = match[1]
    else:
        return text
    return bytes.fromhex(digits).decode("latin-1") if len(digits) % 2 == 0 else text


def gtrid_argument(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """An argument's callback: the gtrid as text."""
    return str(parse(value)[0])
