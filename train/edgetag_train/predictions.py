"""Predictions in the challenge's submission format, and the challenge's figures for them.

A table of comma-separated values: `audio_filename`, then a column per tag, named by its label
(`1-1_small-sounding-engine`, …, `8_dog`). A submission may hold one level only: its fine or its coarse
columns. Like the official evaluator we read columns by name, in any order, and ignore those we do not know
(writing with pandas adds a column without a name).

Source: DCASE 2019 Task 5, submission format; sonyc-project/urban-sound-tagging-baseline.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import Taxonomy
from edgetag_train.files import writing
from edgetag_train.metrics import Level, Ties, evaluate
from edgetag_train.sentences import some

NAME_COLUMN = "audio_filename"
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores of n recordings.

    Attributes:
        filenames: `audio_filename` of each recording, each once.
        scores: float64 (n, tags), columns in the order of the taxonomy's `ids`, in [0, 1]; a level that was
            not submitted is NaN.
    """

    filenames: tuple[str, ...]
    scores: np.ndarray


def write_predictions(
    path: Path | str, filenames: Sequence[str], scores: np.ndarray, taxonomy: Taxonomy
) -> None:
    """Write a submission, fine columns first as in the challenge; a level that is all NaN is left out.

    Every digit is written: what `read_predictions` reads are the same numbers, so the figures are the same.

    Args:
        filenames: n recordings, each once.
        scores: (n, tags) in the order of `taxonomy.ids`.

    Raises:
        InputError: another shape, a score outside [0, 1], a recording twice, or no recording.
        OutputError: the file cannot be written.
    """
    path, scores = Path(path), np.asarray(scores)
    labels = taxonomy.labels
    if scores.shape != (len(filenames), len(labels)):
        raise InputError(f"scores are ({len(filenames)}, {len(labels)}), found {scores.shape}")
    levels = [level for level in ("fine", "coarse") if not np.isnan(scores[:, taxonomy.columns[level]]).all()]
    columns = [column for level in levels for column in range(len(labels))[taxonomy.columns[level]]]
    _check(path, filenames, scores[:, columns], [labels[column] for column in columns])
    with writing(path), path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([NAME_COLUMN, *(labels[column] for column in columns)])
        for name, row in zip(filenames, scores[:, columns].tolist(), strict=True):
            table.writerow([name, *row])


def read_predictions(path: Path | str, taxonomy: Taxonomy) -> Predictions:
    """Read a submission.

    Raises:
        InputError: the file is unreadable or empty, lacks columns of a level it holds, holds a score that is
            no number in [0, 1], or a recording twice.
    """
    path = Path(path)
    labels = taxonomy.labels
    header, rows = _read(path, labels)
    of_level = {level: labels[taxonomy.columns[level]] for level in LEVELS}
    levels = [level for level in LEVELS if any(label in header for label in of_level[level])]
    wanted = [label for level in levels or LEVELS for label in of_level[level]]
    if missing := [label for label in (NAME_COLUMN, *wanted) if label not in header]:
        raise InputError(f"{path}: missing columns: {some(missing)} (DCASE 2019 Task 5 submission format)")
    filenames = tuple(row[header.index(NAME_COLUMN)] for row in rows)
    scores = np.full((len(rows), len(labels)), np.nan)
    for label in wanted:
        scores[:, labels.index(label)] = _column(path, rows, header.index(label), label)
    _check(path, filenames, scores[:, [labels.index(label) for label in wanted]], wanted)
    return Predictions(filenames, scores)


def figures(
    filenames: Sequence[str],
    scores: np.ndarray,
    truth_filenames: Sequence[str],
    truth: np.ndarray,
    taxonomy: Taxonomy,
    *,
    split: str = "validate",
    ties: Ties = "official",
) -> dict[str, Any]:
    """The challenge's figures of both levels, ready for JSON: what has no value is None, never NaN.

    Predictions and truth are matched by recording; predictions for other recordings are left out and counted.
    A level without labels or without predictions is None, and `reasons` says why.

    Args:
        scores: (n, tags), a level that was not predicted all NaN.
        truth: (m, tags), 1 present, 0 absent, NaN not labelled.
        split: what the truth is called in the result.

    Returns:
        `split`, `recordings`, `left_out`, `coarse` and `fine` (the fields of `metrics.Scores`), `reasons`.

    Raises:
        InputError: a split without recordings, a recording of it without prediction, or what
            `metrics.evaluate` refuses.
    """
    if not truth_filenames:
        raise InputError(f"split {split!r} holds no recording")
    row_of = {name: row for row, name in enumerate(filenames)}
    if missing := [name for name in truth_filenames if name not in row_of]:
        raise InputError(
            f"no prediction for {len(missing)} of the {len(truth_filenames)} recordings of split {split!r}: "
            f"{some(missing)}"
        )
    matched = np.asarray(scores)[[row_of[name] for name in truth_filenames]]
    columns = taxonomy.columns
    reasons = {
        level: why
        for level in LEVELS
        if (why := _why_not(truth[:, columns[level]], matched[:, columns[level]], level, split))
    }
    return {
        "split": split,
        "recordings": len(truth_filenames),
        "left_out": len(row_of.keys() - set(truth_filenames)),
        **{
            level: None if level in reasons else _level(truth, matched, level, taxonomy, ties)
            for level in LEVELS
        },
        "reasons": reasons,
    }


def _level(
    truth: np.ndarray, scores: np.ndarray, level: Level, taxonomy: Taxonomy, ties: Ties
) -> dict[str, Any]:
    found = asdict(evaluate(truth, scores, level, taxonomy, ties=ties))
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in found.items()
    }


def _why_not(truth: np.ndarray, scores: np.ndarray, level: Level, split: str) -> str | None:
    """Why a level has no figures; None when it has some. Shape: truth, scores [n, tags of the level]"""
    if np.isnan(truth).all():
        return f"no recording of split {split!r} has {level} labels"
    if np.isnan(scores).all():
        return f"the predictions have no {level} scores"
    return None


def _read(path: Path, labels: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows, all of the header's length."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable table of predictions: {error}") from error
    rows = [row for row in rows if row]
    if not rows:
        raise InputError(f"{path}: a table of predictions without rows")
    if twice := _repeated(label for label in header if label in (NAME_COLUMN, *labels)):
        raise InputError(f"{path}: column {twice} occurs twice")
    if ragged := [row for row in rows if len(row) != len(header)]:
        raise InputError(
            f"{path}: {ragged[0][0]} has {len(ragged[0])} values, the header {len(header)} columns"
        )
    return header, rows


def _column(path: Path, rows: list[list[str]], column: int, label: str) -> list[float]:
    scores = []
    for row in rows:
        try:
            scores.append(float(row[column]))
        except ValueError:
            raise InputError(f"{path}: {label} of {row[0]} is a number, found {row[column]!r}") from None
    return scores


def _check(path: Path, filenames: Sequence[str], scores: np.ndarray, labels: Sequence[str]) -> None:
    if not scores.size:
        raise InputError(f"{path}: a table of predictions needs a recording and a level")
    if twice := _repeated(filenames):
        raise InputError(f"{path}: {twice} is predicted twice")
    if (bad := ~((scores >= 0) & (scores <= 1))).any():
        row, column = np.argwhere(bad)[0]
        raise InputError(
            f"{path}: {labels[column]} of {filenames[row]} is in [0, 1], found {scores[row, column]}"
        )


def _repeated(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
