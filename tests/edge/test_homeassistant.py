"""What Home Assistant is told, and when.

The courier underneath is one that only writes down what it is asked to carry.
"""

import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetag.contract.errors import NetworkError
from edgetag.contract.event import Health, Info, Level, State, Status, encode
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag.delivery.homeassistant import BIRTH_DELAY_S, EXPIRES_HOPS, HomeAssistant, birth_topic
from edgetag.delivery.sink import Courier, Forwarded, Settled
from fakes import bundle_info, sensor_health, sensor_status, sound_event, tags_event

SENSOR = "b827eb42bd4a"
STATES = f"sonyc/v1/{SENSOR}/homeassistant"
CONFIGS = f"homeassistant/sensor/{SENSOR}"
BIRTH = (birth_topic("homeassistant"), b"online")
AVAILABILITY = "{{ 'online' if value_json.state in ('online', 'degraded') else 'offline' }}"
TAGS = [f"tag_{id}" for id in SONYC_UST.coarse_ids]
TOO_LITTLE: dict[str, Any] = {"verdict": "too_little_audio", "coarse": {}, "fine": {}}
QUIET: dict[str, Any] = {"verdict": "quiet", "coarse": {}, "fine": {}}


class Recorder(Courier):
    """Carries nothing: writes down calls, and what is said by topic."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.said: list[tuple[str, bytes]] = []
        self.to_be_heard: list[tuple[str, bytes]] = []
        self.to_be_settled: list[Settled] = []
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        self.calls.append(("enter",))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.calls.append(("exit", exc))

    def forward(self, id: int, kind: Forwarded, payload: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(("forward", id, kind, payload))

    def settled(self) -> list[Settled]:
        settled, self.to_be_settled = self.to_be_settled, []
        return settled

    def state(self, status: Status) -> None:
        self.calls.append(("state", status))

    def announce(self, info: Info) -> None:
        self.calls.append(("announce", info))

    def report(self, health: Health) -> None:
        self.calls.append(("report", health))

    def say(self, topic: str, payload: bytes, *, retain: bool) -> None:
        assert retain, "whoever comes late must find it"
        self.said.append((topic, payload))

    def heard(self) -> list[tuple[str, bytes]]:
        heard, self.to_be_heard = self.to_be_heard, []
        return heard

    def take(self) -> dict[str, bytes]:
        """The last said on each topic since the last call."""
        said, self.said = dict(self.said), []
        return said

    def configs(self) -> dict[str, Any]:
        """What entities are said to be, by the name in the topic; of what is said since the last call."""
        return {
            topic.split("/")[-2]: msgspec.json.decode(payload)
            for topic, payload in self.take().items()
            if topic.endswith("/config") and payload
        }


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def home_assistant(courier: Courier, **options: Any) -> HomeAssistant:
    """For the usual sensor, and never in a hurry to answer a birth: `uniform` is 1."""
    settings: dict[str, Any] = {
        "sensor": SENSOR,
        "prefix": "sonyc/v1",
        "discovery_prefix": "homeassistant",
        "info": bundle_info(),
        "uniform": lambda: 1.0,
    }
    return HomeAssistant(courier, **settings | options)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def house(recorder: Recorder, clock: Clock) -> Iterator[HomeAssistant]:
    """Entered, and what it said then forgotten."""
    with home_assistant(recorder, monotonic=clock) as house:
        recorder.take()
        yield house


def show(house: HomeAssistant, recorder: Recorder, **changes: Any) -> dict[str, str]:
    """What the entities say, by the name in the topic, after an event with these changes."""
    house.forward(0, "tags", encode(tags_event(**changes)))
    return {
        topic.removeprefix(f"{STATES}/"): payload.decode()
        for topic, payload in recorder.take().items()
        if topic.startswith(STATES)
    }


# -- a courier like the one it wraps ---------------------------------------------------------------------


def test_everything_is_passed_on(recorder: Recorder) -> None:
    tags, sound = encode(tags_event()), encode(sound_event())
    recorder.to_be_settled = [Settled(7), Settled(8, "too large")]
    with home_assistant(recorder) as house:
        house.state(sensor_status())
        house.forward(7, "tags", tags)
        house.forward(8, "events", sound)
        house.announce(bundle_info())
        house.report(sensor_health())
        house.say("a/topic", b"payload", retain=True)
        assert house.settled() == [Settled(7), Settled(8, "too large")]
        assert house.settled() == []
    assert recorder.calls == [
        ("enter",),
        ("state", sensor_status()),
        ("forward", 7, "tags", tags),
        ("forward", 8, "events", sound),
        ("announce", bundle_info()),
        ("report", sensor_health()),
        ("exit", None),
    ]
    assert ("a/topic", b"payload") in recorder.said


def test_what_goes_wrong_is_passed_on_too(recorder: Recorder) -> None:
    """A message that was not forwarded is not shown either, and the other courier is left with the error."""
    recorder.error = NetworkError("gone")
    with pytest.raises(NetworkError, match="gone"), home_assistant(recorder) as house:
        house.forward(0, "tags", encode(tags_event()))
    assert recorder.calls[-1] == ("exit", recorder.error)
    assert not any(topic.startswith(STATES) for topic, _ in recorder.said)


# -- what an entity is -----------------------------------------------------------------------------------


def test_there_is_one_entity_for_each_coarse_tag_from_the_beginning(recorder: Recorder) -> None:
    with home_assistant(recorder):
        assert {topic for topic, _ in recorder.said} == {f"{CONFIGS}/{tag}/config" for tag in TAGS}
        configs = recorder.configs()
    assert configs["tag_7"] == {
        "name": "Human voice",
        "unique_id": f"edgetag/{SENSOR}/tag_7",
        "state_topic": f"{STATES}/tag_7",
        "state_class": "measurement",
        "unit_of_measurement": "%",
        "suggested_display_precision": 0,
        "icon": "mdi:waveform",
        "expire_after": 110,
        "availability_topic": f"sonyc/v1/{SENSOR}/status",
        "availability_template": AVAILABILITY,
        "device": {
            "identifiers": [f"edgetag/{SENSOR}"],
            "name": SENSOR,
            "manufacturer": "edgetag",
            "model": "starter",
            "sw_version": "0.1.0",
        },
        "origin": {"name": "edgetag", "sw_version": "0.1.0"},
    }
    assert len({config["unique_id"] for config in configs.values()}) == len(TAGS)
    assert len({config["state_topic"] for config in configs.values()}) == len(TAGS)


@pytest.mark.parametrize(("hop_s", "expires_s"), [(5.0, 60), (4.8, 58), (0.1, 11), (3_600.0, 36_010)])
def test_a_value_is_believed_for_several_hops(recorder: Recorder, hop_s: float, expires_s: int) -> None:
    """Whole seconds, and longer than the eight hops from one window to the next of a sensor under load."""
    with home_assistant(recorder, info=msgspec.structs.replace(bundle_info(), hop_s=hop_s)):
        assert {config["expire_after"] for config in recorder.configs().values()} == {expires_s}
    assert EXPIRES_HOPS > 8


@pytest.mark.parametrize("state", ["online", "degraded", "no_audio", "offline"])
def test_a_sensor_that_hears_is_available(recorder: Recorder, state: State) -> None:
    """By the template as Home Assistant renders it, with the message's JSON."""
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 comes with the trainer's libraries")
    with home_assistant(recorder):
        template = jinja2.Template(recorder.configs()["tag_1"]["availability_template"])
    message = msgspec.json.decode(encode(sensor_status(state)))
    assert template.render(value_json=message) == ("online" if state in ("online", "degraded") else "offline")


