"""A table of annotations as labels: who voted for what becomes a fraction per tag.

Its form is that of SONYC-UST (v1 and v2), with the tags of `taxonomy.yaml` where one lies beside it.

One row of the table is one annotator's votes on one recording: `<label>_presence` is 1 (present), 0 (absent)
or -1 (did not vote). Positive ids are volunteers; annotator 0 is the truth the team agreed on; negative ids
are members of the team, who verified one category at a time and so hold several rows of a recording.

v2 has a third split (`test`) and says when and where a recording was made (`year` … `longitude`); as
proximity, that is read past. Sources: Cartwright et al., "SONYC Urban Sound Tagging", DCASE 2019, and
"SONYC-UST-V2", DCASE 2020. The evaluators of both years' Task 5 take annotator 0 of the split they score as
its truth and leave out recordings without such a row.

The coarse columns are read as they stand. In the published table (v1) "2_machinery-impact" is present exactly
where a fine tag of category 2 *or of category 3* is: the official truth of coarse 2 holds coarse 3 as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag_train.sentences import some
from edgetag_train.taxonomy import FILE, taxonomy_beside

TRAIN_SPLIT = "train"
VERIFIED_ANNOTATOR = 0
PRESENCE = "_presence"
ROW_COLUMNS = ("split", "sensor_id", "audio_filename", "annotator_id")


@dataclass(frozen=True, eq=False)
class Votes:
    """How many voted on each tag of each recording, and how many of them said present. Shape: [n, tags]"""

    cast: NDArray[np.int16]
    present: NDArray[np.int16]

    def fraction(self) -> NDArray[np.float32]:
        """Of those who voted, the fraction that say present; NaN where nobody voted. Shape: [n, tags]"""
        unknown = np.full(self.cast.shape, np.nan, np.float32)
        return np.divide(self.present, self.cast, out=unknown, where=self.cast > 0, dtype=np.float32)

    def of(self, rows: Sequence[int]) -> Self:
        """The votes on some recordings."""
        return type(self)(self.cast[list(rows)], self.present[list(rows)])


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of n recordings, ordered by file name.

    Attributes:
        filenames: `audio_filename` of each recording, each once.
        split: `train`, `validate` or `test`, per recording.
        sensor_id: the sensor that recorded it, as written in the table.
        verified: whether annotator 0's row alone decided its labels.
        votes: the votes that its labels were made from.
        volunteers: the votes of annotators with a positive id, whether they count or were superseded: what
            agreement is measured on.
        taxonomy: whose tags were voted on; columns are in the order of its `ids`.
    """

    filenames: tuple[str, ...]
    split: tuple[str, ...]
    sensor_id: tuple[str, ...]
    verified: tuple[bool, ...]
    votes: Votes
    volunteers: Votes
    taxonomy: Taxonomy

    def __len__(self) -> int:
        return len(self.filenames)

    @property
    def fraction(self) -> NDArray[np.float32]:
        """The fraction that say present, columns in the order of `taxonomy.ids`; NaN unknown.

        Shape: [n, tags]
        """
        return self.votes.fraction()

    def soft(self) -> NDArray[np.float32]:
        """Soft labels: the fraction itself. Shape: [n, tags], NaN unknown"""
        return self.fraction

    def binary(self, threshold: float = 0.5) -> NDArray[np.float32]:
        """1.0 where the fraction is strictly above `threshold`, 0.0 where it is not, NaN where unknown.

        The default is the paper's rule, "more than half".

        Shape: [n, tags]

        Raises:
            InputError: `threshold` is not in [0, 1).
        """
        if not 0 <= threshold < 1:
            raise InputError(f"the label threshold is a fraction in [0, 1), found {threshold!r}")
        fraction = self.fraction
        # Both sides in float32: one of three votes is not above a threshold of 1/3.
        present = (fraction > np.float32(threshold)).astype(np.float32)
        return np.where(np.isnan(fraction), np.float32(np.nan), present)

    def splits(self) -> tuple[str, ...]:
        """The splits there are, by name."""
        return tuple(sorted(set(self.split)))

    def of_split(self, *splits: str) -> Self:
        """The recordings of one split, or of several together, in the same order.

        Raises:
            InputError: one of the splits has none.
        """
        for split in splits:
            if split not in self.split:
                raise InputError(
                    f"no recording in split {split!r}; the splits are {', '.join(self.splits())}"
                )
        return self.of([row for row, name in enumerate(self.split) if name in splits])

    def for_evaluation(self) -> Self:
        """The verified recordings, where there are any; else all (`verified` tells which it was).

        What was verified is a sample that the team listened to again: figures on it are not to be mixed with
        figures on volunteers' votes.
        """
        verified = [row for row, is_verified in enumerate(self.verified) if is_verified]
        return self.of(verified) if verified else self

    def of(self, rows: Sequence[int]) -> Self:
        """Some of the recordings, in the order of `rows`."""
        filenames, split, sensor_id, verified = (
            tuple(column[row] for row in rows)
            for column in (self.filenames, self.split, self.sensor_id, self.verified)
        )
        votes, volunteers = self.votes.of(rows), self.volunteers.of(rows)
        return type(self)(filenames, split, sensor_id, verified, votes, volunteers, self.taxonomy)


