"""What a subscriber knows of a network of sensors, from nothing but their topics.

Anybody may publish anything on a topic. So this reads of a message only what it needs, bounded in length and
number, and counts what it cannot read. No clock, no socket: times are given.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from edgetag.contract.errors import MAX_CHARACTERS, InputError, first_line
from edgetag.delivery.address import check_sensor

MAX_SENSORS = 2_000
MAX_PAYLOAD_BYTES = 65_536  # thirty times a window's event
MAX_REMEMBERED = 50_000  # events, to know a duplicate by: 500 sensors that send 100 again each
MAX_CHARS = 200  # of any text
N_SOUNDS = 6

Kind: TypeAlias = Literal["tags", "events", "status", "info", "health"]
KINDS: tuple[Kind, ...] = ("tags", "events", "status", "info", "health")
EVENTS: tuple[Kind, ...] = ("tags", "events")  # come at least once

_DEFAULT_HOP_S = 10.0  # until `info` tells
_OVERDUE_HOPS = 3
_OVERDUE_S = 10.0  # more: a sensor that loads a bundle says nothing for so long

_Text = Annotated[str, msgspec.Meta(max_length=MAX_CHARS)]
_Sentence = Annotated[str, msgspec.Meta(max_length=2 * MAX_CHARACTERS)]  # it may quote a path
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]
_Decibels = Annotated[float, msgspec.Meta(ge=-1_000, le=1_000)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Size = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
_Fractions = Annotated[dict[_Text, _Fraction], msgspec.Meta(max_length=256)]


# -- what is read of the messages ----------------------------------------------------------------------------


class Level(msgspec.Struct, frozen=True):
    laeq_db: _Decibels
    calibrated: bool = False


class Audio(msgspec.Struct, frozen=True):
    valid: _Fraction = 1.0
    clipped: _Fraction = 0.0


class Clock(msgspec.Struct, frozen=True):
    synced: bool = True


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Of a message on `tags`."""

    schema: Literal["edgetag.tags/1"]
    boot: _Text
    seq: _Count
    end: _Time
    verdict: _Text
    level: Level
    active: Annotated[list[_Text], msgspec.Meta(max_length=256)]
    coarse: _Fractions = {}
    fine: _Fractions = {}
    audio: Audio = Audio()
    clock: Clock = Clock()
    late: bool = False
    source: str | None = None


class Sound(msgspec.Struct, frozen=True, kw_only=True):
    """Of a message on `events`."""

    schema: Literal["edgetag.event/1"]
    boot: _Text
    seq: _Count
    kind: Literal["start", "end"]
    name: _Text
    start: _Time
    end: _Time
    duration_s: _Seconds
    peak: _Fraction
    id: _Text = ""
    reason: _Text = "faded"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Of a message on `status`."""

    schema: Literal["edgetag.status/1"]
    state: _Text
    reason: _Sentence = ""
    since: _Time | None = None


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """Of a message on `info`."""

    schema: Literal["edgetag.info/1"]
    tags: Annotated[dict[_Text, _Text], msgspec.Meta(max_length=256)]
    hop_s: _Seconds = _DEFAULT_HOP_S
    window_s: _Seconds = 0.0
    edgetag: _Text = ""
    bundle: _Text = ""
    bundle_sha256: _Text = ""
    variant: _Text = ""
    taxonomy: _Text = ""


class BundleHealth(msgspec.Struct, frozen=True):
    state: _Text = "ok"
    reason: _Sentence = ""


class Outbox(msgspec.Struct, frozen=True):
    depth: _Count = 0
    dropped: _Count = 0
    refused: _Count = 0
    fault: _Sentence = ""


class Delivery(msgspec.Struct, frozen=True):
    connects_last_hour: _Count = 0
    last_error: _Sentence = ""
    outbox: Outbox = Outbox()


class Listening(msgspec.Struct, frozen=True):
    device: _Text = ""
    heard_s: _Seconds = 0.0
    lost_s: _Seconds = 0.0
    overruns: _Count = 0


class Load(msgspec.Struct, frozen=True):
    step: _Count = 0
    branches_skipped: _Count = 0
    windows_skipped: _Count = 0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Of a message on `health`."""

    schema: Literal["edgetag.health/1"]
    at: _Time | None = None
    windows: _Count = 0
    uptime_s: _Seconds = 0.0
    cpu_s: _Seconds = 0.0
    rss_mb: _Size = 0.0
    disk_free_mb: _Size | None = None
    temperature_c: Annotated[float, msgspec.Meta(ge=-300, le=1_000)] | None = None
    clock_steps: _Count = 0
    bundle: BundleHealth = BundleHealth()
    delivery: Delivery = Delivery()
    audio: Listening | None = None
    load: Load | None = None


Said: TypeAlias = Window | Sound | Status | Info | Health

_TYPES: Mapping[Kind, type[Said]] = {
    "tags": Window,
    "events": Sound,
    "status": Status,
    "info": Info,
    "health": Health,
}


class Place(NamedTuple):
    """Whose topic it is, and what is on it."""

    sensor: str
    kind: Kind


def place_of(topic: str, prefix: str) -> Place | None:
    """Where a topic belongs; None if it is none of a sensor's.

    >>> place_of("sonyc/v1/lamp-17/tags", "sonyc/v1")
    Place(sensor='lamp-17', kind='tags')
    """
    if not topic.startswith(f"{prefix}/"):
        return None
    sensor, _, kind = topic.removeprefix(f"{prefix}/").rpartition("/")
    try:
        return Place(check_sensor(sensor), kind) if kind in KINDS else None
    except InputError:
        return None


