"""Mel filter banks, built in float64 from the formulas and kept as float32."""

import numpy as np
from numpy.typing import NDArray

_SLANEY_LINEAR_HZ = 200.0 / 3  # below the break: this many Hz a mel
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_BREAK_MEL = _SLANEY_BREAK_HZ / _SLANEY_LINEAR_HZ
_SLANEY_LOG_STEP = np.log(6.4) / 27  # above it: 27 mels for a factor of 6.4


def hz_to_mel_slaney(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's Auditory Toolbox scale: linear below 1 kHz, logarithmic above. Any shape, Hz in, mel out."""
    log_part = (
        _SLANEY_BREAK_MEL + np.log(np.maximum(hz, _SLANEY_BREAK_HZ) / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP
    )
    return np.where(hz < _SLANEY_BREAK_HZ, hz / _SLANEY_LINEAR_HZ, log_part)


def mel_to_hz_slaney(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `hz_to_mel_slaney`."""
    log_part = _SLANEY_BREAK_HZ * np.exp(_SLANEY_LOG_STEP * (mel - _SLANEY_BREAK_MEL))
    return np.where(mel < _SLANEY_BREAK_MEL, mel * _SLANEY_LINEAR_HZ, log_part)


def hz_to_mel_htk(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """The HTK scale, as VGGish uses it: 1127 ln(1 + f/700)."""
    return 1127.0 * np.log1p(hz / 700.0)


def slaney_filters(
    rate_hz: int, n_fft: int, n_mels: int, fmin_hz: float, fmax_hz: float
) -> NDArray[np.float32]:
    """Triangles on Hz, equally spaced in Slaney mel, each of unit area (librosa's defaults).

    Shape: [n_mels, 1 + n_fft // 2]
    """
    low, high = hz_to_mel_slaney(np.array([fmin_hz, fmax_hz]))
    edges_hz = mel_to_hz_slaney(np.linspace(low, high, n_mels + 2, dtype=np.float64))
    triangles = _triangles(np.linspace(0.0, rate_hz / 2, 1 + n_fft // 2), edges_hz)
    area = 2.0 / (edges_hz[2:] - edges_hz[:-2])
    return (triangles * area[:, None]).astype(np.float32)


def htk_filters(rate_hz: int, n_fft: int, n_mels: int, fmin_hz: float, fmax_hz: float) -> NDArray[np.float32]:
    """Triangles on the HTK mel axis, peak 1, DC bin excluded (the published VGGish front end).

    Shape: [n_mels, 1 + n_fft // 2]
    """
    bins_mel = hz_to_mel_htk(np.linspace(0.0, rate_hz / 2, 1 + n_fft // 2))
    low, high = hz_to_mel_htk(np.array([fmin_hz, fmax_hz]))
    triangles = _triangles(bins_mel, np.linspace(low, high, n_mels + 2))
    triangles[:, 0] = 0.0
    return triangles.astype(np.float32)


def _triangles(bins: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Triangle k rises from edges[k] to 1 at edges[k+1] and falls to edges[k+2]."""
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0.0, np.minimum(rising, falling))
