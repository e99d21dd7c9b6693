"""The publisher against the real thing: Mosquitto, and its own `mosquitto_sub` on the other end.

A subscriber's session is opened before anything is published (`-E`), so that the broker keeps for it
what comes before it listens: no test waits for a subscription to have happened.
"""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import jsonschema
import msgspec
import numpy as np
import pytest
import soundfile

from edgetag import Tagger
from edgetag.contract.errors import NetworkError
from edgetag.contract.event import json_schema
from edgetag.delivery.mqtt import BrokerAddress, MqttPublisher
from edgetag.health import HealthWatch
from edgetag.tagging.stream import EventStream
from fakes import bundle_info, tags_event
from fakes_bundle import write_bundle

SENSOR = "b827eb42bd4a"
TOPIC = f"sonyc/v1/{SENSOR}"
WAIT_S = 20  # for what must happen; nothing here waits for what must not


FORM = r"%t\t%r\t%C\t%P\t%p"
# A session that outlives its connection; to subscribe again must not bring retained messages again.
_LASTING = ("-c", "-x", "3600", "-R")


def find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin")


pytestmark = pytest.mark.skipif(
    not (find("mosquitto") and find("mosquitto_sub")), reason="mosquitto or mosquitto_sub is not installed"
)


class Received(NamedTuple):
    """One message, as `mosquitto_sub` printed it."""

    kind: str
    retained: bool
    content_type: str
    user_properties: str
    payload: dict[str, object]


