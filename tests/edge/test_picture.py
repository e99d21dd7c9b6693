"""What a picture shows: the spectrogram's decibels and times, where windows are drawn, what a portrait has.

Windows are drawn as lines of text; a dot is a second in which nothing is drawn.
"""

import io
from contextlib import suppress
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetag.capture.source import Block
from edgetag.contract.event import Audio, Level, timestamp
from edgetag.contract.manifest import Manifest
from edgetag.picture.portrait import Model, Portrait, Sitting
from edgetag.picture.spectrogram import FLOOR_DB, Spectrogram, Spectrograph
from edgetag.picture.timeline import Heard, Timeline, cells
from edgetag.tagging.bundle import load_bundle
from fakes import START_UTC_S, bundle_info, sound_event, tags_event
from fakes_bundle import write_bundle

RATES_HZ = [8000, 44_100, 48_000, 96_000]


def spectrogram(
    samples: np.ndarray, rate_hz: int = 44_100, chunk: int = 44_100, columns: int = 2000
) -> Spectrogram:
    graph = Spectrograph(rate_hz, max_columns=columns)
    for first in range(0, len(samples), chunk):
        graph(Block(first, samples[first : first + chunk].reshape(-1, 1)))
    return graph.finish()


def tone(hz: float, seconds: float, rate_hz: int = 44_100) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


def noise(seconds: float, rate_hz: int = 44_100, scale: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, scale, round(seconds * rate_hz)).astype(np.float32)


def power_db(found: Spectrogram) -> np.ndarray:
    """Of all bands together, by column."""
    return 10 * np.log10((10 ** (found.db.astype(float) / 10)).sum(axis=0))


# -- the spectrogram -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_a_full_scale_sine_reads_its_level_in_its_band(rate_hz: int) -> None:
    found = spectrogram(tone(1000, 3, rate_hz), rate_hz)
    middle = found.db[:, found.db.shape[1] // 2]
    assert abs(found.band_of(1000) - middle.argmax()) <= 1
    assert power_db(found)[5:-5] == pytest.approx(10 * np.log10(0.5), abs=0.1)


def test_noise_reads_its_level_over_all_bands() -> None:
    """The bands are shares of the mean square: all of them are nearly all of it."""
    assert np.mean(power_db(spectrogram(noise(5)))[5:-5]) == pytest.approx(-20, abs=0.3)


def test_faint_and_loud_are_told_apart_by_their_decibels_not_by_their_own_maximum() -> None:
    faint, loud = (spectrogram(noise(3, scale=scale)).db for scale in (0.001, 0.1))
    assert np.median(loud - faint) == pytest.approx(40, abs=0.01)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_every_band_has_a_share_and_a_frequency_is_in_the_band_that_has_it(rate_hz: int) -> None:
    found = spectrogram(noise(1, rate_hz), rate_hz)
    assert np.isfinite(found.db).all()
    assert found.db.min() > FLOOR_DB
    assert [found.band_of(hz) for hz in found.centres_hz()] == pytest.approx(range(len(found.db)))


@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=12))
@settings(deadline=None, max_examples=25)
def test_the_same_frames_in_any_chunking_give_the_same_spectrogram(sizes: list[int]) -> None:
    samples = noise(1.5)
    graph, first = Spectrograph(44_100), 0
    for size in [*sizes, len(samples)]:
        graph(Block(first, samples[first : first + size].reshape(-1, 1)))
        first = min(first + size, len(samples))
    np.testing.assert_allclose(graph.finish().db, spectrogram(samples, chunk=len(samples)).db, atol=1e-3)


