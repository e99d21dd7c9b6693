"""The one interface between the data path and every way out of it."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

import msgspec

from edgetag.contract.event import DeliveryHealth, Health, Info, SoundEvent, Status, TagsEvent


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
        return None  # noqa: RET501 - with no body at all it would count as abstract

    def deliver(self, event: TagsEvent) -> None:
        """Hand over one event; may wait, never drops."""
        ...

    def sound(self, event: SoundEvent) -> None:  # noqa: ARG002
        """Hand over a sound that began or ended, in order with the events; never drops."""
        return None  # noqa: RET501

    def state(self, status: Status) -> None:  # noqa: ARG002
        """From now on the sensor is in this state; said again after a reconnect."""
        return None  # noqa: RET501

    def announce(self, info: Info) -> None:  # noqa: ARG002
        """From the next event on, events are to be read with this. Not everybody needs to know."""
        return None  # noqa: RET501

    def report(self, health: Health) -> None:  # noqa: ARG002
        """How the sensor is; may be dropped."""
        return None  # noqa: RET501

    def trouble(self) -> str:
        """Why events are not delivered as was asked for, which degrades the sensor; "" if they are."""
        return ""

    def unreachable(self) -> str:
        """Why nobody is reached at the moment; "" if somebody is."""
        return ""

    def delivery(self) -> DeliveryHealth | msgspec.UnsetType:
        """How delivery is, for `health`."""
        return msgspec.UNSET


class Tee(Sink):
    """Hands each event to several sinks in order; they are entered in order and left in reverse."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.enter_context(sink)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(exc_type, exc, traceback)

    def deliver(self, event: TagsEvent) -> None:
        for sink in self._sinks:
            sink.deliver(event)

    def sound(self, event: SoundEvent) -> None:
        for sink in self._sinks:
            sink.sound(event)

    def state(self, status: Status) -> None:
        for sink in self._sinks:
            sink.state(status)

    def announce(self, info: Info) -> None:
        for sink in self._sinks:
            sink.announce(info)

    def report(self, health: Health) -> None:
        for sink in self._sinks:
            sink.report(health)

    def trouble(self) -> str:
        return "; ".join(filter(None, (sink.trouble() for sink in self._sinks)))

    def unreachable(self) -> str:
        return "; ".join(filter(None, (sink.unreachable() for sink in self._sinks)))

    def delivery(self) -> DeliveryHealth | msgspec.UnsetType:
        found = (sink.delivery() for sink in self._sinks)
        return next((health for health in found if health is not msgspec.UNSET), msgspec.UNSET)


Forwarded = Literal["tags", "events"]
"""Topics whose every message counts; of the others the last one does."""


class Settled(NamedTuple):
    """What became of a forwarded message; `refusal` is why the broker will never take it, "" if it has it."""

    id: int
    refusal: str = ""


class Courier(Protocol):
    """Carries messages that are kept elsewhere until they are settled, over one connection.

    `__enter__` connects and announces the sensor; `__exit__` says farewell. When a method has raised, what
    was settled before may still be asked for; then the courier is to be left and another one made, and what
    is not settled is forwarded again.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def forward(self, id: int, kind: Forwarded, payload: bytes) -> None:
        """Send one message, in order; waits while too many are on their way.

        Raises:
            NetworkError: the connection is lost, or the broker silent.
        """
        ...

    def settled(self) -> list[Settled]:
        """What is acknowledged or refused since the last call; returns at once; raises as `forward`."""
        ...

    def state(self, status: Status) -> None:
        """Replace the retained `status`, in order with the messages; raises as `forward`."""
        ...

    def announce(self, info: Info) -> None:
        """Replace the retained `info`, in order with the messages; raises as `forward`."""
        ...

    def report(self, health: Health) -> None:
        """Publish `health`, unacknowledged."""
        ...

    def say(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Publish something else on any topic, unacknowledged."""
        ...

    def heard(self) -> list[tuple[str, bytes]]:
        """Topics and payloads of what came on the subscribed topics since the last call; returns at once."""
        ...
