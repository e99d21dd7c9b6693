"""`edgetag replay`: recordings, by one process or several."""

import dataclasses
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetag.assembly import (
    Format,
    VariantName,
    complain,
    hop_s_of,
    is_terminal,
    printer,
    reader_may_leave,
    replaced_on_hangup,
    settings_with,
)
from edgetag.contract.errors import InputError, install, printable
from edgetag.contract.event import DEFAULT_PREFIX
from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag.terminal import print_text

if TYPE_CHECKING:
    from rich.progress import Progress

    from edgetag.capture.source import Block, Source
    from edgetag.capture.windows import Window
    from edgetag.config import Settings
    from edgetag.delivery.sink import Sink
    from edgetag.health import HealthWatch
    from edgetag.hearing import Said
    from edgetag.loading import Loaded
    from edgetag.picture.album import Album
    from edgetag.picture.portrait import Portrait, Sitting
    from edgetag.tagging.sounds import SoundEvents
    from edgetag.tagging.stream import EventStream, Heard
    from edgetag.workers import Ears, Workers

_SPREAD = "Several processes"
_PICTURES = "Pictures"


def replay(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE…",
            help="WAV, FLAC, OGG or MP3 files; - reads a WAV from stdin. With --cluster also folders, and "
            "@LIST, a file with a name a line.",
        ),
    ],
    hop: Annotated[
        float | None,
        typer.Option(
            "--hop",
            metavar="SECONDS",
            help="Seconds from one window's start to the next; if absent, what suits the bundle: 5 or 4.8.",
        ),
    ] = None,
    format: Annotated[
        Format | None, typer.Option("--format", help="What to print; json if nothing is published or drawn.")
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(
            "--mqtt",
            metavar="URL",
            help="Publish to a broker: mqtt://HOST, or mqtts://, ws://, wss://; in full "
            "mqtt://USER:PASSWORD@HOST:PORT; certificates as configured.",
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
            metavar="TIME",
            formats=["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%fZ"],
            help="UTC of the first sample. If absent, the recording is taken to end now.",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            min=0,
            help="Processes that hear, a recording each; 0 is one a core. Events are the same, in the same "
            "order.",
            rich_help_panel=_SPREAD,
        ),
    ] = 1,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            help="Have workers of this Dask scheduler hear, tcp://HOST:8786. Recordings and --out must be "
            "where all of them see them. Events count from 1970: they tell the place in the recording.",
            rich_help_panel=_SPREAD,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Where a cluster writes: JSON lines, a file a recording. What is there already is not heard "
            "again.",
            rich_help_panel=_SPREAD,
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Hear it all again, whatever is there.", rich_help_panel=_SPREAD)
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot",
            metavar="OUT",
            help="Draw the recording: spectrogram, level and tags. OUT is a .png, .svg or .pdf; for several "
            "recordings a folder, with a picture each. Needs Matplotlib: pip install 'edgetag\\[plot]'.",
            rich_help_panel=_PICTURES,
        ),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(
            "--html",
            metavar="OUT",
            help="The same as one page to point at, with the sounds. It loads nothing and holds no audio; "
            "who has the recording can play it there. OUT is a .html; for several recordings a folder.",
            rich_help_panel=_PICTURES,
        ),
    ] = None,
) -> None:
    """Tag recordings in rolling ten-second windows.

    SIGHUP makes a replay by one process, without a terminal, read its
    configuration and bundle anew.

    Examples: edgetag replay street.flac --format table; edgetag replay street.flac --plot street.png
    """
    over = {"bundle__path": bundle and str(bundle), "runtime__variant": variant and variant.value}
    read = partial(settings_with, config, **over)
    if cluster or out or again:
        beside = {
            "--format": format,
            "--mqtt": mqtt,
            "--realtime": realtime,
            "--start": start,
            "--jobs": jobs - 1,
            "--plot": plot,
            "--html": html,
        }
        address, folder = _spread_to(cluster, out, beside)
        _spread(files, read, hop, sensor, address, folder, again=again)
        return
    n_processes = _n_processes(jobs, files, realtime=realtime)
    outs = {option: out for option, out in {"--plot": plot, "--html": html}.items() if out is not None}
    if outs and n_processes > 1:
        raise InputError(f"{next(iter(outs))} draws what this process hears; leave --jobs out")
    albums = [_album(option, out, files) for option, out in outs.items()]
    start_utc_s = None if start is None else start.replace(tzinfo=UTC).timestamp()
    with reader_may_leave(), _interrupted_by_sigterm(), _started(n_processes) as workers:
        n_failed = _replay(
            files,
            read,
            workers,
            hop=hop,
            format=format,
            mqtt=mqtt,
            realtime=realtime,
            sensor=sensor,
            prefix=prefix,
            start_utc_s=start_utc_s,
            albums=albums,
        )
    if n_failed:
        raise typer.Exit(InputError.exit_code)


