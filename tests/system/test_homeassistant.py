"""Home Assistant's side of the broker: what it finds there, in a real Mosquitto, from the real publisher."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from edgetag.contract.event import encode
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.delivery.homeassistant import HomeAssistant, birth_topic
from edgetag.delivery.mqtt import MqttPublisher
from edgetag.delivery.sink import Settled
from fakes import bundle_info, sensor_status, tags_event
from system.test_mosquitto import SENSOR, TOPIC, WAIT_S, Mosquitto, find
from system.test_mosquitto import pytestmark as needs_mosquitto

pytestmark = needs_mosquitto

BIRTH = birth_topic("homeassistant")
CONFIGS = "homeassistant/sensor/+/+/config"
STATES = f"{TOPIC}/homeassistant/+"
N_TAGS = len(SONYC_UST.coarse_ids)


class Found(NamedTuple):
    """A message, as a subscriber gets it."""

    topic: str
    retained: bool
    payload: str


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """Keeps what is said unacknowledged, too, for sessions that listen later."""
    with Mosquitto(tmp_path, "allow_anonymous true", "queue_qos0_messages true") as broker:
        yield broker


@contextmanager
def sensor(broker: Mosquitto) -> Iterator[HomeAssistant]:
    """A publisher with discovery, entered, that answers a birth at once."""
    publisher = MqttPublisher(
        broker.address(),
        sensor=SENSOR,
        info=bundle_info(),
        boot_id="01JD",
        status=sensor_status(),
        reconnect=False,
        subscribe=[BIRTH],
    )
    names = {"sensor": SENSOR, "prefix": "sonyc/v1", "discovery_prefix": "homeassistant"}
    with HomeAssistant(publisher, **names, info=bundle_info(), uniform=lambda: 0.0) as house:
        yield house


def subscriber(broker: Mosquitto, *arguments: str) -> list[Found]:
    """What `mosquitto_sub` prints with these arguments."""
    program = find("mosquitto_sub")
    assert program is not None
    fixed = ["-V", "5", "-p", str(broker.port), "-q", "1", "-W", str(WAIT_S), "-F", r"%t\t%r\t%p"]
    done = subprocess.run([program, *fixed, *arguments], capture_output=True, text=True, check=True)
    lines = (line.split("\t", 2) for line in done.stdout.splitlines())
    return [Found(topic, retained == "1", payload) for topic, retained, payload in lines]


def late(broker: Mosquitto, topic: str, n: int) -> list[Found]:
    """What somebody who comes only now finds."""
    return subscriber(broker, "-t", topic, "-C", str(n))


@contextmanager
def listening(broker: Mosquitto, topic: str) -> Iterator[Callable[[int], list[Found]]]:
    """What is said on a topic from now on: so many messages, once they have come."""
    session = ["-i", "house", "-t", topic, "-c", "-x", "3600", "-R"]
    subscriber(broker, *session, "-E")
    yield lambda n: subscriber(broker, *session, "-C", str(n))


def say(broker: Mosquitto, topic: str, payload: bytes) -> None:
    program = find("mosquitto_pub")
    assert program is not None
    content = ["-s"] if payload else ["-n"]
    subprocess.run(
        [program, "-p", str(broker.port), "-t", topic, "-q", "1", *content], input=payload, check=True
    )


def settle(house: HomeAssistant, until: Callable[[], bool]) -> None:
    """As the delivery thread does: look now and then."""
    deadline_s = time.monotonic() + WAIT_S
    while not until():
        assert time.monotonic() < deadline_s
        house.settled()
        time.sleep(0.01)


def forward(house: HomeAssistant, *seqs: int, **changes: Any) -> None:
    """So many events, until they are acknowledged."""
    settled: list[Settled] = []
    for seq in seqs:
        house.forward(seq, "tags", encode(tags_event(seq, **changes)))
    deadline_s = time.monotonic() + WAIT_S
    while len(settled) < len(seqs):
        assert time.monotonic() < deadline_s
        settled += house.settled()
        time.sleep(0.01)
    assert settled == [Settled(seq) for seq in seqs]


# -- what is documented ----------------------------------------------------------------------------------

# https://www.home-assistant.io/integrations/sensor.mqtt/ and …/mqtt/#discovery-topic
DISCOVERY_TOPIC = re.compile(r"homeassistant/sensor/([a-zA-Z0-9_-]+)/([a-zA-Z0-9_-]+)/config")
OPTIONS: dict[str, type] = {
    "availability_template": str,
    "availability_topic": str,
    "device": dict,
    "device_class": str,
    "expire_after": int,
    "icon": str,
    "name": str,
    "origin": dict,
    "state_class": str,
    "state_topic": str,
    "suggested_display_precision": int,
    "unique_id": str,
    "unit_of_measurement": str,
}
DEVICE = {"identifiers", "manufacturer", "model", "name", "sw_version"}
UNITS = {None: {"%", "dBFS(A)"}, "sound_pressure": {"dB", "dBA"}}  # by device class


def check(config: dict[str, Any]) -> None:
    """Required keys are there, none is made up, and what they say is allowed."""
    assert {"state_topic", "unique_id", "device"} <= config.keys() <= OPTIONS.keys()
    assert all(type(value) is OPTIONS[key] for key, value in config.items())
    assert config["device"].keys() <= DEVICE
    assert config["device"]["identifiers"]
    assert config["origin"].keys() <= {"name", "sw_version", "support_url"}
    assert config["origin"]["name"]
    assert config["state_class"] in ("measurement", "total", "total_increasing")
    assert config["expire_after"] > 0
    assert config["unit_of_measurement"] in UNITS[config.get("device_class")]
    assert not set("+#") & set(config["state_topic"] + config["availability_topic"])


def test_a_late_subscriber_finds_what_is_documented_and_a_value_for_each(broker: Mosquitto) -> None:
    """Also after the sensor has gone: then its status says that it is not available."""
    with sensor(broker) as house:
        forward(house, 0, 1)
    configs, states = late(broker, CONFIGS, N_TAGS + 1), late(broker, STATES, N_TAGS + 1)
    assert all(found.retained for found in configs + states)
    values = {topic: payload for topic, _, payload in states}
    shown = {}
    for topic, _, payload in configs:
        config = json.loads(payload)
        assert DISCOVERY_TOPIC.fullmatch(topic)
        check(config)
        (status,) = late(broker, config["availability_topic"], 1)
        assert json.loads(status.payload)["state"] == "offline"
        shown[config["name"]] = values.pop(config["state_topic"]) + config["unit_of_measurement"]
    assert values == {}
    assert shown["Human voice"] == "91.0%"
    assert shown["Sound level"] == "63.2dBA"
    assert len(shown) == N_TAGS + 1


def test_an_uncalibrated_level_is_documented_as_well(broker: Mosquitto) -> None:
    with sensor(broker) as house:
        forward(house, 0, level=msgspec.structs.replace(tags_event().level, calibrated=False))
    (level,) = late(broker, "homeassistant/sensor/+/level/config", 1)
    check(json.loads(level.payload))


def test_entities_are_said_again_when_home_assistant_starts(broker: Mosquitto) -> None:
    """Whatever else comes there, in any encoding, breaks nothing."""
    with sensor(broker) as house, ThreadPoolExecutor() as pool:
        forward(house, 0)  # and so the first introduction has been heard
        with listening(broker, CONFIGS) as heard:
            for payload in (
                b"offline",
                b"",
                b"\xff\xfe\x00",
                b"online\n",
                b"ONLINE",
                bytes(100_000),
                b"online",
            ):
                say(broker, BIRTH, payload)
            again = pool.submit(heard, N_TAGS + 1)
            settle(house, again.done)
    assert not any(found.retained for found in again.result())
    assert {found.topic for found in again.result()} == {
        found.topic for found in late(broker, CONFIGS, N_TAGS + 1)
    }


def test_an_outage_does_not_run_through_the_gauges(broker: Mosquitto) -> None:
    with sensor(broker) as house, listening(broker, f"{TOPIC}/homeassistant/tag_7") as heard:
        forward(house, *range(100), late=True, coarse={"7": 0.1})
        forward(house, 100, coarse={"7": 0.9})
        assert [found.payload for found in heard(1)] == ["90.0"]


def test_another_bundle_takes_its_predecessors_entities_away(broker: Mosquitto) -> None:
    other = msgspec.structs.replace(bundle_info(), bundle="other", tags={"1": "engine"})
    with sensor(broker) as house:
        forward(house, 0)
        house.announce(other)
    configs = late(broker, CONFIGS, 2)
    assert {json.loads(found.payload)["name"] for found in configs} == {"Engine", "Sound level"}
    assert {json.loads(found.payload)["device"]["model"] for found in configs} == {"other"}
