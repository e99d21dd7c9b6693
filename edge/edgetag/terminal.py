"""Text on stdout for people and pipes: whoever reads may have had enough, or there is nobody to print to."""

import os
import sys

import typer

from edgetag.contract.errors import OutputError


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


def forget_unwritable_stdout() -> None:
    """What could not be written is not tried again at exit, where it would end in a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
