"""The public Python API, and what reaches the nets at all."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetag import Tagger
from edgetag.contract.errors import InputError
from edgetag.contract.event import TagsEvent
from edgetag.tagging.tagger import is_silent
from fakes_bundle import write_bundle

RATE_HZ = 44_100
WINDOW = 10 * RATE_HZ


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    """Hears an engine (0.9) in everything but silence, and a small one at that."""
    path = write_bundle(tmp_path_factory.mktemp("bundle"), [0.9] + [0.1] * 36, {"1": [0.7, 0.1, 0.1, 0.1]})
    return Tagger.load(path)


def noise(n: int, scale: float = 0.1) -> np.ndarray:
    return np.random.default_rng(n).normal(0, scale, n).astype(np.float32)


def starts(events: list[TagsEvent]) -> list[str]:
    return [event.start[17:23] for event in events]


def test_rolling_windows(tagger: Tagger) -> None:
    """
    0    5    10   15   20        a window every hop, the last one ends with the recording
    [---------)
         [---------)
              [---------)
    """
    events = tagger.tag(noise(20 * RATE_HZ), RATE_HZ)
    assert starts(events) == ["00.000", "05.000", "10.000"]
    assert [event.seq for event in events] == [0, 1, 2]


def test_every_second_is_in_some_window(tagger: Tagger) -> None:
    """23 s: the grid's windows end at 20 s, so a last one covers 13–23 s."""
    assert starts(tagger.tag(noise(23 * RATE_HZ), RATE_HZ)) == ["00.000", "05.000", "10.000", "13.000"]


def test_a_fired_branch_is_refined_and_active_tags_are_named(tagger: Tagger) -> None:
    """The cascade's result stands in the event."""
    event = tagger.tag(noise(WINDOW), RATE_HZ)[0]
    assert event.verdict == "tagged"
    assert event.refined == ["1"]
    assert event.fine["1-1"] == pytest.approx(0.7, abs=1e-3)
    assert event.active == ["1", "1-1"]
    assert event.model.startswith("constant@sha256:")


def test_digital_silence_is_never_tagged(tagger: Tagger) -> None:
    """No net is asked: every probability is 0, the level is the floor, the verdict says why."""
    event = tagger.tag(np.zeros(WINDOW), RATE_HZ)[0]
    assert event.verdict == "silent"
    assert set(event.coarse.values()) == set(event.fine.values()) == {0.0}
    assert (event.refined, event.active) == ([], [])
    assert event.level.laeq_db == -120.0


@pytest.mark.parametrize("constant", [0.0, 0.25, -1.0])
def test_a_constant_is_silence(constant: float) -> None:
    """A stuck converter delivers one value: that is no sound either."""
    assert is_silent(np.full(WINDOW, constant, np.float32))


def test_the_faintest_converter_noise_is_not_silence() -> None:
    """One least significant bit of 16 toggling is a quiet room, not a dead wire."""
    assert not is_silent((np.arange(WINDOW) % 2 / 32768).astype(np.float32))


@pytest.mark.parametrize("place", [0, 5_000, WINDOW - 1])
def test_one_sample_is_enough_to_be_no_silence(place: int) -> None:
    """Wherever it is."""
    samples = np.zeros(WINDOW, np.float32)
    samples[place] = 0.1
    assert not is_silent(samples)


def test_a_recording_nearly_a_window_long_is_tagged(tagger: Tagger) -> None:
    """9.5 s: one window, whose `valid` says how much was audio."""
    (event,) = tagger.tag(noise(round(9.5 * RATE_HZ)), RATE_HZ)
    assert event.verdict == "tagged"
    assert event.audio.valid == pytest.approx(0.95)


def test_a_short_recording_is_reported_not_tagged(tagger: Tagger) -> None:
    """3 s: too little audio, and no probability is made up for it."""
    (event,) = tagger.tag(noise(3 * RATE_HZ), RATE_HZ)
    assert event.verdict == "too_little_audio"
    assert (event.coarse, event.fine, event.active) == ({}, {}, [])


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 48_000, 192_000])
def test_any_rate_any_channels(tagger: Tagger, rate_hz: int) -> None:
    """Every rate and channel count gives whole windows."""
    (event,) = tagger.tag(noise(20 * rate_hz).reshape(-1, 2), rate_hz)
    assert event.audio.rate_hz == rate_hz
    assert event.audio.valid == 1.0


def test_integers_and_floats_are_heard_alike(tagger: Tagger) -> None:
    """int16 PCM means the same as the floats it stands for."""
    pcm = (noise(WINDOW) * 32768).astype(np.int16)
    (a,), (b,) = tagger.tag(pcm, RATE_HZ), tagger.tag(pcm / 32768, RATE_HZ)
    assert (a.coarse, a.level) == (b.coarse, b.level)


