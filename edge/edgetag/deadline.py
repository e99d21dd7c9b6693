"""Work that may never come back: a sound server that hangs, a name server that does not answer."""

import atexit
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

INTERRUPTED_EXIT = 130

_T = TypeVar("_T")


def within(seconds: float, work: Callable[[], _T], *, exit_code: int) -> _T:
    """What `work` returns or raises; its thread is left behind when it takes longer.

    The process then ends with `exit_code` as soon as it can: PortAudio would wait for a device that hangs,
    and ALSA crash under the feet of whoever still reads.

    Raises:
        TimeoutError: it took longer.
    """
    answer: Future[_T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="within", daemon=True).start()
    try:
        return answer.result(seconds)
    except (TimeoutError, KeyboardInterrupt) as error:
        atexit.register(os._exit, exit_code if isinstance(error, TimeoutError) else INTERRUPTED_EXIT)
        raise