@pytest.mark.parametrize("how", ["skipped", "not finite", "not finite in blocks of its own"])
def test_what_was_lost_is_unknown_and_nothing_moves_for_it(how: str) -> None:
    """
    heard      ~~~~~~~~..........~~~~~~~~~~
    """
    samples = np.concatenate([noise(2), np.full(3 * 44_100, np.nan, np.float32), tone(1000, 2)])
    if how == "skipped":
        graph = Spectrograph(44_100)
        graph(Block(0, samples[: 2 * 44_100, None]))
        graph(Block(5 * 44_100, samples[5 * 44_100 :, None]))
        found = graph.finish()
    else:
        found = spectrogram(samples, chunk=44_100 if "own" in how else 70_000)
    lost = np.isnan(found.db).all(axis=0)
    starts = np.arange(found.db.shape[1]) * found.column_s
    assert (lost == np.isnan(found.db).any(axis=0)).all()
    assert not lost[starts < 1.9].any()
    assert lost[(starts > 2.1) & (starts < 4.9)].all()
    assert not lost[starts > 5.1].any()
    assert abs(found.db[:, starts > 5.5].mean(axis=1).argmax() - found.band_of(1000)) <= 1


def test_nothing_but_lost_audio_is_a_spectrogram_of_unknowns() -> None:
    found = spectrogram(np.full(44_100, np.nan, np.float32))
    assert np.isnan(found.db).all()
    assert found.range_db()[0] < found.range_db()[1]


@pytest.mark.parametrize("seconds", [0.01, 0.3, 5.0, 23.0])
def test_however_long_it_is_columns_stay_few_and_their_mean_is_the_same(seconds: float) -> None:
    samples = noise(seconds)
    few, many = spectrogram(samples, columns=32), spectrogram(samples, columns=4000)
    assert few.db.shape[1] <= 32
    assert 0 <= few.duration_s - seconds <= 2 * few.column_s
    powers = [np.nanmean(10 ** (found.db.astype(float) / 10)) for found in (few, many)]
    assert powers[0] == pytest.approx(powers[1], rel=0.2 if seconds < 1 else 0.02)


def test_silence_is_the_floor() -> None:
    found = spectrogram(np.zeros(44_100, np.float32))
    assert (found.db == FLOOR_DB).all()
    low, high = found.range_db()
    assert low == FLOOR_DB < high


# -- where windows are drawn ---------------------------------------------------------------------------------


def heard(start_s: float, end_s: float, **changes: object) -> Heard:
    plain = Heard(start_s, end_s, "tagged", 1.0, -30.0, -20.0, -40.0, {"1": 0.1}, frozenset(), frozenset())
    return replace(plain, **changes)


def drawn(windows: list[Heard], seconds: int) -> str:
    """Which window, by letter, is drawn in each second."""
    line = ["."] * seconds
    for index, (start, end) in enumerate(cells(windows)):
        line[round(start) : round(end)] = chr(ord("a") + index) * (round(end) - round(start))
    return "".join(line)


def test_each_moment_shows_the_window_whose_middle_is_nearest() -> None:
    assert drawn([heard(0, 10), heard(4, 14), heard(8, 18)], 18) == "aaaaaaa" + "bbbb" + "ccccccc"


def test_without_overlap_each_window_is_drawn_where_it_is() -> None:
    assert (
        drawn([heard(0, 10), heard(10, 20), heard(24, 34)], 36)
        == "a" * 10 + "b" * 10 + "...." + "c" * 10 + ".."
    )


@given(st.lists(st.floats(0.05, 30), min_size=0, max_size=30))
def test_windows_are_drawn_within_themselves_in_order_and_together_all_of_them(hops: list[float]) -> None:
    windows = [heard(start, start + 10) for start in np.cumsum([0, *hops]).tolist()]
    spans = cells(windows)
    for window, (start, end) in zip(windows, spans, strict=True):
        assert window.start_s <= start <= window.middle_s <= end <= window.end_s
    for (_, end), (start, _), window in zip(spans, spans[1:], windows[1:], strict=False):
        assert end <= start
        assert end == start or start == window.start_s


