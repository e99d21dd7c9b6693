"""From blocks of any size to windows at 44.1 kHz, each of which knows what is missing from it.

Everything is counted in absolute indices of one stream: frames at the source's rate, samples at 44.1 kHz,
frame f standing at sample round(f * 44100 / rate). Lost frames move both on; nothing is ever spliced:

```
frames    ~~~~~~~~~~.......~~~~~~~~~~~      a block of 10, 7 lost, a block of 11
samples   ~~~~~~~~~~0000000~~~~~~~~~~~      zeros where the audio is missing
windows   [--------)[--------)              every hop, by absolute index, …
                            [--------)      … and one that ends with the stream
valid         1.0       0.3     1.0         share of real audio
overruns       0         1       0          gaps touched
```
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetag.capture.source import Block
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.dsp.resample import StreamResampler, fit_length, n_resampled

CLIP_LEVEL = 1 - 2**-15  # the largest positive 16-bit sample
SANE_PEAK = 2.0**40  # finite samples beyond it are taken for non-finite: they would overflow float32 power

_PIECE_SAMPLES = SAMPLE_RATE_HZ // 10  # the ring holds a window, and what is written at once
_REAL, _CLIPPED = np.uint8(1), np.uint8(2)


@dataclass(frozen=True, eq=False)
class Window:
    """One analysis window.

    `start_sample` is absolute, at 44.1 kHz. `samples`, float32 [441000], is the window's own copy: the
    consumer may keep it. `valid` is the share of the window that is real, finite audio (the rest is zero),
    `clipped` the share of that audio at full scale in any channel, both counted in the source's frames;
    `overruns` is the number of gaps it touches, `lost` where audio is missing from it: half-open ranges of
    its samples, in order, as many as there are. `rate_hz` is the source's. `delivered_s` is
    when the block that completed the window was read, or else arrived here, by the monotonic clock.
    """

    start_sample: int
    samples: NDArray[np.float32]
    valid: float
    overruns: int
    clipped: float
    rate_hz: int
    delivered_s: float
    lost: tuple[tuple[int, int], ...] = ()


class _Heard(NamedTuple):
    """What is known of a window's frames: see `Window`."""

    valid: float
    overruns: int
    clipped: float
    lost: tuple[tuple[int, int], ...]


_PLAIN = _Heard(1.0, 0, 0.0, ())


