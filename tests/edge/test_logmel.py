"""The log-mel front end equals librosa's chain; librosa is the oracle, never imported by edge."""

import librosa
import numpy as np
import pytest
from numpy.typing import NDArray

from edgetag.contract.frontend import N_FRAMES, N_MELS, SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.dsp.logmel import LogMel
from edgetag.dsp.mel import htk_filters, slaney_filters

TOLERANCE_DB = 1e-3
T = np.arange(WINDOW_SAMPLES) / SAMPLE_RATE_HZ


def oracle(samples: NDArray[np.floating]) -> NDArray[np.floating]:
    power = librosa.feature.melspectrogram(y=samples, sr=SAMPLE_RATE_HZ)
    return librosa.power_to_db(power, ref=np.max)


def noise(scale: float) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, scale, WINDOW_SAMPLES).astype(np.float32)


def tone(hz: float) -> NDArray[np.float32]:
    return (0.9 * np.sin(2 * np.pi * hz * T)).astype(np.float32)


CASES = {
    "noise": noise(0.1),
    "near silent": noise(1e-5),
    "one bit of 24": np.round(noise(0.3)).astype(np.float32) / 2**23,
    "clipped": np.clip(3 * tone(440) + noise(0.3), -1, 1),
    "an impulse": np.eye(1, WINDOW_SAMPLES, 200_000, dtype=np.float32)[0],
    "starts with a burst": np.where(T < 0.1, noise(0.5), 0).astype(np.float32),
    "ends with a burst": np.where(T > 9.9, noise(0.5), 0).astype(np.float32),
    "a hum over a hiss 90 dB fainter": (tone(50) + noise(1e-5)).astype(np.float32),
    "a constant under noise": (0.3 + noise(1e-3)).astype(np.float32),
    "a constant": np.full(WINDOW_SAMPLES, 0.1, np.float32),
    **{f"a tone of {hz} Hz": tone(hz) for hz in (20, 50, 63, 440, 1000, 5000, 20_000, 21_500)},
}


@pytest.mark.parametrize("samples", CASES.values(), ids=CASES.keys())
def test_equals_librosa(samples: NDArray[np.float32]) -> None:
    """Every cell within 1e-3 dB, also 80 dB below a pure tone."""
    found = LogMel()(samples)
    assert found.shape == (N_MELS, N_FRAMES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, oracle(samples), rtol=0, atol=TOLERANCE_DB)


@pytest.mark.parametrize("samples", CASES.values(), ids=CASES.keys())
def test_is_as_exact_as_it_says(samples: NDArray[np.float32]) -> None:
    """The same against librosa in float64, which has no rounding noise of its own."""
    np.testing.assert_allclose(
        LogMel()(samples), oracle(samples.astype(np.float64)), rtol=0, atol=TOLERANCE_DB
    )


@pytest.mark.shared
def test_equals_the_golden_street(golden_front_end: dict[str, NDArray[np.generic]]) -> None:
    """A real street recording gives librosa's stored log-mel to 1e-3 dB."""
    samples = golden_front_end["pcm44100"].astype(np.float32) / 32768
    np.testing.assert_allclose(LogMel()(samples), golden_front_end["logmel"], rtol=0, atol=TOLERANCE_DB)


def test_remembers_nothing_between_windows() -> None:
    """Buffers are reused, results are not mixed: a window reads the same after any other."""
    front_end = LogMel()
    first = front_end(CASES["noise"])
    front_end(CASES["clipped"])
    np.testing.assert_array_equal(front_end(CASES["noise"]), first)


def test_does_not_depend_on_gain() -> None:
    """Relative to the window's own maximum: half as loud is the same picture."""
    samples = noise(0.2)
    np.testing.assert_allclose(LogMel()(samples), LogMel()(samples * np.float32(0.5)), atol=1e-4)


def test_writes_where_it_is_told() -> None:
    """`out` receives the result and is returned."""
    out = np.empty((N_MELS, N_FRAMES), np.float32)
    assert LogMel()(noise(0.1), out=out) is out
    assert out.max() == 0.0
    assert out.min() >= -80.0


@pytest.mark.parametrize("n", [0, 1, WINDOW_SAMPLES - 1, WINDOW_SAMPLES + 1])
def test_another_length_is_refused(n: int) -> None:
    """Nothing is padded or cut in silence."""
    with pytest.raises(ValueError, match=str(WINDOW_SAMPLES)):
        LogMel()(np.zeros(n, np.float32))


def test_filter_banks_equal_librosas() -> None:
    """Slaney's bank to float32 precision; HTK's triangles on the mel axis where librosa has the same."""
    ours = slaney_filters(44_100, 2048, 128, 0, 22_050)
    np.testing.assert_allclose(ours, librosa.filters.mel(sr=44_100, n_fft=2048), atol=1e-7)
    htk = htk_filters(16_000, 512, 64, 125, 7500)
    assert htk.shape == (64, 257)
    assert htk.max() <= 1
    assert (htk[:, 0] == 0).all()
