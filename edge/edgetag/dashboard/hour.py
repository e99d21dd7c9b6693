"""The last hour of a sensor, in cells of ten seconds: its level and its coarse tags.

```
cell     …  k-2   k-1    k                absolute: seconds since 1970 // 10
level    …  61.4  63.2   –                mean of the windows that end in it, by energy
engine   …   12     91   –                highest probability among them, in per cent
```
However often a sensor speaks, it takes some fifteen kilobytes.
"""

import math
from array import array
from collections.abc import Mapping

CELL_S = 10
N_CELLS = 360
MAX_TAGS = 16
SPAN_S = CELL_S * N_CELLS

_PER_MINUTE = 60 // CELL_S
_AHEAD_S = 60.0  # a clock may be fast


def cell_at(at_s: float) -> int:
    """Which cell a time (seconds since 1970) lies in."""
    return int(at_s // CELL_S)


def place(end_s: float, now_s: float, *, is_late: bool) -> float | None:
    """When a window of this end is shown to have been, seconds since 1970; None for out of sight.

    Its end is by the sensor's clock, or by a recording's. One that cannot be, and did not wait in an outbox,
    counts as being now.

    >>> place(995.0, 1000.0, is_late=True), place(1e9, 1000.0, is_late=False)
    (995.0, 1000.0)
    >>> place(-9e3, 1000.0, is_late=True)
    """
    if now_s - SPAN_S < end_s <= now_s + _AHEAD_S:
        return end_s
    return None if is_late else now_s


class Hour:
    """A ring of `N_CELLS` cells; the newest is the latest that was ever written to."""

    def __init__(self) -> None:
        self._newest = -1
        self._energy = array("d", bytes(8 * N_CELLS))
        self._n = array("L", bytes(array("L").itemsize * N_CELLS))
        self._percents: dict[str, bytearray] = {}  # 0 is nothing, 1 is 0 %

    def add(self, at_s: float, level_db: float, coarse: Mapping[str, float]) -> bool:
        """Take in a window; of more than `MAX_TAGS` tags those that came first are kept.

        Args:
            at_s: where it belongs, as `place` says.
            level_db: LAeq.
            coarse: probability, 0 to 1, by tag.

        Returns:
            Whether no minute before the newest two has changed.
        """
        cell = cell_at(at_s)
        self._advance(cell)
        if cell <= self._newest - N_CELLS:
            return True
        index = cell % N_CELLS
        self._energy[index] += 10 ** (level_db / 10)
        self._n[index] += 1
        for tag, probability in coarse.items():
            if (percents := self._percents_of(tag)) is not None:
                percents[index] = max(percents[index], 1 + round(100 * probability))
        return cell // _PER_MINUTE >= self.newest_minute - 1

    @property
    def newest_minute(self) -> int:
        """The latest that was written to: minutes since 1970."""
        return self._newest // _PER_MINUTE

    @property
    def tags(self) -> list[str]:
        """Tags of which something is known."""
        return [tag for tag, percents in self._percents.items() if any(percents)]

    def levels(self, last: int) -> list[float | None]:
        """Of the `N_CELLS` cells that end with cell `last`, dB; None where nothing came."""
        return [self._level(cell, 1) for cell in self._cells(last)]

    def percents(self, tag: str, last: int) -> list[int | None]:
        """A tag's, of the `N_CELLS` cells that end with cell `last`; None where nothing came."""
        kept = self._percents.get(tag, bytearray(N_CELLS))
        raw = [kept[cell % N_CELLS] if self._is_kept(cell) else 0 for cell in self._cells(last)]
        return [stored - 1 if stored else None for stored in raw]

    def minutes(self, last: int, n: int) -> list[float | None]:
        """Levels of `n` minutes (cells by sixes) that end with minute `last`, dB; None where nothing came."""
        return [self._level(minute * _PER_MINUTE, _PER_MINUTE) for minute in range(last - n + 1, last + 1)]

    def _advance(self, cell: int) -> None:
        """Cells up to this one begin empty."""
        for passed in range(max(self._newest + 1, cell - N_CELLS + 1), cell + 1):
            index = passed % N_CELLS
            self._energy[index], self._n[index] = 0.0, 0
            for percents in self._percents.values():
                percents[index] = 0
        self._newest = max(self._newest, cell)

    def _percents_of(self, tag: str) -> bytearray | None:
        if tag not in self._percents and len(self._percents) >= MAX_TAGS:
            self._percents = {tag: self._percents[tag] for tag in self.tags}  # another bundle's may be over
        if tag not in self._percents and len(self._percents) >= MAX_TAGS:
            return None
        return self._percents.setdefault(tag, bytearray(N_CELLS))

    def _cells(self, last: int) -> range:
        return range(last - N_CELLS + 1, last + 1)

    def _is_kept(self, cell: int) -> bool:
        return self._newest - N_CELLS < cell <= self._newest

    def _level(self, first: int, n_cells: int) -> float | None:
        """Of cells within one minute: they lie side by side, for a ring is so many whole minutes."""
        start, end = max(first, self._newest - N_CELLS + 1), min(first + n_cells, self._newest + 1)
        if start >= end:
            return None
        kept = slice(start % N_CELLS, start % N_CELLS + end - start)
        if not (n := sum(self._n[kept])):
            return None
        return round(10 * math.log10(sum(self._energy[kept]) / n), 1)
