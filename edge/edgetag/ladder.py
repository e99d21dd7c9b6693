"""What is left out when inference cannot keep up: branches first, then windows.

```
step   0          1            2           3           4
       everything no branches  + every 2nd  every 4th   every 8th window
```

Whoever has waited for too long is not tagged: a newer window is. So latency is bounded by what a window may
wait and what one costs, at any speed of the machine, and every window is tagged or counted.
"""

from collections import deque

from edgetag.capture.windows import Window
from edgetag.contract.event import LoadHealth
from edgetag.contract.frontend import SAMPLE_RATE_HZ

MAX_STEP = 4
MAX_WAIT_S = 10.0  # of a window, before a newer one takes its place; a window's own length
MAX_WAITING = 4  # windows, of 1.8 MB each
_BUSY = 0.9  # of a hop spent on a window: no machine keeps that up
_CALM = 0.75  # of the shorter hop: the step below may be tried
_N_BUSY = 2  # windows in a row before the next step is taken
_MIN_CALM, _MAX_CALM = 12, 720  # more calm windows than others before it is


class Ladder:
    """Windows wait here for their turn; knows nothing of clocks.

    Args:
        hop_samples: from one window's start to the next, when nothing is left out.

    Attributes:
        step: see above.
        branches_skipped, windows_skipped: what has been left out so far.
    """

    def __init__(self, hop_samples: int) -> None:
        self._hop_samples = hop_samples
        self._waiting: deque[Window] = deque()
        self._n_busy = self._n_calm = self._n_waited = 0
        self._calm_needed = _MIN_CALM
        self._n_since_down = _MAX_CALM  # windows since a lower step was tried
        self.step = self.branches_skipped = self.windows_skipped = 0

    def __len__(self) -> int:
        """Windows that wait."""
        return len(self._waiting)

    @property
    def with_branches(self) -> bool:
        return self.step == 0

    @property
    def hop_s(self) -> float:
        """From one tagged window's start to the next."""
        return self._hop_s(self.step)

    @property
    def longest_hop_s(self) -> float:
        """The same, when nothing more can be left out."""
        return self._hop_s(MAX_STEP)

    @property
    def reason(self) -> str:
        """Why the sensor is degraded; "" if nothing is left out."""
        if self.step == 0:
            return ""
        if self.step == 1:
            return "inference cannot keep up: branches are skipped"
        return f"inference cannot keep up: a window every {self.hop_s:g} s, branches are skipped"

    def health(self) -> LoadHealth:
        return LoadHealth(self.step, self.hop_s, self.branches_skipped, self.windows_skipped)

    def put(self, windows: list[Window]) -> None:
        """Line up those that are wanted at this step."""
        every = _factor(self.step)
        wanted = [window for window in windows if window.start_sample // self._hop_samples % every == 0]
        self.windows_skipped += len(windows) - len(wanted)
        self._waiting.extend(wanted)
        while len(self._waiting) > MAX_WAITING:
            self._skip_oldest()

    def next(self, now_s: float) -> Window | None:
        """The oldest that has not waited for too long, or else the newest; None if none waits."""
        while len(self._waiting) > 1 and now_s - self._waiting[0].delivered_s > MAX_WAIT_S:
            self._skip_oldest()
        return self._waiting.popleft() if self._waiting else None

    def skip_all(self) -> None:
        """Nobody has time for those that wait."""
        while self._waiting:
            self._skip_oldest()

    def took(self, seconds: float, *, n_branches_skipped: int = 0) -> bool:
        """Learn what a window cost; whether the step has changed.

        With more windows waiting than before, or at nine tenths of a hop, that is too much: twice in a
        row, and the next step is taken. Once a dozen windows would have left the step below a quarter idle,
        it is tried; if it fails soon, it is not tried again for twice as long.
        """
        before = self.step
        self._n_since_down += 1
        self.branches_skipped += n_branches_skipped
        is_busy = seconds > _BUSY * self.hop_s or len(self._waiting) > self._n_waited
        self._n_waited = len(self._waiting)
        is_calm = seconds < _CALM * self._hop_s(max(0, self.step - 1)) and not self._waiting
        self._n_busy = self._n_busy + 1 if is_busy else 0
        self._n_calm = max(0, self._n_calm + (1 if is_calm else -1))
        if self._n_busy == _N_BUSY:
            self._up()
        elif self.step and self._n_calm >= self._calm_needed:
            self._down()
        elif not self.step and self._n_calm >= _MAX_CALM:
            self._calm_needed = _MIN_CALM
        return self.step != before

    def _up(self) -> None:
        if self._n_since_down < self._calm_needed:
            self._calm_needed = min(2 * self._calm_needed, _MAX_CALM)
        self._n_busy = self._n_calm = 0
        self.step = min(self.step + 1, MAX_STEP)

    def _down(self) -> None:
        self._n_busy = self._n_calm = self._n_since_down = 0
        self.step -= 1

    def _skip_oldest(self) -> None:
        self._waiting.popleft()
        self.windows_skipped += 1

    def _hop_s(self, step: int) -> float:
        return _factor(step) * self._hop_samples / SAMPLE_RATE_HZ


def _factor(step: int) -> int:
    """One window in so many is tagged."""
    return 1 << max(0, step - 1)
