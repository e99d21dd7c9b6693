"""Whether the system clock is disciplined (NTP, PTP, GPS), as the kernel knows it."""

import ctypes
import sys

_TIME_OK_STATES = range(
    5
)  # adjtimex(2): 0 … 4 are OK and the leap-second states, 5 is TIME_ERROR, −1 failure
_STA_UNSYNC = 0x0040


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
    if not sys.platform.startswith("linux"):
        return False
    timex = _TimexHead()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return False
    return state in _TIME_OK_STATES and not timex.status & _STA_UNSYNC
