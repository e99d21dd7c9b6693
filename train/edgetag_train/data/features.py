"""Labelled windows of recordings and of mixed scenes, by the sensor's own front ends, kept on disk.

What was computed once is found again by content and parameters (`store`). Log-mel, embedding and, of scenes,
labels are stores of their own: an embedding that is added or exchanged leaves the log-mels as they are.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgetag.contract.errors import InputError
from edgetag.contract.frontend import (
    LOGMEL,
    N_FRAMES,
    N_MELS,
    SAMPLE_RATE_HZ,
    VGGISH_LOG_OFFSET,
    VGGISH_MEL_FMAX_HZ,
    VGGISH_MEL_FMIN_HZ,
    VGGISH_N_FFT,
    VGGISH_SAMPLE_RATE_HZ,
)
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag.dsp.logmel import LogMel
from edgetag.dsp.resample import resample
from edgetag.tagging.bundle import EMBEDDING_OUTPUT_SHAPE, PATCHES_SHAPE, OnnxNet
from edgetag.tagging.embedding import Embedder
from edgetag_train.data.augment import Augmentation, augment
from edgetag_train.data.compute import Draw, Job, Measure, fill
from edgetag_train.data.dataset import Dataset, content_digests, open_dataset, read_dataset_taxonomy
from edgetag_train.data.patches import check_embedding_net
from edgetag_train.data.scenes import SceneMixer, SceneSettings
from edgetag_train.data.sounds import (
    BACKGROUND,
    Library,
    Sound,
    Split,
    read_clips,
    read_library,
    read_manifest,
    read_window,
)
from edgetag_train.data.store import Store
from edgetag_train.taxonomy import identity
from edgetag_train.teaching.teacher import Teacher

MEMO = "content.json"
EVIDENCE = "evidence"
_LOGMEL_ROW = (N_MELS, N_FRAMES)
_PATCHES = {
    "sample_rate_hz": VGGISH_SAMPLE_RATE_HZ,
    "n_fft": VGGISH_N_FFT,
    "fmin_hz": VGGISH_MEL_FMIN_HZ,
    "fmax_hz": VGGISH_MEL_FMAX_HZ,
    "log_offset": VGGISH_LOG_OFFSET,
    "shape": PATCHES_SHAPE,
}


class Stack:
    """Arrays of one dtype and row shape, read as one along the first axis; nothing is copied until asked for.

    Raises:
        ValueError: the rows differ in shape or dtype, or there is no part.
    """

    def __init__(self, *parts: NDArray[Any]) -> None:
        if len({(part.shape[1:], part.dtype) for part in parts}) != 1:
            raise ValueError("stacked arrays have one row shape and one dtype")
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])
        self.dtype = parts[0].dtype
        self.shape = (int(self._starts[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Rows as one array in memory, in the order asked for. Negative numbers count from the end."""
        numbers = np.arange(len(self))[rows]
        if numbers.ndim == 0:
            return self[numbers[np.newaxis]][0]
        out = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        for start, part in zip(self._starts, self._parts, strict=False):
            here = (numbers >= start) & (numbers < start + len(part))
            out[here] = part[numbers[here] - start]
        return out


Rows = NDArray[Any] | Stack


@dataclass(frozen=True, eq=False)
class Windows:
    """Labelled windows. What is asked of `logmel` and `embedding` is slices and integer arrays of rows.

    Attributes:
        logmel: float16 in dB. Shape: [n, 128, 862]
        labels: float32 in [0, 1], NaN unknown. Shape: [n, tags]
        embedding: float32, where it was asked for. Shape: [n, 10, 128]
        digest: a hash of what they were made from.
        evidence: float32, a teacher's logit for each coarse tag, where one was asked. Shape: [n, coarse tags]
        targets: what a root net is taught in place of `labels`, where that differs. Shape: [n, tags]
    """

    logmel: Rows
    labels: NDArray[np.float32]
    embedding: Rows | None = None
    digest: str = ""
    evidence: NDArray[np.float32] | None = None
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)


def join(*windows: Windows) -> Windows:
    """All of them as one, in this order.

    Raises:
        ValueError: there are none, or some have an embedding and others have not.
    """
    embeddings = [one.embedding for one in windows if one.embedding is not None]
    if len(embeddings) not in (0, len(windows)):
        raise ValueError("windows with an embedding and windows without one cannot be joined")
    evidence = [one.evidence for one in windows if one.evidence is not None]
    return Windows(
        Stack(*(one.logmel for one in windows)),
        np.concatenate([one.labels for one in windows]),
        Stack(*embeddings) if embeddings else None,
        hashlib.sha256(repr([one.digest for one in windows]).encode()).hexdigest(),
        np.concatenate(evidence) if len(evidence) == len(windows) else None,
    )


