"""The thin publisher: what it promises a subscriber, and what it says when it cannot keep it.

A real broker (amqtt, in this process) for what brokers do; `FakeBroker` for what they should not.
"""

import contextlib
import socket
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import msgspec
import pytest
import structlog
from hypothesis import assume, given
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from edgetag.contract.errors import InputError, NetworkError
from edgetag.contract.event import Info, Status, TagsEvent, encode
from edgetag.delivery.mqtt import BrokerAddress, MqttPublisher, parse_url
from edgetag.demo.broker import EmbeddedBroker
from fakes import (
    HANG_UP,
    NOTHING,
    Answer,
    FakeBroker,
    OnPublish,
    Published,
    accept,
    acknowledge,
    bundle_info,
    refuse,
    tags_event,
)

WAIT_S = 20  # for what must happen; nothing here waits for what must not


def publisher(port: int, **options: Any) -> MqttPublisher:
    """For 127.0.0.1, and impatient: what is not answered here never will be."""
    settings: dict[str, Any] = {"sensor": "b827eb42bd4a", "info": bundle_info(), "boot_id": "01JD"} | options
    return MqttPublisher(BrokerAddress("127.0.0.1", port), **settings)


def replay(port: int, seqs: int | Iterable[int], **options: Any) -> None:
    with publisher(port, **options) as sink:
        for seq in range(seqs) if isinstance(seqs, int) else seqs:
            sink.deliver(tags_event(seq))


