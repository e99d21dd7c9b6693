"""Home Assistant's MQTT discovery: a sensor is a device there, with gauges for coarse tags and the level.

```
<discovery prefix>/status                         ← Home Assistant has started: "online"
<discovery prefix>/sensor/<node>/<gauge>/config  → what an entity is, retained
<prefix>/<sensor>/homeassistant/<gauge>          → its value, retained, with every event that is not late
<prefix>/<sensor>/status                          → whether it can be had, as ever
```
Names and rules: https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery and …/sensor.mqtt/
"""

import math
import random
import re
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from types import TracebackType
from typing import Any, Self

import msgspec

from edgetag.contract.event import Health, Info, Status, TagsEvent
from edgetag.delivery.sink import Courier, Forwarded, Settled

EXPIRES_HOPS = 10  # a sensor that cannot keep up tags every eighth window
BIRTH_DELAY_S = 5.0  # at most: a street of sensors must not answer all at once

_UNKNOWN = "None"  # as Home Assistant spells it in payloads
_AVAILABILITY = "{{ 'online' if value_json.state in ('online', 'degraded') else 'offline' }}"
_LEVEL = "level"

_MAX_ID_CHARS = 64
_FORBIDDEN = re.compile(r"[^a-zA-Z0-9_-]")  # in a discovery topic's ids

_Entity = dict[str, Any]


def birth_topic(discovery_prefix: str) -> str:
    """Where Home Assistant says that it has started.

    >>> birth_topic("homeassistant")
    'homeassistant/status'
    """
    return f"{discovery_prefix}/status"


