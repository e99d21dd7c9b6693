"""Sample-rate conversion of mono streams; the state survives block borders.

soxr's own output does not depend on how a stream is cut into blocks (a property test holds it to that), so
blocks go straight in and what comes back is bit-identical for any chunking.
"""

import numpy as np
import soxr
from numpy.typing import NDArray

QUALITY = "HQ"  # 20 bit: pass band to 0.91 of the lower Nyquist rate, stop band below −120 dB


class StreamResampler:
    """Converts one mono stream from `from_hz` to `to_hz`, block by block.

    Output sample k stands at time k / to_hz of the stream: the filter's delay is compensated, so nothing
    is shifted, but up to a quarter of a second (at 4 kHz; 20 ms at 48 kHz) is held back until later blocks
    or the end bring it out. After n samples in, the whole stream has `n_resampled(n, …)` samples out. With
    equal rates the samples pass through untouched.

    Raises `ValueError` for rates that are not positive, and for samples after the last block.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        if from_hz <= 0 or to_hz <= 0:
            raise ValueError(f"rates are {from_hz} Hz and {to_hz} Hz; both must be positive")
        self.from_hz, self.to_hz = from_hz, to_hz
        self._stream = (
            None if from_hz == to_hz else soxr.ResampleStream(from_hz, to_hz, 1, "float32", QUALITY)
        )
        self._n_in = self._n_out = 0
        self._ended = False

    def process(self, samples: NDArray[np.float32], last: bool = False) -> NDArray[np.float32]:
        """Take the next block, of any size, none included; `last` brings out what the filter still holds.

        Shape: [n] -> [m], both float32; m varies and may be 0. The result may be `samples` itself.
        Raises `ValueError` for another shape or type, or when the last block has gone by.
        """
        self._check(samples)
        self._ended = last
        if self._stream is None:
            return samples
        self._n_in += len(samples)
        out: NDArray[np.float32] = self._stream.resample_chunk(np.ascontiguousarray(samples), last=last)
        if last:
            out = fit_length(out, n_resampled(self._n_in, self.from_hz, self.to_hz) - self._n_out)
        self._n_out += len(out)
        return out

    def _check(self, samples: NDArray[np.float32]) -> None:
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise ValueError(
                f"samples are {samples.dtype} of shape {samples.shape}; a float32 vector is expected"
            )
        if self._ended:
            raise ValueError("the stream has ended; a new stream needs a new StreamResampler")


def n_resampled(n_samples: int, from_hz: int, to_hz: int) -> int:
    """Samples that `n_samples` become: n * to / from, halves rounded up, in exact integers.

    >>> n_resampled(480_000, 48_000, 44_100), n_resampled(1, 32_000, 48_000)
    (441000, 2)
    """
    return (2 * n_samples * to_hz + from_hz) // (2 * from_hz)


def fit_length(samples: NDArray[np.float32], n_samples: int) -> NDArray[np.float32]:
    """Trim at the end, or pad with zeros, to exactly `n_samples`. Shape: [n] -> [n_samples]."""
    out = np.zeros(n_samples, np.float32)
    n_kept = min(n_samples, len(samples))
    out[:n_kept] = samples[:n_kept]
    return out


def resample(samples: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """A whole mono signal at once, bit-identical to the stream.

    Shape: [n] -> [n_resampled(n, from_hz, to_hz)], float32. With equal rates the result is `samples` itself.
    """
    return StreamResampler(from_hz, to_hz).process(samples, last=True)
