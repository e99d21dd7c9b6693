"""The daemon in virtual time: what a faulty microphone hears is tagged, stamped and accounted for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, pairwise, repeat
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetag import Tagger
from edgetag.capture.clock import SystemTime
from edgetag.capture.microphone import TICK_S, Lost, Opened, Piece, Tick
from edgetag.capture.pace import Pace
from edgetag.capture.source import Block
from edgetag.config import EventSettings, GateSettings, LevelSettings, Settings, TagSettings
from edgetag.contract.errors import BundleError
from edgetag.contract.event import Health, Info, SoundEvent, Status, TagsEvent
from edgetag.daemon import run
from edgetag.delivery.sink import Sink
from edgetag.listener import Account, Listener, Onlooker
from edgetag.loading import Loaded
from edgetag.notify import Notifier
from edgetag.replacement import Replacement
from edgetag.tagging.stream import EventStream
from fakes_bundle import write_bundle
from fakes_capture import ListSource, cut
from fakes_microphone import FakeMicrophone, Fault, Signal, SteppedMicrophone, VirtualTime, noise

RATE_HZ = 8000
HOP = 5 * 44_100


class Diary(Sink):
    """Everything that was said, in order."""

    def __init__(self) -> None:
        self.entries: list[object] = []
        self.deliver = self.sound = self.state = self.announce = self.report = self.entries.append  # type: ignore[method-assign]

    def of(self, kind: type) -> list[Any]:
        return [entry for entry in self.entries if isinstance(entry, kind)]


class Words(Notifier):
    """A service manager that keeps what it is told."""

    def __init__(self, time: VirtualTime, watchdog_s: float | None) -> None:
        super().__init__("/nowhere", watchdog_s)
        self.heard: list[tuple[float, str]] = []
        self._time = time

    def _say(self, words: str) -> bool:
        self.heard.append((self._time.monotonic(), words))
        return True


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    """Hears a voice at 0.9 in everything."""
    root = [0.1] * 6 + [0.9] + [0.1] * 30
    return Tagger.load(write_bundle(tmp_path_factory.mktemp("bundle"), root))


@dataclass
class Night:
    """A sensor on a faulty street: `seconds` of it, with one fault or none before each block."""

    tagger: Tagger
    faults: list[Fault | None]
    seconds: float
    settings: Settings = field(default_factory=Settings)
    hop_samples: int = HOP
    at: dict[float, Callable[["Night"], None]] = field(default_factory=dict)  # what happens, by the second
    signal: Signal = noise
    watchdog_s: float | None = None
    onlooker: Onlooker | None = None

    def __post_init__(self) -> None:
        self.time = VirtualTime(RATE_HZ)
        self.diary, self.words = Diary(), Words(self.time, self.watchdog_s)
        self.fake = FakeMicrophone(self.time, self._faults(), signal=self.signal)
        self.stream = EventStream(
            self.tagger, sensor="lamp", monotonic=self.time.monotonic, clock_synced=lambda: True
        )
        loaded = Loaded(self.tagger, self.settings)
        self.stream.conditions = loaded.conditions
        self.listener = Listener(
            self.stream,
            loaded,
            self.diary,
            hop_samples=self.hop_samples,
            notifier=self.words,
            onlooker=self.onlooker,
            monotonic=self.time.monotonic,
            system_time=SystemTime(self.time.monotonic, self.time.wall),
        )
        self.replacement: Replacement[Loaded] | None = None

    def live(self) -> "Night":
        end = round(self.seconds * RATE_HZ)
        self.listener.listen(SteppedMicrophone(self.fake, end), self.replacement)
        return self

    def _faults(self) -> Iterator[Fault | None]:
        for fault in chain(self.faults, repeat(None)):
            for due_s in [due_s for due_s in self.at if due_s <= self.time.monotonic()]:
                self.at.pop(due_s)(self)
            yield fault

    @property
    def events(self) -> list[TagsEvent]:
        return self.diary.of(TagsEvent)

    @property
    def states(self) -> list[tuple[str, str]]:
        return [(status.state, status.reason) for status in self.diary.of(Status)]


def utc_s(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def test_a_street_is_tagged_from_the_first_window_on(tagger: Tagger) -> None:
    """Windows every five seconds, stamped by when they were heard; ready after the first full one."""
    night = Night(tagger, [], 31).live()
    starts = [utc_s(event.start) - 1.8e9 for event in night.events]
    assert starts == pytest.approx([0, 5, 10, 15, 20, 21], abs=0.101)
    assert [event.seq for event in night.events] == list(range(6))
    assert {event.verdict for event in night.events} == {"tagged"}
    assert night.states == [("no_audio", "starting"), ("online", "hearing")]
    ready_s = [at for at, word in night.words.heard if word == "READY=1"]
    assert ready_s == pytest.approx([10.0], abs=0.2)
    assert [word for _, word in night.words.heard][-1] != "READY=1"
    assert "STOPPING=1" in [word for _, word in night.words.heard]


def test_what_a_microphone_hears_is_what_its_recording_says() -> None:
    """Events are those of a replay, to the bit, but for when and from where; also while blocks come late."""
    starter = Tagger.load(variant="int8")
    night = Night(starter, [None] * 50 + [Fault("stall", 3 * RATE_HZ)], 41).live()
    recording = noise(0, night.fake.n_read)
    replayed = Diary()
    run(
        ListSource(cut(recording), RATE_HZ),
        EventStream(starter, sensor="lamp"),
        replayed,
        hop_samples=HOP,
        start_utc_s=0.0,
    )
    same = ["seq", "verdict", "audio", "level", "coarse", "fine", "refined", "active", "model"]
    heard, expected = (
        [{key: getattr(event, key) for key in same} for event in diary.of(TagsEvent)]
        for diary in (night.diary, replayed)
    )
    assert len(heard) == 8
    assert heard == expected


def test_a_device_that_goes_is_said_and_awaited(tagger: Tagger) -> None:
    """
    street  ~~~~~~~~~~~~~~~~~~~~~~..........~~~~~~~~~~~~~~~~
    state   online                no_audio  online
    sound   [voice               )          [voice          )
    """
    night = Night(tagger, [None] * 223 + [Fault("gone", 4)], 80).live()
    assert night.states == [
        ("no_audio", "starting"),
        ("online", "hearing"),
        ("no_audio", "street: stopped (Input/output error)"),
        ("no_audio", "street: not there"),
        ("online", "hearing"),
    ]
    voice = [sound for sound in night.diary.of(SoundEvent) if sound.tag == "7"]
    assert [(sound.kind, sound.reason) for sound in voice[1::2]] == [("end", "audio_ended")] * 2
    ends_s = [utc_s(sound.end) - 1.8e9 for sound in voice[1::2]]
    assert ends_s == pytest.approx([22.3, 80], abs=0.15)
    again_s = next(utc_s(event.start) - 1.8e9 for event in night.events if utc_s(event.start) > 1.8e9 + 20)
    assert again_s == pytest.approx(22.3 + 0.75 * (1 + 2 + 4 + 8 + 16), abs=0.2)
    audio = night.diary.of(Health)[-1].audio
    assert (audio.opened, audio.overruns) == (2, 0)
    assert audio.heard_s + audio.lost_s == pytest.approx(80, abs=0.15)
    said = [word for at, word in night.words.heard if 22.3 < at < again_s]
    assert said.count("WATCHDOG=1") >= 5  # it has looked for the device: that is progress


def said_s(night: Night, words: str) -> list[float]:
    """When the manager was told this."""
    return [at_s for at_s, heard in night.words.heard if heard == words]


def test_without_a_device_it_has_started_once_it_has_said_so(tagger: Tagger) -> None:
    """Nobody waits for a first window then: neither the boot nor the start's own timeout.

    state    starting    no_audio
    manager              why, READY
    """
    night = Night(tagger, [Fault("gone", 1000)], 60).live()
    (ready_s,) = said_s(night, "READY=1")
    assert ready_s < 5.0
    words = [words for _, words in night.words.heard]
    before = words[: words.index("READY=1")]
    assert before[-1] == "STATUS=no_audio: street: stopped (Input/output error)"
    assert "WATCHDOG=1" not in before


def test_a_device_that_opens_and_gives_nothing_is_no_start(tagger: Tagger) -> None:
    """A restart may help it: the start's own timeout sees to that."""
    night = Night(tagger, [], 60)
    night.listener.listen(Stalled(night.fake, 60 * RATE_HZ))
    assert night.states[1] == ("no_audio", "street: no samples for 4 s")
    assert said_s(night, "READY=1") == said_s(night, "WATCHDOG=1") == []


