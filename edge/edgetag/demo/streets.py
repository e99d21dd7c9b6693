"""Synthetic streets that go on, each with a sensor of its own: something for a dashboard to show."""

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import numpy as np
import structlog
from numpy.typing import NDArray

from edgetag.capture.source import Block
from edgetag.config import Settings
from edgetag.contract.errors import EdgetagError
from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag.daemon import run, sounds_of
from edgetag.delivery.address import BrokerAddress
from edgetag.delivery.mqtt import MqttPublisher
from edgetag.demo.scene import street_scene
from edgetag.demo.show import ArraySource
from edgetag.loading import Loaded
from edgetag.tagging.stream import EventStream
from edgetag.tagging.tagger import Tagger, hop_samples

SENSORS = ("demo-1", "demo-2", "demo-3")
HOP_S = 5.0
BEFORE_S = 240.0  # so much of each street has already passed: there is something to see at once
_APART_S = 20  # what happens in one street has happened in the next one before
_LEAVE_S = 5.0

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.demo")


class EndlessSource(ArraySource):
    """Samples over and over, in real time, from `before_s` ago until `leaving` is set.

    Args:
        samples: one round. Shape: [n]
        rate_hz: of them.
        before_s: how much of them comes at once.
        leaving: ends it.
    """

    def __init__(
        self, samples: NDArray[np.float32], rate_hz: int, before_s: float, leaving: threading.Event
    ) -> None:
        super().__init__("synthetic street", samples, rate_hz)
        self._before_s = before_s
        self._leaving = leaving

    def blocks(self) -> Iterator[Block]:
        """At most a second at a time, each when its last sample would have been heard."""
        started_s, first_frame = time.monotonic() - self._before_s, 0
        while True:
            for frames in (block.frames for block in super().blocks()):
                due_s = started_s + (first_frame + len(frames)) / self.rate_hz
                if self._leaving.wait(max(due_s - time.monotonic(), 0.0)):
                    return
                yield Block(first_frame, frames)
                first_frame += len(frames)


class Streets:
    """Sensors in threads, between enter and exit, each hearing a street of its own.

    Args:
        address: of the broker they publish to.
        load: what hears, one for each.
    """

    def __init__(self, address: BrokerAddress, load: Callable[[], Tagger] = Tagger.load) -> None:
        self._address = address
        self._load = load
        self._leaving = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        """All are loaded here, one after the other: msgspec 0.22 reads from a null pointer where two threads
        are the first to decode a type.
        """
        for seed, (sensor, tagger) in enumerate([(sensor, self._load()) for sensor in SENSORS]):
            work = (sensor, seed, tagger)
            self._threads.append(threading.Thread(target=self._hear, args=work, name=sensor, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """They say goodbye."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(_LEAVE_S)

    def _hear(self, sensor: str, seed: int, tagger: Tagger) -> None:
        try:
            self._publish(sensor, seed, tagger)
        except EdgetagError as error:
            _log.error("demo.sensor_ended", sensor=sensor, reason=str(error))

    def _publish(self, sensor: str, seed: int, tagger: Tagger) -> None:
        stream = EventStream(tagger, sensor=sensor)
        ahead = seed * _APART_S * SAMPLE_RATE_HZ
        samples = np.roll(street_scene(seed).samples, -ahead)
        source = EndlessSource(samples, SAMPLE_RATE_HZ, BEFORE_S, self._leaving)
        info = tagger.info(HOP_S)
        with MqttPublisher(self._address, sensor=sensor, info=info, boot_id=stream.boot) as publisher:
            run(
                source,
                stream,
                publisher,
                hop_samples=hop_samples(HOP_S),
                start_utc_s=time.time() - BEFORE_S,
                label=source.name,
                sounds=sounds_of(Loaded(tagger, Settings()), stream),
            )