@given(st.integers(0, 200))
@settings(deadline=None)
def test_too_many_windows_become_fewer_and_no_sound_is_lost(n: int) -> None:
    """Time is covered as before; every probability's peak and every active tag are still there."""
    timeline = Timeline(max_windows=8)
    for k in range(n):
        timeline.add(heard(5 * k, 5 * k + 10, probability={"1": k / 200}, active=frozenset([str(k)])))
    windows = timeline.windows()
    assert len(windows) <= 8
    assert frozenset().union(*(w.active for w in windows)) == {str(k) for k in range(n)}
    if n:
        assert (windows[0].start_s, windows[-1].end_s) == (0, 5 * (n - 1) + 10)
        assert max(w.probability["1"] for w in windows) == (n - 1) / 200


def test_of_windows_made_one_the_level_is_that_of_their_power() -> None:
    timeline = Timeline(max_windows=2)
    for level in (-20.0, -120.0):
        timeline.add(heard(0, 10, laeq_db=level, lafmax_db=level, la90_db=level))
    (one,) = timeline.windows()
    assert (one.laeq_db, one.lafmax_db, one.la90_db) == (-23.01, -20.0, -120.0)


# -- a portrait ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = write_bundle(tmp_path_factory.mktemp("bundle"), [0.9] + [0.1] * 36, {"1": [0.7, 0.1, 0.1, 0.1]})
    return load_bundle(folder).manifest


def sit(
    manifest: Manifest, *events: object, seconds: float = 30, name: str = "a.wav", lost: bool = False
) -> Portrait:
    """What is drawn of a recording with these windows and sounds."""
    portraits: list[Portrait] = []
    sitting = Sitting(Model(bundle_info(), manifest), lambda _, portrait: portraits.append(portrait))
    with sitting.of("a", name, START_UTC_S, is_dated=False):
        samples = noise(seconds)
        if lost:
            samples[44_100 : 6 * 44_100] = np.nan
        sitting.listener(44_100)(Block(0, samples[:, None]))
        for event in events:
            (sitting.deliver if hasattr(event, "verdict") else sitting.sound)(event)
    (portrait,) = portraits
    return portrait


def test_windows_and_sounds_are_placed_in_the_recording_and_end_with_it(manifest: Manifest) -> None:
    end = sound_event(1, kind="end", start=timestamp(START_UTC_S + 10), end=timestamp(START_UTC_S + 30))
    portrait = sit(manifest, tags_event(0), tags_event(1), tags_event(2), sound_event(1), end, seconds=29.5)
    assert portrait.cells == [(0, 10), (10, 20), (20, 29.5)]
    assert [(sound.start_s, sound.end_s) for sound in portrait.sounds] == [(10, 29.5)]


def test_a_kind_has_a_row_if_it_is_active_or_the_likeliest_where_a_branch_found_none(
    manifest: Manifest,
) -> None:
    active = sit(manifest, tags_event(0))  # human voice was refined, talking is active
    unsure = sit(manifest, tags_event(0, active=["7"]))
    unheard = sit(manifest, tags_event(0, active=[], refined=[]))
    single = sit(manifest, tags_event(0, active=["8", "8-1"], refined=[]))
    assert [[tag.id for tag in portrait.fine_tags] for portrait in (active, unsure, unheard, single)] == [
        ["7-1"],
        ["7-1"],
        [],
        [],
    ]


def test_nothing_heard_is_nothing_drawn(manifest: Manifest) -> None:
    taken: list[Portrait] = []
    sitting = Sitting(Model(bundle_info(), manifest), lambda _, portrait: taken.append(portrait))
    with sitting.of("a", "a", 0.0, is_dated=False):
        sitting.listener(44_100)
    assert taken == []


def test_what_breaks_off_is_drawn_as_far_as_it_was_heard(manifest: Manifest) -> None:
    taken: list[Portrait] = []
    sitting = Sitting(Model(bundle_info(), manifest), lambda _, portrait: taken.append(portrait))
    with suppress(KeyboardInterrupt), sitting.of("a", "a", START_UTC_S, is_dated=True):
        sitting.listener(44_100)(Block(0, noise(12)[:, None]))
        sitting.deliver(tags_event(0))
        raise KeyboardInterrupt
    assert [(portrait.is_whole, portrait.duration_s) for portrait in taken] == [(False, 12.0)]


