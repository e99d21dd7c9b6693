"""Log lines for people and for journald: on stderr, so that stdout carries events and nothing else."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Literal, TextIO, cast


@contextlib.contextmanager
def _unavailable(module: str) -> Iterator[None]:
    """It cannot be imported for a while, unless it has been."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


# structlog imports rich where it is, for tracebacks in colour, with 5 MB and in 50 ms. Ours are strings.
with _unavailable("rich"):
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
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Stderr())),
    )


def set_level(name: Literal["debug", "info", "warning", "error"]) -> None:
    """Send what is at least as grave as `name` from now on, in the same format."""
    level = logging.getLevelNamesMapping()[name.upper()]
    structlog.configure(
        **structlog.get_config() | {"wrapper_class": structlog.make_filtering_bound_logger(level)}
    )


class _Stderr(io.TextIOBase):
    """stderr as it is now. What it does not take is not said: there is none, its disk is full, its reader has
    gone. That must not end the hearing, and nothing waits in a buffer to end it later.
    """

    def __init__(self) -> None:
        self._stream = sys.stderr
        try:
            self._descriptor = None if sys.stderr is None else sys.stderr.fileno()
        except OSError:  # something else stands in its place, which has none
            self._descriptor = None

    def write(self, text: str) -> int:
        """At once, by one write; raises nothing."""
        with contextlib.suppress(OSError):
            if self._descriptor is not None:
                os.write(self._descriptor, text.encode("utf-8", "backslashreplace"))
            elif self._stream is not None:
                self._stream.write(text)
        return len(text)


def _renderer(format: Literal["console", "json"]) -> structlog.typing.Processor:
    if format == "json":
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=sys.stderr is not None and sys.stderr.isatty())
