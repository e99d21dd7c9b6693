"""What a subscriber knows of a network, and what is shown of it.

Messages are drawn: a letter is a boot and a digit a window of it, a dot is a second in which nothing comes.
"""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from structlog.testing import capture_logs

from edgetag.contract.errors import InputError, NetworkError
from edgetag.contract.event import (
    MESSAGES,
    Audio,
    Clock,
    DeliveryHealth,
    Level,
    OutboxHealth,
    TagsEvent,
    encode,
    timestamp,
)
from edgetag.dashboard.board import Board
from edgetag.delivery.address import BrokerAddress
from edgetag.delivery.connection import Connecting, Tls
from edgetag.delivery.network import (
    MAX_PAYLOAD_BYTES,
    Duplicates,
    Network,
    Place,
    place_of,
    read,
)
from edgetag.delivery.network_view import JsonLines, log_line, picture
from edgetag.delivery.subscription import Lost, Message, Missed, Regained, Subscription
from fakes import (
    NOTHING,
    START_UTC_S,
    FakeBroker,
    LastWords,
    Subscribed,
    accept,
    bundle_info,
    grant,
    refuse,
    sensor_health,
    sensor_status,
    sound_event,
    tags_event,
)
from fakes_cli import refused, run_python

PREFIX = "sonyc/v1"
NOW_S = START_UTC_S + 10.0  # the first window's end


def take(network: Network, sensor: str, kind: str, message: msgspec.Struct, now_s: float = NOW_S) -> Any:
    return network.take(f"{PREFIX}/{sensor}/{kind}", encode(message), now_s)


def window_at(end_s: float, **changes: object) -> TagsEvent:
    return tags_event(start=timestamp(end_s - 10), end=timestamp(end_s), **changes)


@pytest.fixture
def network() -> Network:
    return Network(PREFIX)


# -- what is read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tags", tags_event(source="street.wav", late=True)),
        ("events", sound_event(kind="end", reason="audio_ended")),
        ("status", sensor_status("no_audio", "no microphone")),
        ("info", bundle_info()),
        ("health", sensor_health()),
    ],
)
def test_what_a_sensor_says_is_read_as_it_was_meant(kind: Any, message: msgspec.Struct) -> None:
    """Every member that is read has the contract's name and value."""
    said = msgspec.to_builtins(read(kind, encode(message)))
    meant = msgspec.to_builtins(message)
    for name, value in said.items():
        if name in meant and not isinstance(value, dict):
            assert value == meant[name] or str(value)[:19] == str(meant[name])[:19]
    assert {"tags", "events", "status", "info", "health"} == set(MESSAGES)


def test_what_a_later_version_adds_is_passed_over(network: Network) -> None:
    later = msgspec.to_builtins(tags_event()) | {"verdict": "windy", "wind_ms": 12, "level": {"laeq_db": 40}}
    network.take(f"{PREFIX}/lamp/tags", msgspec.json.encode(later), NOW_S)
    assert network.n_unreadable == 0
    assert network.sensors["lamp"].window is not None
    assert network.sensors["lamp"].window.verdict == "windy"


def test_another_schema_is_not_read_as_this_one(network: Network) -> None:
    other = msgspec.to_builtins(tags_event()) | {"schema": "edgetag.tags/2"}
    assert network.take(f"{PREFIX}/lamp/tags", msgspec.json.encode(other), NOW_S) is None
    assert (network.n_unreadable, network.sensors) == (1, {})


