"""`edgetag run`: the daemon."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    from edgetag.loading import Loaded
    from edgetag.tagging.stream import EventStream

# A sensor that is stopped ends within five seconds, whatever hangs:
FLUSH_S = 2.0  # for what is not acknowledged, and a second for the farewell
LOADING_S = 0.5  # for a bundle that is being loaded

LOADED_WITHIN_S = (
    360.0  # a start's bundle, whose variants may be measured for five minutes before that is given up
)


def run(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Microphone, as `edgetag devices` names it.", show_default=False
        ),
    ] = None,
    mic: Annotated[  # noqa: ARG001 - a microphone is the only thing there is to hear with
        bool, typer.Option("--mic", help="Hear with a microphone: NAME, the configured or the default one.")
    ] = True,
    config: Annotated[  # readable=False: what cannot be read is said by whoever reads it
        Path | None, typer.Option("--config", readable=False, help="Configuration file (YAML).")
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(
            "--mqtt",
            help="Publish to a broker: mqtt://[user:password@]host[:port], or mqtts://, ws://, wss://. "
            "Everybody on this machine can see a password there; a configuration file keeps it.",
        ),
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option("--format", help="What to print; if nothing is published, table or, in a pipe, json."),
    ] = None,
    hop: Annotated[
        float | None,
        typer.Option(
            "--hop",
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

    A microphone that is not there, or goes, is waited for. SIGTERM or Ctrl-C ends it after what was heard has
    been tagged; without a terminal, SIGHUP makes it read configuration and bundle anew.

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
        sink = stack.enter_context(_sink(loaded, stream, format, mqtt, hop_s_of(loaded)))
        listener = Listener(
            stream,
            loaded,
            sink,
            hop_samples=hop_samples,
            notifier=notifier,
            refusal=refusal,
        )
        stack.enter_context(_left_on_signal(microphone))
        stack.enter_context(microphone)
        listener.listen(microphone, replacement)
    if microphone.hangs or replacement.is_busy:
        # A thread in the middle of PortAudio's or ONNX Runtime's code would crash the process at its end.
        sys.stdout.flush()
        os._exit(0)


def _log_as(settings: "Settings", *, verbose: bool) -> None:
    """Log by the settings, to a stderr of our own: the other is silenced while PortAudio is noisy."""
    from edgetag.log import configure

    if sys.stderr is not None:
        sys.stderr = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1, errors="backslashreplace")
    level = logging.INFO if verbose else logging.getLevelNamesMapping()[settings.log.level.upper()]
    configure(level, settings.log.format)


def _sink(
    loaded: "Loaded", stream: "EventStream", format: Format | None, mqtt: str | None, hop_s: float
) -> "Sink":
    """Where events go: to the broker if there is one, to stdout if a format is named or there is none."""
    from edgetag.delivery.address import parse_url
    from edgetag.delivery.sink import Tee
    from edgetag.publishing import broker_of

    address = broker_of(loaded.settings) if mqtt is None else parse_url(mqtt)
    sinks: list[Sink] = []
    if address is not None:
        sinks.append(_publisher(loaded, stream, address, hop_s))
    if format is not None or address is None:
        from edgetag.delivery.stdout import Stdout

        shown = format or (Format.table if is_terminal(sys.stdout) else Format.json)
        taxonomy = loaded.tagger.taxonomy
        sinks.append(Stdout(printer(taxonomy, shown, everything=True), may_leave=bool(sinks)))
    return Tee(sinks)


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
