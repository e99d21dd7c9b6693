"""The live picture's own thread: it draws four times a second, and makes nobody who hears wait.

```
listener's thread   blocks, windows, sounds, states ─┐
whoever logs        lines ───────────────────────────┤ what is known, under a lock
this thread                                          └─ a picture, and out of the lock to the terminal
```
A terminal that stands still (Ctrl-S, a slow line) holds this thread and no other.
"""

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, cast

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from edgetag.capture.microphone import Lost, Opened, Piece
from edgetag.capture.source import Block
from edgetag.contract.errors import OutputError
from edgetag.contract.event import SoundEvent, Status, TagsEvent
from edgetag.contract.taxonomy import Taxonomy
from edgetag.delivery.sink import Sink
from edgetag.dsp.fourier import rfft
from edgetag.dsp.level import FAST_S, FLOOR_DBFS, a_weighting
from edgetag.listener import Account
from edgetag.live.glance import MAX_LINES, Glance
from edgetag.live.picture import picture

DRAW_S = 0.25
ACCOUNT_S = 1.0
PEAK_S = 10.0  # so long the meter's mark remembers
LEAVE_S = 0.5  # for a picture that is being drawn


class QuickMeter:
    """A-weighted, fast level of the moment, block by block: a needle, not a measurement.

    Each block is weighted by itself, so that its borders count a little; windows are measured exactly.
    """

    def __init__(self) -> None:
        self._power = 0.0
        self._weights: dict[tuple[int, int], tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    def __call__(self, frames: NDArray[np.float32], rate_hz: int) -> float:
        """dBFS(A) at the block's end.

        Args:
            frames: at least one. Shape: [n_frames, n_channels]
            rate_hz: of them.
        """
        mono = np.nan_to_num(frames.mean(axis=1, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        window, weights = self._tables(len(mono), rate_hz)
        spectrum = rfft(mono * window)
        power = float((np.square(spectrum.real) + np.square(spectrum.imag)) @ weights)
        decay = float(np.exp(-len(mono) / (FAST_S * rate_hz)))
        self._power = decay * self._power + (1 - decay) * power
        return float(max(FLOOR_DBFS, 10 * np.log10(max(self._power, 1e-30))))

    def _tables(self, n: int, rate_hz: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A Hann window, and what each bin's square adds to the mean square."""
        if (n, rate_hz) not in self._weights:
            window = (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n)).astype(np.float32)
            gain = np.square(a_weighting(np.arange(n // 2 + 1) * rate_hz / n))
            weights = (2 * gain / (n * np.square(window).sum())).astype(np.float32)
            self._weights = {(n, rate_hz): (window, weights)}
        return self._weights[n, rate_hz]


class LiveView(Sink):
    """Shows what is heard, for as long as it is entered; its thread draws.

    Args:
        console: a terminal.
        taxonomy: of the bundle.
        heading: which sensor, with what.
        calibration_db: from dBFS(A) to dB(A); None if the microphone is not calibrated.
        may_leave: events go somewhere else, too: when the terminal has gone, drawing stops and no more.
        monotonic, utc_s: clocks.
    """

    def __init__(
        self,
        console: Console,
        taxonomy: Taxonomy,
        heading: tuple[str, ...],
        *,
        calibration_db: float | None = None,
        may_leave: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        utc_s: Callable[[], float] = time.time,
    ) -> None:
        self._console, self._may_leave = console, may_leave
        self._monotonic, self._utc_s = monotonic, utc_s
        self._calibration_db = calibration_db
        self._glance = Glance(taxonomy, heading, is_calibrated=calibration_db is not None)
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._live = Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._thread = threading.Thread(target=self._draw_on, name="edgetag-live", daemon=True)
        self._meter = QuickMeter()
        self._rate_hz = 0
        self._peaks: list[tuple[float, float]] = []  # when, and how loud; falling
        self._account_s = -ACCOUNT_S
        self._fault: OSError | None = None

    def __enter__(self) -> Self:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        self._live.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the terminal back, unless it stands still."""
        self._stopping.set()
        self._thread.join(LEAVE_S)
        if self.hangs:
            # Whoever flushes it at the end would wait for it, too, and for ever.
            sys.stdout = sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
            return
        with contextlib.suppress(OSError):
            self._live.__exit__(exc_type, exc, traceback)

    @property
    def hangs(self) -> bool:
        """Whether the terminal does not take what is drawn: it cannot be given back, and no end is clean."""
        return self._thread.is_alive()

    # -- what is known -------------------------------------------------------------------------------------

    def deliver(self, event: TagsEvent) -> None:
        """Show a window.

        Raises:
            OutputError: the terminal has gone, and there is nobody else.
        """
        if self._fault is not None and not self._may_leave:
            raise OutputError(f"the terminal cannot be written ({self._fault.strerror})") from self._fault
        with self._lock:
            self._glance.windows.append(event)
            self._glance.n_windows += 1
            self._glance.is_calibrated = event.level.calibrated

    def sound(self, event: SoundEvent) -> None:
        """Show a sound that began or ended."""
        with self._lock:
            self._glance.sounds.append(event)

    def state(self, status: Status) -> None:
        """Show how the sensor is."""
        with self._lock:
            self._glance.state, self._glance.reason = status.state, status.reason

    def see(self, piece: Piece, account: Callable[[], Account]) -> None:
        """Show the level of what comes in, and once a second the account."""
        now_s = self._monotonic()
        with self._lock:
            match piece:
                case Opened():
                    self._rate_hz = piece.rate_hz
                case Block():
                    self._hear(piece, now_s)
                case Lost():
                    self._forget_level()
        if now_s - self._account_s >= ACCOUNT_S:
            self._account_s = now_s
            self._note(account())

    def _hear(self, block: Block, now_s: float) -> None:
        if not len(block.frames):
            return
        db = self._meter(block.frames, self._rate_hz) + (self._calibration_db or 0.0)
        self._peaks = [(at_s, peak) for at_s, peak in self._peaks if peak > db and now_s - at_s < PEAK_S]
        self._peaks.append((now_s, db))
        self._glance.now_db, self._glance.max_db = db, self._peaks[0][1]

    def _forget_level(self) -> None:
        self._glance.now_db = self._glance.max_db = None
        self._peaks.clear()
        self._meter = QuickMeter()

    def _note(self, account: Account) -> None:
        with self._lock:
            self._glance.audio, self._glance.load = account.audio, account.load
            self._glance.delivery = None if account.delivery is msgspec.UNSET else account.delivery
            self._glance.unreachable = account.unreachable

    def _log(self, line: str) -> None:
        with self._lock:
            self._glance.log.append(line)

    # -- what is drawn -------------------------------------------------------------------------------------

    def drawn(self) -> Text:
        """The picture as it is now, for the terminal's size as it is now."""
        columns, rows = self._console.size
        with self._lock:
            return picture(
                self._glance, self._utc_s(), columns, rows, is_ascii=self._console.options.ascii_only
            )

    def _draw_on(self) -> None:
        try:
            while not self._stopping.is_set():
                self._live.update(self.drawn(), refresh=True)
                self._stopping.wait(DRAW_S)
        except OSError as error:
            self._fault = error

    @contextlib.contextmanager
    def logs_shown(self) -> Iterator[None]:
        """Log lines are part of the picture; once it is over, the last of them are where they belong."""
        before = structlog.get_config()["logger_factory"]
        lines = _Lines(self._log)
        _log_to(structlog.WriteLoggerFactory(cast("io.TextIOWrapper", lines)))
        try:
            yield
        finally:
            if not self.hangs:
                _log_to(before)
                sys.stderr.writelines(lines.kept)


class _Lines(io.TextIOBase):
    """A stream whose lines somebody takes; the last ones are kept."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self.kept: list[str] = []

    def write(self, text: str) -> int:
        self.kept = [*self.kept, text][-MAX_LINES:]
        if text.strip():
            self._take(text.strip())
        return len(text)


def _log_to(factory: Callable[..., object]) -> None:
    structlog.configure(**structlog.get_config() | {"logger_factory": factory})
