"""Engines: which database servers deploy/setup.sh has found here, and how to run their programs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Engine = Literal["mysql", "mariadb"]


class ServerError(RuntimeError):
    """A server cannot be created, started or stopped; the message ends with its error log's last lines."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """How to run one engine's server program.

    `mysqld` is the start of the command line (program, perhaps preceded by a dynamic loader), `arguments`
    follow it after the options that have to come first, `version` is e.g. "9.7.4".
    """

    engine: Engine
    version: str
    mysqld: tuple[str, ...]
    arguments: tuple[str, ...]

    @classmethod
    def find(cls, engine: Engine) -> Binaries:
        """Reads what deploy/setup.sh wrote. Raises ServerError when the engine is not there."""
        default = Path(sys.prefix) / "xacoord-engines.json"
        path = Path(os.environ.get("XACOORD_ENGINES", default))
        try:
            entry = json.loads(path.read_text())[engine]
        except (FileNotFoundError, KeyError) as error:
            raise ServerError(f"no {engine} here; run deploy/setup.sh --engines {engine} ({path})") from error
        return cls(engine, entry["version"], tuple(entry["mysqld"]), tuple(entry["arguments"]))

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs the server with these arguments and no configuration file."""
        return [*self.mysqld, "--no-defaults", *self.arguments, *user_argument(), *arguments]


def available_engines() -> list[Engine]:
    """The engines that deploy/setup.sh found here, MySQL first. Raises ServerError when there is none."""
    found: list[Engine] = []
    for engine in get_args(Engine):
        with contextlib.suppress(ServerError):
            found.append(Binaries.find(engine).engine)
    if not found:
        raise ServerError("no database engine here; run deploy/setup.sh")
    return found


def user_argument() -> list[str]:
    """The option without which servers refuse to run as root."""
    return ["--user=root"] if os.geteuid() == 0 else []
