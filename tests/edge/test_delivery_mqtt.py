"""The thin publisher: what it promises a subscriber, and what it says when it cannot keep it.

A real broker (amqtt, in this process) for what brokers do; `FakeBroker` for what they should not.
"""

import contextlib
import gc
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
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
from edgetag.delivery.connection import LostError, TakenOverError
from edgetag.delivery.mqtt import BrokerAddress, MqttPublisher, parse_url
from edgetag.delivery.sink import Courier, Forwarded, Settled
from edgetag.demo.broker import EmbeddedBroker
from fakes import (
    HANG_UP,
    NOTHING,
    Answer,
    FakeBroker,
    LastWords,
    OnPublish,
    Published,
    accept,
    accept_with,
    acknowledge,
    bundle_info,
    grant,
    publish,
    reject,
    sensor_health,
    sound_event,
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


def only_3_1_1(answer: Answer) -> Answer:
    """A broker that has never heard of MQTT 5, and says so."""
    return lambda level: answer(level) if level == 4 else b"\x20\x02\x00\x01"


# -- brokers that fail later ---------------------------------------------------------------------------


def first(n: int, then: bytes | None) -> OnPublish:
    """Acknowledge everything but events; of these the first `n`, `then` goes for the rest."""
    seen: list[Published] = []

    def on_publish(message: Published) -> bytes | None:
        if message.kind in ("tags", "events"):
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


@pytest.mark.parametrize("n", [1, 5])
def test_the_broker_may_ask_for_fewer_in_flight(n: int) -> None:
    """Receive Maximum."""
    with (
        FakeBroker(accept_with(b"\x21\x00" + bytes([n])), first(0, NOTHING)) as broker,
        pytest.raises(NetworkError, match=f"{n} events? not acknowledged"),
    ):
        replay(broker.port, 100, ack_timeout_s=0.3)
    assert broker.seqs() == list(range(n))


@pytest.mark.parametrize(("n_lost", "patience_s"), [(0, 0.3), (1, 3)])
def test_the_announcement_does_not_exceed_what_the_broker_asks_for_either(
    n_lost: int, patience_s: float
) -> None:
    """Receive Maximum 1: `info` waits until `status` is acknowledged, also after a lost connection."""

    def on_publish(message: Published) -> bytes | None:
        is_last = len(broker.levels) == 1 + n_lost
        if message.kind == "tags":
            return acknowledge(message) if is_last else HANG_UP
        return NOTHING if message.kind == "status" and is_last else acknowledge(message)

    with (
        FakeBroker(accept_with(b"\x21\x00\x01"), on_publish) as broker,
        pytest.raises(NetworkError, match="acknowledged nothing"),
    ):
        replay(broker.port, 1, ack_timeout_s=patience_s)
    assert broker.published[-1].kind == "status"


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


def hang_up_once() -> OnPublish:
    """On the first event."""
    lost: list[Published] = []

    def on_publish(message: Published) -> bytes | None:
        if message.kind == "tags" and not lost:
            lost.append(message)
            return HANG_UP
        return acknowledge(message)

    return on_publish


def test_after_a_lost_connection_the_sensor_is_announced_again() -> None:
    """The broker has published the last will meanwhile, or was restarted and has forgotten everything."""
    with FakeBroker(on_publish=hang_up_once()) as broker:
        replay(broker.port, 1)
    statuses = [status(message.payload) for message in broker.published if message.kind == "status"]
    assert statuses == [("online", "connected"), ("online", "reconnected"), ("offline", "ended")]
    assert all(message.retain == (message.kind != "tags") for message in broker.published)
    assert sum(message.kind == "info" for message in broker.published) == 2


def test_an_announcement_that_was_interrupted_is_completed_on_the_next_connection() -> None:
    """Receive Maximum 1, so that `info` has not been sent when the first connection is lost."""

    def on_publish(message: Published) -> bytes | None:
        return HANG_UP if len(broker.levels) == 1 else acknowledge(message)

    with FakeBroker(accept_with(b"\x21\x00\x01"), on_publish) as broker, publisher(broker.port):
        pass
    assert [message.kind for message in broker.published] == ["status", "status", "info", "status"]


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
        pytest.raises(NetworkError, match="an id of its own"),
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


# -- as a courier ------------------------------------------------------------------------------------------


def courier(port: int, **options: Any) -> MqttPublisher:
    return publisher(port, reconnect=False, **options)


def settled(sink: Courier, n: int) -> list[Settled]:
    """The next `n` that are."""
    found: list[Settled] = []
    wait_until(lambda: found.extend(sink.settled()) or len(found) >= n)
    assert len(found) == n
    return found


def trouble(sink: Courier) -> NetworkError:
    """What `settled` raises, once it does."""

    def is_raised() -> bool:
        try:
            sink.settled()
        except NetworkError as error:
            raised.append(error)
        return bool(raised)

    raised: list[NetworkError] = []
    wait_until(is_raised)
    return raised[0]


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def messages(n: int) -> list[tuple[int, Forwarded, bytes]]:
    """Ids of their own, windows and sounds in turn."""
    return [
        (100 + seq, "events", encode(sound_event(seq)))
        if seq % 2
        else (100 + seq, "tags", encode(tags_event(seq)))
        for seq in range(n)
    ]


def forward_all(sink: Courier, messages: Iterable[tuple[int, Forwarded, bytes]]) -> None:
    for message in messages:
        sink.forward(*message)


@pytest.mark.parametrize("answer", [accept, only_3_1_1(accept)], ids=["5", "3.1.1"])
def test_what_is_forwarded_arrives_as_it_is_and_in_order_and_is_settled(answer: Answer) -> None:
    with FakeBroker(answer) as broker, courier(broker.port) as sink:
        forward_all(sink, messages(50))
        assert settled(sink, 50) == [Settled(id) for id, _, _ in messages(50)]
        assert sink.settled() == []
        assert [(m.kind, m.payload) for m in broker.published[2:]] == [m[1:] for m in messages(50)]


def test_a_message_that_is_refused_is_settled_and_holds_up_no_other() -> None:
    """0x83, implementation specific error; 0x87, not authorized; 0x99, payload format invalid."""
    codes = {100: 0x83, 101: 0x87, 103: 0x99}

    def on_publish(message: Published) -> bytes:
        id = {m[2]: m[0] for m in messages(5)}.get(message.payload, 0)
        return reject(message, codes[id]) if id in codes else acknowledge(message)

    with FakeBroker(on_publish=on_publish) as broker, courier(broker.port) as sink:
        forward_all(sink, messages(5))
        found = settled(sink, 5)
    prefix = f"mqtt://127.0.0.1:{broker.port} did not accept"
    assert found == [
        Settled(100, f"{prefix} tags on sonyc/v1/b827eb42bd4a: Implementation specific error"),
        Settled(101, f"{prefix} events on sonyc/v1/b827eb42bd4a: Not authorized"),
        Settled(102),
        Settled(103, f"{prefix} events on sonyc/v1/b827eb42bd4a: Payload format invalid"),
        Settled(104),
    ]


def test_mosquitto_s_own_code_for_too_large_a_message_is_a_refusal_too() -> None:
    """0x95, which is no PUBACK's."""

    def on_publish(message: Published) -> bytes:
        return reject(message, 0x95) if message.kind == "events" else acknowledge(message)

    with FakeBroker(on_publish=on_publish) as broker, courier(broker.port) as sink:
        forward_all(sink, messages(3))
        found = settled(sink, 3)
    assert [bool(one.refusal) for one in found] == [False, True, False]
    assert "Packet too large" in found[1].refusal


def test_rights_that_are_taken_away_cost_no_message() -> None:
    """Somebody changed the broker's rules: what was accepted until now is not refused message by message."""

    def on_publish(message: Published) -> bytes:
        return reject(message, 0x87) if message.seq == 1 else acknowledge(message)

    with (
        FakeBroker(on_publish=on_publish) as broker,
        contextlib.suppress(NetworkError),
        courier(broker.port) as sink,
    ):
        for id in range(2):
            sink.forward(id, "tags", encode(tags_event(id)))
        assert settled(sink, 1) == [Settled(0)]
        assert "Not authorized" in str(trouble(sink))


def test_a_lost_connection_leaves_no_descriptor_behind() -> None:
    """Not even until a collection of garbage, for which a sensor has no occasion."""

    def lose_one() -> None:
        with (
            FakeBroker(on_publish=lambda m: HANG_UP if m.kind == "tags" else acknowledge(m)) as broker,
            contextlib.suppress(NetworkError),
            courier(broker.port) as sink,
        ):
            sink.forward(0, "tags", encode(tags_event(0)))
            trouble(sink)

    lose_one()
    gc.collect()
    gc.disable()
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(10):
            lose_one()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before
    finally:
        gc.enable()


@pytest.mark.parametrize(("code", "reason"), [(0x97, "Quota exceeded"), (0x91, "Packet identifier in use")])
def test_a_refusal_that_will_pass_is_an_error_and_settles_nothing(code: int, reason: str) -> None:
    def on_publish(message: Published) -> bytes:
        return reject(message, code) if message.kind == "tags" else acknowledge(message)

    with FakeBroker(on_publish=on_publish) as broker, courier(broker.port) as sink:
        sink.forward(*messages(1)[0])
        assert str(trouble(sink)).endswith(f"did not accept tags on sonyc/v1/b827eb42bd4a: {reason}")


def test_an_announcement_that_is_refused_is_an_error() -> None:
    """Who may not announce is not connected; nothing that is forwarded gets refused for it."""

    def on_publish(message: Published) -> bytes:
        return reject(message, 0x87) if message.kind == "info" else acknowledge(message)

    with (
        FakeBroker(on_publish=on_publish) as broker,
        pytest.raises(NetworkError, match=r"did not accept info on .*: Not authorized"),
        courier(broker.port),
    ):
        pass


def takes(n_bytes: int) -> Answer:
    """A broker's Maximum Packet Size."""
    return accept_with(b"\x27" + n_bytes.to_bytes(4, "big"))


def test_a_message_that_is_too_large_for_the_broker_is_settled_and_never_sent() -> None:
    """It would break the connection off, again and again."""
    large = encode(tags_event(7, source=4_000 * "x"))
    with FakeBroker(takes(4_000)) as broker, courier(broker.port) as sink:
        sink.forward(1, "tags", encode(tags_event(6)))
        sink.forward(2, "tags", large)
        sink.forward(3, "tags", encode(tags_event(8)))
        found = sorted(settled(sink, 3))
    assert [(one.id, bool(one.refusal)) for one in found] == [(1, False), (2, True), (3, False)]
    assert f"mqtt://127.0.0.1:{broker.port} does not take tags" in found[1].refusal
    assert "bytes are more than the 4000 that the broker takes" in found[1].refusal
    assert broker.seqs() == [6, 8]


def test_to_a_sink_too_large_an_event_is_an_error() -> None:
    with (
        FakeBroker(takes(4_000)) as broker,
        pytest.raises(NetworkError, match="does not take tags"),
        publisher(broker.port) as sink,
    ):
        sink.deliver(tags_event(7, source=4_000 * "x"))
    assert broker.seqs() == []


def test_too_large_an_announcement_is_an_error() -> None:
    with (
        FakeBroker(takes(500)) as broker,
        pytest.raises(NetworkError, match="does not take info"),
        courier(broker.port),
    ):
        pass
    assert "info" not in {message.kind for message in broker.published}


def test_a_side_message_that_is_too_large_is_left_out_and_told() -> None:
    with (
        FakeBroker(takes(4_000)) as broker,
        structlog.testing.capture_logs() as logs,
        courier(broker.port) as sink,
    ):
        sink.say("a/b", bytes(5_000), retain=False)
        sink.say("a/c", b"1", retain=False)
    assert [message.topic for message in broker.published if message.topic.startswith("a/")] == ["a/c"]
    assert [(line["log_level"], line["topic"]) for line in logs if line["event"] == "mqtt.unsaid"] == [
        ("warning", "a/b")
    ]


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"{}", b'{"schema":1}', b"\xff", b'{"schema":"\xff"}'])
def test_what_is_no_message_is_refused_here(payload: bytes) -> None:
    """A broken disk must not hold up the queue."""
    with FakeBroker() as broker, courier(broker.port) as sink:
        sink.forward(1, "tags", payload)
        assert settled(sink, 1)[0].refusal.startswith("a message on tags names no schema: ")
    assert broker.seqs() == []


