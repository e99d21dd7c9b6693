"""Libraries that write to stderr what nobody asked for, and have no switch for it."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def stderr_silenced() -> Iterator[None]:
    """Send nowhere what any thread of the process writes to file descriptor 2.

    mpg123 inside libsndfile prints notes on damaged MP3 there; ALSA, on whatever a device cannot do. One
    thread at a time: of two, the second would leave it silenced.
    """
    try:
        saved = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(null)
        os.close(saved)
