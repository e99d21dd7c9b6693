"""A microphone that comes and goes: opened by name, read in a thread of its own, opened again for ever.

```
thread      open ─ read read read read ─ lost ─ wait ─ open ✗ wait ─ open ─ read read …
                │    │    │    │          │               │             │
listener     Opened Block Block Block    Lost            Lost        Opened Block …
```

The thread does nothing but blocking reads (a callback of PortAudio's needs memory that is writable and
executable, which a hardened service does not get). What it reads goes into a preallocated ring; a listener
who takes too late loses the oldest, counted like any other loss. Nothing is ever spliced: lost frames
move the index on.

A device whose rate was wrong is measured before it is heard again:

```
thread      … ─ wrong rate ─ wait ─ open ─ read read … read read …    twenty seconds
listener        Lost                                   Opened Block …
```
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import structlog
from numpy.typing import NDArray

from edgetag.capture.pace import Pace
from edgetag.capture.ring import BlockRing
from edgetag.capture.source import Block
from edgetag.contract.errors import EdgetagError

BLOCK_S = 0.1
RING_S = 30.0  # of audio that a busy listener may be behind; three windows
TICK_S = 0.5
MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 30.0
TRUSTED_S = 10.0  # of audio after which a device counts as one that works
MAX_ZEROS_S = 60.0  # after so many a device is opened anew: some wake up then
LEAVE_S = 0.5  # for a read to come back


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.microphone")


class DeviceError(EdgetagError):
    """A device cannot be opened, or has gone; it may come back."""


class OpenDevice(Protocol):
    """A device that records. `read` waits for `n_frames`; float32 of shape [n_frames, n_channels]."""

    @property
    def name(self) -> str: ...
    @property
    def rate_hz(self) -> int: ...
    @property
    def n_channels(self) -> int: ...
    def read(self, n_frames: int) -> tuple[NDArray[np.float32], bool]:
        """Frames, and whether some were dropped before them. Raises `DeviceError`."""
        ...

    def pending(self) -> int:
        """Frames that can be read without waiting."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Opened:
    """A device records from here on: its frames count from 0; `pace` says when each came."""

    name: str
    rate_hz: int
    pace: Pace


@dataclass(frozen=True)
class Lost:
    """There is no device, or none any more, for `reason`; `attempts` in a row have failed."""

    reason: str
    attempts: int


@dataclass(frozen=True)
class Tick:
    """Nothing new for half a second."""


Piece = Opened | Block | Lost | Tick


