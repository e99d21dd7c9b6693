"""The command line. Heavy imports happen in the command that needs them.

Exit codes: 0 done · 1 internal error · 2 usage or input · 3 bundle · 4 network · 5 output · 130 interrupted.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from edgetag.bench_cli import bench
from edgetag.bundle_cli import app as bundle_app
from edgetag.config_cli import app as config_app
from edgetag.contract.errors import EdgetagError, InputError, OutputError
from edgetag.contract.event import DEFAULT_PREFIX
from edgetag.contract.frontend import MIN_VALID, WINDOW_S
from edgetag.devices_cli import devices
from edgetag.terminal import forget_unwritable_stdout, print_text

if TYPE_CHECKING:
    from edgetag.capture.source import Block, Source
    from edgetag.config import Settings
    from edgetag.daemon import Summary
    from edgetag.delivery.sink import Sink
    from edgetag.health import HealthWatch
    from edgetag.loading import Loader
    from edgetag.replacement import Replacement
    from edgetag.tagging.stream import EventStream
    from edgetag.tagging.tagger import Tagger

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

INTERRUPTED_EXIT = 130


class Format(StrEnum):
    json = "json"
    table = "table"
    csv = "csv"


class VariantName(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    int8 = "int8"


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
    hop: Annotated[float, typer.Option("--hop", help="Seconds from one window's start to the next.")] = 5.0,
    format: Annotated[
        Format | None, typer.Option("--format", help="What to print; json if nothing is published.")
    ] = None,
    mqtt: Annotated[
        str | None, typer.Option("--mqtt", help="Publish to a broker: mqtt://[user:password@]host[:port]")
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
    from edgetag.delivery.address import check_prefix, check_sensor
    from edgetag.health import HealthWatch
    from edgetag.loading import Loader
    from edgetag.state import state_directory
    from edgetag.tagging.stream import EventStream
    from edgetag.tagging.tagger import check_start
    from edgetag.tagging.tagger import hop_samples as to_samples

    hop_samples = to_samples(hop)
    check_prefix(prefix)
    sensor = check_sensor(sensor or _replay_sensor())
    start_utc_s = check_start(start.replace(tzinfo=UTC).timestamp()) if start else None
    loader = Loader(partial(_settings, config, bundle, variant), state_directory())
    failed = False
    with _reader_may_leave(), ExitStack() as stack:
        replacement = stack.enter_context(_replaced_on_hangup(loader))
        tagger, refusal = loader.load_or_previous()
        stream = EventStream(tagger, sensor=sensor)
        watch = HealthWatch(stream)
        stack.enter_context(replacement)
        sink = stack.enter_context(_sink(tagger, stream, format, mqtt, prefix, hop))
        if refusal:
            sink.report(watch.refused(refusal))
        progress = _is_terminal(sys.stderr) and not (_is_terminal(sys.stdout) and (format or not mqtt))
        for file in files:
            try:
                duration_s = _replay_one(
                    file,
                    stream,
                    sink,
                    hop_samples,
                    start_utc_s,
                    watch,
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


app.command()(bench)
app.command()(devices)


def _settings(config: Path | None, bundle: Path | None, variant: VariantName | None) -> "Settings":
    """The configuration file's settings, or the defaults, and the command line's over them."""
    import msgspec

    from edgetag.config import Settings, read_settings

    settings = Settings() if config is None else read_settings(config)
    if bundle is not None:
        settings = msgspec.structs.replace(
            settings, bundle=msgspec.structs.replace(settings.bundle, path=str(bundle))
        )
    if variant is not None:
        settings = msgspec.structs.replace(
            settings, runtime=msgspec.structs.replace(settings.runtime, variant=variant.value)
        )
    return settings


@contextmanager
def _replaced_on_hangup(loader: "Loader") -> "Iterator[Replacement]":
    """SIGHUP asks for the bundle anew. With a terminal it means that the terminal has gone, as ever.

    What is yielded is yet to be entered; until then a wish waits.
    """
    from edgetag.replacement import Replacement

    replacement = Replacement(loader.load)
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


def _replay_one(
    file: str,
    stream: "EventStream",
    sink: "Sink",
    hop_samples: int,
    start_utc_s: float | None,
    watch: "HealthWatch",
    replacement: "Replacement",
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
    tagger: "Tagger",
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

        sinks.append(
            MqttPublisher(
                parse_url(mqtt),
                sensor=stream.sensor,
                info=tagger.info(hop_s),
                boot_id=stream.boot,
                prefix=prefix,
            )
        )
    if format is not None or mqtt is None:
        from edgetag.delivery.stdout import Stdout

        sinks.append(Stdout(_printer(tagger, format or Format.json), may_leave=bool(sinks)))
    return Tee(sinks)


def _printer(tagger: "Tagger", format: Format) -> "Sink":
    if sys.stdout is None:
        raise OutputError("stdout is closed; give events somewhere to go, e.g. > events.json")
    match format:
        case Format.json:
            from edgetag.delivery.stdout import JsonLines

            return JsonLines(sys.stdout.buffer)
        case Format.csv:
            from edgetag.delivery.stdout import Csv

            return Csv(sys.stdout, tagger.taxonomy)
        case Format.table:
            from rich.console import Console

            from edgetag.delivery.table import Table

            return Table(Console(), tagger.taxonomy)


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """`edgetag replay … | head -1`: a reader who has had enough is no error."""
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit from None
    finally:
        forget_unwritable_stdout()


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
    return f"replay-{socket.gethostname().partition('.')[0]}"[:64]


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _complain(error: Exception) -> None:
    typer.echo(f"edgetag: {error}", err=True)