def default_cache() -> Path:
    """Where features are kept unless told otherwise: `$XDG_CACHE_HOME/edgetag/features`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgetag" / "features"


def recording_windows(
    dataset: Dataset,
    cache: Path,
    *,
    labels: NDArray[np.float32],
    augmentation: Augmentation,
    seed: int,
    backgrounds: Sequence[Sound],
    embedding: Path | None,
    teacher: Path | None = None,
) -> Windows:
    """Every recording, cut or repeated to one window, then its variants: `1 + variants` rows a recording.

    Variants depend on the recording's content, `seed` and their number, not on the recording's place.

    Args:
        dataset: the recordings.
        cache: where rows are kept.
        labels: one row a recording, repeated for its variants; they may change without computing anything.
        augmentation: how variants are drawn.
        seed: of the variants.
        backgrounds: what is added as noise; coloured noise if empty.
        embedding: an ONNX net, `patches` [10, 96, 64] -> `embedding` [10, 128]; no embedding if absent.
        teacher: YAMNet's file; no evidence if absent.

    Raises:
        InputError: the disk has no room, recordings are damaged inside (after all others were computed), or
            `embedding` or `teacher` is no such net.
        ValueError: labels of another number of recordings.
    """
    if len(labels) != len(dataset):
        raise ValueError(f"{len(labels)} rows of labels for {len(dataset)} recordings")
    n_rows = 1 + augmentation.variants
    items = content_digests(dataset.audio, cache / MEMO)

    def draw(item: int) -> list[Sound]:
        windows = [read_window(dataset.audio[item])]
        for variant in range(1, n_rows):
            rng = np.random.default_rng((seed, variant, int(items[item], 16)))
            windows.append(augment(windows[0], augmentation, rng, backgrounds))
        return [Sound(window, labels[item], "") for window in windows]

    source = {"source": "recordings"} | _variation(augmentation, seed, backgrounds)
    jobs = _front_ends(partial(_store, cache, source, items, n_rows), embedding, teacher)
    fill(jobs, lambda: draw, "recordings")
    return _windows(jobs, np.repeat(labels.astype(np.float32), n_rows, axis=0))


def scene_windows(
    data: Path,
    cache: Path,
    settings: SceneSettings,
    *,
    n: int,
    seed: int,
    split: Split,
    embedding: Path | None,
    teacher: Path | None = None,
    skip_bad: bool = False,
) -> Windows:
    """n scenes mixed from `data`, scene k from seed + k, whatever the number of processes.

    Scenes of `validate` are held-out clips over held-out backgrounds, no street in them; there are none
    (length 0) where too few clips are held out.

    Args:
        data: holds the annotation table, `clips/` and, for `train`, the street recordings.
        cache: where rows are kept.
        settings: how scenes are drawn.
        n: how many.
        seed: of scene 0.
        split: which clips.
        embedding, teacher: as of `recording_windows`.
        skip_bad: mix without the street recordings that are missing or unreadable.

    Raises:
        InputError: the data cannot be read or holds no event to mix `train` from, the disk has no room, or
            `embedding` or `teacher` is no such net.
    """
    taxonomy = read_dataset_taxonomy(data)
    sounds = _sounds(data, split, cache / MEMO, skip_bad, taxonomy)
    if n == 0 or not sounds:
        return _no_windows(embedding, taxonomy)

    def open_source() -> Draw:
        mixer = SceneMixer(_library(data, split, skip_bad, taxonomy), settings)
        return lambda item: [Sound(*mixer.scene(seed + item), "")]

    source = {"source": "scenes", "settings": msgspec.to_builtins(settings), "sounds": sounds}
    if taxonomy != SONYC_UST:  # scenes of its tags were kept before there were others
        source["taxonomy"] = identity(taxonomy)
    store = partial(_store, cache, source, [str(seed + k) for k in range(n)], 1)
    labels = Job(store("labels", {}, (len(taxonomy.ids),), np.float32), lambda: lambda window: window.labels)
    jobs = _front_ends(store, embedding, teacher)
    fill([*jobs, labels], open_source, "scenes")
    return _windows(jobs, np.array(labels.store.rows()))


def _sounds(data: Path, split: Split, memo: Path, skip_bad: bool, taxonomy: Taxonomy) -> list[str]:
    """What scenes of a split are mixed from, by content; nothing where too few clips are held out."""
    manifest = read_manifest(data / "clips", taxonomy)
    clips = manifest[manifest.split == split]
    is_background = clips.coarse == BACKGROUND
    if split == "validate" and (is_background.all() or not is_background.any()):
        return []
    if is_background.all():
        raise InputError(f"{data / 'clips'} holds no event of split {split!r} to mix scenes from")
    streets = [open_dataset(data, [split], skip_bad=skip_bad).digest(memo)] if split == "train" else []
    contents = content_digests([data / "clips" / path for path in clips.path], memo)
    rows = zip(clips.coarse, clips.fine, clips.recording_id, contents, strict=True)
    return [*map(" ".join, rows), *streets]


def _library(data: Path, split: Split, skip_bad: bool, taxonomy: Taxonomy) -> Library:
    if split == "train":
        return read_library(data, split, skip_bad=skip_bad)
    return Library(*read_clips(data / "clips", split, taxonomy), (), taxonomy)


def _variation(augmentation: Augmentation, seed: int, backgrounds: Sequence[Sound]) -> dict[str, Any]:
    """What a recording's rows depend on besides its content: nothing, where there are no variants."""
    if not augmentation.variants:
        return {}
    noises = [hashlib.sha256(sound.samples).hexdigest() for sound in backgrounds]
    return {
        "augmentation": msgspec.to_builtins(augmentation),
        "seed": seed,
        "backgrounds": noises if augmentation.noise_share else [],
    }


