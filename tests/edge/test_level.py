"""Levels: A-weighting and fast time weighting as IEC 61672-1 has them, of what was heard and nothing else."""

import math

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetag.contract.event import Level
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.dsp import level as level_module
from edgetag.dsp.fourier import rfft
from edgetag.dsp.level import FAST_S, FLOOR_DBFS, LevelMeter, a_weighting

T = np.arange(WINDOW_SAMPLES) / SAMPLE_RATE_HZ
FULL_SCALE_SINE_DB = -3.01
METER = LevelMeter()
Lost = list[tuple[int, int]]

# IEC 61672-1:2013, table 3: nominal frequency, A-weighting, class 1 acceptance limits (dB). Weightings are of
# the exact mid-band frequencies, 1000 * 10**(n/10) Hz, n = −20 … 13, and are given to a tenth of a decibel.
TABLE_3 = [
    (10, -70.4, 3.0, -math.inf),
    (12.5, -63.4, 2.5, -math.inf),
    (16, -56.7, 2.0, -4.0),
    (20, -50.5, 2.0, -2.0),
    (25, -44.7, 2.0, -1.5),
    (31.5, -39.4, 1.5, -1.5),
    (40, -34.6, 1.0, -1.0),
    (50, -30.2, 1.0, -1.0),
    (63, -26.2, 1.0, -1.0),
    (80, -22.5, 1.0, -1.0),
    (100, -19.1, 1.0, -1.0),
    (125, -16.1, 1.0, -1.0),
    (160, -13.4, 1.0, -1.0),
    (200, -10.9, 1.0, -1.0),
    (250, -8.6, 1.0, -1.0),
    (315, -6.6, 1.0, -1.0),
    (400, -4.8, 1.0, -1.0),
    (500, -3.2, 1.0, -1.0),
    (630, -1.9, 1.0, -1.0),
    (800, -0.8, 1.0, -1.0),
    (1000, 0.0, 0.7, -0.7),
    (1250, 0.6, 1.0, -1.0),
    (1600, 1.0, 1.0, -1.0),
    (2000, 1.2, 1.0, -1.0),
    (2500, 1.3, 1.0, -1.0),
    (3150, 1.2, 1.0, -1.0),
    (4000, 1.0, 1.0, -1.0),
    (5000, 0.5, 1.5, -1.5),
    (6300, -0.1, 1.5, -2.0),
    (8000, -1.1, 1.5, -2.5),
    (10000, -2.5, 2.0, -3.0),
    (12500, -4.3, 2.0, -5.0),
    (16000, -6.6, 2.5, -16.0),
    (20000, -9.3, 3.0, -math.inf),
]

# Ibid., table 4: duration of a burst of 4 kHz in ms, LAFmax below the steady tone's, class 1 limits (dB).
TABLE_4 = [
    (1000, 0.0, 0.5, -0.5),
    (500, -0.1, 0.5, -0.5),
    (200, -1.0, 0.5, -0.5),
    (100, -2.6, 1.0, -1.0),
    (50, -4.8, 1.0, -1.0),
    (20, -8.3, 1.0, -1.0),
    (10, -11.1, 1.0, -1.0),
    (5, -14.1, 1.0, -1.0),
    (2, -18.0, 1.0, -1.5),
    (1, -21.0, 1.0, -2.0),
    (0.5, -24.0, 1.0, -2.5),
    (0.25, -27.0, 1.0, -3.0),
]


def tone(hz: float, start_s: float = 0, end_s: float = 10) -> NDArray[np.float32]:
    sounding = (start_s <= T) & (end_s > T)
    return (np.sin(2 * np.pi * hz * (T - start_s)) * sounding).astype(np.float32)


