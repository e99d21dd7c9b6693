"""Weeks in minutes: the daemon in virtual time, with thousands of faults, and what that leaves behind.

`make soak` is a week; the plain suite an hour.
"""

import gc
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetag import Tagger
from edgetag.capture.clock import SystemTime
from edgetag.config import LevelSettings, Settings
from edgetag.contract.event import Health, SoundEvent, Status, TagsEvent
from edgetag.delivery.sink import Sink
from edgetag.listener import Listener
from edgetag.loading import Loaded
from edgetag.notify import Notifier
from edgetag.replacement import Replacement
from edgetag.tagging.machine import resident_bytes
from edgetag.tagging.stream import EventStream
from fakes_bundle import write_bundle
from fakes_microphone import FakeMicrophone, Fault, SteppedMicrophone, VirtualTime

RATE_HZ = 8000
BLOCKS_PER_HOUR = 36_000
FAULTS_PER_HOUR = 30
WARM_WINDOWS = 500
MAX_GROWTH_MB = 5.0


class Counts(Sink):
    """Counts what is said, checks its order, keeps none of it."""

    def __init__(self, fds: int) -> None:
        self.said: Counter[str] = Counter()
        self.open_sounds: set[str] = set()
        self.health: Health | None = None
        self.rss_mb: list[float] = []
        self._last_start = ""
        self._n_fds = fds

    def deliver(self, event: TagsEvent) -> None:
        assert event.seq == self.said["tags"]
        self.said["tags"] += 1
        self.said[event.verdict] += 1
        self.said["clock steps"] += event.clock.step_s != 0
        if event.seq >= WARM_WINDOWS and event.seq % 100 == 0:
            gc.collect()
            self.rss_mb.append(resident_bytes() / 1e6)
            assert n_fds() <= self._n_fds

    def sound(self, event: SoundEvent) -> None:
        assert event.seq == self.said["sounds"]
        assert event.duration_s >= 10
        self.said["sounds"] += 1
        if event.kind == "start":
            self.open_sounds.add(event.id)
        else:
            self.open_sounds.remove(event.id)

    def state(self, status: Status) -> None:
        self.said[status.state] += 1

    def report(self, health: Health) -> None:
        self.said["health"] += 1
        self.health = health


def n_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Hourly(Replacement[Loaded]):
    """Another bundle and another calibration, every hour of the virtual clock."""

    def __init__(self, time: VirtualTime, taggers: list[Tagger]) -> None:
        super().__init__(lambda: pytest.fail("not loaded here"))
        self._time, self._taggers, self._hour = time, taggers, 0

    def outcome(self) -> Loaded | None:
        hour = int(self._time.monotonic() // 3600)
        if hour == self._hour:
            return None
        self._hour = hour
        settings = Settings(level=LevelSettings(calibration_db=float(hour)))
        return Loaded(self._taggers[hour % 2], settings)


def weather(time: VirtualTime, seed: int) -> Iterator[Fault | None]:
    """About thirty faults an hour, and now and then somebody sets the clock."""
    rng = random.Random(seed)
    while True:
        for _ in range(round(rng.expovariate(FAULTS_PER_HOUR / BLOCKS_PER_HOUR))):
            yield None
        kind = rng.choice(["late", "stall", "silent", "gone", "zeros", "clock"])
        match kind:
            case "clock":
                time.step_s += rng.choice([-3600.0, 3600.0, 0.5])
            case "zeros":
                for _ in range(rng.randrange(1, 900)):
                    yield Fault("zeros", 0)
            case "gone":
                yield Fault("gone", rng.randrange(4))
            case "silent":
                for _ in range(100):  # a loss that nobody mentions is found where nothing else goes wrong
                    yield None
                yield Fault("silent", rng.randrange(RATE_HZ // 4, 10 * RATE_HZ))
                for _ in range(100):
                    yield None
            case _:
                yield Fault(kind, rng.randrange(1, 20 * RATE_HZ))


@pytest.mark.parametrize(
    "hours", [1, pytest.param(7 * 24, marks=[pytest.mark.soak, pytest.mark.timeout(3 * 3600)])]
)
def test_faults_leave_nothing_behind(tmp_path: Path, hours: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Every lost second is accounted for; memory, threads and descriptors stay as they were."""
    root = [0.1] * 6 + [0.9] + [0.1] * 30
    taggers = [
        Tagger.load(write_bundle(tmp_path / name, [p, *root[1:]])) for p, name in ((0.1, "a"), (0.6, "b"))
    ]
    time = VirtualTime(RATE_HZ)
    fake = FakeMicrophone(time, weather(time, seed=hours), keeps_world=False)
    stream = EventStream(taggers[0], sensor="lamp", monotonic=time.monotonic)
    gc.collect()  # what tests before have left
    counts, n_threads = Counts(n_fds()), threading.active_count()
    listener = Listener(
        stream,
        Loaded(taggers[0], Settings()),
        counts,
        hop_samples=5 * 44_100,
        notifier=Notifier(None),
        monotonic=time.monotonic,
        system_time=SystemTime(time.monotonic, time.wall),
    )
    listener.listen(SteppedMicrophone(fake, hours * 3600 * RATE_HZ), Hourly(time, taggers))

    assert counts.health is not None
    audio, said, passed_s = counts.health.audio, counts.said, time.monotonic()
    # A stall on a stall may be longer than the ring; what it had no room for is among the lost.
    assert -1e-3 < fake.n_read / RATE_HZ - audio.heard_s < 1e-5 * passed_s + 1e-3
    assert audio.heard_s + audio.lost_s == pytest.approx(passed_s, abs=0.11)  # a block
    assert fake.n_dropped / RATE_HZ <= audio.lost_s
    assert counts.open_sounds == set()
    assert threading.active_count() == n_threads
    assert counts.health.load.windows_skipped < 0.02 * said["tags"]
    assert {"tagged", "silent", "too_little_audio", "online", "degraded", "no_audio"} <= set(said)
    first, last = (sum(part) / len(part) for part in (counts.rss_mb[:3], counts.rss_mb[-3:]))
    with capsys.disabled():
        print(  # noqa: T201 - what the note tells
            f"\n{hours} h of audio: {dict(said)}, opened {audio.opened} times, {audio.overruns} overruns, "
            f"heard {audio.heard_s:.2f} s + lost {audio.lost_s:.2f} s of {passed_s:.2f} s, "
            f"RSS {first:.1f} MB after {WARM_WINDOWS} windows, {last:.1f} MB at the end"
        )
    assert last - first < MAX_GROWTH_MB
