"""A source that plays given blocks and can lose some of them, as a microphone does."""

from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgetag.capture.source import Block
from edgetag.capture.windows import Window, Windower


class ListSource:
    """Yields `blocks`, but for those whose position is in `lost`: the next one's `first_frame` tells."""

    def __init__(
        self, blocks: Iterable[Block], rate_hz: int, *, lost: Collection[int] = (), name: str = "list"
    ) -> None:
        self.name, self.rate_hz = name, rate_hz
        self._blocks, self._lost = list(blocks), lost
        self.closed = False

    def blocks(self) -> Iterator[Block]:
        return (block for position, block in enumerate(self._blocks) if position not in self._lost)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closed = True


def cut(frames: NDArray[np.float32], sizes: Iterable[int] = (), first_frame: int = 0) -> list[Block]:
    """Blocks of the given sizes in turn, then the rest in one. Shape of frames: [n] or [n, n_channels]."""
    frames = frames[:, None] if frames.ndim == 1 else frames
    edges = [*np.minimum(np.cumsum([0, *sizes]), len(frames)).tolist(), len(frames)]
    return [Block(first_frame + start, frames[start:end]) for start, end in pairwise(edges)]


def all_windows(windower: Windower, blocks: Iterable[Block]) -> list[Window]:
    """Every window of a stream."""
    return [window for block in blocks for window in windower.feed(block)] + windower.finish()