def test_what_was_settled_before_the_connection_was_lost_is_told_first() -> None:
    def on_publish(message: Published) -> bytes | None:
        return LastWords(acknowledge(message)) if message.kind == "events" else acknowledge(message)

    with FakeBroker(on_publish=on_publish) as broker, courier(broker.port) as sink:
        forward_all(sink, messages(2))
        found = settled(sink, 2)
        error = trouble(sink)
        with pytest.raises(LostError):
            sink.forward(*messages(1)[0])
    assert [one.id for one in found] == [100, 101]
    assert isinstance(error, LostError)
    assert str(error) == (
        f"lost the connection to mqtt://127.0.0.1:{broker.port} (broken off): 0 events not acknowledged"
    )
    assert broker.levels == [5], "a courier is the caller's to repair"


def test_a_second_sensor_of_the_same_id_is_told_from_a_lost_connection() -> None:
    def on_publish(message: Published) -> bytes:
        return b"\xe0\x01\x8e" if message.kind == "tags" else acknowledge(message)

    with FakeBroker(on_publish=on_publish) as broker, courier(broker.port) as sink:
        sink.forward(*messages(1)[0])
        assert isinstance(trouble(sink), TakenOverError)


def test_a_broker_that_acknowledges_nothing_is_an_error_but_not_a_lost_connection() -> None:
    with FakeBroker(on_publish=first(0, NOTHING)) as broker, courier(broker.port, ack_timeout_s=0.3) as sink:
        sink.forward(*messages(1)[0])
        error = trouble(sink)
        assert "acknowledged nothing for 0.3 s: 1 event not acknowledged" in str(error)
        assert not isinstance(error, LostError)