def read_annotations(path: Path | str) -> Labels:
    """Read an annotation table.

    In `train` every vote counts alike. In any other split a recording with a verified row (annotator 0) takes
    its labels from that row alone. The order of the file's rows does not matter.

    Args:
        path: a CSV file with the columns of SONYC-UST v1 or v2, for the tags of the `taxonomy.yaml` beside
            it, or for SONYC-UST's; a tag that was not asked for is -1.

    Raises:
        InputError: the file is unreadable or empty, lacks a column, has a `_presence` column of a tag that is
            not in the taxonomy, holds a vote other than -1, 0, 1 or an annotator that is no whole number,
            lets an annotator vote twice on a tag of a recording, or puts a recording into two splits or on
            two sensors; or the taxonomy is none.
    """
    path = Path(path)
    taxonomy = taxonomy_beside(path)
    table = _read(path, taxonomy)
    votes = _votes(table, path, taxonomy)
    _check_one_home(table, path)
    _check_one_vote(table, votes, path, taxonomy)
    return _labels(table, votes, taxonomy)


def presence_columns(taxonomy: Taxonomy) -> tuple[str, ...]:
    """The column of each tag, in the order of `taxonomy.ids`."""
    return tuple(f"{label}{PRESENCE}" for label in taxonomy.labels)


def _read(path: Path, taxonomy: Taxonomy) -> pd.DataFrame:
    """The columns that matter, as text, but for `annotator_id` (whole number)."""
    wanted = lambda column: column in ROW_COLUMNS or column.endswith(PRESENCE)  # noqa: E731
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=wanted)
    except (OSError, ValueError) as error:  # pandas' parser errors and bad UTF-8 are ValueErrors
        raise InputError(f"{path}: not a readable annotation table: {error}") from error
    expected = (*ROW_COLUMNS, *presence_columns(taxonomy))
    if missing := [column for column in expected if column not in table]:
        raise InputError(f"{path}: missing columns: {some(missing)} ({_schema(taxonomy)})")
    if unknown := [column for column in table if column not in expected]:
        raise InputError(f"{path}: columns of tags that {taxonomy.name} does not have: {some(unknown)}")
    if table.empty:
        raise InputError(f"{path}: an annotation table without rows")
    return table.assign(annotator_id=_annotator_ids(table["annotator_id"], path))


def _schema(taxonomy: Taxonomy) -> str:
    if taxonomy == SONYC_UST:
        return f"SONYC-UST schema, v1 or v2; other tags are stated in {FILE} beside the table"
    return f"SONYC-UST schema, with the tags of {FILE} beside the table"


def _annotator_ids(column: pd.Series, path: Path) -> pd.Series:
    ids = pd.to_numeric(column, errors="coerce")
    if (bad := ~(ids % 1 == 0)).any():
        row = bad.to_numpy().argmax()
        raise InputError(f"{path}: line {row + 2}: annotator_id is a whole number, found {column[row]!r}")
    return ids.astype(int)


def _votes(table: pd.DataFrame, path: Path, taxonomy: Taxonomy) -> NDArray[np.int8]:
    """int8 (rows, tags): -1, 0 or 1."""
    columns = presence_columns(taxonomy)
    votes = table[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    if (bad := ~np.isin(votes, (-1, 0, 1))).any():
        row, tag = np.argwhere(bad)[0]
        column = columns[tag]
        raise InputError(f"{path}: line {row + 2}: {column} is -1, 0 or 1, found {table[column][row]!r}")
    return votes.astype(np.int8)


def _check_one_home(table: pd.DataFrame, path: Path) -> None:
    """A recording in two splits would leak from training into validation."""
    homes = table.groupby("audio_filename")[["split", "sensor_id"]].nunique()
    for column in homes:
        if (several := homes[column] > 1).any():
            raise InputError(f"{path}: {several.idxmax()} has more than one {column}")


def _check_one_vote(table: pd.DataFrame, votes: NDArray[np.int8], path: Path, taxonomy: Taxonomy) -> None:
    """Several rows of one annotator are fine (see the module's head), as long as no tag is voted on twice."""
    ballots = pd.DataFrame(votes >= 0, columns=presence_columns(taxonomy), index=table.index)
    n_votes = ballots.groupby([table["audio_filename"], table["annotator_id"]]).sum()
    if (twice := n_votes > 1).any(axis=None):
        (filename, annotator), columns = next(twice[twice.any(axis=1)].iterrows())
        raise InputError(
            f"{path}: duplicate rows: annotator {annotator} voted twice on {columns.idxmax()} of {filename}"
        )


def _labels(table: pd.DataFrame, votes: NDArray[np.int8], taxonomy: Taxonomy) -> Labels:
    filenames, first, recording = np.unique(
        table["audio_filename"].to_numpy(str), return_index=True, return_inverse=True
    )
    split, sensor_id = (tuple(table[column].iloc[first]) for column in ("split", "sensor_id"))
    annotator = table["annotator_id"].to_numpy()
    deciding = ((table["split"] != TRAIN_SPLIT) & (annotator == VERIFIED_ANNOTATOR)).to_numpy()
    verified = np.zeros(len(filenames), bool)
    verified[recording[deciding]] = True
    counted = _counts(votes, recording, deciding | ~verified[recording], len(filenames))
    volunteers = _counts(votes, recording, annotator > VERIFIED_ANNOTATOR, len(filenames))
    names = tuple(filenames.tolist())
    return Labels(names, split, sensor_id, tuple(verified.tolist()), counted, volunteers, taxonomy)


def _counts(votes: NDArray[np.int8], recording: NDArray[np.intp], rows: NDArray[np.bool_], n: int) -> Votes:
    """The votes of `rows` of the table, added up over n recordings."""
    cast, present = np.zeros((2, n, votes.shape[1]), np.int16)
    np.add.at(cast, recording[rows], votes[rows] >= 0)
    np.add.at(present, recording[rows], votes[rows] == 1)
    return Votes(cast, present)
