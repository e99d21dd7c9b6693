"""What was heard in a recording, window by window, for whoever draws it: of any length in the same memory.

Windows overlap. Each one is drawn where it is nearer than any other:

```
windows   [---------)            drawn   [------)
              [---------)                       [---)
                  [---------)                       [------)
```
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log10

from edgetag.contract.event import TagsEvent, Verdict

MAX_WINDOWS = 4096


@dataclass(frozen=True)
class Heard:
    """A window, or several that follow each other as one.

    Attributes:
        start_s, end_s: in the recording.
        verdict: of several, `tagged` where one is.
        valid: share of it that is audio.
        laeq_db, lafmax_db, la90_db: level; of several, the mean, the largest, the least.
        probability: by tag id; of several, the largest.
        refined, active: ids.
    """

    start_s: float
    end_s: float
    verdict: Verdict
    valid: float
    laeq_db: float
    lafmax_db: float
    la90_db: float
    probability: dict[str, float]
    refined: frozenset[str]
    active: frozenset[str]

    @classmethod
    def of(cls, event: TagsEvent, start_s: float, end_s: float) -> "Heard":
        """An event's window, at its place in the recording."""
        level = event.level
        return cls(
            start_s,
            end_s,
            event.verdict,
            event.audio.valid,
            level.laeq_db,
            level.lafmax_db,
            level.la90_db,
            event.coarse | event.fine,
            frozenset(event.refined),
            frozenset(event.active),
        )

    @property
    def middle_s(self) -> float:
        return (self.start_s + self.end_s) / 2


class Timeline:
    """Windows in order; where there are too many, pairs become one.

    Args:
        max_windows: that are kept, even.
    """

    def __init__(self, max_windows: int = MAX_WINDOWS) -> None:
        self._max_windows = max_windows
        self._windows: list[Heard] = []
        self._n_each = 1  # windows that were made one
        self._group: list[Heard] = []  # of those that are to be made one, not all are here yet

    @property
    def n_each(self) -> int:
        """How many windows were made one, at most."""
        return self._n_each

    def add(self, window: Heard) -> None:
        """The next one."""
        self._group.append(window)
        if len(self._group) == self._n_each:
            self._windows.append(_merged(self._group))
            self._group.clear()
        if len(self._windows) == self._max_windows:
            self._windows = [_merged(self._windows[k : k + 2]) for k in range(0, self._max_windows, 2)]
            self._n_each *= 2

    def windows(self) -> list[Heard]:
        """All of them."""
        return self._windows + ([_merged(self._group)] if self._group else [])


def cells(windows: Sequence[Heard]) -> list[tuple[float, float]]:
    """From when to when each window is drawn: within itself, without overlap, and together all of them.

    >>> from edgetag.picture.timeline import _example
    >>> cells([_example(0, 10), _example(5, 15), _example(30, 40)])
    [(0, 7.5), (7.5, 15), (30, 40)]
    """
    borders: list[tuple[float, float]] = []  # where one ends and the next begins
    for one, other in pairwise(windows):
        border = (one.middle_s + other.middle_s) / 2
        borders.append((min(one.end_s, border), max(other.start_s, border)))
    starts = [windows[0].start_s, *(start for _, start in borders)] if windows else []
    ends = [*(end for end, _ in borders), windows[-1].end_s] if windows else []
    return list(zip(starts, ends, strict=True))


def _merged(windows: Sequence[Heard]) -> Heard:
    """Several as one; one as it is."""
    first = windows[0]
    if len(windows) == 1:
        return first
    probability: dict[str, float] = {}
    for window in windows:
        for id, p in window.probability.items():
            probability[id] = max(p, probability.get(id, 0.0))
    power = sum(10 ** (window.laeq_db / 10) for window in windows) / len(windows)
    return replace(
        first,
        end_s=windows[-1].end_s,
        verdict=next((w.verdict for w in windows if w.verdict == "tagged"), first.verdict),
        valid=sum(window.valid for window in windows) / len(windows),
        laeq_db=round(10 * log10(power), 2),
        lafmax_db=max(window.lafmax_db for window in windows),
        la90_db=min(window.la90_db for window in windows),
        probability=probability,
        refined=frozenset().union(*(window.refined for window in windows)),
        active=frozenset().union(*(window.active for window in windows)),
    )


def _example(start_s: float, end_s: float) -> Heard:
    return Heard(start_s, end_s, "tagged", 1.0, -30.0, -20.0, -40.0, {}, frozenset(), frozenset())