class Subscriber:
    """A client that keeps every message under `topic`, retained ones included."""

    def __init__(self, port: int, topic: str = "#") -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self._more = threading.Condition()
        self._subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.subscribe(topic, 1)
        self._client.loop_start()

    def __enter__(self) -> Self:
        assert self._subscribed.wait(WAIT_S)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def take(self, n: int) -> list[tuple[str, bytes, bool]]:
        """The first `n` messages (topic, payload, retained), once they have come."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.messages) >= n, WAIT_S), self.messages
            return self.messages[:n]

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        with self._more:
            self.messages.append((message.topic, bytes(message.payload), message.retain))
            self._more.notify_all()


def status(payload: bytes) -> tuple[str, str]:
    message = msgspec.json.decode(payload, type=Status)
    return message.state, message.reason


# -- with a real broker ----------------------------------------------------------------------------------


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    """A fresh one each time: amqtt sends a new client retained messages that others subscribed to."""
    with EmbeddedBroker() as broker:
        yield broker


def test_a_subscriber_gets_online_then_every_event_in_order_then_ended(broker: EmbeddedBroker) -> None:
    with Subscriber(broker.port, "sonyc/v1/inorder/#") as subscriber:
        with publisher(broker.port, sensor="inorder") as sink:
            for seq in range(50):
                sink.deliver(tags_event(seq))
        messages = subscriber.take(53)
    topics = [topic.removeprefix("sonyc/v1/inorder/") for topic, _, _ in messages]
    assert topics == ["status", "info", *["tags"] * 50, "status"]
    assert status(messages[0][1]) == ("online", "connected")
    assert msgspec.json.decode(messages[1][1], type=Info) == bundle_info()
    assert [payload for _, payload, _ in messages[2:52]] == [encode(tags_event(seq)) for seq in range(50)]
    assert status(messages[-1][1]) == ("offline", "ended")


def test_status_and_info_are_retained_and_events_are_not(broker: EmbeddedBroker) -> None:
    with publisher(broker.port, sensor="retained", prefix="city/v2") as sink:
        sink.deliver(tags_event())
        with Subscriber(broker.port, "city/v2/retained/#") as late:
            online = {topic: (payload, retained) for topic, payload, retained in late.take(2)}
    with Subscriber(broker.port, "city/v2/retained/#") as later:
        ended = {topic: (payload, retained) for topic, payload, retained in later.take(2)}
    assert online.keys() == ended.keys() == {"city/v2/retained/status", "city/v2/retained/info"}
    assert all(retained for _, retained in [*online.values(), *ended.values()])
    assert status(online["city/v2/retained/status"][0]) == ("online", "connected")
    assert status(ended["city/v2/retained/status"][0]) == ("offline", "ended")


def test_the_embedded_broker_speaks_3_1_1_only_and_says_so(broker: EmbeddedBroker) -> None:
    with structlog.testing.capture_logs() as logs:
        replay(broker.port, 1, sensor="older")
    assert [line["event"] for line in logs] == ["mqtt.fallback", "mqtt.connected", "mqtt.disconnected"]
    assert logs[1]["version"] == "3.1.1"


def test_an_error_of_the_caller_s_own_still_ends_the_replay_properly(broker: EmbeddedBroker) -> None:
    def damaged() -> Iterator[int]:
        yield 0
        raise KeyError("the recording is damaged")

    with pytest.raises(KeyError):
        replay(broker.port, damaged(), sensor="body")
    with Subscriber(broker.port, "sonyc/v1/body/#") as late:
        assert status(late.take(2)[0][1]) == ("offline", "ended")


def test_the_embedded_broker_stops_and_starts_on_another_port() -> None:
    with EmbeddedBroker() as first, EmbeddedBroker() as second:
        assert first.port != second.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first.port))


def test_without_amqtt_the_embedded_broker_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    with pytest.raises(InputError, match=r"pip install 'edgetag\[demo\]'"):
        EmbeddedBroker().__enter__()


def test_the_embedded_broker_goes_down_with_clients_still_connected(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with EmbeddedBroker() as broker:
        mute = socket.create_connection(("127.0.0.1", broker.port))
        with publisher(broker.port) as sink:
            sink.deliver(tags_event())
        subscriber = Subscriber(broker.port)
        subscriber.__enter__()
    mute.close()
    subscriber.__exit__(None, None, None)
    assert capfd.readouterr().err == ""


# -- brokers that refuse -----------------------------------------------------------------------------------


OLD_REFUSAL = b"\x20\x02\x00\x01"


def only_3_1_1(answer: Answer, refusal: bytes | None = OLD_REFUSAL) -> Answer:
    """A broker that has never heard of MQTT 5."""
    return lambda level: answer(level) if level == 4 else refusal


def always(answer: bytes | None) -> Answer:
    return lambda _level: answer


def failure(port: int, **options: Any) -> str:
    """The one sentence with which entering fails."""
    with pytest.raises(NetworkError) as error:
        replay(port, 0, connect_timeout_s=0.5, **options)
    return str(error.value)


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert failure(port) == f"nothing listens at mqtt://127.0.0.1:{port}: is the broker running?"


def test_a_listener_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert failure(port) == f"mqtt://127.0.0.1:{port} did not answer within 0.5 s"


@pytest.mark.parametrize("answer", [HANG_UP, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x00"])
def test_a_listener_that_is_no_broker(answer: bytes | None) -> None:
    with FakeBroker(always(answer)) as broker:
        message = failure(broker.port)
    address = f"mqtt://127.0.0.1:{broker.port}"
    assert message in (
        f"{address} did not answer within 0.5 s",
        f"{address} hung up without an answer: is it an MQTT broker?",
    )


def test_a_listener_that_hangs_up_is_tried_with_both_versions() -> None:
    with FakeBroker(always(HANG_UP)) as broker:
        assert "hung up without an answer" in failure(broker.port)
    assert broker.levels == [5, 4]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refuse(0x86, 4), "(bad user name or password): it wants a user and a password"),
        (refuse(0x87, 5), "(not authorized): it wants a user and a password"),
        (refuse(0x88, 3), "(server unavailable)"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_refused_connection_is_not_a_connected_one(answer: Answer, reason: str, old: bool) -> None:
    with FakeBroker(only_3_1_1(answer) if old else answer) as broker:
        message = failure(broker.port)
    assert message == f"mqtt://127.0.0.1:{broker.port} refused the connection {reason}"
    assert broker.published == []
    assert broker.levels == ([5, 4] if old else [5])


@pytest.mark.parametrize("refusal", [OLD_REFUSAL, b"\x20\x03\x00\x84\x00", HANG_UP, NOTHING])
def test_a_broker_that_does_not_understand_mqtt_5_is_spoken_to_in_3_1_1(refusal: bytes | None) -> None:
    """0x84 is MQTT 5's own word for it; others answer in the old format, hang up, or are struck dumb."""
    with FakeBroker(only_3_1_1(accept, refusal)) as broker:
        replay(broker.port, 1, connect_timeout_s=2)
    assert broker.levels == [5, 4]
    assert broker.seqs() == [0]