class Stalled(SteppedMicrophone):
    """It opens, and not a sample comes."""

    def pieces(self) -> Iterator[Piece]:
        yield Opened("street", RATE_HZ, Pace(RATE_HZ))
        while self._time.frame < self._end_frame:
            self._time.wait(TICK_S)
            yield Tick()


def test_a_lossy_first_window_is_not_the_first_full_one(tagger: Tagger) -> None:
    """
    street   ~~~~~..~~~~~~~~~~~~~~~~~
    windows  [---------)                 too little audio
                  [---------)            too little audio
                       [---------)       READY
    """
    night = Night(tagger, [None] * 60 + [Fault("late", 3 * RATE_HZ)], 31).live()
    assert [event.verdict for event in night.events[:3]] == ["too_little_audio", "too_little_audio", "tagged"]
    assert said_s(night, "READY=1") == pytest.approx([20.0], abs=0.2)


def test_the_start_may_take_as_long_as_progress_may(tagger: Tagger) -> None:
    """Counted from when hearing begins, whatever loading took; asked for once, not for ever."""
    night = Night(tagger, [], 31).live()
    extensions = [(at_s, words) for at_s, words in night.words.heard if words.startswith("EXTEND_")]
    assert extensions == [(0.0, "EXTEND_TIMEOUT_USEC=75000000")]


