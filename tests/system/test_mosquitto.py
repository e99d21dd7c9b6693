"""The publisher against the real thing: Mosquitto, and its own `mosquitto_sub` on the other end.

A subscriber's session is opened before anything is published (`-E`), so that the broker keeps for it
what comes before it listens: no test waits for a subscription to have happened.
"""

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jsonschema
import msgspec
import numpy as np
import pytest
import soundfile

from certificates import Authority
from edgetag import Tagger
from edgetag.contract.errors import NetworkError
from edgetag.contract.event import encode, json_schema
from edgetag.delivery.connection import Connecting, LostError, TakenOverError, Tls
from edgetag.delivery.mqtt import BrokerAddress, MqttPublisher
from edgetag.delivery.sink import Settled
from edgetag.health import HealthWatch
from edgetag.tagging.stream import EventStream
from fakes import bundle_info, sound_event, tags_event
from fakes_bundle import write_bundle

SENSOR = "b827eb42bd4a"
TOPIC = f"sonyc/v1/{SENSOR}"
WAIT_S = 20  # for what must happen; nothing here waits for what must not


FORM = r"%t\t%r\t%C\t%P\t%E\t%p"
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
    expires_in_s: str
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
    topic, retained, *described, payload = line.split("\t", 5)
    return Received(topic.removeprefix(f"{TOPIC}/"), retained == "1", *described, json.loads(payload))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


def publisher(address: BrokerAddress, **options: Any) -> MqttPublisher:
    return MqttPublisher(address, sensor=SENSOR, info=bundle_info(), boot_id="01JD", **options)


def settled(sink: MqttPublisher, n: int) -> list[Settled]:
    """The next `n` that are, by id."""
    found: list[Settled] = []
    wait_until(lambda: found.extend(sink.settled()) or len(found) >= n)
    return sorted(found)


def trouble(sink: MqttPublisher) -> NetworkError:
    """What `settled` raises, once it does."""
    with pytest.raises(NetworkError) as error:
        wait_until(lambda: sink.settled() is None)
    return error.value


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


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


def test_an_event_that_expires_says_when_and_a_state_never_does(broker: Mosquitto) -> None:
    broker.subscribe("reader")
    with publisher(broker.address(), message_expiry_s=3_600) as sink:
        sink.deliver(tags_event())
        sink.sound(sound_event(1))
    messages = broker.take("reader", 5)
    expires_in_s = {message.kind: message.expires_in_s for message in messages}
    assert expires_in_s.keys() == {"status", "info", "tags", "events"}
    assert expires_in_s["status"] == expires_in_s["info"] == ""
    assert all(3_000 < int(expires_in_s[kind]) <= 3_600 for kind in ("tags", "events"))


def test_3_1_1_by_configuration_says_the_same_without_properties(broker: Mosquitto) -> None:
    broker.subscribe("reader")
    how = Connecting("3.1.1", session_expiry_s=60)
    with publisher(broker.address(), how=how, will_delay_s=30, message_expiry_s=3_600) as sink:
        sink.deliver(tags_event())
    messages = broker.take("reader", 4)
    assert [message.kind for message in messages] == ["status", "info", "tags", "status"]
    assert {(m.content_type, m.user_properties, m.expires_in_s) for m in messages} == {("", "", "")}


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
from edgetag.delivery.connection import Connecting
from edgetag.delivery.mqtt import BrokerAddress, MqttPublisher
from fakes import bundle_info, tags_event
address, sensor, will_delay_s = BrokerAddress("127.0.0.1", int(sys.argv[1])), sys.argv[2], int(sys.argv[3])
with MqttPublisher(address, sensor=sensor, info=bundle_info(), boot_id="01JD", will_delay_s=will_delay_s,
                   how=Connecting(session_expiry_s=60)) as sink:
    for seq in range(3):
        sink.deliver(tags_event(seq))
    time.sleep(600)
