"""`edgetag doctor`: what a sensor needs, and what to do where it is missing."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edgetag.assembly import is_terminal
from edgetag.contract.errors import printable
from edgetag.log import set_level
from edgetag.terminal import print_text

if TYPE_CHECKING:
    from edgetag.doctor.checkup import Report

_MIN_COLUMNS = 60
_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}


def doctor(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", readable=False, help="Configuration file; the defaults if absent."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: a check is an object, a line.")
    ] = False,
) -> None:
    """Check what a sensor needs, step by step; for what fails, say what to do.

    Configuration, password, bundle (loaded, self-tested, timed), audio device
    (heard for two seconds), outbox, and the way to the broker: DNS, TCP, TLS,
    login, a message there and back. Last the clock. What needs something that
    failed is skipped. `sudo edgetag-doctor` is the same as the installed service
    would see it: with its user, sandbox, secrets and state directory.

    A running sensor goes on. At the broker the doctor is SENSOR-doctor, and its
    message is on PREFIX/SENSOR/doctor, not retained. A broker that takes the
    user's name for the client id (Mosquitto's use_username_as_clientid) cuts a
    running sensor off for it; that connects again within seconds.

    The exit code is that of the first failure: 2 configuration, password or
    audio device, 3 bundle, 4 network or clock, 5 outbox. Warnings are none.

    Example: edgetag doctor --config edgetag.yaml
    """
    from edgetag.doctor.checkup import CHECKS, examine
    from edgetag.doctor.finding import Case
    from edgetag.state import state_directory

    if not (context.parent and context.parent.params.get("verbose")):
        set_level("error")  # what is worth a warning has a line here
    on_terminal = is_terminal(sys.stdout)
    exit_code = 0
    names = iter(check.name for check in CHECKS)
    for report in _announced(examine(Case(config, state_directory()), CHECKS), names):
        if as_json:
            print_text(msgspec.json.encode(report).decode())
        else:
            print_text(_lines(report, shutil.get_terminal_size().columns if on_terminal else None))
        exit_code = exit_code or report.exit_code
    raise typer.Exit(exit_code)


def _announced(reports: Iterator["Report"], names: Iterator[str]) -> Iterator["Report"]:
    """The same; whoever waits at a terminal sees for what, as long as it takes."""
    if not (is_terminal(sys.stderr) and is_terminal(sys.stdout)):
        yield from reports
        return
    for name in names:
        typer.echo(f"         {name} …", nl=False, err=True)
        try:
            report = next(reports)
        finally:
            typer.echo("\r\x1b[K", nl=False, err=True)
        yield report


def _lines(report: "Report", columns: int | None) -> str:
    """A line for the finding, one for the remedy; on a terminal so wide, wrapped."""
    took = "" if report.verdict == "skipped" else f" ({report.took_s:.2f} s)"
    lines = [f"{report.verdict:8} {report.check:20} {printable(report.finding)}{took}"]
    if report.remedy:
        lines.append(f"{'':8} remedy: {printable(report.remedy)}")
    if columns is None:
        return "\n".join(lines)
    wrapped = [
        textwrap.fill(
            line, max(columns, _MIN_COLUMNS), subsequent_indent=" " * indent, break_long_words=False
        )
        for line, indent in zip(lines, (30, 17), strict=False)
    ]
    return "\n".join(wrapped).replace(report.verdict, _marked(report.verdict), 1)


def _marked(verdict: str) -> str:
    return verdict if "NO_COLOR" in os.environ else typer.style(verdict, _COLOURS[verdict])