def _album(option: str, out: str, files: list[str]) -> "Album":
    """What is to be drawn, and where; known to be possible.

    Raises:
        InputError: OUT does not suit the recordings, or what draws is not installed.
        OutputError: it cannot be written there.
    """
    from edgetag.picture.album import PAGE_SUFFIXES, PLOT_SUFFIXES, Album
    from edgetag.picture.place import places

    if option == "--html":
        from edgetag.picture import page

        return Album(option, places(option, out, files, PAGE_SUFFIXES), page.write)
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(f"--plot needs Matplotlib, which is not installed: {install('plot')}")
    found = places(option, out, files, PLOT_SUFFIXES)  # refused before anything slow is loaded
    from edgetag.picture import plot

    return Album(option, found, plot.draw)


@contextmanager
def _started(n_processes: int) -> "Iterator[Workers | None]":
    """Several processes, if it is to be several; they load their libraries while we do."""
    if n_processes == 1:
        yield None
        return
    from edgetag.workers import Workers

    with Workers(n_processes) as workers:
        yield workers


def _replay(
    files: list[str],
    read: "Callable[[], Settings]",
    workers: "Workers | None",
    *,
    hop: float | None,
    format: Format | None,
    mqtt: str | None,
    realtime: bool,
    sensor: str,
    prefix: str,
    start_utc_s: float | None,
    albums: "list[Album]",
) -> int:
    """Hear, here or by workers, deliver and draw; how many recordings could not be tagged, or not whole."""
    from edgetag.daemon import analyser, sounds_of
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
    if start_utc_s is not None:
        check_start(start_utc_s)
    loader, n_failed = Loader(read, state_directory()), 0
    format = format or (None if mqtt or albums else Format.json)
    with ExitStack() as stack:
        replacement = stack.enter_context(replaced_on_hangup(loader)) if workers is None else None
        loaded, refusal = loader.load_or_previous()
        stream = EventStream(loaded.tagger, sensor=sensor, conditions=loaded.conditions)
        watch, sounds = HealthWatch(stream), sounds_of(loaded, stream)
        hop_samples = to_samples(hop_s_of(loaded, hop))
        hop_s = hop_samples / SAMPLE_RATE_HZ
        if replacement is not None:
            stack.enter_context(replacement)
        sitting = _sitting(loaded, hop_s, albums) if albums else None
        sink = stack.enter_context(_sink(loaded, stream, format, mqtt, prefix, hop_s, sitting))
        if refusal:
            watch.refused(refusal)
        progress = is_terminal(sys.stderr) and not (is_terminal(sys.stdout) and format)
        if workers is None:
            analyse = analyser(stream, sink, watch, sounds, replacement, hop_s)
            heard = _hear_here(files, analyse, hop_samples, sitting, realtime=realtime, progress=progress)
        else:
            workers.equip(_ears(loaded, hop_samples))
            heard = _counted(workers.hear(files), len(files) if progress else None)
        telling = _Telling(stream, sink, hop_samples, watch, sounds, start_utc_s, sitting, realtime=realtime)
        for file, said in heard:
            try:
                telling.tell(file, said)
            except InputError as error:
                complain(error)
                n_failed += 1
    if is_terminal(sys.stderr):
        _say_what_became(stream, mqtt, prefix, albums)
    return n_failed


def _say_what_became(stream: "EventStream", mqtt: str | None, prefix: str, albums: "list[Album]") -> None:
    """For a person: nothing else tells that what went elsewhere has arrived."""
    from edgetag.delivery.address import parse_url

    if mqtt is not None:
        windows = f"{stream.n_events} window{'' if stream.n_events == 1 else 's'}"
        typer.echo(f"{windows} published to {parse_url(mqtt)} under {prefix}/{stream.sensor}/", err=True)
    for path in (path for album in albums for path in album.drawn):
        typer.echo(f"{printable(str(path))} written", err=True)


