"""The command line. Heavy imports happen in the command that needs them.

Exit codes: 0 done · 1 internal error · 2 usage or input · 3 bundle · 4 network · 5 output · 130 interrupted.
"""

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetag.assembly import (
    Format,
    VariantName,
    hop_s_of,
    is_terminal,
    printer,
    reader_may_leave,
    replaced_on_hangup,
    settings_with,
)
from edgetag.bench_cli import bench
from edgetag.bundle_cli import app as bundle_app
from edgetag.config_cli import app as config_app
from edgetag.contract.errors import EdgetagError, InputError
from edgetag.contract.event import DEFAULT_PREFIX
from edgetag.contract.frontend import MIN_VALID, WINDOW_S
from edgetag.deadline import INTERRUPTED_EXIT
from edgetag.devices_cli import devices
from edgetag.doctor_cli import doctor
from edgetag.run_cli import run
from edgetag.terminal import print_text
from edgetag.watch_cli import watch

if TYPE_CHECKING:
    from edgetag.capture.source import Block, Source
    from edgetag.daemon import Summary
    from edgetag.delivery.sink import Sink
    from edgetag.health import HealthWatch
    from edgetag.loading import Loaded
    from edgetag.replacement import Replacement
    from edgetag.tagging.sounds import SoundEvents
    from edgetag.tagging.stream import EventStream

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tag urban sounds where they are heard, and publish probabilities, never audio.",
    epilog="Exit codes: 0 done, 1 internal error, 2 usage or input, 3 bundle, 4 network, 5 output, "
    "130 interrupted.",
)
app.add_typer(bundle_app, name="bundle")
app.add_typer(config_app, name="config")


def main() -> None:
    """Entry point: one sentence on stderr for what was foreseen, a documented exit code for everything."""
    # One process tags one street: a pool of BLAS threads would only spin between windows.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        _add_found_commands()
        app()
    except EdgetagError as error:
        _complain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT)


def _add_found_commands() -> None:
    """The trainer's commands, loaded only where they are called or listed."""
    called = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    for command in entry_points(group="edgetag.commands"):
        if called in (None, command.name):
            app.add_typer(command.load(), name=command.name)


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


@app.command()
def replay(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE…", help="WAV, FLAC, OGG or MP3 files; - reads a WAV from stdin."),
    ],
    hop: Annotated[
        float | None,
        typer.Option(
            "--hop",
            help="Seconds from one window's start to the next; if absent, what suits the bundle: 5 or 4.8.",
        ),
    ] = None,
    format: Annotated[
        Format | None, typer.Option("--format", help="What to print; json if nothing is published.")
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(
            "--mqtt",
            help="Publish to a broker: mqtt://[user:password@]host[:port], or mqtts://, ws://, wss://; "
            "certificates as configured.",
        ),
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="As fast as it was heard, not faster.")
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="Bundle folder or archive; the installed one, or the starter, if absent."
        ),
    ] = None,
    variant: Annotated[
        VariantName | None, typer.Option("--variant", help="Nets to run; auto is what is faster here.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Configuration file (YAML).")] = None,
    sensor: Annotated[str, typer.Option("--sensor", help="Sensor id of the events.")] = "",
    prefix: Annotated[str, typer.Option("--prefix", help="Topic prefix.")] = DEFAULT_PREFIX,
    start: Annotated[
        datetime | None,
        typer.Option(
            "--start",
            formats=["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%fZ"],
            help="UTC of the first sample. If absent, the recording is taken to end now.",
        ),
    ] = None,
) -> None:
    """Tag recordings in rolling ten-second windows.

    SIGHUP makes a replay without a terminal read its configuration and bundle anew.

    Example: edgetag replay street.flac --format table
    """
    from edgetag.contract.frontend import SAMPLE_RATE_HZ
    from edgetag.daemon import sounds_of
    from edgetag.delivery.address import check_prefix, check_sensor
    from edgetag.health import HealthWatch
    from edgetag.loading import Loader
    from edgetag.state import state_directory
    from edgetag.tagging.stream import EventStream
    from edgetag.tagging.tagger import check_start
    from edgetag.tagging.tagger import hop_samples as to_samples

    if hop is not None:
        to_samples(hop)  # refused before anything is loaded
    check_prefix(prefix)
    sensor = check_sensor(sensor or _replay_sensor())
    start_utc_s = check_start(start.replace(tzinfo=UTC).timestamp()) if start else None
    over = {"bundle__path": bundle and str(bundle), "runtime__variant": variant and variant.value}
    loader = Loader(partial(settings_with, config, **over), state_directory())
    failed = False
    with reader_may_leave(), ExitStack() as stack:
        replacement = stack.enter_context(replaced_on_hangup(loader))
        loaded, refusal = loader.load_or_previous()
        stream = EventStream(loaded.tagger, sensor=sensor, conditions=loaded.conditions)
        watch, sounds = HealthWatch(stream), sounds_of(loaded, stream)
        hop_samples = to_samples(hop_s_of(loaded, hop))
        stack.enter_context(replacement)
        sink = stack.enter_context(_sink(loaded, stream, format, mqtt, prefix, hop_samples / SAMPLE_RATE_HZ))
        if refusal:
            watch.refused(refusal)
        progress = is_terminal(sys.stderr) and not (is_terminal(sys.stdout) and (format or not mqtt))
        for file in files:
            try:
                duration_s = _replay_one(
                    file,
                    stream,
                    sink,
                    hop_samples,
                    start_utc_s,
                    watch,
                    sounds,
                    replacement,
                    realtime=realtime,
                    progress=progress,
                )
            except InputError as error:
                _complain(error)
                failed = True
            else:
                start_utc_s = None if start_utc_s is None else start_utc_s + duration_s
    if failed:
        raise typer.Exit(InputError.exit_code)


