"""`edgetag run --mic` on a real sound server, as a process of its own: what it says of what is played to it.

Each story is one run of the daemon; they are lived side by side, and the tests read their diaries.

```
day     zeros |street played ----- stopped ----- played| killed . again | SIGTERM
hangup  noise ---- SIGHUP, new settings ---- SIGHUP, broken file ---- SIGTERM
late    nobody there ----- the server comes ----- stopped, SIGTERM
nobody  a name that nobody has; noise played to somebody else; SIGTERM
stereo  48 kHz, two channels with a tone in each; one of them is asked for; SIGTERM
```
"""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from conftest import SHARED
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_S
from edgetag.contract.manifest import Variant
from edgetag.demo.scene import street_scene
from system.recording import LEVEL_TOLERANCE_DB, TOLERANCE, Recording, difference, heard_level
from system.sensor import Said, Sensor, utc_s
from system.sound_server import SoundServer, needs_sound_server

pytestmark = needs_sound_server

Signal = NDArray[np.float32]
VARIANT: Variant = "int8"
PROMPT_S = 6.0  # what is to happen within five seconds, on a machine that does other things, too
STOPPED_S = 6.0
HOP_S = 2.5
STREET_S, REAL_S = 22.0, 20.0
STEREO_HZ = 48_000


@dataclass
class Story:
    """One run of the daemon: what it said, and when what was done to it."""

    sensor: Sensor
    marks: dict[str, float] = field(default_factory=dict)
    code: int | None = None
    ending_s: float = float("inf")

    def mark(self, what: str) -> float:
        self.marks[what] = time.time()
        return self.marks[what]

    def end(self) -> None:
        assert self.sensor.process.poll() is None, f"it has ended by itself: {self.sensor.logged}"
        self.mark("asked to end")
        self.code, self.ending_s = self.sensor.terminate()

    def tags(self, first: str, last: str) -> list[Said]:
        """Events of the windows that lie between two marks."""
        return [
            said
            for said in self.sensor.messages("tags")
            if utc_s(said.message["start"]) > self.marks[first]
            and utc_s(said.message["end"]) < self.marks[last]
        ]


@contextmanager
def sensor(folder: Path, server: SoundServer, *arguments: str) -> Iterator[Story]:
    options = ("--format", "json", "--variant", VARIANT, *arguments)
    with Sensor(folder / "sensor", server.environment(), *options) as process:
        yield Story(process)


def noise(seconds: float) -> Signal:
    return np.random.default_rng(0).normal(0, 0.05, round(seconds * SAMPLE_RATE_HZ)).astype(np.float32)


def what_is_played() -> Signal:
    """A synthetic street, and, where the local data folder is there, a real recording, twice; of 16 bits, as
    a sound server has them.
    """
    street = street_scene().samples[: round((STREET_S + REAL_S) * SAMPLE_RATE_HZ)]
    recording = SHARED / "audio" / "sonyc" / "audio" / "00_010587.flac"
    if recording.exists():
        real, rate_hz = soundfile.read(recording, dtype="float32")
        assert rate_hz == SAMPLE_RATE_HZ
        street = np.concatenate([street[: round(STREET_S * SAMPLE_RATE_HZ)], real, real])
    return (np.round(street * 32_767) / 32_768).astype(np.float32)


def day(folder: Path) -> Story:
    """Zeros; a street is played, and the server stops in the middle of it; it dies, and comes back."""
    played = what_is_played()
    with SoundServer(folder) as server, sensor(folder, server, "--hop", str(HOP_S)) as story:
        heard = story.sensor
        heard.wait_for(lambda: any("zeros" in reason for _, reason in heard.states()))
        story.mark("played")
        player = server.play(played, wait=False, ahead_s=2 * STOPPED_S)
        heard.wait_for(lambda: len(heard.messages("tags")) >= 3)
        story.mark("stopped")
        server.stop()
        time.sleep(STOPPED_S)
        story.mark("resumed")
        server.resume()
        player.wait(len(played) / SAMPLE_RATE_HZ)
        story.mark("killed")
        server.kill()
        heard.wait_for(lambda: any("no input device" in reason for _, reason in heard.states()))
        story.mark("again")
        server.start()
        server.play(noise(30), wait=False)
        heard.wait_for_state("online", story.marks["again"])
        story.end()
    return story


