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

_N_FRAMES = VGGISH_N_PATCHES * VGGISH_PATCH_FRAMES


class VggishLogMel:
    """VGGish front end with its constants; frames are not centred and not padded."""

    def __init__(self) -> None:
        n = np.arange(VGGISH_FRAME_SAMPLES)
        self._hann = (0.5 - 0.5 * np.cos(2 * np.pi * n / VGGISH_FRAME_SAMPLES)).astype(np.float32)
        filters = htk_filters(
            VGGISH_SAMPLE_RATE_HZ, VGGISH_N_FFT, VGGISH_N_MELS, VGGISH_MEL_FMIN_HZ, VGGISH_MEL_FMAX_HZ
        )
        self._filters_t = np.ascontiguousarray(filters.T)
        self._padded = np.zeros((_N_FRAMES, VGGISH_N_FFT), np.float32)

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Natural logarithm of mel magnitude plus 0.01.

        Args:
            samples: 160,000 samples at 16 kHz, full scale ±1.

        Shape: [160000] -> [10, 96, 64] (patch, frame, mel band)

        Raises:
            ValueError: another number of samples.
        """
        if samples.shape != (VGGISH_WINDOW_SAMPLES,):
            raise ValueError(
                f"VGGish needs a window of {VGGISH_WINDOW_SAMPLES} samples, got shape {samples.shape}"
            )
        frames = np.lib.stride_tricks.sliding_window_view(samples, VGGISH_FRAME_SAMPLES)[::VGGISH_HOP_SAMPLES]
        np.multiply(frames[:_N_FRAMES], self._hann, out=self._padded[:, :VGGISH_FRAME_SAMPLES])
        mel = np.abs(rfft(self._padded)) @ self._filters_t
        logmel: NDArray[np.float32] = np.log(mel + np.float32(VGGISH_LOG_OFFSET))
        return logmel.reshape(VGGISH_N_PATCHES, VGGISH_PATCH_FRAMES, VGGISH_N_MELS)
