"""The embedding step, for bundles whose nets take one: ten 96×64 log-mel patches in, 10×128 out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.frontend import (
    SAMPLE_RATE_HZ,
    VGGISH_EMBEDDING_SIZE,
    VGGISH_HOP_SAMPLES,
    VGGISH_N_PATCHES,
    VGGISH_PATCH_FRAMES,
    VGGISH_SAMPLE_RATE_HZ,
    VGGISH_WINDOW_SAMPLES,
)
from edgetag.dsp.resample import resample
from edgetag.dsp.vggish_logmel import VggishLogMel
from edgetag.tagging.bundle import PATCHES_INPUT, OnnxNet

PATCH_SAMPLES = VGGISH_PATCH_FRAMES * VGGISH_HOP_SAMPLES * SAMPLE_RATE_HZ // VGGISH_SAMPLE_RATE_HZ
"""From one patch to the next at 44.1 kHz, to the sample: 15,360 at 16 kHz."""
assert PATCH_SAMPLES == 42_336
_NOTHING = np.empty((0, VGGISH_EMBEDDING_SIZE), np.float32)


@dataclass(frozen=True, eq=False)
class _Heard:
    """A window, its place in the stream and its embeddings. Shape: samples [441000], embeddings [10, 128]

    Without samples where the next window will hardly begin with one of its patches.
    """

    start_sample: int
    samples: NDArray[np.float32] | None
    embeddings: NDArray[np.float32]


class Embedder:
    """A window to its embedding, by the bundle's embedding net (VGGish or one of the same contract).

    Patches do not overlap, so a window that starts k patches after the one before it has 10 − k of that
    one's patches, moved k places to the front. If the net's number of patches is free, it runs on the k new
    ones alone; the other embeddings are taken over. Whether the samples they stand on are the same is not
    believed but compared, so a gap, another stream or a place counted anew costs time and never truth.

    ```
    before  0 1 2 3 4 5 6 7 8 9               k = 5: a hop of 4.8 s
    now               0 1 2 3 4 5 6 7 8 9     0 to 4 are taken over, 5 to 9 are computed
    ```

    A new patch's log-mel is that of the whole window, to the bit: all of it is resampled (resampling a part
    of a window gives other rounding), though log-mel is only made of the new ones. A patch
    that is taken over was resampled at another place in its window, and float32 rounds otherwise there: its
    log-mel differs by 7e-5 at most in a street, by 2e-3 beside a pure tone at full scale. The one that
    becomes a window's first was heard with the audio before it; alone, the window begins with a step from
    silence, whose ringing is in its first frame: less than rounding in a street, 0.2 with such a tone.

    What that comes to, with VGGish's shape and random weights on a street: in fp32 no value of the embedding
    changes; in int8, whose steps turn rounding into whole ones, an eighth of the values taken over do, by 0.4
    of 255 in the mean over all and 21 at most (int8 is 8.5 and 56 from fp32). At a
    hop of 4.8 s a window costs 0.55 of its time in fp32 and 0.6 in int8.
    """

    def __init__(self, net: OnnxNet) -> None:
        self._net = net
        self._front_end = VggishLogMel()
        self._is_free = net.inputs[PATCHES_INPUT][0] is None
        self._last: _Heard | None = None

    def __call__(self, samples: NDArray[np.float32], start_sample: int | None = None) -> NDArray[np.float32]:
        """One window's embedding.

        Args:
            samples: the window.
            start_sample: its place in the stream; without one nothing is taken over, nor remembered.

        Shape: [441000] at 44.1 kHz -> [1, 10, 128]
        """
        at_16_khz = resample(samples, SAMPLE_RATE_HZ, VGGISH_SAMPLE_RATE_HZ)
        assert at_16_khz.shape == (VGGISH_WINDOW_SAMPLES,)
        known = self._known(samples, start_sample)
        embeddings = self._net({PATCHES_INPUT: self._front_end(at_16_khz, len(known))})
        if len(known):
            embeddings = np.concatenate([known, embeddings])
        if start_sample is not None and self._is_free:
            on_grid = self._last is None or (start_sample - self._last.start_sample) % PATCH_SAMPLES == 0
            self._last = _Heard(start_sample, samples.copy() if on_grid else None, embeddings)
        return embeddings[np.newaxis]

    def _known(self, samples: NDArray[np.float32], start_sample: int | None) -> NDArray[np.float32]:
        """The window's first embeddings, as many as the last window has. Shape: [10 - k, 128], or [0, 128]"""
        last = self._last
        if last is None or last.samples is None or start_sample is None:
            return _NOTHING
        moved = start_sample - last.start_sample
        n_new, rest = divmod(moved, PATCH_SAMPLES)
        if rest or not 0 < n_new < VGGISH_N_PATCHES:
            return _NOTHING
        # The overlap goes on for 0.38 s after the last patch in it, which its last frame and filter read of.
        if not np.array_equal(last.samples[moved:], samples[:-moved]):
            return _NOTHING
        return last.embeddings[n_new:]
