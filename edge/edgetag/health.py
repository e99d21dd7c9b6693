"""How the sensor is: what `health` says every minute, and at once when a bundle took over or was refused."""

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from edgetag import heap
from edgetag.contract.event import AudioHealth, BundleHealth, DeliveryHealth, Health, LoadHealth, timestamp
from edgetag.state import nearest_existing, state_directory
from edgetag.tagging.machine import resident_bytes
from edgetag.tagging.stream import EventStream

INTERVAL_S = 60.0
TRIM_S = 3600.0
THERMAL_ZONES = Path("/sys/class/thermal")


class HealthWatch:
    """Writes the health of an event stream, and knows when the next is due.

    Args:
        stream: whose events are counted, and whose bundle hears.
        monotonic: seconds that no clock step touches.
        wall: seconds since 1970.
        trim: gives back memory that lies idle.
    """

    def __init__(
        self,
        stream: EventStream,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        trim: Callable[[], None] = heap.trim,
    ) -> None:
        self._stream = stream
        self._trim = trim
        self._monotonic = monotonic
        self._wall = wall
        self._started_s = monotonic()
        self._due_s = self._trim_s = self._started_s + INTERVAL_S
        self.bundle = self._bundle("ok")

    @property
    def due(self) -> bool:
        """Whether a minute has passed since the last was written."""
        return self._monotonic() >= self._due_s

    def took_over(self) -> None:
        """Another bundle hears from now on: the next health is due."""
        self.bundle = self._bundle("ok")
        self._due_s = self._trim_s = self._monotonic()

    def refused(self, reason: str) -> None:
        """Another bundle was to take over, and was refused: the next health is due."""
        self.bundle = self._bundle("refused", reason)
        self._due_s = self._trim_s = self._monotonic()

    def health(
        self,
        *,
        audio: AudioHealth | msgspec.UnsetType = msgspec.UNSET,
        load: LoadHealth | msgspec.UnsetType = msgspec.UNSET,
        delivery: DeliveryHealth | msgspec.UnsetType = msgspec.UNSET,
        clock_steps: int = 0,
    ) -> Health:
        """How things are now; the next is due a minute later.

        Then memory is trimmed, if it is the first, if another bundle was loaded, or if it was an hour ago.
        """
        now_s = self._monotonic()
        self._due_s = now_s + INTERVAL_S
        health = Health(
            sensor=self._stream.sensor,
            boot=self._stream.boot,
            at=timestamp(self._wall()),
            windows=self._stream.n_events,
            uptime_s=round(now_s - self._started_s, 1),
            cpu_s=round(time.process_time(), 1),
            rss_mb=round(resident_bytes() / 1e6, 1),
            bundle=self.bundle,
            clock_steps=clock_steps,
            audio=audio,
            load=load,
            delivery=delivery,
            disk_free_mb=_or_unset(disk_free_mb(state_directory())),
            temperature_c=_or_unset(temperature_c()),
        )
        if now_s >= self._trim_s:
            self._trim_s = now_s + TRIM_S
            self._trim()
        return health

    def _bundle(self, state: Literal["ok", "refused"], reason: str = "") -> BundleHealth:
        return BundleHealth(self._stream.tagger.bundle.model, state, reason, timestamp(self._wall()))


def disk_free_mb(folder: Path) -> float | None:
    """What a program may still write there, in 10^6 bytes; None if nobody knows."""
    try:
        return round(shutil.disk_usage(nearest_existing(folder)).free / 1e6, 1)
    except OSError:
        return None


def temperature_c(zones: Path = THERMAL_ZONES) -> float | None:
    """Of the hottest zone the kernel knows of; None if it knows of none."""
    found: list[float] = []
    for file in zones.glob("thermal_zone*/temp"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(file.read_text()) / 1000)
    return max(found, default=None)


def _or_unset(value: float | None) -> float | msgspec.UnsetType:
    return msgspec.UNSET if value is None else value
