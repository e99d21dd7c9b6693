"""Another bundle for a sensor that is hearing: verified aside, taken over between two windows, or refused."""

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import pytest
import soundfile
from jsonschema import Draft202012Validator

from edgetag import Tagger
from edgetag.capture.source import Block
from edgetag.config import Settings
from edgetag.contract.errors import BundleError
from edgetag.contract.event import Health, Info, TagsEvent, encode, json_schema
from edgetag.daemon import run
from edgetag.delivery.sink import Sink
from edgetag.health import INTERVAL_S, HealthWatch
from edgetag.loading import Loaded
from edgetag.replacement import Replacement
from edgetag.tagging.stream import EventStream
from fakes_bundle import write_bundle
from fakes_capture import ListSource, cut

RATE_HZ = 8000
OLD, NEW = [0.9] + [0.1] * 36, [0.2] + [0.8] * 36


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("old"), OLD, {"1": [0.7, 0.1, 0.1, 0.1]})


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("new"), NEW)


class Diary(Sink):
    """Keeps everything it is told, in order."""

    def __init__(self) -> None:
        self.entries: list[TagsEvent | Info | Health] = []

    def deliver(self, event: TagsEvent) -> None:
        self.entries.append(event)

    def announce(self, info: Info) -> None:
        self.entries.append(info)

    def report(self, health: Health) -> None:
        self.entries.append(health)

    def of(self, kind: type) -> list:  # type: ignore[type-arg]
        return [entry for entry in self.entries if isinstance(entry, kind)]


class Wishes(ListSource):
    """Twenty seconds; in the middle of them another bundle is wished for, and awaited."""

    def __init__(self, wish: Callable[[], None]) -> None:
        samples = np.random.default_rng(0).normal(0, 0.1, 20 * RATE_HZ).astype(np.float32)
        super().__init__(cut(samples, [RATE_HZ] * 19), RATE_HZ)
        self._wish = wish

    def blocks(self) -> Iterator[Block]:
        for k, block in enumerate(super().blocks()):
            if k == 12:
                self._wish()
            yield block


def heard(start: Path, load: Callable[[], Tagger]) -> Diary:
    """A run that begins with the bundle `start` and wishes for what `load` gives before 12 are heard."""
    loaded = threading.Event()

    def load_and_tell() -> Loaded:
        try:
            return Loaded(load(), Settings())
        finally:
            loaded.set()

    def wish() -> None:
        replacement.ask()
        assert loaded.wait(30)
        while replacement._outcomes.empty():  # between the end of `load` and its arrival
            pass

    diary = Diary()
    stream = EventStream(Tagger.load(start), sensor="test", clock_synced=lambda: True)
    with Replacement(load_and_tell) as replacement:
        run(Wishes(wish), stream, diary, hop_samples=44_100, start_utc_s=0.0, replacement=replacement)
    return diary


def test_a_new_bundle_takes_over_between_two_windows(old: Path, new: Path) -> None:
    """No window lost or heard twice; info and health are told before the first event of the new bundle."""
    diary = heard(old, lambda: Tagger.load(new))
    events, models = diary.of(TagsEvent), [Tagger.load(path).bundle.model for path in (old, new)]
    assert [event.seq for event in events] == list(range(11))
    assert [int(event.start[17:19]) for event in events] == list(range(11))
    assert [event.model for event in events] == [models[0]] * 2 + [models[1]] * 9
    assert [event.coarse["1"] for event in events] == pytest.approx([0.9] * 2 + [0.2] * 9, abs=1e-3)
    info, health = diary.entries[2:4]
    assert isinstance(info, Info)
    assert isinstance(health, Health)
    assert models[1] == f"{info.bundle}@sha256:{info.bundle_sha256[:12]}"
    assert (health.bundle.model, health.bundle.state, health.windows) == (models[1], "ok", 2)


def test_a_bundle_that_has_taken_over_keeps_no_golden_windows(old: Path, new: Path) -> None:
    tagger = Tagger.load(new)
    heard(old, lambda: tagger)
    assert len(tagger.bundle.golden.pcm) == 0


def damaged() -> Tagger:
    raise BundleError("root.onnx is damaged or was altered")


def other_taxonomy(path: Path) -> Callable[[], Tagger]:
    def load() -> Tagger:
        tagger = Tagger.load(path)
        tagger.taxonomy = msgspec.structs.replace(tagger.taxonomy, name="mine")
        return tagger

    return load


def faulty() -> Tagger:
    raise ZeroDivisionError


def test_a_bundle_that_fails_its_checks_changes_nothing_but_health(old: Path, new: Path) -> None:
    """The old one hears on, and health says why; even a fault of ours does not end the hearing."""
    for load, reason in (damaged, "is damaged"), (other_taxonomy(new), "taxonomy"), (faulty, "ZeroDivision"):
        diary = heard(old, load)
        assert [event.seq for event in diary.of(TagsEvent)] == list(range(11))
        assert len({event.model for event in diary.of(TagsEvent)}) == 1
        assert diary.of(Info) == []
        (health,) = diary.of(Health)
        assert health.bundle.state == "refused"
        assert reason in health.bundle.reason
        Draft202012Validator(json_schema("health")).validate(json.loads(encode(health)))


