"""What a pupil learns from: patches of many mixtures, and what the teacher says of each, kept on disk."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.errors import InputError
from edgetag.dsp.vggish_logmel import VggishLogMel
from edgetag.tagging.bundle import PATCHES_SHAPE
from edgetag_train.data.compute import Draw, Job, Measure, fill
from edgetag_train.data.mixtures import VERSION, Mixer, Pool, at_16_khz, read_folder
from edgetag_train.data.sounds import Sound, absent, read_library
from edgetag_train.data.store import Store, sha256
from edgetag_train.teaching.teacher import N_SCORES, Teacher

_LOWEST = -4.61
_STEP = 0.04
"""Patches are kept in eight bits: from the logarithm of VGGish's offset up, in steps of a third of a dB."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Mixtures as a pupil sees them.

    Attributes:
        patches: in eight bits, see `to_logmel`. Shape: [n, 10, 96, 64]
        logits: the teacher's. Shape: [n, 10, 521], float16
        about: what they were made from, for provenance.
        digest: a hash of that.
    """

    patches: NDArray[np.uint8]
    logits: NDArray[np.float16]
    about: dict[str, Any]
    digest: str

    def __len__(self) -> int:
        return len(self.patches)


def to_logmel(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Kept patches as a front end gives them. Shape: [...] -> [...]"""
    return patches.astype(np.float32) * np.float32(_STEP) + np.float32(_LOWEST)


def to_bytes(logmel: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Shape: [...] -> [...]"""
    return np.clip(np.rint((logmel - _LOWEST) / _STEP), 0, 255).astype(np.uint8)


def make_corpus(
    data: Path,
    folders: Sequence[Path],
    teacher: Path,
    cache: Path,
    *,
    n: int,
    seed: int,
    skip_bad: bool = False,
) -> Corpus:
    """Mix n mixtures and have the teacher judge them, or take them from the cache; mixture k is of seed + k.

    Args:
        data: holds `clips/` and the street recordings; the training split of both is heard.
        folders: further sounds, whose content nobody need know (see `read_folder`).
        teacher: YAMNet's TensorFlow Lite file.
        cache: where patches and logits are kept, 11 kB a patch.
        n: how many mixtures, of ten patches each.
        seed: of mixture 0, and of the choice among further sounds.
        skip_bad: leave out street recordings that are missing or unreadable.

    Raises:
        InputError: data, sounds or teacher cannot be read, or the disk has no room.
    """
    further = Pool.of(sound for folder in folders for sound in read_folder(folder, seed))
    library = read_library(data, "train", skip_bad=skip_bad)
    streets = Pool.of(at_16_khz(library.recordings), even=True)
    clips = Pool.of(at_16_khz([*library.events, *library.backgrounds]))
    try:
        mixer = Mixer(streets, clips, further)
    except ValueError as error:
        raise InputError(f"{data}: {error}; further sounds are given with --sounds") from error
    about = {
        "street_recordings": len(streets),
        "clips": len(clips),
        "further_sounds": len(further),
        "teacher": Teacher(teacher).sha256,
        "sounds": sha256([_digest(pool) for pool in (streets, clips, further)]),
    }

    def open_source() -> Draw:
        return lambda item: [Sound(mixer.mixture(seed + item), absent(library.taxonomy), "")]

    items = [str(seed + k) for k in range(n)]
    source = {"source": "mixtures", "version": VERSION, **about}
    patches = Store(cache, "patches", source, items, 1, PATCHES_SHAPE, np.dtype(np.uint8))
    logits = Store(cache, "teacher", source, items, 1, (PATCHES_SHAPE[0], N_SCORES), np.dtype(np.float16))
    fill([Job(patches, _patches), Job(logits, lambda: _logits(teacher))], open_source, "mixtures")
    return Corpus(patches.rows(), logits.rows(), about | {"mixtures": n, "seed": seed}, logits.digest)


def _digest(pool: Pool) -> str:
    digest = hashlib.sha256(pool.weights.tobytes())
    for sound in pool.sounds:
        digest.update(sound.tobytes())
    return digest.hexdigest()


def _patches() -> Measure:
    front_end = VggishLogMel()
    return lambda sound: to_bytes(front_end(sound.samples))


def _logits(path: Path) -> Measure:
    teacher = Teacher(path)
    return lambda sound: teacher(sound.samples).astype(np.float16)