class Mosquitto:
    """A broker of its own configuration and folder, on a free port of 127.0.0.1."""

    def __init__(self, folder: Path, *settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.settings = settings or ("allow_anonymous true",)
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            "\n".join(
                [
                    f"user {getpass.getuser()}",  # root would become `mosquitto` and lose the folder
                    f"listener {self.port} 127.0.0.1",
                    f"persistence_location {folder}/",
                    *self.settings,
                ]
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it listens."""
        program = find("mosquitto")
        assert program is not None
        self._process = subprocess.Popen([program, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert self._process.poll() is None, "mosquitto did not start"
                assert time.monotonic() < deadline_s, "mosquitto does not listen"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Terminate, in good order."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_S)
            self._process = None

    def address(self, user: str | None = None, password: str | None = None) -> BrokerAddress:
        return BrokerAddress("127.0.0.1", self.port, user, password)

    def subscribe(self, session: str, topic: str = f"{TOPIC}/#") -> None:
        """From now on the broker keeps for `session` what is published under `topic`."""
        self._sub("-i", session, "-t", topic, "-E", *_LASTING)

    def take(self, session: str, n: int, topic: str = f"{TOPIC}/#") -> list[Received]:
        """The next `n` messages kept for `session`, in order, once they have come."""
        lines = self._sub("-i", session, "-t", topic, "-C", str(n), "-F", FORM, *_LASTING).splitlines()
        assert len(lines) == n
        return [_received(line) for line in lines]

    def take_until(self, session: str, reason: str) -> list[Received]:
        """All messages kept for `session`, to the status with this reason."""
        messages = []
        with subprocess.Popen(
            self._command("-i", session, "-t", f"{TOPIC}/#", "-F", FORM, *_LASTING),
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                messages.append(_received(line))
                if messages[-1].payload.get("reason") == reason:
                    process.kill()  # not terminate(): its signal handler can lock itself out for ever
                    return messages
        raise AssertionError(f"nothing {reason!r} in {len(messages)} messages")

    def retained(self, n: int) -> list[Received]:
        """What a subscriber who comes only now gets at once."""
        lines = self._sub("-t", f"{TOPIC}/#", "-C", str(n), "-F", FORM).splitlines()
        return [_received(line) for line in lines]

    def _command(self, *arguments: str) -> list[str]:
        program = find("mosquitto_sub")
        assert program is not None
        fixed = ["-V", "5", "-h", "127.0.0.1", "-p", str(self.port), "-q", "1", "-W", str(WAIT_S)]
        return [program, *fixed, *arguments]

    def _sub(self, *arguments: str) -> str:
        done = subprocess.run(
            self._command(*arguments), capture_output=True, text=True, check=False, timeout=2 * WAIT_S
        )
        assert done.returncode == 0, f"mosquitto_sub ended with {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout


def _received(line: str) -> Received:
    topic, retained, content_type, user_properties, payload = line.split("\t", 4)
    return Received(
        topic.removeprefix(f"{TOPIC}/"), retained == "1", content_type, user_properties, json.loads(payload)
    )


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


def publisher(address: BrokerAddress, **options: float) -> MqttPublisher:
    return MqttPublisher(address, sensor=SENSOR, info=bundle_info(), boot_id="01JD", **options)  # type: ignore[arg-type]


def statuses(messages: list[Received]) -> list[tuple[object, object]]:
    return [(m.payload["state"], m.payload["reason"]) for m in messages if m.kind == "status"]


def seqs(messages: list[Received]) -> list[object]:
    return [m.payload["seq"] for m in messages if m.kind == "tags"]


def test_a_separate_subscriber_gets_every_message_in_order_and_valid(broker: Mosquitto) -> None:
    broker.subscribe("reader")
    with publisher(broker.address()) as sink:
        for seq in range(200):
            sink.deliver(tags_event(seq))
    messages = broker.take("reader", 203)
    assert [message.kind for message in messages] == ["status", "info", *["tags"] * 200, "status"]
    assert seqs(messages) == list(range(200))
    assert statuses(messages) == [("online", "connected"), ("offline", "ended")]
    for message in messages:
        jsonschema.validate(message.payload, json_schema(message.kind))


def test_mqtt_5_says_what_the_payload_is(broker: Mosquitto) -> None:
    broker.subscribe("reader")
    with publisher(broker.address()) as sink:
        sink.deliver(tags_event())
    for message in broker.take("reader", 4):
        assert message.content_type == "application/json"
        assert message.user_properties == f"schema:edgetag.{message.kind}/1"


def test_status_and_info_wait_for_a_late_subscriber(broker: Mosquitto) -> None:
    with publisher(broker.address()) as sink:
        sink.deliver(tags_event())
        online = broker.retained(2)
    ended = broker.retained(2)
    assert {message.kind for message in online} == {message.kind for message in ended} == {"status", "info"}
    assert all(message.retained for message in online + ended)
    assert statuses(online) == [("online", "connected")]
    assert statuses(ended) == [("offline", "ended")]


def test_another_bundle_is_announced_in_order_and_stays_after_a_restart(tmp_path: Path) -> None:
    """`info` is replaced between two events; a broker that forgets is told the new one."""
    other = msgspec.structs.replace(bundle_info(), bundle="other")
    health = HealthWatch(EventStream(Tagger.load(), sensor=SENSOR)).health()
    with (
        Mosquitto(tmp_path, "allow_anonymous true", "queue_qos0_messages true") as broker,
        publisher(broker.address()) as sink,
    ):
        broker.subscribe("reader")
        sink.announce(bundle_info())  # the one at the beginning came before the reader
        sink.deliver(tags_event(0))
        sink.announce(other)
        sink.report(health)
        sink.deliver(tags_event(1))
        messages = broker.take("reader", 5)
        assert [message.kind for message in messages] == ["info", "tags", "info", "health", "tags"]
        assert messages[2].payload["bundle"] == "other"
        jsonschema.validate(messages[3].payload, json_schema("health"))
        broker.stop()
        broker.start()
        sink.deliver(tags_event(2))
        (info,) = (message for message in broker.retained(2) if message.kind == "info")
        assert info.payload["bundle"] == "other"


DIES = """
import sys, time
from edgetag.delivery.mqtt import BrokerAddress, MqttPublisher
from fakes import bundle_info, tags_event
with MqttPublisher(BrokerAddress("127.0.0.1", int(sys.argv[1])), sensor=sys.argv[2], info=bundle_info(),
                   boot_id="01JD") as sink:
    for seq in range(3):
        sink.deliver(tags_event(seq))
    time.sleep(600)
"""


def test_a_publisher_that_is_killed_leaves_its_last_will(
    broker: Mosquitto, request: pytest.FixtureRequest
) -> None:
    broker.subscribe("reader")
    path = os.pathsep.join([str(request.config.rootpath / "tests"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", DIES, str(broker.port), SENSOR],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
    )
    try:
        assert seqs(broker.take("reader", 5)) == [0, 1, 2]
    finally:
        process.kill()
        process.wait()
    (will,) = broker.take("reader", 1)
    assert statuses([will]) == [("offline", "connection lost")]
    jsonschema.validate(will.payload, json_schema("status"))
    assert (will.content_type, will.user_properties) == ("application/json", "schema:edgetag.status/1")
    assert statuses(broker.retained(2)) == [("offline", "connection lost")]


def test_a_replay_that_fails_leaves_its_last_will(broker: Mosquitto) -> None:
    broker.subscribe("reader")
    with pytest.raises(NetworkError), publisher(broker.address(), ack_timeout_s=0):
        pass
    assert broker.take_until("reader", "connection lost")[-1].payload["state"] == "offline"


# -- who may ---------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Mosquitto]:
    """Knows `sensor` by password, and lets `reader` read only."""
    passwords, rights = tmp_path / "passwords", tmp_path / "rights"
    passwd = find("mosquitto_passwd")
    if passwd is None:
        pytest.skip("mosquitto_passwd is not installed")
    for options, user in (["-c"], "sensor"), ([], "reader"):
        subprocess.run([passwd, "-b", *options, str(passwords), user, "hunter2"], check=True)
    rights.write_text("user sensor\ntopic readwrite sonyc/#\nuser reader\ntopic read sonyc/#\n")
    settings = ("allow_anonymous false", f"password_file {passwords}", f"acl_file {rights}")
    with Mosquitto(tmp_path, *settings) as broker:
        yield broker


def test_the_right_password_opens(guarded: Mosquitto) -> None:
    with publisher(guarded.address("sensor", "hunter2")) as sink:
        sink.deliver(tags_event())


@pytest.mark.parametrize(
    ("user", "password", "remedy"),
    [
        ("sensor", "hunter3", "check user and password"),
        ("nobody", "hunter2", "check user and password"),
        (None, None, "it wants a user and a password"),
    ],
)
def test_a_wrong_password_does_not(
    guarded: Mosquitto, user: str | None, password: str | None, remedy: str
) -> None:
    with (
        pytest.raises(NetworkError, match=f"refused the connection .*: {remedy}") as error,
        publisher(guarded.address(user, password)),
    ):
        pass
    assert "hunter" not in str(error.value)


def test_a_user_without_the_right_to_publish_is_told_so(guarded: Mosquitto) -> None:
    with (
        pytest.raises(NetworkError, match=rf"did not accept status on {TOPIC}: Not authorized"),
        publisher(guarded.address("reader", "hunter2")),
    ):
        pass


# -- a broker that is restarted ------------------------------------------------------------------------------


def test_a_restart_that_forgets_loses_no_event_and_status_and_info_are_there_again(broker: Mosquitto) -> None:
    broker.subscribe("before")
    with publisher(broker.address()) as sink:
        for seq in range(10):
            sink.deliver(tags_event(seq))
        assert seqs(broker.take("before", 12)) == list(range(10))
        broker.stop()
        broker.start()
        broker.subscribe("after")
        for seq in range(10, 20):
            sink.deliver(tags_event(seq))
        assert statuses(broker.retained(2)) == [("online", "reconnected")]
    after = broker.take("after", 13)
    assert seqs(after) == list(range(10, 20))
    assert statuses(after) == [("online", "reconnected"), ("offline", "ended")]


def test_a_restart_in_the_middle_of_a_burst_loses_no_event(tmp_path: Path) -> None:
    """
    publisher  0 1 2 … 99 |            resends what was in flight, 100 … 199
    broker     ●●●●●●●●●● | stopped  ● remembers the reader's session
    """
    halfway, stopped = threading.Event(), threading.Event()

    def burst(address: BrokerAddress) -> None:
        with publisher(address) as sink:
            for seq in range(200):
                if seq == 100:
                    halfway.set()
                    assert stopped.wait(WAIT_S)
                sink.deliver(tags_event(seq))

    remembers = ("allow_anonymous true", "persistence true")
    with Mosquitto(tmp_path, *remembers) as broker, ThreadPoolExecutor() as pool:
        broker.subscribe("reader")
        replay = pool.submit(burst, broker.address())
        assert halfway.wait(WAIT_S)
        broker.stop()
        stopped.set()
        broker.start()
        replay.result(WAIT_S)
        got = seqs(broker.take_until("reader", "ended"))
    assert list(dict.fromkeys(got)) == list(range(200)), "all of them in order, apart from what came twice"


# -- edgetag replay, the whole of it -------------------------------------------------------------------------


def replay_command(broker: Mosquitto, bundle: Path, *arguments: str) -> list[str]:
    mqtt = f"mqtt://127.0.0.1:{broker.port}"
    fixed = [
        "replay",
        "--mqtt",
        mqtt,
        "--sensor",
        SENSOR,
        "--bundle",
        str(bundle),
        "--start",
        "2026-11-22T10:00:00Z",
    ]
    return [sys.executable, "-m", "edgetag", *fixed, *arguments]


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Half a minute of noise."""
    samples = np.random.default_rng(0).normal(0, 0.1, 30 * 16_000)
    soundfile.write(tmp_path / "street.flac", samples, 16_000)
    return tmp_path / "street.flac"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", [0.9] + [0.1] * 36)


def test_a_replayed_recording_reaches_a_subscriber_whole(
    broker: Mosquitto, bundle: Path, street: Path
) -> None:
    """Every event, in order, valid, stamped from `--start`; `status` and `info` stay; stdout is empty."""
    broker.subscribe("reader")
    done = subprocess.run(
        replay_command(broker, bundle, str(street)), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    messages = broker.take_until("reader", "ended")
    assert [message.kind for message in messages] == ["status", "info", *["tags"] * 5, "status"]
    assert seqs(messages) == list(range(5))
    for message in messages:
        jsonschema.validate(message.payload, json_schema(message.kind))
    tags = [message.payload for message in messages if message.kind == "tags"]
    assert [event["start"] for event in tags] == [f"2026-11-22T10:00:{s:02d}.000Z" for s in range(0, 25, 5)]
    assert {kind for kind, *_ in broker.retained(2)} == {"status", "info"}


def test_a_replay_that_is_killed_leaves_its_last_will(broker: Mosquitto, bundle: Path, street: Path) -> None:
    """SIGKILL in the middle of `--realtime`: the broker says so in its place."""
    broker.subscribe("reader")
    process = subprocess.Popen(replay_command(broker, bundle, "--realtime", str(street)))
    assert statuses(broker.take("reader", 2)) == [("online", "connected")]
    process.kill()
    process.wait()
    assert statuses(broker.take_until("reader", "connection lost"))[-1] == ("offline", "connection lost")


def test_a_reader_that_leaves_does_not_stop_the_broker_from_hearing(
    broker: Mosquitto, bundle: Path, street: Path
) -> None:
    """`edgetag replay --mqtt … --format json | head -1`: printing ends, publishing does not."""
    broker.subscribe("reader")
    replay = subprocess.Popen(
        replay_command(broker, bundle, "--format", "json", str(street)), stdout=subprocess.PIPE
    )
    subprocess.run(["head", "-1"], stdin=replay.stdout, stdout=subprocess.DEVNULL, check=True)
    assert replay.stdout is not None
    replay.stdout.close()
    assert replay.wait(WAIT_S) == 0
    assert seqs(broker.take_until("reader", "ended")) == list(range(5))
