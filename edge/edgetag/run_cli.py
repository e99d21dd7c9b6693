"""`edgetag run`: the daemon."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
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

if TYPE_CHECKING:
    from edgetag.capture.microphone import Microphone
    from edgetag.config import Settings
    from edgetag.delivery.address import BrokerAddress
    from edgetag.delivery.sink import Sink
    from edgetag.live.show import LiveView
    from edgetag.loading import Loaded
    from edgetag.tagging.stream import EventStream

# A sensor that is stopped ends within five seconds, whatever hangs:
FLUSH_S = 2.0  # for what is not acknowledged, and a second for the farewell
LOADING_S = 0.5  # for a bundle that is being loaded

LOADED_WITHIN_S = (
    360.0  # a start's bundle, whose variants may be measured for five minutes before that is given up
)


class Shown(StrEnum):
    live = "live"
    table = "table"
    json = "json"
    csv = "csv"


def run(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Microphone, as `edgetag devices` names it.", show_default=False
        ),
    ] = None,
    mic: Annotated[  # noqa: ARG001 - a microphone is the only thing there is to hear with
        bool,
        typer.Option(
            "--mic",
            show_default=False,
            help="Hear with a microphone: NAME, the configured or the default one.",
        ),
    ] = True,
    config: Annotated[  # readable=False: what cannot be read is said by whoever reads it
        Path | None, typer.Option("--config", readable=False, help="Configuration file (YAML).")
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(
            "--mqtt",
            metavar="URL",
            help="Publish to a broker: mqtt://HOST, or mqtts://, ws://, wss://; in full "
            "mqtt://USER:PASSWORD@HOST:PORT. Everybody on this machine can see a password there; a "
            "configuration file keeps it.",
        ),
    ] = None,
    format: Annotated[
        Shown | None,
        typer.Option(
            "--format",
            help="What to show: in a terminal live, a picture that moves; else json if nothing is published.",
        ),
    ] = None,
    hop: Annotated[
        float | None,
        typer.Option(
            "--hop",
            metavar="SECONDS",
            help="Seconds from one window's start to the next; if absent, as configured, or what suits the "
            "bundle: 5 or 4.8.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="Bundle folder or archive; the installed one, or the starter, if absent."
        ),
    ] = None,
    variant: Annotated[
        VariantName | None, typer.Option("--variant", help="Nets to run; auto is what is faster here.")
    ] = None,
    sensor: Annotated[
        str | None, typer.Option("--sensor", help="Sensor id of the events; the host's name if absent.")
    ] = None,
) -> None:
    """Tag what a microphone hears, for as long as it runs.

    A microphone that is not there, or goes, is waited for. SIGTERM or Ctrl-C
    ends it after what was heard has been tagged; without a terminal, SIGHUP
    makes it read configuration and bundle anew.

    Example: edgetag run --mic
    """
    from edgetag import heap

    heap.begin_loading()
    from edgetag.capture.devices import load_portaudio
    from edgetag.capture.microphone import Microphone
    from edgetag.capture.portaudio import opener
    from edgetag.delivery.address import check_sensor, own_name
    from edgetag.listener import Listener
    from edgetag.loading import Loader
    from edgetag.notify import Notifier
    from edgetag.state import state_directory
    from edgetag.tagging.stream import EventStream
    from edgetag.tagging.tagger import hop_samples as to_samples

    read = partial(
        settings_with,
        config,
        audio__device=name,
        window__hop_s=hop,
        bundle__path=bundle and str(bundle),
        runtime__variant=variant and variant.value,
        sensor__id=sensor,
    )
    settings = read()
    _log_as(settings, verbose=bool(context.parent and context.parent.params.get("verbose")))
    if hop is not None:
        to_samples(hop)  # refused before anything is loaded
    publishes = mqtt is not None or settings.mqtt.url is not None
    shown = _shown(format, publishes=publishes)
    audio = settings.audio
    open_device = opener(load_portaudio(), device=audio.device, channel=audio.channel, rate_hz=audio.rate_hz)
    loader = Loader(read, state_directory())
    microphone = Microphone(open_device)
    notifier = Notifier.from_environment()
    notifier.extend_timeout(LOADED_WITHIN_S)
    with reader_may_leave(), ExitStack() as stack:
        replacement = stack.enter_context(replaced_on_hangup(loader, patience_s=LOADING_S))
        loaded, refusal = loader.load_or_previous()
        loaded.tagger.bundle = loaded.tagger.bundle.without_windows()
        heap.begin_hearing()
        stream = EventStream(
            loaded.tagger,
            sensor=check_sensor(settings.sensor.id or own_name()),
            conditions=loaded.conditions,
        )
        hop_samples = to_samples(hop_s_of(loaded))
        stack.enter_context(replacement)
        view = _live_view(loaded, stream, may_leave=publishes) if shown is Shown.live else None
        if view is not None and is_terminal(sys.stderr):
            stack.enter_context(view.logs_shown())
        sink = stack.enter_context(_sink(loaded, stream, shown, view, mqtt, hop_s_of(loaded)))
        listener = Listener(
            stream,
            loaded,
            sink,
            hop_samples=hop_samples,
            notifier=notifier,
            refusal=refusal,
            onlooker=view,
        )
        stack.enter_context(_left_on_signal(microphone))
        stack.enter_context(microphone)
        listener.listen(microphone, replacement)
    if microphone.hangs or replacement.is_busy or (view is not None and view.hangs):
        # A thread in the middle of PortAudio's, ONNX Runtime's or a stream's code would crash the process at
        # its end.
        sys.stdout.flush()
        os._exit(0)


def _shown(format: Shown | None, *, publishes: bool) -> Shown | None:
    """What is printed: what was asked for; a picture for whoever looks; JSON if events would go nowhere else.

    Raises:
        InputError: a picture was asked for where nobody sees one.
    """
    from edgetag.contract.errors import InputError

    sees_pictures = is_terminal(sys.stdout) and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    if format is Shown.live and not sees_pictures:
        raise InputError("--format live needs a terminal that can draw; leave it out, or take table")
    if format is not None:
        return format
    if sees_pictures:
        return Shown.live
    if publishes:
        return None
    return Shown.table if is_terminal(sys.stdout) else Shown.json


def _log_as(settings: "Settings", *, verbose: bool) -> None:
    """Log by the settings, to a stderr of our own: the other is silenced while PortAudio is noisy."""
    from edgetag.log import configure

    if sys.stderr is not None:
        sys.stderr = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1, errors="backslashreplace")
    level = logging.INFO if verbose else logging.getLevelNamesMapping()[settings.log.level.upper()]
    configure(level, settings.log.format)


def _address(loaded: "Loaded", mqtt: str | None) -> "BrokerAddress | None":
    """The broker to publish to, if there is one."""
    from edgetag.delivery.address import parse_url
    from edgetag.publishing import broker_of

    return broker_of(loaded.settings) if mqtt is None else parse_url(mqtt)


def _sink(
    loaded: "Loaded",
    stream: "EventStream",
    shown: Shown | None,
    view: "LiveView | None",
    mqtt: str | None,
    hop_s: float,
) -> "Sink":
    """Where events go: to the broker if there is one, and to stdout in the way in which they are shown."""
    from edgetag.delivery.sink import Tee

    address = _address(loaded, mqtt)
    sinks: list[Sink] = []
    if address is not None:
        sinks.append(_publisher(loaded, stream, address, hop_s))
    if view is not None:
        sinks.append(view)
    elif shown is not None:
        from edgetag.delivery.stdout import Stdout

        lines = printer(loaded.tagger.taxonomy, Format(shown.value), everything=True)
        sinks.append(Stdout(lines, may_leave=bool(sinks)))
    return Tee(sinks)


def _live_view(loaded: "Loaded", stream: "EventStream", *, may_leave: bool) -> "LiveView":
    from rich.console import Console

    from edgetag.live.show import LiveView

    manifest = loaded.tagger.bundle.manifest
    return LiveView(
        Console(),
        loaded.tagger.taxonomy,
        (stream.sensor, f"{manifest.name} {manifest.version}"),
        calibration_db=loaded.conditions.calibration_db,
        may_leave=may_leave,
    )


def _publisher(loaded: "Loaded", stream: "EventStream", address: "BrokerAddress", hop_s: float) -> "Sink":
    """To the broker, in a thread that waits for it as long as need be."""
    from edgetag.publishing import publisher
    from edgetag.state import state_directory

    return publisher(
        loaded.settings,
        address,
        sensor=stream.sensor,
        boot_id=stream.boot,
        info=loaded.tagger.info(hop_s),
        state_directory=state_directory(),
        flush_s=FLUSH_S,
    )


@contextmanager
def _left_on_signal(microphone: "Microphone") -> Iterator[None]:
    """SIGTERM and Ctrl-C end the hearing; a second time, the process."""
    signals = signal.SIGTERM, signal.SIGINT
    before = [signal.getsignal(number) for number in signals]

    def give_back() -> None:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)

    def leave(*_: object) -> None:
        microphone.leave()
        give_back()

    for number in signals:
        signal.signal(number, leave)
    try:
        yield
    finally:
        give_back()