def _n_processes(jobs: int, files: list[str], *, realtime: bool) -> int:
    """How many are to hear, no more than there are recordings.

    Raises:
        InputError: more than one was asked for, where there is only one stream of time.
    """
    n = min(jobs or len(os.sched_getaffinity(0)), len(files))
    if jobs != 1 and ("-" in files or realtime):
        what = "--realtime" if realtime else "standard input (-)"
        raise InputError(f"{what} is heard by one process; leave --jobs out")
    return n


@dataclass
class _Telling:
    """What becomes of what is heard: recordings that follow each other from a start, or end now."""

    stream: "EventStream"
    sink: "Sink"
    hop_samples: int
    watch: "HealthWatch"
    sounds: "SoundEvents"
    start_utc_s: float | None
    sitting: "Sitting | None"
    realtime: bool

    def tell(self, file: str, said: "Iterator[Said]") -> None:
        """Deliver one recording.

        Raises:
            InputError: it cannot be read, broke off, is too short, or holds samples that are no numbers; what
                could be tagged has been.
        """
        from edgetag.daemon import tell
        from edgetag.hearing import Begun

        begun = next(said)
        assert isinstance(begun, Begun)
        start_utc_s = self.start_utc_s
        if start_utc_s is None:
            start_utc_s = time.time() - (0.0 if self.realtime else begun.duration_s or 0.0)
        label = os.fsencode(file).decode("utf-8", "replace")
        with self._drawn(file, label, start_utc_s):
            summary = tell(
                (window for window in said if not isinstance(window, Begun)),
                self.stream,
                self.sink,
                hop_samples=self.hop_samples,
                start_utc_s=start_utc_s,
                label=label,
                watch=self.watch,
                sounds=self.sounds,
            )
        summary.check(file)
        if self.start_utc_s is not None:
            self.start_utc_s += summary.audio_s

    def _drawn(self, file: str, label: str, start_utc_s: float) -> AbstractContextManager[None]:
        if self.sitting is None:
            return nullcontext()
        # Pictures are shown to others, whom the folder is no concern of.
        name = "standard input" if file == "-" else Path(label).name
        return self.sitting.of(file, name, start_utc_s, is_dated=self.start_utc_s is not None)


def _hear_here(
    files: Iterable[str],
    analyse: "Callable[[Window], Heard]",
    hop_samples: int,
    sitting: "Sitting | None",
    *,
    realtime: bool,
    progress: bool,
) -> "Iterator[tuple[str, Iterator[Said]]]":
    """Recordings one after the other, in this process; see `edgetag.workers.Workers.hear`."""
    for file in files:
        yield file, _hear_one(file, analyse, hop_samples, sitting, realtime=realtime, progress=progress)


def _hear_one(
    file: str,
    analyse: "Callable[[Window], Heard]",
    hop_samples: int,
    sitting: "Sitting | None",
    *,
    realtime: bool,
    progress: bool,
) -> "Iterator[Said]":
    from edgetag.capture.file import open_recording
    from edgetag.daemon import real_time
    from edgetag.hearing import Begun, hear

    with open_recording(file) as source:
        yield Begun(source.duration_s)
        observers = [real_time(source.rate_hz)] if realtime else []
        observers += [] if sitting is None else [sitting.listener(source.rate_hz)]
        with _progress(source, source.duration_s) if progress else nullcontext() as advance:
            observers += [advance] if advance else []
            yield from hear(source, analyse, hop_samples=hop_samples, observers=observers)


def _ears(loaded: "Loaded", hop_samples: int) -> "Ears":
    """What `loaded` hears with, for other processes."""
    from edgetag.workers import Ears

    bundle, settings = loaded.tagger.bundle, loaded.settings
    return Ears(
        bundle=bundle.path,
        sha256=bundle.sha256,
        variant=bundle.variant,
        threads=settings.runtime.threads,
        public_key=None if settings.bundle.public_key is None else Path(settings.bundle.public_key),
        conditions=loaded.conditions,
        hop_samples=hop_samples,
    )


def _spread_to(cluster: str | None, out: Path | None, beside: Mapping[str, object]) -> tuple[str, Path]:
    """The scheduler and the output folder; `beside` is what else was asked for, by option.

    Raises:
        InputError: one is missing, there is something that a cluster does not do, or Dask is not installed.
    """
    if cluster is None or out is None:
        raise InputError(
            "--cluster ADDRESS, whose workers hear, and --out FOLDER, where they write, go together"
        )
    if given := [option for option, value in beside.items() if value]:
        raise InputError(
            f"{given[0]} does nothing with --cluster, which writes JSON lines to --out; leave it out"
        )
    if importlib.util.find_spec("distributed") is None:
        raise InputError(f"--cluster needs Dask, which is not installed: {install('cluster')}")
    return cluster, out.absolute()


