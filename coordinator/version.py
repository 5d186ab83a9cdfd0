"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("xacoord")
except PackageNotFoundError:
    VERSION = "unknown"
