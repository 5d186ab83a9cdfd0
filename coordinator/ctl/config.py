"""`coordctl config`: configurations."""

from __future__ import annotations

from pathlib import Path

import click

from coordinator.ctl.options import output_option
from coordinator.ctl.output import View, emit


@click.group()
def config() -> None:
    """Check a configuration."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@output_option
def check(file: Path, form: str) -> None:
    """Check a coordinator's configuration; exit code 78 where it cannot be used.

    The environment counts too, as it does when the coordinator starts. No server is asked.
    """
    from coordinator.config import load_config

    load_config(file)
    emit(View({"file": str(file), "valid": True}, lambda screen: screen.line(f"{file}: valid")), form)