def _spread(
    files: list[str],
    read: "Callable[[], Settings]",
    hop: float | None,
    sensor: str,
    address: str,
    folder: Path,
    *,
    again: bool,
) -> None:
    """Have a cluster hear recordings, and say what became of them.

    Raises:
        EdgetagError: as `edgetag.cluster.client.replay` says, or the folder holds events of another run.
        typer.Exit: some could not be tagged.
    """
    from edgetag.cluster.client import recordings, spread
    from edgetag.cluster.run import FAILED_NAME, Output, Run
    from edgetag.cluster.worker import Order
    from edgetag.contract.event import new_boot_id
    from edgetag.delivery.address import check_sensor
    from edgetag.loading import Loader
    from edgetag.state import state_directory
    from edgetag.tagging.packing import packed
    from edgetag.tagging.tagger import hop_samples

    sensor = check_sensor(sensor or _replay_sensor())
    loaded = Loader(read, state_directory()).load()
    hop_s = hop_samples(hop_s_of(loaded, hop)) / SAMPLE_RATE_HZ
    run = Run.new(new_boot_id(), sensor, loaded.conditions, loaded.tagger.info(hop_s))
    order = Order(Output(folder).begin(run, again=again), folder, Path.cwd())
    archive = packed(loaded.tagger.bundle.path)
    with _interrupted_by_sigterm(), _said_on_terminal() as note:
        totals = spread(address, order, archive, recordings(files), note)
    print_text(str(totals))
    if totals.n_failed:
        complain(InputError(f"{totals.n_failed} could not be tagged, or not whole: {folder / FAILED_NAME}"))
        raise typer.Exit(InputError.exit_code)


@contextmanager
def _said_on_terminal() -> Iterator[Callable[[object], None]]:
    """Shows what it is told, if anybody looks."""
    if not is_terminal(sys.stderr):
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda said: status.update(str(said))


def _sink(
    loaded: "Loaded",
    stream: "EventStream",
    format: Format | None,
    mqtt: str | None,
    prefix: str,
    hop_s: float,
    sitting: "Sitting | None",
) -> "Sink":
    """Where events go: to the broker if there is one, to stdout if a format is named."""
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
    if format is not None:
        from edgetag.delivery.stdout import Stdout

        sinks.append(Stdout(printer(loaded.tagger.taxonomy, format), may_leave=bool(sinks)))
    return Tee([*([] if sitting is None else [sitting]), *sinks])


def _sitting(loaded: "Loaded", hop_s: float, albums: "list[Album]") -> "Sitting":
    """Who gathers what there is to draw, and hands it to all that do."""
    from edgetag.picture.portrait import Model, Sitting

    def draw(file: str, portrait: "Portrait") -> None:
        for album in albums:
            album.add(file, portrait)

    return Sitting(Model(loaded.tagger.info(hop_s), loaded.tagger.bundle.manifest), draw)


@contextmanager
def _progress(source: "Source", duration_s: float | None) -> "Iterator[Callable[[Block], None]]":
    """A bar on stderr, over the recording's length where it is known."""
    with _bar("s") as progress:
        task = progress.add_task(source.name, total=duration_s)
        yield lambda block: progress.advance(task, len(block.frames) / source.rate_hz)


def _counted(
    heard: "Iterator[tuple[str, Iterator[Said]]]", n_files: int | None
) -> "Iterator[tuple[str, Iterator[Said]]]":
    """Recordings as they are told, with a bar on stderr if there is a number to count them to."""
    if n_files is None:
        yield from heard
        return
    with _bar("recordings") as progress:
        task = progress.add_task("", total=n_files)
        for recording in heard:
            yield recording
            progress.advance(task)


def _bar(unit: str) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed:.0f}} {unit}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM is a Ctrl-C: whatever has been started is ended."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _replay_sensor() -> str:
    """By the host's name, but never its live sensor's own id: a broker keeps one connection an id."""
    from edgetag.delivery.address import MAX_SENSOR_CHARS, own_name

    return f"replay-{own_name()}"[:MAX_SENSOR_CHARS]
