"""Annotated recordings on disk: the table, and where each recording of it lies, checked before a run begins.

Layouts that are found: a folder as SONYC-UST's archives extract (v1: `audio-dev/train`, `audio-dev/validate`,
`audio-eval`; v2: nineteen `audio-N.tar.gz`), one folder a split, one folder `audio`, or all files beside
the table. Whether a file is `.wav` or `.flac` does not matter, whatever the table calls it.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
import soundfile
import structlog

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import Taxonomy
from edgetag_train.data.annotations import Labels, read_annotations
from edgetag_train.files import sha256_of
from edgetag_train.sentences import some
from edgetag_train.taxonomy import taxonomy_beside

log = structlog.get_logger("edgetag.train")
TABLE = "annotations.csv"
SUFFIXES = (".wav", ".flac")
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
_N_THREADS = 16  # they wait for the disk, not for a processor
_N_NAMED = 10
_NUMBERED = re.compile(r"audio[-_]?\d+")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled recordings that are all there.

    Attributes:
        labels: one row a recording.
        audio: where each lies, parallel to `labels.filenames`.
    """

    labels: Labels
    audio: tuple[Path, ...]

    @property
    def taxonomy(self) -> Taxonomy:
        """Whose tags the labels are."""
        return self.labels.taxonomy

    def __len__(self) -> int:
        return len(self.audio)

    def of(self, rows: Sequence[int]) -> Self:
        """Some of the recordings, in the order of `rows`."""
        return type(self)(self.labels.of(rows), tuple(self.audio[row] for row in rows))

    def of_split(self, name: str) -> Self:
        """The recordings of one split, in the same order.

        Raises:
            InputError: there are none.
        """
        return self._matching(self.labels.of_split(name))

    def for_evaluation(self) -> Self:
        """The verified recordings, where there are any; else all (`labels.verified` tells which it was)."""
        return self._matching(self.labels.for_evaluation())

    def _matching(self, labels: Labels) -> Self:
        where = dict(zip(self.labels.filenames, self.audio, strict=True))
        return type(self)(labels, tuple(where[name] for name in labels.filenames))

    def digest(self, memo: Path | None = None) -> str:
        """sha256 over labels and recordings: their content and order, not where they lie.

        Args:
            memo: as of `content_digests`.
        """
        labels = self.labels
        rows = list(zip(labels.filenames, labels.split, labels.sensor_id, labels.verified, strict=True))
        parts = hashlib.sha256(repr(rows).encode())
        parts.update(labels.votes.cast.tobytes() + labels.votes.present.tobytes())
        for content in content_digests(self.audio, memo):
            parts.update(bytes.fromhex(content))
        return parts.hexdigest()


def open_dataset(data: Path, splits: Sequence[str], *, skip_bad: bool = False) -> Dataset:
    """The recordings of some splits, each found and its header checked.

    Args:
        data: the folder that holds `annotations.csv`, or holds it in `sonyc/`.
        splits: `train`, `validate`, `test`.
        skip_bad: leave recordings out that are missing or unreadable, with a warning, instead of refusing.

    Raises:
        InputError: there is no table, it cannot be read, a split is empty, or recordings are bad (all are
            found before the first is named).
    """
    folder = dataset_folder(data)
    labels = read_annotations(folder / TABLE).of_split(*dict.fromkeys(splits))
    found = _find(folder, labels)
    faults = _faults(found)
    if faults:
        _refuse_or_warn(
            [(labels.filenames[row], fault) for row, fault in faults.items()], labels, folder, skip_bad
        )
    good = [row for row in range(len(labels)) if row not in faults]
    kept = Dataset(labels.of(good), tuple(path for row in good if (path := found[row]) is not None))
    kept.labels.of_split(*splits)  # refuses a split of which nothing is left
    return kept


def read_labels(data: Path) -> Labels:
    """The table alone; no recording is looked for.

    Raises:
        InputError: there is no table, or it cannot be read.
    """
    return read_annotations(dataset_folder(data) / TABLE)


def read_dataset_taxonomy(data: Path) -> Taxonomy:
    """Whose tags a dataset's are: those of the `taxonomy.yaml` beside its table, or SONYC-UST's.

    Raises:
        InputError: there is no table, or the taxonomy is none.
    """
    return taxonomy_beside(dataset_folder(data) / TABLE)


