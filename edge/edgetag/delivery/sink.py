"""The one interface between the data path and every way out of it."""

from types import TracebackType
from typing import Protocol, Self

from edgetag.contract.event import TagsEvent


class Sink(Protocol):
    """Takes events one by one, in order, between `__enter__` and `__exit__`.

    `__enter__` makes it ready (and may refuse to); `__exit__` returns when every event has arrived
    or raises. The methods given here suit a sink that holds nothing.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Holds nothing, releases nothing."""

    def deliver(self, event: TagsEvent) -> None:
        """Hand over one event; may wait, never drops."""
        ...
