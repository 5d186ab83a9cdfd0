"""`coordctl config`: configurations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from coordinator.ctl.options import output_option
from coordinator.ctl.output import Screen, View, emit

if TYPE_CHECKING:
    from coordinator.config import Config


@click.group()
def config() -> None:
    """Check a configuration."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@output_option
def check(file: Path, form: str) -> None:
    """Check a coordinator's configuration; exit code 78 where it cannot be used.

    The environment counts too, as it does when the coordinator starts. No server is asked. A warning is about
    what can be used and is most likely a mistake; it does not change the exit code.
    """
    from coordinator.config import load_config

    found = _warnings(load_config(file))

    def draw(screen: Screen) -> None:
        screen.line(f"{file}: valid")
        for warning in found:
            screen.line(f"! {warning}", style="yellow")

    emit(View({"file": str(file), "valid": True, "warnings": found}, draw), form)


def _warnings(config: Config) -> list[str]:
    found = []
    by_address: dict[str, list[str]] = {}
    for name, participant in config.participants.items():
        by_address.setdefault(participant.agent or participant.agent_config, []).append(name)
    for address, names in by_address.items():
        if len(names) > 1:
            found.append(
                f"participants {', '.join(names)} have one agent address, {address}: "
                "an agent serves one participant"
            )
    data_dir = config.coordinator.data_dir
    if not Path(data_dir).is_absolute():
        found.append(
            f"coordinator.data_dir {data_dir!r} is relative: a coordinator started from another directory "
            "would not find its log; give an absolute path"
        )
    return found