class Windower:
    """Cuts a stream into windows, one every `hop_samples`, which may be less or more than a window.

    Windows start at multiples of the hop. The same frames in any chunking give bit-identical windows
    (but for `delivered_s`). Windows without any real audio are left out; the grid does not move for it.
    `n_not_finite` counts the frames that were no numbers.
    """

    def __init__(
        self,
        rate_hz: int,
        *,
        hop_samples: int,
        clock: Callable[[], float] = time.monotonic,
        window_samples: int = WINDOW_SAMPLES,
    ) -> None:
        if hop_samples < 1 or window_samples < 1:
            raise ValueError(
                f"hop is {hop_samples} and window {window_samples} samples; both must be at least 1"
            )
        self.rate_hz, self.hop_samples, self.window_samples = rate_hz, hop_samples, window_samples
        self.n_not_finite = 0
        self._clock = clock
        self._delivered_s = 0.0
        self._resampler = StreamResampler(rate_hz, SAMPLE_RATE_HZ)
        self._samples = _Ring(window_samples + _PIECE_SAMPLES, np.float32)
        # Flags are in the ring before their samples are: by the resampler's delay (under a quarter of a
        # second) and the piece being taken (at most a second).
        self._window_frames = window_samples * rate_hz // SAMPLE_RATE_HZ + 1
        self._flags = _Ring(self._window_frames + 2 * rate_hz, np.uint8)
        self._gaps: deque[tuple[int, int]] = deque()  # [first, end) in frames, as far back as the flags reach
        self._plain_from = 0  # from this frame on, all that was taken is real and nothing clipped
        self._next_start = 0

    def feed(self, block: Block) -> list[Window]:
        """Take the next block; return the windows it completes, in order.

        Raises `ValueError` when the block goes back or overlaps the one before, is not float32 of shape
        [n_frames, n_channels], or comes after `finish()`.
        """
        self._check(block)
        if len(block.frames) == 0:
            return []
        self._delivered_s = self._clock() if block.read_s is None else block.read_s
        windows = self._cross_gap(block.first_frame) if block.first_frame > self._flags.end else []
        for start in range(0, len(block.frames), self.rate_hz):
            windows += self._take(block.frames[start : start + self.rate_hz])
        return windows

    def finish(self) -> list[Window]:
        """End the stream; return the windows this completes.

        Audio at the end that the grid meant to cover and no window does gets one that ends with the
        stream's last sample, off the grid. A stream shorter than a window is padded with zeros at its end;
        `valid` tells how much of it was audio.
        """
        windows = self._end_segment()
        n_total = self._samples.end
        if 0 < n_total < self.window_samples:
            return windows + self._write(np.zeros(self.window_samples - n_total, np.float32))
        covered = self._next_start - self.hop_samples + self.window_samples
        if n_total > max(covered, self._next_start):
            windows += self._window(n_total - self.window_samples)
        return windows

    def _check(self, block: Block) -> None:
        if block.frames.ndim != 2 or block.frames.shape[1] < 1 or block.frames.dtype != np.float32:
            raise ValueError(
                f"block is {block.frames.dtype} of shape {block.frames.shape}; "
                "float32 of shape [n_frames, n_channels] is expected"
            )
        if block.first_frame < self._flags.end:
            raise ValueError(
                f"block starts at frame {block.first_frame}, but frames up to {self._flags.end} "
                "have been taken; first_frame may only move forward"
            )

    def _take(self, frames: NDArray[np.float32]) -> list[Window]:
        """Consecutive frames, a second at most: note what is real and what is clipped, mix, resample."""
        if _is_plain(frames):
            self._flags.extend(len(frames), _REAL)
            return self._write(self._resampler.process(_downmix(frames.T)))
        channels = np.ascontiguousarray(frames.T)  # reducing over short rows would take 25 times as long
        peak = np.abs(channels).max(axis=0)
        real = peak <= SANE_PEAK  # False for NaN, too
        clipped = real & (peak >= CLIP_LEVEL)
        self._flags.append(real * _REAL + clipped * _CLIPPED)
        self._plain_from = self._flags.end
        if not real.all():
            self.n_not_finite += int(np.count_nonzero(~real))
            channels = np.where(real, channels, np.float32(0))
        return self._write(self._resampler.process(_downmix(channels)))

    def _cross_gap(self, first_frame: int) -> list[Window]:
        """Move on over lost frames to `first_frame`, in time and memory independent of how many."""
        windows = self._end_segment()
        self._resampler = StreamResampler(self.rate_hz, SAMPLE_RATE_HZ)
        self._note_gap(first_frame)
        # Only windows that end within one window of the audio reach back into it …
        near_frame = min(first_frame, self._flags.end + self._window_frames + 1)
        while self._flags.end < near_frame:  # a second at most, as in `feed`: the flags reach no further
            self._flags.skip_to(min(near_frame, self._flags.end + self.rate_hz))
            windows += self._write(np.zeros(self._sample_at(self._flags.end) - self._samples.end, np.float32))
        if near_frame < first_frame:
            # … and beyond them the next with any audio is the first that ends after the gap.
            self._flags.skip_to(first_frame)
            self._samples.skip_to(self._sample_at(first_frame))
            first_start = self._samples.end - self.window_samples + 1
            self._next_start = max(self._next_start, -(-first_start // self.hop_samples) * self.hop_samples)
        return windows

    def _note_gap(self, first_frame: int) -> None:
        while self._gaps and self._gaps[0][1] <= self._flags.oldest:
            self._gaps.popleft()
        self._gaps.append((self._flags.end, first_frame))
        self._plain_from = first_frame

    def _end_segment(self) -> list[Window]:
        """Bring out what the resampler holds, to exactly the sample at which the frames taken so far end.

        Counted from frame 0 and not from the segment's first, that may differ by one from the resampler's
        own rounding.
        """
        held = self._resampler.process(np.empty(0, np.float32), last=True)
        return self._write(fit_length(held, self._sample_at(self._flags.end) - self._samples.end))

    def _write(self, samples: NDArray[np.float32]) -> list[Window]:
        windows: list[Window] = []
        for start in range(0, len(samples), _PIECE_SAMPLES):
            self._samples.append(samples[start : start + _PIECE_SAMPLES])
            windows += self._due()
        return windows

    def _due(self) -> list[Window]:
        windows: list[Window] = []
        while self._next_start + self.window_samples <= self._samples.end:
            windows += self._window(self._next_start)
            self._next_start += self.hop_samples
        return windows

    def _window(self, start_sample: int) -> list[Window]:
        """The window at `start_sample`, or none when it holds no real audio."""
        end_sample = start_sample + self.window_samples
        first, end = self._frame_at(start_sample), self._frame_at(end_sample)
        heard = _PLAIN
        if first < self._plain_from or self._flags.end < end:
            heard = self._heard(first, end, start_sample)
        if heard.valid == 0:
            return []
        return [
            Window(
                start_sample=start_sample,
                samples=self._samples.read(start_sample, end_sample),
                rate_hz=self.rate_hz,
                delivered_s=self._delivered_s,
                **heard._asdict(),
            )
        ]

    def _heard(self, first: int, end: int, start_sample: int) -> _Heard:
        """What is real of the frames [first, end) of the window at `start_sample`."""
        flags = np.zeros(end - first, np.uint8)  # beyond the stream's end there is nothing
        flags[: self._flags.end - first] = self._flags.read(first, min(end, self._flags.end))
        real = (flags & _REAL).astype(bool)
        n_real = int(np.count_nonzero(real))
        return _Heard(
            valid=n_real / len(real),
            overruns=sum(gap_first < end and first < gap_end for gap_first, gap_end in self._gaps),
            clipped=int(np.count_nonzero(flags & _CLIPPED)) / max(n_real, 1),
            lost=() if n_real == len(real) else self._lost(real, first, start_sample),
        )

    def _lost(self, real: NDArray[np.bool_], first: int, start_sample: int) -> tuple[tuple[int, int], ...]:
        """Ranges of the window at `start_sample`, of whose frames, from `first` on, these are real."""
        edges = first + np.flatnonzero(np.diff(real, prepend=True, append=True))
        samples = [max(0, self._sample_at(frame) - start_sample) for frame in edges.tolist()]
        return tuple(zip(samples[::2], samples[1::2], strict=True))

    def _sample_at(self, frame: int) -> int:
        """The 44.1 kHz sample nearest to a frame."""
        return n_resampled(frame, self.rate_hz, SAMPLE_RATE_HZ)

    def _frame_at(self, sample: int) -> int:
        """The first frame that stands at `sample` or later: the inverse of `_sample_at`."""
        return max(0, -((1 - 2 * sample) * self.rate_hz // (2 * SAMPLE_RATE_HZ)))


def _is_plain(frames: NDArray[np.float32]) -> bool:
    """Whether every frame is real and none clipped, as most are: told by two numbers."""
    return bool(frames.min() > -CLIP_LEVEL and frames.max() < CLIP_LEVEL)  # False for NaN, too


def _downmix(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Their mean; summed channel by channel, so that no bit depends on the number of frames.

    Shape: [n_channels, n_frames] -> [n_frames]; of one channel it is a view
    """
    mono: NDArray[np.float32] = channels[0] if len(channels) == 1 else channels[0] / len(channels)
    for channel in channels[1:]:
        mono += channel / len(channels)
    return mono


_ScalarT = TypeVar("_ScalarT", bound=np.generic)


class _Ring(Generic[_ScalarT]):
    """The last `capacity` values of an endless sequence, by absolute index; allocated once."""

    def __init__(self, capacity: int, dtype: type[_ScalarT]) -> None:
        self._values: NDArray[_ScalarT] = np.zeros(capacity, dtype)
        self.end = 0

    @property
    def oldest(self) -> int:
        """The first index that can still be read."""
        return self.end - len(self._values)

    def append(self, values: NDArray[_ScalarT]) -> None:
        """Add values, no more than the ring holds."""
        assert len(values) <= len(self._values)
        low, high = self._slots(self.end, len(values))
        low[:], high[:] = values[: len(low)], values[len(low) :]
        self.end += len(values)

    def extend(self, n_values: int, value: _ScalarT) -> None:
        """Add one value so many times, no more than the ring holds."""
        assert n_values <= len(self._values)
        for slot in self._slots(self.end, n_values):
            slot[:] = value
        self.end += n_values

    def skip_to(self, end: int) -> None:
        """Move on to index `end`; what is passed over reads as zero."""
        for slot in self._slots(self.end, min(end - self.end, len(self._values))):
            slot[:] = 0
        self.end = end

    def read(self, start: int, end: int) -> NDArray[_ScalarT]:
        """A copy of [start, end)."""
        assert self.oldest <= start <= end <= self.end
        return np.concatenate(self._slots(start, end - start))

    def _slots(self, start: int, n_values: int) -> tuple[NDArray[_ScalarT], NDArray[_ScalarT]]:
        """Where `n_values` from index `start` lie: up to the ring's border, and on from its beginning."""
        low = self._values[start % len(self._values) :][:n_values]
        return low, self._values[: n_values - len(low)]
