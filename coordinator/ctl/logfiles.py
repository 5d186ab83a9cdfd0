"""Where --offline finds the log: a configuration or the directory itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from coordinator.ctl import documents
from coordinator.ctl.errors import CtlError, ExitCode

if TYPE_CHECKING:
    from coordinator.v1 import coordinator_pb2


def require(offline: bool, **given: Path | None) -> None:
    """Check that the options which need --offline come with it, and that one of them does.

    Raises:
        click.UsageError: they don't.
    """
    names = [f"--{name.replace('_', '-')}" for name in given]
    present = [name for name, value in zip(names, given.values(), strict=True) if value is not None]
    if not offline and present:
        raise click.UsageError(f"{present[0]} goes with --offline")
    if offline and not present:
        raise click.UsageError(f"--offline needs {' or '.join(names)}")
    if len(present) > 1:
        raise click.UsageError(f"give {' or '.join(present)}, not both")


def transactions(config: Path | None, data_dir: Path | None) -> list[coordinator_pb2.Transaction]:
    """The transactions that a log tells of.

    Raises:
        ConfigError, LogError: the configuration or the log cannot be read.
    """
    from coordinator import offline

    if data_dir is None:
        from coordinator.config import load_config

        assert config is not None, "require() has seen to it"
        data_dir = Path(load_config(config).coordinator.data_dir)
    return offline.transactions(data_dir)


def find(gtrid: str, config: Path | None, data_dir: Path | None) -> coordinator_pb2.Transaction:
    """One transaction from a log.

    Raises:
        CtlError: the log does not know it.
        ConfigError, LogError: the configuration or the log cannot be read.
    """
    for message in transactions(config, data_dir):
        if message.gtrid == gtrid:
            return message
    raise CtlError(
        "UNKNOWN_TRANSACTION",
        f"the log does not know {gtrid}: it has ended and was dropped, or never reached phase 1; a running "
        "coordinator also asks the witness rows",
        ExitCode.NOT_FOUND,
    )


def select(
    messages: list[coordinator_pb2.Transaction],
    in_doubt: bool,
    older_than: float | None,
    states: tuple[str, ...],
) -> list[coordinator_pb2.Transaction]:
    """What the coordinator's List would select, newest first."""
    from coordinator.v1 import coordinator_pb2

    wanted = {coordinator_pb2.State.Value(f"STATE_{state}") for state in states}
    chosen = [
        message
        for message in messages
        if (message.in_doubt or not in_doubt)
        and (older_than is None or documents.seconds(message.age) >= older_than)
        and (not wanted or message.state in wanted)
    ]
    return sorted(chosen, key=lambda message: message.gtrid, reverse=True)
