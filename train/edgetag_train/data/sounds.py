"""What scenes are mixed from: isolated clips with tags, backgrounds without, and labelled street recordings.

Everything is mono float32 at 44.1 kHz. Labels are one row per sound in the order of a
taxonomy's `ids`: 1 present, 0 absent, NaN not known.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import soundfile
from numpy.typing import NDArray

from edgetag.contract.errors import InputError
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.contract.taxonomy import Taxonomy
from edgetag.dsp.resample import resample
from edgetag_train.data.dataset import Dataset, open_dataset, read_dataset_taxonomy, read_labels

Split = Literal["train", "validate"]
_COLUMNS = ("path", "coarse", "fine", "recording_id", "licence", "source_repo")
BACKGROUND = "background"
_HELD_OUT_SHARE = 0.15
_HELD_OUT_FROM = 10
"""Tags with fewer recordings than this are too rare to hold any out: all of them train."""


@dataclass(frozen=True, eq=False)
class Sound:
    """A piece of audio and what is in it.

    Shape: samples [n], labels [tags]
    """

    samples: NDArray[np.float32]
    labels: NDArray[np.float32]
    group: str
    """What must not be divided between splits: the recording that a clip was cut from, or a sensor."""


@dataclass(frozen=True)
class Library:
    """All that scenes of one split are mixed from; the labels are of `taxonomy`'s tags."""

    events: Sequence[Sound]
    backgrounds: Sequence[Sound]
    recordings: Sequence[Sound]
    taxonomy: Taxonomy


def absent(taxonomy: Taxonomy) -> NDArray[np.float32]:
    """Labels of a sound that holds none of the tags. Shape: [tags]"""
    return np.zeros(len(taxonomy.ids), np.float32)


def clip_labels(coarse: Iterable[str], fine_name: str, taxonomy: Taxonomy) -> NDArray[np.float32]:
    """Labels of a clip in categories `coarse` (ids), one of which its fine tag belongs to.

    In the other categories some fine tag is present, but not known which.
    """
    labels = absent(taxonomy)
    for category in map(taxonomy.category, coarse):
        labels[taxonomy.index[category.id]] = 1
        names = [tag.name for tag in category.fine]
        for tag in category.fine:
            known = fine_name in names
            labels[taxonomy.index[tag.id]] = float(tag.name == fine_name) if known else np.nan
    return labels


def split_of(recording_id: str, n_recordings: int) -> Split:
    """Which split a clip's recording belongs to: by a hash of its id, not by its place in a table.

    Args:
        recording_id: what the clip was cut from.
        n_recordings: how many recordings its rarest tag has.
    """
    held_out = hashlib.sha256(recording_id.encode()).digest()[0] < 256 * _HELD_OUT_SHARE
    return "validate" if held_out and n_recordings >= _HELD_OUT_FROM else "train"


def read_mono(path: Path) -> NDArray[np.float32]:
    """A whole file, channels averaged, at 44.1 kHz.

    Raises:
        InputError: the file is missing or is not audio.
    """
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"{path}: cannot be read as audio ({error})") from error
    return resample(samples.mean(axis=1, dtype=np.float32), rate_hz, SAMPLE_RATE_HZ)


def read_clips(folder: Path, split: Split, taxonomy: Taxonomy) -> tuple[tuple[Sound, ...], tuple[Sound, ...]]:
    """Events and backgrounds of `folder/manifest.csv` whose recording belongs to `split`.

    Columns: `path`, `coarse` (a category's label such as `5_alert-signal`, several with `;` between, or
    `background`), `fine` (a name), `recording_id`, `licence`, `source_repo`.

    Raises:
        InputError: no manifest, a column or value is missing or unknown, or a clip cannot be read.
    """
    manifest = read_manifest(folder, taxonomy)
    coarse_ids = {category.label: category.id for category in taxonomy.categories}
    clips = manifest[manifest.split == split]
    with ThreadPoolExecutor() as pool:  # decoding and resampling leave Python's lock to others
        heard = list(pool.map(read_mono, [folder / path for path in clips.path]))
    events, backgrounds = [], []
    for clip, samples in zip(clips.itertuples(), heard, strict=True):
        if clip.coarse == BACKGROUND:
            backgrounds.append(Sound(samples, absent(taxonomy), clip.recording_id))
        else:
            ids = [coarse_ids[label] for label in clip.coarse.split(";")]
            events.append(Sound(samples, clip_labels(ids, clip.fine, taxonomy), clip.recording_id))
    return tuple(events), tuple(backgrounds)


