"""`edgetag run` as on a sensor: how soon it can hear, and how long its events take to a subscriber.

```
street ─ PulseAudio ─ edgetag run ─ Mosquitto ─ subscriber
```
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from ctypes.util import find_library
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec
import numpy as np
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from bench.footprint import MILESTONES, times
from bench.side_by_side.processes import cpu_s, one_thread, resident_mb
from bench.side_by_side.results import Live, Middle, Start
from edgetag.contract.event import TagsEvent
from edgetag.contract.frontend import WINDOW_S
from edgetag.demo.scene import street_scene
from system import sound_server
from system.sensor import Sensor, utc_s
from system.sound_server import SoundServer
from system.test_mosquitto import Mosquitto, find

N_FIRST = 8  # windows that do not count: the sound server begins late, and catches up
PATIENCE_S = 60.0


def _sensor(folder: Path, environment: Mapping[str, str], *arguments: str) -> Sensor:
    return Sensor(folder, one_thread(environment), *arguments, under=(sys.executable, str(MILESTONES)))


# -- how soon it can hear --------------------------------------------------------------------------------


def missing_for_start() -> str | None:
    """Why a start cannot be measured here, if it cannot."""
    return None if find_library("portaudio") else "libportaudio2 is not installed"


def starts(bundles: Mapping[str, Sequence[str]], n_starts: int) -> dict[str, Start]:
    """From the process's start to a bundle that has passed its self-test; they take turns.

    Args:
        bundles: by name, the arguments that choose one.
    """
    reached: dict[str, list[tuple[float, float]]] = {name: [] for name in bundles}
    for _ in range(n_starts):
        for name, arguments in bundles.items():
            reached[name].append(_start(arguments))
    return {name: Start(*map(Middle.of, zip(*own, strict=True))) for name, own in reached.items()}


def _start(arguments: Sequence[str]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="sb") as folder:  # a short name: there is a socket in it
        began_s = time.time()
        with _sensor(Path(folder) / "s", os.environ, *arguments) as sensor:
            imported, loaded = "X_MILESTONE=imported", "X_MILESTONE=loaded"
            assert sensor.wait_for(lambda: times(sensor, loaded), PATIENCE_S), sensor.logged
            return times(sensor, imported)[0] - began_s, times(sensor, loaded)[0] - began_s


# -- from the end of a window to the subscriber ----------------------------------------------------------


def missing_for_live() -> str | None:
    """Why no daemon can be heard here, if it cannot."""
    return sound_server.missing() or (None if find("mosquitto") else "mosquitto is not installed")


def live(arguments: Sequence[str], hop_s: float, n_windows: int) -> Live:
    """Let a daemon hear a street and publish `n_windows` that count."""
    duration_s = (n_windows + N_FIRST) * hop_s + WINDOW_S + PATIENCE_S
    with tempfile.TemporaryDirectory(prefix="sb") as name:
        folder = Path(name)
        (folder / "sound").mkdir()
        with (
            Mosquitto(folder) as broker,
            Subscriber(broker.port) as subscriber,
            SoundServer(folder / "sound") as street,
        ):
            street.play(np.tile(street_scene().samples, 1 + int(duration_s // 60)), wait=False)
            options = ("--mqtt", f"mqtt://127.0.0.1:{broker.port}", "--hop", f"{hop_s:g}", *arguments)
            with _sensor(folder / "s", street.environment(), *options) as sensor:
                return _hear(sensor, subscriber, hop_s, n_windows)


def _hear(sensor: Sensor, subscriber: "Subscriber", hop_s: float, n_windows: int) -> Live:
    pid = sensor.process.pid
    subscriber.wait_for(N_FIRST, WINDOW_S + PATIENCE_S)
    used_s, n_first = cpu_s(pid), len(subscriber.arrivals)
    subscriber.wait_for(n_first + n_windows, n_windows * hop_s + PATIENCE_S)
    used_s, n_all = cpu_s(pid) - used_s, len(subscriber.arrivals)
    arrivals = subscriber.arrivals[n_first:n_all]
    took_ms = [1e3 * (arrival.at_s - utc_s(arrival.event.end)) for arrival in arrivals]
    p50, p99 = np.percentile(took_ms, (50, 99)).tolist()
    return Live(
        hop_s,
        len(arrivals),
        round(p50, 1),
        round(p99, 1),
        round(max(took_ms), 1),
        round(1e3 * used_s / len(arrivals), 2),
        resident_mb(pid, "VmHWM"),
        resident_mb(pid),
    )


class Arrival(NamedTuple):
    at_s: float
    event: TagsEvent


class Subscriber:
    """Takes every sensor's windows from a broker, while it is entered, and notes when they came."""

    def __init__(self, port: int) -> None:
        self.arrivals: list[Arrival] = []
        self._port = port
        self._news = threading.Condition()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe("sonyc/v1/+/tags", qos=1)
        self._client.on_message = self._take

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_for(self, n_windows: int, within_s: float) -> None:
        """Returns when so many have come."""
        with self._news:
            came = self._news.wait_for(lambda: len(self.arrivals) >= n_windows, within_s)
        assert came, f"{len(self.arrivals)} windows came, not {n_windows}"

    def _take(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        at_s = time.time()
        with self._news:
            self.arrivals.append(Arrival(at_s, msgspec.json.decode(message.payload, type=TagsEvent)))
            self._news.notify_all()
