"""Logs: one JSON object a line on standard error, or coloured text when that is a terminal.

Statements, parameters and rows never go into a log.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def setup(daemon: str, level: str = "INFO", as_json: bool | None = None) -> Any:
    """Configure structlog and return the daemon's logger.

    Args:
        daemon: bound into every line as `daemon`.
        level: a name of the logging module.
        as_json: None means JSON unless standard error is a terminal.
    """
    if as_json is None:
        as_json = not sys.stderr.isatty()
    renderer: Any = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger().bind(daemon=daemon)
