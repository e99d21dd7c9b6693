"""How fast a device really delivers: its frames against the monotonic clock.

```
delay   what the clock says minus what the frames say, of each block; its lower edge is the device's latency

  |            . .                        a late reader (.) catches up: nothing is lost
  |. . . . . . . . .:. . . . . .
  |                     . . . . . .       it does not catch up: the difference never arrived, it is lost
  |. . . . . . . . . .
  |    . . . ' ' ' " " " ^ ^ ^            it grows and grows: the device's rate is another than it says
  +----------------------------- t
```
"""

import threading
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

BUCKET_S = 1.0
_STEADY = 0.1  # a second that brings its own frames to within a tenth: nothing stalls, nothing catches up
_LOSS_S = 0.15  # a delay that grows by more and stays so is a loss: half of what 1 % of rate makes in 30 s
_N_CONFIRM = 3  # buckets it has to stay
_N_BUCKETS = 600
_N_RATE = 20  # buckets before the rate is told
_N_SLOW = 3  # buckets over which a device may be slow
_N_TIME = 60  # buckets that say when a frame was delivered
MAX_RATE_ERROR = 0.01
_MIN_DELIVERY = 0.9  # of what was promised, over seconds


@dataclass(frozen=True)
class _Bucket:
    """The least delayed block of a second, or one block: what had come by `t_s`, whoever was late to read it.

    `passed` is what was delivered, what the device said that it dropped and what it still had; `frame` the
    index of the end of that.
    """

    delay_s: float
    t_s: float
    passed: int
    frame: int


class Pace:
    """Measures one open device; knows what it has lost without saying so, and when each frame was recorded.

    Args:
        rate_hz: what the device says.

    Attributes:
        delivered, lost: frames.
        measured_hz: frames a second by the monotonic clock; None in the first seconds.
        fault: why this device must not be listened to, or "": it delivers too little, or at another rate.
    """

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self.delivered = 0
        self.lost = 0
        self.measured_hz: float | None = None
        self.fault = ""
        self._buckets: deque[_Bucket] = deque(maxlen=_N_BUCKETS)
        self._open: list[_Bucket] = []  # the blocks of the second under way
        self._earliest: _Bucket | None = None  # of those that say when a frame was delivered, once known
        self._level: _Bucket | None = None  # the last second whose delay was the device's own
        self._behind: list[float] = []
        self._n_dropped = 0  # as the device says
        self._lock = threading.Lock()

    @property
    def frame(self) -> int:
        """Index of the next frame: all that were delivered and all that were lost."""
        return self.delivered + self.lost

    @property
    def is_at_another_rate(self) -> bool:
        """Whether the device is known not to deliver at the rate that it says."""
        return self.measured_hz is not None and abs(self.measured_hz / self.rate_hz - 1) > MAX_RATE_ERROR

    def note(self, n_frames: int, t_s: float, *, overflowed: bool = False, n_pending: int = 0) -> int:
        """Take in a block that had come at `t_s`; return the index of its first frame.

        With `overflowed` the device says that it dropped something before the block, at least one frame;
        `n_pending` frames are there already, behind it.
        """
        with self._lock:
            if overflowed:
                excess_s = self._excess_s(t_s, self.frame + n_frames + n_pending)
                n_dropped = max(1, round(excess_s * self.rate_hz))
                self._n_dropped += n_dropped
                self._lose(n_dropped)
            elif len(self._behind) == _N_CONFIRM:
                self._lose(round(min(self._behind) * self.rate_hz))
                self._earliest = None
                self._buckets.clear()  # nobody knows when in these seconds it was lost
                self._open.clear()
            first_frame = self.frame
            self.delivered += n_frames
            self._add_point(t_s, n_pending)
            return first_frame

    def time_of(self, frame: float) -> float:
        """When a frame came, or would have from a device that is never late; monotonic seconds.

        Raises:
            ValueError: nothing has come yet.
        """
        with self._lock:
            rate_hz = self.measured_hz or self.rate_hz
            earliest = self._earliest or self._find_earliest(rate_hz)
            return earliest.t_s + (frame - earliest.frame) / rate_hz

    def _find_earliest(self, rate_hz: float) -> _Bucket:
        """The one that came least late; it stays the same until another second is over."""
        known = list(self._buckets)[-_N_TIME:] or self._open
        earliest = min(known, key=lambda bucket: bucket.t_s - bucket.frame / rate_hz)
        if self._buckets:
            self._earliest = earliest
        return earliest

    def _lose(self, n_frames: int) -> None:
        self.lost += n_frames
        self._behind.clear()

    def _excess_s(self, t_s: float, end_frame: int) -> float:
        """How much later the frames before `end_frame` are than the device's own delay lets expect."""
        return t_s - end_frame / self.rate_hz - self._expected_s(t_s)

    def _expected_s(self, t_s: float) -> float:
        """The device's own delay, as last seen; it drifts as the rate is off."""
        known = self._level or min((*self._buckets, *self._open), key=_delay_s, default=None)
        if known is None:
            return t_s
        return known.delay_s + (t_s - known.t_s) * (1 - (self.measured_hz or self.rate_hz) / self.rate_hz)

    def _add_point(self, t_s: float, n_pending: int) -> None:
        if self._open and t_s - self._open[0].t_s >= BUCKET_S:
            self._close_bucket()
        frame, passed = self.frame + n_pending, self.delivered + self._n_dropped + n_pending
        self._open.append(_Bucket(t_s - frame / self.rate_hz, t_s, passed, frame))

    def _close_bucket(self) -> None:
        self._earliest = None
        self._buckets.append(min(self._open, key=_delay_s))
        self._open.clear()
        if len(self._buckets) > 1:
            hz = _hz(self._buckets[-2], self._buckets[-1])
            if abs(hz / self.rate_hz - 1) < _STEADY:
                self._judge(self._buckets[-1])
        if len(self._buckets) >= _N_RATE:
            self.measured_hz = self._rate_hz()
        self.fault = self._find_fault()

    def _rate_hz(self) -> float:
        """The median of many slopes, which a late reader does not move (Theil and Sen)."""
        buckets = list(self._buckets)
        return median(map(_hz, buckets, buckets[len(buckets) // 2 :]))

    def _find_fault(self) -> str:
        seconds = list(self._buckets)[-1 - _N_SLOW :]
        rates_hz = [_hz(old, new) for old, new in pairwise(seconds)]
        if len(rates_hz) == _N_SLOW and max(rates_hz) < _MIN_DELIVERY * self.rate_hz:
            hz = _hz(seconds[0], seconds[-1])
            return f"it delivers {hz:.0f} samples a second where {self.rate_hz} are expected"
        if self.is_at_another_rate:
            return f"its rate is {self.measured_hz:.0f} Hz by the clock, {self.rate_hz} Hz by its own account"
        return ""

    def _judge(self, second: _Bucket) -> None:
        """A steady second's delay is the device's own, or more by what was lost."""
        excess_s = second.delay_s - self._expected_s(second.t_s) if self._level else 0.0
        if excess_s > _LOSS_S:
            self._behind.append(excess_s)
            return
        self._behind.clear()
        self._level = second


def _delay_s(bucket: _Bucket) -> float:
    return bucket.delay_s


def _hz(old: _Bucket, new: _Bucket) -> float:
    """Frames a second from one to the other."""
    return (new.passed - old.passed) / (new.t_s - old.t_s)
