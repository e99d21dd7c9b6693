"""Text on stdout for people and pipes: whoever reads may have had enough, or there is nobody to print to."""

import io
import os
import sys
from typing import TYPE_CHECKING

import typer

from edgetag.contract.errors import OutputError

if TYPE_CHECKING:
    from rich.console import RenderableType


def print_text(text: str) -> None:
    """Print lines; a reader who has had enough ends the command quietly.

    Raises:
        OutputError: stdout cannot be written.
    """
    if sys.stdout is None:
        raise OutputError("stdout is closed")
    try:
        data = f"{text}\n".encode(sys.stdout.encoding or "utf-8", "backslashreplace")
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except BrokenPipeError:
        forget_unwritable_stdout()
        raise typer.Exit from None
    except OSError as error:
        forget_unwritable_stdout()
        raise OutputError(f"stdout cannot be written ({error.strerror})") from error


def print_rendered(*parts: "RenderableType") -> None:
    """Print tables and text, with colours on a terminal only. Strings are shown as they are.

    Raises:
        OutputError: stdout cannot be written.
    """
    from rich.console import Console

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(
        file=io.StringIO(),
        force_terminal=is_terminal,
        width=Console().width,
        highlight=False,
        markup=False,
    )
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    print_text("\n".join(line.rstrip() for line in capture.get().splitlines()))


def forget_unwritable_stdout() -> None:
    """What could not be written is not tried again at exit, where it would end in a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
