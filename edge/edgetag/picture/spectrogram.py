"""A recording's log-mel spectrogram in absolute decibels, of any length in the same memory.

It is not what the nets see: their log-mels are relative to each window's own maximum. Here 0 dB is a band
whose mean square is 1, as for levels; a full-scale sine reads −3 dB over its bands together.

```
frames     | | | | | | | | | | | |     every 12 ms
columns    [ ] [ ] [ ] [ ] [ ] [ ]     means of n frames; when there are too many, n doubles
lost       | | |       | | | | | |     a column without a frame is unknown
```
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetag.capture.source import Block
from edgetag.capture.windows import SANE_PEAK
from edgetag.contract.frontend import HOP_SAMPLES, MEL_FMAX_HZ, MEL_FMIN_HZ, N_FFT, N_MELS, SAMPLE_RATE_HZ
from edgetag.dsp.fourier import fast_length, rfft
from edgetag.dsp.mel import hz_to_mel_slaney, mel_to_hz_slaney, slaney_filters

MAX_COLUMNS = 2000
FLOOR_DB = -120.0
RANGE_DB = 70.0  # at most so far below the loudest a picture tells faint from nothing
MIN_RANGE_DB = 30.0
_CHUNK_FRAMES = 64


@dataclass(frozen=True, eq=False)
class Spectrogram:
    """Band powers over time.

    Attributes:
        db: dB re a mean square of 1, at least −120; NaN where nothing was heard. Shape: [n_bands, n_columns]
        column_s: seconds from one column to the next; the first begins with the recording.
        edges_mel: the lowest band's and the highest one's edge, on Slaney's scale.
    """

    db: NDArray[np.float32]
    column_s: float
    edges_mel: tuple[float, float]

    @property
    def duration_s(self) -> float:
        """Of all columns; up to one of them more than was heard."""
        n_columns: int = self.db.shape[1]
        return n_columns * self.column_s

    def range_db(self) -> tuple[float, float]:
        """Of the colours that show it best: the loudest but one in a thousand, and the faintest worth it."""
        heard = self.db[np.isfinite(self.db)]
        if heard.size == 0 or heard.max() <= FLOOR_DB:
            return FLOOR_DB, FLOOR_DB + RANGE_DB
        low, high = np.percentile(heard, (2, 99.9))
        high = 5 * np.ceil(high / 5)
        low = 5 * np.floor(max(low, high - RANGE_DB) / 5)
        return float(min(low, high - MIN_RANGE_DB)), float(high)

    def band_of(self, hz: float) -> float:
        """Where a frequency lies: 0 is the lowest band's middle, 1 the next one's."""
        low, high = self.edges_mel
        step = (high - low) / (len(self.db) + 1)
        mel: float = hz_to_mel_slaney(np.array(hz)).item()
        return (mel - low) / step - 1

    def centres_hz(self) -> NDArray[np.float64]:
        """The bands' middle frequencies. Shape: [n_bands]"""
        return mel_to_hz_slaney(np.linspace(*self.edges_mel, len(self.db) + 2))[1:-1]