class Duplicates:
    """Delivery is at least once: tells an event that has been seen by `(sensor, boot, seq)`.

    Remembers the last `max_remembered`, of all sensors together.
    """

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        self._seen: dict[tuple[Place, str, int], None] = {}

    def is_one(self, place: Place, boot: str, seq: int) -> bool:
        """Whether this event has been asked for before. Each topic of a sensor counts by itself."""
        key = place, boot, seq
        is_known = key in self._seen
        self._seen.pop(key, None)
        self._seen[key] = None
        if len(self._seen) > self._max_remembered:
            del self._seen[next(iter(self._seen))]
        return is_known


# -- what is known -------------------------------------------------------------------------------------------


@dataclass
class Sensor:
    """The last that each topic said; None where nothing was. `heard_at_s` is when `window` arrived."""

    id: str
    status: Status | None = None
    info: Info | None = None
    health: Health | None = None
    window: Window | None = None
    heard_at_s: float = 0.0

    @property
    def state(self) -> str:
        return "unknown" if self.status is None else self.status.state

    @property
    def active(self) -> list[str]:
        """Names of the tags that are active in the last window; ids, where `info` has no name."""
        return [] if self.window is None else [self.name_of(id) for id in self.window.active]

    def name_of(self, tag: str) -> str:
        """A tag's name; its id, where `info` has no name."""
        return tag if self.info is None else self.info.tags.get(tag, tag)

    @property
    def lag_s(self) -> float | None:
        """From the last window's end, by the sensor's clock, to its arrival, by ours; None for a replay's."""
        if self.window is None or self.window.source is not None:
            return None
        return self.heard_at_s - self.window.end.timestamp()

    def silence_s(self, now_s: float) -> float | None:
        """Since the last window arrived; None if none did."""
        return None if self.window is None else max(now_s - self.heard_at_s, 0.0)

    def is_overdue(self, now_s: float) -> bool:
        """Whether a sensor that says it hears owes a window."""
        hop_s = _DEFAULT_HOP_S if self.info is None else self.info.hop_s
        silence_s = self.silence_s(now_s)
        is_hearing = self.state in ("online", "degraded")
        return is_hearing and silence_s is not None and silence_s > _OVERDUE_HOPS * hop_s + _OVERDUE_S


class News(NamedTuple):
    """What a message has changed."""

    sensor: Sensor
    said: Said


@dataclass
class Network:
    """Sensors by id, the latest sounds, and how many messages could not be used.

    prefix: of all topics.
    sounds: the latest, with the sensors that heard them; the last one came last.
    n_unreadable: messages that no sensor would send; `fault` says what is wrong with the last of them.
    n_beyond: messages of more sensors than `max_sensors`.
    """

    prefix: str
    max_sensors: int = MAX_SENSORS
    sensors: dict[str, Sensor] = field(default_factory=dict)
    sounds: deque[tuple[Sensor, Sound]] = field(default_factory=lambda: deque(maxlen=N_SOUNDS))
    n_unreadable: int = 0
    fault: str = ""
    n_beyond: int = 0
    _duplicates: Duplicates = field(default_factory=Duplicates)

    def take(self, topic: str, payload: bytes, now_s: float) -> News | None:
        """Take in a message that arrived at `now_s` (UTC). None if it is a duplicate, or of no use."""
        place = place_of(topic, self.prefix)
        if place is None:
            self._note_unreadable(topic, "it is none of a sensor's topics")
            return None
        if not payload:  # so is what was retained of a sensor cleared away
            if place.kind == "status":
                self.sensors.pop(place.sensor, None)
            return None
        try:
            said = read(place.kind, payload)
        except ValueError as error:
            self._note_unreadable(topic, first_line(error))
            return None
        return self._heed(place, said, now_s)

    def _heed(self, place: Place, said: Said, now_s: float) -> News | None:
        if isinstance(said, Window | Sound) and self._duplicates.is_one(place, said.boot, said.seq):
            return None
        if place.sensor not in self.sensors and len(self.sensors) >= self.max_sensors:
            self.n_beyond += 1
            return None
        sensor = self.sensors.setdefault(place.sensor, Sensor(place.sensor))
        match said:
            case Window():
                sensor.window, sensor.heard_at_s = said, now_s
            case Sound():
                self.sounds.append((sensor, said))
            case Status():
                sensor.status = said
            case Info():
                sensor.info = said
            case Health():
                sensor.health = said
        return News(sensor, said)

    def _note_unreadable(self, topic: str, fault: str) -> None:
        self.n_unreadable += 1
        self.fault = f"{topic[:MAX_CHARS]}: {fault}"


def read(kind: Kind, payload: bytes) -> Said:
    """What is needed of a message.

    Raises:
        ValueError: it is too long, no JSON, nested too deeply, or not this kind of message.
    """
    return _decode(payload, _TYPES[kind])


def read_json(payload: bytes) -> Any:  # noqa: ANN401
    """All of a message, in plain Python values.

    Raises:
        ValueError: it is too long, no JSON, or nested too deeply.
    """
    return _decode(payload, object)


_T = TypeVar("_T")


def _decode(payload: bytes, into: type[_T]) -> _T:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"longer than {MAX_PAYLOAD_BYTES} bytes")
    try:
        return msgspec.json.decode(payload, type=into)
    except RecursionError:
        raise ValueError("nested too deeply") from None
