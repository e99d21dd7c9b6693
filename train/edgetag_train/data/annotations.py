"""The SONYC-UST annotation table (v1 schema) as labels: who voted for what becomes a fraction per tag.

One row of the table is one annotator's votes on one recording: `<label>_presence` is 1 (present), 0 (absent)
or -1 (did not vote). Annotator 0 is the team's verified truth; negative ids are members of the team, who
verified one category at a time and so hold several rows of a recording.

Source: Cartwright et al., "SONYC Urban Sound Tagging", DCASE 2019; the evaluator of DCASE 2019 Task 5 takes
annotator 0 of the `validate` split as its truth.

The coarse columns are read as they stand. In the published table (v1) "2_machinery-impact" is present exactly
where a fine tag of category 2 *or of category 3* is: the official truth of coarse 2 holds coarse 3 as well.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST

VERIFIED_SPLIT = "validate"
VERIFIED_ANNOTATOR = 0
PRESENCE_COLUMNS = tuple(f"{SONYC_UST.tags[tag_id].label}_presence" for tag_id in SONYC_UST.ids)
ROW_COLUMNS = ("split", "sensor_id", "audio_filename", "annotator_id")
N_NAMED = 3  # how many missing columns a message names


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of n recordings, ordered by file name.

    Attributes:
        filenames: `audio_filename` of each recording, each once.
        split: `train` or `validate`, per recording.
        sensor_id: the sensor that recorded it, as written in the table.
        fraction: float32 (n, 37), columns in the order of `SONYC_UST.ids`: of those who voted on the tag,
            the fraction that say present; NaN where nobody voted.
    """

    filenames: tuple[str, ...]
    split: tuple[str, ...]
    sensor_id: tuple[str, ...]
    fraction: np.ndarray

    def binary(self, threshold: float = 0.5) -> np.ndarray:
        """1.0 where the fraction is strictly above `threshold`, 0.0 where it is not, NaN where unknown.

        The default is the paper's rule, "more than half".

        Returns:
            float32 (n, 37).

        Raises:
            InputError: `threshold` is not in [0, 1).
        """
        if not 0 <= threshold < 1:
            raise InputError(f"the label threshold is a fraction in [0, 1), found {threshold!r}")
        # Both sides in float32: one of three votes is not above a threshold of 1/3.
        present = (self.fraction > np.float32(threshold)).astype(np.float32)
        return np.where(np.isnan(self.fraction), np.float32(np.nan), present)

    def of_split(self, split: str) -> Self:
        """The recordings of one split, in the same order.

        Raises:
            InputError: there are none.
        """
        rows = [row for row, name in enumerate(self.split) if name == split]
        if not rows:
            raise InputError(f"no recording in split {split!r}; the splits are {sorted(set(self.split))}")
        split, sensor_id, filenames = (
            tuple(column[row] for row in rows) for column in (self.split, self.sensor_id, self.filenames)
        )
        return type(self)(filenames, split, sensor_id, self.fraction[rows])


def read_annotations(path: Path | str) -> Labels:
    """Read an annotation table.

    Every annotator's vote counts alike, except in the `validate` split: a recording with a verified row there
    (annotator 0) takes its labels from that row alone. The order of the file's rows does not matter.

    Args:
        path: a CSV file with the columns of SONYC-UST v1; others (`_proximity`) are ignored.

    Raises:
        InputError: the file is unreadable or empty, lacks a column, holds a vote other than -1, 0, 1 or an
            annotator that is no whole number, lets an annotator vote twice on a tag of a recording, or puts
            a recording into two splits or on two sensors.
    """
    path = Path(path)
    table = _read(path)
    votes = _votes(table, path)
    _check_one_home(table, path)
    _check_one_vote(table, votes, path)
    counted = _counted(table)
    return _labels(table[counted], votes[counted])