def test_the_level_is_introduced_by_the_first_live_event(house: HomeAssistant, recorder: Recorder) -> None:
    """Only events say whether it is calibrated; a late one may tell of another calibration."""
    house.forward(0, "tags", encode(tags_event(0, late=True)))
    assert recorder.configs() == {}
    house.forward(1, "tags", encode(tags_event(1)))
    assert list(recorder.configs()) == ["level"]
    house.forward(2, "tags", encode(tags_event(2)))
    assert recorder.configs() == {}


def test_only_a_calibrated_level_is_a_sound_pressure(house: HomeAssistant, recorder: Recorder) -> None:
    calibrated = tags_event().level
    raw = msgspec.structs.replace(calibrated, calibrated=False)
    for level, unit, device_class in [
        (raw, "dBFS(A)", None),
        (calibrated, "dBA", "sound_pressure"),
        (raw, "dBFS(A)", None),
    ]:
        house.forward(0, "tags", encode(tags_event(level=level)))
        entity = recorder.configs()["level"]
        assert (entity["unit_of_measurement"], entity.get("device_class")) == (unit, device_class)
        assert entity["unique_id"] == f"edgetag/{SENSOR}/level"


def test_another_bundle_changes_the_card_and_the_entities(house: HomeAssistant, recorder: Recorder) -> None:
    """What the new one does not know is taken back, value and all."""
    house.forward(0, "tags", encode(tags_event()))
    recorder.take()
    other = msgspec.structs.replace(
        bundle_info(), bundle="birds", tags={"1": "engine", "9": "song-thrush", "9-1": "at-dawn"}
    )
    house.announce(other)
    said = recorder.take()
    kept = {topic.split("/")[-2] for topic, payload in said.items() if payload}
    taken_back = {topic for topic, payload in said.items() if not payload}
    assert kept == {"tag_1", "tag_9", "level"}
    gone = [f"tag_{n}" for n in range(2, 9)]
    assert taken_back == {topic for tag in gone for topic in (f"{CONFIGS}/{tag}/config", f"{STATES}/{tag}")}
    assert msgspec.json.decode(said[f"{CONFIGS}/tag_9/config"])["name"] == "Song thrush"
    assert msgspec.json.decode(said[f"{CONFIGS}/tag_1/config"])["device"]["model"] == "birds"
    assert show(house, recorder, coarse={"1": 0.5, "9": 0.25}) == {
        "tag_1": "50.0",
        "tag_9": "25.0",
        "level": "63.2",
    }


