"""Score bundles and runs on annotated recordings, by the challenge's metrics.

A bundle is asked as a sensor asks it. A run's nets are asked in torch, under the same cascade.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import Taxonomy
from edgetag.tagging.cascade import fired, run_cascade
from edgetag.tagging.tagger import Tagger
from edgetag_train.data.dataset import open_dataset, read_dataset_taxonomy, read_labels
from edgetag_train.data.features import Windows
from edgetag_train.data.scenes import SceneMixer, SceneSettings
from edgetag_train.data.sounds import Library, read_clips, read_window
from edgetag_train.data.training import held_out_scenes, judged_recordings
from edgetag_train.files import writing
from edgetag_train.fit.loop import EVALUATION_BATCH, plain
from edgetag_train.fit.run import (
    ROOT,
    Run,
    branches_of,
    check_taxonomy,
    checkpoints,
    chosen_root,
    coarse_id,
    load_net,
)
from edgetag_train.metrics import evaluate
from edgetag_train.predictions import LEVELS, figures, read_predictions
from edgetag_train.taxonomy import described

N_SCENES = 200
N_QUIET = 360
N_BOOTSTRAP = 500
BOOTSTRAP_SEED = 1
SCENES = "scenes"
_SCENES_SEED = 2_000_000
"""Other scenes than those that a fit chooses its best epoch by."""


def predict(tagger: Tagger, windows: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Probabilities of each window of samples; 0 for tags the bundle cannot tell. Shape: -> [n, tags]"""
    scores = []
    for samples in windows:
        found = tagger.analyse(samples)
        scores.append([(found.coarse | found.fine).get(id, 0.0) for id in tagger.taxonomy.ids])
    return np.array(scores, np.float32)


def report(
    truth: NDArray[np.float32],
    scores: NDArray[np.float32],
    taxonomy: Taxonomy,
    thresholds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Coarse figures as a manifest states them, rounded to four digits.

    `named` is the share of the tags present that scored above their threshold; `mostly_named` the share of
    the recordings with any tag of which more than half were named; `coarse_f1_at_thresholds` the micro F1 of
    what is named. `interval_95` has, of the micro and macro figures, the middle 95 % of a bootstrap over
    recordings. What has no value, for want of a tag in the truth, is None. Ties are ordered by threshold, so
    that the figures are the same on every machine.

    Args:
        truth, scores, taxonomy: as of `evaluate`.
        thresholds: by coarse id; 0.5 where there is none.

    Shape: truth, scores [n, tags]
    """
    coarse = evaluate(truth, scores, "coarse", taxonomy, ties="threshold")
    stated, columns = thresholds or {}, taxonomy.columns["coarse"]
    above = scores[:, columns] > [np.float32(stated.get(id, 0.5)) for id in taxonomy.coarse_ids]
    present = truth[:, columns] == 1
    named = present & above
    judged = above & ~np.isnan(truth[:, columns])
    tagged = present.any(axis=1)
    mostly = named[tagged].sum(axis=1) > present[tagged].sum(axis=1) / 2
    return {
        "recordings": len(truth),
        "coarse_micro_auprc": _rounded(coarse.micro_auprc),
        "coarse_micro_f1": _rounded(coarse.micro_f1),
        "coarse_macro_auprc": _rounded(coarse.macro_auprc),
        "coarse_class_auprc": {id: round(value, 4) for id, value in coarse.class_auprc.items()},
        "classes_without_positives": coarse.classes_without_positives,
        "coarse_f1_at_thresholds": _rounded(2 * named.sum() / (judged.sum() + present.sum()))
        if present.any()
        else None,
        "interval_95": _intervals(truth, scores, taxonomy),
        "named": _rounded(named.sum() / present.sum()) if present.any() else None,
        "mostly_named": _rounded(mostly.mean()) if tagged.any() else None,
    }


def _intervals(
    truth: NDArray[np.float32], scores: NDArray[np.float32], taxonomy: Taxonomy
) -> dict[str, list[float]]:
    """Of the coarse figures, over recordings drawn with replacement; draws without any tag are left out."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    found: dict[str, list[float]] = {"micro_auprc": [], "micro_f1": [], "macro_auprc": []}
    for _ in range(N_BOOTSTRAP if len(truth) else 0):
        rows = rng.integers(len(truth), size=len(truth))
        drawn = evaluate(truth[rows], scores[rows], "coarse", taxonomy, ties="threshold")
        for name, values in found.items():
            values.append(getattr(drawn, name))
    known = {name: np.array(values)[~np.isnan(values)] for name, values in found.items()}
    ends = {name: np.quantile(values, (0.025, 0.975)) for name, values in known.items() if len(values)}
    return {f"coarse_{name}": np.round(pair, 4).tolist() for name, pair in ends.items()}


def _rounded(figure: float) -> float | None:
    """To four digits; None where nothing in the truth is present, so that there is no figure."""
    return None if np.isnan(figure) else round(float(figure), 4)


def score_bundle(tagger: Tagger, data: Path, split: str, *, skip_bad: bool = False) -> dict[str, Any]:
    """`report` of a bundle on the recordings of `split`.

    Raises:
        InputError: the recordings cannot be read, or there is no such split.
    """
    scored = bundle_scores(tagger, data, split, skip_bad=skip_bad)
    return report(scored.truth, scored.scores, scored.taxonomy, tagger.bundle.manifest.all_thresholds)


@dataclass(frozen=True, eq=False)
class Scored:
    """What a system said of windows whose truth is known. Shape: truth, scores [n, tags], NaN unknown"""

    filenames: tuple[str, ...]
    truth: NDArray[np.float32]
    scores: NDArray[np.float32]
    taxonomy: Taxonomy

    def save(self, path: Path) -> None:
        names = np.array(self.filenames)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, filenames=names, truth=self.truth, scores=self.scores)


