"""Scenes to log-mel windows on disk, by the sensor's own front end, in parallel processes.

`logmel.npy` [n, 128, 862] float16 (a decibel to within 1/32) and `labels.npy` [n, 37] float32.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from edgetag.contract.frontend import N_FRAMES, N_MELS
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.dsp.logmel import LogMel
from edgetag_train.data.augment import Augmentation, augment
from edgetag_train.data.dataset import Dataset
from edgetag_train.data.scenes import SceneMixer, SceneSettings
from edgetag_train.data.sounds import Library, Sound, Split, read_clips, read_library, read_window

_CHUNK = 25


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
        labels: float32 in [0, 1], NaN unknown. Shape: [n, 37]
        embedding: float32, where it was asked for. Shape: [n, 10, 128]
        digest: a hash of what they were made from.
    """

    logmel: Rows
    labels: NDArray[np.float32]
    embedding: Rows | None = None
    digest: str = ""

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
    return Windows(
        Stack(*(one.logmel for one in windows)),
        np.concatenate([one.labels for one in windows]),
        Stack(*embeddings) if embeddings else None,
        hashlib.sha256(repr([one.digest for one in windows]).encode()).hexdigest(),
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
) -> Windows:
    """Every recording, cut or repeated to one window, and its variants: `1 + variants` rows a recording."""
    if embedding is not None:
        raise NotImplementedError("embeddings come with the store")
    front_end, rows = LogMel(), []
    for number, path in enumerate(dataset.audio):
        samples = read_window(path)
        rows.append(front_end(samples).astype(np.float16))
        for variant in range(augmentation.variants):
            rng = np.random.default_rng((seed, number, variant))
            rows.append(front_end(augment(samples, augmentation, rng, backgrounds)).astype(np.float16))
    return Windows(np.stack(rows), np.repeat(labels, 1 + augmentation.variants, axis=0))


def scene_windows(
    data: Path,
    cache: Path,
    settings: SceneSettings,
    *,
    n: int,
    seed: int,
    split: Split,
    embedding: Path | None,
) -> Windows:
    """n scenes, scene k from seed + k; of `validate`, from the held-out clips alone."""
    if embedding is not None:
        raise NotImplementedError("embeddings come with the store")
    if split == "validate":
        events, beds = read_clips(data / "clips", split)
        if not (events and beds):
            return Windows(np.empty((0, N_MELS, N_FRAMES), np.float16), np.empty((0, 37), np.float32))
        library = Library(events, beds, ())
    else:
        library = read_library(data, split)
    pairs = list(_scenes(library, settings, n, seed))
    return Windows(np.stack([window for window, _ in pairs]), np.stack([row for _, row in pairs]))


def mix_scenes(data: Path, out: Path, settings: SceneSettings, *, n_scenes: int, seed: int) -> Windows:
    """Mix `n_scenes` training scenes into `out`, or take those already there if made from the same settings.

    Raises:
        InputError: the data cannot be read.
    """
    recipe = repr((settings, n_scenes, seed, *map(_digest, sorted(data.glob("*/*.csv")))))
    stamp = out / "scenes.txt"
    if not (stamp.exists() and stamp.read_text() == recipe):
        _write_scenes(data, out, settings, n_scenes, seed)
        stamp.write_text(recipe)
    return Windows(np.load(out / "logmel.npy", mmap_mode="r"), np.load(out / "labels.npy"))


def _digest(table: Path) -> str:
    return hashlib.sha256(table.read_bytes()).hexdigest()


def _write_scenes(data: Path, out: Path, settings: SceneSettings, n_scenes: int, seed: int) -> None:
    library = read_library(data, "train")
    out.mkdir(parents=True, exist_ok=True)
    (out / "scenes.txt").unlink(missing_ok=True)
    shape = (n_scenes, N_MELS, N_FRAMES)
    logmel = np.lib.format.open_memmap(out / "logmel.npy", mode="w+", dtype=np.float16, shape=shape)
    labels = np.empty((n_scenes, len(SONYC_UST.ids)), np.float32)
    for k, (window, row) in enumerate(_scenes(library, settings, n_scenes, seed)):
        logmel[k], labels[k] = window, row
    logmel.flush()
    np.save(out / "labels.npy", labels)


def _scenes(
    library: Library, settings: SceneSettings, n_scenes: int, seed: int
) -> Iterator[tuple[NDArray[np.float16], NDArray[np.float32]]]:
    """Scene k is drawn from seed + k whatever the number of processes."""
    chunks = [range(seed + k, min(seed + k + _CHUNK, seed + n_scenes)) for k in range(0, n_scenes, _CHUNK)]
    with ProcessPoolExecutor(os.cpu_count(), initializer=_start, initargs=(library, settings)) as pool:
        yield from chain.from_iterable(pool.map(_mix, chunks))


_worker: tuple[SceneMixer, LogMel]


def _start(library: Library, settings: SceneSettings) -> None:
    global _worker
    threadpool_limits(1)  # one process a core already: more threads would only wait for each other
    _worker = SceneMixer(library, settings), LogMel()


def _mix(seeds: range) -> list[tuple[NDArray[np.float16], NDArray[np.float32]]]:
    mixer, front_end = _worker
    mixed = []
    for seed in seeds:
        samples, labels = mixer.scene(seed)
        mixed.append((front_end(samples).astype(np.float16), labels))
    return mixed
