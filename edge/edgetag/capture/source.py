"""What every audio source is: blocks of frames, each with its absolute place in the stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.errors import InputError

MIN_RATE_HZ = 4_000  # below it a recording holds no more than a telephone's half: nothing to tag by
MAX_RATE_HZ = 384_000
MAX_CHANNELS = 64


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive frames of a stream that starts at frame 0.

    `first_frame` is the absolute index of the first one, at the source's rate. When it lies beyond the end
    of the block before (or beyond 0, for the first block), the frames between were lost.
    `frames` is float32 of shape [n_frames, n_channels], full scale ±1. `read_s` is when a device had
    delivered the last of them, by the monotonic clock; None for recordings.
    """

    first_frame: int
    frames: NDArray[np.float32]
    read_s: float | None = None


class DamagedAudio(InputError):  # noqa: N818 - it names what was found
    """A recording broke off; all blocks before the damage, `decoded_s` seconds, have been delivered."""

    def __init__(self, name: str, decoded_s: float, reason: str) -> None:
        super().__init__(
            f"{name}: only {decoded_s:.2f} s could be decoded, {reason}; "
            "that much is used, for the rest copy or convert the recording again"
        )
        self.decoded_s = decoded_s


class Source(Protocol):
    """One stream of audio, read once. The test's fake can lose blocks; so can a microphone.

    `rate_hz` is the rate of its frames. `blocks()` ends with the stream and may raise `InputError`.
    Leaving the context closes the device or file.
    """

    @property
    def name(self) -> str: ...
    @property
    def rate_hz(self) -> int: ...
    def blocks(self) -> Iterator[Block]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def check_stream(name: str, rate_hz: int, n_channels: int) -> None:
    """Raise `InputError` unless rate and channels are ones that can be tagged."""
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise InputError(
            f"{name}: the sample rate is {rate_hz} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz are supported, "
            "resample the recording first"
        )
    if not 1 <= n_channels <= MAX_CHANNELS:
        raise InputError(
            f"{name}: there are {n_channels} channels; 1 to {MAX_CHANNELS} are supported, "
            "extract the channels you need first"
        )
