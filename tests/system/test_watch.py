"""`edgetag watch` and the example of a subscriber, against Mosquitto.

What is retained tells when a subscriber is there: a test publishes once it has seen that.
"""

import dataclasses
import fcntl
import importlib.util
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import msgspec
import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from certificates import Authority
from edgetag.contract.event import encode, timestamp
from edgetag.delivery.connection import Connecting, Tls
from edgetag.delivery.mqtt import MqttPublisher
from fakes import bundle_info, sensor_status, sound_event, tags_event
from system.test_mosquitto import WAIT_S, Mosquitto, find
from system.test_mosquitto import pytestmark as needs_mosquitto

pytestmark = needs_mosquitto

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "subscriber.py"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


@contextmanager
def sensors(broker: Mosquitto, *ids: str) -> Iterator[list[MqttPublisher]]:
    """Sensors that are online."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                MqttPublisher(broker.address(), sensor=id, info=bundle_info(), boot_id="01JD")
            )
            for id in ids
        ]


@contextmanager
def raw(broker: Mosquitto) -> Iterator[Callable[[str, bytes], None]]:
    """Publishes anything; retained, if it is a status."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()

    def publish(topic: str, payload: bytes) -> None:
        client.publish(topic, payload, 1, retain=topic.endswith("/status")).wait_for_publish(WAIT_S)

    yield publish
    client.disconnect()
    client.loop_stop()