@pytest.mark.parametrize(
    ("topic", "place"),
    [
        ("sonyc/v1/lamp-17/tags", Place("lamp-17", "tags")),
        ("sonyc/v1/lamp-17/light", None),
        ("sonyc/v1/a/b/tags", None),
        ("sonyc/v1//tags", None),
        ("sonyc/v1/tags", None),
        ("sonyc/v2/lamp-17/tags", None),
        ("sonyc/v1/\x1b[2J/tags", None),
        (f"sonyc/v1/{'x' * 65}/tags", None),
        ("", None),
    ],
)
def test_a_topic_is_a_sensors_or_nobodys(topic: str, place: Place | None) -> None:
    assert place_of(topic, PREFIX) == place


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (b"\xff\xfe", "malformed"),
        (b"not json", "malformed"),
        (encode(sensor_status()).replace(b"{", b'{"x":' + b"[" * 5_000), "nested too deeply"),
        (b'"' + b"x" * MAX_PAYLOAD_BYTES + b'"', "longer than 65536 bytes"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `schema`"),
        (encode(tags_event()).replace(b'"seq":0', b'"seq":-1'), "`int` >= 0"),
        (encode(tags_event()).replace(b"63.2", b"1e308"), "<= 1000"),
        (encode(tags_event()).replace(b"63.2", b"1e999"), "out of range"),
        (encode(tags_event(end="9999-99-99T00:00:00.000Z")), "RFC3339"),
        (encode(tags_event(boot="x" * 201)), "length <= 200"),
    ],
)
def test_what_no_sensor_would_say_is_counted_with_its_fault(
    network: Network, payload: bytes, fault: str
) -> None:
    assert network.take(f"{PREFIX}/lamp/tags", payload, NOW_S) is None
    assert (network.n_unreadable, network.sensors) == (1, {})
    assert network.fault.startswith("sonyc/v1/lamp/tags: ")
    assert fault in network.fault


# -- what is known -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("came", "new"),
    [
        ("a0 a1 a2 a3", "a0 a1 a2 a3"),
        ("a0 a1 a2 a1 a2 a3", "a0 a1 a2       a3"),  # sent again after a lost connection
        ("a8 a9 b0 a9 b0 b1", "a8 a9 b0       b1"),  # a sensor started anew
        ("a3 a2 a1", "a3 a2 a1"),  # out of order is not twice
    ],
)
def test_of_what_comes_twice_the_first_counts(network: Network, came: str, new: str) -> None:
    def is_new(kind: str, window: str) -> bool:
        boot, seq = window[0], int(window[1:])
        message = sound_event(seq, boot=boot) if kind == "events" else tags_event(seq, boot=boot)
        return take(network, "lamp", kind, message) is not None

    for kind in ("tags", "events"):  # each counts by itself
        assert [window for window in came.split() if is_new(kind, window)] == new.split()
    assert len(network.sounds) == len(new.split())


def test_two_sensors_may_have_the_same_boot_and_number(network: Network) -> None:
    assert take(network, "lamp-1", "tags", tags_event()) is not None
    assert take(network, "lamp-2", "tags", tags_event()) is not None


def test_duplicates_are_remembered_within_bounds() -> None:
    """The oldest are forgotten; asking for one keeps it."""
    place, duplicates = Place("lamp", "tags"), Duplicates(max_remembered=3)
    assert [duplicates.is_one(place, "a", seq) for seq in (0, 1, 2, 0, 3, 0, 1)] == [
        *(False, False, False),
        *(True, False, True),
        False,  # 1 went when 3 came
    ]


def test_the_topic_says_whose_a_message_is(network: Network) -> None:
    """A payload can claim to be anybody's; a broker lets a sensor publish under its own id only."""
    take(network, "lamp", "tags", tags_event(sensor="mayor"))
    assert list(network.sensors) == ["lamp"]


def test_no_more_sensors_are_kept_than_there_is_room_for(network: Network) -> None:
    network.max_sensors = 2
    for sensor in ("a", "b", "c", "a"):
        take(network, sensor, "status", sensor_status())
    assert (list(network.sensors), network.n_beyond) == (["a", "b"], 1)


def test_a_sensor_whose_status_is_cleared_away_is_gone(network: Network) -> None:
    """`mosquitto_pub -r -n -t …/status`, and the same for `info`."""
    take(network, "lamp", "status", sensor_status())
    take(network, "lamp", "info", bundle_info())
    for kind in ("status", "info"):
        network.take(f"{PREFIX}/lamp/{kind}", b"", NOW_S)
    assert (network.sensors, network.n_unreadable) == ({}, 0)


def test_active_tags_have_the_names_that_info_gives_them(network: Network) -> None:
    take(network, "lamp", "tags", tags_event(active=["7", "7-1", "9"]))
    sensor = network.sensors["lamp"]
    assert sensor.active == ["7", "7-1", "9"]
    take(network, "lamp", "info", bundle_info())
    assert sensor.active == ["human-voice", "person-or-small-group-talking", "9"]


