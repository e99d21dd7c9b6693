"""Log lines for people and for journald: on stderr, so that stdout carries events and nothing else."""

import io
import logging
import sys

import structlog


def configure(level: int = logging.WARNING) -> None:
    """Send what is at least as grave as `level` to stderr, one line each, with UTC times."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr is not None and sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr or io.StringIO()),
    )