# -- by Matplotlib -------------------------------------------------------------------------------------------


def plotted(portrait: Portrait, format: str = "png") -> bytes:
    from edgetag.picture.plot import draw

    stream = io.BytesIO()
    draw(portrait, stream, format)
    return stream.getvalue()


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return np.round(imread(io.BytesIO(png))[:, :, :3] * 255).astype(int)


def n_of(colour: str, picture: np.ndarray) -> int:
    rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return int((picture == rgb).all(axis=2).sum())


def test_a_picture_is_fourteen_hundred_pixels_wide_whatever_it_shows(manifest: Manifest) -> None:
    for events in ([tags_event(0)], [tags_event(k) for k in range(160)]):
        assert pixels(plotted(sit(manifest, *events))).shape[1] == 1400


def test_audio_that_is_missing_is_grey_and_only_that(manifest: Manifest) -> None:
    from edgetag.picture.plot import LOST

    events = [tags_event(k) for k in range(3)]
    whole, lost = (n_of(LOST, pixels(plotted(sit(manifest, *events, lost=lost)))) for lost in (False, True))
    assert whole < 100
    assert lost > 20_000  # a sixth of the spectrogram


@pytest.mark.parametrize("verdict", ["silent", "quiet", "too_little_audio"])
def test_a_window_that_was_not_tagged_has_no_colour_of_a_probability(
    manifest: Manifest, verdict: str
) -> None:
    from edgetag.picture.plot import PALE

    tagged = [tags_event(k) for k in range(3)]
    untagged = tags_event(1, verdict=verdict, coarse={}, fine={}, refined=[], active=[])
    pictures = (plotted(sit(manifest, *events)) for events in (tagged, [tagged[0], untagged, tagged[2]]))
    pale = [n_of(PALE, pixels(picture)) for picture in pictures]
    assert pale[1] - pale[0] > 10_000


@pytest.mark.parametrize(
    "name", ["$x_{1}$.wav", "\\frac{a}", "街の音.wav", "a" * 400, "a\x1b[2Jb.wav", "<b>&amp;.wav"]
)
def test_any_name_can_be_drawn(manifest: Manifest, name: str) -> None:
    ElementTree.fromstring(plotted(sit(manifest, tags_event(0), name=name), "svg"))


def test_formats(manifest: Manifest) -> None:
    portrait = sit(manifest, tags_event(0))
    assert plotted(portrait, "png").startswith(b"\x89PNG")
    assert plotted(portrait, "pdf").startswith(b"%PDF")
    assert b"<svg" in plotted(portrait, "svg")


def test_a_picture_is_the_same_every_time(manifest: Manifest) -> None:
    portrait = sit(manifest, tags_event(0))
    assert plotted(portrait) == plotted(portrait)


@given(
    st.lists(st.sampled_from(["tagged", "silent", "quiet", "too_little_audio"]), min_size=1, max_size=4),
    st.floats(-120, 130),
    st.floats(0.3, 40),
    st.booleans(),
)
@settings(deadline=None, max_examples=3)
def test_whatever_was_heard_can_be_drawn(
    manifest: Manifest, verdicts: list[str], level_db: float, seconds: float, is_calibrated: bool
) -> None:
    events = [
        tags_event(
            seq,
            verdict=verdict,
            audio=Audio(44_100, 0.5, 1, 0.0),
            level=Level(level_db, level_db, level_db, level_db, is_calibrated),
            **({} if verdict == "tagged" else {"coarse": {}, "fine": {}, "refined": [], "active": []}),
        )
        for seq, verdict in enumerate(verdicts)
    ]
    assert plotted(sit(manifest, *events, seconds=seconds))
