"""Labelled ten-second scenes: one to four events over a background, or over a real street recording.

A scene is a pure function of the library, the settings and a seed. Scenes over a real recording keep
its labels: what was heard there stays heard, and a fine tag nobody named stays unknown.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.contract.taxonomy import Taxonomy
from edgetag.dsp.resample import resample
from edgetag_train.data.sounds import Library, Sound

Samples = NDArray[np.float32]
T = TypeVar("T")
_FADE_SAMPLES = SAMPLE_RATE_HZ // 100
_SHORT_SAMPLES = 3 * SAMPLE_RATE_HZ
_EPSILON = 1e-9
_LIMITS = {"snr_db": (-120, 120), "speed": (0.1, 10), "tilt_db": (-120, 120), "repeats": (1, 1000)}
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class SceneSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How scenes are drawn; ranges are (low, high), drawn uniformly.

    Attributes:
        street_share: share of scenes over a real recording; the rest is over background clips.
        street_events: probability of 0, 1, 2, … events over a real recording.
        clip_events: probability of 1, 2, … events over background clips.
        snr_db: level of an event's loud part above the background's mean level.
        speed: playback speed, pitch and duration together.
        tilt_db: gain at 10 kHz relative to 100 Hz, a straight line over log frequency.
        repeats: how often a clip shorter than three seconds sounds.
        reverberation: probability that an event gets a synthetic street's reverberation.

    Raises:
        ValueError: a range that is none, or probabilities of nothing.
    """

    street_share: Probability = 0.6
    street_events: tuple[float, ...] = (0.4, 0.35, 0.25)
    clip_events: tuple[float, ...] = (0.35, 0.35, 0.2, 0.1)
    snr_db: tuple[float, float] = (-6.0, 20.0)
    speed: tuple[float, float] = (0.88, 1.14)
    tilt_db: tuple[float, float] = (-12.0, 6.0)
    repeats: tuple[int, int] = (1, 5)
    reverberation: Probability = 0.5

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} is a range (low, high) in [{least}, {most}], found {(low, high)}")
        for name in ("street_events", "clip_events"):
            weights = getattr(self, name)
            if not (all(weight >= 0 for weight in weights) and 0 < sum(weights) < np.inf):
                raise ValueError(f"{name} are probabilities, one of which is not 0; found {weights}")


class SceneMixer:
    """Draws scenes from a library, events balanced over the coarse categories.

    Raises:
        ValueError: the library holds nothing to lay events over, or no event.
    """

    def __init__(self, library: Library, settings: SceneSettings) -> None:
        if not (library.backgrounds or library.recordings) or not library.events:
            raise ValueError("a scene needs at least one event and one background or recording")
        self._library = library
        self._settings = settings
        self._street_share = settings.street_share if library.recordings else 0.0
        if not library.backgrounds:
            self._street_share = 1.0
        self._by_tag = _by_tag(library.events, library.taxonomy)

    def scene(self, seed: int) -> tuple[Samples, NDArray[np.float32]]:
        """One scene. Shape: samples [441000] with peak at most 1, labels [tags] (1, 0, NaN unknown)."""
        rng = np.random.default_rng(seed)
        if rng.random() < self._street_share:
            bed = self._street(rng)
            n_events = _draw(rng, self._settings.street_events)
        else:
            bed = self._backdrop(rng)
            n_events = 1 + _draw(rng, self._settings.clip_events)
        samples, labels = bed.samples, bed.labels
        for _ in range(n_events):
            event = self._event(rng)
            samples = samples + self._placed(rng, event.samples, rms(bed.samples))
            labels = merge(labels, event.labels)
        samples = _tilted(samples, rng.uniform(-6.0, 6.0))
        return samples / max(1.0, float(np.abs(samples).max())), labels

    def backdrop(self, seed: int) -> Samples:
        """Background clips alone, as scenes have them. Shape: -> [441000] with peak at most 1"""
        samples = self._backdrop(np.random.default_rng(seed)).samples
        return samples / max(1.0, float(np.abs(samples).max()))

    def _street(self, rng: np.random.Generator) -> Sound:
        recording = choice(rng, self._library.recordings)
        rolled = np.roll(recording.samples, int(rng.integers(WINDOW_SAMPLES)))
        return Sound(at_rms(rolled, 0.02), recording.labels, recording.group)

    def _backdrop(self, rng: np.random.Generator) -> Sound:
        """One or two background clips, looped to a window, over a faint coloured noise floor."""
        samples = at_rms(coloured_noise(rng, WINDOW_SAMPLES), 0.02 * 10 ** rng.uniform(-2.0, 0.0))
        for _ in range(int(rng.integers(1, 3))):
            clip = choice(rng, self._library.backgrounds)
            samples = samples + at_rms(
                looped(rng, clip.samples, WINDOW_SAMPLES), 0.02 * 10 ** rng.uniform(-0.5, 0.0)
            )
        return Sound(samples, self._library.backgrounds[0].labels, "backdrop")

    def _event(self, rng: np.random.Generator) -> Sound:
        """Category uniformly, its fine tag by the square root of its clips, the clip uniformly."""
        tags = self._by_tag[choice(rng, tuple(self._by_tag))]
        weights = np.sqrt([len(sounds) for sounds in tags])
        return choice(rng, tags[int(rng.choice(len(tags), p=weights / weights.sum()))])

    def _placed(self, rng: np.random.Generator, clip: Samples, bed_rms: float) -> Samples:
        """The clip varied, repeated and laid into an empty window at a random level and onset."""
        settings = self._settings
        varied = resample(clip, round(SAMPLE_RATE_HZ * rng.uniform(*settings.speed)), SAMPLE_RATE_HZ)
        varied = _tilted(_cut(rng, varied), rng.uniform(*settings.tilt_db))
        if rng.random() < settings.reverberation:
            varied = _reverberated(rng, varied)[:WINDOW_SAMPLES]
        varied = _faded(varied)
        gain = bed_rms * 10 ** (rng.uniform(*settings.snr_db) / 20) / (_loud_rms(varied) + _EPSILON)
        placed = np.zeros(WINDOW_SAMPLES, np.float32)
        repeats = (
            int(rng.integers(settings.repeats[0], settings.repeats[1] + 1))
            if len(varied) < _SHORT_SAMPLES
            else 1
        )
        for _ in range(repeats):
            onset = int(rng.integers(WINDOW_SAMPLES - len(varied) + 1))
            placed[onset : onset + len(varied)] += varied
        return placed * np.float32(gain)


