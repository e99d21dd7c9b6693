"""`edgetag demo`: a synthetic street through the whole pipeline and a real MQTT broker, in one process."""

import queue
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np
import soundfile
from numpy.typing import NDArray
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console

from edgetag.capture.source import Block
from edgetag.contract.errors import InputError, NetworkError, OutputError, first_line
from edgetag.contract.event import DEFAULT_PREFIX, TagsEvent
from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag.daemon import run
from edgetag.delivery.address import BrokerAddress
from edgetag.delivery.mqtt import MqttPublisher
from edgetag.delivery.sink import Sink
from edgetag.delivery.table import Table
from edgetag.demo.broker import HOST, EmbeddedBroker
from edgetag.demo.scene import street_scene
from edgetag.tagging.stream import EventStream
from edgetag.tagging.tagger import DEFAULT_HOP_S, Tagger, hop_samples

SCENE_S = 60.0
SENSOR = "demo"
_RECEIVE_TIMEOUT_S = 10.0


class ArraySource:
    """Samples in memory as a source. Shape: samples [n] at `rate_hz`."""

    def __init__(self, name: str, samples: NDArray[np.float32], rate_hz: int) -> None:
        self.name = name
        self.rate_hz = rate_hz
        self._samples = samples

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is held open."""

    def blocks(self) -> Iterator[Block]:
        """One second at a time."""
        for start in range(0, len(self._samples), self.rate_hz):
            yield Block(start, self._samples[start : start + self.rate_hz, np.newaxis])


class Subscriber:
    """What a third party would write: connect, subscribe to every sensor's tags, decode."""

    def __init__(self, port: int) -> None:
        self.events: queue.SimpleQueue[TagsEvent] = queue.SimpleQueue()
        self._port = port
        self._client = Client(CallbackAPIVersion.VERSION2, client_id="demo-subscriber")
        self._client.on_message = self._receive
        self._client.on_connect = lambda client, *_: client.subscribe(f"{DEFAULT_PREFIX}/+/tags", qos=1)
        self._subscribed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._client.on_subscribe = lambda *_: self._subscribed.put(None)

    def __enter__(self) -> Self:
        """Subscribed when it returns, so that no event is missed."""
        self._client.connect(HOST, self._port)
        self._client.loop_start()
        try:
            self._subscribed.get(timeout=_RECEIVE_TIMEOUT_S)
        except queue.Empty:
            raise NetworkError(f"the broker confirmed no subscription in {_RECEIVE_TIMEOUT_S:g} s") from None
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _receive(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        self.events.put(msgspec.json.decode(message.payload, type=TagsEvent))


class _ShowingEach(Sink):
    """Publishes an event, then shows it as it comes back from the broker."""

    def __init__(self, publisher: MqttPublisher, subscriber: Subscriber, table: Table) -> None:
        self._publisher, self._subscriber, self._table = publisher, subscriber, table
        self.heard: set[str] = set()

    def deliver(self, event: TagsEvent) -> None:
        self._publisher.deliver(event)
        try:
            received = self._subscriber.events.get(timeout=_RECEIVE_TIMEOUT_S)
        except queue.Empty:
            raise NetworkError(
                f"event {event.seq} was acknowledged by the broker but did not reach the subscriber "
                f"within {_RECEIVE_TIMEOUT_S:g} s"
            ) from None
        self._table.deliver(received)
        self.heard.update(received.active)


def save_street(file: Path) -> None:
    """Write the demonstration's street as a recording, in the format that the name's end stands for.

    Raises:
        InputError: it stands for none.
        OutputError: it cannot be written there.
    """
    if file.suffix.lower() not in (".wav", ".flac"):
        raise InputError(f"--save: {file} ends in neither .wav nor .flac")
    try:
        soundfile.write(file, street_scene().samples, SAMPLE_RATE_HZ)
    except (OSError, soundfile.LibsndfileError) as error:
        raise OutputError(f"--save: {file} cannot be written ({first_line(error)})") from error


def run_demo(console: Console | None = None) -> str:
    """Run the demonstration and return its summary, one line.

    Raises:
        InputError: the broker's library is not installed.
        NetworkError: an event did not come back.
    """
    started_s = time.monotonic()
    console = console or Console()
    tagger = Tagger.load()
    stream = EventStream(tagger, sensor=SENSOR)
    info = tagger.info(DEFAULT_HOP_S)
    with EmbeddedBroker() as broker, Subscriber(broker.port) as subscriber:
        address = BrokerAddress(HOST, broker.port)
        with MqttPublisher(address, sensor=SENSOR, info=info, boot_id=stream.boot) as publisher:
            sink = _ShowingEach(publisher, subscriber, Table(console, tagger.taxonomy))
            summary = run(
                ArraySource("synthetic street", street_scene().samples, SAMPLE_RATE_HZ),
                stream,
                sink,
                hop_samples=hop_samples(DEFAULT_HOP_S),
                start_utc_s=time.time() - SCENE_S,
                label="synthetic street",
            )
    heard = [tagger.taxonomy.tags[id].name for id in tagger.taxonomy.coarse_ids if id in sink.heard]
    return (
        f"{summary.n_windows} windows of a synthetic {SCENE_S:g}-s street published to {address} "
        f"and received, in {time.monotonic() - started_s:.1f} s; heard: {', '.join(heard) or 'nothing'}"
    )