def test_a_message_waits_for_room_and_the_broker_s_silence_ends_that() -> None:
    with (
        FakeBroker(on_publish=first(0, NOTHING)) as broker,
        pytest.raises(NetworkError, match=r"acknowledged nothing for 0.3 s: 20 events not acknowledged"),
        courier(broker.port, ack_timeout_s=0.3) as sink,
    ):
        forward_all(sink, messages(21))
    assert len(broker.published) == 2 + 20


def test_side_messages_are_published_once_and_not_without_a_connection() -> None:
    with FakeBroker(on_publish=first(0, HANG_UP)) as broker, courier(broker.port) as sink:
        sink.say("homeassistant/device/x/config", b"{}", retain=True)
        sink.report(sensor_health())
        sink.forward(*messages(1)[0])
        trouble(sink)
        sink.say("homeassistant/device/x/config", b"{}", retain=True)
        sink.report(sensor_health())
    said = [(m.topic, m.payload, m.retain, m.message_id) for m in broker.published[2:-1]]
    assert said == [
        ("homeassistant/device/x/config", b"{}", True, 0),
        ("sonyc/v1/b827eb42bd4a/health", encode(sensor_health()), False, 0),
    ]


# -- what it hears -------------------------------------------------------------------------------------------


def test_what_comes_on_the_subscribed_topics_is_heard_and_nothing_else() -> None:
    came = (
        publish(b"homeassistant/status", b"online")
        + publish(b"an/older/subscription", b"x")
        + publish(b"homeassistant/\xff", b"bad UTF-8")
        + publish(b"homeassistant/status", b"\xff\x00")
    )

    def on_publish(message: Published) -> bytes:
        return came + acknowledge(message) if message.kind == "tags" else acknowledge(message)

    topics = ("homeassistant/status", "commands/#")
    with FakeBroker(on_publish=on_publish) as broker, courier(broker.port, subscribe=topics) as sink:
        assert sink.heard() == []
        sink.forward(*messages(1)[0])
        settled(sink, 1)
        assert sink.heard() == [("homeassistant/status", b"online"), ("homeassistant/status", b"\xff\x00")]
        assert sink.heard() == []
    assert [wish.topics for wish in broker.subscribed] == [["homeassistant/status"], ["commands/#"]]


