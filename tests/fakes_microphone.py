"""A microphone in virtual time: it overflows, stalls, delivers zeros, goes and comes back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetag.capture.microphone import BLOCK_S, DeviceError, Microphone, Piece

Signal = Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True)
class Fault:
    """What goes wrong before a read: `kind`, and for how many frames or, for `gone`, failed attempts.

    `late`: the reader comes late; what exceeds the device's buffer is dropped, and the device says so.
    `silent`: frames are dropped, and nobody says so. `stall`: nothing comes, then everything at once.
    `zeros`: the frames are zeros. `gone`: the device is lost, and cannot be opened so many times.
    """

    kind: str
    n: int


class VirtualTime:
    """Frames that have passed in the world, and the clocks that count them."""

    def __init__(self, rate_hz: int, wall_s: float = 1.8e9) -> None:
        self.rate_hz = rate_hz
        self.frame = 0
        self.step_s = 0.0
        self._wall_s = wall_s

    def monotonic(self) -> float:
        return self.frame / self.rate_hz

    def wall(self) -> float:
        return self._wall_s + self.monotonic() + self.step_s

    def wait(self, seconds: float) -> None:
        self.frame += round(seconds * self.rate_hz)


def noise(first: int, end: int) -> NDArray[np.float32]:
    """Deterministic in the frame's place in the world; never zero."""
    n = np.arange(first, end, dtype=np.uint64)
    hashed = (n * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return ((hashed.astype(np.float32) + 0.5) / np.float32(2**25) - np.float32(0.25)).astype(np.float32)


class FakeMicrophone:
    """Opens devices of one street, as `Microphone` wants them; `faults` come one before each read.

    Attributes:
        world: of each block that was read, where it began in the world and how many frames it had.
        n_read, n_dropped: frames, in all.
        n_open: devices that are open now.
    """

    def __init__(
        self,
        time: VirtualTime,
        faults: Iterator[Fault | None],
        *,
        signal: Signal = noise,
        buffer_frames: int = 0,
        n_channels: int = 1,
        true_rate: float = 1.0,
        keeps_world: bool = True,
    ) -> None:
        """`true_rate`: frames that come for each that should, of devices that are opened from now on."""
        self.time, self.faults, self.signal = time, faults, signal
        self.buffer_frames = buffer_frames or time.rate_hz // 2
        self.n_channels, self.true_rate = n_channels, true_rate
        self.world: list[tuple[int, int]] = []
        self.keeps_world = keeps_world
        self.n_read = self.n_dropped = 0
        self.n_open = 0
        self.device: FakeDevice | None = None
        self._n_refusals = 0

    def open(self) -> "FakeDevice":
        if self._n_refusals:
            self._n_refusals -= 1
            raise DeviceError("street: not there")
        self.n_open += 1
        assert self.n_open == 1
        self.device = FakeDevice(self)
        return self.device

    def go(self, n_refusals: int) -> None:
        self._n_refusals = n_refusals
        raise DeviceError("street: stopped (Input/output error)")


class FakeDevice:
    """One opening of the device; records from then on."""

    def __init__(self, owner: FakeMicrophone) -> None:
        self._owner, self._time = owner, owner.time
        self.name, self.rate_hz, self.n_channels = "street", owner.time.rate_hz, owner.n_channels
        self._next = self._begin = owner.time.frame  # in the world, that has not been read or dropped
        self._true_rate = owner.true_rate

    def read(self, n_frames: int) -> tuple[NDArray[np.float32], bool]:
        fault = next(self._owner.faults, None)
        overflowed = self._suffer(fault) if fault else False
        first = self._next
        self._next += n_frames
        due = self._begin + round((self._next - self._begin) / self._true_rate)
        self._time.frame = max(self._time.frame, due)
        self._owner.n_read += n_frames
        if self._owner.keeps_world:
            self._owner.world.append((first, n_frames))
        frames = self._owner.signal(first, self._next)
        if fault and fault.kind == "zeros":
            frames = np.zeros_like(frames)
        return np.repeat(frames[:, None], self.n_channels, axis=1), overflowed

    def pending(self) -> int:
        return self._begin + round((self._time.frame - self._begin) * self._true_rate) - self._next

    def close(self) -> None:
        self._owner.n_open -= 1

    def _suffer(self, fault: Fault) -> bool:
        match fault.kind:
            case "gone":
                self._owner.go(fault.n)
            case "late" | "stall":
                self._time.frame += fault.n
            case "silent":
                self._time.frame = max(self._time.frame, self._next) + fault.n
                self._drop_to(self._time.frame)
        n_kept = self._owner.buffer_frames
        if fault.kind != "late" or self.pending() <= n_kept:
            return False
        self._drop_to(self._time.frame - n_kept)
        return True

    def _drop_to(self, frame: int) -> None:
        self._owner.n_dropped += frame - self._next
        self._next = frame


class SteppedMicrophone(Microphone):
    """The same microphone without its thread: it works while the listener waits, in virtual time.

    Args:
        fake: what it opens.
        end_frame: of the world, at which it is left.
        n_steps: of the thread's work that come between two looks of the listener.
    """

    def __init__(self, fake: FakeMicrophone, end_frame: int, *, n_steps: int = 1) -> None:
        super().__init__(fake.open, monotonic=fake.time.monotonic, jitter=lambda: 0.0)
        self._fake, self._time, self._end_frame, self._n_steps = fake, fake.time, end_frame, n_steps

    def pieces(self) -> Iterator[Piece]:
        while self._time.frame < self._end_frame:
            for _ in range(self._n_steps):
                self._time.wait(self.step())
            while self._fake.n_open and self._is_late():  # what the thread has read meanwhile
                self.step()
            while piece := self.next():
                yield piece
        self._capture.close()

    def _is_late(self) -> bool:
        device = self._fake.device
        return device is not None and device.pending() >= round(device.rate_hz * BLOCK_S)