def hangup(folder: Path) -> Story:
    """Settings change while it hears; then they cannot be read."""
    config = folder / "edgetag.yaml"
    config.write_text("window: {hop_s: 1}\n")
    with SoundServer(folder) as server, sensor(folder, server, "--config", str(config)) as story:
        heard = story.sensor
        server.play(street_scene().samples, wait=False)
        heard.wait_for(lambda: heard.messages("tags"))
        story.mark("changed")
        config.write_text("window: {hop_s: 1}\naudio: {device: pulse}\nlevel: {calibration_db: 94}\n")
        heard.process.send_signal(signal.SIGHUP)
        heard.wait_for(
            lambda: [said for said in heard.messages("tags") if said.message["level"]["calibrated"]]
        )
        story.mark("broken")
        config.write_text("window: {hop_s: 1}\nlevel: {calibration: 3}\n")
        heard.process.send_signal(signal.SIGHUP)
        heard.wait_for(lambda: any("refused" in line.text for line in heard.logged))
        story.mark("refused")
        heard.wait_for(lambda: len(heard.since("tags", story.marks["refused"])) >= 2)
        time.sleep(0.5)  # so that the grid does not end with the audio
        story.end()
    return story


def late(folder: Path) -> Story:
    """There is no sound server at first; and at the end one that hangs."""
    server = SoundServer(folder)
    with server, sensor(folder, server, "pulse") as story:
        server.kill()
        heard = story.sensor
        heard.wait_for(lambda: any("no input device" in reason for _, reason in heard.states()))
        story.mark("there")
        server.start()
        server.play(noise(30), wait=False)
        heard.wait_for_state("online", story.marks["there"])
        story.mark("stopped")
        server.stop()
        heard.wait_for_state("no_audio", story.marks["stopped"])
        story.end()
    return story


def nobody(folder: Path) -> Story:
    """A name that no microphone has, while another one hears a street."""
    with SoundServer(folder) as server, sensor(folder, server, "Yeti Nano") as story:
        server.play(noise(30), wait=False)
        story.sensor.wait_for(lambda: any("Yeti" in reason for _, reason in story.sensor.states()))
        time.sleep(PROMPT_S)
        story.end()
    return story


def stereo(folder: Path) -> Story:
    """Another rate, and another channel than the first."""
    times_s = np.arange(40 * STEREO_HZ) / STEREO_HZ
    tones = [a * np.sin(2 * np.pi * 1000 * times_s) for a in (0.5, 0.1)]
    config = folder / "edgetag.yaml"
    config.write_text(f"audio: {{device: pulse, channel: 2, rate_hz: {STEREO_HZ}}}\n")
    with (
        SoundServer(folder, rate_hz=STEREO_HZ, n_channels=2) as server,
        sensor(folder, server, "--config", str(config)) as story,
    ):
        server.play(np.stack(tones, axis=1).astype(np.float32), wait=False)
        story.sensor.wait_for(lambda: len(story.sensor.messages("tags")) >= 2)
        story.end()
    return story


Lived = Callable[[Callable[[Path], Story]], Story]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    """What became of a story; all of them begin when the first is asked for."""
    stories = (day, hangup, late, nobody, stereo)
    with ThreadPoolExecutor(len(stories)) as pool:
        futures: dict[Callable[[Path], Story], Future[Story]] = {
            story: pool.submit(story, tmp_path_factory.mktemp(story.__name__)) for story in stories
        }
        yield lambda story: futures[story].result()


# -- what is heard ---------------------------------------------------------------------------------------


