"""A-weighted level of a window: LAeq, LAFmax, LA10, LA90.

A-weighting is applied as the analogue curve of IEC 61672-1 (annex E) itself, by Fourier transforms of pieces
that overlap by all the time it rings: exact at every frequency, no digital filter's warping near the Nyquist
rate. Fast time weighting (125 ms) is that of every sample, read every half millisecond. Every sample that was
heard counts once.

What was not heard does not count at all:

```
heard       ~~~~~~~~~.......~~~~~~~     LAeq: the mean over these
weighted    ~~~~~~~~~-------~~~~~~~     a straight line is weighted in its place, so that a gap's borders do
                                        not click (A-weighting hears no line); what it gives there is dropped
averaged    ~~~~~~~~~~~~~~~~            the fast average stands still over a gap and goes on behind it
```

So do the window's own borders not click: a microphone's offset and the rumble below 20 Hz make no level.
"""

import math
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgetag.contract.event import Level
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.dsp.fourier import fast_length, irfft, rfft

FLOOR_DBFS = -120.0
"""What silence reads: below any microphone's own noise, and never taken for a level of 0."""
FAST_S = 0.125

_N_PIECES = 12  # transforms of this length stay in the cache
_N_SIDE_BY_SIDE = 4  # as many as a transform computes at once
_PIECE_SAMPLES = WINDOW_SAMPLES // _N_PIECES
_SETTLING_SAMPLES = SAMPLE_RATE_HZ // 10  # A-weighting rings for less than this, before and after
# Of a window that begins in the middle of the last one, pieces 1 to 4 are that one's 7 to 10.
_AS_BEFORE, _SAME = slice(7, 11), slice(1, 5)
_ALL, _OTHERS = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], [[0, 5, 6, 7], [8, 9, 10, 11]]
_N_FFT = fast_length(_PIECE_SAMPLES + 2 * _SETTLING_SAMPLES)
_SETTLED = slice(_SETTLING_SAMPLES, _SETTLING_SAMPLES + _PIECE_SAMPLES)
_BLOCK_SAMPLES = SAMPLE_RATE_HZ // 2100
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
        hz = np.arange(_N_FFT // 2 + 1, dtype=np.float64) * (SAMPLE_RATE_HZ / _N_FFT)
        self._weights = np.repeat(a_weighting(hz).astype(np.float32), 2)  # of real and imaginary parts
        self._padded = np.zeros(_N_FFT + (_N_PIECES - 1) * _PIECE_SAMPLES, np.float32)
        self._pieces = sliding_window_view(self._padded, _N_FFT)[::_PIECE_SAMPLES]
        self._spectra = np.empty((_N_SIDE_BY_SIDE, _N_FFT // 2 + 1), np.complex64)
        self._parts = self._spectra.view(np.float32)
        self._weighted = np.empty((_N_SIDE_BY_SIDE, _N_FFT), np.float32)
        self._power = np.zeros((_N_PIECES, _PIECE_SAMPLES), np.float32)
        self._is_whole = True  # `_padded` holds a window of which all was heard, and `_power` is its
        # What each sample of a block adds to the fast average at the block's end.
        decay = np.exp(-np.arange(_BLOCK_SAMPLES)[::-1] / (FAST_S * SAMPLE_RATE_HZ))
        self._settled = _settled(WINDOW_SAMPLES, WINDOW_SAMPLES // _BLOCK_SAMPLES)
        self._share = (-np.expm1(-1 / (FAST_S * SAMPLE_RATE_HZ)) * decay).astype(np.float32)

    def __call__(self, samples: NDArray[np.float32], lost: Sequence[tuple[int, int]] = ()) -> Level:
        """Level of what was heard of one window. Uncalibrated: dBFS(A). Silence reads −120.

        LAFmax is of the average that begins at rest with the window, so that a burst reads the same anywhere;
        it is at most 0.02 dB low. LA10 and LA90 are of the average over what has been heard so far, so that a
        steady sound has one level from its first moment on.

        Args:
            samples: the window; what it holds where audio was lost does not matter.
            lost: half-open ranges of samples that were not heard, in order. If that is all of them, the level
                is that of silence.

        Shape: samples [441000] at 44.1 kHz

        Raises:
            ValueError: another number of samples, or ranges that are not in order or not in the window.
        """
        if samples.shape != (WINDOW_SAMPLES,):
            raise ValueError(f"the level meter needs {WINDOW_SAMPLES} samples, got shape {samples.shape}")
        heard = _heard(lost)
        if not heard:
            return Level(FLOOR_DBFS, FLOOR_DBFS, FLOOR_DBFS, FLOOR_DBFS)
        self._weight(samples, heard)
        power, settled = self._power.reshape(-1), self._settled
        if lost:
            power = np.concatenate([power[start:end] for start, end in heard])
            settled = _settled(len(power), -(-len(power) // _BLOCK_SAMPLES))
        fast = self._fast(power)
        la90, la10 = _percentiles(fast / settled, 0.1, 0.9)
        return Level(_db(float(power.mean())), _db(float(fast.max())), _db(la10), _db(la90))

    def _weight(self, samples: NDArray[np.float32], heard: list[tuple[int, int]]) -> None:
        """Make `_power` the square of the A-weighted samples.

        Samples that the last window had, too, are not weighted again, to the bit: not believed but compared.
        """
        is_whole, half = heard == [(0, WINDOW_SAMPLES)], WINDOW_SAMPLES // 2
        overlaps = self._is_whole and is_whole
        if overlaps and np.array_equal(samples[:half], self._padded[_SETTLING_SAMPLES:][half:WINDOW_SAMPLES]):
            self._power[_SAME], groups = self._power[_AS_BEFORE], _OTHERS
        else:
            groups = _ALL
        self._is_whole = False  # should this be interrupted
        self._fill(samples, heard)
        for some in groups:
            rfft(self._pieces[some], out=self._spectra)
            self._parts *= self._weights
            irfft(self._spectra, _N_FFT, out=self._weighted)
            for piece, weighted in zip(some, self._weighted, strict=True):
                np.square(weighted[_SETTLED], out=self._power[piece])
        self._is_whole = is_whole

    def _fill(self, samples: NDArray[np.float32], heard: list[tuple[int, int]]) -> None:
        """The samples with lines through the gaps, and with as much before and after as the pieces reach."""
        (first, _), (_, end) = heard[0], heard[-1]
        window = self._padded[_SETTLING_SAMPLES:][:WINDOW_SAMPLES]
        window[:] = samples
        for (_, before), (after, _) in pairwise(heard):
            line = np.linspace(samples[before - 1], samples[after], after - before + 2)
            window[before:after] = line[1:-1]
        self._padded[: _SETTLING_SAMPLES + first] = samples[first]
        self._padded[_SETTLING_SAMPLES + end :] = samples[end - 1]

    def _fast(self, power: NDArray[np.float32]) -> NDArray[np.float64]:
        """Exponential averaging over 125 ms, from rest, at the end of each block; the last ends with `power`.

        Shape: [n_samples] -> [n_samples / 21, rounded up]
        """
        n_blocks = -(-len(power) // _BLOCK_SAMPLES)
        if missing := n_blocks * _BLOCK_SAMPLES - len(power):
            power = np.concatenate([np.zeros(missing, np.float32), power])  # nothing is added to rest
        averaged: NDArray[np.float64] = (power.reshape(-1, _BLOCK_SAMPLES) @ self._share).astype(np.float64)
        n_summed = 1  # blocks in each sum; every pass adds the sum that ends where it begins
        while n_summed < n_blocks:
            decay = math.exp(-n_summed * _BLOCK_SAMPLES / (FAST_S * SAMPLE_RATE_HZ))
            averaged[n_summed:] += decay * averaged[:-n_summed]
            n_summed *= 2
        return averaged


def _heard(lost: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What lies around the lost ranges.

    >>> _heard([(0, 5), (20, 30)])
    [(5, 20), (30, 441000)]
    """
    borders = [0, *chain.from_iterable(lost), WINDOW_SAMPLES]
    if borders != sorted(borders):
        raise ValueError(f"lost ranges are {lost}; expected some in order in {WINDOW_SAMPLES} samples")
    return [(start, end) for start, end in zip(borders[::2], borders[1::2], strict=True) if start < end]


def _percentiles(values: NDArray[np.float64], *shares: float) -> list[float]:
    """What these shares of the values are below; NumPy's linear ones, in half the time.

    >>> _percentiles(np.array([3.0, 1.0, 2.0]), 0.5, 0.75)
    [2.0, 2.5]
    """
    ranks = [share * (len(values) - 1) for share in shares]
    next_to = sorted({rank for it in ranks for rank in (math.floor(it), math.ceil(it))})
    found: list[float] = np.interp(ranks, next_to, np.partition(values, next_to)[next_to]).tolist()
    return found


def _settled(n_samples: int, n_blocks: int) -> NDArray[np.float64]:
    """Sum of the fast average's weights by the end of each block: 0 at rest, 1 after a second or so."""
    n_heard = n_samples - _BLOCK_SAMPLES * np.arange(n_blocks)[::-1]
    return -np.expm1(-n_heard / (FAST_S * SAMPLE_RATE_HZ))


def calibrated(level: Level, calibration_db: float | None) -> Level:
    """`level` in dB(A) re 20 µPa, which a mean square of 1 has `calibration_db` of; as it is, if None."""
    if calibration_db is None:
        return level
    return Level(
        laeq_db=round(level.laeq_db + calibration_db, 2),
        lafmax_db=round(level.lafmax_db + calibration_db, 2),
        la10_db=round(level.la10_db + calibration_db, 2),
        la90_db=round(level.la90_db + calibration_db, 2),
        calibrated=True,
    )


def _db(power: float) -> float:
    return round(10 * math.log10(max(power, _FLOOR_POWER)), 2)
