"""Options that several commands share, and the values they take."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from coordinator.ctl.errors import CtlError, ExitCode
from coordinator.ctl.output import clean, is_terminal

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)")
_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options.

    Arguments:
        address: "host:port" of the coordinator.
        timeout_seconds: for one call; None: the command's own default.
    """

    address: str
    timeout_seconds: float | None


class Seconds(click.FloatRange):
    """A number of seconds within limits; not a number is outside of every limit."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Raises BadParameter."""
        number = float(super().convert(value, param, ctx))
        if number != number:
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return number


def duration(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """An option's callback: `30s`, `5m`, `1h30m` in seconds. A number needs its unit."""
    if value is None:
        return None
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise click.BadParameter(f"{value!r} is not a duration; give for example 30s, 5m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def address(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """An option's callback: `host:port`, `[v6 address]:port` or `unix:path`."""
    if value.startswith("unix:") and len(value) > len("unix:"):
        return value
    if not _HOST_PORT.fullmatch(value) or not 0 < int(value.rpartition(":")[2]) < 65536:
        raise click.BadParameter(f"{value!r} is not an address; give host:port, for example 127.0.0.1:7420")
    return value


output_option = click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or one JSON document.",
)
watch_option = click.option(
    "--watch",
    "watch_seconds",
    type=Seconds(min=0.1, max=3600),
    metavar="SECONDS",
    help="Repeat until interrupted; JSON is then one document a line.",
)
yes_option = click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
offline_option = click.option("--offline", is_flag=True, help="Work on a stopped coordinator's log.")
config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --offline: the coordinator's configuration.",
)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With --offline: the log directory itself.",
)


def confirm(question: str, yes: bool) -> None:
    """Ask a person before something is changed for good.

    Raises:
        click.UsageError: nobody can be asked and --yes was not given.
        CtlError: the answer was no, or Ctrl-C.
    """
    if yes:
        return
    if not is_terminal(sys.stdin):
        raise click.UsageError("there is no terminal to ask for confirmation; give --yes")
    try:
        with _interruptible():
            agreed = click.confirm(clean(question), err=True)
    except click.Abort:
        click.echo(err=True)
        raise CtlError("INTERRUPTED", "nothing was changed", ExitCode.INTERRUPTED) from None
    if not agreed:
        raise CtlError("NOT_CONFIRMED", "nothing was changed", ExitCode.REFUSED)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends a question at once: an event loop around it would note it and go on waiting."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