def test_lag_is_from_the_windows_end_to_its_arrival(network: Network) -> None:
    take(network, "lamp", "tags", tags_event(0), NOW_S + 0.5)
    assert network.sensors["lamp"].lag_s == pytest.approx(0.5)
    take(network, "lamp", "tags", tags_event(1), NOW_S)  # the sensor's clock is ten seconds fast
    assert network.sensors["lamp"].lag_s == pytest.approx(-10)
    take(network, "lamp", "tags", tags_event(2, source="street.wav"), NOW_S)
    assert network.sensors["lamp"].lag_s is None


@pytest.mark.parametrize(
    ("state", "windows", "overdue"),
    [
        ("online", "w.w.w................w", "................!!!!!."),
        ("degraded", "w...................", "............!!!!!!!!"),
        ("no_audio", "w...................", "...................."),
        ("offline", "w...................", "...................."),
        ("online", "....................", "...................."),  # none came yet: it may load its bundle
    ],
)
def test_a_sensor_that_hears_owes_a_window_every_hop(state: Any, windows: str, overdue: str) -> None:
    """A column is two seconds; the hop is 4: overdue after three and ten seconds more, 22 in all."""
    network = Network(PREFIX)
    take(network, "lamp", "status", sensor_status(state))
    take(network, "lamp", "info", msgspec.structs.replace(bundle_info(), hop_s=4.0))
    drawn = ""
    for column, sign in enumerate(windows):
        now_s = NOW_S + 2 * column
        if sign == "w":
            take(network, "lamp", "tags", tags_event(column), now_s)
        drawn += "!" if network.sensors["lamp"].is_overdue(now_s) else "."
    assert drawn == overdue


# -- the picture ---------------------------------------------------------------------------------------------


def drawn(
    network: Network, columns: int, rows: int = 24, trouble: str = "", now_s: float = NOW_S
) -> list[str]:
    text = picture(network, "mqtt://localhost:1883  sonyc/v1/+", trouble, now_s, columns, rows)
    return [line.rstrip() for line in text.plain.splitlines()]


@pytest.fixture
def street(network: Network) -> Network:
    """A lamp that is well, one with a backlog, one that is gone."""
    for sensor in ("lamp-10", "lamp-2", "lamp-3"):
        take(network, sensor, "info", bundle_info())
    take(network, "lamp-2", "status", sensor_status())
    take(network, "lamp-2", "tags", window_at(NOW_S - 3.4), NOW_S - 3)
    degraded = sensor_status("degraded", "inference cannot keep up")
    take(network, "lamp-3", "status", degraded)
    outbox = OutboxHealth(depth=1204, bytes=10, dropped=3, refused=1, fault="no space left on device")
    delivery = DeliveryHealth(connects=40, connects_last_hour=12, last_error="", outbox=outbox)
    take(network, "lamp-3", "health", msgspec.structs.replace(sensor_health(), delivery=delivery))
    level = Level(laeq_db=-23.44, lafmax_db=0, la10_db=0, la90_db=0)
    gaps = {"audio": Audio(44_100, 0.93, 1, 0.0123), "clock": Clock(synced=False), "level": level}
    late = window_at(NOW_S - 7_300, active=["1", "1-1"], late=True, **gaps)
    take(network, "lamp-3", "tags", late, NOW_S - 1)
    take(network, "lamp-10", "tags", window_at(NOW_S - 300, active=[]), NOW_S - 299.8)
    take(network, "lamp-10", "status", sensor_status("offline", "connection lost"))
    take(network, "lamp-2", "events", sound_event(0))
    take(network, "lamp-2", "events", sound_event(1, kind="end", duration_s=35.0, reason="audio_ended"))
    return network


