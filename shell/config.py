"""Configuration: one TOML file, overridden by the environment; unknown keys are refused by path.

A daemon describes its configuration as msgspec structs with `forbid_unknown_fields=True`. An
environment variable PREFIX__SECTION__KEY replaces [section] key; its value is read as TOML where
that works (numbers, booleans, lists) and as a plain string otherwise.
"""

from __future__ import annotations

import logging
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")

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


def check_range(value: float, key: str, least: float, most: float) -> None:
    """ValueError that names `key` where `value` is not a number from `least` to `most`."""
    if not least <= value <= most:
        raise ValueError(f"{key} is {value:g}; give {least:g} to {most:g}")


def check_address(text: str, key: str, *, least_port: int = 0) -> tuple[str, int]:
    """("host", port) of "host:port"; ValueError that names `key` otherwise."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not least_port <= int(match[2]) <= 65535:
        raise ValueError(f'{key}: {text!r} is not "host:port"')
    return match[1].strip("[]"), int(match[2])


def check_bindable(text: str, key: str) -> None:
    """ConfigError that names `key` where nothing can listen at `text` ("host:port").

    Asked before anything is started, because gRPC says no more than that it failed.
    """
    host, port = check_address(text, key)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise ConfigError(f"{key}: cannot listen at {text}: {error.strerror or error}") from error


def check_log_level(level: str, key: str) -> None:
    """ValueError that names `key` where the level is none of the logging module's."""
    if level.upper() not in logging.getLevelNamesMapping():
        raise ValueError(f"{key}: {level!r} is not a log level; give DEBUG, INFO, WARNING or ERROR")


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
