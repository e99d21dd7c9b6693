"""A sink that never makes anybody wait: a thread waits in its place, for the network above all.

```
caller's thread   deliver, sound ─ waiting ─┐
                  state, announce, report ──┤ the last of each
this thread                                 └─ inner sink ─ handed over ─ acknowledged: forgotten
                                               fails: left, made anew 1 s … 5 min later,
                                               and handed what is not acknowledged once more
```
The queue is in memory: what was not delivered when the process ends is lost, and counted.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec
import structlog

from edgetag.contract.errors import EdgetagError, first_line
from edgetag.contract.event import Health, Info, SoundEvent, Status, TagsEvent
from edgetag.delivery.sink import Sink

MAX_MESSAGES = 5_000  # at a window in 5 s and few sounds, some six hours; 10 MB
LATE_S = 10.0

_FIRST_DELAY_S = 1.0
_MAX_DELAY_S = 300.0
_STABLE_S = 60.0  # a connection that held so long has nothing to do with the failures before it
_POLL_S = 0.5  # how often an idle thread looks for acknowledgements and a lost connection
_LEAVE_S = 0.9  # for the inner sink's farewell

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.delivery")


@dataclass(frozen=True)
class _Queued:
    """An event or a sound; `index` counts them, `since_s` is when it came."""

    message: TagsEvent | SoundEvent
    index: int
    since_s: float


@dataclass(frozen=True)
class _Latest:
    """The last state, info or health; to be said when all messages before `index` have been handed over."""

    message: Status | Info | Health
    index: int


class Background(Sink):
    """Hands everything to an inner sink, in a thread of its own; every method returns at once.

    Events and sounds arrive in order and at least once: whatever the inner sink did not confirm before
    it failed is delivered again. Of states, infos and health reports the last ones arrive, in order with
    the events while there is a connection; after a failure the inner sink is made with the last state and
    info, and a health report is forgotten.

    Leaving waits until everything is confirmed, though not longer than `flush_s`, and then leaves the inner
    sink. What hangs longer than that is abandoned: it goes down with the process.

    Args:
        make: gives a new inner sink, which announces this state and info by itself when it is entered. It
            must not repair a lost connection by itself (`MqttPublisher(…, reconnect=False)`).
        info: the first info.
        status: the first state; without one nobody is called before `state` has been.
        max_messages: most events and sounds that are kept, at least 1; the oldest go when there are more.
        flush_s: longest wait for what is left at the end.
        monotonic, wait, uniform: a clock, a wait for so many seconds that ends when this sink is left, and
            a random number from 0 to 1.
    """

    def __init__(
        self,
        make: Callable[[Status, Info], Sink],
        *,
        info: Info,
        status: Status | None = None,
        max_messages: int = MAX_MESSAGES,
        flush_s: float = 3.0,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._make = make
        self._status, self._info = status, info
        self._max_messages = max_messages
        self._flush_s = flush_s
        self._monotonic = monotonic
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._uniform = uniform
        self._thread = threading.Thread(target=self._run, name="edgetag-delivery", daemon=True)

        # Shared by both threads, under the condition's lock:
        self._changed = threading.Condition()
        self._handed: deque[_Queued] = deque()
        self._waiting: deque[_Queued] = deque()
        self._latest: dict[type[Status | Info | Health], _Latest] = {}
        self._n_queued = 0
        self._n_dropped = 0
        self._connected = False
        self._last_error = ""
        self._deadline_s = float("inf")  # of flushing

        # The thread's own:
        self._n_failures = 0
        self._n_dropped_said = 0

    # -- the caller's thread -----------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start the thread, whether or not anybody can be reached."""
        self._thread.start()
        return self

    def deliver(self, event: TagsEvent) -> None:
        """Queue one event."""
        self._queue(event)

    def sound(self, event: SoundEvent) -> None:
        """Queue a sound that began or ended."""
        self._queue(event)

    def state(self, status: Status) -> None:
        """From now on the sensor is in this state."""
        with self._changed:
            self._status = status
            self._say(status)

    def announce(self, info: Info) -> None:
        """From the next event on, events are to be read with this."""
        with self._changed:
            self._info = info
            self._say(info)

    def report(self, health: Health) -> None:
        """How the sensor is; not said while there is no connection."""
        with self._changed:
            if self._connected:
                self._say(health)

    def unconfirmed(self) -> int:
        """How many events and sounds are not known to have arrived."""
        return self.depth

    @property
    def depth(self) -> int:
        """How many events and sounds are kept because they are not known to have arrived."""
        with self._changed:
            return len(self._handed) + len(self._waiting)

    @property
    def dropped(self) -> int:
        """How many events and sounds have been given up because there were too many."""
        with self._changed:
            return self._n_dropped

    @property
    def connected(self) -> bool:
        """Whether the inner sink is entered, and has not failed as far as is known."""
        with self._changed:
            return self._connected

    @property
    def last_error(self) -> str:
        """Why nobody is reached; "" while somebody is, and before the first attempt."""
        with self._changed:
            return self._last_error

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush, take leave, and count what could not be delivered; raises nothing."""
        with self._changed:
            self._deadline_s = self._monotonic() + self._flush_s
            self._stopping.set()
            self._changed.notify_all()
        self._thread.join(self._flush_s + _LEAVE_S)
        if lost := self.depth:
            _log.warning(
                "delivery.undelivered", messages=lost, reason=self.last_error or "not acknowledged in time"
            )

    def _queue(self, message: TagsEvent | SoundEvent) -> None:
        with self._changed:
            if len(self._handed) + len(self._waiting) >= self._max_messages:
                (self._waiting or self._handed).popleft()
                self._n_dropped += 1
            self._waiting.append(_Queued(message, self._n_queued, self._monotonic()))
            self._n_queued += 1
            self._changed.notify_all()

    def _say(self, message: Status | Info | Health) -> None:
        self._latest[type(message)] = _Latest(message, self._n_queued)
        self._changed.notify_all()

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._is_to_connect():
            is_last = self._stopping.is_set()
            entered_s = float("inf")
            try:
                with self._new_inner() as sink:
                    entered_s = self._monotonic()
                    self._note_connected()
                    while (message := self._next(sink)) is not None:
                        self._hand_over(sink, message)
            except Exception as error:  # a fault of ours must not end delivery for good
                self._note_failure(error, lasted_s=self._monotonic() - entered_s)
                if is_last:
                    return
                self._wait(self._delay_s())
            else:
                self._note_left()
                return

    def _is_to_connect(self) -> bool:
        """Waits for the first state. At the end only what is left to deliver is worth another attempt."""
        with self._changed:
            self._changed.wait_for(lambda: self._status is not None or self._stopping.is_set())
            if not self._stopping.is_set():
                return True
            is_in_time = self._monotonic() < self._deadline_s
            return self._status is not None and bool(self._waiting) and is_in_time

    def _new_inner(self) -> Sink:
        with self._changed:
            self._latest.clear()
            status, info = self._status, self._info
        assert status is not None
        return self._make(status, info)

    def _next(self, sink: Sink) -> _Queued | _Latest | None:
        """What to hand over next, once there is something; None when it is time to leave."""
        while True:
            n_unconfirmed = sink.unconfirmed()
            with self._changed:
                while len(self._handed) > n_unconfirmed:
                    self._handed.popleft()
                if self._stopping.is_set() and self._monotonic() >= self._deadline_s:
                    return None
                if (message := self._pop()) is not None:
                    return message
                if self._stopping.is_set():
                    return None
                self._changed.wait(_POLL_S)

    def _pop(self) -> _Queued | _Latest | None:
        """The first in order: a state is said before the events that came after it."""
        first = self._waiting[0].index if self._waiting else self._n_queued
        for kind, latest in self._latest.items():
            if latest.index <= first:
                return self._latest.pop(kind)
        if not self._waiting:
            return None
        self._handed.append(self._waiting.popleft())
        return self._handed[-1]

    def _hand_over(self, sink: Sink, due: _Queued | _Latest) -> None:
        match due.message:
            case TagsEvent() as event:
                assert isinstance(due, _Queued)
                is_late = event.late or self._monotonic() - due.since_s > LATE_S
                sink.deliver(msgspec.structs.replace(event, late=is_late))
            case SoundEvent() as sound:
                sink.sound(sound)
            case Status() as status:
                sink.state(status)
            case Info() as info:
                sink.announce(info)
            case Health() as health:
                sink.report(health)

    # -- what becomes of a connection ----------------------------------------------------------------

    def _note_connected(self) -> None:
        with self._changed:
            self._connected, self._last_error = True, ""
            dropped = self._n_dropped - self._n_dropped_said
            self._n_dropped_said = self._n_dropped
            depth = len(self._waiting)
        _log.info("delivery.connected", waiting=depth)
        if dropped:
            _log.warning("delivery.dropped", messages=dropped)

    def _note_failure(self, error: Exception, lasted_s: float) -> None:
        """Keep what is not acknowledged for the next attempt; log a reason once, not at every attempt."""
        reason = (
            str(error) if isinstance(error, EdgetagError) else f"{type(error).__name__}: {first_line(error)}"
        )
        with self._changed:
            self._waiting.extendleft(reversed(self._handed))
            self._handed.clear()
            is_news = reason != self._last_error
            self._connected, self._last_error = False, reason
        self._n_failures = 1 if lasted_s >= _STABLE_S else self._n_failures + 1
        if is_news:
            _log.warning("delivery.failed", reason=reason, exc_info=not isinstance(error, EdgetagError))

    def _note_left(self) -> None:
        """The inner sink was left in good order: everything it had has arrived."""
        with self._changed:
            self._handed.clear()
            self._connected = False

    def _delay_s(self) -> float:
        """Doubled with every failure; a random part keeps a street of sensors from calling all at once."""
        delay_s = min(_FIRST_DELAY_S * 2.0 ** min(self._n_failures - 1, 30), _MAX_DELAY_S)
        return delay_s * (1 + self._uniform()) / 2