def test_the_same_info_again_is_not_worth_a_word(house: HomeAssistant, recorder: Recorder) -> None:
    house.announce(bundle_info())
    assert recorder.said == []


# -- ids -------------------------------------------------------------------------------------------------

ALLOWED = re.compile(r"homeassistant/sensor/[a-zA-Z0-9_-]+/[a-zA-Z0-9_-]+/config")  # by the documentation
sensors = st.text(
    st.characters(exclude_categories=("C", "Zl", "Zp"), exclude_characters="+#/"), min_size=1, max_size=64
).filter(str.isprintable)


def config_topics(sensor: str, tags: dict[str, str]) -> list[str]:
    recorder = Recorder()
    info = msgspec.structs.replace(bundle_info(), tags=tags)
    with home_assistant(recorder, sensor=sensor, info=info):
        return [topic for topic, _ in recorder.said]


@given(sensors, sensors)
def test_any_ids_make_topics_that_home_assistant_reads(sensor: str, tag: str) -> None:
    (topic,) = config_topics(sensor, {tag: "a-name"})
    assert ALLOWED.fullmatch(topic)


@given(sensors, sensors)
def test_two_sensors_never_share_a_topic(one: str, other: str) -> None:
    assert (config_topics(one, {"1": "a"}) == config_topics(other, {"1": "a"})) == (one == other)


def test_no_sensor_id_is_what_another_one_is_made_to() -> None:
    """Whatever needs a hash gets longer than a sensor id can be."""
    (topic,) = config_topics("Straße", {"1": "a"})
    node = topic.split("/")[2]
    assert re.fullmatch(r"Stra_e_[0-9a-f]{64}", node)
    assert len(node) > 64


def test_no_tag_id_is_what_another_one_is_made_to() -> None:
    (topic,) = config_topics(SENSOR, {"ß": "a"})
    impostor = topic.split("/")[3].removeprefix("tag_")
    assert config_topics(SENSOR, {impostor: "a"}) != [topic]


def test_an_ordinary_sensor_id_stays_as_it_is() -> None:
    """A broker can let every sensor write below its own user name only."""
    assert config_topics("Lamp_post-42", {"1": "a"}) == ["homeassistant/sensor/Lamp_post-42/tag_1/config"]


def test_a_citys_own_tags_are_entities_under_their_own_ids(recorder: Recorder) -> None:
    """A gauge for each coarse tag, none for a fine one, whatever ids are; names keep their capitals."""
    harbour = Taxonomy.from_names(
        "harbour",
        {"1": "Schiff", "01": "big-ship", "quay": "quay-work"},
        {"1": {"1": "horn", "X": "other"}, "01": {"1": "horn"}, "quay": {"crane": "crane", "X": "other"}},
    )
    tags = {id: harbour.tags[id].name for id in harbour.ids}
    with home_assistant(recorder, info=msgspec.structs.replace(bundle_info(), tags=tags)):
        introduced = {topic.split("/")[3]: msgspec.json.decode(config) for topic, config in recorder.said}
    assert {gauge: config["name"] for gauge, config in introduced.items()} == {
        "tag_1": "Schiff",
        "tag_01": "Big ship",
        "tag_quay": "Quay work",
    }


# -- what an entity shows --------------------------------------------------------------------------------


def test_a_tagged_window_is_shown_in_per_cent_and_decibels(house: HomeAssistant, recorder: Recorder) -> None:
    shown = show(house, recorder)
    assert [shown.pop(tag) for tag in TAGS] == ["12.0", "3.0", "8.0", "1.0", "4.0", "22.0", "91.0", "2.0"]
    assert shown == {"level": "63.2"}


