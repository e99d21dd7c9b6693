"""What the commands that hear have in common: options, settings, what a hangup means, who is printed to."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer

from edgetag.contract.errors import OutputError
from edgetag.terminal import forget_unwritable_stdout

if TYPE_CHECKING:
    from edgetag.config import Settings
    from edgetag.contract.taxonomy import Taxonomy
    from edgetag.delivery.sink import Sink
    from edgetag.loading import Loaded, Loader
    from edgetag.replacement import Replacement


class Format(StrEnum):
    json = "json"
    table = "table"
    csv = "csv"


class VariantName(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    int8 = "int8"


def settings_with(config: Path | None, **over: object) -> "Settings":
    """The configuration file's settings and the environment's, and the command line's over them.

    Args:
        config: the file, if there is one.
        over: values by setting, `bundle__path=…`; None leaves a setting as it is.
    """
    import msgspec

    from edgetag.config import read_settings

    settings = read_settings(config)
    for path, value in over.items():
        if value is not None:
            section, _, key = path.partition("__")
            changed = msgspec.structs.replace(getattr(settings, section), **{key: value})
            settings = msgspec.structs.replace(settings, **{section: changed})
    return settings


def hop_s_of(loaded: "Loaded", asked_s: float | None = None) -> float:
    """Seconds from one window's start to the next: as asked for, as set, or as suits the bundle."""
    for hop_s in (asked_s, loaded.settings.window.hop_s):
        if hop_s is not None:
            return hop_s
    return loaded.tagger.default_hop_s


@contextmanager
def replaced_on_hangup(
    loader: "Loader", *, patience_s: float | None = None
) -> "Iterator[Replacement[Loaded]]":
    """SIGHUP asks for the bundle anew. With a terminal it means that the terminal has gone, as ever.

    What is yielded is yet to be entered; until then a wish waits.
    """
    from edgetag.replacement import Replacement

    replacement = Replacement(loader.load, patience_s=patience_s)
    if _has_terminal():
        yield replacement
        return
    before = signal.signal(signal.SIGHUP, lambda *_: replacement.ask())
    try:
        yield replacement
    finally:
        signal.signal(signal.SIGHUP, before)


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal, whatever its streams are."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def printer(taxonomy: "Taxonomy", format: Format, *, everything: bool = False) -> "Sink":
    """What prints events to stdout; `everything`: sounds and states, too.

    Raises:
        OutputError: there is no stdout.
    """
    if sys.stdout is None:
        raise OutputError("stdout is closed; give events somewhere to go, e.g. > events.json")
    match format:
        case Format.json:
            from edgetag.delivery.stdout import JsonLines

            return JsonLines(sys.stdout.buffer, everything=everything)
        case Format.csv:
            from edgetag.delivery.stdout import Csv

            return Csv(sys.stdout, taxonomy)
        case Format.table:
            from rich.console import Console

            from edgetag.delivery.table import Table

            return Table(Console(), taxonomy)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """`edgetag replay … | head -1`: a reader who has had enough is no error."""
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit from None
    finally:
        forget_unwritable_stdout()


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks."""
    return stream is not None and stream.isatty()


def complain(error: Exception) -> None:
    """One sentence on stderr."""
    typer.echo(f"edgetag: {error}", err=True)