def test_several_wishes_are_one(old: Path) -> None:
    """Ten hangups while a bundle is being loaded load one more."""
    begun, again, go_on, n = threading.Event(), threading.Event(), threading.Event(), 0

    def load() -> Tagger:
        nonlocal n
        n += 1
        (again if begun.is_set() else begun).set()
        assert go_on.wait(30)
        return Tagger.load(old)

    with Replacement(load) as replacement:
        assert replacement.outcome() is None
        replacement.ask()
        assert begun.wait(30)
        for _ in range(10):
            replacement.ask()
        go_on.set()
        assert again.wait(30)
    assert n == 2
    assert isinstance(replacement.outcome(), Tagger)
    assert replacement.outcome() is None


def test_health_is_due_every_minute(old: Path) -> None:
    """Counted from the last one, whatever it was for."""
    now = [0.0]
    stream = EventStream(Tagger.load(old), sensor="test")
    watch = HealthWatch(stream, monotonic=lambda: now[0])
    assert not watch.due
    now[0] = INTERVAL_S + 5
    assert watch.due
    assert watch.health().uptime_s == INTERVAL_S + 5
    assert not watch.due
    now[0] += INTERVAL_S
    assert watch.due
    watch.health()
    assert not watch.due
    watch.refused("no")
    assert watch.due
    health = watch.health()
    assert health.bundle.state == "refused"
    assert health.rss_mb > 10


def test_memory_is_trimmed_when_something_may_lie_idle(old: Path) -> None:
    """
    minute   1 … 5 … 8 … 68 … 128
    bundle       x   x               another takes over, or is refused
    trimmed  t   t   t    t     t    at first, then, and after an hour
    """
    now, trimmed = [0.0], []
    watch = HealthWatch(
        EventStream(Tagger.load(old), sensor="test"),
        monotonic=lambda: now[0],
        trim=lambda: trimmed.append(round(now[0] / INTERVAL_S)),
    )
    for minute in range(1, 130):
        now[0] = minute * INTERVAL_S
        if minute == 5:
            watch.took_over()
        if minute == 8:
            watch.refused("no")
        watch.health()
    assert trimmed == [1, 5, 8, 68, 128]


# -- the process, under load ---------------------------------------------------------------------------------


def feed(stdin: IO[bytes], stop: threading.Event) -> None:
    """An endless WAV, as fast as it is heard."""
    fmt = struct.pack("<HHIIHH", 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    second = np.random.default_rng(0).integers(-3000, 3000, RATE_HZ, np.int16).tobytes()
    with contextlib.suppress(BrokenPipeError), stdin:
        stdin.write(b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + fmt + b"data\xff\xff\xff\xff")
        while not stop.is_set():
            stdin.write(second)


HANGUP_FIRST = """
import os, signal
from edgetag import cli, loading
load = loading.Loader.load_or_previous
def hung_up(self):
    os.kill(os.getpid(), signal.SIGHUP)
    return load(self)
loading.Loader.load_or_previous = hung_up
cli.main()
"""


def test_a_hangup_while_the_first_bundle_is_loaded_is_a_wish(old: Path, tmp_path: Path) -> None:
    """A reload right after the start does not end the process."""
    street = tmp_path / "street.wav"
    soundfile.write(street, np.random.default_rng(0).normal(0, 0.1, 12 * RATE_HZ), RATE_HZ)
    done = subprocess.run(
        [sys.executable, "-c", HANGUP_FIRST, "replay", street, "--bundle", old],
        start_new_session=True,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def put(bundle: Path, place: Path) -> None:
    """Another bundle in one step, as `edgetag bundle install` puts it: behind a link."""
    link = place.with_name("next")
    link.symlink_to(bundle)
    link.replace(place)


def test_a_hangup_under_load_loses_no_window(old: Path, new: Path, tmp_path: Path) -> None:
    """From a pipe that is never empty: replaced, a damaged one refused, replaced: every window is there."""
    place, broken = tmp_path / "bundle", tmp_path / "broken"
    shutil.copytree(new, broken)
    (broken / "root.onnx").write_bytes(b"no net")
    put(old, place)
    command = [sys.executable, "-m", "edgetag", "replay", "-", "--hop", "1", "--bundle", str(place)]
    models = [Tagger.load(path).bundle.model for path in (old, new)]
    stop = threading.Event()
    events = []
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # no terminal: a hangup is a wish
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        feeder = threading.Thread(target=feed, args=(process.stdin, stop))
        feeder.start()
        try:
            events.append(json.loads(process.stdout.readline()))
            for bundle, n in (new, 0), (broken, 30), (old, 0):
                put(bundle, place)
                process.send_signal(signal.SIGHUP)
                if bundle is broken:
                    assert "is truncated" in process.stderr.readline().decode()
                wanted = models[1] if bundle is new else models[0]
                while (events[-1]["model"] != wanted and bundle is not broken) or n > 0:
                    events.append(json.loads(process.stdout.readline()))
                    n -= 1
                if bundle is new:
                    assert "bundle.replaced" in process.stderr.readline().decode()
        finally:
            stop.set()
            events += map(json.loads, process.stdout)
            feeder.join()
    assert process.returncode == 0
    assert [event["seq"] for event in events] == list(range(len(events)))
    seconds = [np.datetime64(event["start"].rstrip("Z")) for event in events]
    assert all(b - a == np.timedelta64(1, "s") for a, b in pairwise(seconds[:-1]))
    changes = [a["model"] for a, b in pairwise(events) if a["model"] != b["model"]]
    assert changes == models
    assert {event["verdict"] for event in events} == {"tagged"}