def test_what_nobody_asks_for_does_not_pile_up() -> None:
    flood = b"".join(publish(b"a", b"%d" % n) for n in range(1_000))

    def on_publish(message: Published) -> bytes:
        return flood + acknowledge(message) if message.kind == "tags" else acknowledge(message)

    with FakeBroker(on_publish=on_publish) as broker, courier(broker.port, subscribe=["a"]) as sink:
        sink.forward(*messages(1)[0])
        settled(sink, 1)
        assert sink.heard() == [("a", b"%d" % n) for n in range(900, 1_000)]


def test_after_a_lost_connection_it_subscribes_again() -> None:
    with FakeBroker(on_publish=hang_up_once()) as broker:
        replay(broker.port, 1, subscribe=["a"])
    assert [wish.topics for wish in broker.subscribed] == [["a"], ["a"]]


def test_a_subscription_that_is_refused_is_told_and_no_error() -> None:
    with (
        FakeBroker(on_subscribe=lambda wish: grant(wish, 0x87)) as broker,
        structlog.testing.capture_logs() as logs,
        courier(broker.port, subscribe=["a"]) as sink,
    ):
        sink.forward(*messages(1)[0])
        settled(sink, 1)
    assert [line["reason"] for line in logs if line["event"] == "mqtt.deaf"] == ["Not authorized"]


