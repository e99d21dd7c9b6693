"""The commands of `deploy/examples/README.md`, run against Mosquitto while a street is replayed.

```
edgetag replay ──> Mosquitto ──> each line of the README ──> what it printed
                       └───────> a subscriber of the test ─> what it should have
```
They hear side by side, and the tests read what became of them. Only the broker's port is another.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes.util import find_library
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import soundfile
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from edgetag.contract.event import DEFAULT_PREFIX, encode
from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.demo.scene import street_scene
from fakes import sound_event, tags_event
from system.test_mosquitto import WAIT_S, Mosquitto
from system.test_mosquitto import pytestmark as needs_mosquitto

pytestmark = needs_mosquitto

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
STREET_S = 30.0  # with a siren that begins and ends
ENDED = {0, 27}  # --retained-only: with the first new message, or when its time (-W) is over
SIREN = {"kind": "start", "tag": "5-3", "name": "siren"}


def commands(heading: str) -> list[str]:
    """The lines of the shell blocks under a heading of the README; of its beginning without one."""
    text = "\n## \n" + (EXAMPLES / "README.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", section, re.S) for line in block.splitlines()]


(PLAY,) = commands("")
EVENTS, SIRENS, STATES, MISSING_NOTHING, LEVELS = commands("mosquitto_sub")
(PYTHON,) = commands("Python")
INTRODUCE, INTRODUCED = commands("Home Assistant")
LISTENING = [EVENTS, SIRENS, MISSING_NOTHING, LEVELS, PYTHON]


def at(broker: Mosquitto, line: str) -> str:
    """The line, for this broker."""
    moved = line.replace("-h localhost", f"-h 127.0.0.1 -p {broker.port}")
    moved = moved.replace("localhost 1883", f"127.0.0.1 {broker.port}")
    moved = moved.replace("mqtt://localhost", f"mqtt://127.0.0.1:{broker.port}")
    assert moved != line, "it names no broker"
    return moved


def programs(line: str) -> list[str]:
    """What has to be installed for it."""
    return re.findall(r"(?:^| \| )([\w-]+)", line)


def skip_unless_installed(line: str) -> None:
    for program in programs(line):
        if not shutil.which(program, path=PATH):
            pytest.skip(f"{program} is not installed: {line}")


PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # `python` and `edgetag` are these


def shell(line: str, **options: Any) -> subprocess.Popen[str]:
    """A process group of its own."""
    return subprocess.Popen(
        ["bash", "-c", line],
        cwd=EXAMPLES,
        env=os.environ | {"PATH": PATH},
        start_new_session=True,
        text=True,
        **options,
    )


class Running:
    """A line of the README that goes on until it is killed; what it prints is in a file."""

    def __init__(self, broker: Mosquitto, line: str, folder: Path) -> None:
        self._file = folder / "printed"
        with self._file.open("w") as file:
            self.process = shell(at(broker, line), stdout=file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # mosquitto_sub's SIGTERM can lock itself out for ever
        self.process.wait(WAIT_S)

    def lines(self) -> list[str]:
        assert self.process.poll() is None, "it ended"
        return self._file.read_text().splitlines()

    def has_printed(self, words: str) -> bool:
        return any(words in line for line in self.lines())


@dataclass
class Reference:
    """What the broker has for everybody, by topic's kind, in order."""

    broker: Mosquitto
    heard: defaultdict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    state: dict[str, str] = field(default_factory=dict)  # by sensor

    def __enter__(self) -> Self:
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._take
        self._client.connect("127.0.0.1", self.broker.port)
        self._client.subscribe(f"{DEFAULT_PREFIX}/#", 1)
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._client.on_message = None  # or it would be garbage in a circle, with its sockets open

    def say(self, sensor: str, seq: int) -> None:
        """A siren and a window of a sensor, so that every line has something to print."""
        siren, window = sound_event(seq, sensor=sensor, **SIREN), tags_event(seq, sensor=sensor)
        for kind, event in (("events", siren), ("tags", window)):
            topic = f"{DEFAULT_PREFIX}/{sensor}/{kind}"
            self._client.publish(topic, encode(event), 1).wait_for_publish(WAIT_S)

    def _take(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        sensor, kind = message.topic.split("/")[-2:]
        said = json.loads(message.payload)
        self.heard[kind].append(said)
        if kind == "status":
            self.state[sensor] = said["state"]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("street") / "street.wav"
    soundfile.write(file, street_scene(duration_s=STREET_S).samples, SAMPLE_RATE_HZ)
    return file


def play(broker: Mosquitto, street: Path, *options: str) -> str:
    """The README's line, for this recording and broker."""
    program, *arguments = shlex.split(at(broker, PLAY).replace("street.wav", str(street)))
    return shlex.join([program, *arguments, *options])


@dataclass
class Story:
    """What each line had printed when the street was over, since it was known to hear."""

    printed: dict[str, list[str]]
    heard: dict[str, list[dict[str, Any]]]
    broker: Mosquitto

    def of(self, line: str) -> list[str]:
        skip_unless_installed(line)
        return self.printed[line]


@pytest.fixture(scope="module")
def story(street: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    lines = [line for line in LISTENING if all(shutil.which(one, path=PATH) for one in programs(line))]
    with Mosquitto(folder) as broker, Reference(broker) as reference, ExitStack() as stack:
        running = {}
        for number, line in enumerate(lines):
            (own := folder / str(number)).mkdir()
            running[line] = stack.enter_context(Running(broker, line, own))
        wait_until_all_hear(reference, running)
        replay = play(broker, street).replace(" --realtime", "")  # as fast as can be
        with shell(replay) as process:
            assert process.wait(2 * WAIT_S) == 0
        reference.say("last", 0)
        wait_until_all_have_printed("last", running)
        printed = {line: since_all_heard(one.lines()) for line, one in running.items()}
        yield Story(
            printed, {kind: since_all_heard(heard) for kind, heard in reference.heard.items()}, broker
        )


def wait_until_all_hear(reference: Reference, running: dict[str, Running]) -> None:
    """A subscriber says nothing before it hears: so it is spoken to until it does. `ready` is the last."""
    deadline_s = time.monotonic() + WAIT_S
    seq = 0
    while not all(one.has_printed("early") for one in running.values()):
        assert time.monotonic() < deadline_s, {line: one.lines() for line, one in running.items()}
        reference.say("early", seq)
        seq += 1
        time.sleep(0.05)
    reference.say("ready", 0)
    wait_until_all_have_printed("ready", running)


def wait_until_all_have_printed(words: str, running: dict[str, Running]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while missing := [line for line, one in running.items() if not one.has_printed(words)]:
        assert time.monotonic() < deadline_s, missing
        time.sleep(0.02)


def since_all_heard(said: list[Any]) -> list[Any]:
    """What came after `ready` and before `last`."""
    of_ready = [number for number, one in enumerate(said) if "ready" in str(one)]
    return [one for one in said[(of_ready or [-1])[-1] + 1 :] if "last" not in str(one)]


# -- mosquitto_sub and Python ----------------------------------------------------------------------------


def test_live_events_are_those_of_the_street(story: Story) -> None:
    assert [json.loads(line) for line in story.of(EVENTS)] == story.heard["events"]
    assert {event["name"] for event in story.heard["events"]} >= {"siren", "dog", "human-voice"}


def test_of_the_sirens_each_beginning_is_printed_and_nothing_else(story: Story) -> None:
    sirens = [e for e in story.heard["events"] if (e["kind"], e["name"]) == ("start", "siren")]
    assert [json.loads(line) for line in story.of(SIRENS)] == sirens
    assert len(sirens) == 1


def test_levels_are_a_table_of_the_windows(story: Story) -> None:
    rows = [line.split("\t") for line in story.of(LEVELS)]
    windows = story.heard["tags"]
    assert [(end, sensor, float(level), tags) for end, sensor, level, *tags in rows] == [
        (event["end"], event["sensor"], event["level"]["laeq_db"], event["active"]) for event in windows
    ]
    assert len(windows) == 1 + (STREET_S - 10) / 5


def test_the_subscriber_in_python_prints_every_window_and_sound_once(story: Story) -> None:
    printed = [json.loads(line) for line in story.of(PYTHON)]
    for kind, schema in (("tags", "edgetag.tags/1"), ("events", "edgetag.event/1")):
        assert [event for event in printed if event["schema"] == schema] == story.heard[kind]
    assert len(printed) == len(story.heard["tags"]) + len(story.heard["events"])


def test_who_asks_for_it_misses_nothing_while_away(story: Story, tmp_path: Path) -> None:
    """The line is started once more after others have spoken: its session was kept meanwhile."""
    assert [json.loads(line) for line in story.of(MISSING_NOTHING)] == story.heard["events"]
    session = re.sub("-i reader", "-i another", MISSING_NOTHING)
    with shell(at(story.broker, f"{session} -E")) as process:
        assert process.wait(WAIT_S) == 0
    with Reference(story.broker) as reference:
        for seq in range(5):
            reference.say("away", seq)
    with Running(story.broker, session, tmp_path) as running:
        deadline_s = time.monotonic() + WAIT_S
        while len(running.lines()) < 5:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        assert [json.loads(line)["seq"] for line in running.lines()] == list(range(5))


def test_the_flow_for_node_red_says_how_to_find_the_names_of_sounds(story: Story) -> None:
    """By a line in its comment."""
    flow = json.loads((EXAMPLES / "node-red.json").read_text())
    (line,) = (find for node in flow for find in re.findall(r"`(mosquitto_sub [^`]+)`", node.get("info", "")))
    with shell(at(story.broker, line), stdout=subprocess.PIPE) as process:
        printed = process.communicate(timeout=WAIT_S)[0]
    assert json.loads(printed)["tags"][SIREN["tag"]] == SIREN["name"]


def states(broker: Mosquitto) -> dict[str, tuple[str, str]]:
    """State and reason by sensor, as the README's line prints them to somebody who comes only now."""
    with shell(at(broker, STATES), stdout=subprocess.PIPE) as process:
        printed = process.communicate(timeout=WAIT_S)[0]
    assert process.returncode in ENDED
    said = (line.split(" ", 1) for line in printed.splitlines())
    by_topic = {topic: json.loads(payload) for topic, payload in said}
    return {topic.split("/")[-2]: (state["state"], state["reason"]) for topic, state in by_topic.items()}


def test_the_state_of_all_sensors_is_found_by_who_comes_late(story: Story, street: Path) -> None:
    """One has ended, one hears, and the power of one fails."""
    with hearing(story.broker, street, "lamp-1") as lamp, hearing(story.broker, street, "lamp-2"):
        os.killpg(lamp.pid, signal.SIGKILL)
        lamp.wait(WAIT_S)
        wait_for_state(story.broker, "lamp-1", "offline")
        found = states(story.broker)
        (ended,) = found.keys() - {"lamp-1", "lamp-2"}
        assert found[ended] == ("offline", "ended")
        assert found["lamp-1"] == ("offline", "connection lost")
        assert found["lamp-2"] == ("online", "connected")


@contextmanager
def hearing(broker: Mosquitto, street: Path, sensor: str) -> Iterator[subprocess.Popen[str]]:
    """The README's first line, that hears in real time and is online."""
    process = shell(play(broker, street, "--sensor", sensor), stdout=subprocess.DEVNULL)
    try:
        wait_for_state(broker, sensor, "online")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(WAIT_S)


def wait_for_state(broker: Mosquitto, sensor: str, state: str) -> None:
    with Reference(broker) as reference:
        deadline_s = time.monotonic() + WAIT_S
        while reference.state.get(sensor) != state:
            assert time.monotonic() < deadline_s, reference.state
            time.sleep(0.02)


# -- Home Assistant --------------------------------------------------------------------------------------


@pytest.mark.skipif(not find_library("portaudio"), reason="PortAudio is not installed")
def test_a_sensor_introduces_itself_to_home_assistant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that has no microphone yet: a gauge for each coarse tag."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    with Mosquitto(tmp_path) as broker, shell(at(broker, INTRODUCE), stdout=subprocess.DEVNULL) as sensor:
        try:
            deadline_s = time.monotonic() + 2 * WAIT_S
            while len(introduced(broker)) < len(SONYC_UST.coarse_ids):
                assert sensor.poll() is None
                assert time.monotonic() < deadline_s
            names = {config["name"] for config in introduced(broker)}
        finally:
            os.killpg(sensor.pid, signal.SIGTERM)
            assert sensor.wait(WAIT_S) == 0
    assert names >= {"Engine", "Alert signal", "Human voice"}


def introduced(broker: Mosquitto) -> list[dict[str, Any]]:
    with shell(at(broker, INTRODUCED), stdout=subprocess.PIPE) as process:
        printed = process.communicate(timeout=WAIT_S)[0]
    assert process.returncode in ENDED
    return [json.loads(line.split(" ", 1)[1]) for line in printed.splitlines()]