def noise(seed: int = 0, rms: float = 0.05) -> NDArray[np.float32]:
    """A street's spectrum, more or less: 3 dB less in each octave, from 20 Hz on."""
    hz = np.fft.rfftfreq(WINDOW_SAMPLES, 1 / SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(0, 1, WINDOW_SAMPLES)) / np.sqrt(hz + 20)
    samples = np.fft.irfft(spectrum, WINDOW_SAMPLES)
    return (samples * rms / samples.std()).astype(np.float32)


def figures(level: Level) -> tuple[float, float, float, float]:
    return level.laeq_db, level.lafmax_db, level.la10_db, level.la90_db


def without(samples: NDArray[np.float32], lost: Lost) -> NDArray[np.float32]:
    """As a `Windower` has it: zeros where audio was lost."""
    left = samples.copy()
    for start, end in lost:
        left[start:end] = 0
    return left


def meter(samples: NDArray[np.float32], lost: Lost) -> Level:
    return METER(without(samples, lost), lost)


def lost_ranges(min_heard: int = 0) -> st.SearchStrategy[Lost]:
    """Up to four ranges in order, which may touch; at least `min_heard` samples are not in them."""
    borders = st.lists(st.integers(0, WINDOW_SAMPLES), max_size=8).map(sorted)
    ranges = borders.map(lambda at: list(zip(at[::2], at[1::2], strict=False)))
    return ranges.filter(lambda lost: WINDOW_SAMPLES - sum(end - start for start, end in lost) >= min_heard)


# -- the standard's tables -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "weight_db", "upper_db", "lower_db"),
    [(n, *row[1:]) for n, row in enumerate(TABLE_3, start=-20)],
    ids=[f"{row[0]} Hz" for row in TABLE_3],
)
def test_a_tone_reads_its_a_weighting(n: int, weight_db: float, upper_db: float, lower_db: float) -> None:
    """LAeq of a full-scale sine is −3.01 dB plus the standard's weighting: inside class 1, and as printed.

    Where the weighting is below −50 dB, the tone weighs less than that it begins and ends with the window.
    """
    level = METER(tone(1000 * 10 ** (n / 10)))
    difference_db = level.laeq_db - (FULL_SCALE_SINE_DB + weight_db)
    assert lower_db <= difference_db <= upper_db
    if weight_db > -50:
        assert difference_db == pytest.approx(0, abs=0.065)  # the table's rounding, and ours


@pytest.mark.parametrize(("n", "weight_db"), [(n, row[1]) for n, row in enumerate(TABLE_3, start=-20)])
def test_the_curve_is_the_tables(n: int, weight_db: float) -> None:
    """To the tenth of a decibel in which it is printed."""
    gain = a_weighting(np.array([1000 * 10 ** (n / 10)]))[0]
    assert 20 * math.log10(gain) == pytest.approx(weight_db, abs=0.0501)


@pytest.mark.parametrize("start_s", [0.0, 0.12345, 5.0, 8.9])
@pytest.mark.parametrize(("duration_ms", "below_db", "upper_db", "lower_db"), TABLE_4)
def test_a_burst_reads_the_standards_fast_response(
    start_s: float, duration_ms: float, below_db: float, upper_db: float, lower_db: float
) -> None:
    """A burst of 4 kHz reads 10 lg(1 − e^(−t/τ)) below the steady tone, wherever it is in the window."""
    burst = METER(tone(4000, start_s, start_s + duration_ms / 1000))
    difference_db = burst.lafmax_db - METER(tone(4000)).lafmax_db
    assert lower_db <= difference_db - below_db <= upper_db
    if duration_ms >= 2:  # a shorter one is a click, much of which is not at 4 kHz
        exact_db = 10 * math.log10(-math.expm1(-duration_ms / 1000 / FAST_S))
        assert difference_db == pytest.approx(exact_db, abs=0.1)


@pytest.mark.parametrize("stops_s", [7.5, 8.0, 8.5])
def test_the_fast_average_decays_as_the_standard_wants(stops_s: float) -> None:
    """IEC 61672-1, 5.8: 34.7 dB/s when a tone stops. The quietest tenth begins at 9 s, where LA90 is read."""
    level = METER(tone(1000, 0, stops_s))
    assert level.la90_db == pytest.approx(FULL_SCALE_SINE_DB - (9 - stops_s) * 34.74, abs=0.1)


