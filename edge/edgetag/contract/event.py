"""What goes over the wire: typed once, exported as JSON Schema (`deploy/schema/`), pinned by a test.

Times are UTC, RFC 3339 with milliseconds. `(sensor, boot, seq)` is unique: delivery is at least
once, subscribers deduplicate by it.
"""

import hashlib
import os
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from edgetag.contract.manifest import Variant

DEFAULT_PREFIX = "sonyc/v1"

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Timestamp = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
Verdict = Literal["tagged", "silent", "quiet", "too_little_audio"]
State = Literal["online", "degraded", "no_audio", "offline"]


class Clock(msgspec.Struct, frozen=True):
    """`synced`: the system clock was disciplined (NTP, GPS) when the window was stamped.

    `step_s`: by how much the system clock was set since the window before; this one is stamped by the new
    time. 0 where nothing but small corrections happened, and for recordings.
    """

    synced: bool
    step_s: float = 0.0


class Audio(msgspec.Struct, frozen=True):
    """How much of the window was really heard.

    `rate_hz` is the source's own rate; `valid` the fraction of the window that is real audio;
    `overruns` the number of losses inside it; `clipped` the fraction of its samples at full scale.
    """

    rate_hz: int
    valid: Fraction
    overruns: Count
    clipped: Fraction


class Level(msgspec.Struct, frozen=True):
    """A-weighted level of exactly this window. dBFS(A) until `calibrated`, then dB(A) re 20 µPa."""

    laeq_db: float
    lafmax_db: float
    la10_db: float
    la90_db: float
    calibrated: bool = False


class TagsEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One window, as published on `<prefix>/<sensor>/tags`.

    Attributes:
        verdict: `tagged`; `silent` (digital silence: every probability is 0, no net was run); `quiet` (below
            the gate: no net was run, `coarse` and `fine` are empty); or `too_little_audio` (less than the
            minimum was real: they are empty, too).
        coarse: probability by coarse id.
        fine: probability by fine id; a tag the bundle cannot tell is absent.
        refined: coarse ids of the branches that fired, in taxonomy order.
        skipped: coarse ids of the branches that would have fired, had the sensor kept up.
        active: ids of the tags at or above their own thresholds, coarse first.
        model: `<bundle name>@sha256:<first twelve digits of the bundle's hash>`.
        lag_s: seconds between the window's last sample being delivered and this event.
        late: the event waited in the outbox.
        source: what was replayed (a path, as it was given); absent for a microphone.
    """

    schema: Literal["edgetag.tags/1"] = "edgetag.tags/1"
    sensor: str
    boot: str
    seq: Count
    start: Timestamp
    end: Timestamp
    clock: Clock
    verdict: Verdict
    audio: Audio
    level: Level
    coarse: dict[str, Probability]
    fine: dict[str, Probability]
    refined: list[str]
    active: list[str]
    model: str
    lag_s: float
    skipped: list[str] = msgspec.field(default_factory=list)
    late: bool = False
    source: str | msgspec.UnsetType = msgspec.UNSET


class SoundEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A sound that began or ended, as published on `<prefix>/<sensor>/events`.

    Every `start` is followed by one `end` with the same `id`, also when the audio ends (but not when the
    power does: another `boot` ends whatever was open).

    Attributes:
        seq: counts from 0 in each boot; `(sensor, boot, seq)` is unique on this topic.
        id: `<boot>/<seq of the start>`: the same in both.
        tag: id of the tag; `name` its name.
        start: start of the first window that was at or above the tag's `on` threshold.
        end: end of the last window that was not below its `off` threshold; in a `start`, of the latest.
        duration_s: from `start` to `end`.
        peak: highest probability so far.
        peak_at: start of the window it was reached in.
        reason: of an `end`: `faded` (below `off`), `audio_ended` (nothing was heard any more), or
            `settings` (a new configuration or bundle does not watch this tag in the same way).
    """

    schema: Literal["edgetag.event/1"] = "edgetag.event/1"
    sensor: str
    boot: str
    seq: Count
    kind: Literal["start", "end"]
    id: str
    tag: str
    name: str
    start: Timestamp
    end: Timestamp
    duration_s: float
    peak: Probability
    peak_at: Timestamp
    model: str
    reason: Literal["faded", "audio_ended", "settings"] | msgspec.UnsetType = msgspec.UNSET


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Retained on `<prefix>/<sensor>/status`; also the last will (`offline`, reason `connection lost`).

    `online`: hearing. `degraded`: hearing, but not everything, or not as it was asked to. `no_audio`: there
    is nothing to hear with. `since`: when this state began.
    """

    schema: Literal["edgetag.status/1"] = "edgetag.status/1"
    state: State
    reason: str
    boot_id: str
    since: Timestamp


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """Retained on `<prefix>/<sensor>/info`: what a subscriber needs to read the events.

    Published again when another bundle takes over; `variant` is the precision of the nets that run.
    """

    schema: Literal["edgetag.info/1"] = "edgetag.info/1"
    edgetag: str
    bundle: str
    bundle_sha256: str
    variant: Variant
    taxonomy: str
    tags: dict[str, str]
    thresholds: dict[str, Probability]
    window_s: float
    hop_s: float


class BundleHealth(msgspec.Struct, frozen=True):
    """Which bundle hears, and what became of the last wish for another one.

    `refused`: the bundle that was to take over did not pass its checks, for `reason`; `model` hears on.
    """

    model: str
    state: Literal["ok", "refused"]
    reason: str
    since: Timestamp


class AudioHealth(msgspec.Struct, frozen=True):
    """How well a microphone delivers.

    Attributes:
        device: what it calls itself; "" while there is none.
        rate_hz: the rate it was opened with; 0 while there is none.
        measured_hz: its frames by the monotonic clock; 0 until that is known.
        heard_s: audio delivered in this boot.
        lost_s: audio that passed unheard in this boot: overruns, and the time without a device.
        overruns: number of losses while a device was open.
        opened: how often a device was opened.
    """

    device: str
    rate_hz: int
    measured_hz: float
    heard_s: float
    lost_s: float
    overruns: Count
    opened: Count


class LoadHealth(msgspec.Struct, frozen=True):
    """What was left out because inference could not keep up with the audio.

    Attributes:
        step: 0 nothing; 1 branches are skipped; from 2 on the hop is doubled with every step, too.
        hop_s: from one tagged window to the next, at this step.
        branches_skipped: branches that would have fired in this boot.
        windows_skipped: windows of this boot that were not tagged, because of a longer hop or a newer window.
    """

    step: Count
    hop_s: float
    branches_skipped: Count
    windows_skipped: Count


class OutboxHealth(msgspec.Struct, frozen=True):
    """What is kept until the broker has it.

    Attributes:
        depth: messages (windows and sounds) that are not known to have arrived.
        bytes: of them.
        dropped: messages that were given up for lack of room since this outbox was made: the gaps in `seq`.
        refused: messages that were set aside because the broker will not take them, since then.
        damaged: how often it was found damaged and begun anew, since the first one was made.
        fault: why messages are kept in memory only; "" if they are where they should be.
    """

    depth: Count
    bytes: Count
    dropped: Count = 0
    refused: Count = 0
    damaged: Count = 0
    fault: str = ""


class DeliveryHealth(msgspec.Struct, frozen=True):
    """How the broker is reached.

    Attributes:
        connects: how often it was reached in this boot; `connects_last_hour` of late.
        last_error: why it was not, the last time; "" if it always was.
        outbox: what waits for it.
    """

    connects: Count
    connects_last_hour: Count
    last_error: str
    outbox: OutboxHealth


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """On `<prefix>/<sensor>/health`, QoS 0: every minute, and at once when a bundle took over or was refused.

    Attributes:
        at: when this was written.
        windows: events of this boot so far.
        uptime_s: since the process began to hear.
        cpu_s: processor time of the process so far.
        rss_mb: its resident memory, in 10^6 bytes.
        clock_steps: how often the system clock was set in this boot.
        disk_free_mb: of the state directory's file system, in 10^6 bytes.
        temperature_c: of the processor; absent where that is not known.
        audio, load: of a microphone; absent for recordings.
        delivery: absent where nothing is published in the background.
    """

    schema: Literal["edgetag.health/1"] = "edgetag.health/1"
    sensor: str
    boot: str
    at: Timestamp
    windows: Count
    uptime_s: float
    cpu_s: float
    rss_mb: float
    bundle: BundleHealth
    clock_steps: Count = 0
    audio: AudioHealth | msgspec.UnsetType = msgspec.UNSET
    load: LoadHealth | msgspec.UnsetType = msgspec.UNSET
    delivery: DeliveryHealth | msgspec.UnsetType = msgspec.UNSET
    disk_free_mb: float | msgspec.UnsetType = msgspec.UNSET
    temperature_c: float | msgspec.UnsetType = msgspec.UNSET


MESSAGES: dict[str, type[msgspec.Struct]] = {
    "tags": TagsEvent,
    "events": SoundEvent,
    "status": Status,
    "info": Info,
    "health": Health,
}
"""Message type by topic, below `<prefix>/<sensor>/`."""


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of the message on topic `kind`.

    Raises:
        KeyError: no such topic.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **msgspec.json.schema(MESSAGES[kind]),
    }


def encode(message: msgspec.Struct) -> bytes:
    """One line of JSON, UTF-8."""
    return msgspec.json.encode(message)


def timestamp(utc_s: float) -> str:
    """Seconds since 1970 as RFC 3339 UTC, rounded to the millisecond.

    >>> timestamp(1.2345)
    '1970-01-01T00:00:01.234Z'
    """
    return (
        datetime.fromtimestamp(round(utc_s, 3), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_boot_id() -> str:
    """A ULID: 48 bits of milliseconds, 80 random bits, Crockford base 32. Sorts by time of start."""
    return _crockford(time.time_ns() // 1_000_000, 10) + _crockford(int.from_bytes(os.urandom(10), "big"), 16)


def derived_boot_id(boot: str, name: bytes) -> str:
    """A ULID for a part of what has another one: of the same time, and the same whenever it is asked for.

    >>> derived_boot_id("01KAYZ0000ABCDEFGHJKMNPQRS", b"a.wav")
    '01KAYZ0000EASYWAZ4TGPG61G2'
    """
    digest = hashlib.sha256(boot.encode() + b"/" + name).digest()
    return boot[:10] + _crockford(int.from_bytes(digest[:10], "big"), 16)


def _crockford(value: int, n_characters: int) -> str:
    return "".join(_CROCKFORD[value >> 5 * k & 31] for k in reversed(range(n_characters)))
