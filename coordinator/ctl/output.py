"""What commands print: a View is one JSON document and one drawing of it for people.

Text from a server, a log or a database may hold anything; `clean` is the only way by which it gets to a
terminal. On a terminal tables are drawn with rich, elsewhere as aligned plain text without colour.
"""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import click

from coordinator.ctl.errors import CtlError, ExitCode

if TYPE_CHECKING:
    from rich.console import Console

# Words that get a colour on a terminal, in a cell of their own.
_STYLES = {
    **dict.fromkeys(("COMMITTED", "UP", "commit", "done", "SERVING", "yes, ready"), "green"),
    **dict.fromkeys(("ROLLED_BACK", "rollback", "ROLLING_BACK", "COMMITTING", "retrying"), "yellow"),
    **dict.fromkeys(("FENCING", "SCANNING", "PREPARING", "UNKNOWN", "IN DOUBT"), "yellow"),
    **dict.fromkeys(("HOLD", "hold", "UNREACHABLE", "BLOCKED", "NOT_SERVING", "NOT READY"), "bold red"),
    **dict.fromkeys(("HEURISTIC", "HEURISTIC_MIXED", "HEURISTIC_HAZARD"), "bold red"),
    **dict.fromkeys(("HEURISTIC_COMMIT", "HEURISTIC_ROLLBACK", "HEURISTICALLY_COMPLETED"), "bold red"),
}
# Columns that people copy from: never wrapped.
_WHOLE = frozenset({"GTRID", "XID", "SQL", "PARTICIPANT"})
_NAP_SECONDS = 0.2
_CLEAR = "\x1b[H\x1b[2J\x1b[3J"
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def clean(text: str) -> str:
    """`text` with control, format and line-breaking characters as escapes such as \\x1b or \\u202e."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in _UNSAFE_CATEGORIES
        else char
        for char in text
    )


class Screen:
    """Draws for people on one stream."""

    def __init__(self, stream: TextIO, terminal: bool) -> None:
        self._stream = stream
        self._console: Console | None = None
        if terminal:
            from rich.console import Console

            self._console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)

    @property
    def width(self) -> int:
        """Columns to draw in."""
        return self._console.width if self._console else 120

    @property
    def unicode(self) -> bool:
        """True where lines can be drawn with box characters."""
        return "utf" in (getattr(self._stream, "encoding", None) or "").lower()

    def line(self, text: str = "", style: str = "") -> None:
        """One line, in rich's `style` on a terminal."""
        text = clean(text)
        if self._console:
            from rich.text import Text

            self._console.print(Text(text, style=style))
        else:
            self._stream.write(f"{text}\n")

    def fields(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values below each other; an empty value is left out."""
        shown = [(name, clean(value)) for name, value in pairs if value]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            if self._console:
                from rich.text import Text

                styled = Text(f"{name:<{width}}  ", style="dim") + Text(value, style=_STYLES.get(value, ""))
                self._console.print(styled)
            else:
                self._stream.write(f"{name:<{width}}  {value}\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
        """A table without its wholly empty columns, or the line `empty` where there are no rows."""
        if not rows:
            self.line(empty)
            return
        kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
        names = [columns[i] for i in kept]
        cells = [[clean(row[i]) for i in kept] for row in rows]
        if self._console:
            self._draw_table(self._console, names, cells)
            return
        widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names)]
        for row in [names, *cells]:
            padded = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self._stream.write(f"{padded.rstrip()}\n")

    @staticmethod
    def _draw_table(console: Console, names: list[str], cells: list[list[str]]) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in names:
            table.add_column(name, no_wrap=name in _WHOLE, overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        console.print(table, soft_wrap=False)


@dataclass(frozen=True, slots=True)
class View:
    """What a read command found.

    Arguments:
        document: for -o json; plain dicts, lists, strings, numbers, booleans and None.
        draw: the same for people.
    """

    document: dict[str, object]
    draw: Callable[[Screen], None]


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at `stream`."""
    return stream.isatty()


def to_json(document: dict[str, object], indent: int | None = 2) -> str:
    """`document` in ASCII, with every control character escaped."""
    return json.dumps(document, indent=indent).replace("\x7f", "\\u007f")


def screen() -> Screen:
    """A screen on standard output."""
    return Screen(sys.stdout, is_terminal(sys.stdout))


def emit(view: View, form: str) -> None:
    """Print `view` once, as "table" or "json"."""
    if form == "json":
        sys.stdout.write(f"{to_json(view.document)}\n")
    else:
        view.draw(screen())


def present(fetch: Callable[[], View], form: str, every_seconds: float | None) -> View:
    """Print what `fetch` finds, once or, with `every_seconds`, again and again until the user interrupts.

    While it repeats, JSON is one document a line; a coordinator that goes away is reported and awaited.
    """
    view = fetch()
    if every_seconds is None:
        emit(view, form)
        return view
    while True:
        _emit_again(view, form)
        pause(every_seconds)
        view = _fetch_again(fetch, every_seconds)


def _emit_again(view: View, form: str) -> None:
    if form == "json":
        sys.stdout.write(f"{to_json(view.document, indent=None)}\n")
    else:
        terminal = is_terminal(sys.stdout)
        sys.stdout.write(_CLEAR if terminal else "")
        view.draw(screen())
        sys.stdout.write("" if terminal else "\n")
    sys.stdout.flush()


def _fetch_again(fetch: Callable[[], View], every_seconds: float) -> View:
    while True:
        try:
            return fetch()
        except CtlError as error:
            if error.code not in (ExitCode.UNAVAILABLE, ExitCode.TRY_AGAIN):
                raise
            report(error)
            pause(every_seconds)


def pause(seconds: float) -> None:
    """Wait in short naps: a signal that comes just before a nap does not end it."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _NAP_SECONDS))


def report(error: CtlError) -> None:
    """One line about `error` on standard error."""
    click.echo(f"coordctl: {clean(error.reason)}: {clean(error.message)}", err=True)


def note(text: str) -> None:
    """One line on standard error that is no error."""
    click.echo(f"coordctl: {clean(text)}", err=True)
