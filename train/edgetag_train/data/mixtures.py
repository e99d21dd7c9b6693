"""Ten-second mixtures at 16 kHz that nobody has labelled: what an embedding net and its teacher hear.

A mixture is a pure function of its sounds and a seed: a street recording as it is; or a background (street,
coloured noise, any other sound repeated) with up to three sounds over it, each at another speed, through
another frequency response, in another room, and all of it at another level. It is meant to hold whatever a
microphone on a street may hear, and more; what that is, the teacher says.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import soundfile
import soxr
from numpy.typing import NDArray
from scipy.signal import oaconvolve

from edgetag.contract.errors import InputError
from edgetag.contract.frontend import SAMPLE_RATE_HZ, VGGISH_SAMPLE_RATE_HZ, VGGISH_WINDOW_SAMPLES
from edgetag.dsp.resample import resample
from edgetag_train.data.patches import AUDIO_SUFFIXES
from edgetag_train.data.sounds import Sound

Samples = NDArray[np.float32]
RATE_HZ, N = VGGISH_SAMPLE_RATE_HZ, VGGISH_WINDOW_SAMPLES
VERSION = 1
"""Of what is mixed from the same sounds and seed: with another number, kept mixtures are not found again."""
MAX_FILE_S = 12.0
MAX_FILES = 500
MIN_SAMPLES = RATE_HZ // 5
_MIN_PEAK = 1e-3
_FULL_WEIGHT_S = 4.0
_BANDS = (0.0, 0.02, 0.06, 0.15, 0.35, 0.7, 1.0)  # of the Nyquist rate


@dataclass(frozen=True, eq=False)
class Pool:
    """Sounds of one kind and how often each is drawn. Shape: sounds [n] arrays of any length, weights [n]"""

    sounds: Sequence[NDArray[np.float16]]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, sounds: Iterable[tuple[Samples, str]], *, even: bool = False) -> "Pool":
        """From samples at 16 kHz and the group of each.

        A sound is drawn by the root of its duration, up to four seconds, and of one over its group's size, so
        that a thousand words of one speaker do not drown a hundred sounds of other things; or each as likely.
        """
        held = [(samples.astype(np.float16), group) for samples, group in sounds]
        sizes = Counter(group for _, group in held)
        weights = np.array(
            [
                1.0 if even else np.sqrt(min(len(samples) / RATE_HZ, _FULL_WEIGHT_S) / sizes[group])
                for samples, group in held
            ]
        )
        return cls([samples for samples, _ in held], weights / max(weights.sum(), 1e-9))

    def __len__(self) -> int:
        return len(self.sounds)

    def draw(self, rng: np.random.Generator) -> Samples:
        return self.sounds[int(rng.choice(len(self.sounds), p=self.weights))].astype(np.float32)


def at_16_khz(sounds: Iterable[Sound]) -> list[tuple[Samples, str]]:
    """Sounds at 44.1 kHz as a pool takes them."""
    return [(resample(sound.samples, SAMPLE_RATE_HZ, RATE_HZ), sound.group) for sound in sounds]


def read_folder(folder: Path, seed: int) -> list[tuple[Samples, str]]:
    """Sounds of all files in each folder directly in `folder` and below, a group for each; or, where it holds
    no folder, of its own files.

    At most 500 files of a group are read, and at most 12 s of each, both drawn by `seed`; what is not audio,
    a link, shorter than 0.2 s, silent, or not finite, is passed over. Levels are made the same, peak 0.5.

    Raises:
        InputError: there is no folder, or no sound in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of sounds")
    found: list[tuple[Samples, str]] = []
    for group in sorted(filter(_is_folder, folder.iterdir())) or [folder]:
        rng = np.random.default_rng(seed)
        files = sorted(file for file in group.rglob("*") if _is_sound(file))
        order = rng.permutation(len(files))[:MAX_FILES]
        read = (_read_excerpt(files[k], rng) for k in order)
        found += [(samples, group.name) for samples in read if samples is not None]
    if not found:
        raise InputError(f"{folder} holds no sound; give folders of {', '.join(sorted(AUDIO_SUFFIXES))}")
    return found


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_sound(file: Path) -> bool:
    return file.suffix.lower() in AUDIO_SUFFIXES and file.is_file() and not file.is_symlink()


def _read_excerpt(file: Path, rng: np.random.Generator) -> Samples | None:
    place = rng.random()
    try:
        about = soundfile.info(file)
        n = int(MAX_FILE_S * about.samplerate)
        start = int(place * max(0, about.frames - n))
        samples, rate_hz = soundfile.read(file, n, start, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError):
        return None
    mono = soxr.resample(samples.mean(axis=1, dtype=np.float32), rate_hz, RATE_HZ)
    if len(mono) < MIN_SAMPLES or not _MIN_PEAK < (peak := float(np.abs(mono).max())) < np.inf:
        return None
    return mono * np.float32(0.5 / peak)