# -- bursts, percentiles ---------------------------------------------------------------------------------


def test_a_steady_tone_reads_the_same_in_every_figure() -> None:
    """LAeq = LAFmax = LA10 = LA90 to 0.05 dB."""
    assert figures(METER(tone(1000))) == pytest.approx((FULL_SCALE_SINE_DB,) * 4, abs=0.05)


@pytest.mark.parametrize("start_s", [0.0, 4.5, 9.5])
def test_a_burst_counts_the_same_wherever_it_is(start_s: float) -> None:
    """Half a second of tone: LAeq 13.01 dB down, LAFmax 0.08 dB (1 − e^(−t/τ)), at start, middle, end."""
    level = METER(tone(1000, start_s, start_s + 0.5))
    assert level.laeq_db == pytest.approx(FULL_SCALE_SINE_DB - 13.01, abs=0.02)
    assert level.lafmax_db == pytest.approx(FULL_SCALE_SINE_DB - 0.08, abs=0.05)


@pytest.mark.parametrize("start_s", [0.0, 3.0, 7.0])
def test_a_long_burst_counts_the_same_in_every_figure(start_s: float) -> None:
    """Three seconds, 40 dB above the rest: LA10 is the burst's level and LA90 the rest's, wherever it is."""
    samples = tone(1000, start_s, start_s + 3) + np.float32(0.01) * tone(1000)
    level = METER(samples)
    assert level.laeq_db == pytest.approx(FULL_SCALE_SINE_DB + 10 * math.log10(0.3), abs=0.2)
    assert level.lafmax_db == pytest.approx(FULL_SCALE_SINE_DB + 20 * math.log10(1.01), abs=0.05)
    assert level.la10_db == pytest.approx(FULL_SCALE_SINE_DB + 20 * math.log10(1.01), abs=0.05)
    assert level.la90_db == pytest.approx(FULL_SCALE_SINE_DB - 40, abs=0.05)


def slow_figures(power: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """The oracle: from A-weighted squares, one by one; for percentiles the average's weights sum to 1."""
    decay = math.exp(-1 / (FAST_S * SAMPLE_RATE_HZ))
    fast = scipy.signal.lfilter([1 - decay], [1, -decay], power)
    la90, la10 = np.percentile(fast / (1 - decay ** np.arange(1, len(power) + 1)), [10, 90])
    return tuple(10 * np.log10([power.mean(), fast.max(), la10, la90]))


def slow_power(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """A-weighted squares by one transform of the window, in double precision, between its two end samples."""
    pad = SAMPLE_RATE_HZ
    padded = np.pad(samples.astype(np.float64), pad, mode="edge")
    weights = a_weighting(np.fft.rfftfreq(len(padded), 1 / SAMPLE_RATE_HZ))
    return np.square(np.fft.irfft(np.fft.rfft(padded) * weights, len(padded)))[pad:-pad]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), swing=st.floats(0, 3))
def test_the_figures_are_the_slow_ones(seed: int, swing: float) -> None:
    """Of a noise that rises and falls: every figure as from sample to sample."""
    samples = noise(seed) * np.exp(swing * np.sin(2 * np.pi * 0.37 * T + seed % 7)).astype(np.float32)
    assert figures(METER(samples)) == pytest.approx(slow_figures(slow_power(samples)), abs=0.02)


