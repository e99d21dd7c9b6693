"""The flow of `deploy/examples/node-red.json` in a real Node-RED, at a real Mosquitto (`make test-system`).

```
edgetag replay ──> Mosquitto ──> Node-RED ── each place ──> Mosquitto ──> the test
```
Node-RED is installed by npm into a folder of the test. Its copy of the flow has the broker's port, limits of
the test's own, and a probe at every place, where people hang their actions. One story is lived, with a sensor
that hears, one that dies, an archive, duplicates and nonsense; the tests read what came of it.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import soundfile
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from edgetag.contract.event import DEFAULT_PREFIX, encode, timestamp
from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag.demo.scene import street_scene
from fakes import sensor_status, sound_event, tags_event
from system.test_examples import EXAMPLES, SIREN, STREET_S, play, shell
from system.test_mosquitto import Mosquitto
from system.test_mosquitto import pytestmark as needs_mosquitto

pytestmark = [needs_mosquitto, pytest.mark.system]

NODE_RED = "node-red@^4"
INSTALL_S = 600  # at most
WAIT_S = 60  # for what must happen
LEVEL_DB = -27.0  # the street's level crosses it
LATE_AFTER_S = 3_600  # a slow machine's replay is on time
ERRORS = "What cannot be read"  # the name of what catches them

Message = dict[str, Any]


@pytest.fixture(scope="module")
def node_red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, installed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node-red")
    install = [
        npm,
        "install",
        "--prefix",
        str(folder),
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
        NODE_RED,
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    if done.returncode != 0:
        pytest.skip(f"npm could not install {NODE_RED}: {(done.stderr or done.stdout).strip()[-300:]}")
    return folder / "node_modules" / "node-red" / "red.js"


# -- the flow, with probes -----------------------------------------------------------------------------------


def places(flow: list[Message]) -> list[Message]:
    """Where people hang their actions: what makes a sentence of an event."""
    return [node for node in flow if any(rule.get("p") == "event" for rule in node.get("rules", []))]


def probed(port: int) -> list[Message]:
    """The flow as it ships, but for the broker's port and the limits, with a probe at every place."""
    flow: list[Message] = json.loads((EXAMPLES / "node-red.json").read_text())
    (tab,) = (node for node in flow if node["type"] == "tab")
    (broker,) = (node for node in flow if node["type"] == "mqtt-broker")
    (errors,) = (node for node in flow if node["type"] == "catch")
    broker |= {"broker": "127.0.0.1", "port": str(port)}
    limits = {"LEVEL_DB": LEVEL_DB, "LATE_AFTER_S": LATE_AFTER_S}
    assert {setting["name"] for setting in tab["env"]} == limits.keys()
    for setting in tab["env"]:
        setting["value"] = str(limits[setting["name"]])
    mouth = {
        "id": "mouth",
        "type": "mqtt out",
        "z": tab["id"],
        "topic": "",
        "qos": "1",
        "broker": broker["id"],
    }
    probes = [probe(node, "{'says': payload, 'event': event}") for node in places(flow)]
    return [*flow, mouth | {"wires": []}, *probes, probe(errors, "{'says': error.message}")]


def probe(node: Message, says: str) -> Message:
    """Publishes what comes out of `node` under its name."""
    topic = {"t": "set", "p": "topic", "pt": "msg", "to": f"probe/{node['name']}", "tot": "str"}
    payload = {"t": "set", "p": "payload", "pt": "msg", "to": says, "tot": "jsonata"}
    id = f"probe-{node['id']}"
    node["wires"][0].append(id)
    return {"id": id, "type": "change", "z": node["z"], "rules": [payload, topic], "wires": [["mouth"]]}


