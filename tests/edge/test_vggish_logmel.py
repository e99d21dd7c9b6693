"""The VGGish front end equals the published one."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetag.contract.frontend import VGGISH_WINDOW_SAMPLES
from edgetag.dsp.vggish_logmel import VggishLogMel


@pytest.mark.shared
def test_equals_the_reference(golden_front_end: dict[str, NDArray[np.generic]]) -> None:
    """A real street recording at 16 kHz gives the reference's ten patches."""
    samples = golden_front_end["pcm16000"].astype(np.float32) / 32768
    np.testing.assert_allclose(
        VggishLogMel()(samples), golden_front_end["vggish_examples"], rtol=0, atol=1e-4
    )


def test_silence_reads_the_log_offset() -> None:
    """log(0 + 0.01) everywhere."""
    patches = VggishLogMel()(np.zeros(VGGISH_WINDOW_SAMPLES, np.float32))
    assert patches.shape == (10, 96, 64)
    np.testing.assert_allclose(patches, np.log(0.01), rtol=1e-6)


def test_patches_follow_each_other_without_overlap() -> None:
    """A click in patch k (0.96 s each) is heard in patch k alone."""
    for k in range(10):
        samples = np.zeros(VGGISH_WINDOW_SAMPLES, np.float32)
        samples[round((k + 0.5) * 0.96 * 16_000)] = 1
        heard = np.flatnonzero(VggishLogMel()(samples).max(axis=(1, 2)) > np.log(0.011))
        assert heard.tolist() == [k]


def test_the_last_patches_are_those_of_the_whole_window() -> None:
    """To the bit, whatever was computed before."""
    samples = np.random.default_rng(0).normal(0, 0.1, VGGISH_WINDOW_SAMPLES).astype(np.float32)
    front_end = VggishLogMel()
    whole = front_end(samples)
    for first in range(11):
        np.testing.assert_array_equal(front_end(samples, first), whole[first:])
    assert front_end(samples, 10).shape == (0, 96, 64)


def test_another_length_is_refused() -> None:
    """Nothing is padded in silence."""
    with pytest.raises(ValueError, match="160000"):
        VggishLogMel()(np.zeros(159_999, np.float32))
