"""Configuration: one TOML file, overridden by the environment; unknown keys are refused by path.

A daemon describes its configuration as msgspec structs with `forbid_unknown_fields=True`. An
environment variable PREFIX__SECTION__KEY replaces [section] key; its value is read as TOML where
that works (numbers, booleans, lists) and as a plain string otherwise.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h


class ConfigError(Exception):
    """The configuration cannot be used; the message names the file, the key and what to do."""


def load(cls: type[T], path: Path | None, prefix: str, environ: Mapping[str, str]) -> T:
    """Read and check a configuration.

    Args:
        cls: the msgspec struct that describes it.
        path: the TOML file, or None to use the environment and the defaults alone.
        prefix: of the environment variables, for example "XACOORD".
        environ: the environment.

    Raises:
        ConfigError: the file cannot be read, is not TOML, has an unknown key or a wrong value.
    """
    document: dict[str, Any] = {}
    source = "the environment"
    if path is not None:
        source = str(path)
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}; give a readable file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
    for name, text in environ.items():
        if name.startswith(f"{prefix}__"):
            _put(document, name[len(prefix) + 2 :].lower().split("__"), text, name)
    try:
        return msgspec.convert(document, cls)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error
    except ValueError as error:  # raised by a struct's own __post_init__
        raise ConfigError(f"{source}: {error}") from error


def _put(document: dict[str, Any], keys: list[str], text: str, name: str) -> None:
    place = document
    for key in keys[:-1]:
        inner = place.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"environment variable {name}: {key} is not a section")
        place = inner
    try:
        place[keys[-1]] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        place[keys[-1]] = text
