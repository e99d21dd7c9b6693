"""The data path itself: source in, events out, whatever breaks on the way."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgetag import Tagger
from edgetag.capture.source import Block, DamagedAudio
from edgetag.contract.event import TagsEvent
from edgetag.daemon import real_time, run
from edgetag.delivery.sink import Sink, Tee
from edgetag.tagging.stream import EventStream
from fakes import tags_event
from fakes_bundle import write_bundle
from fakes_capture import ListSource, cut

RATE_HZ = 8000
HOP = 5 * 44_100


class Kept(Sink):
    """Keeps what it gets, and notes when it was entered and left."""

    def __init__(self, diary: list[str], name: str = "sink") -> None:
        self.events: list[TagsEvent] = []
        self._diary, self._name = diary, name

    def __enter__(self) -> "Kept":
        self._diary.append(f"enter {self._name}")
        return self

    def __exit__(self, *_: object) -> None:
        self._diary.append(f"leave {self._name}")

    def deliver(self, event: TagsEvent) -> None:
        self._diary.append(f"{self._name} {event.seq}")
        self.events.append(event)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return Tagger.load(write_bundle(tmp_path_factory.mktemp("bundle"), [0.9] + [0.1] * 36))


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (round(seconds * RATE_HZ), 1)).astype(np.float32)


def heard(tagger: Tagger, source: object) -> list[TagsEvent]:
    sink = Kept([])
    stream = EventStream(tagger, sensor="test", clock_synced=lambda: True)
    run(source, stream, sink, hop_samples=HOP, start_utc_s=0.0, label="street")  # type: ignore[arg-type]
    return sink.events


def content(events: list[TagsEvent]) -> list[object]:
    """All but the wall clock's fields."""
    return [(e.seq, e.start, e.end, e.verdict, e.audio, e.level, e.coarse, e.fine, e.refined) for e in events]


def test_any_chunking_gives_the_same_events(tagger: Tagger) -> None:
    """Live and replay run the same code: the same samples in any blocks, bit for bit, and in `tag`."""
    samples = noise(20)
    whole = heard(tagger, ListSource(cut(samples, [len(samples)]), RATE_HZ))
    rng = np.random.default_rng(1)
    for _ in range(3):
        sizes = rng.integers(1, 20_000, 200).tolist()
        assert content(heard(tagger, ListSource(cut(samples, sizes), RATE_HZ))) == content(whole)
    assert content(tagger.tag(samples, RATE_HZ)) == content(whole)


def test_lost_audio_is_in_the_events(tagger: Tagger) -> None:
    """
    0 ......... 8  lost  9 .................. 20    a second lost: `valid` 0.9, one overrun, until it is past
    """
    samples = noise(20)
    blocks = [Block(0, samples[: 8 * RATE_HZ]), Block(9 * RATE_HZ, samples[9 * RATE_HZ :])]
    events = heard(tagger, ListSource(blocks, RATE_HZ))
    assert [event.audio.overruns for event in events] == [1, 1, 0]
    assert [event.audio.valid for event in events] == pytest.approx([0.9, 0.9, 1.0], abs=1e-3)


def test_damage_is_raised_after_what_came_before_was_delivered(tagger: Tagger) -> None:
    """Nothing already captured is lost."""

    class Breaks(ListSource):
        def blocks(self) -> Iterator[Block]:
            yield from super().blocks()
            raise DamagedAudio("street", 12.0, "where 30.00 s are expected")

    sink = Kept([])
    source = Breaks(cut(noise(12), [RATE_HZ] * 12), RATE_HZ)
    with pytest.raises(DamagedAudio):
        run(source, EventStream(tagger, sensor="test"), sink, hop_samples=HOP, start_utc_s=0.0)
    assert [event.start[17:19] for event in sink.events] == ["00", "02"]


def test_a_paced_replay_waits_for_each_blocks_last_frame() -> None:
    """Held back until it would have been heard, never more."""
    slept: list[float] = []
    hold = real_time(RATE_HZ, sleep=slept.append)
    hold(Block(0, noise(1)))
    hold(Block(RATE_HZ, noise(2)))
    assert slept == pytest.approx([1.0, 3.0], abs=0.2)


def test_a_tee_hands_on_in_order_and_leaves_in_reverse() -> None:
    """Entered in order, each event to each, left in reverse."""
    diary: list[str] = []
    with Tee([Kept(diary, "a"), Kept(diary, "b")]) as tee:
        tee.deliver(tags_event(7))
    assert diary == ["enter a", "enter b", "a 7", "b 7", "leave b", "leave a"]


def test_a_tee_leaves_what_it_entered_when_the_next_refuses() -> None:
    """A broker that refuses leaves no file open."""

    class Refuses(Kept):
        def __enter__(self) -> "Refuses":
            raise OSError("no")

    diary: list[str] = []
    with pytest.raises(OSError, match="no"):
        Tee([Kept(diary, "a"), Refuses(diary)]).__enter__()
    assert diary == ["enter a", "leave a"]


def test_a_bundle_path_may_be_text(tmp_path: Path) -> None:
    """`Tagger.load` takes a path or its text."""
    assert Tagger.load(str(write_bundle(tmp_path, [0.1] * 37))).bundle.manifest.name == "constant"