def test_what_is_played_is_tagged_as_the_recording_itself(lived: Lived) -> None:
    """One offset explains every window's tags and levels, also those after the server hung: a sample that
    was lost or spliced would move it. Any other offset does not.

    played   |~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~|
    windows    [------------------)
                    [------------------)              each where the first one and the hop say
    """
    story, recording = lived(day), Recording(what_is_played(), VARIANT)
    told = [said.message for said in story.tags("played", "killed")]
    near_s = utc_s(told[0]["start"]) - story.marks["played"]
    n_within = int((recording.duration_s() - near_s - 1 - WINDOW_S) / HOP_S)
    events = told[:n_within]
    assert n_within >= 10
    start_s = recording.where(events, HOP_S, near_s)
    for k, event in enumerate(events):
        found = recording.analysis(start_s + k * HOP_S)
        assert event["verdict"] == "tagged"
        assert difference(found, event) < TOLERANCE
        assert heard_level(event) == pytest.approx(
            recording.level(start_s + k * HOP_S), abs=LEVEL_TOLERANCE_DB
        )
        for id, probability in found.coarse.items():
            if not recording.near(id, probability, TOLERANCE):
                assert (id in event["active"]) == (id in found.active)
    assert {id for event in events for id in event["active"]}
    for wrong_s in (0.1, 0.5, 1.0):
        errors = [
            difference(recording.analysis(start_s + wrong_s + k * HOP_S), e) for k, e in enumerate(events)
        ]
        assert max(errors) > 2 * TOLERANCE


def test_a_street_of_zeros_is_nothing_to_hear(lived: Lived) -> None:
    """A microphone that delivers digital silence is broken, muted or nobody's."""
    assert lived(day).sensor.states()[:3] == [
        ("no_audio", "starting"),
        ("no_audio", "default: nothing but zeros for 4 s"),
        ("online", "hearing"),
    ]


def test_a_server_that_hangs_is_told_and_nothing_is_lost(lived: Lived) -> None:
    """
    server   ~~~~~~~~~ stopped ~~~~~~~~~~~~
    state    online      no_audio  online
    windows  every hop, each one whole
    """
    story = lived(day)
    lost = story.sensor.since("status", story.marks["stopped"])[0]
    assert lost.message["reason"] == "default: no samples for 4 s"
    assert lost.at_s - story.marks["stopped"] < PROMPT_S
    back = story.sensor.since("status", story.marks["resumed"])[0]
    assert (back.message["state"], back.message["reason"]) == ("online", "hearing")
    events = [said.message for said in story.tags("played", "killed")][:-1]  # one more ends with the audio
    assert {(event["audio"]["valid"], event["audio"]["overruns"]) for event in events} == {(1.0, 0)}
    starts_s = np.array([utc_s(event["start"]) for event in events])
    assert np.diff(starts_s) == pytest.approx(HOP_S, abs=0.1)


def test_a_server_that_dies_is_awaited(lived: Lived) -> None:
    """It is told within five seconds; the process that hears afterwards is the same."""
    story = lived(day)
    gone, back = story.sensor.since("status", story.marks["killed"])[0], story.sensor.messages("status")[-1]
    assert gone.message["state"] == "no_audio"
    assert gone.message["reason"].startswith("default: stopped")
    assert gone.at_s - story.marks["killed"] < PROMPT_S
    assert (back.message["state"], back.message["reason"]) == ("online", "hearing")
    assert len({said.message["boot_id"] for said in story.sensor.messages("status")}) == 1


def test_the_channel_that_was_asked_for_is_heard_at_the_rate_that_was(lived: Lived) -> None:
    """A tone of −20 dB in the second channel, not the one of −6 dB in the first, nor their mean."""
    event = lived(stereo).sensor.messages("tags")[1].message
    assert event["audio"] == {"rate_hz": STEREO_HZ, "valid": 1.0, "overruns": 0, "clipped": 0.0}
    tone_db = 20 * np.log10(0.1) - 3.01
    assert event["level"]["laeq_db"] == pytest.approx(tone_db, abs=0.1)
    assert event["level"]["la90_db"] == pytest.approx(tone_db, abs=0.1)


# -- which microphone ------------------------------------------------------------------------------------


def test_another_microphone_is_no_replacement(lived: Lived) -> None:
    """Who asked for one that is not there gets no sound, and is told so."""
    story = lived(nobody)
    assert {state for state, _ in story.sensor.states()} == {"no_audio"}
    assert "Yeti Nano" in story.sensor.states()[-1][1]
    assert story.sensor.messages("tags") == []
    assert story.ending_s < PROMPT_S  # it was still there to be ended


