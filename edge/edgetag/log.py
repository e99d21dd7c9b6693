"""Log lines for people and for journald: on stderr, so that stdout carries events and nothing else."""

import io
import logging
import sys
from typing import Literal

import structlog


def configure(level: int = logging.WARNING, format: Literal["console", "json"] = "console") -> None:
    """Send what is at least as grave as `level` to stderr, one line each, with UTC times.

    May be called again: loggers that exist obey, too.

    Args:
        level: of the standard library's `logging`.
        format: for people, or one JSON object a line with `event`, `level` and `timestamp` in it.
    """
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _renderer(format),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr or io.StringIO()),
    )


def set_level(name: Literal["debug", "info", "warning", "error"]) -> None:
    """Send what is at least as grave as `name` from now on, in the same format."""
    level = logging.getLevelNamesMapping()[name.upper()]
    structlog.configure(
        **structlog.get_config() | {"wrapper_class": structlog.make_filtering_bound_logger(level)}
    )


def _renderer(format: Literal["console", "json"]) -> structlog.typing.Processor:
    if format == "json":
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=sys.stderr is not None and sys.stderr.isatty())
