"""What a recipe trains on and is judged by, as windows."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag_train.data.augment import Augmentation
from edgetag_train.data.dataset import Dataset, open_dataset
from edgetag_train.data.features import Windows, join, recording_windows, scene_windows
from edgetag_train.data.sounds import Sound, complete, read_clips, read_manifest
from edgetag_train.recipe import Data
from edgetag_train.teaching.teacher import Teacher
from edgetag_train.teaching.verdict import fit_verdict

_VALIDATION_SEED = 1_000_000
"""Held-out scenes are drawn from here on, so that no training scene shares a seed with them."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Windows to train on and to choose the best epoch by; `about` goes into the run's provenance.

    Labels are of `taxonomy`'s tags.
    """

    train: Windows
    about: dict[str, Any]
    taxonomy: Taxonomy
    validation: Windows | None = None


def prepare(
    settings: Data,
    data: Path,
    cache: Path,
    *,
    embedding: Path | None = None,
    teacher: Path | None = None,
    validated: bool = True,
    skip_bad: bool = False,
) -> TrainingData:
    """Compute, or take from the cache, every window that a recipe's data section asks for.

    Args:
        data: folder with `annotations.csv` or `sonyc/annotations.csv`, and `clips/manifest.csv` for scenes.
        embedding: the embedding net (ONNX), for nets that take one.
        teacher: YAMNet's file, where a root net shall be taught by it; without it, by labels alone.
        validated: whether validation windows are wanted at all.
        skip_bad: leave out missing and unreadable recordings with a warning.

    Raises:
        InputError: the data cannot be read, a split that is needed is empty, or a teacher is asked for tags
            that are not SONYC-UST's.
    """
    splits = ["train"]
    if validated and not settings.n_validation_scenes:
        splits.append("validate")
    recordings = open_dataset(data, splits, skip_bad=skip_bad)  # all are looked for before any is heard
    if settings.n_scenes or (validated and settings.n_validation_scenes):
        read_manifest(data / "clips", recordings.taxonomy)
    if teacher is not None and recordings.taxonomy != SONYC_UST:
        raise InputError(
            f"YAMNet speaks for SONYC-UST's coarse tags only, the data's are {recordings.taxonomy.name}'s; "
            "set data.teacher_share=0 and leave out --teacher"
        )
    streets = recordings.of_split("train")
    train, about = _train(settings, data, streets, cache, embedding, teacher, skip_bad)
    if teacher is not None and settings.teacher_share:
        train, verdict = _taught(train, settings.teacher_share, streets, cache, teacher)
        about["teacher"] = verdict
    if not validated:
        return TrainingData(train, about, recordings.taxonomy)
    if settings.n_validation_scenes:
        validation = held_out_scenes(
            settings, data, cache, n=settings.n_validation_scenes, seed=_VALIDATION_SEED, embedding=embedding
        )
        source = "scenes of held-out clips"
    else:
        validation = _judged(recordings.of_split("validate").for_evaluation(), cache, embedding)
        source = "recordings of the split validate"
    stated = {"from": source, "windows": len(validation), "digest": validation.digest}
    return TrainingData(train, about | {"validation": stated}, recordings.taxonomy, validation)


def judged_recordings(
    data: Path, split: str, cache: Path, *, embedding: Path | None = None, skip_bad: bool = False
) -> tuple[Dataset, Windows]:
    """The recordings of a split that scores are measured on, with their true labels (1, 0, NaN unknown).

    Those that the team verified, where there are any in the split; all of it otherwise. Labels are as they
    were given: to conclude fine ones from coarse ones would judge a net on the kinds that are absent alone.
    """
    dataset = open_dataset(data, [split], skip_bad=skip_bad).for_evaluation()
    return dataset, _judged(dataset, cache, embedding)


def _judged(dataset: Dataset, cache: Path, embedding: Path | None, teacher: Path | None = None) -> Windows:
    return recording_windows(
        dataset,
        cache,
        labels=dataset.labels.binary(),
        augmentation=Augmentation(),
        seed=0,
        backgrounds=(),
        embedding=embedding,
        teacher=teacher,
    )


def held_out_scenes(
    settings: Data, data: Path, cache: Path, *, n: int, seed: int, embedding: Path | None = None
) -> Windows:
    """Scenes of the clips that training never hears, over backgrounds that it never hears."""
    return scene_windows(data, cache, settings.scenes, n=n, seed=seed, split="validate", embedding=embedding)


def _taught(
    train: Windows, share: float, streets: Dataset, cache: Path, teacher: Path
) -> tuple[Windows, dict[str, Any]]:
    """Windows with targets: the teacher's verdict on coarse tags by its share, and the labels by the rest.

    What its evidence is worth is fitted to the street recordings as they are.
    """
    columns = streets.taxonomy.columns["coarse"]
    heard = _judged(streets, cache, None, teacher)
    assert heard.evidence is not None
    assert train.evidence is not None
    verdict = fit_verdict(heard.evidence, heard.labels[:, columns])
    targets, said = train.labels.copy(), verdict(train.evidence)
    labels = train.labels[:, columns]
    targets[:, columns] = np.where(np.isnan(labels), said, share * said + (1 - share) * labels)
    targets = _singles(targets, streets.taxonomy)
    about = {
        "sha256": Teacher(teacher).sha256,
        "slopes": verdict.slopes.round(4).tolist(),
        "intercepts": verdict.intercepts.round(4).tolist(),
    }
    return replace(train, targets=targets), about


def _singles(targets: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """A category's only fine tag is taught what the category is. Shape: [n, tags] -> [n, tags]"""
    for category in taxonomy.categories:
        if category.single is not None:
            targets[:, taxonomy.index[category.single.id]] = targets[:, taxonomy.index[category.id]]
    return targets


def _train(
    settings: Data,
    data: Path,
    dataset: Dataset,
    cache: Path,
    embedding: Path | None,
    teacher: Path | None,
    skip_bad: bool,
) -> tuple[Windows, dict[str, Any]]:
    parts, n_recordings = [], 0
    if settings.recordings:
        n_recordings = len(dataset)
        labels = dataset.labels.soft() if settings.soft else dataset.labels.binary(settings.agreement)
        parts.append(
            recording_windows(
                dataset,
                cache,
                labels=complete(labels, dataset.taxonomy),
                augmentation=settings.augmentation,
                seed=settings.seed,
                backgrounds=_backgrounds(data, settings.augmentation, dataset.taxonomy),
                embedding=embedding,
                teacher=teacher,
            )
        )
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
                teacher=teacher,
                skip_bad=skip_bad,
            )
        )
    train = join(*parts)
    about = {"recordings": n_recordings, "scenes": settings.n_scenes, "windows": len(train)}
    return train, {"digest": train.digest, "train": about}


def _backgrounds(data: Path, augmentation: Augmentation, taxonomy: Taxonomy) -> tuple[Sound, ...]:
    """What augmentation adds as noise: the background clips of training, if the data has clips."""
    return read_clips(data / "clips", "train", taxonomy)[1] if _has_noises(data, augmentation) else ()


def _has_noises(data: Path, augmentation: Augmentation) -> bool:
    noisy = augmentation.variants and augmentation.noise_share
    return bool(noisy) and (data / "clips" / "manifest.csv").exists()


def hears_clips(settings: Data, data: Path) -> bool:
    """Whether training hears clips: in scenes, or as the noise of augmentation."""
    return bool(settings.n_scenes) or (settings.recordings and _has_noises(data, settings.augmentation))
