"""All that a live picture shows, as it is at one moment: plain values, which whoever hears fills in."""

from collections import deque
from dataclasses import dataclass, field

from edgetag.contract.event import AudioHealth, DeliveryHealth, LoadHealth, SoundEvent, State, TagsEvent
from edgetag.contract.taxonomy import Taxonomy

MAX_WINDOWS = 300
"""So many are remembered: no terminal is wider."""
MAX_SOUNDS = 50
MAX_LINES = 50


@dataclass
class Glance:
    """One sensor.

    Attributes:
        taxonomy: whose categories have a row each.
        heading: what it is.
        state, reason: as `status` says.
        now_db: level of the last moments, in the windows' unit; None where nothing is heard.
        max_db: the highest of that in the last seconds.
        is_calibrated: levels are dB(A), not dBFS(A).
        windows: the latest, oldest first.
        n_windows: of this run.
        sounds: that began or ended, oldest first.
        log: lines, oldest first.
        audio, load: accounts of the microphone; None until the first.
        delivery: how the broker is reached; None where nothing is published.
        unreachable: why it is not; "" if it is, and before the first attempt.
    """

    taxonomy: Taxonomy
    heading: tuple[str, ...] = ()
    state: State = "no_audio"
    reason: str = "starting"
    now_db: float | None = None
    max_db: float | None = None
    is_calibrated: bool = False
    windows: deque[TagsEvent] = field(default_factory=lambda: deque(maxlen=MAX_WINDOWS))
    n_windows: int = 0
    sounds: deque[SoundEvent] = field(default_factory=lambda: deque(maxlen=MAX_SOUNDS))
    log: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_LINES))
    audio: AudioHealth | None = None
    load: LoadHealth | None = None
    delivery: DeliveryHealth | None = None
    unreachable: str = ""
