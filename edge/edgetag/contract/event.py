"""What goes over the wire: typed once, exported as JSON Schema (`deploy/schema/`), pinned by a test.

Times are UTC, RFC 3339 with milliseconds. `(sensor, boot, seq)` is unique: delivery is at least
once, subscribers deduplicate by it.
"""

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
Verdict = Literal["tagged", "silent", "too_little_audio"]


class Clock(msgspec.Struct, frozen=True):
    """`synced`: the system clock was disciplined (NTP, GPS) when the window was stamped."""

    synced: bool


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
        verdict: `tagged`; `silent` (digital silence: every probability is 0, no net was run); or
            `too_little_audio` (less than the minimum was real: `coarse` and `fine` are empty).
        coarse: probability by coarse id.
        fine: probability by fine id; a tag the bundle cannot tell is absent.
        refined: coarse ids of the branches that fired, in taxonomy order.
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
    late: bool = False
    source: str | msgspec.UnsetType = msgspec.UNSET


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Retained on `<prefix>/<sensor>/status`; also the last will (`offline`, reason `connection lost`)."""

    schema: Literal["edgetag.status/1"] = "edgetag.status/1"
    state: Literal["online", "degraded", "no_audio", "offline"]
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


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """On `<prefix>/<sensor>/health`, QoS 0: every minute, and at once when a bundle took over or was refused.

    Attributes:
        at: when this was written.
        windows: events of this boot so far.
        uptime_s: since the process began to hear.
        cpu_s: processor time of the process so far.
        rss_mb: its resident memory, in 10^6 bytes.
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


MESSAGES: dict[str, type[msgspec.Struct]] = {
    "tags": TagsEvent,
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
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))
