"""Variants of a recording, on the waveform: another pitch, then a noise behind it, then another volume."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag_train.data.scenes import at_rms, choice, coloured_noise, looped, rms
from edgetag_train.data.sounds import Sound

Samples = NDArray[np.float32]
_MAX_SNR_DB = 120.0
_SILENCE_RMS = 1e-7


class Augmentation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How variants are drawn; a draw of ±x is uniform in [-x, x].

    Attributes:
        variants: augmented copies of each recording besides the original; 0 = none.
        pitch_semitones: pitch by ± this much, duration unchanged; 0 = off.
        volume_db: gain of ± this much; 0 = off.
        noise_share: probability that a variant gets a background noise.
        noise_snr_db: (low, high), mean level of the recording above that of the noise, drawn uniformly.

    Raises:
        ValueError: variants without anything to vary, or an SNR range that is none.
    """

    variants: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    pitch_semitones: Annotated[float, msgspec.Meta(ge=0, le=12)] = 0.0
    volume_db: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0
    noise_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    noise_snr_db: tuple[float, float] = (0.0, 30.0)

    def __post_init__(self) -> None:
        low, high = self.noise_snr_db
        if not -_MAX_SNR_DB <= low <= high <= _MAX_SNR_DB:
            raise ValueError(f"noise_snr_db is a range (low, high) in dB, found {self.noise_snr_db}")
        if self.variants and not (self.pitch_semitones or self.volume_db or self.noise_share):
            raise ValueError(
                f"{self.variants} variants would be copies of the original: "
                "set pitch_semitones, volume_db or noise_share"
            )


def augment(
    samples: Samples, settings: Augmentation, rng: np.random.Generator, backgrounds: Sequence[Sound]
) -> Samples:
    """One variant of a recording. The same generator state gives the same variant.

    Noise is a background clip, or coloured noise where there are no backgrounds. What exceeds ±1 in the end
    is clipped, as by a converter. But for that clipping, and for the rounding of quiet bands to the floor,
    `volume_db` changes nothing in a log-mel, which is relative to its own maximum; the embedding's patches
    are absolute, and there it counts.

    Shape: [n] -> [n], at 44.1 kHz
    """
    varied = samples
    if settings.pitch_semitones:
        varied = _pitched(varied, rng.uniform(-settings.pitch_semitones, settings.pitch_semitones))
    if rng.random() < settings.noise_share:
        varied = varied + _noise(rng, varied, rng.uniform(*settings.noise_snr_db), backgrounds)
    if settings.volume_db:
        varied = varied * np.float32(10 ** (rng.uniform(-settings.volume_db, settings.volume_db) / 20))
    return np.clip(varied, -1.0, 1.0)


def _pitched(samples: Samples, semitones: float) -> Samples:
    from librosa.effects import pitch_shift  # seconds to import, and needed by no one who leaves pitch off

    return pitch_shift(samples, sr=SAMPLE_RATE_HZ, n_steps=semitones).astype(np.float32)


def _noise(
    rng: np.random.Generator, samples: Samples, snr_db: float, backgrounds: Sequence[Sound]
) -> Samples:
    """Noise `snr_db` below the recording's RMS; none below a silent one. Shape: [n] -> [n]"""
    if (level := rms(samples)) < _SILENCE_RMS:
        return np.zeros_like(samples)
    if backgrounds:
        noise = looped(rng, choice(rng, backgrounds).samples, len(samples))
    else:
        noise = coloured_noise(rng, len(samples))
    return at_rms(noise, level * 10 ** (-snr_db / 20))
