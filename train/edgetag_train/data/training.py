"""What a recipe trains on and is judged by, as windows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetag_train.data.dataset import Dataset, open_dataset
from edgetag_train.data.features import Windows, join, recording_windows, scene_windows
from edgetag_train.data.sounds import complete, read_backgrounds
from edgetag_train.recipe import Data

_VALIDATION_SEED = 1_000_000
"""Held-out scenes are drawn from here on, so that no training scene shares a seed with them."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Windows to train on and to choose the best epoch by; `about` goes into the run's provenance."""

    train: Windows
    validation: Windows | None
    about: dict[str, Any]


def prepare(
    settings: Data,
    data: Path,
    cache: Path,
    *,
    embedding: Path | None = None,
    validated: bool = True,
    skip_bad: bool = False,
) -> TrainingData:
    """Compute, or take from the cache, every window that a recipe's data section asks for.

    Args:
        data: folder with `annotations.csv` or `sonyc/annotations.csv`, and `clips/manifest.csv` for scenes.
        embedding: the embedding net (ONNX), for nets that take one.
        validated: whether validation windows are wanted at all.
        skip_bad: leave out missing and unreadable recordings with a warning.

    Raises:
        InputError: the data cannot be read, or a split that is needed is empty.
    """
    from_split = validated and not settings.n_validation_scenes
    wanted = (["train"] if settings.recordings else []) + (["validate"] if from_split else [])
    dataset = open_dataset(data, wanted, skip_bad=skip_bad) if wanted else None
    parts = []
    if settings.recordings:
        assert dataset is not None
        parts.append(_recordings(dataset.of_split("train"), settings, data, cache, embedding, augmented=True))
    if settings.n_scenes:
        parts.append(
            scene_windows(
                data,
                cache,
                settings.scenes,
                n=settings.n_scenes,
                seed=settings.seed,
                split="train",
                embedding=embedding,
            )
        )
    train = join(*parts)
    validation = None
    if from_split:
        assert dataset is not None
        judged = dataset.of_split("validate").for_evaluation()
        validation = _recordings(judged, settings, data, cache, embedding, augmented=False)
    elif validated:
        validation = held_out_scenes(
            data, cache, settings, settings.n_validation_scenes, _VALIDATION_SEED, embedding
        )
    about = {
        "digest": train.digest,
        "validation_digest": validation and validation.digest,
        "train": {
            "recordings": len(dataset.of_split("train").audio) if dataset and settings.recordings else 0,
            "scenes": settings.n_scenes,
            "windows": len(train),
        },
        "validation": {
            "from": "split validate" if from_split else "scenes of held-out clips",
            "windows": 0 if validation is None else len(validation),
        },
    }
    return TrainingData(train, validation, about)