@pytest.mark.parametrize(
    ("hop_s", "watchdog_s", "asked_s"),
    [
        (5, 120, None),
        (5, 60, 75),  # a wait of half a minute for a microphone that is away, and a look at it
        (10, 120, None),
        (10.5, 120, 126),  # eight hops, and half as long again
        (3600, 120, 43_200),
        (3600, None, None),
    ],
)
def test_a_watchdog_of_less_patience_than_progress_takes_is_given_more(
    tagger: Tagger, hop_s: float, watchdog_s: float | None, asked_s: float | None
) -> None:
    """From READY on: before, the start's own timeout holds."""
    night = Night(tagger, [], 11, hop_samples=round(hop_s * 44_100), watchdog_s=watchdog_s).live()
    (ready,) = [words for _, words in night.words.heard if words.startswith("READY=1")]
    assert ready.splitlines()[1:] == ([] if asked_s is None else [f"WATCHDOG_USEC={round(asked_s * 1e6)}"])


def test_signs_of_life_are_never_further_apart_than_the_watchdog_is_told(tagger: Tagger) -> None:
    """An overloaded sensor's microphone goes, comes back at another rate, and is as it was.

    street   ~~~~~~~~~~~~~~~~............(wrong)..(wrong)..~~~~~~~~~~~~~~~~~~~~
    net      38 s a window
    """

    def wrong(night: Night) -> None:
        night.fake.true_rate = 1.03

    def right(night: Night) -> None:
        night.fake.true_rate = 1.0

    faults = [None] * 2400 + [Fault("gone", 12)]
    night = Night(tagger, faults, 900, at={300.0: wrong, 550.0: right})
    deliver = night.diary.entries.append

    def slow(event: TagsEvent) -> None:
        night.time.frame += 38 * RATE_HZ
        deliver(event)

    night.diary.deliver = slow  # type: ignore[method-assign]
    night.live()
    signs_s = [*said_s(night, "READY=1"), *said_s(night, "WATCHDOG=1")]
    gaps_s = [later - earlier for earlier, later in pairwise(signs_s)]
    assert len(gaps_s) > 15
    assert max(gaps_s) < 75