def test_a_broker_that_speaks_nothing_known_is_an_error() -> None:
    """paho goes on down to MQTT 3.1, whose level is 3."""
    with FakeBroker(always(OLD_REFUSAL)) as broker:
        message = failure(broker.port)
    assert message == f"mqtt://127.0.0.1:{broker.port} speaks none of MQTT 5, 3.1.1 and 3.1"
    assert broker.levels == [5, 4, 3]


def test_wrong_credentials_are_named_but_never_shown() -> None:
    with FakeBroker(refuse(0x86, 4)) as broker, structlog.testing.capture_logs() as logs:
        address = BrokerAddress("127.0.0.1", broker.port, "sensor", "hunter2")
        sink = MqttPublisher(address, sensor="a", info=bundle_info(), boot_id="01JD")
        with pytest.raises(NetworkError, match="check user and password") as error:
            sink.__enter__()
    assert "hunter2" not in str(error.value) + str(logs)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64, "a..b"])
def test_an_unknown_host(host: str) -> None:
    sink = MqttPublisher(BrokerAddress(host), sensor="a", info=bundle_info(), boot_id="01JD")
    with pytest.raises(NetworkError, match="cannot find the host of mqtt://"):
        sink.__enter__()


# -- brokers that fail later ---------------------------------------------------------------------------


def first(n: int, then: bytes | None) -> OnPublish:
    """Acknowledge everything but events; of these the first `n`, `then` goes for the rest."""
    seen: list[Published] = []

    def on_publish(message: Published) -> bytes | None:
        if message.kind == "tags":
            seen.append(message)
        return acknowledge(message) if len(seen) <= n else then

    return on_publish


def test_an_event_that_is_not_acknowledged_is_counted_and_the_last_will_stands() -> None:
    with FakeBroker(on_publish=first(4, NOTHING)) as broker, pytest.raises(NetworkError) as error:
        replay(broker.port, 7, ack_timeout_s=0.3)
    assert str(error.value) == (
        f"mqtt://127.0.0.1:{broker.port} acknowledged nothing for 0.3 s: 3 events not acknowledged"
    )
    assert broker.goodbyes == 0


def test_no_more_than_the_allowed_number_of_events_is_in_flight() -> None:
    with (
        FakeBroker(on_publish=first(0, NOTHING)) as broker,
        pytest.raises(NetworkError, match="5 events not acknowledged"),
    ):
        replay(broker.port, 100, ack_timeout_s=0.3, max_in_flight=5)
    assert broker.seqs() == [0, 1, 2, 3, 4]


def test_the_broker_may_ask_for_fewer_in_flight() -> None:
    """Receive Maximum 5: three events, for status and info may have to be said again beside them."""
    receive_maximum_5 = b"\x20\x06\x00\x00\x03\x21\x00\x05"
    with (
        FakeBroker(always(receive_maximum_5), first(0, NOTHING)) as broker,
        pytest.raises(NetworkError, match="3 events not acknowledged"),
    ):
        replay(broker.port, 100, ack_timeout_s=0.3)
    assert broker.seqs() == [0, 1, 2]


def test_an_event_the_broker_does_not_accept_is_an_error() -> None:
    """MQTT 5 has a code for that in the PUBACK: 0x87, not authorized."""
    not_authorized = b"\x40\x03\x00\x03\x87"
    with (
        FakeBroker(on_publish=first(0, not_authorized)) as broker,
        pytest.raises(NetworkError, match=r"did not accept tags on sonyc/v1/\w+: Not authorized"),
    ):
        replay(broker.port, 1)