class _Capture:
    """What the thread does, step by step, and what it leaves for the listener.

    Attributes:
        news: notified of every block and note.
        notes: an opened device with its ring, or a loss, in order; a loss follows the last block.
    """

    def __init__(
        self,
        open_device: Callable[[], OpenDevice],
        monotonic: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._open_device = open_device
        self._monotonic = monotonic
        self._jitter = jitter
        self._device: OpenDevice | None = None
        self._attempts = 0
        self._is_on_probation = False  # its rate was wrong: it is read, and not heard until its rate is known
        self.news = threading.Condition()
        self.notes: deque[tuple[Opened, BlockRing] | Lost] = deque()

    def step(self) -> float:
        """Open the device, or read a block; returns the seconds to wait before the next step."""
        try:
            if self._device is None:
                self._open()
            else:
                self._read(self._device)
        except DeviceError as error:
            return self._lose(str(error))
        except Exception as error:  # a fault of ours must not end the hearing
            _log.exception("microphone.failed")
            return self._lose(f"the microphone could not be read ({type(error).__name__})")
        return 0.0

    def close(self) -> None:
        """Let go of the device, if there is one."""
        device, self._device = self._device, None
        if device is not None:
            device.close()

    def _open(self) -> None:
        device = self._device = self._open_device()
        block_frames = round(device.rate_hz * BLOCK_S)
        self._ring = BlockRing(round(RING_S / BLOCK_S), block_frames, device.n_channels)
        self._block_frames, self._pace = block_frames, Pace(device.rate_hz)
        self._zero_since_s: float | None = None
        if not self._is_on_probation:
            self._tell_opened(device)

    def _tell_opened(self, device: OpenDevice) -> None:
        self._tell((Opened(device.name, device.rate_hz, self._pace), self._ring))

    def _read(self, device: OpenDevice) -> None:
        frames, overflowed = device.read(self._block_frames)
        now_s, pace = self._monotonic(), self._pace
        n_pending = device.pending()
        first_frame = pace.note(len(frames), now_s, overflowed=overflowed, n_pending=n_pending)
        if not self._is_on_probation:
            with self.news:
                self._ring.put(first_frame, frames, now_s)
                self.news.notify()
        if pace.fault:
            self._is_on_probation |= pace.is_at_another_rate
            raise DeviceError(f"{device.name}: {pace.fault}")
        if self._is_on_probation:
            self._end_probation(device)
            return
        self._watch_zeros(device, frames, now_s)
        if pace.delivered > TRUSTED_S * pace.rate_hz:
            self._attempts = 0

    def _end_probation(self, device: OpenDevice) -> None:
        """From the next block on it is heard, if its rate has been measured: it is the right one."""
        if self._pace.measured_hz is not None:
            self._is_on_probation = False
            self._tell_opened(device)

    def _watch_zeros(self, device: OpenDevice, frames: NDArray[np.float32], now_s: float) -> None:
        if frames.any():
            self._zero_since_s = None
        elif self._zero_since_s is None:
            self._zero_since_s = now_s
        elif now_s - self._zero_since_s > MAX_ZEROS_S:
            raise DeviceError(f"{device.name}: nothing but zeros for {MAX_ZEROS_S:.0f} s")

    def _lose(self, reason: str) -> float:
        self.close()
        self._attempts += 1
        self._tell(Lost(reason, self._attempts))
        backoff_s = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2.0 ** min(self._attempts - 1, 10))
        return backoff_s * (0.75 + self._jitter() / 4)

    def _tell(self, note: tuple[Opened, BlockRing] | Lost) -> None:
        with self.news:
            self.notes.append(note)
            self.news.notify()


class Microphone:
    """What `open_device` opens, for as long as it is entered.

    Args:
        open_device: looks for the device and opens it, always the same one; raises `DeviceError`.
        monotonic: seconds that no clock step touches.
        jitter: a number from 0 to 1, by which waiting for a device is spread.
    """

    def __init__(
        self,
        open_device: Callable[[], OpenDevice],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._capture = _Capture(open_device, monotonic, jitter)
        self._ring: BlockRing | None = None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._capture_on, name="microphone", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop reading. A read that hangs is left to hang: its thread does not keep the process."""
        self.leave()
        self._thread.join(LEAVE_S)

    def leave(self) -> None:
        """No more audio; what has been read can still be had. May be called from a signal handler."""
        self._left.set()

    def pieces(self) -> Iterator[Piece]:
        """What happens, in order, until `leave()`; then what has been read, to its end."""
        while not self._left.is_set():
            yield self.next() or self._wait()
        self._thread.join(LEAVE_S)
        while piece := self.next():
            yield piece

    def next(self) -> Piece | None:
        """What happened next, if it has happened already."""
        is_told = bool(self._capture.notes)  # asked first: whatever was read before a note is in the ring
        if self._ring is not None and (block := self._ring.take()):
            return block
        if not is_told:
            return None
        note = self._capture.notes.popleft()
        if isinstance(note, Lost):
            self._ring = None
            return note
        opened, self._ring = note
        return opened

    @property
    def is_behind(self) -> bool:
        """Whether more has happened already."""
        return bool(self._capture.notes) or (self._ring is not None and bool(self._ring))

    @property
    def hangs(self) -> bool:
        """Whether a read has not come back: the device's driver cannot be helped from here."""
        return self._thread.is_alive()

    def step(self) -> float:
        """One step of the thread's work; returns the seconds until the next. For whoever has no thread."""
        return self._capture.step()

    def _wait(self) -> Piece:
        with self._capture.news:
            if piece := self.next():
                return piece
            self._capture.news.wait(TICK_S)
        return self.next() or Tick()

    def _capture_on(self) -> None:
        try:
            while not self._left.is_set():
                self._left.wait(self._capture.step())
        finally:
            self._capture.close()