@given(
    faults=st.lists(
        st.one_of(
            st.none(),
            st.builds(Fault, st.just("late"), st.integers(1, 20 * RATE_HZ)),
            st.builds(Fault, st.just("stall"), st.integers(1, 20 * RATE_HZ)),
            st.builds(Fault, st.just("gone"), st.integers(0, 4)),
        ),
        max_size=30,
    )
)
@settings(max_examples=25, deadline=None)
def test_every_second_is_heard_or_lost_whatever_happens(tagger: Tagger, faults: list[Fault | None]) -> None:
    """The health message's account adds up; stamps never go back; every start has its end."""
    night = Night(tagger, faults, 60).live()
    audio = night.diary.of(Health)[-1].audio
    assert audio.heard_s + audio.lost_s == pytest.approx(night.time.monotonic(), abs=0.11)  # a block
    starts = [utc_s(event.start) for event in night.events]
    assert starts == sorted(starts)
    sounds = night.diary.of(SoundEvent)
    assert [sound.seq for sound in sounds] == list(range(len(sounds)))
    starts_of, ends_of = ([s.id for s in sounds if s.kind == kind] for kind in ("start", "end"))
    assert sorted(starts_of) == sorted(ends_of)


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_clock_that_is_set_shifts_nothing_in_silence(tagger: Tagger, step_s: float) -> None:
    """Before, events have the old time; from the first window after, the new one, and that one says so."""

    def set_clock(night: Night) -> None:
        night.time.step_s = step_s

    night = Night(tagger, [], 60, at={33.0: set_clock}).live()
    steps = [event.clock.step_s for event in night.events]
    k = steps.index(step_s)
    assert [step for step in steps if step] == [step_s]
    stamps = [utc_s(event.start) - 1.8e9 for event in night.events]
    assert stamps[:k] == pytest.approx([5.0 * n for n in range(k)], abs=0.11)
    assert stamps[k:-1] == pytest.approx([5.0 * n + step_s for n in range(k, len(stamps) - 1)], abs=0.11)
    assert [utc_s(e.end) - utc_s(e.start) for e in night.events] == pytest.approx(
        [10.0] * len(stamps), abs=1e-3
    )
    voice = [sound for sound in night.diary.of(SoundEvent) if sound.tag == "7"]
    assert voice[-1].duration_s == pytest.approx(60, abs=0.2)
    assert night.diary.of(Health)[-1].clock_steps == 1


def said_within(night: Night, state: str, since_s: float) -> float:
    """Seconds from `since_s` until a state was said."""
    at = next(utc_s(s.since) - 1.8e9 for s in night.diary.of(Status)[2:] if s.state == state)
    return at - since_s


def test_zeros_are_a_fault_within_five_seconds(tagger: Tagger) -> None:
    """A device that delivers only zeros is no quiet street; the first sound takes it back."""
    night = Night(tagger, [None] * 200 + [Fault("zeros", 0)] * 100, 60).live()
    assert night.states[2] == ("no_audio", "street: nothing but zeros for 4 s")
    assert night.states[3] == ("online", "hearing")
    assert said_within(night, "no_audio", 20.0) <= 5.0


def test_silence_from_the_beginning_is_never_online(tagger: Tagger) -> None:
    """Zeros from the first sample on."""
    night = Night(tagger, [Fault("zeros", 0)] * 300, 30).live()
    assert {state for state, _ in night.states} == {"no_audio"}
    assert {event.verdict for event in night.events} == {"silent"}


def test_a_device_that_delivers_too_little_is_refused(tagger: Tagger) -> None:
    """Within five seconds: long before there would be a window."""
    night = Night(tagger, [], 30)
    night.fake.true_rate = 0.5
    night.live()
    assert night.states[2] == (
        "no_audio",
        "street: it delivers 4000 samples a second where 8000 are expected",
    )
    assert said_within(night, "no_audio", 0.0) <= 5.0
    assert {event.verdict for event in night.events} == {"too_little_audio"}