class Mixer:
    """Draws mixtures of street recordings, clips and further sounds.

    Raises:
        ValueError: there is no street recording, or neither a clip nor a further sound.
    """

    def __init__(self, streets: Pool, clips: Pool, further: Pool) -> None:
        if not len(streets) or not (len(clips) or len(further)):
            raise ValueError("a mixture needs street recordings, and clips or other sounds")
        self._streets = streets
        self._clips = clips if len(clips) else further
        self._further = further if len(further) else clips

    def mixture(self, seed: int) -> Samples:
        """One mixture. Shape: -> [160000] at 16 kHz, peak at most 1"""
        rng = np.random.default_rng(seed)
        if rng.random() < 0.12:
            street = self._street(rng) * np.float32(10 ** (rng.normal(0, 3) / 20))
            street = _coloured(rng, street, 3) if rng.random() < 0.5 else street
            return np.clip(street, -1, 1)
        mixed = _at_one(self._background(rng))
        for _ in range(int(rng.choice(4, p=(0.1, 0.4, 0.35, 0.15)))):
            pool = self._clips if rng.random() < 0.5 else self._further
            mixed = mixed + _laid_over(rng, _varied(rng, pool.draw(rng)))
        if rng.random() < 0.5:
            mixed = _coloured(rng, mixed, 3)
        return np.clip(_at_one(mixed) * np.float32(10 ** (rng.uniform(-48, -14) / 20)), -1, 1)

    def _street(self, rng: np.random.Generator) -> Samples:
        return np.roll(np.resize(self._streets.draw(rng), N), int(rng.integers(N)))

    def _background(self, rng: np.random.Generator) -> Samples:
        kind = rng.random()
        if kind < 0.55:
            street = self._street(rng)
            if rng.random() < 0.5:
                street = np.resize(_at_speed(street, 2 ** rng.normal(0, 0.12)), N)
            return _coloured(rng, street, 4)
        if kind < 0.7:
            return _noise(rng)
        pool = self._further if kind < 0.85 else self._clips
        return np.resize(_varied(rng, pool.draw(rng)), N)


def _varied(rng: np.random.Generator, samples: Samples) -> Samples:
    """At another speed, through another response, in another room. Shape: [n] -> [m], m <= 160000"""
    if rng.random() < 0.6:
        samples = _at_speed(samples, 2 ** rng.normal(0, 0.25))
    if rng.random() < 0.6:
        samples = _coloured(rng, samples, 4)
    if rng.random() < 0.35:
        samples = _in_a_room(rng, samples)
    start = int(rng.integers(max(1, len(samples) - N)))
    return samples[start : start + N]


def _laid_over(rng: np.random.Generator, sound: Samples) -> Samples:
    """Somewhere in a silent window, or over all of it, once or twice; 12 dB below to 22 dB above level 1."""
    if rng.random() < 0.25:
        window = np.resize(sound, N)
    else:
        onset = int(rng.integers(-len(sound) // 3, N - len(sound) // 3))
        heard = sound[max(0, -onset) :][: N - max(0, onset)]
        window = np.zeros(N, np.float32)
        window[max(0, onset) : max(0, onset) + len(heard)] = heard
    loud = window[window != 0]
    if len(loud) < MIN_SAMPLES // 4:
        return np.zeros(N, np.float32)
    window = window * np.float32(10 ** (rng.uniform(-12, 22) / 20) / _rms(loud))
    if rng.random() < 0.2:
        again = np.float32(10 ** (rng.uniform(-10, 10) / 20))
        window = window + np.roll(window, int(rng.integers(RATE_HZ // 2, 5 * RATE_HZ))) * again
    return window


def _at_speed(samples: Samples, factor: float) -> Samples:
    """Pitch and duration together, by straight lines between samples. Shape: [n] -> [n / factor]"""
    place = np.arange(max(1, int(len(samples) / factor))) * factor
    return np.interp(place, np.arange(len(samples)), samples).astype(np.float32)


def _coloured(rng: np.random.Generator, samples: Samples, deviation_db: float) -> Samples:
    """Through a random frequency response; half of the time it falls towards high frequencies, as distance
    and obstacles have it. Shape: [n] -> [n]"""
    n_fft = scipy.fft.next_fast_len(len(samples), real=True)
    spectrum = scipy.fft.rfft(samples, n_fft)
    share = np.linspace(0, 1, len(spectrum), dtype=np.float32)
    gain_db = np.interp(share, _BANDS, rng.normal(0, deviation_db, len(_BANDS)))
    if rng.random() < 0.5:
        gain_db -= abs(rng.normal(0, deviation_db)) * 2.5 * np.sqrt(share)
    gain = (10 ** (gain_db / 20)).astype(np.float32)
    return scipy.fft.irfft(spectrum * gain, n_fft)[: len(samples)]


def _in_a_room(rng: np.random.Generator, samples: Samples) -> Samples:
    """The direct sound and a decaying tail of 0.1 to 1.2 s (60 dB)."""
    n = int(rng.uniform(0.1, 1.2) * RATE_HZ)
    tail = rng.standard_normal(n).astype(np.float32) * np.exp(-6.9 * np.arange(n, dtype=np.float32) / n)
    tail *= np.float32(rng.uniform(0.02, 0.3) / np.sqrt(np.sum(tail**2)))
    tail[0] += 1
    return oaconvolve(samples, tail)[: len(samples) + n // 2]


def _noise(rng: np.random.Generator) -> Samples:
    """From white to pink and beyond, four times in ten with a beating level. Shape: -> [160000]"""
    n = N // 2 + 1
    spectrum = rng.standard_normal(n) + 1j * rng.standard_normal(n)
    spectrum *= np.maximum(np.arange(n), 20.0) ** -rng.uniform(0, 1.2)
    noise = scipy.fft.irfft(spectrum, N).astype(np.float32)
    if rng.random() < 0.4:
        phase = 2 * np.pi * rng.uniform(0.3, 40) * np.arange(N) / RATE_HZ + rng.uniform(0, 6.28)
        noise *= (1 + rng.uniform(0.2, 0.9) * np.sin(phase)).astype(np.float32)
    return noise


def _rms(samples: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(samples)))) + 1e-9


def _at_one(samples: Samples) -> Samples:
    return samples / np.float32(_rms(samples))