def _store(
    cache: Path,
    source: Mapping[str, Any],
    items: Sequence[str],
    n_rows: int,
    kind: str,
    front_end: Mapping[str, Any],
    row_shape: tuple[int, ...],
    dtype: type[np.floating[Any]],
) -> Store:
    made_from = {**source, "front_end": front_end}
    return Store(cache, kind, made_from, items, n_rows, row_shape, np.dtype(dtype))


def _front_ends(store: Callable[..., Store], embedding: Path | None, teacher: Path | None) -> list[Job]:
    """The log-mel's job, the embedding's and the teacher's where there are any."""
    jobs = [Job(store("logmel", msgspec.to_builtins(LOGMEL), _LOGMEL_ROW, np.float16), _logmel_rows)]
    if embedding is not None:
        net = _embedding_net(embedding)
        front_end = _PATCHES | {"net": hashlib.sha256(net).hexdigest()}
        rows = store("embedding", front_end, EMBEDDING_OUTPUT_SHAPE, np.float32)
        jobs.append(Job(rows, partial(_embedding_rows, net)))
    if teacher is not None:
        asked = Teacher(teacher)
        rows = store(EVIDENCE, {"teacher": asked.digest}, (len(asked.columns),), np.float32)
        jobs.append(Job(rows, partial(_evidence_rows, teacher)))
    return jobs


def _logmel_rows() -> Measure:
    front_end = LogMel()
    return lambda window: front_end(window.samples)


def _embedding_rows(net: bytes) -> Measure:
    embedder = Embedder(OnnxNet(net, "the embedding"))
    return lambda window: embedder(window.samples)[0]


def _evidence_rows(path: Path) -> Measure:
    teacher = Teacher(path)
    return lambda window: teacher.evidence(resample(window.samples, SAMPLE_RATE_HZ, VGGISH_SAMPLE_RATE_HZ))


def _embedding_net(path: Path) -> bytes:
    """The file's bytes, once it has turned out to be an embedding net.

    Raises:
        InputError: it is none.
    """
    try:
        net = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    check_embedding_net(net, path)
    return net


def _windows(jobs: Sequence[Job], labels: NDArray[np.float32]) -> Windows:
    stores = {job.store.kind: job.store for job in jobs}
    evidence = stores.pop(EVIDENCE, None)  # which changes what is taught, not what it is taught on
    digest = hashlib.sha256(" ".join(store.digest for store in stores.values()).encode() + labels.tobytes())
    return Windows(
        stores["logmel"].rows(),
        labels,
        stores["embedding"].rows() if "embedding" in stores else None,
        digest.hexdigest(),
        None if evidence is None else np.array(evidence.rows()),
    )


def _no_windows(embedding: Path | None, taxonomy: Taxonomy) -> Windows:
    return Windows(
        np.empty((0, *_LOGMEL_ROW), np.float16),
        np.empty((0, len(taxonomy.ids)), np.float32),
        None if embedding is None else np.empty((0, *EMBEDDING_OUTPUT_SHAPE), np.float32),
    )
