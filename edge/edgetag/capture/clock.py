"""The system clock: whether it is disciplined (NTP, PTP, GPS), as the kernel knows it, and when it is set."""

import ctypes
import sys
import time
from collections.abc import Callable
from functools import cache

_TIME_OK_STATES = range(
    5
)  # adjtimex(2): 0 … 4 are OK and the leap-second states, 5 is TIME_ERROR, −1 failure
_STA_UNSYNC = 0x0040

MIN_STEP_S = 0.01
"""Smaller changes are not steps: corrections and leap seconds are larger, a reading's error is smaller."""
_READING_S = 0.001
_N_READINGS = 5


class _TimexHead(ctypes.Structure):
    """`struct timex` up to `status`; the C types give it the right layout for 32 and 64 bit alike.

    The kernel writes the whole structure, 208 bytes at most; `rest` is room for it and to spare.
    """

    _fields_ = [
        ("modes", ctypes.c_uint),  # 0: read, change nothing; needs no privilege
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    ]


def kernel_clock_synced() -> bool:
    """True when the kernel says that something keeps the clock in step; False when not, or when unknown."""
    libc = _libc()
    if libc is None:
        return False
    timex = _TimexHead()
    state = libc.adjtimex(ctypes.byref(timex))
    return state in _TIME_OK_STATES and not timex.status & _STA_UNSYNC


@cache
def _libc() -> ctypes.CDLL | None:
    """The C library, if it is one with adjtimex; opened once, for each time would leave garbage of cycles."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if hasattr(libc, "adjtimex") else None


class SystemTime:
    """UTC of the monotonic clock's readings, and the steps by which somebody sets the system clock.

    The kernel slews both clocks alike, so that their difference changes only when the system clock is set (or
    the machine was suspended). It is read anew for every answer: a time is always told by the newest setting,
    and `step_s` says what has changed.

    Args:
        monotonic, wall: the clocks, in seconds; the wall's since 1970.

    Attributes:
        n_steps: how often the system clock was set.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._monotonic, self._wall = monotonic, wall
        self._told_s = self._offset_s()
        self.n_steps = 0

    def utc_s(self, monotonic_s: float) -> float:
        """Seconds since 1970 of a reading of the monotonic clock."""
        return monotonic_s + self._offset_s()

    def step_s(self) -> float:
        """By how much the system clock was set since this was last asked; 0.0 if it was not."""
        offset_s = self._offset_s()
        step_s = offset_s - self._told_s
        if abs(step_s) < MIN_STEP_S:
            return 0.0
        self._told_s = offset_s
        self.n_steps += 1
        return step_s

    def _offset_s(self) -> float:
        """The clocks' difference, from readings that nothing came between."""
        for _ in range(_N_READINGS):
            before_s, wall_s, after_s = self._monotonic(), self._wall(), self._monotonic()
            if after_s - before_s < _READING_S:
                break
        return wall_s - (before_s + after_s) / 2
