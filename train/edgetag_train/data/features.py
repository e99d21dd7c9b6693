"""Scenes to log-mel windows on disk, by the sensor's own front end, in parallel processes.

`logmel.npy` [n, 128, 862] float16 (a decibel to within 1/32) and `labels.npy` [n, 37] float32.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from edgetag.contract.frontend import N_FRAMES, N_MELS
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.dsp.logmel import LogMel
from edgetag_train.data.scenes import SceneMixer, SceneSettings
from edgetag_train.data.sounds import Library, read_library

_CHUNK = 25


@dataclass(frozen=True, eq=False)
class Windows:
    """Labelled log-mel windows. Shape: logmel [n, 128, 862] float16 in dB, labels [n, 37], NaN unknown."""

    logmel: NDArray[np.float16]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)


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