def test_where_there_is_room_words_are_beside_the_figures(street: Network) -> None:
    assert drawn(street, 160) == [
        "edgetag watch  mqtt://localhost:1883  sonyc/v1/+" + 100 * " " + "10:00:10 UTC",
        "3 sensors: 1 online, 1 degraded, 1 offline",
        "",
        "sensor   state         window            LAeq      lag  heard",
        "lamp-2   online       3 s ago      63.2 dB(A)    0.4 s  human-voice, person-or-small-group-talking",
        "lamp-3   degraded     1 s ago   -23.4 dBFS(A)      2 h  engine, small-sounding-engine"
        " · inference cannot keep up · late · 93% of it heard · 1.23% clipped",
        56 * " " + "· clock not synced · 1,204 waiting · 3 dropped · 1 refused by the broker",
        56 * " " + "· outbox: no space left on device · connected 12 times in the last hour",
        "lamp-10  offline    4 min ago      63.2 dB(A)    0.2 s  nothing · connection lost",
        "",
        "latest sounds",
        "10:00:20  lamp-2   dog ended after 35 s, at most 91% (audio ended)",
        "10:00:00  lamp-2   dog begins, 91%",
    ]


def test_where_there_is_none_they_are_below(street: Network) -> None:
    assert drawn(street, 80)[3:] == [
        "sensor   state         window            LAeq      lag",
        "lamp-2   online       3 s ago      63.2 dB(A)    0.4 s",
        "  human-voice, person-or-small-group-talking",
        "lamp-3   degraded     1 s ago   -23.4 dBFS(A)      2 h",
        "  engine, small-sounding-engine · inference cannot keep up · late",
        "  · 93% of it heard · 1.23% clipped · clock not synced · 1,204 waiting",
        "  · 3 dropped · 1 refused by the broker · outbox: no space left on device",
        "  · connected 12 times in the last hour",
        "lamp-10  offline    4 min ago      63.2 dB(A)    0.2 s",
        "  nothing · connection lost",
        "",
        "latest sounds",
        "10:00:20  lamp-2   dog ended after 35 s, at most 91% (audio ended)",
        "10:00:00  lamp-2   dog begins, 91%",
    ]


def test_a_lost_connection_is_said_above_what_is_still_known(street: Network) -> None:
    trouble = "trying again in 4 s: lost the connection"
    assert drawn(street, 80, trouble=trouble)[2] == trouble
    assert len(drawn(street, 80, trouble=trouble)) == len(drawn(street, 80)) + 1


def test_where_not_all_sensors_fit_those_that_are_not_well_come_first_and_the_others_are_counted(
    street: Network,
) -> None:
    for index in range(20):
        take(street, f"a-{index}", "status", sensor_status())
    lines = drawn(street, 160, rows=14)
    assert len(lines) == 14
    firsts = [line.partition(" ")[0] for line in lines[4:]]
    assert firsts == ["lamp-3", "", "", "lamp-10", "a-0", "a-1", "…", "", "latest", "10:00:20"]
    assert "… and 19 more: 19 online" in lines


def test_before_anything_has_come_it_says_so(network: Network) -> None:
    assert drawn(network, 80)[1:] == ["0 sensors", "", "Nothing has come under sonyc/v1/ yet."]


def test_what_could_not_be_used_is_counted_below(network: Network) -> None:
    network.max_sensors = 0
    network.take(f"{PREFIX}/lamp/tags", b"\x1b[2J", NOW_S)
    take(network, "lamp", "tags", tags_event())
    assert drawn(network, 200)[-2:] == [
        "1 messages not understood; the last: sonyc/v1/lamp/tags: JSON is malformed:"
        " invalid character (byte 0)",
        "1 messages of more than 0 sensors",
    ]


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("tagged", "nothing"), ("silent", "digital silence"), ("too_little_audio", "too little audio")],
)
def test_a_window_without_tags_says_why(network: Network, verdict: Any, words: str) -> None:
    take(network, "lamp", "tags", tags_event(verdict=verdict, active=[]))
    assert drawn(network, 120)[4].endswith(words)


# -- lines ---------------------------------------------------------------------------------------------------


def test_a_log_has_windows_sounds_and_states(network: Network) -> None:
    said = [
        ("info", bundle_info()),
        ("status", sensor_status("no_audio", "no microphone")),
        ("tags", tags_event(0, late=True)),
        ("events", sound_event(1)),
        ("health", sensor_health()),
    ]
    news = [take(network, "lamp", kind, message) for kind, message in said]
    assert [log_line(each, NOW_S) for each in news] == [
        None,
        "2026-11-22T10:00:10Z  lamp  no audio: no microphone",
        "2026-11-22T10:00:10Z  lamp  63.2 dB(A)  human-voice, person-or-small-group-talking · late",
        "2026-11-22T10:00:10Z  lamp  dog begins, 91%",
        None,
    ]