def bundle_scores(tagger: Tagger, data: Path, split: str, *, skip_bad: bool = False) -> Scored:
    """A bundle's probabilities of the recordings of a split.

    Raises:
        InputError: the recordings cannot be read, there is no such split, or the bundle tells other tags.
    """
    dataset = open_dataset(data, [split], skip_bad=skip_bad).for_evaluation()
    if dataset.taxonomy != tagger.taxonomy:
        raise InputError(
            f"the bundle {tagger.bundle.model} tells the tags of {described(tagger.taxonomy)}, the data has "
            f"those of {described(dataset.taxonomy)}"
        )
    truth = dataset.labels.binary()
    scores = predict(tagger, map(read_window, dataset.audio))
    return Scored(dataset.labels.filenames, truth, scores, dataset.taxonomy)


def submission_figures(path: Path, data: Path, split: str) -> dict[str, Any]:
    """The challenge's figures of a table of predictions; no audio is needed.

    Raises:
        InputError: either table cannot be read, or a recording of the split has no prediction.
    """
    labels = read_labels(data).of_split(split).for_evaluation()
    submitted = read_predictions(path, labels.taxonomy)
    truth = labels.binary()
    return figures(
        submitted.filenames, submitted.scores, labels.filenames, truth, labels.taxonomy, split=split
    )


def run_scores(
    run: Run, data: Path, split: str, cache: Path, embedding: Path | None, *, skip_bad: bool = False
) -> dict[str, Scored]:
    """What each system of a run says of a split's recordings, or of held-out scenes (`scenes`).

    A run without branches is two systems, one by each of its root's checkpoints (the paper's CNN+VGGish1
    and CNN+VGGish2): the recipe's name with 1 and 2.

    Raises:
        InputError: the run is not finished or tells other tags, or the recordings cannot be read.
    """
    check_taxonomy(run, read_dataset_taxonomy(data))
    found = systems(run)
    if split == SCENES:
        windows = held_out_scenes(
            run.recipe.data, data, cache, n=N_SCENES, seed=_SCENES_SEED, embedding=embedding
        )
        filenames = tuple(f"scene-{k}" for k in range(len(windows)))
        if not filenames:
            raise InputError(f"{data} holds too few clips to hold any out, so there are no scenes to score")
    else:
        dataset, windows = judged_recordings(data, split, cache, embedding=embedding, skip_bad=skip_bad)
        filenames = dataset.labels.filenames
    return {
        name: Scored(filenames, windows.labels, cascade_scores(run, root, branches, windows), run.taxonomy)
        for name, (root, branches) in found.items()
    }


def systems(run: Run) -> dict[str, tuple[str, list[str]]]:
    """A run's systems by name: which root checkpoint, and which branches."""
    if run.recipe.branch is None and run.recipe.keeps_two:
        return {
            f"{run.recipe.name}{n}": (root, []) for n, root in enumerate(checkpoints(run.recipe, ROOT), 1)
        }
    return {run.recipe.name: (chosen_root(run.recipe), branches_of(run))}


