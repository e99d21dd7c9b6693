"""What an annotation table holds: recordings and sensors a split, labels a tag, and how far annotators agree.

Agreement is measured among volunteers (positive annotator ids), on every recording and tag that two or more
of them voted on: the mean share of the voters who are with the majority, and Krippendorff's alpha, which says
how much of it is more than chance. Where recordings were verified as well, the volunteers' labels are held
against that.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from edgetag_train.data.annotations import Labels, Votes, read_annotations
from edgetag_train.data.dataset import TABLE, dataset_folder

_NARROW_NAMES = 29  # columns, where three splits stand beside them
_KINDS = ("present", "absent", "unknown")
_SIGNS = dict(zip(_KINDS, "+−?", strict=True))


def stats(path: Path, threshold: float = 0.5) -> dict[str, Any]:
    """`describe_table` of a table, or of the table in a dataset folder; the audio is not looked at.

    Raises:
        InputError: there is no table, it cannot be read, or `threshold` is no fraction.
    """
    table = dataset_folder(path) / TABLE if path.is_dir() else path
    return {"table": str(table)} | describe_table(read_annotations(table), threshold)


def describe_table(labels: Labels, threshold: float = 0.5) -> dict[str, Any]:
    """Counts and agreement, as JSON can hold them.

    Args:
        labels: of a whole table.
        threshold: a tag is present when more than this fraction of its voters say so.

    Returns:
        `taxonomy`, its name; `threshold`; `splits` (name -> `recordings`, `sensors`, `verified`); `agreement`
        (`coarse`, `fine`: `majority`, `alpha`, means over the tags for which they are defined, else null);
        `volunteers` (`coarse`, `fine`: `precision`, `recall`, `f1` of their labels on verified recordings, or
        null); `tags` (id -> `name`, `majority`, `alpha`, and `splits`: name -> `present`, `absent`,
        `unknown`).

    Raises:
        InputError: `threshold` is no fraction.
    """
    parts = {split: labels.of_split(split) for split in _ordered(labels.splits())}
    counts = {split: _counts(part.binary(threshold)) for split, part in parts.items()}
    shares, alphas = majority(labels.volunteers), alpha(labels.volunteers)
    tags = {
        id: {
            "name": labels.taxonomy.tags[id].name,
            "majority": _figure(shares[k]),
            "alpha": _figure(alphas[k]),
            "splits": {
                split: {kind: int(n[k]) for kind, n in by_kind.items()} for split, by_kind in counts.items()
            },
        }
        for k, id in enumerate(labels.taxonomy.ids)
    }
    held = against_verified(labels, threshold)
    return {
        "taxonomy": labels.taxonomy.name,
        "threshold": threshold,
        "splits": {split: _described(part) for split, part in parts.items()},
        "agreement": {
            level: {"majority": _mean(shares[columns]), "alpha": _mean(alphas[columns])}
            for level, columns in labels.taxonomy.columns.items()
        },
        "volunteers": held,
        "tags": tags,
    }


def against_verified(labels: Labels, threshold: float) -> dict[str, dict[str, float] | None]:
    """Precision, recall and F1 of what the volunteers' votes make present, by level, all tags pooled.

    On the recordings that the team verified; None where there are none, or none with a volunteer's vote.
    """
    rows = labels.of([row for row, verified in enumerate(labels.verified) if verified])
    truth, share = rows.binary(), rows.volunteers.fraction()
    known = ~np.isnan(truth) & ~np.isnan(share)
    said, so = (share > np.float32(threshold)) & known, (truth == 1) & known
    found: dict[str, dict[str, float] | None] = {}
    for level, columns in labels.taxonomy.columns.items():
        n_said, n_so = int(said[:, columns].sum()), int(so[:, columns].sum())
        hits = int((said & so)[:, columns].sum())
        found[level] = None
        if n_so:
            precision = hits / n_said if n_said else 1.0  # who says nothing says nothing false
            f1 = 2 * hits / (n_said + n_so)
            found[level] = {
                "precision": round(precision, 4),
                "recall": round(hits / n_so, 4),
                "f1": round(f1, 4),
            }
    return found


def majority(votes: Votes) -> NDArray[np.float64]:
    """Mean share of the voters who are with the majority, per tag; NaN where no two voted on a recording.

    Between 0.5 and 1. Absent tags are easily agreed on, so that a rare tag's share is high whatever the
    listeners do: see `alpha`.

    Shape: [n, tags] -> [tags]
    """
    several = votes.cast >= 2
    with_majority = np.maximum(votes.present, votes.cast - votes.present)
    share = np.divide(with_majority, votes.cast, out=np.zeros(several.shape), where=several)
    n = several.sum(axis=0)
    return np.divide(share.sum(axis=0), n, out=np.full(several.shape[1], np.nan), where=n > 0)


def alpha(votes: Votes) -> NDArray[np.float64]:
    """Krippendorff's alpha per tag: 1 − disagreement observed / disagreement expected of shuffled votes.

    1 is full agreement, 0 is chance; NaN where no two voted on a recording or all votes are alike. Annotators
    may differ from recording to recording, in number as well (Krippendorff, "Computing Krippendorff's
    alpha-reliability", 2011, nominal data).

    Shape: [n, tags] -> [tags]
    """
    cast = np.where(votes.cast >= 2, votes.cast, 0).astype(float)
    present = np.where(votes.cast >= 2, votes.present, 0).astype(float)
    n, n_present = cast.sum(axis=0), present.sum(axis=0)
    unlike = (present * (cast - present) / np.maximum(cast - 1, 1)).sum(axis=0)
    expected = n_present * (n - n_present)
    ratio = np.divide(unlike * (n - 1), expected, out=np.full(len(n), np.nan), where=expected > 0)
    return 1 - ratio


def render(described: dict[str, Any]) -> tuple[RenderableType, ...]:
    """`stats` for a terminal of 100 columns: the splits, the tags, and what the columns mean."""
    return _splits_table(described), Text(), _tags_table(described), Text(), _legend(described)


def _splits_table(described: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("split")
    columns = ("recordings", "sensors", "verified")
    for name in columns:
        table.add_column(name, justify="right")
    for split, counts in described["splits"].items():
        table.add_row(split, *(f"{counts[name]:,}" for name in columns))
    return table


def _tags_table(described: dict[str, Any]) -> Table:
    splits = tuple(described["splits"])
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    width = _NARROW_NAMES if len(splits) > 2 else None
    table.add_column("\ntag", no_wrap=True, overflow="ellipsis", max_width=width)
    for split in splits:
        for kind in _KINDS:
            title = split if kind == _KINDS[0] else ""
            table.add_column(f"{title}\n{_SIGNS[kind]}", justify="right", no_wrap=True, min_width=5)
    table.add_column("\nagree", justify="right", no_wrap=True)
    table.add_column("\nalpha", justify="right", no_wrap=True)
    for id in _by_category(described["tags"]):
        is_coarse = "-" not in id
        found = described["tags"][id]
        counts = [found["splits"][split][kind] for split in splits for kind in _KINDS]
        cells = [_cell(n, kind) for n, kind in zip(counts, _KINDS * len(splits), strict=True)]
        figures = [_rounded(found[name]) for name in ("majority", "alpha")]
        name = f"{'' if is_coarse else ' '}{id} {found['name']}"
        table.add_row(name, *cells, *figures, style="bold" if is_coarse else None)
    return table


def _by_category(ids: Iterable[str]) -> list[str]:
    """Each coarse id, then its fine ones; only these have a dash."""
    ids = list(ids)
    return [id for coarse in ids if "-" not in coarse for id in ids if id.partition("-")[0] == coarse]


def _cell(n: int, kind: str) -> Text:
    """A split without an example of a tag teaches and measures nothing of it."""
    return Text(str(n), style="red" if kind == "present" and n == 0 else "")


def _legend(described: dict[str, Any]) -> Text:
    means = ", ".join(
        f"{level} {_rounded(figures['majority'])} (alpha {_rounded(figures['alpha'])})"
        for level, figures in described["agreement"].items()
    )
    return Text(
        f"+ present (more than {described['threshold']:.0%} of the votes), − absent, ? nobody voted.\n"
        "agree: mean share of the volunteers who are with the majority; alpha: Krippendorff's, 1 = full\n"
        f"agreement, 0 = chance. Means over the tags: {means}.{_held(described['volunteers'])}"
    )


def _held(volunteers: dict[str, dict[str, float] | None]) -> str:
    lines = [
        f"\nThe volunteers against the verified labels, {level}: precision {figures['precision']:.2f}, "
        f"recall {figures['recall']:.2f}, F1 {figures['f1']:.2f}."
        for level, figures in volunteers.items()
        if figures
    ]
    return "".join(lines)


def _ordered(splits: Iterable[str]) -> list[str]:
    """Train, validate, test, then others by name."""
    usual = ("train", "validate", "test")
    return sorted(splits, key=lambda split: (usual.index(split) if split in usual else len(usual), split))


def _described(labels: Labels) -> dict[str, int]:
    return {
        "recordings": len(labels),
        "sensors": len(set(labels.sensor_id)),
        "verified": sum(labels.verified),
    }


def _counts(binary: NDArray[np.float32]) -> dict[str, NDArray[np.intp]]:
    found = (binary == 1, binary == 0, np.isnan(binary))
    return {kind: rows.sum(axis=0) for kind, rows in zip(_KINDS, found, strict=True)}


def _mean(figures: NDArray[np.float64]) -> float | None:
    known = figures[~np.isnan(figures)]
    return _figure(known.mean()) if len(known) else None


def _figure(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 2) + 0:.2f}"  # + 0: not −0.00
