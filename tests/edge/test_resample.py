import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetag.dsp.resample import StreamResampler, fit_length, n_resampled, resample

RATES_HZ = [4_000, 8_000, 16_000, 22_050, 32_000, 44_099, 44_100, 47_999, 48_000, 96_000, 192_000, 384_000]


def noise(n_samples: int) -> NDArray[np.float32]:
    return np.random.default_rng(n_samples).uniform(-1, 1, n_samples).astype(np.float32)


def tone(freq_hz: float, rate_hz: int, duration_s: float) -> NDArray[np.float32]:
    times_s = np.arange(int(rate_hz * duration_s)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * freq_hz * times_s)).astype(np.float32)


def stream(samples: NDArray[np.float32], from_hz: int, to_hz: int, sizes: list[int]) -> NDArray[np.float32]:
    resampler = StreamResampler(from_hz, to_hz)
    parts = np.split(samples, np.minimum(np.cumsum(sizes), len(samples)))
    return np.concatenate([resampler.process(part, last=k == len(parts) - 1) for k, part in enumerate(parts)])


@settings(deadline=None, max_examples=150)
@given(
    from_hz=st.sampled_from(RATES_HZ) | st.integers(4_000, 384_000),
    to_hz=st.sampled_from([44_100, 16_000]),
    n_samples=st.integers(0, 6_000),
    sizes=st.lists(st.integers(0, 1_000), max_size=40),
)
def test_chunking(from_hz: int, to_hz: int, n_samples: int, sizes: list[int]) -> None:
    """Any chunking gives the bits of the one-shot conversion."""
    samples = noise(n_samples)
    assert np.array_equal(stream(samples, from_hz, to_hz, sizes), resample(samples, from_hz, to_hz))


@pytest.mark.parametrize("size", [1, 7, 441, 4096])
@pytest.mark.parametrize("from_hz", [8_000, 48_000, 47_999])
def test_chunking_of_a_long_stream(from_hz: int, size: int) -> None:
    """Regular blocks give the bits of the one-shot conversion over many of the filter's own blocks."""
    samples = noise(40_000)
    sizes = [size] * (len(samples) // size)
    assert np.array_equal(stream(samples, from_hz, 44_100, sizes), resample(samples, from_hz, 44_100))


@settings(deadline=None, max_examples=150)
@given(st.integers(4_000, 384_000), st.integers(4_000, 384_000), st.integers(0, 3_000))
def test_length(from_hz: int, to_hz: int, n_samples: int) -> None:
    """n samples become n * to / from, halves rounded up."""
    n_out = len(resample(noise(n_samples), from_hz, to_hz))
    assert n_out == n_resampled(n_samples, from_hz, to_hz)
    assert -0.5 < n_out - n_samples * to_hz / from_hz <= 0.5


def test_a_window_for_vggish_has_its_length() -> None:
    """Ten seconds at 44.1 kHz are ten seconds at 16 kHz."""
    assert resample(noise(441_000), 44_100, 16_000).shape == (160_000,)


@pytest.mark.parametrize("from_hz", [8_000, 44_099, 48_000, 192_000])
def test_a_tone_keeps_its_place_frequency_and_amplitude(from_hz: int) -> None:
    """A tone below both Nyquist rates comes out as if it had been sampled at the new rate."""
    out = resample(tone(1_000, from_hz, 1.0), from_hz, 44_100)
    edge = slice(4_000, -4_000)  # the filter sees zeros before the first and after the last sample
    assert np.abs(out - tone(1_000, 44_100, 1.0))[edge].max() < 1e-5


def test_a_tone_above_the_new_nyquist_rate_is_gone() -> None:
    """30 kHz at 96 kHz must not come back as 14.1 kHz."""
    out = resample(tone(30_000, 96_000, 1.0), 96_000, 44_100)
    assert np.abs(out[4_000:-4_000]).max() < 1e-5


def test_equal_rates_touch_nothing() -> None:
    """With equal rates what goes in comes out, at once."""
    samples = noise(100)
    assert StreamResampler(44_100, 44_100).process(samples) is samples


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
def test_no_samples_after_the_last(rate_hz: int) -> None:
    """A stream that has ended refuses more."""
    resampler = StreamResampler(rate_hz, 44_100)
    resampler.process(noise(10), last=True)
    with pytest.raises(ValueError, match="ended"):
        resampler.process(noise(10))


@pytest.mark.parametrize(
    "samples",
    [np.zeros(3), np.zeros((3, 1), np.float32), np.zeros(3, np.int16)],
    ids=["float64", "2d", "int16"],
)
def test_wrong_samples_are_refused(samples: NDArray[np.float32]) -> None:
    """Nothing is converted in silence."""
    with pytest.raises(ValueError, match="float32 vector is expected"):
        StreamResampler(48_000, 44_100).process(samples)


def test_rates_must_be_positive() -> None:
    """A rate of zero is an error with both rates in it."""
    with pytest.raises(ValueError, match="0 Hz and 44100 Hz"):
        StreamResampler(0, 44_100)


def test_fit_length_trims_and_pads_at_the_end() -> None:
    """[1 2 3] -> [1 2] or [1 2 3 0]."""
    samples = np.array([1, 2, 3], np.float32)
    assert fit_length(samples, 2).tolist() == [1, 2]
    assert fit_length(samples, 4).tolist() == [1, 2, 3, 0]
