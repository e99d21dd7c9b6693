"""Variants of a recording: each does what its unit says, and the seed decides."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetag.contract.taxonomy import SONYC_UST
from edgetag.dsp.logmel import LogMel
from edgetag_train.data.augment import Augmentation, augment
from edgetag_train.data.scenes import rms
from edgetag_train.data.sounds import Sound, absent

RATE_HZ = 44_100
WINDOW = 10 * RATE_HZ


def tone(hz: float, n: int = WINDOW, amplitude: float = 0.1) -> NDArray[np.float32]:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(n) / RATE_HZ)).astype(np.float32)


def peak_hz(samples: NDArray[np.float32]) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE_HZ / len(samples))


def varied(
    samples: NDArray[np.float32], seed: int = 0, backgrounds: tuple[Sound, ...] = (), **stated: object
) -> NDArray[np.float32]:
    how = msgspec.convert({"variants": 1, **stated}, Augmentation)
    return augment(samples, how, np.random.default_rng(seed), backgrounds)


@pytest.mark.parametrize("seed", range(3))
def test_pitch_moves_a_tone_by_its_ratio(seed: int) -> None:
    """n semitones multiply every frequency by 2^(n/12); the duration stays."""
    semitones = np.random.default_rng(seed).uniform(-4, 4)
    shifted = varied(tone(1000), seed, pitch_semitones=4)
    assert shifted.shape == (WINDOW,)
    assert shifted.dtype == np.float32
    assert peak_hz(shifted) == pytest.approx(1000 * 2 ** (semitones / 12), rel=2e-3)


@pytest.mark.parametrize("snr_db", [-6.0, 0.0, 20.0])
@pytest.mark.parametrize("backgrounds", [(), (Sound(tone(300, 50_000), absent(SONYC_UST), "hum"),)])
def test_noise_has_the_snr_asked_for(snr_db: float, backgrounds: tuple[Sound, ...]) -> None:
    """Of the whole window, signal to added noise, with clips and without."""
    clean = tone(1000)
    noise = varied(clean, 1, backgrounds, noise_share=1, noise_snr_db=(snr_db, snr_db)) - clean
    assert 20 * np.log10(rms(clean) / rms(noise)) == pytest.approx(snr_db, abs=0.05)


def test_noise_comes_from_the_backgrounds() -> None:
    """A background that hums at 300 Hz is what is heard behind a silence-like tone."""
    hum = Sound(tone(300, 50_000), absent(SONYC_UST), "hum")
    noise = varied(tone(5000), 1, (hum,), noise_share=1, noise_snr_db=(0, 0)) - tone(5000)
    assert peak_hz(noise) == pytest.approx(300, abs=2)


def test_noise_share() -> None:
    """A quarter of the variants have a noise."""
    clean = tone(1000, 4410)
    noisy = [
        not np.array_equal(varied(clean, seed, noise_share=0.25, volume_db=0), clean) for seed in range(400)
    ]
    assert 70 <= sum(noisy) <= 130


@pytest.mark.parametrize("seed", range(5))
def test_volume_is_a_gain(seed: int) -> None:
    """Within ± the decibels stated, the waveform untouched otherwise."""
    louder = varied(tone(1000, amplitude=0.01), seed, volume_db=12)
    gain_db = 20 * np.log10(rms(louder) / rms(tone(1000, amplitude=0.01)))
    assert abs(gain_db) <= 12
    np.testing.assert_allclose(louder, tone(1000, amplitude=0.01) * 10 ** (gain_db / 20), atol=1e-6)


def test_volume_without_clipping_is_nothing_to_a_log_mel() -> None:
    """The log-mel is relative to its own maximum."""
    quiet = tone(1000, amplitude=0.02) + np.random.default_rng(0).normal(0, 0.01, WINDOW).astype(np.float32)
    louder = varied(quiet, 3, volume_db=12)
    assert not np.array_equal(louder, quiet)
    np.testing.assert_allclose(LogMel()(louder), LogMel()(quiet), atol=1e-2)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 2**32),
    st.floats(0, 60),
    st.floats(0, 1),
    st.tuples(st.floats(-40, 40), st.floats(-40, 40)).map(sorted),
    st.floats(0, 1, width=32),
)
def test_a_variant_is_a_waveform(
    seed: int, volume_db: float, noise_share: float, snr_db: list[float], amplitude: float
) -> None:
    """Finite float32 within ±1, as long as the recording, the same for the same seed; silence included."""
    stated = {"volume_db": volume_db, "noise_share": noise_share, "noise_snr_db": snr_db}
    if not (volume_db or noise_share):
        return
    samples = tone(700, 5000, amplitude)
    found = varied(samples, seed, **stated)
    assert found.shape == samples.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 1
    np.testing.assert_array_equal(found, varied(samples, seed, **stated))


def test_silence_stays_silent() -> None:
    """Noise has no level below nothing."""
    silence = np.zeros(WINDOW, np.float32)
    assert not varied(silence, noise_share=1, pitch_semitones=2, volume_db=6).any()


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        ({"variants": -1}, "variants"),
        ({"variants": 1.5}, "variants"),
        ({"variants": 2}, "2 variants would be copies of the original"),
        ({"pitch_semitones": 13}, "pitch_semitones"),
        ({"volume_db": -3}, "volume_db"),
        ({"noise_share": 1.01}, "noise_share"),
        ({"noise_snr_db": [10, 0]}, r"range \(low, high\) in dB, found \(10.0, 0.0\)"),
        ({"noise_snr_db": [0]}, "noise_snr_db"),
        ({"noise_snr_db": [0, float("inf")]}, "range"),
        ({"noise_snr_db": [float("nan"), 1]}, "range"),
        ({"speed": 1.1}, "speed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(stated: dict[str, object], sentence: str) -> None:
    """By the field's name and value."""
    with pytest.raises(msgspec.ValidationError, match=sentence):
        msgspec.convert(stated, Augmentation)