def _read(path: Path) -> pd.DataFrame:
    """The columns that matter, as text, but for `annotator_id` (whole number)."""
    wanted = {*ROW_COLUMNS, *PRESENCE_COLUMNS}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=lambda column: column in wanted)
    except (OSError, ValueError) as error:  # pandas' parser errors and bad UTF-8 are ValueErrors
        raise InputError(f"{path}: not a readable annotation table: {error}") from error
    if missing := [column for column in (*ROW_COLUMNS, *PRESENCE_COLUMNS) if column not in table]:
        more = f" and {len(missing) - N_NAMED} more" if len(missing) > N_NAMED else ""
        raise InputError(
            f"{path}: missing columns: {', '.join(missing[:N_NAMED])}{more} (SONYC-UST v1 schema)"
        )
    if table.empty:
        raise InputError(f"{path}: an annotation table without rows")
    return table.assign(annotator_id=_annotator_ids(table["annotator_id"], path))


def _annotator_ids(column: pd.Series, path: Path) -> pd.Series:
    ids = pd.to_numeric(column, errors="coerce")
    if (bad := ~(ids % 1 == 0)).any():
        row = bad.to_numpy().argmax()
        raise InputError(f"{path}: line {row + 2}: annotator_id is a whole number, found {column[row]!r}")
    return ids.astype(int)


def _votes(table: pd.DataFrame, path: Path) -> np.ndarray:
    """int8 (rows, 37): -1, 0 or 1."""
    votes = table[list(PRESENCE_COLUMNS)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    if (bad := ~np.isin(votes, (-1, 0, 1))).any():
        row, tag = np.argwhere(bad)[0]
        column = PRESENCE_COLUMNS[tag]
        raise InputError(f"{path}: line {row + 2}: {column} is -1, 0 or 1, found {table[column][row]!r}")
    return votes.astype(np.int8)


def _check_one_home(table: pd.DataFrame, path: Path) -> None:
    """A recording in two splits would leak from training into validation."""
    homes = table.groupby("audio_filename")[["split", "sensor_id"]].nunique()
    for column in homes:
        if (several := homes[column] > 1).any():
            raise InputError(f"{path}: {several.idxmax()} has more than one {column}")


def _check_one_vote(table: pd.DataFrame, votes: np.ndarray, path: Path) -> None:
    """Several rows of one annotator are fine (see the module's head), as long as no tag is voted on twice."""
    ballots = pd.DataFrame(votes >= 0, columns=PRESENCE_COLUMNS, index=table.index)
    n_votes = ballots.groupby([table["audio_filename"], table["annotator_id"]]).sum()
    if (twice := n_votes > 1).any(axis=None):
        (filename, annotator), columns = next(twice[twice.any(axis=1)].iterrows())
        raise InputError(
            f"{path}: duplicate rows: annotator {annotator} voted twice on {columns.idxmax()} of {filename}"
        )


def _counted(table: pd.DataFrame) -> np.ndarray:
    """bool (rows): the rows whose votes count."""
    verified = (table["split"] == VERIFIED_SPLIT) & (table["annotator_id"] == VERIFIED_ANNOTATOR)
    superseded = table["audio_filename"].isin(table["audio_filename"][verified])
    return (verified | ~superseded).to_numpy()


def _labels(table: pd.DataFrame, votes: np.ndarray) -> Labels:
    filenames, first, recording = np.unique(
        table["audio_filename"].to_numpy(str), return_index=True, return_inverse=True
    )
    n_voted, n_present = np.zeros((2, len(filenames), len(PRESENCE_COLUMNS)), dtype=np.float32)
    np.add.at(n_voted, recording, votes >= 0)
    np.add.at(n_present, recording, votes == 1)
    fraction = np.divide(n_present, n_voted, out=np.full_like(n_voted, np.nan), where=n_voted > 0)
    split, sensor_id = (tuple(table[column].iloc[first]) for column in ("split", "sensor_id"))
    return Labels(tuple(filenames.tolist()), split, sensor_id, fraction)