@app.command()
def demo() -> None:
    """Replay a synthetic street through an embedded MQTT broker and show what a subscriber receives.

    Example: edgetag demo
    """
    from edgetag.demo.show import run_demo

    print_text(run_demo())


app.command()(run)
app.command()(bench)
app.command()(devices)
app.command()(doctor)
app.command()(watch)


def _replay_one(
    file: str,
    stream: "EventStream",
    sink: "Sink",
    hop_samples: int,
    start_utc_s: float | None,
    watch: "HealthWatch",
    sounds: "SoundEvents",
    replacement: "Replacement[Loaded]",
    *,
    realtime: bool,
    progress: bool,
) -> float:
    """Tag one recording; return its seconds of audio. Without a start it is taken to end now, or begin now.

    Raises:
        InputError: it cannot be read, broke off, is too short, or holds samples that are no numbers; what
            could be tagged has been.
    """
    from edgetag.capture.file import open_recording
    from edgetag.daemon import real_time, run

    with open_recording(file) as source:
        duration_s = source.duration_s
        if start_utc_s is None:
            start_utc_s = time.time() - (0.0 if realtime else duration_s or 0.0)
        observers = [real_time(source.rate_hz)] if realtime else []
        with _progress(source, duration_s) if progress else nullcontext() as advance:
            summary = run(
                source,
                stream,
                sink,
                hop_samples=hop_samples,
                start_utc_s=start_utc_s,
                label=os.fsencode(file).decode("utf-8", "replace"),
                observers=[*observers, advance] if advance else observers,
                watch=watch,
                sounds=sounds,
                replacement=replacement,
            )
    _check_heard(file, summary)
    return summary.audio_s


def _check_heard(file: str, summary: "Summary") -> None:
    if summary.not_finite:
        raise InputError(
            f"{file}: {summary.not_finite} samples are not finite numbers; they were treated as lost audio"
        )
    if summary.n_windows == summary.verdicts["too_little_audio"]:
        raise InputError(
            f"{file}: {summary.audio_s:.1f} s of audio; a {WINDOW_S}-s window needs "
            f"{MIN_VALID * WINDOW_S:.1f} s; not tagged"
        )


def _sink(
    loaded: "Loaded",
    stream: "EventStream",
    format: Format | None,
    mqtt: str | None,
    prefix: str,
    hop_s: float,
) -> "Sink":
    """Where events go: to the broker if there is one, to stdout if a format is named or there is none."""
    from edgetag.delivery.sink import Tee

    sinks: list[Sink] = []
    if mqtt is not None:
        from edgetag.delivery.address import parse_url
        from edgetag.delivery.mqtt import MqttPublisher
        from edgetag.publishing import connecting

        sinks.append(
            MqttPublisher(
                parse_url(mqtt),
                sensor=stream.sensor,
                info=loaded.tagger.info(hop_s),
                boot_id=stream.boot,
                prefix=prefix,
                # A replay that ends is gone: there is nothing to come back to.
                how=dataclasses.replace(connecting(loaded.settings), session_expiry_s=0),
            )
        )
    if format is not None or mqtt is None:
        from edgetag.delivery.stdout import Stdout

        sinks.append(Stdout(printer(loaded.tagger.taxonomy, format or Format.json), may_leave=bool(sinks)))
    return Tee(sinks)


@contextmanager
def _progress(source: "Source", duration_s: float | None) -> Iterator[Callable[["Block"], None]]:
    """A bar on stderr, over the recording's length where it is known."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(source.name, total=duration_s)
        yield lambda block: progress.advance(task, len(block.frames) / source.rate_hz)


def _replay_sensor() -> str:
    """By the host's name, but never its live sensor's own id: a broker keeps one connection an id."""
    from edgetag.delivery.address import MAX_SENSOR_CHARS, own_name

    return f"replay-{own_name()}"[:MAX_SENSOR_CHARS]


def _complain(error: Exception) -> None:
    typer.echo(f"edgetag: {error}", err=True)
