"""The C library's heap: what was freed goes back to the system, where that costs next to nothing.

glibc keeps what is freed, in an arena for every thread, and decides by the size of one freed block what it
does with the next: a sensor that has loaded its nets holds 30 MB of nothing. So every larger block is a
mapping of its own while a bundle is loaded, and goes when it is freed; while windows are heard, what one
window frees stays for the next, and no page is fetched anew.

Any other C library is left alone.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of <malloc.h>
_LOADING_MMAP_BYTES = 2**18
_HEARING_MMAP_BYTES = 2**25  # the most that glibc takes where a pointer has 64 bits
_NEVER_TRIM_BYTES = 2**31 - 1


def begin_loading() -> None:
    """For a process that is about to load what it needs: one arena for all threads to come."""
    _set(_ARENA_MAX, 1)
    _set(_MMAP_THRESHOLD, _LOADING_MMAP_BYTES)


def begin_hearing() -> None:
    """What loading has freed is given back; from now on, what is freed is kept until `trim`."""
    _set(_MMAP_THRESHOLD, _HEARING_MMAP_BYTES)
    _set(_TRIM_THRESHOLD, _NEVER_TRIM_BYTES)
    trim()


def trim() -> None:
    """Give back every page that nothing lies in: 2 ms, and 6 to 13 ms more in the window that comes next."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _set(parameter: int, value: int) -> None:
    if (libc := _glibc()) is not None:
        libc.mallopt(parameter, value)


@cache
def _glibc() -> ctypes.CDLL | None:
    """What this process is linked with, if it is glibc."""
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