def test_a_microphone_that_comes_later_is_taken(lived: Lived) -> None:
    story = lived(late)
    states = [said.message["state"] for said in story.sensor.since("status", story.marks["there"])]
    assert states[0] == "online"


# -- systemd ---------------------------------------------------------------------------------------------


def words(story: Story, word: str) -> list[float]:
    """When systemd was told so."""
    return [line.at_s for line in story.sensor.notified if line.text == word]


def test_ready_is_the_first_window(lived: Lived) -> None:
    story = lived(day)
    first = story.sensor.messages("tags")[0]
    (ready_s,) = words(story, "READY=1")
    assert utc_s(first.message["end"]) <= ready_s
    assert ready_s == pytest.approx(first.at_s, abs=1)


def test_the_watchdog_is_fed_by_progress_and_by_nothing_else(lived: Lived) -> None:
    """With every window; not while a read hangs."""
    story = lived(day)
    fed_s = np.array(words(story, "WATCHDOG=1"))
    for said in story.sensor.messages("tags"):
        assert np.abs(fed_s - said.at_s).min() < 1
    hung = (fed_s > story.marks["stopped"] + 1) & (fed_s < story.marks["resumed"])
    assert not hung.any()


@pytest.mark.parametrize("story", [day, hangup, late, nobody, stereo], ids=lambda story: story.__name__)
def test_sigterm_ends_it_in_good_order(lived: Lived, story: Callable[[Path], Story]) -> None:
    """Within five seconds, with code 0: while it hears, while a read hangs, with no microphone at all."""
    ended = lived(story)
    assert ended.code == 0, ended.sensor.logged
    assert ended.ending_s < 5
    assert len(words(ended, "STOPPING=1")) == 1
    assert not any("Traceback" in line.text for line in ended.sensor.logged)


def test_what_was_heard_last_is_tagged(lived: Lived) -> None:
    """The window in hand ends when it was asked to end; sounds end with it; nothing comes after that."""
    story = lived(hangup)
    event = story.sensor.messages("tags")[-1].message
    assert event["verdict"] == "tagged"
    assert utc_s(event["end"]) == pytest.approx(story.marks["asked to end"], abs=0.5)
    before = story.sensor.messages("tags")[-2].message
    assert utc_s(event["start"]) - utc_s(before["start"]) < 1 - 0.05, "off the grid: it ends with the audio"
    sounds = [said.message for said in story.sensor.messages("event")]
    began = {sound["id"] for sound in sounds if sound["kind"] == "start"}
    ended = {sound["id"]: sound["reason"] for sound in sounds if sound["kind"] == "end"}
    assert ended.keys() == began
    assert began
    assert story.sensor.said[-1].message["reason"] == "audio_ended"


# -- settings --------------------------------------------------------------------------------------------


def test_settings_change_between_two_windows(lived: Lived) -> None:
    """The level is a calibrated one from some window on, 94 dB higher; no window is missing."""
    story = lived(hangup)
    events = [said.message for said in story.sensor.messages("tags")]
    calibrated = [event["level"]["calibrated"] for event in events]
    assert calibrated == sorted(calibrated)
    change = calibrated.index(True)
    assert change > 0
    before, after = events[change - 1]["level"], events[change]["level"]
    assert after["laeq_db"] - before["laeq_db"] == pytest.approx(94, abs=6)  # a street changes in a second
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert {event["audio"]["overruns"] for event in events} == {0}


def test_what_needs_a_restart_is_told(lived: Lived) -> None:
    story = lived(hangup)
    (line,) = [line.text for line in story.sensor.logged if "needs_restart" in line.text]
    assert "audio.device" in line
    (line,) = [line.text for line in story.sensor.logged if "setting.changed" in line.text]
    assert "level.calibration_db" in line


def test_a_broken_file_is_refused_in_one_line(lived: Lived) -> None:
    """It hears on, by the settings before."""
    story = lived(hangup)
    (line,) = [line.text for line in story.sensor.logged if line.at_s > story.marks["broken"]][:1]
    assert "bundle.refused" in line
    assert "level.calibration is unknown; did you mean level.calibration_db?" in line
    after = story.sensor.since("tags", story.marks["refused"])
    assert len(after) >= 2
    assert all(said.message["level"]["calibrated"] for said in after)
