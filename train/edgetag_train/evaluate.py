"""Score a bundle on annotated recordings: what a sensor would publish, by the challenge's metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.taxonomy import SONYC_UST
from edgetag.tagging.tagger import Tagger
from edgetag_train.data.scenes import SceneMixer, SceneSettings
from edgetag_train.data.sounds import Library, Sound, read_clips, read_recordings
from edgetag_train.metrics import evaluate

N_COARSE = len(SONYC_UST.coarse_ids)
N_SCENES = 200


def predict(tagger: Tagger, recordings: Sequence[Sound]) -> NDArray[np.float32]:
    """Probabilities of each recording's window; 0 for tags the bundle cannot tell. Shape: [n, 37]"""
    scores = np.zeros((len(recordings), len(SONYC_UST.ids)), np.float32)
    for row, sound in zip(scores, recordings, strict=True):
        found = tagger.analyse(sound.samples)
        row[:] = [(found.coarse | found.fine).get(id, 0.0) for id in SONYC_UST.ids]
    return scores


def report(truth: NDArray[np.float32], scores: NDArray[np.float32], threshold: float = 0.5) -> dict[str, Any]:
    """Coarse figures as a manifest states them, rounded to four digits.

    `named` is the share of the tags present that scored above `threshold`; `mostly_named` the share of the
    recordings with any tag of which more than half were named. Ties are ordered by threshold, so that the
    figures are the same on every machine.

    Shape: truth, scores [n, 37]
    """
    coarse = evaluate(truth, scores, "coarse", ties="threshold")
    present = truth[:, :N_COARSE] == 1
    named = present & (scores[:, :N_COARSE] > threshold)
    tagged = present.any(axis=1)
    mostly = named[tagged].sum(axis=1) > present[tagged].sum(axis=1) / 2
    return {
        "recordings": len(truth),
        "coarse_micro_auprc": round(coarse.micro_auprc, 4),
        "coarse_micro_f1": round(coarse.micro_f1, 4),
        "coarse_macro_auprc": round(coarse.macro_auprc, 4),
        "coarse_class_auprc": {id: round(value, 4) for id, value in coarse.class_auprc.items()},
        "classes_without_positives": coarse.classes_without_positives,
        "named": round(float(named.sum() / present.sum()), 4),
        "mostly_named": round(float(mostly.mean()), 4),
    }


def score_bundle(tagger: Tagger, data: Path, split: str) -> dict[str, Any]:
    """`report` of a bundle on the recordings of `data/sonyc` that belong to `split`.

    Raises:
        InputError: the recordings cannot be read, or there is no such split.
    """
    recordings = read_recordings(data / "sonyc", split)
    return report(np.stack([sound.labels for sound in recordings]), predict(tagger, recordings))


def score_scenes(tagger: Tagger, data: Path, settings: SceneSettings, seed: int) -> dict[str, float]:
    """Coarse and fine figures on scenes mixed from the clips that were held out of training.

    Empty where too few clips were held out to mix a scene from.
    """
    events, backgrounds = read_clips(data / "clips", "validate")
    if not (events and backgrounds):
        return {}
    mixer = SceneMixer(Library(events, backgrounds, ()), settings)
    scenes = [Sound(*mixer.scene(seed + k), "") for k in range(N_SCENES)]
    truth = np.stack([scene.labels for scene in scenes])
    scores = predict(tagger, scenes)
    figures = {level: evaluate(truth, scores, level, ties="threshold") for level in ("coarse", "fine")}
    return {"scenes": N_SCENES} | {
        f"{level}_{name}": round(getattr(found, name), 4)
        for level, found in figures.items()
        for name in ("micro_auprc", "macro_auprc")
    }
