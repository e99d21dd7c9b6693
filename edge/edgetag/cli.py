"""The command line. Heavy imports happen in the command that needs them.

Exit codes: 0 done · 1 internal error · 2 usage or input · 3 bundle · 4 network · 5 output · 130 interrupted.
"""

import logging
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from edgetag.assembly import complain
from edgetag.bench_cli import bench
from edgetag.bundle_cli import app as bundle_app
from edgetag.config_cli import app as config_app
from edgetag.contract.errors import EdgetagError, printable
from edgetag.dashboard_cli import PORT as DASHBOARD_PORT
from edgetag.dashboard_cli import dashboard as serve_dashboard
from edgetag.dashboard_cli import demonstrate
from edgetag.deadline import INTERRUPTED_EXIT
from edgetag.devices_cli import devices
from edgetag.doctor_cli import doctor
from edgetag.replay_cli import replay
from edgetag.run_cli import run
from edgetag.terminal import print_text
from edgetag.watch_cli import watch

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tag urban sounds where they are heard, and publish probabilities, never audio.",
    epilog="Exit codes: 0 done, 1 internal error, 2 usage or input, 3 bundle, 4 network, 5 output, "
    "130 interrupted.",
)
_BEGIN, _HEAR, _WATCH = "Begin", "Hear", "Watch a network"
_KEEP, _TRAIN = "Keep a sensor well", "Train"  # the help's panels, in this order
app.add_typer(config_app, name="config", rich_help_panel=_KEEP)
app.add_typer(bundle_app, name="bundle", rich_help_panel=_KEEP)


def main() -> None:
    """Entry point: one sentence on stderr for what was foreseen, a documented exit code for everything."""
    # One process tags one street: a pool of BLAS threads would only spin between windows.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        _add_found_commands()
        app()
    except EdgetagError as error:
        complain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT)


def _add_found_commands() -> None:
    """The trainer's commands, loaded only where they are called or listed."""
    called = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    for command in entry_points(group="edgetag.commands"):
        if called in (None, command.name):
            app.add_typer(command.load(), name=command.name, rich_help_panel=_TRAIN)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log connections, too.")] = False,
) -> None:
    from edgetag.log import configure

    configure(logging.INFO if verbose else logging.WARNING)
    if version:
        from edgetag import __version__

        print_text(f"edgetag {__version__}")
        raise typer.Exit


@app.command(rich_help_panel=_BEGIN)
def demo(
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Streets that go on, in a browser, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65_535, help="Of the dashboard; 0: any.")
    ] = DASHBOARD_PORT,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Write the street, too: a WAV or FLAC to try things on."),
    ] = None,
) -> None:
    """Replay a synthetic street through an embedded MQTT broker and show what a subscriber receives.

    Example: edgetag demo --save street.flac
    """
    if save is not None:
        from edgetag.demo.show import save_street

        save_street(save)
        print_text(f"{printable(str(save))} is a minute of synthetic street")
    if dashboard:
        demonstrate(port)
        return
    from edgetag.demo.show import run_demo

    print_text(run_demo())


app.command(rich_help_panel=_HEAR)(replay)
app.command(rich_help_panel=_HEAR)(run)
app.command(rich_help_panel=_HEAR)(devices)
app.command(rich_help_panel=_WATCH)(watch)
app.command("dashboard", rich_help_panel=_WATCH)(serve_dashboard)
app.command(rich_help_panel=_KEEP)(doctor)
app.command(rich_help_panel=_KEEP)(bench)