def test_laeq_is_that_of_a_filter_in_the_time_domain() -> None:
    """The analogue filter of annex E, made digital by the bilinear transform at sixteen times the rate.

    Of noise without its lowest and highest octaves, where such a filter is not yet exact.
    """
    over = 16
    hz = np.fft.rfftfreq(WINDOW_SAMPLES, 1 / SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(noise().astype(np.float64)) * ((hz > 30) & (hz < 15_000))
    samples = np.fft.irfft(spectrum, WINDOW_SAMPLES)
    fine = np.fft.irfft(spectrum, WINDOW_SAMPLES * over) * over
    zeros, poles = [0] * 4, -2 * np.pi * np.array([20.598997] * 2 + [107.65265, 737.86223] + [12194.217] * 2)
    digital = scipy.signal.bilinear_zpk(zeros, poles, 1.0, SAMPLE_RATE_HZ * over)
    sections = scipy.signal.zpk2sos(*digital)
    sections[0, :3] /= abs(scipy.signal.sosfreqz(sections, [1000], fs=SAMPLE_RATE_HZ * over)[1][0])
    weighted = scipy.signal.sosfilt(sections, np.concatenate([fine, fine]))[len(fine) :]  # it is periodic
    expected_db = 10 * math.log10(np.mean(weighted**2))
    assert METER(samples.astype(np.float32)).laeq_db == pytest.approx(expected_db, abs=0.02)


# -- laws ------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(seed=st.integers(0, 9), gain_db=st.floats(-60, 60), lost=lost_ranges(min_heard=SAMPLE_RATE_HZ))
def test_a_gain_is_added_to_every_figure(seed: int, gain_db: float, lost: Lost) -> None:
    """In decibels, with gaps or without."""
    samples = noise(seed)
    louder = samples * np.float32(10 ** (gain_db / 20))
    expected = [figure + gain_db for figure in figures(meter(samples, lost))]
    assert figures(meter(louder, lost)) == pytest.approx(expected, abs=0.011)


@settings(max_examples=20)
@given(seed=st.integers(0, 99), step=st.floats(0.01, 1))
def test_the_order_of_two_halves_does_not_matter_to_laeq(seed: int, step: float) -> None:
    """Energy has no order."""
    first, second = np.split(noise(seed) * np.where(T < 5, 1, step).astype(np.float32), 2)
    there, back = METER(np.concatenate([first, second])), METER(np.concatenate([second, first]))
    assert there.laeq_db == pytest.approx(back.laeq_db, abs=0.02)


def test_backwards_has_the_same_laeq() -> None:
    """Nor has it a direction."""
    assert METER(noise()[::-1]).laeq_db == pytest.approx(METER(noise()).laeq_db, abs=0.011)


@pytest.mark.parametrize("offset", [0.5, -0.02])
@pytest.mark.parametrize("lost", [[], [(0, 4_000)], [(100_000, 100_400), (200_000, 300_000)]])
def test_a_microphones_offset_makes_no_level(offset: float, lost: Lost) -> None:
    """Neither at the window's borders nor at a gap's: A-weighting has no gain at 0 Hz."""
    samples = noise(rms=0.001)
    expected = figures(meter(samples, lost))
    assert figures(meter(samples + np.float32(offset), lost)) == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize("lost", [[], [(100_000, 100_400), (200_000, 300_000)]])
@pytest.mark.parametrize("phase", [0.0, 0.7, np.pi / 2, 2.5])
def test_wind_that_is_cut_off_does_not_click(lost: Lost, phase: float) -> None:
    """5 Hz at −9 dBFS weigh −101 dB(A); cut off with bare zeros they would read −39 in LAFmax."""
    wind = (0.5 * np.sin(2 * np.pi * 5.03 * T + phase)).astype(np.float32)
    street = noise(rms=0.001)
    calm, windy = meter(street, lost), meter(street + wind, lost)
    assert figures(windy) == pytest.approx(figures(calm), abs=0.2)


# -- what was not heard ----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(lost=lost_ranges(min_heard=WINDOW_SAMPLES // 10), seed=st.integers(0, 9))
def test_what_is_lost_pulls_nothing_down(lost: Lost, seed: int) -> None:
    """Of a steady noise any tenth of a window reads what the whole does, but for the noise's own chance."""
    samples = np.random.default_rng(seed).normal(0, 0.05, WINDOW_SAMPLES).astype(np.float32)
    whole, left = METER(samples), meter(samples, lost)
    assert figures(left) == pytest.approx(figures(whole), abs=0.2)
    assert left.laeq_db == pytest.approx(whole.laeq_db, abs=0.1)


@settings(max_examples=40)
@given(lost=lost_ranges(min_heard=SAMPLE_RATE_HZ // 2), seed=st.integers(0, 9), swing=st.floats(0, 2))
def test_the_level_is_that_of_what_remains(lost: Lost, seed: int, swing: float) -> None:
    """As from sample to sample of the whole window's weighted samples with the lost ones cut out."""
    samples = noise(seed) * np.exp(swing * np.sin(2 * np.pi * 0.37 * T)).astype(np.float32)
    heard = np.ones(WINDOW_SAMPLES, bool)
    for start, end in lost:
        heard[start:end] = False
    expected = slow_figures(slow_power(samples)[heard])
    assert figures(meter(samples, lost)) == pytest.approx(expected, abs=0.15)


@settings(max_examples=20)
@given(lost=lost_ranges(), seed=st.integers(0, 9))
def test_what_stands_where_audio_was_lost_does_not_matter(lost: Lost, seed: int) -> None:
    """Zeros, or a thunderclap, or no number at all."""
    samples, rubbish = noise(seed), noise(seed)
    for start, end in lost:
        rubbish[start:end] = np.nan
    assert METER(rubbish, lost) == meter(samples, lost)


def test_a_loud_part_that_was_lost_is_not_there() -> None:
    """Loud from 3 s to 6 s, and exactly that is lost: the quiet level in every figure."""
    samples = np.float32(0.01) * tone(1000) + tone(1000, 3, 6)
    lost = [(3 * SAMPLE_RATE_HZ, 6 * SAMPLE_RATE_HZ)]
    assert figures(meter(samples, lost)) == pytest.approx((FULL_SCALE_SINE_DB - 40,) * 4, abs=0.05)


def test_percentiles_are_over_the_time_that_was_heard() -> None:
    """Loud for 2 s, quiet for 3 s, lost for 5 s: loud is two fifths, LA10 loud and LA90 quiet.

    Over the whole window the quietest tenth would be of the time that was lost.
    """
    samples = tone(1000, 0, 2) + np.float32(0.01) * tone(1000)
    level = meter(samples, [(5 * SAMPLE_RATE_HZ, WINDOW_SAMPLES)])
    assert level.la10_db == pytest.approx(FULL_SCALE_SINE_DB + 0.09, abs=0.05)
    assert level.la90_db == pytest.approx(FULL_SCALE_SINE_DB - 40, abs=0.05)
    assert level.laeq_db == pytest.approx(FULL_SCALE_SINE_DB + 10 * math.log10(0.4), abs=0.1)


def test_the_fast_average_stands_still_over_a_gap() -> None:
    """A burst of 50 ms with a gap of a second in its middle reads as one of 50 ms, not of 25."""
    n = SAMPLE_RATE_HZ
    samples = tone(4000, 4.0, 4.025) + tone(4000, 5.025, 5.05)
    lost = [(round(4.025 * n), round(5.025 * n))]
    assert meter(samples, lost).lafmax_db - METER(tone(4000)).lafmax_db == pytest.approx(-4.8, abs=0.1)


@pytest.mark.parametrize("n_heard", [1, 20, 21, 22, 441])
def test_a_moment_is_enough(n_heard: int) -> None:
    """A few samples, at either end or inside, have a level and raise nothing."""
    for start in (0, 200_000, WINDOW_SAMPLES - n_heard):
        level = meter(noise(), [(0, start), (start + n_heard, WINDOW_SAMPLES)])
        assert all(FLOOR_DBFS <= figure < 0 for figure in figures(level))


@pytest.mark.parametrize("start", [0, 100_000, 200_001, WINDOW_SAMPLES - 2])
def test_a_moment_has_one_level(start: int) -> None:
    """Of two samples the fast average is their mean: LAeq, to less than its last digit."""
    lost = [(0, start), (start + 2, WINDOW_SAMPLES)]
    levels = [METER(noise(rms=0.1 * 1.013**k), lost) for k in range(30)]
    assert min(level.laeq_db for level in levels) > FLOOR_DBFS
    assert np.mean([level.la10_db - level.laeq_db for level in levels]) == pytest.approx(0, abs=0.004)
    assert all(level.la10_db == level.la90_db for level in levels)


def test_silence_is_the_floor_never_zero() -> None:
    """No sound is no loudness: −120 dBFS(A) in every figure, also where nothing was heard."""
    silence = np.zeros(WINDOW_SAMPLES, np.float32)
    for lost in ([], [(5, 50)], [(0, WINDOW_SAMPLES)], [(0, 9), (9, WINDOW_SAMPLES)]):
        level = METER(silence, lost)
        assert figures(level) == (FLOOR_DBFS,) * 4
        assert not level.calibrated


def test_a_meter_remembers_nothing() -> None:
    """A window reads the same after a loud one as before it."""
    fresh = LevelMeter()(noise(), [(5, 50)])
    METER(tone(1000))
    assert METER(noise(), [(5, 50)]) == fresh


STREET = np.random.default_rng(5).normal(0, 0.05, 4 * WINDOW_SAMPLES).astype(np.float32)
STREAMED = LevelMeter()


@settings(max_examples=30)
@given(
    starts=st.lists(st.sampled_from([0, 1, 2, 3]) | st.integers(0, 3 * WINDOW_SAMPLES), max_size=5),
    some_lost=st.lists(st.booleans(), min_size=5, max_size=5),
    spot=st.none() | st.integers(0, WINDOW_SAMPLES - 1),
)
def test_what_windows_share_is_weighed_once_and_the_same(
    starts: list[int], some_lost: list[bool], spot: int | None
) -> None:
    """By half a window and by anything else, over a gap, and if one sample is another: as if alone."""
    for start, is_lost in zip(starts, some_lost, strict=False):
        first = start * WINDOW_SAMPLES // 2 if start < 4 else start
        samples = STREET[first : first + WINDOW_SAMPLES].copy()
        if spot is not None:
            samples[spot] += 0.5
        lost = [(300_000, 310_000)] if is_lost else []
        assert STREAMED(samples, lost) == LevelMeter()(samples, lost)


def test_windows_that_follow_by_half_are_not_weighed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two transforms of four pieces each, after the first one's three."""
    counted: list[int] = []

    def counting(rows: NDArray[np.float32], out: NDArray[np.complex64]) -> None:
        counted.append(len(rows))
        rfft(rows, out=out)

    monkeypatch.setattr(level_module, "rfft", counting)
    meter = LevelMeter()
    for k in range(4):
        meter(STREET[k * WINDOW_SAMPLES // 2 :][:WINDOW_SAMPLES])
    assert counted == [4, 4, 4] + [4, 4] * 3


def test_a_meter_leaves_the_samples_as_they_are() -> None:
    """The window goes to the nets afterwards."""
    samples = noise()
    METER(samples, [(5, 50)])
    np.testing.assert_array_equal(samples, noise())


def test_another_length_is_refused() -> None:
    """The level is of exactly the tagged window."""
    with pytest.raises(ValueError, match="441000"):
        METER(np.zeros(44_100, np.float32))


@pytest.mark.parametrize("lost", [[(-1, 5)], [(5, 3)], [(0, 9), (8, 12)], [(0, WINDOW_SAMPLES + 1)]])
def test_ranges_that_are_not_in_the_window_are_refused(lost: Lost) -> None:
    """Nor those that overlap or go back."""
    with pytest.raises(ValueError, match="in order"):
        METER(noise(), lost)
