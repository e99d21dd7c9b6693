"""What every side hears: a minute of the project's own synthetic street, at 44.1 kHz, over and over."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE_HZ = 44_100
STREET_S = 60
WINDOW_SAMPLES = 10 * RATE_HZ
_SCALE = np.float32(1 / 32768)


def write_street(file: Path, *, rate_hz: int = RATE_HZ, duration_s: int = STREET_S) -> Path:
    """Write the street as a recorder would: little-endian 16-bit samples, mono. Returns `file`."""
    pcm(rate_hz, duration_s).tofile(file)
    return file


def pcm(rate_hz: int = RATE_HZ, duration_s: int = STREET_S) -> "NDArray[np.int16]":
    """The street's samples. Shape: [duration · rate]"""
    from edgetag.demo.scene import street_scene
    from edgetag.dsp.resample import resample

    samples = resample(street_scene(duration_s=duration_s).samples, RATE_HZ, rate_hz)
    return np.round(samples * 32767).astype("<i2")


class Street:
    """A file of `write_street`, read piece by piece: what a side holds of it is what it hears just now."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._n_samples = file.stat().st_size // 2

    def read(self, first: int, n_samples: int) -> "NDArray[np.float32]":
        """Samples `first` … of the street that goes on for ever. Shape: [n_samples], full scale ±1"""
        pieces: list[NDArray[np.int16]] = []
        while n_samples > 0:
            at = first % self._n_samples
            n = min(n_samples, self._n_samples - at)
            pieces.append(np.fromfile(self._file, "<i2", n, offset=2 * at))
            first, n_samples = first + n, n_samples - n
        return np.concatenate(pieces).astype(np.float32) * _SCALE