def test_a_device_at_another_rate_is_refused_until_it_has_another(tagger: Tagger) -> None:
    """Its windows would be of other frequencies and other times. Opened again, it is measured before it is
    heard.

    rate     wrong ------------------------ right ----------------------
    heard    ~~~~~~~~                                   ~~~~~~~~~~~~~~~~
    state    online  no_audio                           degraded
    """

    def mend(night: Night) -> None:
        night.fake.true_rate = 1.0

    night = Night(tagger, [], 160, at={80.0: mend})
    night.fake.true_rate = 1.03
    night.live()
    refused, heard = night.diary.of(Status)[2:4]
    assert refused.reason == "street: its rate is 8240 Hz by the clock, 8000 Hz by its own account"
    assert heard.state == "degraded"  # for what was lost while it was measured
    assert len(night.states) == 4
    assert 20 < utc_s(refused.since) - 1.8e9 < 30
    assert 100 < utc_s(heard.since) - 1.8e9 < 140
    assert all(e.end <= refused.since or e.start >= heard.since for e in night.events if e.audio.valid == 1)
    audio = night.diary.of(Health)[-1].audio
    assert audio.heard_s + audio.lost_s == pytest.approx(160, abs=1)
    assert audio.measured_hz == pytest.approx(RATE_HZ, rel=1e-4)


def test_losses_are_in_the_windows_and_degrade_the_sensor(tagger: Tagger) -> None:
    """
    street  ~~~~~~~~~~~~~~~~~~~~~~~~..~~~~~~~~      the reader comes 2 s late, the device keeps half a second
    """
    night = Night(tagger, [None] * 240 + [Fault("late", 2 * RATE_HZ)], 120).live()
    lossy = [event for event in night.events if event.audio.overruns]
    assert lossy
    assert [event.verdict == "tagged" for event in lossy] == [event.audio.valid >= 0.9 for event in lossy]
    assert min(event.audio.valid for event in lossy) == pytest.approx(0.85, abs=0.02)
    assert night.states[2] == ("degraded", "audio was lost in the last minute")
    assert night.states[3] == ("online", "hearing")


def test_an_overloaded_sensor_tags_less_and_says_so(tagger: Tagger) -> None:
    """A window takes 8 s where 5 are given: the hop is lengthened, nothing is lost, the lag stays bounded."""
    night = Night(tagger, [], 600)
    deliver = night.diary.entries.append

    def slow(event: TagsEvent) -> None:
        night.time.frame += 8 * RATE_HZ
        deliver(event)

    night.diary.deliver = slow  # type: ignore[method-assign]
    night.live()
    health = night.diary.of(Health)[-1]
    assert health.load.windows_skipped + len(night.events) == pytest.approx(120, abs=3)
    assert health.load.step >= 2
    assert health.audio.overruns == 0
    assert any(state == "degraded" and "cannot keep up" in reason for state, reason in night.states)
    lags = [float(event.lag_s) for event in night.events]
    assert max(lags) < 30
    voice = [sound for sound in night.diary.of(SoundEvent) if sound.tag == "7"]
    assert [sound.kind for sound in voice] == ["start", "end"]  # it goes on over what is left out on purpose


@pytest.mark.parametrize("seconds", [14, 17, 20])
def test_a_slow_sensor_ends_in_time(tagger: Tagger, seconds: int) -> None:
    """It finishes the window in hand and those that it can begin within a second; others are counted."""
    cost_s = 2
    ends_s: list[float] = []
    night = Night(tagger, [], seconds, hop_samples=44_100)
    deliver = night.diary.entries.append

    def slow(event: TagsEvent) -> None:
        night.time.frame += cost_s * RATE_HZ
        ends_s.append(night.time.monotonic())
        deliver(event)

    night.diary.deliver = slow  # type: ignore[method-assign]
    night.live()
    assert ends_s[-1] <= seconds + 2 * cost_s
    skipped = night.diary.of(Health)[-1].load.windows_skipped
    assert skipped + len(night.events) == pytest.approx(seconds - 9, abs=3)
    voice = [sound for sound in night.diary.of(SoundEvent) if sound.tag == "7"]
    assert voice[-1].kind == "end"


def test_below_the_gate_only_the_level_is_told(tagger: Tagger) -> None:
    """And a calibrated sensor's gate is in dB(A)."""
    conditions = Settings(gate=GateSettings(min_laeq_db=200.0), level=LevelSettings(calibration_db=120.0))
    night = Night(tagger, [], 21, conditions).live()
    assert {event.verdict for event in night.events} == {"quiet"}
    assert all(event.level.calibrated and 80 < event.level.laeq_db < 120 for event in night.events)
    assert night.diary.of(SoundEvent) == []