class HomeAssistant(Courier):
    """A courier that also keeps Home Assistant up to date, through another one.

    Entities are introduced on entering, when another bundle is announced, and a moment after Home Assistant
    has started. The level's waits for the first event that is not late: only events say whether levels are
    calibrated. Events that are late are forwarded but not shown, or an outage would run through the gauges
    when it is over.

    What an entity shows: of a `tagged` or `silent` window everything, of a `quiet` one the level only, of
    `too_little_audio` nothing: "unknown".

    Args:
        courier: has the connection, and has subscribed to `birth_topic(discovery_prefix)`. What it hears
            elsewhere is lost: `settled` takes it.
        sensor, prefix: as the courier's.
        discovery_prefix: what Home Assistant's own topics begin with.
        info: as the courier's: what it announces when it is entered.
        monotonic, uniform: a clock, and a random number from 0 to 1.
    """

    def __init__(
        self,
        courier: Courier,
        *,
        sensor: str,
        prefix: str,
        discovery_prefix: str,
        info: Info,
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._courier = courier
        self._sensor, self._topic = sensor, f"{prefix}/{sensor}"
        self._discovery_topic = f"{discovery_prefix}/sensor/{_id(sensor)}"
        self._birth_topic = birth_topic(discovery_prefix)
        self._info = info
        self._tags = _tags(info)
        self._is_calibrated: bool | None = None  # not known yet
        self._monotonic, self._uniform = monotonic, uniform
        self._due_s = math.inf  # to introduce the entities once more

    def __enter__(self) -> Self:
        self._courier.__enter__()
        self._introduce(self._entities())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._courier.__exit__(exc_type, exc, traceback)

    def forward(self, id: int, kind: Forwarded, payload: bytes) -> None:
        """Forward, and show what a window had, unless it is late."""
        self._courier.forward(id, kind, payload)
        if kind == "tags" and (event := _decode(payload)) is not None and not event.late:
            self._show(event)

    def settled(self) -> list[Settled]:
        """As the other courier's; also the moment to look whether Home Assistant has started."""
        self.heard()
        if self._monotonic() >= self._due_s:
            self._due_s = math.inf
            self._introduce(self._entities())
        return self._courier.settled()

    def heard(self) -> list[tuple[str, bytes]]:
        """As the other courier's; a start of Home Assistant is taken note of."""
        messages = self._courier.heard()
        if self._due_s == math.inf and (self._birth_topic, b"online") in messages:
            self._due_s = self._monotonic() + BIRTH_DELAY_S * self._uniform()
        return messages

    def state(self, status: Status) -> None:
        self._courier.state(status)

    def announce(self, info: Info) -> None:
        """Announce; another bundle's entities replace those there were."""
        self._courier.announce(info)
        if info == self._info:
            return
        before = self._entities()
        self._info, self._tags = info, _tags(info)
        self._withdraw(before.keys() - self._entities().keys())
        self._introduce(self._entities())

    def report(self, health: Health) -> None:
        self._courier.report(health)

    def say(self, topic: str, payload: bytes, *, retain: bool) -> None:
        self._courier.say(topic, payload, retain=retain)

    # -- what entities show ------------------------------------------------------------------------

    def _show(self, event: TagsEvent) -> None:
        if event.level.calibrated != self._is_calibrated:
            self._is_calibrated = event.level.calibrated
            self._introduce({_LEVEL: _level(self._is_calibrated)})
        for gauge, id in self._tags.items():
            probability = event.coarse.get(id)
            self._show_one(gauge, _UNKNOWN if probability is None else f"{100 * probability:.1f}")
        is_heard = event.verdict != "too_little_audio"
        self._show_one(_LEVEL, f"{event.level.laeq_db:.1f}" if is_heard else _UNKNOWN)

    def _show_one(self, gauge: str, value: str) -> None:
        self.say(self._state_topic(gauge), value.encode(), retain=True)

    # -- what entities are -------------------------------------------------------------------------

    def _entities(self) -> dict[str, _Entity]:
        """What is particular to each entity, by its gauge's name in topics."""
        entities = {gauge: _tag(self._info.tags[id]) for gauge, id in self._tags.items()}
        if self._is_calibrated is not None:
            entities[_LEVEL] = _level(self._is_calibrated)
        return entities

    def _introduce(self, entities: dict[str, _Entity]) -> None:
        for gauge, entity in entities.items():
            config = msgspec.json.encode(entity | self._common(gauge))
            self.say(self._config_topic(gauge), config, retain=True)

    def _withdraw(self, gauges: Iterable[str]) -> None:
        """An empty retained message takes back what was retained."""
        for gauge in gauges:
            self.say(self._config_topic(gauge), b"", retain=True)
            self.say(self._state_topic(gauge), b"", retain=True)

    def _common(self, gauge: str) -> _Entity:
        return {
            "unique_id": f"edgetag/{self._sensor}/{gauge}",
            "state_topic": self._state_topic(gauge),
            "state_class": "measurement",
            "expire_after": math.ceil(self._info.window_s + EXPIRES_HOPS * self._info.hop_s),
            "availability_topic": f"{self._topic}/status",
            "availability_template": _AVAILABILITY,
            "device": {
                "identifiers": [f"edgetag/{self._sensor}"],
                "name": self._sensor,
                "manufacturer": "edgetag",
                "model": self._info.bundle,
                "sw_version": self._info.edgetag,
            },
            "origin": {"name": "edgetag", "sw_version": self._info.edgetag},
        }

    def _config_topic(self, gauge: str) -> str:
        return f"{self._discovery_topic}/{gauge}/config"

    def _state_topic(self, gauge: str) -> str:
        return f"{self._topic}/homeassistant/{gauge}"


def _decode(payload: bytes) -> TagsEvent | None:
    """The event, or None: what another version left in the outbox is the subscribers' to read."""
    try:
        return msgspec.json.decode(payload, type=TagsEvent)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _tags(info: Info) -> dict[str, str]:
    """Coarse ids by their gauges' names in topics. A fine id begins with its coarse id and a dash."""
    fine = {id for id in info.tags for coarse in info.tags if id.startswith(f"{coarse}-")}
    return {_id(f"tag_{id}"): id for id in info.tags if id not in fine}


def _tag(name: str) -> _Entity:
    words = name.replace("-", " ")
    return {
        "name": words[:1].upper() + words[1:],
        "unit_of_measurement": "%",
        "suggested_display_precision": 0,
        "icon": "mdi:waveform",
    }


def _level(is_calibrated: bool) -> _Entity:
    """In dBA it is a sound pressure level, to be compared with others'; in dBFS(A) with its own only."""
    entity = {"name": "Sound level", "suggested_display_precision": 1}
    if is_calibrated:
        return entity | {"unit_of_measurement": "dBA", "device_class": "sound_pressure"}
    return entity | {"unit_of_measurement": "dBFS(A)", "icon": "mdi:volume-high"}


def _id(text: str) -> str:
    """`text` in the characters that a discovery topic's ids may have; no two texts are one id.

    A text of at most 64 of them is its own id; every other one ends in a hash, and is longer.
    """
    if not _FORBIDDEN.search(text) and len(text) <= _MAX_ID_CHARS:
        return text
    return f"{_FORBIDDEN.sub('_', text)}_{sha256(text.encode()).hexdigest()}"
