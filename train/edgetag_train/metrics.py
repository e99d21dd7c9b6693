"""The figures of DCASE 2019 Task 5 (urban sound tagging), as its official evaluator defines them.

One precision-recall curve per category and level. A threshold t predicts every tag with score >= t; the
thresholds are the category's own scores from 0.01 up, and 1.0. Two rules are the task's own:

- The fine level falls back to the coarse one where the truth holds an "X" tag ("of this category, kind
  unknown"): no complete tag is a false alarm then, and if no true complete tag is hit, any tag of the
  category is one hit. A predicted X is one false alarm, but only where the truth holds nothing of the
  category and not every complete tag is predicted too. The thresholds are those of the complete tags.
- The curve begins at (recall 0, precision 1) and ends at (1, 0); its area is the trapezoid rule's.

**Ties.** Many thresholds share a recall, and the order of their points decides the area. The official
evaluator leaves it to numpy's default sort, which is not stable and differs between processors: on the
golden predictions of the tests AVX-512, AVX2 and plain code disagree by up to 2e-4 in micro and 0.026 in
class AUPRC.
`ties="official"` gives what the official evaluator gives on the same machine; `ties="threshold"` follows the
falling threshold, the order in which the curve is drawn, and is the same on every machine (there: the golden
class and macro AUPRC, and 3e-4 more than the golden micro AUPRC). F1 has no ties.

**What is not labelled** (NaN in the truth): a recording is judged in a category only if every tag of the
category at the level asked for is labelled; otherwise its truth and its scores there are left out, as if the
category had been evaluated without that recording.

Source: Cartwright et al., DCASE 2019; the definitions of sonyc-project/urban-sound-tagging-baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import Tag, Taxonomy

Level = Literal["coarse", "fine"]
Ties = Literal["official", "threshold"]

MIN_THRESHOLD = 0.01  # lower scores open no threshold: the official short cut, part of its figures
TOP_THRESHOLD = 1.0
F1_THRESHOLD = 0.5

_NEVER = -1.0  # a score no threshold reaches


@dataclass(frozen=True)
class Scores:
    """How well scores fit a truth at one level, all in [0, 1].

    Attributes:
        micro_auprc: area under the curve of counts pooled over the categories.
        micro_f1: F1 of the pooled counts at threshold 0.5.
        macro_auprc: mean of `class_auprc`.
        class_auprc: area by coarse id (at the fine level: of the category's fine tags together).
        classes_without_positives: coarse ids that never occur in the truth. They have no recall, so they are
            in neither `class_auprc` nor `macro_auprc` (the official evaluator crashes on them, or counts an
            area of 0); their false alarms do count in the micro figures.

    Without a positive in any class the first three are NaN.
    """

    micro_auprc: float
    micro_f1: float
    macro_auprc: float
    class_auprc: dict[str, float]
    classes_without_positives: list[str]


class Curve(NamedTuple):
    """Precision over recall by falling threshold, from (recall 0, precision 1) to (1, 0); each (points,)."""

    recall: np.ndarray
    precision: np.ndarray


class _Counts(NamedTuple):
    """True positives, false positives and false negatives by threshold; each (t,)."""

    threshold: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    @property
    def any_positive(self) -> bool:
        return bool(np.any(self.tp + self.fn))


def evaluate(
    truth: np.ndarray, scores: np.ndarray, level: Level, taxonomy: Taxonomy, *, ties: Ties = "official"
) -> Scores:
    """The DCASE 2019 Task 5 figures at one level. Columns in the order of `taxonomy.ids`.

    Args:
        truth: (n, tags), 1 present, 0 absent, NaN not labelled (see the module's head).
        scores: (n, tags), probabilities in [0, 1]. Only the columns of `level` are read.
        level: which tags: the coarse or the fine.
        taxonomy: whose tags; the challenge's are SONYC-UST's, its rules hold for any.
        ties: how points of equal recall are ordered (see the module's head).

    Raises:
        InputError: another shape, a truth other than 0, 1, NaN, a score outside [0, 1] or NaN, an unknown
            level or order.
    """
    counts = _counts_by_category(truth, scores, level, taxonomy, ties)
    class_auprc = {coarse: _auprc(found, ties) for coarse, found in counts.items() if found.any_positive}
    micro = _pooled(list(counts.values()))
    return Scores(
        micro_auprc=_auprc(micro, ties) if class_auprc else float("nan"),
        micro_f1=_f1(micro) if class_auprc else float("nan"),
        macro_auprc=float(np.mean(list(class_auprc.values()))) if class_auprc else float("nan"),
        class_auprc=class_auprc,
        classes_without_positives=[coarse for coarse in counts if coarse not in class_auprc],
    )


def curves(truth: np.ndarray, scores: np.ndarray, level: Level, taxonomy: Taxonomy) -> dict[str, Curve]:
    """The curves behind `evaluate`, by coarse id; categories without positives have none.

    The area under a curve is that category's `class_auprc` with `ties="threshold"`. Arguments and errors are
    those of `evaluate`.
    """
    counts = _counts_by_category(truth, scores, level, taxonomy, "threshold")
    return {coarse: _curve(found, "threshold") for coarse, found in counts.items() if found.any_positive}


def _counts_by_category(
    truth: np.ndarray, scores: np.ndarray, level: Level, taxonomy: Taxonomy, ties: Ties
) -> dict[str, _Counts]:
    _check(truth, scores, level, taxonomy, ties)
    found = {}
    for category in taxonomy.categories:
        tags = (category,) if level == "coarse" else category.fine
        columns = [taxonomy.index[tag.id] for tag in tags]
        found[category.id] = _category_counts(tags, truth[:, columns], scores[:, columns])
    return found


def _check(truth: np.ndarray, scores: np.ndarray, level: Level, taxonomy: Taxonomy, ties: Ties) -> None:
    if level not in get_args(Level) or ties not in get_args(Ties):
        raise InputError(
            f"level is one of {get_args(Level)}, ties of {get_args(Ties)}, found {level!r}, {ties!r}"
        )
    n = len(taxonomy.ids)
    if truth.ndim != 2 or truth.shape[1] != n or truth.shape != scores.shape:
        raise InputError(f"truth and scores are (n, {n}), found {truth.shape} and {scores.shape}")
    columns = taxonomy.columns[level]
    ids = taxonomy.ids[columns]
    truth, scores = truth[:, columns], scores[:, columns]
    if (bad := ~(np.isin(truth, (0, 1)) | np.isnan(truth))).any():
        raise InputError(f"a truth is 0, 1 or NaN (not labelled), found {_first(truth, bad, ids)}")
    if (bad := ~((scores >= 0) & (scores <= TOP_THRESHOLD))).any():
        raise InputError(
            f"a score is in [0, 1] (0 for a tag the net cannot tell), found {_first(scores, bad, ids)}"
        )


def _first(values: np.ndarray, bad: np.ndarray, ids: Sequence[str]) -> str:
    row, column = np.argwhere(bad)[0]
    return f"{values[row, column]} in row {row}, tag {ids[column]}"


def _category_counts(tags: Sequence[Tag], truth: np.ndarray, scores: np.ndarray) -> _Counts:
    """The counts of one category's tags over its labelled recordings, by falling threshold."""
    labelled = ~np.isnan(truth).any(axis=1)
    present, score = truth[labelled] == 1, scores[labelled].astype(float)
    is_other = np.array([tag.is_other for tag in tags])
    # A category has one X tag or none; without one it is never there and never predicted.
    other_present = present[:, is_other].any(axis=1)
    other_score = score[:, is_other].max(axis=1, initial=_NEVER)
    return _counts(present[:, ~is_other], score[:, ~is_other], other_present, other_score)


def _counts(
    present: np.ndarray, score: np.ndarray, other_present: np.ndarray, other_score: np.ndarray
) -> _Counts:
    """Counts by falling threshold, each as "how many of these scores reach t" (one sort, no loop over t).

    Args:
        present: bool (n, k), the complete tags of the category; `score` their scores.
        other_present: bool (n,), its X tag; `other_score` its scores.
    """
    threshold = np.unique(np.append(score[score >= MIN_THRESHOLD], TOP_THRESHOLD))[::-1]
    any_score = np.maximum(score.max(axis=1), other_score)
    hit_score = np.where(present, score, _NEVER).max(axis=1)  # reached when a true complete tag is hit
    # With every complete tag predicted as well, X is no false alarm of its own.
    covered_score = np.minimum(score.min(axis=1), other_score)
    only_other = other_present & ~present.any(axis=1)
    nothing = ~other_present & ~present.any(axis=1)

    reaching = partial(_n_reaching, threshold)
    n_hit = reaching(score[present])
    n_other_hit = reaching(any_score[other_present]) - reaching(hit_score[other_present])
    n_false = reaching(score[~present & ~other_present[:, None]])
    n_other_false = reaching(other_score[nothing]) - reaching(covered_score[nothing])
    n_missed = present.sum() - n_hit
    n_other_missed = only_other.sum() - reaching(any_score[only_other])
    return _Counts(threshold, n_hit + n_other_hit, n_false + n_other_false, n_missed + n_other_missed)


def _n_reaching(threshold: np.ndarray, score: np.ndarray) -> np.ndarray:
    """How many of the scores are at or above each threshold."""
    return score.size - np.searchsorted(np.sort(score, axis=None), threshold)


def _pooled(counts: Sequence[_Counts]) -> _Counts:
    """The counts of all categories together, by *rising* threshold as in the official evaluator (ties!)."""
    threshold = np.unique(np.concatenate([category.threshold for category in counts]))
    tp, fp, fn = np.zeros((3, threshold.size), dtype=int)
    for category in counts:
        # The category's own lowest threshold that is not below t; 1.0 is in every list.
        row = _n_reaching(threshold, category.threshold) - 1
        tp, fp, fn = tp + category.tp[row], fp + category.fp[row], fn + category.fn[row]
    return _Counts(threshold, tp, fp, fn)


def _auprc(counts: _Counts, ties: Ties) -> float:
    """Area under precision over recall, from (0, 1) to (1, 0)."""
    recall, precision = _curve(counts, ties)
    return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1])) / 2)


def _curve(counts: _Counts, ties: Ties) -> Curve:
    # Numerators are 0 where the guarded denominators are: any guard in (0, 1) gives 0.
    precision = counts.tp / np.maximum(counts.tp + counts.fp, 0.5)
    recall = counts.tp / np.maximum(counts.tp + counts.fn, 0.5)
    # Recall never falls with the threshold, so both orders sort it. Do not make the first one stable.
    order = np.argsort(recall) if ties == "official" else np.argsort(-counts.threshold)
    return Curve(
        np.concatenate(([0.0], recall[order], [1.0])), np.concatenate(([1.0], precision[order], [0.0]))
    )


def _f1(pooled: _Counts) -> float:
    """F1 at the lowest threshold that is not below 0.5."""
    row = np.searchsorted(pooled.threshold, F1_THRESHOLD)
    tp, fp, fn = pooled.tp[row], pooled.fp[row], pooled.fn[row]
    return float(2 * tp / (2 * tp + fp + fn))