class Lines:
    """A program whose lines are waited for."""

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # so that `select` knows of all there is
        )

    @classmethod
    def watching(cls, broker: Mosquitto, *options: object) -> Self:
        return cls("-m", "edgetag", "watch", f"mqtt://127.0.0.1:{broker.port}", *options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def until(self, is_last: Callable[[str], bool]) -> list[str]:
        """The lines up to the first of which this holds."""
        assert self.process.stdout is not None
        lines: list[str] = []
        while not (lines and is_last(lines[-1])):
            assert select.select([self.process.stdout], [], [], WAIT_S)[0], f"silent after {lines}"
            line = self.process.stdout.readline().decode()
            assert line, f"ended after {lines}: {self.process.stderr and self.process.stderr.read().decode()}"
            lines.append(line)
        return lines

    def until_json(self, is_last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.until(lambda line: is_last(json.loads(line)))]

    def until_said(self, words: str) -> str:
        """The line on stderr that says this."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if words in line.decode():
                return line.decode()
        raise AssertionError(f"ended without {words!r}")

    def ended(self, with_signal: signal.Signals) -> tuple[int, str]:
        """Exit code, and what was said on stderr meanwhile."""
        self.process.send_signal(with_signal)
        return self.process.wait(WAIT_S), self.process.communicate()[1].decode()


def is_tags(seq: int, sensor: str) -> Callable[[dict[str, Any]], bool]:
    return lambda line: (line["kind"], line["sensor"]) == ("tags", sensor) and line["payload"]["seq"] == seq


# -- for programs --------------------------------------------------------------------------------------------


def test_json_lines_are_every_message_of_every_sensor_as_it_was_published(broker: Mosquitto) -> None:
    with sensors(broker, "lamp-1", "lamp-2") as (one, two), Lines.watching(broker, "--json") as watch:
        retained = watch.until_json(lambda line: (line["sensor"], line["kind"]) == ("lamp-2", "info"))
        for seq in range(20):
            one.forward(seq, "tags", encode(tags_event(seq, sensor="lamp-1")))
            two.deliver(tags_event(seq, sensor="lamp-2"))
        n_settled = 0
        while n_settled < 20:  # what the broker has of lamp-1 is passed on before what comes now
            n_settled += len(one.settled())
            time.sleep(0.01)
        two.sound(sound_event(0, sensor="lamp-2"))
        lines = watch.until_json(lambda line: line["kind"] == "events")
        code, said = watch.ended(signal.SIGTERM)
    assert (code, said) == (0, "")
    assert {(line["sensor"], line["kind"]) for line in retained} >= {("lamp-1", "status"), ("lamp-2", "info")}
    assert all(line["retained"] for line in retained)
    for sensor in ("lamp-1", "lamp-2"):
        payloads = [line["payload"] for line in lines if (line["sensor"], line["kind"]) == (sensor, "tags")]
        assert payloads == [msgspec.to_builtins(tags_event(seq, sensor=sensor)) for seq in range(20)]
    assert lines[-1]["topic"] == "sonyc/v1/lamp-2/events"
    assert not any(line["retained"] for line in lines if line["kind"] in ("tags", "events"))


def test_one_sensor_alone_can_be_watched(broker: Mosquitto) -> None:
    with (
        sensors(broker, "lamp-1", "lamp-2") as (one, two),
        Lines.watching(broker, "--json", "--sensor", "lamp-2") as watch,
    ):
        watch.until_json(lambda line: line["kind"] == "info")
        one.deliver(tags_event(0))
        two.deliver(tags_event(0))
        assert {line["sensor"] for line in watch.until_json(is_tags(0, "lamp-2"))} == {"lamp-2"}


def test_what_comes_twice_is_one_line_and_what_is_no_json_has_a_fault(broker: Mosquitto) -> None:
    with raw(broker) as publish, Lines.watching(broker, "--json") as watch:
        publish("sonyc/v1/lamp/status", encode(sensor_status()))
        watch.until_json(lambda line: line["kind"] == "status")
        for seq in (0, 1, 1, 0, 2):
            publish("sonyc/v1/lamp/tags", encode(tags_event(seq)))
        publish("sonyc/v1/lamp/tags", b"\xff\x00")
        lines = watch.until_json(lambda line: "fault" in line)
    assert [line["payload"]["seq"] for line in lines[:-1]] == [0, 1, 2]
    assert "payload" not in lines[-1]


def test_a_broker_that_comes_back_is_heard_again(broker: Mosquitto) -> None:
    """Said on stderr; what was published meanwhile is missed, what comes after is not."""
    with Lines.watching(broker, "--json") as watch:
        with sensors(broker, "lamp-1") as (one,):
            watch.until_json(lambda line: line["kind"] == "info")
            one.deliver(tags_event(0))
            watch.until_json(is_tags(0, "lamp-1"))
        broker.stop()
        said = watch.until_said("edgetag: ")
        assert said.startswith("edgetag: trying again in 1 s: lost the connection to mqtt://127.0.0.1:")
        broker.start()
        watch.until_said("edgetag: connected again")
        with sensors(broker, "lamp-1") as (one,):
            one.deliver(tags_event(1))
            watch.until_json(is_tags(1, "lamp-1"))


def test_a_reader_that_has_had_enough_ends_it_quietly_even_if_nothing_more_comes(broker: Mosquitto) -> None:
    """`edgetag watch --json … | head -1`."""
    with raw(broker) as publish:
        publish("sonyc/v1/lamp/status", encode(sensor_status()))
    with Lines.watching(broker, "--json") as watch:
        assert watch.process.stdout is not None
        watch.until(lambda _: True)
        watch.process.stdout.close()
        assert watch.process.wait(WAIT_S) == 0
        assert watch.process.stderr is not None
        assert watch.process.stderr.read() == b""


# -- in a pipe -----------------------------------------------------------------------------------------------


def test_in_a_pipe_windows_sounds_and_states_are_lines(broker: Mosquitto) -> None:
    with sensors(broker, "lamp-1") as (one,), Lines.watching(broker) as watch:
        assert watch.until(lambda line: "lamp-1" in line)[0].endswith("lamp-1  online: connected\n")
        one.deliver(tags_event(0))
        one.sound(sound_event(0))
        lines = watch.until(lambda line: "dog" in line)
        assert watch.ended(signal.SIGINT) == (0, "")
    assert lines == [
        "2026-11-22T10:00:10Z  lamp-1  63.2 dB(A)  human-voice, person-or-small-group-talking\n",
        "2026-11-22T10:00:00Z  lamp-1  dog begins, 91%\n",
    ]


# -- who may -------------------------------------------------------------------------------------------------


def test_a_password_comes_from_a_file_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    passwords, secret = tmp_path / "passwords", tmp_path / "secret"
    passwd = find("mosquitto_passwd")
    if passwd is None:
        pytest.skip("mosquitto_passwd is not installed")
    subprocess.run([passwd, "-b", "-c", str(passwords), "reader", "hunter2"], check=True)
    credentials = ("--user", "reader", "--password-file", secret)
    secret.touch(0o600)
    with Mosquitto(tmp_path, "allow_anonymous false", f"password_file {passwords}") as broker:
        secret.write_text("hunter3\n")
        with Lines.watching(broker, *credentials) as watch:
            assert watch.process.wait(WAIT_S) == 4
            assert "check user and password" in watch.until_said("edgetag: ")
        secret.write_text("hunter2\n")
        with Lines.watching(broker, "--json", *credentials) as watch:
            with MqttPublisher(
                broker.address("reader", "hunter2"), sensor="lamp", info=bundle_info(), boot_id="01JD"
            ):
                watch.until_json(lambda line: line["kind"] == "status")
            assert b"hunter" not in Path(f"/proc/{watch.process.pid}/cmdline").read_bytes()


def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("broker")
    tls = (f"certfile {certificate}", f"keyfile {key}", "allow_anonymous true")
    with Mosquitto(tmp_path, *tls) as broker:
        url = f"mqtts://127.0.0.1:{broker.port}"
        with Lines("-m", "edgetag", "watch", url) as watch:
            assert watch.process.wait(WAIT_S) == 4
            assert "unknown authority" in watch.until_said("edgetag: ")
        trusting = Connecting(tls=Tls(ca_file=str(authority.ca_file)))
        address = dataclasses.replace(broker.address(), scheme="mqtts")
        with (
            Lines("-m", "edgetag", "watch", url, "--json", "--ca-file", authority.ca_file) as watch,
            MqttPublisher(address, sensor="lamp", info=bundle_info(), boot_id="01JD", how=trusting),
        ):
            watch.until_json(lambda line: line["kind"] == "status")


# -- in a terminal -------------------------------------------------------------------------------------------


class Terminal:
    """`edgetag watch` in a terminal of its own; its pictures are waited for."""

    def __init__(self, broker: Mosquitto, columns: int = 120, rows: int = 24) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgetag", "watch", f"mqtt://127.0.0.1:{broker.port}"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | {"TERM": "xterm-256color"},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            start_new_session=True,
        )
        os.close(slave)
        self.all = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def shows(self, *words: str) -> str:
        """The first picture from now on with all these words, without colours."""
        pictures = b""
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            pictures += self._read()
            for picture in pictures.split(b"\x1b[H")[1:-1]:  # the last may not be whole
                text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", picture.decode("utf-8", "replace"))
                if all(word in text for word in words):
                    return text
        raise AssertionError(f"no picture with {words} in {pictures[-4000:]!r}")

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        os.write(self._master, b"\x03")
        while self._read():
            pass
        return self.process.wait(WAIT_S)

    def _read(self) -> bytes:
        if not select.select([self._master], [], [], WAIT_S)[0]:
            return b""
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # it has ended
            return b""
        self.all += data
        return data


def test_a_terminal_shows_each_sensor_its_state_level_tags_and_latest_sounds(broker: Mosquitto) -> None:
    now_s = time.time()
    times = {"start": timestamp(now_s - 10), "end": timestamp(now_s)}
    with sensors(broker, "lamp-1", "lamp-2") as (one, two), Terminal(broker) as terminal:
        terminal.shows("2 sensors: 2 online")
        one.deliver(tags_event(0, **times))
        two.state(sensor_status("degraded", "inference cannot keep up"))
        two.deliver(tags_event(0, **times, active=["1"], late=True))
        two.sound(sound_event(0))
        picture = terminal.shows("1 online, 1 degraded", "dog begins, 91%", "late")
        rows = {line.split()[0]: line for line in picture.splitlines() if line.startswith("lamp-")}
        figures = r"lamp-1  online       \d+ s ago      63\.2 dB\(A\)  +[\d.]+ s  "
        assert re.match(f"{figures}human-voice, person-or-small-group-talking", rows["lamp-1"])
        assert "engine · inference cannot keep up · late" in rows["lamp-2"]
        assert terminal.interrupt() == 0
    assert terminal.all.count(b"\x1b[?1049h") == terminal.all.count(b"\x1b[?1049l") == 1, "the other screen"
    assert terminal.all.rindex(b"\x1b[?25h") > terminal.all.rindex(b"\x1b[?25l"), "the cursor is back"


def test_a_terminal_says_that_the_broker_is_gone_and_goes_on_when_it_is_back(broker: Mosquitto) -> None:
    with Terminal(broker) as terminal:
        with sensors(broker, "lamp-1"):
            terminal.shows("1 sensor: 1 online")
        broker.stop()
        terminal.shows("trying again in", "lamp-1")
        broker.start()
        with sensors(broker, "lamp-1", "lamp-2"):
            assert "trying again" not in terminal.shows("2 sensors: 2 online")
        assert terminal.interrupt() == 0


def test_a_terminal_obeys_nothing_that_a_sensor_says(broker: Mosquitto) -> None:
    """Escape sequences in reasons and names are shown; what is no message is counted."""
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\r\n"
    with raw(broker) as publish, Terminal(broker) as terminal:
        terminal.shows("Nothing has come")
        publish("sonyc/v1/lamp/status", encode(sensor_status("degraded", evil)))
        publish("sonyc/v1/lamp/events", encode(sound_event(0, name=evil)))
        publish("sonyc/v1/lamp/tags", b"\xff" + evil.encode())
        picture = terminal.shows("messages not understood", "degraded", "begins")
        assert r"\x1b]0;owned\x07" in picture
        assert terminal.interrupt() == 0
    assert b"\x1b]0;" not in terminal.all
    assert "\u202e".encode() not in terminal.all


# -- the example ---------------------------------------------------------------------------------------------


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("subscriber", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_prints_each_event_once(broker: Mosquitto) -> None:
    with raw(broker) as publish, Lines(EXAMPLE, "127.0.0.1", broker.port) as subscriber:
        publish_until_heard(publish, subscriber)
        for seq in (0, 1, 2, 1, 2, 3):
            publish("sonyc/v1/lamp/tags", encode(tags_event(seq)))
        publish("sonyc/v1/lamp/tags", b"\xff[]")
        publish("sonyc/v1/lamp/tags", b"[]")
        publish("sonyc/v1/lamp/events", encode(sound_event(3)))
        lines = subscriber.until_json(lambda line: line["schema"] == "edgetag.event/1")
    assert [line["seq"] for line in lines] == [0, 1, 2, 3, 3]


def publish_until_heard(publish: Callable[[str, bytes], None], subscriber: Lines) -> None:
    """It retains nothing and says nothing before it hears: so it is spoken to until it does."""
    assert subscriber.process.stdout is not None
    for seq in range(200):
        publish("sonyc/v1/first/tags", encode(tags_event(seq)))
        if select.select([subscriber.process.stdout], [], [], 0.1)[0]:
            subscriber.until(lambda line, seq=seq: json.loads(line)["seq"] == seq)  # type: ignore[misc]
            return
    raise AssertionError("it does not hear")


def test_the_example_gets_what_was_published_while_it_was_away(broker: Mosquitto) -> None:
    with raw(broker) as publish:
        with Lines(EXAMPLE, "127.0.0.1", broker.port) as subscriber:
            publish_until_heard(publish, subscriber)
        for seq in range(5):
            publish("sonyc/v1/lamp/tags", encode(tags_event(seq)))
        with Lines(EXAMPLE, "127.0.0.1", broker.port) as subscriber:
            lines = subscriber.until_json(lambda line: line["seq"] == 4)
    assert [line["seq"] for line in lines[-5:]] == list(range(5))


def test_the_example_remembers_a_bounded_number_of_events(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    message = MQTTMessage(topic=b"sonyc/v1/lamp/tags")
    for seq in [*range(example.REMEMBERED + 100), example.REMEMBERED + 99]:
        message.payload = json.dumps({"boot": "a", "seq": seq}).encode()
        example.on_message(None, None, message)
    assert len(example.seen) == example.REMEMBERED
    assert len(capsys.readouterr().out.splitlines()) == example.REMEMBERED + 100


def test_the_example_imports_nothing_of_ours() -> None:
    assert "edgetag" not in re.sub(r'^""".*?"""', "", EXAMPLE.read_text(), flags=re.DOTALL)
