"""The embedding step, for bundles whose nets take one: ten 96×64 log-mel patches in, 10×128 out."""

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.frontend import SAMPLE_RATE_HZ, VGGISH_SAMPLE_RATE_HZ, VGGISH_WINDOW_SAMPLES
from edgetag.dsp.resample import resample
from edgetag.dsp.vggish_logmel import VggishLogMel
from edgetag.tagging.bundle import PATCHES_INPUT, OnnxNet


class Embedder:
    """A window to its embedding, by the bundle's embedding net (VGGish or one of the same contract)."""

    def __init__(self, net: OnnxNet) -> None:
        self._net = net
        self._front_end = VggishLogMel()

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Shape: [441000] at 44.1 kHz -> [1, 10, 128]"""
        at_16_khz = resample(samples, SAMPLE_RATE_HZ, VGGISH_SAMPLE_RATE_HZ)
        assert at_16_khz.shape == (VGGISH_WINDOW_SAMPLES,)
        embedding = self._net({PATCHES_INPUT: self._front_end(at_16_khz)})
        return embedding[np.newaxis]