def test_a_json_line_says_where_from_and_when_and_has_the_payload_as_it_came() -> None:
    event = tags_event(source="Käfer")
    line = JsonLines(PREFIX).line(f"{PREFIX}/lamp/tags", encode(event), False, NOW_S)
    assert line is not None
    assert line.isascii()
    assert json.loads(line) == {
        "topic": "sonyc/v1/lamp/tags",
        "sensor": "lamp",
        "kind": "tags",
        "received": "2026-11-22T10:00:10.000Z",
        "retained": False,
        "payload": msgspec.to_builtins(event),
    }


def test_of_json_lines_only_a_windows_and_a_sounds_duplicates_are_left_out() -> None:
    lines = JsonLines(PREFIX)
    messages = [("tags", tags_event()), ("events", sound_event()), ("status", sensor_status())]
    for expected in ([True, True, True], [False, False, True]):
        seen = [lines.line(f"{PREFIX}/lamp/{kind}", encode(said), False, NOW_S) for kind, said in messages]
        assert [line is not None for line in seen] == expected


@pytest.mark.parametrize("payload", [b"", b"\xff", b"{", b"[" * 2_000, b"9" * 10_000])
def test_a_json_line_has_a_fault_where_the_payload_is_no_json(payload: bytes) -> None:
    line = JsonLines(PREFIX).line(f"{PREFIX}/lamp/status", payload, True, NOW_S)
    assert line is not None
    said = json.loads(line)
    assert said["fault"]
    assert "payload" not in said


# -- whatever comes ------------------------------------------------------------------------------------------

_hostile_text = st.text(
    st.sampled_from("aé漢\x1b\x9b\r\n\t\x00\u202e\u0301\ufeff[]2J;…\U0001f600"), max_size=12
)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, 2**64, 10**30, -1, 1e308, -1e308, 5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
    | _hostile_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_hostile_text, inner, max_size=3),
    max_leaves=6,
)
_MEANT = {
    "tags": tags_event(late=True, source="x"),
    "events": sound_event(kind="end", reason="faded"),
    "status": sensor_status(),
    "info": bundle_info(),
    "health": msgspec.structs.replace(
        sensor_health(), delivery=DeliveryHealth(2, 3, "", OutboxHealth(4, 5, 6, 7, 8, "x"))
    ),
}


@st.composite
def _bent(draw: st.DrawFn, kind: str) -> bytes:
    """What a sensor could say, with up to three members hostile, of another type, or gone."""
    said: dict[str, Any] = msgspec.to_builtins(_MEANT[kind])
    for path in draw(st.lists(st.sampled_from(list(_paths(said))), max_size=3)):
        part = said
        for key in path[:-1]:
            part = part.get(key, {}) if isinstance(part, dict) else {}
        match draw(st.integers(0, 3)):
            case 0 if isinstance(part, dict):
                part.pop(path[-1], None)
            case 1 if isinstance(part, dict):
                part[path[-1]] = draw(_values)
            case _ if isinstance(part, dict) and isinstance(part.get(path[-1]), str):
                part[path[-1]] = draw(_hostile_text)
    return json.dumps(said, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


def _paths(said: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in said.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))


_kinds = st.sampled_from(sorted(_MEANT))
_ids = st.sampled_from(["lamp-1", "lamp-2", "漢字", "x" * 64])
_sensors_messages = st.tuples(_ids, _kinds).flatmap(
    lambda place: st.tuples(st.just(f"{PREFIX}/{place[0]}/{place[1]}"), _bent(place[1]))
)
_messages = st.one_of(
    _sensors_messages,
    st.tuples(_hostile_text.map(lambda id: f"{PREFIX}/{id}/tags"), st.binary(max_size=40)),
    st.tuples(_hostile_text, st.binary(max_size=10)),
)