def dataset_folder(data: Path) -> Path:
    """Where the table lies: in `data`, or in `data/sonyc`.

    Raises:
        InputError: in neither.
    """
    for folder in (data, data / "sonyc"):
        if (folder / TABLE).is_file():
            return folder
    raise InputError(f"no {TABLE} in {data} or {data / 'sonyc'}; is it a dataset folder?")


def content_digests(paths: Sequence[Path], memo: Path | None = None) -> list[str]:
    """sha256 of each file's bytes, read in parallel.

    Args:
        paths: the files.
        memo: a file that remembers digests by place, size and time of change, so that 16 GB of recordings are
            not read again at every start.

    Raises:
        InputError: a file cannot be read.
    """
    known = _read_memo(memo)
    with ThreadPoolExecutor(_N_THREADS) as pool:
        states = list(pool.map(_state, paths))
        missing = [k for k, state in enumerate(states) if state not in known]
        known |= zip(
            (states[k] for k in missing), pool.map(_content_digest, [paths[k] for k in missing]), strict=True
        )
    if memo is not None and missing:
        _write_memo(memo, known)
    return [known[state] for state in states]


def _read_memo(memo: Path | None) -> dict[str, str]:
    if memo is None:
        return {}
    try:
        return msgspec.json.decode(memo.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}


def _write_memo(memo: Path, known: dict[str, str]) -> None:
    unfinished = memo.with_suffix(f".{os.getpid()}")
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(msgspec.json.encode(known))
        unfinished.replace(memo)
    except OSError:  # whoever keeps features here will say so; the digests are known all the same
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    return f"{path.absolute()} {state.st_size} {state.st_mtime_ns}"


def _content_digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


def _find(folder: Path, labels: Labels) -> list[Path | None]:
    """Where each recording lies, None where nowhere; every folder is listed once."""
    listings = {split: _listing(folder, split) for split in labels.splits()}
    return [
        _lookup(listings[split], Path(name))
        for name, split in zip(labels.filenames, labels.split, strict=True)
    ]


def _listing(folder: Path, split: str) -> dict[str, Path]:
    """Audio files by name, suffix in lower case, of all folders a split may lie in; the first wins."""
    numbered = sorted(path for path in folder.iterdir() if _NUMBERED.fullmatch(path.name))
    fixed = ("audio", split, f"audio/{split}", f"audio-dev/{split}", "audio-eval", f"audio-eval/{split}")
    found: dict[str, Path] = {}
    for place in (*(folder / name for name in fixed), *numbered, folder):
        if place.is_dir():
            for path in place.iterdir():
                if path.suffix.lower() in SUFFIXES:
                    found.setdefault(f"{path.stem}{path.suffix.lower()}", path)
    return found


def _lookup(listing: dict[str, Path], name: Path) -> Path | None:
    if len(name.parts) != 1:
        return None  # a name in a table is no path
    suffixes = (name.suffix.lower(), *SUFFIXES)
    return next((path for suffix in suffixes if (path := listing.get(f"{name.stem}{suffix}"))), None)


def _faults(paths: Sequence[Path | None]) -> dict[int, str]:
    """What is wrong with the files that cannot be used, by row."""
    with ThreadPoolExecutor(_N_THREADS) as pool:
        return {row: fault for row, fault in enumerate(pool.map(_fault, paths)) if fault}


def _fault(path: Path | None) -> str | None:
    if path is None:
        return "missing"
    try:
        header = soundfile.info(path)
    except (soundfile.SoundFileError, OSError):
        return "not audio"
    if header.frames < 1:
        return "empty"
    if not MIN_RATE_HZ <= header.samplerate <= MAX_RATE_HZ:
        return f"{header.samplerate} Hz"
    return None


def _refuse_or_warn(faults: Sequence[tuple[str, str]], labels: Labels, folder: Path, skip_bad: bool) -> None:
    named = some([f"{name} ({fault})" for name, fault in faults], _N_NAMED)
    if skip_bad:
        log.warning("recordings left out", bad=len(faults), of=len(labels), names=named)
        return
    raise InputError(
        f"{len(faults)} of {len(labels)} recordings under {folder} cannot be used: {named}; "
        "restore them, or leave them out with --skip-bad"
    )