class NodeRed:
    """The program with this flow, headless, while it is entered."""

    def __init__(self, program: Path, folder: Path, flow: list[Message]) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "flows.json").write_text(json.dumps(flow))
        settings = {
            "userDir": str(folder),
            "flowFile": "flows.json",
            "httpAdminRoot": False,
            "httpNodeRoot": False,
            "uiHost": "127.0.0.1",
            "uiPort": 0,
            "telemetry": {"enabled": False},
        }
        (folder / "settings.js").write_text(f"module.exports = {json.dumps(settings)};")
        self._command = ["node", str(program), "--settings", str(folder / "settings.js")]
        self._log = folder / "log"

    def __enter__(self) -> Self:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(WAIT_S)

    def log(self) -> str:
        return self._log.read_text()


class Town:
    """The test's own connection: what is said to sensors' topics, by whoever, and what the places got."""

    def __init__(self, broker: Mosquitto) -> None:
        self._broker = broker
        self.heard: defaultdict[str, list[tuple[str, bytes]]] = defaultdict(list)  # by sensor
        self.got: defaultdict[str, list[Message]] = defaultdict(list)  # by place

    def __enter__(self) -> Self:
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._take
        self._client.connect("127.0.0.1", self._broker.port)
        self._client.subscribe([("probe/#", 1), (f"{DEFAULT_PREFIX}/#", 1)])
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._client.on_message = None  # or it would be garbage in a circle, with its sockets open

    def say(self, sensor: str, kind: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(f"{DEFAULT_PREFIX}/{sensor}/{kind}", payload, 1, retain).wait_for_publish(WAIT_S)

    def say_now(self, sensor: str, seq: int) -> None:
        """A siren, and a window, that end now."""
        end = timestamp(time.time())
        self.say(sensor, "events", encode(sound_event(seq, sensor=sensor, end=end, **SIREN)))
        self.say(sensor, "tags", encode(tags_event(seq, sensor=sensor, end=end)))

    def of(self, place: str, sensor: str) -> list[Message]:
        """What the place got of a sensor's."""
        return [message for message in self.got[place] if message["says"].startswith(f"{sensor}: ")]

    def wait_until(self, done: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not done():
            counts = {place: len(messages) for place, messages in self.got.items()}
            assert time.monotonic() < deadline_s, counts
            time.sleep(0.02)

    def wait_for(self, place: str, sensor: str, n: int = 1) -> None:
        self.wait_until(lambda: len(self.of(place, sensor)) >= n)

    def _take(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        branch, _, rest = message.topic.partition("/")
        if branch == "probe":
            self.got[rest].append(json.loads(message.payload))
        else:
            sensor, kind = rest.split("/")[-2:]
            self.heard[sensor].append((kind, message.payload))


# -- the story -----------------------------------------------------------------------------------------------


@dataclass
class Story:
    town: Town
    names: set[str]  # of places
    log: str

    def said(self, sensor: str, kind: str) -> list[Message]:
        """What a sensor published, once each."""
        return [json.loads(payload) for said, payload in self.town.heard[sensor] if said == kind]

    def sentences(self, place: str, sensor: str) -> list[str]:
        return [message["says"] for message in self.town.of(place, sensor)]

    def events(self, place: str, sensor: str) -> list[Message]:
        return [message["event"] for message in self.town.of(place, sensor)]

    def places_of(self, sensor: str) -> set[str]:
        """The places that got anything of a sensor's."""
        return {place for place in self.town.got if self.town.of(place, sensor)}


@pytest.fixture(scope="module")
def story(node_red: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    street = folder / "street.wav"
    soundfile.write(street, street_scene(duration_s=STREET_S).samples, SAMPLE_RATE_HZ)
    with ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(folder, "allow_anonymous true", "max_queued_messages 0"))
        town = stack.enter_context(Town(broker))
        flow = probed(broker.port)
        program = NodeRed(node_red, folder / "node-red", flow)
        town.say("removed", "status", encode(sensor_status("offline", "connection lost")), retain=True)
        with program:
            wait_until_it_hears(town)
            a_street_is_heard(town, broker, street)
            all_is_said_again(town, "lamp")
            an_archive_is_heard(town, broker, street)
            an_outage_is_over(town)
            a_sensor_dies(town, broker, street)
            nonsense_is_said(town)
        town.say_now("meanwhile", 0)
        town.say("meanwhile", "status", encode(sensor_status("offline", "connection lost")), retain=True)
        with program:
            town.wait_for("A siren begins", "meanwhile")
            town.wait_for("Sensor goes offline", "meanwhile")
            town.wait_for("State found on connecting", "removed", 2)
        yield Story(town, {node["name"] for node in places(flow)}, program.log())


def wait_until_it_hears(town: Town) -> None:
    """What is retained is there when it has subscribed to states; it is spoken to until it hears the rest."""
    town.wait_for("State found on connecting", "removed")
    for seq in range(1_000):
        town.say_now("early", seq)
        if town.of("A siren begins", "early") and town.of("A window", "early"):
            return
        time.sleep(0.05)
    raise AssertionError("it does not hear")


def replay(town: Town, broker: Mosquitto, street: Path, sensor: str, *options: str) -> None:
    """As fast as can be, to its end."""
    command = play(broker, street, "--sensor", sensor, *options).replace(" --realtime", "")
    with shell(command) as process:
        assert process.wait(WAIT_S) == 0
    town.wait_for("Sensor goes offline", sensor)


def a_street_is_heard(town: Town, broker: Mosquitto, street: Path) -> None:
    replay(town, broker, street, "lamp")


def all_is_said_again(town: Town, sensor: str) -> None:
    """By somebody who waits until something new has come through after it."""
    for kind, payload in list(town.heard[sensor]):
        if kind in ("tags", "events"):
            town.say(sensor, kind, payload)
    town.say_now("after-duplicates", 0)
    town.wait_for("A window", "after-duplicates")


def an_archive_is_heard(town: Town, broker: Mosquitto, street: Path) -> None:
    replay(town, broker, street, "archive", "--start", "2020-01-01T00:00:00Z")


def an_outage_is_over(town: Town) -> None:
    """What waited says so, however new it is."""
    event = tags_event(0, sensor="outage", end=timestamp(time.time()), late=True)
    town.say("outage", "tags", encode(event))
    town.wait_for("Late sound or window", "outage")


def a_sensor_dies(town: Town, broker: Mosquitto, street: Path) -> None:
    """In the midst of hearing, without a word; what it says last is its will."""
    process = shell(play(broker, street, "--sensor", "dead"), stdout=subprocess.DEVNULL)
    try:
        town.wait_for("Sensor is online", "dead")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT_S)
    town.wait_for("Sensor goes offline", "dead")


def nonsense_is_said(town: Town) -> None:
    """Anybody may publish anything; and what is retained is withdrawn by an empty message."""
    for payload in (b"\xff\xfe", b"no JSON", b"", b"[]", b"null", b"7", b'"online"', b"{}"):
        for kind in ("tags", "events", "status"):
            town.say("nonsense", kind, payload)
    town.say_now("after-nonsense", 0)
    town.wait_for("A window", "after-nonsense")


# -- what came of it -----------------------------------------------------------------------------------------


def once(messages: list[Message]) -> list[Message]:
    """Each the first time only, in order."""
    return list({(message["boot"], message["seq"]): message for message in messages}.values())


def test_each_window_comes_once_and_in_order(story: Story) -> None:
    windows = once(story.said("lamp", "tags"))
    assert len(windows) == 1 + (STREET_S - 10) / 5
    assert len(story.said("lamp", "tags")) == 2 * len(windows), "they were said twice"
    assert story.events("A window", "lamp") == windows


def test_each_sound_comes_once_at_the_place_that_is_its_own(story: Story) -> None:
    sounds = once(story.said("lamp", "events"))
    begins = [sound for sound in sounds if (sound["name"], sound["kind"]) == ("siren", "start")]
    ends = [sound for sound in sounds if (sound["name"], sound["kind"]) == ("siren", "end")]
    assert len(begins) == len(ends) == 1
    assert story.events("A siren begins", "lamp") == begins
    assert story.events("A siren ends", "lamp") == ends
    others = [sound for sound in sounds if sound["name"] != "siren"]
    assert story.events("Another sound begins or ends", "lamp") == others
    assert {sound["kind"] for sound in others} == {"start", "end"}


def test_a_place_says_in_a_sentence_what_happened(story: Story) -> None:
    (begins,), (ends,) = (story.events(f"A siren {what}", "lamp") for what in ("begins", "ends"))
    assert story.sentences("A siren begins", "lamp") == [
        f"lamp: a siren begins, {round(100 * begins['peak'])} %"
    ]
    assert story.sentences("A siren ends", "lamp") == [f"lamp: the siren ends after {ends['duration_s']:g} s"]
    (window, *_), (first, *_) = story.sentences("A window", "lamp"), story.events("A window", "lamp")
    assert window == f"lamp: {first['level']['laeq_db']:.1f} dBFS(A), tags {' '.join(first['active'])}"


def test_the_level_is_told_when_it_crosses_the_limit(story: Story) -> None:
    windows = once(story.said("lamp", "tags"))
    turns = [
        window
        for before, window in zip([None, *windows], windows, strict=False)
        if before is None or is_loud(before) != is_loud(window)
    ]
    assert [is_loud(window) for window in turns] == [False, True, False]
    assert story.events("Level above LEVEL_DB", "lamp") == [turns[1]]
    assert story.events("Level not above LEVEL_DB", "lamp") == [turns[0], turns[2]]


def is_loud(window: Message) -> bool:
    return bool(window["level"]["laeq_db"] > LEVEL_DB)


def test_what_is_late_is_kept_apart(story: Story) -> None:
    """All of an archive's, and what says that it waited; of both nothing at places for actions."""
    late = story.events("Late sound or window", "archive")
    of_archive = story.said("archive", "tags") + story.said("archive", "events")
    assert sorted(late, key=str) == sorted(of_archive, key=str)
    states = {"Sensor is online", "Sensor goes offline", "State found on connecting"}
    assert story.places_of("archive") == states | {"Late sound or window"}
    assert story.places_of("outage") == {"Late sound or window"}


def test_a_dead_sensor_is_offline_once_and_was_online_before(story: Story) -> None:
    assert story.sentences("Sensor goes offline", "dead") == ["dead: offline, connection lost"]
    assert story.sentences("Sensor is online", "dead") == ["dead: online, connected"]
    assert story.sentences("Sensor goes offline", "lamp") == ["lamp: offline, ended"]


def test_a_sensor_that_was_offline_before_is_no_news(story: Story) -> None:
    """Neither when Node-RED begins nor when it begins again."""
    assert story.places_of("removed") == {"State found on connecting"}
    assert story.sentences("State found on connecting", "removed") == 2 * [
        "removed: offline, connection lost"
    ]
    assert story.sentences("State found on connecting", "dead") == ["dead: offline, connection lost"]


def test_what_is_said_while_node_red_is_away_follows(story: Story) -> None:
    assert story.sentences("A siren begins", "meanwhile") == ["meanwhile: a siren begins, 91 %"]
    assert story.sentences("Sensor goes offline", "meanwhile") == ["meanwhile: offline, connection lost"]


def test_nonsense_reaches_no_place(story: Story) -> None:
    """What is no JSON is told; other things are left alone."""
    assert story.places_of("nonsense") == set()
    n_no_json = 3  # of the payloads, on each of three topics
    assert len(story.town.got[ERRORS]) == 3 * n_no_json


def test_all_places_were_tried_and_nothing_went_wrong(story: Story) -> None:
    untried = {"Sensor hears badly or nothing"}
    assert story.names - untried == set(story.town.got) - {ERRORS}
    wrong = [line for line in story.log.splitlines() if "[error]" in line]
    assert all("JSON" in line for line in wrong), wrong
