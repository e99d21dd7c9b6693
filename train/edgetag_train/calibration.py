"""The windows that show a net's int8 variant the range of every activation.

Every tag that training knows is among them, and every kind of scene. "Quiet" and "loud" have no meaning for a
log-mel, which is relative to its own window's maximum: a street at night and at noon look alike. What differs
is how far the mean lies below that maximum, from a steady hum (little) to a single bang in the silence (up to
80 dB), and that shifts every activation. So windows are drawn over the whole distribution of this level.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.manifest import EMBEDDING_INPUT, LOGMEL_INPUT
from edgetag.contract.taxonomy import Taxonomy
from edgetag_train.data.features import Windows
from edgetag_train.onnx_net import Feed

N_PER_TAG = 4
N_LEVELS = 64
N_CANDIDATES = 2000
"""The level is looked at in no more windows than these: they are read from the disk, 220 kB each."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Rows of the training windows, each once, in order.

    counts: by tag id, how many of them have it.
    """

    windows: Windows
    rows: NDArray[np.intp]
    counts: dict[str, int]

    def feeds(self) -> Iterator[Feed]:
        """What a net is fed for each of them."""
        for row in self.rows:
            feed = {LOGMEL_INPUT: self.windows.logmel[row : row + 1].astype(np.float32)[None]}
            if self.windows.embedding is not None:
                feed[EMBEDDING_INPUT] = self.windows.embedding[row : row + 1]
            yield feed


def draw(windows: Windows, seed: int, taxonomy: Taxonomy) -> Calibration:
    """Four windows of every tag (all, if there are fewer), and 64 evenly over the ranks of the mean level,
    from the steadiest window to the peakiest. The same seed draws the same windows.
    """
    rng = np.random.default_rng(seed)
    present = windows.labels >= 0.5  # NaN, not known, is not present
    chosen = [_some(rng, np.flatnonzero(has), N_PER_TAG) for has in present.T]
    candidates = _some(rng, np.arange(len(windows)), N_CANDIDATES)
    levels = np.array([float(windows.logmel[row].mean(dtype=np.float32)) for row in candidates])
    ranks = np.linspace(0, len(candidates) - 1, min(len(candidates), N_LEVELS)).round().astype(np.intp)
    chosen.append(candidates[np.argsort(levels, kind="stable")[ranks]])
    rows = np.unique(np.concatenate(chosen))
    counts = zip(taxonomy.ids, present[rows].sum(axis=0).tolist(), strict=True)
    return Calibration(windows, rows, dict(counts))


def _some(rng: np.random.Generator, rows: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    return np.sort(rng.choice(rows, min(n, len(rows)), replace=False))