@given(
    st.lists(_sensors_messages | _messages, max_size=12),
    st.integers(1, 200),
    st.integers(1, 40),
    _hostile_text,
)
@settings(max_examples=300)
def test_whatever_comes_the_picture_keeps_within_the_terminal_and_holds_nothing_it_would_obey(
    messages: list[tuple[str, bytes]], columns: int, rows: int, trouble: str
) -> None:
    network = Network(PREFIX)
    for topic, payload in messages:
        network.take(topic, payload, NOW_S)
    shown = picture(network, PREFIX, trouble, NOW_S, columns, rows).plain.split("\n")
    assert len(shown) <= rows
    for line in shown:
        assert line.isprintable()
        assert cell_len(line) <= columns


@given(_sensors_messages | _messages, st.floats(0, 4e9))
@settings(max_examples=600)
def test_whatever_comes_a_line_holds_nothing_that_a_terminal_would_obey(
    message: tuple[str, bytes], now_s: float
) -> None:
    topic, payload = message
    news = Network(PREFIX).take(topic, payload, now_s)
    said = None if news is None else log_line(news, now_s)
    assert said is None or said.isprintable()
    line = JsonLines(PREFIX).line(topic, payload, False, now_s)
    assert line is None or (line.isascii() and line.isprintable() and json.loads(line)["topic"] == topic)


@given(st.lists(_sensors_messages | _messages, max_size=12))
@settings(max_examples=200)
def test_whatever_comes_the_dashboard_can_tell_it(messages: list[tuple[str, bytes]]) -> None:
    """As JSON that says the same when it is read."""
    board = Board(Network(PREFIX), "mqtt://localhost:1883", NOW_S)
    for topic, payload in messages:
        board.take(Message(topic, payload, False, NOW_S), NOW_S)
    snapshot = board.snapshot(NOW_S)
    told = [snapshot, board.changes(NOW_S), *(board.detail(row.id, NOW_S) for row in snapshot.sensors)]
    for said in told:
        assert msgspec.json.decode(msgspec.json.encode(said), type=type(said)) == said


def test_thousands_of_sensors_are_a_picture_too(network: Network) -> None:
    for index in range(3_000):
        take(network, f"lamp-{index}", "status", sensor_status())
    lines = drawn(network, 80)
    assert len(lines) == 24
    assert lines[1] == "2,000 sensors: 2,000 online"
    assert lines[-1] == "1,000 messages of more than 2,000 sensors"


# -- a subscription ------------------------------------------------------------------------------------------

FILTERS = [("sonyc/v1/+/tags", 1), ("sonyc/v1/+/health", 0)]
GOODBYE = b"\xe0\x02\x8b\x00"  # DISCONNECT of MQTT 5: server shutting down
WAIT_S = 20.0


def subscription(broker: FakeBroker, **options: Any) -> Subscription:
    address = BrokerAddress("127.0.0.1", broker.port)
    return Subscription(address, Connecting(timeout_s=options.pop("timeout_s", 10.0)), FILTERS, **options)


def publish(topic: bytes, payload: bytes) -> bytes:
    """A PUBLISH of MQTT 5, QoS 0."""
    body = struct.pack("!H", len(topic)) + topic + b"\x00" + payload
    assert len(body) < 128
    return bytes([0x30, len(body)]) + body


def granting(*packets: bytes) -> Callable[[Subscribed], bytes]:
    """Grants a subscription, and sends something right after."""
    return lambda wish: grant(wish) + b"".join(packets)


def test_a_message_comes_as_it_was_published_and_the_topics_are_asked_for() -> None:
    wishes: list[Subscribed] = []

    def answer(wish: Subscribed) -> bytes:
        wishes.append(wish)
        return grant(wish) + publish(b"sonyc/v1/lamp/tags", b"\x00\xff")

    with FakeBroker(on_subscribe=answer) as broker, subscription(broker) as messages:
        message = messages.next(WAIT_S)
    assert isinstance(message, Message)
    assert message[:3] == ("sonyc/v1/lamp/tags", b"\x00\xff", False)
    assert [wish.topics for wish in wishes] == [["sonyc/v1/+/tags", "sonyc/v1/+/health"]]


