"""The numbers of both front ends, each derived from the ones above it; everything else imports the names."""

from typing import Literal

import msgspec

# -- the window -------------------------------------------------------------------------------------
SAMPLE_RATE_HZ = 44_100
WINDOW_S = 10
WINDOW_SAMPLES = SAMPLE_RATE_HZ * WINDOW_S

# -- log-mel (the paper's section 2; librosa.feature.melspectrogram's defaults at 44.1 kHz) -----------
N_FFT = 2048
HOP_SAMPLES = 512
N_FRAMES = 1 + WINDOW_SAMPLES // HOP_SAMPLES  # centred: frame k is centred on sample k * HOP_SAMPLES
N_MELS = 128
MEL_FMIN_HZ = 0.0
MEL_FMAX_HZ = SAMPLE_RATE_HZ / 2
AMIN_POWER = 1e-10
FLOOR_DB = -80.0  # below the window's own maximum

# -- VGGish (Hershey et al. 2017; the published front end) ---------------------------------------------
VGGISH_SAMPLE_RATE_HZ = 16_000
VGGISH_WINDOW_SAMPLES = VGGISH_SAMPLE_RATE_HZ * WINDOW_S
VGGISH_FRAME_SAMPLES = VGGISH_SAMPLE_RATE_HZ * 25 // 1000
VGGISH_HOP_SAMPLES = VGGISH_SAMPLE_RATE_HZ * 10 // 1000
VGGISH_N_FFT = 512
VGGISH_N_MELS = 64
VGGISH_MEL_FMIN_HZ = 125.0
VGGISH_MEL_FMAX_HZ = 7500.0
VGGISH_LOG_OFFSET = 0.01
VGGISH_PATCH_FRAMES = 96  # 0.96 s
VGGISH_N_PATCHES = 10
VGGISH_EMBEDDING_SIZE = 128

# -- when a window is not worth a net's time -------------------------------------------------------------
MIN_HOP_S = 0.1
MIN_VALID = 0.9
"""Smallest fraction of a window that must be real audio for the window to be tagged."""
SILENCE_PEAK = 1e-6
"""A window whose samples deviate from their mean by less than this (−120 dBFS, an eighth of a
24-bit converter's own noise) is digital silence: no microphone is that quiet. The log-mel of pure
silence would read 0 dB everywhere, the loudest value there is, so the nets must never see it."""

assert N_FRAMES == 862
assert VGGISH_FRAME_SAMPLES == 400
assert VGGISH_HOP_SAMPLES == 160
assert (
    1 + (VGGISH_WINDOW_SAMPLES - VGGISH_FRAME_SAMPLES) // VGGISH_HOP_SAMPLES
    >= VGGISH_N_PATCHES * VGGISH_PATCH_FRAMES
)


class FrontEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The log-mel front end a bundle was trained with, as its manifest states it.

    A sensor computes exactly one: a bundle that states other numbers is refused.
    """

    kind: Literal["logmel"] = "logmel"
    sample_rate_hz: int = SAMPLE_RATE_HZ
    window_samples: int = WINDOW_SAMPLES
    n_fft: int = N_FFT
    hop_samples: int = HOP_SAMPLES
    n_mels: int = N_MELS
    fmin_hz: float = MEL_FMIN_HZ
    fmax_hz: float = MEL_FMAX_HZ
    amin: float = AMIN_POWER
    floor_db: float = FLOOR_DB


LOGMEL = FrontEnd()