@pytest.mark.parametrize("answer", [accept, only_3_1_1(accept)], ids=["5", "3.1.1"])
def test_a_lost_connection_loses_no_event_and_keeps_the_order(answer: Answer) -> None:
    """
    received  0 1 2 3 |      1 2 3 4 5 6 7 8 9
    acked     *       | lost * * * * * * * * *
    """
    lost: list[Published] = []

    def on_publish(message: Published) -> bytes | None:
        if message.seq in (None, 0) or lost:
            return acknowledge(message)
        if message.seq in (1, 2):
            return NOTHING
        lost.append(message)
        return HANG_UP

    with FakeBroker(answer, on_publish) as broker:
        replay(broker.port, 10)
    assert broker.seqs() == [0, 1, 2, 3, *range(1, 10)]
    assert {1, 2, 3} <= {message.seq for message in broker.published if message.duplicate}


def test_after_a_lost_connection_the_sensor_is_announced_again() -> None:
    """The broker has published the last will meanwhile, or was restarted and has forgotten everything."""
    lost: list[Published] = []

    def on_publish(message: Published) -> bytes | None:
        if message.kind == "tags" and not lost:
            lost.append(message)
            return HANG_UP
        return acknowledge(message)

    with FakeBroker(on_publish=on_publish) as broker:
        replay(broker.port, 1)
    statuses = [status(message.payload) for message in broker.published if message.kind == "status"]
    assert statuses == [("online", "connected"), ("online", "reconnected"), ("offline", "ended")]
    assert all(message.retain == (message.kind != "tags") for message in broker.published)
    assert sum(message.kind == "info" for message in broker.published) == 2


def test_ended_has_the_last_word_though_the_connection_is_lost_before_it_is_acknowledged() -> None:
    lost: list[Published] = []

    def on_publish(message: Published) -> bytes | None:
        if b'"ended"' in message.payload and not lost:
            lost.append(message)
            return HANG_UP
        return acknowledge(message)

    with FakeBroker(on_publish=on_publish) as broker:
        replay(broker.port, 1)
    assert [status(message.payload)[1] for message in broker.published if message.kind == "status"] == [
        "connected",
        "ended",
        "ended",
    ]


def test_a_connection_that_does_not_come_back_is_an_error() -> None:
    with (
        FakeBroker(on_publish=first(2, HANG_UP)) as broker,
        pytest.raises(NetworkError, match=r"lost the connection to .* within 0.3 s: \d events? not"),
    ):
        replay(broker.port, 10, ack_timeout_s=0.3)


def test_a_second_client_of_the_same_name_is_an_error_not_a_tug_of_war() -> None:
    taken_over = b"\xe0\x01\x8e"
    with (
        FakeBroker(on_publish=first(0, taken_over)) as broker,
        pytest.raises(NetworkError, match="a sensor id of its own"),
    ):
        replay(broker.port, 1)


def test_no_thread_outlives_the_publisher() -> None:
    with FakeBroker(on_publish=first(0, NOTHING)) as broker:
        before = threading.active_count()
        replay(broker.port, 0)
        with pytest.raises(NetworkError):
            replay(broker.port, 1, ack_timeout_s=0.1)
        assert threading.active_count() == before


def test_a_delivered_event_decodes_to_itself() -> None:
    with FakeBroker() as broker, publisher(broker.port) as sink:
        sink.deliver(tags_event(7, source="street.wav"))
    (tags,) = [message for message in broker.published if message.kind == "tags"]
    assert msgspec.json.decode(tags.payload, type=TagsEvent) == tags_event(7, source="street.wav")


