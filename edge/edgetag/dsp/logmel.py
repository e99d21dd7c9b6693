"""The paper's front end: ten seconds in, 862 frames of 128 mel bands in dB below the window's maximum out.

Equal to librosa's chain (`feature.melspectrogram` with `pad_mode="constant"`, then
`power_to_db(ref=np.max)`) to 1e-3 dB, without librosa; all buffers are allocated once.

Everything is float32. Its rounding noise in the Fourier transform lies some 150 dB below a frame's own
power, which moves a band 75 dB below that by up to 1e-3 dB: frames with so faint a band above the floor
are transformed again, in float64. On a street that is one in a hundred, of a pure tone all of them.
"""

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.frontend import (
    AMIN_POWER,
    FLOOR_DB,
    HOP_SAMPLES,
    MEL_FMAX_HZ,
    MEL_FMIN_HZ,
    N_FFT,
    N_FRAMES,
    N_MELS,
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
)
from edgetag.dsp.fourier import rfft
from edgetag.dsp.mel import slaney_filters

_CHUNK_FRAMES = 32  # frames with their spectra, 600 KiB: they stay in the second-level cache
_GROUP_MELS = 16  # bands that are summed in one product, over no more bins than they reach
_DB_PER_NEPER = np.float32(10.0 / np.log(10.0))
_FAINT = np.float32(4e-8)  # of its frame's power: less is too little for float32
_FLOOR = np.float32(10.0 ** (FLOOR_DB / 10.0))


class LogMel:
    """Log-mel front end with its buffers. Not for two threads at once; make one each."""

    def __init__(self) -> None:
        n = np.arange(N_FFT)
        # Hann, periodic: the window that repeats every N_FFT samples, for spectral analysis.
        self._hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / N_FFT)
        self._hanns = np.tile(self._hann.astype(np.float32), (_CHUNK_FRAMES, 1))
        self._filters = slaney_filters(SAMPLE_RATE_HZ, N_FFT, N_MELS, MEL_FMIN_HZ, MEL_FMAX_HZ)
        self._groups = [_group(self._filters, first) for first in range(0, N_MELS, _GROUP_MELS)]
        self._unweighted = 1 / self._filters.max(axis=1)  # triangles of height 1: together they have all bins
        self._padded = np.zeros(
            WINDOW_SAMPLES + N_FFT, np.float32
        )  # centred frames: half a frame of zeros each side
        self._frames = np.lib.stride_tricks.sliding_window_view(self._padded, N_FFT)[::HOP_SAMPLES]
        self._windowed = np.empty((_CHUNK_FRAMES, N_FFT), np.float32)
        self._spectrum = np.empty((_CHUNK_FRAMES, 1 + N_FFT // 2), np.complex64)
        self._power = np.empty((_CHUNK_FRAMES, 1 + N_FFT // 2), np.float32)
        self._imag_power = np.empty_like(self._power)
        self._mel = np.empty((N_FRAMES, N_MELS), np.float32)
        assert self._frames.shape == (N_FRAMES, N_FFT)

    def __call__(
        self, samples: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """dB relative to the window's own maximum, never below −80.

        Args:
            samples: 441,000 samples at 44.1 kHz, full scale ±1.
            out: where to write; a new array if absent.

        Shape: [441000] -> [128, 862] (mel band, frame)

        Raises:
            ValueError: another number of samples. Nothing is padded in silence.
        """
        if samples.shape != (WINDOW_SAMPLES,):
            raise ValueError(f"log-mel needs a window of {WINDOW_SAMPLES} samples, got shape {samples.shape}")
        self._padded[N_FFT // 2 : N_FFT // 2 + WINDOW_SAMPLES] = samples
        for start in range(0, N_FRAMES, _CHUNK_FRAMES):
            self._mel_power(start, min(start + _CHUNK_FRAMES, N_FRAMES))
        faint = self._faint()
        for first in range(0, len(faint), _CHUNK_FRAMES):
            self._exact_mel_power(faint[first : first + _CHUNK_FRAMES])
        self._to_db()
        if out is None:
            out = np.empty((N_MELS, N_FRAMES), np.float32)
        np.copyto(out, self._mel.T)
        return out

    def _mel_power(self, start: int, stop: int) -> None:
        n = stop - start
        windowed, power, imag_power = self._windowed[:n], self._power[:n], self._imag_power[:n]
        # Twice over memory, in one stretch each, is faster than once over frames that overlap.
        np.copyto(windowed, self._frames[start:stop])
        windowed *= self._hanns[:n]
        spectrum = rfft(windowed, out=self._spectrum[:n])
        np.square(spectrum.real, out=power)
        np.square(spectrum.imag, out=imag_power)
        power += imag_power
        for mels, bins, filters_t in self._groups:
            np.matmul(power[:, bins], filters_t, out=self._mel[start:stop, mels])

    def _faint(self) -> NDArray[np.intp]:
        """Frames with a band that is above the floor, but too far below the frame's own power."""
        heard = self._mel > np.float32(self._mel.max()) * _FLOOR
        power = self._mel * self._unweighted
        faint = power < _FAINT * power.sum(axis=1, keepdims=True)
        return np.flatnonzero((heard & faint).any(axis=1))

    def _exact_mel_power(self, frames: NDArray[np.intp]) -> None:
        spectrum = rfft(self._frames[frames] * self._hann)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        self._mel[frames] = power.astype(np.float32) @ self._filters.T

    def _to_db(self) -> None:
        mel = self._mel
        np.maximum(mel, np.float32(AMIN_POWER), out=mel)
        np.log(mel, out=mel)
        mel *= _DB_PER_NEPER
        mel -= mel.max()
        np.maximum(mel, np.float32(FLOOR_DB), out=mel)


def _group(filters: NDArray[np.float32], first: int) -> tuple[slice, slice, NDArray[np.float32]]:
    """Some bands, the bins that they reach, and their filters there.

    Shape of the filters: [n_bins, _GROUP_MELS]
    """
    mels = slice(first, first + _GROUP_MELS)
    reached = np.flatnonzero(filters[mels].any(axis=0))
    bins = slice(int(reached[0]), int(reached[-1]) + 1)
    return mels, bins, np.ascontiguousarray(filters[mels, bins].T)
