"""A-weighted level of a window: LAeq, LAFmax, LA10, LA90.

A-weighting is applied as the analogue curve of IEC 61672-1 (annex E) itself, by one Fourier transform of
the whole window with zeros behind it: exact at every frequency, no digital filter's warping near the
Nyquist rate. Fast time weighting (125 ms) runs over blocks of 3⅓ ms. Every sample counts once.
"""

import math

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from edgetag.contract.event import Level
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES

FLOOR_DBFS = -120.0
"""What silence reads: below any microphone's own noise, and never taken for a level of 0."""
FAST_S = 0.125
_BLOCK_SAMPLES = SAMPLE_RATE_HZ // 300
_SETTLING_SAMPLES = SAMPLE_RATE_HZ // 10  # A-weighting rings for less than this
_N_FFT = scipy.fft.next_fast_len(WINDOW_SAMPLES + _SETTLING_SAMPLES, real=True)
_FLOOR_POWER = 10 ** (FLOOR_DBFS / 10)

# Pole frequencies of the A curve, IEC 61672-1:2013 annex E.
_F1_HZ, _F2_HZ, _F3_HZ, _F4_HZ = 20.598997, 107.65265, 737.86223, 12194.217


def a_weighting(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gain of the A curve, 1 at 1 kHz. Any shape, Hz in, amplitude ratio out."""
    return _a_curve(hz) / _a_curve(np.array(1000.0))


def _a_curve(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    f2 = np.square(hz)
    middle = np.sqrt((f2 + _F2_HZ**2) * (f2 + _F3_HZ**2))
    return _F4_HZ**2 * f2**2 / ((f2 + _F1_HZ**2) * middle * (f2 + _F4_HZ**2))


class LevelMeter:
    """Level of windows, in dB relative to a mean square of 1 (a full-scale 1-kHz sine reads −3.01)."""

    def __init__(self) -> None:
        self._weights = a_weighting(scipy.fft.rfftfreq(_N_FFT, 1 / SAMPLE_RATE_HZ)).astype(np.float32)
        self._decay = float(np.exp(-_BLOCK_SAMPLES / SAMPLE_RATE_HZ / FAST_S))

    def __call__(self, samples: NDArray[np.float32]) -> Level:
        """Level of one window. Uncalibrated: dBFS(A). Silence reads −120.

        Shape: samples [441000] at 44.1 kHz

        Raises:
            ValueError: another number of samples.
        """
        if samples.shape != (WINDOW_SAMPLES,):
            raise ValueError(f"the level meter needs {WINDOW_SAMPLES} samples, got shape {samples.shape}")
        spectrum = scipy.fft.rfft(samples, _N_FFT)
        spectrum *= self._weights
        weighted = scipy.fft.irfft(spectrum, _N_FFT, overwrite_x=True)[:WINDOW_SAMPLES]
        blocks = weighted.reshape(-1, _BLOCK_SAMPLES)
        power = np.einsum("bs,bs->b", blocks, blocks, dtype=np.float32) / _BLOCK_SAMPLES
        fast = self._fast(power)
        la90, la10 = np.percentile(fast, [10, 90])
        return Level(_db(float(power.mean())), _db(float(fast.max())), _db(float(la10)), _db(float(la90)))

    def _fast(self, power: NDArray[np.float32]) -> NDArray[np.float64]:
        """Exponential averaging over 125 ms, from rest: a burst reads the same anywhere."""
        decay, averaged, state = self._decay, np.empty(len(power)), 0.0
        for k, block in enumerate(power.tolist()):
            state = decay * state + (1 - decay) * block
            averaged[k] = state
        return averaged


def calibrated(level: Level, calibration_db: float | None) -> Level:
    """`level` in dB(A) re 20 µPa, by what a full-scale mean square is there; as it is if that is unknown."""
    if calibration_db is None:
        return level
    figures = (level.laeq_db, level.lafmax_db, level.la10_db, level.la90_db)
    return Level(*(round(figure + calibration_db, 2) for figure in figures), calibrated=True)


def _db(power: float) -> float:
    return round(10 * math.log10(max(power, _FLOOR_POWER)), 2)