def test_silence_is_known_to_have_nothing_in_it(house: HomeAssistant, recorder: Recorder) -> None:
    floor = Level(laeq_db=-120.0, lafmax_db=-120.0, la10_db=-120.0, la90_db=-120.0)
    nothing = dict.fromkeys(SONYC_UST.coarse_ids, 0.0)
    shown = show(house, recorder, verdict="silent", coarse=nothing, level=floor)
    assert shown == {**dict.fromkeys(TAGS, "0.0"), "level": "-120.0"}


def test_of_a_quiet_window_only_the_level_is_known(house: HomeAssistant, recorder: Recorder) -> None:
    """`None` is how Home Assistant spells "unknown"."""
    assert show(house, recorder, **QUIET) == {**dict.fromkeys(TAGS, "None"), "level": "63.2"}


def test_of_too_little_audio_nothing_is_known(house: HomeAssistant, recorder: Recorder) -> None:
    assert show(house, recorder, **TOO_LITTLE) == dict.fromkeys([*TAGS, "level"], "None")


def test_an_outage_does_not_run_through_the_gauges(house: HomeAssistant, recorder: Recorder) -> None:
    """
    events  0 1 2 3 (late) 4 5
    shown                  4 5
    """
    shown = [
        show(house, recorder, seq=seq, late=seq < 4, coarse={"1": seq / 10}).get("tag_1") for seq in range(6)
    ]
    assert shown == [None] * 4 + ["40.0", "50.0"]


def test_sounds_are_not_shown(house: HomeAssistant, recorder: Recorder) -> None:
    house.forward(0, "events", encode(sound_event()))
    assert recorder.said == []


@given(st.binary() | st.from_regex(rb'\A\{"schema":"edgetag.tags/[0-9]".{0,20}'))
def test_what_is_no_event_of_ours_is_forwarded_and_not_shown(payload: bytes) -> None:
    """Another version may have left it in the outbox; to fail would be to fail again at every attempt."""
    recorder = Recorder()
    with home_assistant(recorder) as house:
        recorder.take()
        house.forward(3, "tags", payload)
    assert ("forward", 3, "tags", payload) in recorder.calls
    assert recorder.said == []


# -- Home Assistant starts -------------------------------------------------------------------------------


def test_entities_are_introduced_again_a_moment_after_home_assistant_has_started(
    house: HomeAssistant, recorder: Recorder, clock: Clock
) -> None:
    """
    birth        |  |
    introduced           |     once for both, at the latest five seconds after the first
    """
    house.forward(0, "tags", encode(tags_event()))
    recorder.take()
    recorder.to_be_heard = [BIRTH]
    house.settled()
    clock.now_s = BIRTH_DELAY_S - 0.1
    recorder.to_be_heard = [BIRTH, BIRTH]
    house.settled()
    assert recorder.said == []
    clock.now_s = BIRTH_DELAY_S
    house.settled()
    assert list(recorder.configs()) == [*TAGS, "level"]
    clock.now_s = 100 * BIRTH_DELAY_S
    house.settled()
    assert recorder.said == []


def test_a_street_of_sensors_does_not_answer_at_once(recorder: Recorder, clock: Clock) -> None:
    with home_assistant(recorder, monotonic=clock, uniform=lambda: 0.3) as house:
        recorder.take()
        recorder.to_be_heard = [BIRTH]
        house.settled()
        clock.now_s = 0.29 * BIRTH_DELAY_S
        house.settled()
        assert recorder.said == []
        clock.now_s = 0.31 * BIRTH_DELAY_S
        house.settled()
        assert list(recorder.configs()) == TAGS


def test_whoever_listens_too_takes_no_birth_away(
    house: HomeAssistant, recorder: Recorder, clock: Clock
) -> None:
    recorder.to_be_heard = [BIRTH]
    assert house.heard() == [BIRTH]
    clock.now_s = BIRTH_DELAY_S
    house.settled()
    assert list(recorder.configs()) == TAGS


@given(st.lists(st.tuples(st.text() | st.just(BIRTH[0]), st.binary() | st.just(b"offline"))))
def test_nothing_else_that_is_heard_has_any_effect(messages: list[tuple[str, bytes]]) -> None:
    recorder, clock = Recorder(), Clock()
    with home_assistant(recorder, monotonic=clock) as house:
        recorder.take()
        recorder.to_be_heard = [message for message in messages if message != BIRTH]
        house.settled()
        clock.now_s = 2 * BIRTH_DELAY_S
        assert house.settled() == []
    assert recorder.said == []
