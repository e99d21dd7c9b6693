"""Ctrl-C and SIGTERM: asked once, training stops after the step it is in; asked again, at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818  a request, no error
    """Training was asked to stop, and its state is saved; `exit_code` is the shell's, 128 + signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class Stop:
    """Whether a signal asked for an end, and which."""

    asked: int | None = None

    def check(self) -> None:
        """
        Raises:
            Stopped: a signal came.
        """
        if self.asked is not None:
            raise Stopped(self.asked)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Catch the first SIGINT or SIGTERM as a request; from then on they act as they always do."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.asked = number
        restore()

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()