# -- URLs, sensors, prefixes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker", BrokerAddress("broker", 1883)),
        ("MQTT://Broker.Example:1884", BrokerAddress("broker.example", 1884)),
        ("mqtt://broker:", BrokerAddress("broker", 1883)),
        ("mqtt://[::1]:1883", BrokerAddress("::1", 1883)),
        ("mqtt://sensor@broker", BrokerAddress("broker", 1883, "sensor")),
        ("mqtt://sensor:p%40ss%2Fword@broker", BrokerAddress("broker", 1883, "sensor", "p@ss/word")),
        ("mqtt://sensor:@broker", BrokerAddress("broker", 1883, "sensor", "")),
    ],
)
def test_urls_that_name_a_broker(url: str, address: BrokerAddress) -> None:
    assert parse_url(url) == address


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("mqtts://broker", "not supported yet, use mqtt://"),
        ("http://broker", "does not begin with mqtt://"),
        ("broker:1883", "does not begin with mqtt://"),
        ("", "does not begin with mqtt://"),
        ("mqtt://", "no host"),
        ("mqtt://:1883", "no host"),
        ("mqtt://user:secret@", "no host"),
        ("mqtt://broker:0", "a port from 1 to 65535"),
        ("mqtt://broker:65536", "a port from 1 to 65535"),
        ("mqtt://broker:mqtt", "a port from 1 to 65535"),
        ("mqtt://[::1", "around an IPv6 address"),
        ("mqtt://broker/topic", "ends there"),
        ("mqtt://broker/", "ends there"),
        ("mqtt://broker?tls=1", "ends there"),
        ("mqtt://broker#1", "ends there"),
        ("mqtt://bro ker", "a blank"),
        ("mqtt://broker\n", "a control character"),
        ("mqtt://:secret@broker", "a password without a user"),
        ("mqtt://us%00er@broker", "a control character"),
        (f"mqtt://user:{'x' * 65_536}@broker", "65535 bytes"),
    ],
)
def test_urls_that_do_not(url: str, remedy: str) -> None:
    with pytest.raises(InputError) as error:
        parse_url(url)
    assert remedy in str(error.value)


@given(st.text(max_size=40) | st.text(max_size=40).map(lambda text: f"mqtt://{text}"))
def test_any_text_is_an_address_or_an_input_error(url: str) -> None:
    with contextlib.suppress(InputError):
        assert 1 <= parse_url(url).port <= 65_535


users = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
hosts = st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{2,5})?", fullmatch=True)


@given(users, st.none() | st.text(max_size=20), hosts, st.integers(1, 65_535))
def test_any_credentials_survive_percent_encoding(
    user: str, password: str | None, host: str, port: int
) -> None:
    secret = "" if password is None else f":{quote(password, safe='')}"
    address = parse_url(f"mqtt://{quote(user, safe='')}{secret}@{host}:{port}")
    assert address == BrokerAddress(host, port, user, password)


@given(
    st.from_regex(r"[/?#@:\[\]% \n]?hunter2[/?#@:\[\]% \n]?", fullmatch=True),
    st.sampled_from(["mqtt", "mqtts", "http", ""]),
    st.sampled_from(["@broker", "@broker:x", "@broker:1883/topic", "@", "", "@[::1", "\x00@b"]),
)
def test_no_message_and_no_repr_ever_shows_the_password(password: str, scheme: str, rest: str) -> None:
    assume(rest or not password.startswith("@"))  # there it is a host, after an empty password
    shown = ""
    try:
        address = parse_url(f"{scheme}://sensor:{password}{rest}")
        shown = repr(address) + str(address)
    except InputError as error:
        shown = "".join(traceback.format_exception(error)[-1:])
    assert "hunter2" not in shown


@pytest.mark.parametrize("sensor", ["", "a/b", "a+b", "#", "a\x00", "a\n", "x" * 65])
def test_sensor_ids_that_cannot_be_a_level_of_a_topic(sensor: str) -> None:
    with pytest.raises(InputError, match="sensor id"):
        publisher(1883, sensor=sensor)


@pytest.mark.parametrize("prefix", ["", "/", "/a", "a/", "a/+/b", "a/#", "a\x00", "x" * 257])
def test_prefixes_topics_cannot_begin_with(prefix: str) -> None:
    with pytest.raises(InputError, match="topic prefix"):
        publisher(1883, prefix=prefix)
