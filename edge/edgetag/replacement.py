"""Another bundle for a sensor that is hearing: made ready aside, taken over between two windows or refused.

```
signal     ask ──────────┐
thread                   load, verify, self-test ──┐
data path  window  window  window  window  window  │ window with the new one
                                                  outcome
```
"""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

import structlog

from edgetag.contract.errors import EdgetagError

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.bundle")


_LoadedT = TypeVar("_LoadedT")


class Replacement(Generic[_LoadedT]):
    """Loads on request, in a thread of its own, for as long as it is entered.

    Args:
        load: reads the bundle that is to take over, checks it whole and runs its self-test.
        patience_s: longest wait at the end for a load that is under way; None for as long as it takes.
    """

    def __init__(self, load: Callable[[], _LoadedT], *, patience_s: float | None = None) -> None:
        self._load = load
        self._patience_s = patience_s
        self._wishes: queue.SimpleQueue[bool] = queue.SimpleQueue()  # reentrant: a signal handler may put
        self._outcomes: queue.SimpleQueue[_LoadedT | EdgetagError] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="bundle", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for a load that is under way; what it brings is not used."""
        self._wishes.put(False)
        self._thread.join(self._patience_s)

    @property
    def is_busy(self) -> bool:
        """Whether a load was still under way at the end."""
        return self._thread.is_alive()

    def ask(self) -> None:
        """Wish for the bundle to be read anew. Returns at once; may be called from a signal handler."""
        self._wishes.put(True)

    def outcome(self) -> _LoadedT | EdgetagError | None:
        """What became of the last wish, once: what was loaded, why it was not, or nothing yet."""
        found = None
        while not self._outcomes.empty():
            found = self._outcomes.get()
        return found

    def _work(self) -> None:
        while self._wishes.get():
            if not self._wishes.empty():
                continue  # several wishes are one
            try:
                self._outcomes.put(self._load())
            except EdgetagError as error:
                self._outcomes.put(error)
            except Exception as error:  # a fault of ours must not end the hearing
                _log.exception("bundle.failed")
                self._outcomes.put(EdgetagError(f"the bundle could not be loaded ({type(error).__name__})"))