def test_start_is_a_place_in_the_recording_or_a_time(tagger: Tagger) -> None:
    """From 1970 unless told; otherwise UTC."""
    assert tagger.tag(noise(WINDOW), RATE_HZ)[0].start == "1970-01-01T00:00:00.000Z"
    event = tagger.tag(noise(WINDOW), RATE_HZ, start_utc_s=1_795_341_600.5)[0]
    assert (event.start, event.end) == ("2026-11-22T10:00:00.500Z", "2026-11-22T10:00:10.500Z")


BAD: dict[str, tuple[object, float, str]] = {
    "nothing": (np.empty(0), RATE_HZ, "shape"),
    "three dimensions": (np.zeros((2, 2, 2)), RATE_HZ, "shape"),
    "a NaN": (np.array([0.0, np.nan, 0.0]), RATE_HZ, "index 1"),
    "an infinity in the second channel": (np.array([[0.0, 0.0], [0.0, np.inf]]), RATE_HZ, "index 1"),
    "32-bit integers": (np.zeros(10, np.int32), RATE_HZ, "int32"),
    "text": (np.array(["a"]), RATE_HZ, "samples are"),
    "a number beyond sense": (np.array([0.0, 1e30]), RATE_HZ, "index 1"),
    "ragged lists": ([[1.0], [1.0, 2.0]], RATE_HZ, "no array"),
    "no rate": (np.zeros(10), 0, "sample rate is 0"),
    "a rate that is no number": (np.zeros(10), float("nan"), "sample rate is nan"),
    "half a hertz": (np.zeros(10), 44_100.5, "whole number"),
    "a rate in words": (np.zeros(10), "44100", "whole number"),
    "a telephone's half": (np.zeros(10), 2000, "2000 Hz"),
}


@pytest.mark.parametrize(("samples", "rate_hz", "sentence"), BAD.values(), ids=BAD.keys())
def test_samples_that_mean_nothing_are_refused(
    tagger: Tagger, samples: object, rate_hz: int, sentence: str
) -> None:
    """One sentence with what was found."""
    with pytest.raises(InputError, match=sentence):
        tagger.tag(samples, rate_hz)  # type: ignore[arg-type]


@pytest.mark.parametrize("hop_s", [0.0, -1.0, 0.01, float("nan"), float("inf")])
def test_a_hop_goes_forward(tagger: Tagger, hop_s: float) -> None:
    """A hop is a positive, finite number of seconds."""
    with pytest.raises(InputError, match="hop"):
        tagger.tag(noise(WINDOW), RATE_HZ, hop_s=hop_s)


@settings(max_examples=10, deadline=None)
@given(seconds=st.integers(10, 40), hop_s=st.sampled_from([2.5, 5.0, 10.0]))
def test_windows_cover_the_recording(seconds: int, hop_s: float) -> None:
    """The first starts with it, the last ends with it, no step is longer than the hop."""
    events = _engine().tag(noise(seconds * 4000), 4000, hop_s=hop_s)
    begin = [float(event.start[14:16]) * 60 + float(event.start[17:23]) for event in events]
    assert begin[0] == 0
    assert begin[-1] == seconds - 10
    assert max(np.diff(begin), default=0) <= hop_s


_loaded: list[Tagger] = []


def _engine() -> Tagger:
    if not _loaded:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            _loaded.append(Tagger.load(write_bundle(Path(folder), [0.9] + [0.1] * 36)))
    return _loaded[0]


@pytest.mark.parametrize("start_utc_s", [-1.0, 1e12, float("nan")])
def test_a_start_is_a_time_that_can_be_written(tagger: Tagger, start_utc_s: float) -> None:
    """RFC 3339 has four digits for the year."""
    with pytest.raises(InputError, match="1970 to 9998"):
        tagger.tag(noise(WINDOW), RATE_HZ, start_utc_s=start_utc_s)


def test_numpys_numbers_are_numbers(tagger: Tagger) -> None:
    """A rate read from an array gives events that can be written."""
    (event,) = tagger.tag(noise(WINDOW), np.int64(RATE_HZ))
    assert msgspec.json.decode(msgspec.json.encode(event))["audio"]["rate_hz"] == RATE_HZ


def test_events_are_typed_structs(tagger: Tagger) -> None:
    """What `tag` returns is what the wire carries."""
    (event,) = tagger.tag(noise(WINDOW), RATE_HZ)
    assert isinstance(event, TagsEvent)
    assert msgspec.json.decode(msgspec.json.encode(event), type=TagsEvent) == event


@pytest.mark.shared
def test_the_starter_names_real_streets_more_often_than_not(shared: Path) -> None:
    """On most of the held-out recordings more than half of the tags present are named."""
    evaluate = pytest.importorskip("edgetag_train.evaluate")
    found = evaluate.score_bundle(Tagger.load(), shared / "audio", "validate")
    stated = Tagger.load().bundle.manifest.metrics
    assert found["mostly_named"] > 0.5
    assert found["coarse_micro_auprc"] == pytest.approx(stated["coarse_micro_auprc"], abs=0.01)
