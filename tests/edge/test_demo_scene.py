"""The synthetic street: what its sounds have in common with the real ones, as laws of each sound."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.demo import scene
from edgetag.demo.scene import GENERATORS, SCENE_PEAK, STREET_GAIN_DB, Part, Scene, street_noise, street_scene

Signal = NDArray[np.float32]
SEEDS = (0, 1, 2, 3)
FRAME_S = 0.02
# Where each sound of the script has its say.
BANDS_HZ = {
    "1-3": (60, 1000),
    "2-2": (200, 8000),
    "3-1": (500, 8000),
    "4-1": (200, 4000),
    "5-1": (350, 5000),
    "5-3": (500, 4000),
    "5-4": (900, 1500),
    "6-1": (100, 4000),
    "7-1": (300, 3000),
    "8-1": (400, 2500),
}


@pytest.fixture(scope="module")
def street() -> Scene:
    return street_scene()


def sound(tag_id: str, seed: int, duration_s: float = 6.0) -> Signal:
    return GENERATORS[tag_id](np.random.default_rng(seed), duration_s)


def band_power(samples: Signal, low_hz: float, high_hz: float) -> float:
    """Mean power between two frequencies."""
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    hz = np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE_HZ)
    return 2 * float(spectrum[(hz >= low_hz) & (hz < high_hz)].sum()) / samples.size**2


def level_db(samples: Signal, frame_s: float = FRAME_S) -> NDArray[np.float64]:
    """Level of each frame below the loudest one. Shape: [T] -> [frames]"""
    size = int(frame_s * SAMPLE_RATE_HZ)
    frames = samples[: samples.size // size * size].reshape(-1, size).astype(np.float64)
    db = 10 * np.log10((frames**2).mean(axis=1) + 1e-12)
    return db - db.max()


def strongest_hz(samples: Signal, frame_s: float = 0.05) -> NDArray[np.float64]:
    """The strongest frequency of each frame. Shape: [T] -> [frames]"""
    size = int(frame_s * SAMPLE_RATE_HZ)
    frames = samples[: samples.size // size * size].reshape(-1, size) * np.hanning(size)
    return np.abs(np.fft.rfft(frames, 8192)).argmax(axis=1) * SAMPLE_RATE_HZ / 8192


def beats_hz(samples: Signal, low_hz: float, high_hz: float) -> float:
    """The rate at which the level swings most, of those between two rates."""
    level = level_db(samples, 0.002).clip(-40)
    spectrum = np.abs(np.fft.rfft((level - level.mean()) * np.hanning(level.size), 1 << 15))
    hz = np.fft.rfftfreq(1 << 15, 0.002)
    spectrum[(hz < low_hz) | (hz > high_hz)] = 0
    return float(hz[spectrum.argmax()])


def periodicity(samples: Signal, low_hz: float, high_hz: float) -> float:
    """How alike a stretch is to itself a period later, 1 = exactly, for the best period between two rates."""
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64), 2 * samples.size)) ** 2
    likeness = np.fft.irfft(spectrum)
    lags = slice(int(SAMPLE_RATE_HZ / high_hz), int(SAMPLE_RATE_HZ / low_hz))
    return float(likeness[lags].max() / likeness[0])


def runs_s(loud: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Lengths of the stretches of loud frames."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], loud.astype(int), [0]))))
    return (edges[1::2] - edges[::2]) * FRAME_S


# -- the scene -----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_street(street: Scene) -> None:
    again = street_scene()
    np.testing.assert_array_equal(again.samples, street.samples)
    assert again.parts == street.parts


def test_another_seed_gives_other_sounds_by_the_same_script(street: Scene) -> None:
    other = street_scene(seed=1)
    assert other.parts == street.parts
    assert abs(np.corrcoef(other.samples, street.samples)[0, 1]) < 0.1


def test_a_scene_is_float32_mono_of_the_asked_length_at_its_peak(street: Scene) -> None:
    assert street.samples.dtype == np.float32
    assert street.samples.shape == (60 * SAMPLE_RATE_HZ,)
    assert np.isfinite(street.samples).all()
    assert np.abs(street.samples).max() == pytest.approx(SCENE_PEAK, rel=1e-5)


def test_before_the_first_part_there_is_street_noise_alone(street: Scene) -> None:
    first = round(min(part.start_s for part in street.parts) * SAMPLE_RATE_HZ)
    np.testing.assert_allclose(street.samples[:first], street_alone(street)[:first], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_every_part_stands_out_of_the_street_in_its_band(seed: int) -> None:
    heard = street_scene(seed)
    alone = street_alone(heard, seed)
    for part in heard.parts:
        stretch = slice(round(part.start_s * SAMPLE_RATE_HZ), round(part.end_s * SAMPLE_RATE_HZ))
        with_part, without = (
            band_power(samples[stretch], *BANDS_HZ[part.tag_ids[-1]]) for samples in (heard.samples, alone)
        )
        assert with_part > 4 * without, part


def street_alone(heard: Scene, seed: int = 0) -> Signal:
    """The street noise as loud as in the scene, whose scale is read from its first half second."""
    duration_s = heard.samples.size / SAMPLE_RATE_HZ
    noise = street_noise(np.random.default_rng((seed, 0)), duration_s) * np.float32(
        10 ** (STREET_GAIN_DB / 20)
    )
    start = slice(SAMPLE_RATE_HZ // 2)
    return noise * np.float32(heard.samples[start] @ noise[start] / (noise[start] @ noise[start]))


def test_sounds_come_and_go_without_a_click(street: Scene) -> None:
    """A part's first and last millisecond add less than a hundredth of the scene's peak to the street."""
    alone = street_alone(street)
    first = street.parts[0]
    at = round(first.start_s * SAMPLE_RATE_HZ)
    assert np.abs(street.samples[at : at + 44] - alone[at : at + 44]).max() < SCENE_PEAK / 100


def test_the_script_names_tags_of_the_taxonomy_coarse_then_fine() -> None:
    for part in scene.SCRIPT:
        coarse, fine = part.tag_ids
        assert coarse in SONYC_UST.coarse_ids
        assert fine in {tag.id for tag in SONYC_UST.category(coarse).fine}
        assert fine in GENERATORS
    assert {part.tag_ids[0] for part in scene.SCRIPT} == set(SONYC_UST.coarse_ids)


def test_the_script_is_in_order_and_gives_every_sound_six_to_ten_seconds() -> None:
    starts_s = [part.start_s for part in scene.SCRIPT]
    assert starts_s == sorted(starts_s)
    assert all(6 <= part.duration_s <= 10 for part in scene.SCRIPT)
    assert max(part.end_s for part in scene.SCRIPT) <= scene.SCRIPT_S


@given(duration_s=st.floats(0.1, 200))
def test_no_part_outlasts_its_scene_or_is_too_short_to_know(duration_s: float) -> None:
    for part in scene.script(duration_s):
        assert part.end_s <= duration_s + 1e-9
        assert part.duration_s >= scene.MIN_PART_S


def test_a_scene_cut_short_cuts_its_parts() -> None:
    """
    talk   [--------]
    dog           [-----…
    scene  0       ^10
    """
    assert scene.script(10.0) == (
        Part(("7", "7-1"), 1.0, 8.0, scene.SCRIPT[0].gain_db),
        Part(("8", "8-1"), 7.0, 3.0, scene.SCRIPT[1].gain_db),
    )


def test_a_longer_scene_repeats_the_script_with_other_sounds() -> None:
    n_parts = len(scene.SCRIPT)
    assert len(scene.script(120.0)) == 2 * n_parts
    assert scene.script(120.0)[n_parts].start_s == scene.SCRIPT_S + scene.SCRIPT[0].start_s
    heard = street_scene(duration_s=70.0).samples
    once, again = (heard[round(s * SAMPLE_RATE_HZ) :][: 6 * SAMPLE_RATE_HZ] for s in (2.0, 62.0))
    assert abs(np.corrcoef(once, again)[0, 1]) < 0.2


# -- every sound ---------------------------------------------------------------------------------------

everything = pytest.mark.parametrize("tag_id", [*GENERATORS, "street"])


def any_sound(tag_id: str, rng: np.random.Generator, duration_s: float) -> Signal:
    return GENERATORS.get(tag_id, street_noise)(rng, duration_s)


@everything
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), duration_s=st.floats(scene.MIN_DURATION_S, 3.0))
def test_a_sound_is_finite_float32_of_exact_length_and_below_full_scale(
    tag_id: str, seed: int, duration_s: float
) -> None:
    samples = any_sound(tag_id, np.random.default_rng(seed), duration_s)
    assert samples.dtype == np.float32
    assert samples.shape == (round(duration_s * SAMPLE_RATE_HZ),)
    assert np.isfinite(samples).all()
    assert 0.1 < np.abs(samples).max() <= 1


@everything
def test_a_sound_is_drawn_by_its_generator_alone(tag_id: str) -> None:
    first, same, other = (any_sound(tag_id, np.random.default_rng(seed), 1.5) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@everything
def test_a_sound_too_short_to_be_one_is_refused(tag_id: str) -> None:
    with pytest.raises(ValueError, match=r"0\.05 s is too short, ask for at least 0\.1 s"):
        any_sound(tag_id, np.random.default_rng(0), 0.05)


@everything
def test_a_sound_has_no_offset(tag_id: str) -> None:
    """A microphone passes no direct current: the mean is 30 dB below the level."""
    samples = any_sound(tag_id, np.random.default_rng(0), 6.0)
    assert abs(samples.mean()) < samples.std() * 10 ** (-30 / 20)


def test_generators_are_named_by_fine_ids_of_the_taxonomy() -> None:
    assert set(GENERATORS) <= set(SONYC_UST.fine_ids)


# -- each sound ----------------------------------------------------------------------------------------

every_seed = pytest.mark.parametrize("seed", SEEDS)


@every_seed
def test_a_street_never_falls_silent_and_is_darker_the_higher_one_listens(seed: int) -> None:
    samples = street_noise(np.random.default_rng(seed), 10.0)
    assert level_db(samples, 1.0).min() > -12
    octaves = [band_power(samples, hz, 2 * hz) / hz for hz in 2.0 ** np.arange(6, 13)]
    assert octaves == sorted(octaves, reverse=True)


@every_seed
def test_a_siren_sweeps_far_and_glides_while_it_wails(seed: int) -> None:
    hz = strongest_hz(sound("5-3", seed, 8.0))
    lowest_hz, highest_hz = np.percentile(hz, (2, 98))
    assert highest_hz > 1.7 * lowest_hz
    assert 450 < np.median(hz) < 1800
    wail = hz[: int(2.0 / 0.05)]  # the yelps come later
    assert 2 < np.median(np.abs(np.diff(wail))) < 60


@every_seed
def test_a_reverse_beeper_sounds_once_a_second_for_half_of_it_on_one_note(seed: int) -> None:
    samples = sound("5-4", seed, 10.0)
    on = level_db(samples) > -15
    beeps_s = runs_s(on)
    beeps_s = beeps_s[beeps_s > 0.2][1:-1]  # without the flutter of echoes
    assert beeps_s.size >= 6
    assert 0.4 < on.mean() < 0.65  # the street rings on a little
    assert np.ptp(beeps_s) <= 5 * FRAME_S
    assert beats_hz(samples, 0.5, 1.6) == pytest.approx(1.0, abs=0.15)
    note_hz = strongest_hz(samples)[level_db(samples, 0.05) > -10]
    assert np.ptp(np.percentile(note_hz, (10, 90))) < 20


@every_seed
def test_a_horn_is_two_steady_tones_about_a_third_apart(seed: int) -> None:
    samples = sound("5-1", seed)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(samples.size)))
    hz = np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE_HZ)
    low_hz, high_hz = (
        hz[band][spectrum[band].argmax()] for band in ((hz > 350) & (hz < 440), (hz > 440) & (hz < 560))
    )
    assert 1.2 < high_hz / low_hz < 1.3
    between = (hz > low_hz + 15) & (hz < high_hz - 15)
    assert spectrum[between].max() < 0.3 * spectrum[hz == low_hz][0]


@every_seed
def test_a_dog_barks_in_short_bursts_with_pauses(seed: int) -> None:
    samples = sound("8-1", seed, 10.0)
    loud = level_db(samples) > -20
    assert 0.1 < loud.mean() < 0.55
    barks_s = runs_s(loud)
    assert barks_s.size >= 5
    assert np.median(barks_s) < 0.4
    assert band_power(samples, 400, 3000) > 30 * band_power(samples, 20, 300)


@every_seed
def test_speech_has_a_syllable_rhythm_pauses_and_a_voice_below_hiss(seed: int) -> None:
    samples = sound("7-1", seed, 10.0)
    level = level_db(samples)
    assert 0.05 < (level < -25).mean() < 0.7
    assert 1.5 < runs_s(level > -15).size / 10 < 8
    assert band_power(samples, 100, 1000) > 10 * band_power(samples, 3000, 8000)


@every_seed
def test_vowels_are_voiced_and_their_formants_move(seed: int) -> None:
    samples = sound("7-1", seed, 10.0)
    size = int(0.06 * SAMPLE_RATE_HZ)
    frames = [samples[k : k + size] for k in range(0, samples.size - size, size)]
    loud = [frame for frame in frames if frame.std() > 0.3 * max(f.std() for f in frames)]
    assert np.median([periodicity(frame, 75, 350) for frame in loud]) > 0.5
    assert np.ptp([np.log2(centroid_hz(frame)) for frame in loud]) > 0.5


def centroid_hz(samples: Signal) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(samples.size)))
    return float((spectrum * np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE_HZ)).sum() / spectrum.sum())


@every_seed
@pytest.mark.parametrize("tag_id", ["1-1", "1-2", "1-3"])
def test_an_engine_never_stops_and_is_loudest_below_300_hz(tag_id: str, seed: int) -> None:
    samples = sound(tag_id, seed)
    assert level_db(samples, 0.25).min() > -20
    assert band_power(samples, 30, 300) > 5 * band_power(samples, 500, 20_000)


@every_seed
@pytest.mark.parametrize("tag_id", ["1-1", "1-2", "1-3"])
def test_an_engine_repeats_itself_cycle_by_cycle(tag_id: str, seed: int) -> None:
    samples = sound(tag_id, seed)
    stretches = samples.reshape(12, -1)
    assert np.median([periodicity(stretch, 10, 130) for stretch in stretches]) > 0.3


@every_seed
def test_a_chainsaw_buzzes_at_the_rate_of_its_firing_and_reaches_high(seed: int) -> None:
    samples = sound("4-1", seed, 8.0)
    loudest = int(np.argmax(level_db(samples, 0.25)))
    quarter = samples[loudest * 11_025 :][:4_410]
    assert periodicity(quarter, 50, 200) > 0.3
    assert band_power(samples, 1000, 4000) > band_power(samples, 100, 1000) / 100


@every_seed
def test_a_chainsaw_revs_up_and_down(seed: int) -> None:
    level = level_db(sound("4-1", seed, 8.0), 0.1)
    assert np.percentile(level, 95) - np.percentile(level, 5) > 5


@every_seed
def test_a_jackhammer_strikes_about_twenty_times_a_second(seed: int) -> None:
    assert 17 < beats_hz(sound("2-2", seed), 5, 60) < 25


@every_seed
def test_impacts_start_at_once_and_die_away(seed: int) -> None:
    samples = sound("3-1", seed, 8.0)
    assert np.abs(samples).max() > 8 * samples.std()
    change_db = np.diff(level_db(samples))
    assert change_db.max() > 20
    assert change_db.max() > -change_db.min()


@every_seed
def test_music_keeps_time_and_fills_bass_and_treble(seed: int) -> None:
    samples = sound("6-1", seed, 10.0)
    rise = np.maximum(np.diff(level_db(samples, 0.01)), 0)
    rise = rise - rise.mean()
    likeness = np.correlate(rise, rise, "full")[rise.size :]
    bar = likeness[95:300].max()  # some multiple of the beat between 1 and 3 s
    assert bar > 0.2 * (rise @ rise)
    assert band_power(samples, 40, 200) > 1e-3
    assert band_power(samples, 4000, 12_000) > 1e-6


@every_seed
def test_a_music_box_rings_on_few_notes(seed: int) -> None:
    """Its strongest frequencies are those of a scale: twelfths of an octave apart."""
    samples = sound("6-3", seed, 8.0)
    hz = strongest_hz(samples, 0.1)[level_db(samples, 0.1) > -15]
    twelfths = 12 * np.log2(hz / hz.min())
    assert np.abs(np.exp(2j * np.pi * twelfths).mean()) > 0.7  # 1: whole steps throughout, 0: any pitch


@every_seed
def test_a_car_alarm_changes_its_tune(seed: int) -> None:
    hz = strongest_hz(sound("5-2", seed, 9.0))
    spreads_hz = [np.ptp(hz[k : k + 20]) for k in range(3, hz.size - 20, 30)]
    assert max(spreads_hz) > 1.5 * min(spreads_hz)


# -- the tools -----------------------------------------------------------------------------------------


def test_noise_is_as_loud_as_its_spectrum_says() -> None:
    flat = scene._noise(np.random.default_rng(0), 200_000, np.full(1025, 0.5))
    assert flat.std() == pytest.approx(0.5, rel=0.02)


def test_a_moving_filter_that_stands_open_changes_nothing() -> None:
    samples = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    opened = scene._filter_moving(samples, np.ones((scene._n_frames(samples.size), 1025), np.complex64))
    np.testing.assert_allclose(opened, samples, atol=1e-5)


def test_pulses_come_once_a_cycle_and_keep_their_height_between_samples() -> None:
    phase = scene._phase(np.full(SAMPLE_RATE_HZ, 100.3))
    train = scene._pulses(phase, np.ones(scene._n_cycles(phase)))
    assert train.sum() == pytest.approx(100, abs=1e-3)


def test_an_oscillator_has_the_harmonics_it_was_given() -> None:
    wave = scene._oscillate(scene._phase(np.full(SAMPLE_RATE_HZ, 100.0)), np.array([1.0, 0.0, 0.25]))
    amplitudes = 2 * np.abs(np.fft.rfft(wave)) / wave.size
    np.testing.assert_allclose(amplitudes[[100, 200, 300]], [1.0, 0.0, 0.25], atol=1e-3)


def test_the_street_is_made_without_heavy_imports() -> None:
    code = "import sys, edgetag.demo.scene; print(sys.modules.keys() & {'scipy.signal', 'torch', 'librosa'})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