class Brought(Replacement[Loaded]):
    """Has brought what it is given."""

    def __init__(self, *outcomes: object) -> None:
        super().__init__(lambda: pytest.fail("not loaded here"))
        for outcome in outcomes:
            self._outcomes.put(outcome)  # type: ignore[arg-type]


def test_settings_that_can_change_do_and_the_others_are_named(tagger: Tagger) -> None:
    """Calibration and a threshold change between two windows; another microphone needs a restart."""
    new = Settings(
        level=LevelSettings(calibration_db=100.0),
        events=EventSettings(tags={"7": TagSettings(on=0.95)}),
        audio=msgspec.structs.replace(Settings().audio, device="another"),
    )

    def change(night: Night) -> None:
        assert night.replacement is not None
        night.replacement._outcomes.put(Loaded(tagger, new))

    night = Night(tagger, [], 40, at={22.0: change})
    night.replacement = Brought()
    with structlog.testing.capture_logs() as logs:
        night.live()
    assert [event.level.calibrated for event in night.events] == [False] * 3 + [True] * 4
    voice = [sound for sound in night.diary.of(SoundEvent) if sound.tag == "7"]
    assert [(sound.kind, sound.reason) for sound in voice[1:]] == [("end", "settings")]
    told = {(log["event"], log["setting"]) for log in logs if log["event"].startswith("setting.")}
    assert told == {
        ("setting.changed", "level.calibration_db"),
        ("setting.changed", "events.tags"),
        ("setting.needs_restart", "audio.device"),
    }
    assert len(night.diary.of(Info)) == 1


@pytest.mark.parametrize(
    "outcome",
    [
        BundleError("root.onnx is damaged"),
        Settings(events=EventSettings(tags={"77": TagSettings(on=0.5)})),
    ],
)
def test_what_is_refused_changes_nothing_and_degrades(tagger: Tagger, outcome: object) -> None:
    """The old bundle and settings hear on; status and health say that it is not as it was asked to be."""
    night = Night(tagger, [], 40)
    night.replacement = Brought(Loaded(tagger, outcome) if isinstance(outcome, Settings) else outcome)
    night.live()
    assert len(night.events) == 7
    assert night.diary.of(Health)[0].bundle.state == "refused"
    assert night.states[-1] == ("degraded", "a bundle was refused")


def test_an_onlooker_sees_all_that_comes_in_and_changes_nothing(tagger: Tagger) -> None:
    """Every piece, lost devices as well; the account is that of `health`, up to that piece."""

    class Bystander:
        def __init__(self) -> None:
            self.pieces: list[Piece] = []
            self.accounts: list[Account] = []

        def see(self, piece: Piece, account: Callable[[], Account]) -> None:
            self.pieces.append(piece)
            self.accounts.append(account())

    faults = [None] * 150 + [Fault("late", 9000), Fault("gone", 2)]
    bystander = Bystander()
    alone, seen = Night(tagger, faults, 60).live(), Night(tagger, faults, 60, onlooker=bystander).live()
    assert [msgspec.structs.replace(event, boot="") for event in alone.events] == [
        msgspec.structs.replace(event, boot="") for event in seen.events
    ]
    heard_s = sum(len(piece.frames) for piece in bystander.pieces if isinstance(piece, Block)) / RATE_HZ
    assert {type(piece) for piece in bystander.pieces} >= {Opened, Block, Lost}
    assert bystander.accounts[-1].audio.heard_s == pytest.approx(heard_s, abs=0.001)
    assert bystander.accounts[-1].audio == seen.diary.of(Health)[-1].audio


def test_health_comes_every_minute_also_without_a_microphone(tagger: Tagger) -> None:
    """Ten minutes of nothing: ten times the account of what is being lost."""
    night = Night(tagger, [Fault("gone", 1000)], 600).live()
    healths = night.diary.of(Health)
    assert 8 <= len(healths) <= 12
    assert healths[-1].audio.device == ""
    assert healths[-1].audio.lost_s == pytest.approx(600, abs=31)