def test_a_refused_subscription_is_an_error_that_says_which() -> None:
    with (
        FakeBroker(on_subscribe=lambda wish: grant(wish, code=0x87)) as broker,
        pytest.raises(NetworkError, match=r"refused the subscription to sonyc/v1/\+/tags \(not authorized\)"),
        subscription(broker),
    ):
        pass


def test_where_only_some_topics_are_refused_it_is_said_and_the_others_are_heard() -> None:
    def answer(wish: Subscribed) -> bytes:
        return grant(wish)[:-1] + b"\x87" + publish(b"sonyc/v1/lamp/tags", b"{}")

    with (
        capture_logs() as logs,
        FakeBroker(on_subscribe=answer) as broker,
        subscription(broker) as messages,
    ):
        assert isinstance(messages.next(WAIT_S), Message)
    assert [log["topics"] for log in logs] == [{"sonyc/v1/+/health": "not authorized"}]


def test_a_subscription_that_is_not_confirmed_is_an_error() -> None:
    with (
        FakeBroker(on_subscribe=lambda _: NOTHING) as broker,
        pytest.raises(NetworkError, match=r"confirmed no subscription within 0\.2 s"),
        subscription(broker, timeout_s=0.2),
    ):
        pass


def test_a_lost_connection_is_made_anew_after_waits_that_double() -> None:
    """
    broker   accepts, leaves | refuses 7 times | accepts, speaks
    waits                   1  2 4 8 16 30 30 30
    """
    accepted = iter([True, *[False] * 7, True])
    spoken = iter([GOODBYE, publish(b"sonyc/v1/lamp/tags", b"{}")])
    waits: list[float] = []
    with (
        FakeBroker(
            lambda level: (accept if next(accepted) else refuse(0x89, 3))(level),
            on_subscribe=lambda wish: grant(wish) + next(spoken),
        ) as broker,
        subscription(broker, wait=waits.append, uniform=lambda: 1.0) as messages,
    ):
        arrivals = [messages.next(WAIT_S) for _ in range(10)]
    losses = [arrival for arrival in arrivals if isinstance(arrival, Lost)]
    assert [loss.retry_s for loss in losses] == waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert "lost the connection" in losses[0].reason
    assert all("server busy" in loss.reason for loss in losses[1:])
    assert isinstance(arrivals[8], Regained)
    assert isinstance(arrivals[9], Message)


def test_one_who_is_patient_waits_for_the_first_connection_too() -> None:
    """
    broker   refuses, refuses, accepts, speaks
    """
    accepted = iter([False, False, True])
    with (
        FakeBroker(
            lambda level: (accept if next(accepted) else refuse(0x89, 3))(level),
            on_subscribe=granting(publish(b"sonyc/v1/lamp/tags", b"{}")),
        ) as broker,
        subscription(broker, is_patient=True, wait=lambda _: None) as messages,
    ):
        arrivals = [messages.next(WAIT_S) for _ in range(4)]
    assert [type(arrival) for arrival in arrivals] == [Lost, Lost, Regained, Message]


def test_one_who_is_patient_does_not_wait_for_a_certificate_that_is_not_there() -> None:
    address = BrokerAddress("127.0.0.1", 1, scheme="mqtts")
    with (
        pytest.raises(InputError, match="no such"),
        Subscription(address, Connecting(tls=Tls(ca_file="no such")), FILTERS, is_patient=True),
    ):
        pass


def test_one_who_leaves_while_a_connection_is_being_made_leaves_none_behind() -> None:
    is_asked, is_left = threading.Event(), threading.Event()

    def answer(wish: Subscribed) -> bytes:
        is_asked.set()
        is_left.wait(WAIT_S)
        return grant(wish)

    with FakeBroker(on_subscribe=answer) as broker:
        with subscription(broker, is_patient=True):
            assert is_asked.wait(WAIT_S)
            [thread] = [one for one in threading.enumerate() if one.name == "edgetag-subscription"]
        is_left.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_waits_are_jittered_so_that_not_all_come_back_at_once() -> None:
    waits: list[float] = []
    with (
        FakeBroker(on_subscribe=granting(GOODBYE)) as broker,
        subscription(broker, wait=waits.append, uniform=lambda: 0.0) as messages,
    ):
        assert isinstance(messages.next(WAIT_S), Lost)
        assert isinstance(messages.next(WAIT_S), Regained)
    assert waits[0] == 0.5