def cascade_scores(run: Run, root: str, branches: Sequence[str], windows: Windows) -> NDArray[np.float32]:
    """Probabilities of every window under the recipe's cascade. Shape: -> [n, tags]"""
    coarse_and_fine = net_scores(run, root, windows, np.arange(len(windows)))
    taxonomy = run.taxonomy
    fires = [
        fired(dict(zip(taxonomy.coarse_ids, row.tolist(), strict=True)), run.recipe.cascade)
        for row in coarse_and_fine[:, taxonomy.columns["coarse"]]
    ]
    ids = {coarse_id(branch): branch for branch in branches}
    refined: dict[tuple[str, int], list[float]] = {}
    for id, branch in ids.items():
        rows = np.array([k for k, fired_ids in enumerate(fires) if id in fired_ids], dtype=np.intp)
        found = net_scores(run, branch, windows, rows)
        refined.update(((id, int(k)), row.tolist()) for k, row in zip(rows, found, strict=True))
    scores = np.empty((len(windows), len(taxonomy.ids)), np.float32)
    for k, row in enumerate(coarse_and_fine):
        heard = run_cascade(
            row.tolist(),
            ids,
            lambda id, k=k: refined[id, k],
            taxonomy=taxonomy,
            rule=run.recipe.cascade,
        )
        scores[k] = [(heard.coarse | heard.fine)[id] for id in taxonomy.ids]
    return scores


@torch.inference_mode()
def net_scores(run: Run, name: str, windows: Windows, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """A net's probabilities. Shape: rows [m] -> [m, its outputs]"""
    net = load_net(run, name)
    found = [np.empty((0, len(run.outputs(name))), np.float32)]
    for start in range(0, len(rows), EVALUATION_BATCH):
        batch = rows[start : start + EVALUATION_BATCH]
        embedding = None
        if windows.embedding is not None:
            embedding = torch.from_numpy(windows.embedding[batch])
        found.append(torch.sigmoid(net(plain(windows.logmel[batch]), embedding)).numpy())
    return np.concatenate(found)


def _held_out_mixer(data: Path, settings: SceneSettings, taxonomy: Taxonomy) -> SceneMixer | None:
    """Of the clips that were held out of training, if there are enough of them.

    Raises:
        InputError: the clips cannot be read.
    """
    if not (data / "clips" / "manifest.csv").exists():
        return None
    events, backgrounds = read_clips(data / "clips", "validate", taxonomy)
    if not (events and backgrounds):
        return None
    return SceneMixer(Library(events, backgrounds, (), taxonomy), settings)


def scene_scores(tagger: Tagger, data: Path, settings: SceneSettings, seed: int) -> Scored | None:
    """A bundle's probabilities of scenes mixed from the clips that were held out of training.

    None where there are no clips, or too few to hold any out.

    Raises:
        InputError: the clips cannot be read.
    """
    mixer = _held_out_mixer(data, settings, tagger.taxonomy)
    if mixer is None:
        return None
    truth: list[NDArray[np.float32]] = []

    def scenes() -> Iterator[NDArray[np.float32]]:
        for k in range(N_SCENES):
            samples, labels = mixer.scene(seed + k)
            truth.append(labels)
            yield samples

    scores = predict(tagger, scenes())
    names = tuple(f"scene-{k}" for k in range(N_SCENES))
    return Scored(names, np.stack(truth), scores, tagger.taxonomy)


def quiet_scores(tagger: Tagger, data: Path, settings: SceneSettings) -> NDArray[np.float32] | None:
    """A bundle's probabilities of an hour of background: held-out clips that hold none of the tags, mixed.

    None where there are no clips, or too few to hold any out. Shape: -> [360, tags]

    Raises:
        InputError: the clips cannot be read.
    """
    mixer = _held_out_mixer(data, settings, tagger.taxonomy)
    if mixer is None:
        return None
    return predict(tagger, (mixer.backdrop(_SCENES_SEED + k) for k in range(N_QUIET)))


def scene_report(scored: Scored) -> dict[str, float | None]:
    """Coarse and fine figures on held-out scenes as a manifest states them, rounded to four digits."""
    found = {
        level: evaluate(scored.truth, scored.scores, level, scored.taxonomy, ties="threshold")
        for level in LEVELS
    }
    return {"scenes": len(scored.scores)} | {
        f"{level}_{name}": _rounded(getattr(one, name))
        for level, one in found.items()
        for name in ("micro_auprc", "macro_auprc")
    }
