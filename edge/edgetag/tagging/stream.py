"""From a window to its event: heard, then numbered, stamped, named."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edgetag.capture.clock import kernel_clock_synced
from edgetag.capture.windows import Window
from edgetag.contract.event import Audio, Clock, Level, TagsEvent, Verdict, new_boot_id, timestamp
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_S
from edgetag.tagging.conditions import NO_CONDITIONS, Conditions

if TYPE_CHECKING:
    from edgetag.tagging.tagger import Tagger


@dataclass(frozen=True)
class Analysis:
    """What one window came to: see `edgetag.contract.event.TagsEvent` for the fields."""

    verdict: Verdict
    level: Level
    coarse: dict[str, float]
    fine: dict[str, float]
    refined: list[str]
    active: list[str]
    skipped: list[str] = field(default_factory=list)


class Heard(NamedTuple):
    """What a window came to, and what else is told of it; another process may have heard it."""

    found: Analysis
    start_sample: int
    valid: float
    overruns: int
    clipped: float
    rate_hz: int
    delivered_s: float


class EventStream:
    """The events of one run of one sensor: `seq` counts from 0, `boot` is the run's own.

    Args:
        tagger: what the windows are heard with; another may take its place between two windows.
        sensor: sensor id, as in the topics.
        monotonic: the clock that `Window.delivered_s` was read from.
        clock_synced: whether the system clock is disciplined.
        conditions: what the sensor's place adds to the bundle; others may take their place, too.
        boot: the run's id; a new one if absent.
    """

    def __init__(
        self,
        tagger: "Tagger",
        *,
        sensor: str,
        monotonic: Callable[[], float] = time.monotonic,
        clock_synced: Callable[[], bool] = kernel_clock_synced,
        conditions: Conditions = NO_CONDITIONS,
        boot: str | None = None,
    ) -> None:
        self.boot = boot or new_boot_id()
        self.tagger = tagger
        self.sensor = sensor
        self._monotonic = monotonic
        self._clock_synced = clock_synced
        self.conditions = conditions
        self._seq = 0

    @property
    def n_events(self) -> int:
        """Events so far: the next one's `seq`."""
        return self._seq

    def event(
        self,
        window: Window,
        *,
        start_utc_s: float,
        source: str | None = None,
        clock_step_s: float = 0.0,
        with_branches: bool = True,
    ) -> TagsEvent:
        """Tag one window.

        Args:
            window: from a `Windower`.
            start_utc_s: UTC of the stream's sample 0, seconds since 1970.
            source: the name of what is replayed; None for a microphone.
            clock_step_s: by how much the system clock was set since the window before.
            with_branches: False where there is no time for them.
        """
        heard = self.hear(window, with_branches=with_branches)
        return self.tell(heard, start_utc_s=start_utc_s, source=source, clock_step_s=clock_step_s)

    def hear(self, window: Window, *, with_branches: bool = True) -> Heard:
        """The first half of `event`."""
        found = self.tagger.analyse(
            window.samples,
            window.valid,
            lost=window.lost,
            start_sample=window.start_sample,
            conditions=self.conditions,
            with_branches=with_branches,
        )
        return Heard(
            found,
            window.start_sample,
            window.valid,
            window.overruns,
            window.clipped,
            window.rate_hz,
            window.delivered_s,
        )

    def tell(
        self, heard: Heard, *, start_utc_s: float, source: str | None = None, clock_step_s: float = 0.0
    ) -> TagsEvent:
        """The second half of `event`, in the order in which events are to be numbered."""
        window_start_s = start_utc_s + heard.start_sample / SAMPLE_RATE_HZ
        event = TagsEvent(
            sensor=self.sensor,
            boot=self.boot,
            seq=self._seq,
            start=timestamp(window_start_s),
            end=timestamp(window_start_s + WINDOW_S),
            clock=Clock(self._clock_synced(), round(clock_step_s, 3)),
            verdict=heard.found.verdict,
            audio=Audio(heard.rate_hz, round(heard.valid, 6), heard.overruns, round(heard.clipped, 6)),
            level=heard.found.level,
            coarse=heard.found.coarse,
            fine=heard.found.fine,
            refined=heard.found.refined,
            active=heard.found.active,
            model=self.tagger.bundle.model,
            skipped=heard.found.skipped,
            lag_s=round(self._monotonic() - heard.delivered_s, 3),
            source=msgspec.UNSET if source is None else source,
        )
        self._seq += 1
        return event