class Spectrograph:
    """Takes a recording block by block, for its spectrogram.

    Bands are as wide as the tagger's, and as many as the recording's rate has room for. Frames begin anew
    after a gap. A sample that is no number, or no sound either, is lost.

    Args:
        rate_hz: of the recording.
        max_columns: of the spectrogram, even.
    """

    def __init__(self, rate_hz: int, *, max_columns: int = MAX_COLUMNS) -> None:
        self.rate_hz = rate_hz
        self._n_fft = fast_length(round(N_FFT * rate_hz / SAMPLE_RATE_HZ))
        self._hop = max(1, round(HOP_SAMPLES * rate_hz / SAMPLE_RATE_HZ))
        fmax_hz = min(MEL_FMAX_HZ, rate_hz / 2)
        low, high, full = hz_to_mel_slaney(np.array([MEL_FMIN_HZ, fmax_hz, MEL_FMAX_HZ])).tolist()
        n_bands = max(1, round(N_MELS * high / full))
        self.edges_mel = (low, high)
        window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self._n_fft) / self._n_fft)).astype(np.float32)
        self._window = window
        self._filters_t = _band_filters(rate_hz, self._n_fft, n_bands, fmax_hz, window)
        self._power = np.zeros((max_columns, n_bands))
        self._n_frames = np.zeros(max_columns, np.int64)  # in each column
        self._frames_per_column = 1
        self._held = np.empty(0, np.float32)  # samples that a frame to come reaches back to
        self._centre = 0  # of the next frame
        self._end = 0
        self._stretch_end: int | None = None

    @property
    def heard_s(self) -> float:
        """From the recording's beginning to the last sample that came."""
        return self._end / self.rate_hz

    def __call__(self, block: Block) -> None:
        """Take the next block."""
        mono = block.frames.mean(axis=1, dtype=np.float32)
        is_sound = np.abs(mono) <= SANE_PEAK  # False for NaN, too
        if is_sound.all():
            self._take(block.first_frame, mono)
            return
        borders = np.flatnonzero(np.diff(is_sound, prepend=False, append=False))
        for start, end in borders.reshape(-1, 2).tolist():
            self._take(block.first_frame + start, mono[start:end])
        self._end = block.first_frame + len(mono)

    def finish(self) -> Spectrogram:
        """Of all that came; nothing can come after it."""
        self._end_stretch()
        column_samples = self._frames_per_column * self._hop
        n_columns = min(-(-self._end // column_samples), len(self._power))
        n_frames = self._n_frames[:n_columns, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            power = self._power[:n_columns] / n_frames
        power[n_frames[:, 0] == 0] = np.nan
        db = 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))
        return Spectrogram(db.T.astype(np.float32), column_samples / self.rate_hz, self.edges_mel)

    def _take(self, first: int, samples: NDArray[np.float32]) -> None:
        """Samples that follow those before, or begin anew at `first`."""
        if first != self._stretch_end:
            self._end_stretch()
            self._begin_stretch(first)
        self._end = self._stretch_end = first + len(samples)
        self._transform(samples)

    def _begin_stretch(self, first: int) -> None:
        """The first frame is centred on a multiple of the hop; before the stretch there are zeros."""
        self._centre = -(-first // self._hop) * self._hop
        self._held = np.zeros(self._n_fft // 2 - (self._centre - first), np.float32)

    def _end_stretch(self) -> None:
        """The last frames reach into zeros, too."""
        if self._stretch_end is not None:
            self._transform(np.zeros(self._n_fft // 2, np.float32))

    def _transform(self, samples: NDArray[np.float32]) -> None:
        """Every frame that is complete with these samples."""
        stretch = np.concatenate([self._held, samples])
        if len(stretch) < self._n_fft:
            self._held = stretch
            return
        frames = np.lib.stride_tricks.sliding_window_view(stretch, self._n_fft)[:: self._hop]
        n = len(frames)
        for k in range(0, n, _CHUNK_FRAMES):
            self._add(self._centre + k * self._hop, frames[k : k + _CHUNK_FRAMES])
        self._centre += n * self._hop
        self._held = stretch[n * self._hop :].copy()

    def _add(self, centre: int, frames: NDArray[np.float32]) -> None:
        spectrum = rfft(frames * self._window)
        power = (np.square(spectrum.real) + np.square(spectrum.imag)) @ self._filters_t
        index = centre // self._hop + np.arange(len(frames))
        while index[-1] // self._frames_per_column >= len(self._power):
            self._halve()
        columns = index // self._frames_per_column
        first = np.flatnonzero(np.diff(columns, prepend=-1))  # frames of a column are consecutive
        self._power[columns[first]] += np.add.reduceat(power, first, axis=0)
        self._n_frames[columns[first]] += np.diff(first, append=len(columns))

    def _halve(self) -> None:
        """Two columns become one."""
        half = len(self._power) // 2
        for values in (self._power, self._n_frames):
            values[:half] = values[0 : 2 * half : 2] + values[1 : 2 * half : 2]
            values[half:] = 0
        self._frames_per_column *= 2


def _band_filters(
    rate_hz: int, n_fft: int, n_bands: int, fmax_hz: float, window: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Triangles of height 1, scaled so that a band's power is its share of the mean square.

    Shape: [1 + n_fft // 2, n_bands]
    """
    filters = slaney_filters(rate_hz, n_fft, n_bands, MEL_FMIN_HZ, fmax_hz)
    low, high = hz_to_mel_slaney(np.array([MEL_FMIN_HZ, fmax_hz]))
    edges_hz = mel_to_hz_slaney(np.linspace(low, high, n_bands + 2))
    halves = (edges_hz[2:] - edges_hz[:-2])[:, None] / 2  # of their bases: their areas are 1
    # Twice, for the negative frequencies; Parseval.
    scale = 2 / (n_fft * np.square(window, dtype=np.float64).sum())
    return np.ascontiguousarray((filters * halves * scale).T, np.float32)