def test_a_caller_who_is_slow_is_told_how_many_messages_he_missed() -> None:
    """There is room for three of ten."""
    all_have_come = threading.Event()
    packets = [publish(b"sonyc/v1/lamp/tags", b"%d" % n) for n in range(10)]
    with (
        FakeBroker(on_subscribe=granting(*packets, GOODBYE)) as broker,
        subscription(broker, max_waiting=3, wait=lambda _: all_have_come.set()) as messages,
    ):
        assert all_have_come.wait(WAIT_S)
        arrivals = [messages.next(WAIT_S) for _ in range(4)]
    assert arrivals[0] == Missed(7)
    assert [arrival.payload for arrival in arrivals[1:] if isinstance(arrival, Message)] == [b"0", b"1", b"2"]


@given(st.binary(max_size=60) | st.binary(max_size=30).map(lambda body: bytes([0x30, len(body)]) + body))
@settings(max_examples=30)
def test_whatever_a_broker_sends_the_subscription_goes_on(garbage: bytes) -> None:
    """Bytes that are no MQTT, or a PUBLISH of nonsense, and then nothing more: it comes again."""
    answers = iter([garbage])
    sane = publish(b"sonyc/v1/lamp/tags", b"sane")

    def answer(wish: Subscribed) -> LastWords:
        return LastWords(grant(wish) + next(answers, sane))

    with FakeBroker(on_subscribe=answer) as broker, subscription(broker, wait=lambda _: None) as messages:
        assert any(_is_sane(messages.next(WAIT_S)) for _ in range(20))


def _is_sane(arrival: object) -> bool:
    return isinstance(arrival, Message) and arrival.payload == b"sane"


def test_a_topic_that_is_not_utf_8_is_nobodys() -> None:
    packets = publish(b"sonyc/v1/\xff/tags", b"{}")
    with FakeBroker(on_subscribe=granting(packets)) as broker, subscription(broker) as messages:
        message = messages.next(WAIT_S)
    assert isinstance(message, Message)
    assert message.topic == ""


# -- the command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["localhost"], "does not begin with mqtt://"),
        (["mqtt://localhost", "--sensor", "a/b"], "the sensor id 'a/b'"),
        (["mqtt://localhost", "--prefix", "+"], "the topic prefix '+'"),
        (["mqtt://localhost", "--password-file", "x"], "--password-file needs --user"),
        (
            ["mqtt://localhost", "--user", "u", "--password-file", "no such"],
            "--password-file's file cannot be read",
        ),
        (["mqtt://localhost", "--ca-file", "x"], "--ca-file needs TLS"),
        (["ws://localhost", "--alpn", "mqtt"], "--alpn needs TLS"),
        (["mqtts://localhost", "--key-file", "x"], "--key-file needs --cert-file"),
        (["mqtts://localhost", "--ca-file", "no such"], "no such"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    refused(run_python("-m", "edgetag", "watch", *arguments, state=tmp_path), 2, sentence)


def test_a_broker_that_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = run_python("-m", "edgetag", "watch", f"mqtt://127.0.0.1:{port}", state=tmp_path)
    refused(done, 4, "nothing listens at", "is the broker running?")


def test_a_broker_that_refuses_is_said_without_the_password(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    secret.chmod(0o600)
    with FakeBroker(refuse(0x86, 4)) as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        done = run_python(
            "-m", "edgetag", "watch", url, "--user", "u", "--password-file", secret, state=tmp_path
        )
    refused(done, 4, "refused the connection", "check user and password")
    assert "hunter" not in done.stderr


def test_the_help_names_what_a_json_line_has(tmp_path: Path) -> None:
    line = JsonLines(PREFIX).line(f"{PREFIX}/lamp/tags", b"{}", False, NOW_S)
    assert line is not None
    said = run_python("-m", "edgetag", "watch", "--help", state=tmp_path).stdout
    assert all(name in said for name in [*json.loads(line), "fault"])
