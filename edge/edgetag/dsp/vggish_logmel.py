"""The VGGish front end: ten seconds at 16 kHz in, ten patches of 96 frames by 64 log-mel bands out.

Source: Hershey et al., "CNN architectures for large-scale audio classification" (2017), and the
published `mel_features.py` / `vggish_input.py`, whose values this reproduces.
"""

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.frontend import (
    VGGISH_FRAME_SAMPLES,
    VGGISH_HOP_SAMPLES,
    VGGISH_LOG_OFFSET,
    VGGISH_MEL_FMAX_HZ,
    VGGISH_MEL_FMIN_HZ,
    VGGISH_N_FFT,
    VGGISH_N_MELS,
    VGGISH_N_PATCHES,
    VGGISH_PATCH_FRAMES,
    VGGISH_SAMPLE_RATE_HZ,
    VGGISH_WINDOW_SAMPLES,
)
from edgetag.dsp.fourier import rfft
from edgetag.dsp.mel import htk_filters


class VggishLogMel:
    """VGGish front end with its buffers; frames are not centred and not padded.

    Patch by patch, whose spectra stay in the second-level cache. Not for two threads at once; make one each.
    """

    def __init__(self) -> None:
        n = np.arange(VGGISH_FRAME_SAMPLES)
        self._hann = (0.5 - 0.5 * np.cos(2 * np.pi * n / VGGISH_FRAME_SAMPLES)).astype(np.float32)
        filters = htk_filters(
            VGGISH_SAMPLE_RATE_HZ, VGGISH_N_FFT, VGGISH_N_MELS, VGGISH_MEL_FMIN_HZ, VGGISH_MEL_FMAX_HZ
        )
        reached = np.flatnonzero(filters.any(axis=0))
        self._bins = slice(int(reached[0]), int(reached[-1]) + 1)
        self._filters_t = np.ascontiguousarray(filters[:, self._bins].T)
        self._padded = np.zeros((VGGISH_PATCH_FRAMES, VGGISH_N_FFT), np.float32)
        self._spectrum = np.empty((VGGISH_PATCH_FRAMES, 1 + VGGISH_N_FFT // 2), np.complex64)
        self._magnitude = np.empty(self._spectrum.shape, np.float32)

    def __call__(self, samples: NDArray[np.float32], first_patch: int = 0) -> NDArray[np.float32]:
        """Natural logarithm of mel magnitude plus 0.01.

        Args:
            samples: 160,000 samples at 16 kHz, full scale ±1.
            first_patch: patches before it, which are known already, are left out.

        Shape: [160000] -> [10 - first_patch, 96, 64] (patch, frame, mel band)

        Raises:
            ValueError: another number of samples.
        """
        if samples.shape != (VGGISH_WINDOW_SAMPLES,):
            raise ValueError(
                f"VGGish needs a window of {VGGISH_WINDOW_SAMPLES} samples, got shape {samples.shape}"
            )
        frames = np.lib.stride_tricks.sliding_window_view(samples, VGGISH_FRAME_SAMPLES)[::VGGISH_HOP_SAMPLES]
        patches = np.empty((VGGISH_N_PATCHES - first_patch, VGGISH_PATCH_FRAMES, VGGISH_N_MELS), np.float32)
        for k, patch in enumerate(patches, first_patch):
            self._mel_magnitude(frames[k * VGGISH_PATCH_FRAMES :][:VGGISH_PATCH_FRAMES], patch)
        patches += np.float32(VGGISH_LOG_OFFSET)
        return np.log(patches, out=patches)

    def _mel_magnitude(self, frames: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Shape: [96, 400] -> [96, 64]"""
        np.multiply(frames, self._hann, out=self._padded[:, :VGGISH_FRAME_SAMPLES])
        rfft(self._padded, out=self._spectrum)
        np.abs(self._spectrum, out=self._magnitude)
        np.matmul(self._magnitude[:, self._bins], self._filters_t, out=out)