def read_manifest(folder: Path, taxonomy: Taxonomy) -> pd.DataFrame:
    """The clips' table, every value of it checked, with a column `split` added.

    Raises:
        InputError: there is no table, or a column or value is missing or unknown.
    """
    file = folder / "manifest.csv"
    try:
        manifest = pd.read_csv(file, dtype=str)[list(_COLUMNS)]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{file}: {error}; columns {', '.join(_COLUMNS)} are expected") from error
    for column in _COLUMNS:
        if manifest[column].isna().any():
            raise InputError(f"{file}: line {int(manifest[column].isna().argmax()) + 2} has no {column}")
    labels = manifest.coarse.str.split(";").explode()
    known = [category.label for category in taxonomy.categories]
    if unknown := set(labels) - {BACKGROUND, *known}:
        raise InputError(f"{file}: {sorted(unknown)[0]!r} is no coarse label; e.g. {known[-1]} is")
    n_recordings = manifest.groupby("fine").recording_id.nunique()
    rarest = n_recordings[manifest.fine].groupby(manifest.recording_id.to_numpy()).min()
    manifest["split"] = [split_of(id, rarest[id]) for id in manifest.recording_id]
    return manifest


def read_window(path: Path) -> NDArray[np.float32]:
    """A recording cut or repeated to one window: SONYC-UST's are ten seconds long, give or take a frame.

    Shape: -> [441000]

    Raises:
        InputError: the file is missing, is not audio, is empty, or holds samples that are no numbers.
    """
    samples = read_mono(path)
    if not (len(samples) and np.isfinite(samples).all()):
        raise InputError(f"{path} holds no samples, or samples that are no numbers")
    return np.resize(samples, WINDOW_SAMPLES)


class Recordings(Sequence[Sound]):
    """Annotated street recordings, each cut or repeated to one window; read when asked for, and not kept.

    A category known to be absent makes its fine tags absent; a single fine tag copies its category.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._labels = complete(dataset.labels.binary(), dataset.taxonomy)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, number: int) -> Sound:
        """Read one. Slices are not asked for.

        Raises:
            InputError: the recording is damaged.
        """
        sensor_id = self._dataset.labels.sensor_id[number]
        return Sound(read_window(self._dataset.audio[number]), self._labels[number], f"sensor {sensor_id}")


def read_recordings(data: Path, split: str) -> tuple[Sound, ...]:
    """All `Recordings` of a split of a dataset folder, in memory.

    Raises:
        InputError: the table or a recording cannot be read.
    """
    return tuple(Recordings(open_dataset(data, [split])))


def complete(labels: NDArray[np.float32], taxonomy: Taxonomy) -> NDArray[np.float32]:
    """Fill in the fine labels that follow from the coarse ones: of what is absent, every kind is; a single
    fine tag copies its category.

    Shape: [..., tags] -> [..., tags]
    """
    labels = labels.copy()
    for category in taxonomy.categories:
        present = labels[..., taxonomy.index[category.id]]
        for tag in category.fine:
            fine = labels[..., taxonomy.index[tag.id]]
            follows = np.isnan(fine) & ((present == 0) | (category.single is not None))
            labels[..., taxonomy.index[tag.id]] = np.where(follows, present, fine)
    return labels


def read_library(data: Path, split: Split, *, skip_bad: bool = False) -> Library:
    """The clips of `data/clips` and the recordings of `data` (or `data/sonyc`) that belong to `split`.

    Clips are held in memory; recordings, of which a dataset may have tens of gigabytes, are not.

    Raises:
        InputError: a table or a clip cannot be read, or a recording is missing (without `skip_bad`).
    """
    taxonomy = read_dataset_taxonomy(data)
    events, backgrounds = read_clips(data / "clips", split, taxonomy)
    recordings = Recordings(open_dataset(data, [split], skip_bad=skip_bad))
    return Library(events, backgrounds, recordings, taxonomy)


def describe(data: Path, *, with_clips: bool) -> dict[str, object]:
    """What a manifest says of what a bundle was trained on: counts, and the clips' licences and sources."""
    recordings = read_labels(data).of_split("train")
    streets = {
        "street_recordings": len(recordings.filenames),
        "street_sensors": len(set(recordings.sensor_id)),
    }
    if not with_clips:
        return {**streets}
    manifest = read_manifest(data / "clips", recordings.taxonomy)
    used = manifest[manifest.split == "train"]
    return {
        **streets,
        "clips": len(used),
        "clip_recordings": int(used.recording_id.nunique()),
        "clip_licences": used.licence.value_counts().to_dict(),
        "clip_sources": sorted(set(used.source_repo)),
    }