"""


def publish_and_die(broker: Mosquitto, tests: Path, will_delay_s: int = 0) -> None:
    """`reader` has got three events from a process that was killed then."""
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", DIES, str(broker.port), SENSOR, str(will_delay_s)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
    )
    try:
        assert seqs(broker.take("reader", 5)) == [0, 1, 2]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("will_delay_s", [0, 1])
def test_a_publisher_that_is_killed_leaves_its_last_will(
    broker: Mosquitto, request: pytest.FixtureRequest, will_delay_s: int
) -> None:
    broker.subscribe("reader")
    publish_and_die(broker, request.config.rootpath / "tests", will_delay_s)
    (will,) = broker.take("reader", 1)
    assert statuses([will]) == [("offline", "connection lost")]
    jsonschema.validate(will.payload, json_schema("status"))
    assert (will.content_type, will.user_properties) == ("application/json", "schema:edgetag.status/1")
    assert statuses(broker.retained(2)) == [("offline", "connection lost")]


def test_a_publisher_that_is_killed_and_back_in_time_was_never_offline(
    broker: Mosquitto, request: pytest.FixtureRequest
) -> None:
    broker.subscribe("reader")
    publish_and_die(broker, request.config.rootpath / "tests", will_delay_s=30)
    with publisher(broker.address(), how=Connecting(session_expiry_s=60), will_delay_s=30):
        pass
    assert statuses(broker.take_until("reader", "ended")) == [("online", "connected"), ("offline", "ended")]


def test_a_publisher_that_takes_over_from_another_of_its_id_was_never_offline_either(
    broker: Mosquitto,
) -> None:
    """The other one is out. MQTT 5 has a word for why, which Mosquitto 2.0.11 does not say."""
    broker.subscribe("reader")
    options = {"how": Connecting(session_expiry_s=60), "will_delay_s": 30, "reconnect": False}
    with (
        pytest.raises((TakenOverError, LostError)),
        publisher(broker.address(), **options) as first,
        publisher(broker.address(), **options),
    ):
        raise trouble(first)
    assert statuses(broker.take_until("reader", "ended")) == [
        ("online", "connected"),
        ("online", "connected"),
        ("offline", "ended"),
    ]


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


def test_a_message_without_the_right_is_settled_as_refused(tmp_path: Path) -> None:
    """The sensor may announce itself and tell of sounds."""
    rights = tmp_path / "rights"
    rights.write_text("".join(f"topic write {TOPIC}/{kind}\n" for kind in ("status", "info", "events")))
    with (
        Mosquitto(tmp_path, "allow_anonymous true", f"acl_file {rights}") as broker,
        publisher(broker.address(), reconnect=False) as sink,
    ):
        sink.forward(1, "tags", encode(tags_event()))
        sink.forward(2, "events", encode(sound_event()))
        refused, taken = settled(sink, 2)
    assert refused.refusal.endswith(f"did not accept tags on {TOPIC}: Not authorized")
    assert taken.refusal == ""


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("max_packet_size 4000", "bytes are more than the 4000 that the broker takes"),
        ("message_size_limit 4000", "Packet too large"),
    ],
)
def test_a_message_too_large_for_the_broker_is_settled_as_refused(
    tmp_path: Path, setting: str, reason: str
) -> None:
    """Mosquitto tells the one limit, and the other only when it is exceeded."""
    with (
        Mosquitto(tmp_path, "allow_anonymous true", setting) as broker,
        publisher(broker.address(), reconnect=False) as sink,
    ):
        for seq, source in enumerate(["a", 4_000 * "x", "b"]):
            sink.forward(seq, "tags", encode(tags_event(seq, source=source)))
        before, large, after = settled(sink, 3)
    assert (before, after) == (Settled(0), Settled(2))
    assert reason in large.refusal


def test_in_3_1_1_too_large_a_message_costs_the_connection(tmp_path: Path) -> None:
    """There is no way to tell; whoever forwards must see that it happens at the same message every time."""
    with (
        Mosquitto(tmp_path, "allow_anonymous true", "max_packet_size 4000") as broker,
        publisher(broker.address(), reconnect=False, how=Connecting("3.1.1")) as sink,
    ):
        sink.forward(1, "tags", encode(tags_event(source=4_000 * "x")))
        error = trouble(sink)
    assert isinstance(error, LostError)
    assert str(error).endswith("(broken off): 1 event not acknowledged")


def test_a_burst_obeys_the_broker_s_receive_maximum(tmp_path: Path) -> None:
    """Mosquitto would end the connection."""
    with Mosquitto(tmp_path, "allow_anonymous true", "max_inflight_messages 1") as broker:
        broker.subscribe("reader")
        with publisher(broker.address()) as sink:
            for seq in range(100):
                sink.deliver(tags_event(seq))
        assert seqs(broker.take_until("reader", "ended")) == list(range(100))


# -- trust -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def secured(
    folder: Path, certificate: tuple[Path, Path], *settings: str
) -> Iterator[tuple[Mosquitto, BrokerAddress]]:
    """A broker, and its address with TLS; `mosquitto_sub` goes the way without."""
    cert_file, key_file = certificate
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    lines = (f"listener {port} 127.0.0.1", f"certfile {cert_file}", f"keyfile {key_file}", *settings)
    with Mosquitto(folder, "allow_anonymous true", *lines) as broker:
        yield broker, BrokerAddress("127.0.0.1", port, scheme="mqtts")


def trusting(authority: Authority, certificate: tuple[Path, Path] | None = None) -> Connecting:
    cert_file, key_file = (str(path) for path in certificate) if certificate else (None, None)
    return Connecting(tls=Tls(str(authority.ca_file), cert_file, key_file))


def failure(address: BrokerAddress, how: Connecting) -> str:
    with pytest.raises(NetworkError) as error, publisher(address, how=how):
        pass
    return str(error.value)


def test_events_go_through_tls(tmp_path: Path, authority: Authority) -> None:
    with secured(tmp_path, authority.issue("broker")) as (broker, address):
        broker.subscribe("reader")
        with publisher(address, how=trusting(authority)) as sink:
            for seq in range(200):
                sink.deliver(tags_event(seq))
        assert seqs(broker.take_until("reader", "ended")) == list(range(200))


def test_through_tls_too_a_restart_loses_no_event(tmp_path: Path, authority: Authority) -> None:
    with secured(tmp_path, authority.issue("broker")) as (broker, address):
        with publisher(address, how=trusting(authority)) as sink:
            sink.deliver(tags_event(0))
            broker.stop()
            broker.start()
            broker.subscribe("reader")
            for seq in range(1, 6):
                sink.deliver(tags_event(seq))
        messages = broker.take_until("reader", "ended")
    assert [seq for seq in seqs(messages) if seq != 0] == [1, 2, 3, 4, 5]
    assert statuses(messages) == [("online", "reconnected"), ("offline", "ended")]


def test_who_the_broker_is_must_be_certain(tmp_path: Path, authority: Authority, stranger: Authority) -> None:
    """Known authority, not expired, the right host; and a port without TLS has none of them."""
    with secured(tmp_path, authority.issue("broker")) as (broker, address):
        unknown = failure(address, trusting(stranger))
        system = failure(address, Connecting())
        bare = failure(BrokerAddress("127.0.0.1", broker.port, scheme="mqtts"), trusting(authority))
        naked = failure(BrokerAddress("127.0.0.1", address.port), Connecting())
    with secured(tmp_path, authority.issue("expired", expired=True)) as (_, late):
        expired = failure(late, trusting(authority))
    with secured(tmp_path, authority.issue("other", hosts=["broker.example"])) as (_, elsewhere):
        other = failure(elsewhere, trusting(authority))
    assert "comes from an unknown authority: set ca_file" in unknown
    assert "comes from an unknown authority: set ca_file" in system
    assert "has expired" in expired
    assert "is for another host" in other
    assert "is that port meant for TLS?" in bare
    assert "does it want TLS?" in naked


def test_who_the_sensor_is_can_be_a_certificate(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    wants = (f"cafile {authority.ca_file}", "require_certificate true")
    with secured(tmp_path, authority.issue("broker"), *wants) as (broker, address):
        with publisher(address, how=trusting(authority, authority.issue("sensor"))) as sink:
            sink.deliver(tags_event())
        assert statuses(broker.retained(2)) == [("offline", "ended")]
        without = failure(address, trusting(authority))
        unknown = failure(address, trusting(authority, stranger.issue("sensor")))
        expired = failure(address, trusting(authority, authority.issue("late", expired=True)))
    assert without == f"{address} wants a client certificate: set cert_file and key_file"
    assert unknown == f"{address} does not accept our certificate (unknown ca): check cert_file"
    assert expired == f"{address} does not accept our certificate (certificate expired): check cert_file"


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
    """Every event and the sound, in order, valid, stamped from `--start`; `status` and `info` stay."""
    broker.subscribe("reader")
    done = subprocess.run(
        replay_command(broker, bundle, str(street)), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    messages = broker.take_until("reader", "ended")
    windows = ["tags", "events", *["tags"] * 4, "events"]
    assert [message.kind for message in messages] == ["status", "info", *windows, "status"]
    assert seqs(messages) == list(range(5))
    for message in messages:
        jsonschema.validate(message.payload, json_schema(message.kind))
    tags = [message.payload for message in messages if message.kind == "tags"]
    assert [event["start"] for event in tags] == [f"2026-11-22T10:00:{s:02d}.000Z" for s in range(0, 25, 5)]
    assert {kind for kind, *_ in broker.retained(2)} == {"status", "info"}


def test_what_several_processes_hear_is_published_by_one(
    broker: Mosquitto, bundle: Path, street: Path
) -> None:
    """`--jobs`: every window and sound of every recording, in order, by one publisher."""
    broker.subscribe("reader")
    done = subprocess.run(
        replay_command(broker, bundle, "--jobs", "2", *[str(street)] * 3),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    messages = broker.take_until("reader", "ended")
    windows = ["tags", "events", *["tags"] * 4, "events"]
    assert [message.kind for message in messages] == ["status", "info", *windows * 3, "status"]
    assert seqs(messages) == list(range(15))


def test_a_replay_trusts_whom_the_configuration_trusts(
    tmp_path: Path, bundle: Path, street: Path, authority: Authority
) -> None:
    with secured(tmp_path, authority.issue("broker")) as (broker, address):
        broker.subscribe("reader")
        config = tmp_path / "edgetag.yaml"
        config.write_text(f"mqtt: {{url: '{address}', ca_file: '{authority.ca_file}'}}\n")
        command = replay_command(broker, bundle, "--mqtt", str(address), str(street))
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (4, 1)
        done = subprocess.run(
            [*command, "--config", str(config)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert seqs(broker.take_until("reader", "ended")) == list(range(5))


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