@pytest.fixture(scope="module")
def babbler() -> Iterator[tuple[FakeBroker, list[bytes]]]:
    """A broker whose answer to an event is what the list holds; then it hangs up."""
    words = [b""]
    with FakeBroker(
        on_publish=lambda message: acknowledge(message) if message.kind != "tags" else LastWords(words[0])
    ) as broker:
        yield broker, words


@given(
    st.lists(
        st.builds(
            lambda header, body: bytes([header, len(body)]) + body,
            st.integers(0, 255),
            st.binary(max_size=99),
        )
        | st.builds(lambda level: publish(b"homeassistant/" + level, b"online"), st.binary(max_size=9))
        | st.builds(lambda payload: publish(b"homeassistant/status", payload), st.binary(max_size=50))
        | st.binary(max_size=9),
        max_size=5,
    ).map(b"".join)
)
def test_whatever_a_broker_sends_is_heard_or_ends_the_connection(
    babbler: tuple[FakeBroker, list[bytes]], words: bytes
) -> None:
    broker, said = babbler
    said[0] = words
    with courier(broker.port, subscribe=["homeassistant/#"]) as sink:
        sink.forward(*messages(1)[0])
        trouble(sink)
        assert all(topic.startswith("homeassistant") for topic, _ in sink.heard())


# -- properties ------------------------------------------------------------------------------------------


def test_only_events_expire() -> None:
    """Message Expiry Interval; a state is true until another is said."""
    with FakeBroker() as broker, courier(broker.port, message_expiry_s=86_400) as sink:
        forward_all(sink, messages(2))
        sink.report(sensor_health())
        settled(sink, 2)
    expires = {
        message.kind
        for message in broker.published
        if b"\x02" + (86_400).to_bytes(4, "big") in message.properties
    }
    assert expires == {"tags", "events"}


def test_events_never_expire_unless_asked_for() -> None:
    with FakeBroker() as broker, courier(broker.port) as sink:
        sink.forward(*messages(1)[0])
        settled(sink, 1)
    content_type = b"\x03\x00\x10application/json"
    schema = b"\x26\x00\x06schema\x00\x0eedgetag.tags/1"
    assert broker.published[2].properties == b"\x01\x01" + content_type + schema


@pytest.mark.parametrize("will_delay_s", [0, 30])
def test_the_last_will_has_its_delay(will_delay_s: int) -> None:
    with FakeBroker() as broker, courier(broker.port, will_delay_s=will_delay_s):
        assert b"\x18" + will_delay_s.to_bytes(4, "big") in broker.connects[0]


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
        ("mqtts://broker", BrokerAddress("broker", 8883, scheme="mqtts")),
        ("mqtts://s:p@broker:443", BrokerAddress("broker", 443, "s", "p", "mqtts")),
        ("ws://broker", BrokerAddress("broker", 80, scheme="ws", path="/mqtt")),
        ("wss://broker", BrokerAddress("broker", 443, scheme="wss", path="/mqtt")),
        ("wss://broker:8084/a/b", BrokerAddress("broker", 8084, scheme="wss", path="/a/b")),
        ("ws://broker/", BrokerAddress("broker", 80, scheme="ws", path="/")),
    ],
)
def test_urls_that_name_a_broker(url: str, address: BrokerAddress) -> None:
    assert parse_url(url) == address


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("mqtts://broker/topic", "ends there"),
        ("wss://broker/mqtt?tls=1", "ends there"),
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
