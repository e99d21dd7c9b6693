"""How training is watched: a line per epoch, and on a terminal a bar over the epoch's steps."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgetag_train.fit.loop import Record

log = structlog.get_logger("edgetag.train")


class Watcher(Protocol):
    """What hears of training."""

    def on_step(self, done: int, of: int) -> None:
        """Steps done in the current epoch, and how many it has."""
        ...

    def on_epoch(self, net: str, record: Record) -> None:
        """An epoch ended."""
        ...


class LogWatcher:
    """One log line per epoch."""

    def on_step(self, done: int, of: int) -> None:
        """Nothing: a log is no place for bars."""

    def on_epoch(self, net: str, record: Record) -> None:
        shown = {key: _short(value) for key, value in record.items()}
        if "event" in shown:  # structlog's own word for the message
            shown["schedule"] = shown.pop("event")
        log.info("epoch", net=net, **shown)


class BarWatcher:
    """One line per epoch above a bar over its steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("epoch", total=None)

    def on_step(self, done: int, of: int) -> None:
        self._progress.update(self._task, completed=done, total=of)

    def on_epoch(self, net: str, record: Record) -> None:
        line = "  ".join(f"{key} {_short(value)}" for key, value in record.items())
        self._progress.console.print(f"{net}  {line}", markup=False, highlight=False)


@contextmanager
def watch() -> Iterator[Watcher]:
    """A bar where stderr is a terminal, log lines elsewhere. While it stands nobody else may write there."""
    if not sys.stderr.isatty():
        yield LogWatcher()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield BarWatcher(progress)


def _short(value: float | int | str) -> float | int | str:
    return float(f"{value:.4g}") if isinstance(value, float) else value
