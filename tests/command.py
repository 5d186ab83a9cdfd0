"""Command: what the tools that are started by hand share: arguments that make sense, and where reports go.

A tool that silently does nothing reports "0 bad": what cannot be meant is refused (exit code 2).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path


def positive(text: str) -> int:
    """A whole number, 1 or more; for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return number


def positive_seconds(text: str) -> float:
    """A number above 0; for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def span(text: str) -> range:
    """`A..B`: all from A to B. Raises ValueError."""
    first, dots, last = text.partition("..")
    if not (dots and first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise ValueError(f"{text!r} is not A..B, two whole numbers")
    if int(first) > int(last):
        raise ValueError(f"{text!r} is empty: {first} is above {last}")
    return range(int(first), int(last) + 1)


def writable(text: str) -> Path:
    """A directory that is there (it is made) and takes files; for argparse."""
    directory = Path(text)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write into {text}: {error.strerror or error}") from None
    return directory
