"""Between the thread that reads a device and the one that listens: a ring that makes neither wait."""

import threading

import numpy as np
from numpy.typing import NDArray

from edgetag.capture.source import Block


class BlockRing:
    """The last `n_slots` blocks of a stream, allocated once. One thread puts, another takes.

    Whoever takes too late loses the oldest blocks: the next one's `first_frame` tells, as for any other loss.

    Args:
        n_slots: blocks that are kept.
        block_frames, n_channels: shape of a full one.
    """

    def __init__(self, n_slots: int, block_frames: int, n_channels: int) -> None:
        self._frames = np.zeros((n_slots, block_frames, n_channels), np.float32)
        self._places = [(0, 0, 0.0)] * n_slots  # first frame, frames, when they were read
        self._n_put = self._n_taken = 0
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there is a block to take."""
        return self._n_taken < self._n_put

    def put(self, first_frame: int, frames: NDArray[np.float32], read_s: float) -> None:
        """Keep a copy of a block, over the oldest one if need be.

        Shape: frames [n_frames, n_channels], no more frames than fit a slot
        """
        with self._lock:
            slot = self._n_put % len(self._places)
            self._frames[slot, : len(frames)] = frames
            self._places[slot] = (first_frame, len(frames), read_s)
            self._n_put += 1

    def take(self) -> Block | None:
        """The oldest block that is still there, as a copy; None if all have been taken."""
        with self._lock:
            self._n_taken = max(self._n_taken, self._n_put - len(self._places))
            if self._n_taken == self._n_put:
                return None
            slot = self._n_taken % len(self._places)
            first_frame, n_frames, read_s = self._places[slot]
            self._n_taken += 1
            return Block(first_frame, self._frames[slot, :n_frames].copy(), read_s)