def merge(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Labels of two sounds heard together: present wins, then unknown, then absent. Shape: [tags]"""
    either = np.fmax(a, b)
    return np.where(either == 1, either, a + b)


def _by_tag(events: Sequence[Sound], taxonomy: Taxonomy) -> dict[str, list[list[Sound]]]:
    """Events by coarse id, grouped by fine tag (all those of unknown fine tag together).

    A clip that holds several categories stands under each.
    """
    grouped: dict[str, dict[tuple[float, ...], list[Sound]]] = defaultdict(lambda: defaultdict(list))
    for sound in events:
        for category in taxonomy.categories:
            if sound.labels[taxonomy.index[category.id]] == 1:
                kinds = [taxonomy.index[tag.id] for tag in category.fine]
                fine = tuple(np.nan_to_num(sound.labels[kinds], nan=-1))
                grouped[category.id][fine].append(sound)
    return {id: list(tags.values()) for id, tags in grouped.items()}


def _draw(rng: np.random.Generator, weights: tuple[float, ...]) -> int:
    return int(rng.choice(len(weights), p=np.asarray(weights) / sum(weights)))


def choice(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of them, each as likely."""
    return items[int(rng.integers(len(items)))]


def rms(samples: Samples) -> float:
    """Root of the mean square; never quite zero."""
    return float(np.sqrt(np.mean(np.square(samples)) + _EPSILON**2))


def _loud_rms(samples: Samples) -> float:
    """RMS of the loudest tenth of 10-ms frames: what a listener takes for a sound's level."""
    n = len(samples) // _FADE_SAMPLES
    if n < 10:
        return rms(samples)
    frames = np.square(samples[: n * _FADE_SAMPLES]).reshape(n, _FADE_SAMPLES).mean(axis=1)
    return float(np.sqrt(np.sort(frames)[-(n // 10) :].mean()))


def at_rms(samples: Samples, level: float) -> Samples:
    """The samples, scaled to an RMS."""
    return samples * np.float32(level / rms(samples))


def looped(rng: np.random.Generator, samples: Samples, n: int) -> Samples:
    """n samples of a sound that goes on and on, from a random place in it."""
    return np.roll(np.resize(_faded(samples), n), int(rng.integers(n)))


def _cut(rng: np.random.Generator, samples: Samples) -> Samples:
    """At most a window of it, from a random place."""
    surplus = len(samples) - WINDOW_SAMPLES
    if surplus <= 0:
        return samples
    start = int(rng.integers(surplus + 1))
    return samples[start : start + WINDOW_SAMPLES]


def _faded(samples: Samples) -> Samples:
    n = min(_FADE_SAMPLES, len(samples) // 2)
    ramp = np.linspace(0, 1, n, dtype=np.float32)
    faded = samples.copy()
    faded[:n] *= ramp
    faded[len(faded) - n :] *= ramp[::-1]
    return faded


def _tilted(samples: Samples, tilt_db: float) -> Samples:
    """A gain that is a straight line over log frequency: 0 dB at 100 Hz, `tilt_db` at 10 kHz."""
    n_fft = scipy.fft.next_fast_len(len(samples), real=True)
    octaves = np.log10(np.maximum(scipy.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE_HZ), 20.0) / 100.0) / 2
    gain = (10 ** (tilt_db * octaves / 20)).astype(np.float32)
    return scipy.fft.irfft(scipy.fft.rfft(samples, n_fft) * gain, n_fft)[: len(samples)]


def _reverberated(rng: np.random.Generator, samples: Samples) -> Samples:
    """Direct sound plus an exponentially decaying noise tail of 0.15–0.9 s (60 dB)."""
    tail_s = rng.uniform(0.15, 0.9)
    n = round(tail_s * SAMPLE_RATE_HZ)
    response = rng.standard_normal(n).astype(np.float32) * 10 ** (-3 * np.arange(n, dtype=np.float32) / n)
    response *= np.float32(rng.uniform(0.1, 0.7) / np.sqrt(np.sum(response**2)))
    response[0] += 1
    n_fft = scipy.fft.next_fast_len(len(samples) + n, real=True)
    wet = scipy.fft.irfft(scipy.fft.rfft(samples, n_fft) * scipy.fft.rfft(response, n_fft), n_fft)
    return wet[: len(samples) + n]


def coloured_noise(rng: np.random.Generator, n: int) -> Samples:
    """Noise whose power falls with frequency by a random exponent between white (0) and brown (2)."""
    spectrum = scipy.fft.rfft(rng.standard_normal(n).astype(np.float32))
    slope = np.maximum(np.arange(len(spectrum)), 10.0) ** (-rng.uniform(0.0, 2.0) / 2)
    return scipy.fft.irfft(spectrum * slope.astype(np.float32), n)
