"""A sink that never makes anybody wait: messages go to the outbox, and a thread takes them to the broker.

```
caller's thread   deliver, sound ─ outbox ──┐
                  state, announce, report ──┤ the last of each
this thread                                 └─ courier ─ forwarded ─ settled: forgotten
                                               fails: left, made anew 1 s … 5 min later,
                                               and handed what is not settled once more
```
"""

import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog

from edgetag.contract.errors import EdgetagError, NetworkError, first_line
from edgetag.contract.event import DeliveryHealth, Health, Info, SoundEvent, Status, TagsEvent, encode
from edgetag.delivery.connection import LostError, TakenOverError
from edgetag.delivery.outbox import Outbox, Queued
from edgetag.delivery.sink import Courier, Settled, Sink

LATE_S = 10.0
RIVALRY = "the broker ends the connection again and again: has another client this sensor's id?"
REFUSED = "the broker refused messages in the last hour"
HANGS_UP = "the broker hangs up on it"

_FIRST_DELAY_S = 1.0
_MAX_DELAY_S = 300.0
_HOUR_S = 3600.0
_STABLE_S = 60.0  # a connection that held so long has nothing to do with the failures before it
# So many shorter ones in an hour look like two sensors of one id that throw each other out; only some brokers
# say so (Mosquitto 2.0 hangs up). They may do so every few minutes: then no connection makes up for anything.
_N_RIVALS = 3
_N_SUSPECT = 3  # hang-ups on one message until it is sent alone; as many again until it is set aside
_HANG_UP_S = 10.0
_POLL_S = 0.5  # how often an idle thread looks for acknowledgements and a lost connection
_LEAVING_POLL_S = 0.02
_LEAVE_S = 0.9  # for the courier's farewell

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.delivery")


@dataclass(frozen=True)
class _Latest:
    """The last state, info or health; to be said after the messages before `before_id`."""

    message: Status | Info | Health
    before_id: int


@dataclass
class _Suspect:
    """A message on which the broker hung up `n` times, and nothing else happened in between."""

    id: int | None = None
    n: int = 0

    def hung_up_on(self, id: int) -> None:
        self.n = self.n + 1 if id == self.id else 1
        self.id = id

    @property
    def goes_alone(self) -> bool:
        return self.n >= _N_SUSPECT

    @property
    def is_convicted(self) -> bool:
        return self.n >= 2 * _N_SUSPECT


class Background(Sink):
    """Keeps every event and sound in an outbox and hands them to a courier, in a thread of its own.

    They arrive in order and at least once: what a courier did not settle before it failed is forwarded again,
    by this process or the next. Of states, infos and health reports the last ones arrive, in order with the
    messages while there is a connection; after a failure the courier is made with the last state and info,
    and a health report is forgotten. A message on which the broker hangs up again and again is set aside.

    Leaving waits until everything is settled, though not longer than `flush_s`, and then leaves the courier.
    What hangs longer than that is abandoned: it goes down with the process.

    Args:
        make: gives a new courier, which announces this state and info by itself when it is entered.
        outbox: entered and left by this sink.
        info: the first info.
        status: the first state; without one nobody is called before `state` has been.
        flush_s: longest wait for what is left at the end.
        monotonic, wait, uniform: a clock, a wait for so many seconds that ends when this sink is left, and
            a random number from 0 to 1.
    """

    def __init__(
        self,
        make: Callable[[Status, Info], Courier],
        *,
        outbox: Outbox,
        info: Info,
        status: Status | None = None,
        flush_s: float = 3.0,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._make = make
        self._outbox = outbox
        self._status, self._info = status, info
        self._flush_s = flush_s
        self._monotonic = monotonic
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._uniform = uniform
        self._thread = threading.Thread(target=self._run, name="edgetag-delivery", daemon=True)

        # Shared by both threads, under the condition's lock:
        self._changed = threading.Condition()
        self._news = False
        self._latest: dict[type[Status | Info | Health], _Latest] = {}
        self._connected = False
        self._error, self._last_error = "", ""  # why there is no connection now, and was none before
        self._connects_s: deque[float] = deque()  # of the last hour, as the next
        self._rivals_s: deque[float] = deque()
        self._refused_s: deque[float] = deque()
        self._n_connects = 0
        self._deadline_s = float("inf")  # of flushing

        # The thread's own:
        self._n_failures = 0
        self._head: Queued | None = None
        self._in_flight: dict[int, float] = {}  # when a message was forwarded, by id
        self._has_settled = False  # anything, over this connection
        self._suspect = _Suspect()

    # -- the caller's thread -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Open the outbox and start the thread, whether or not anybody can be reached.

        Raises:
            InputError: another process has the outbox.
        """
        self._outbox.__enter__()
        self._thread.start()
        return self

    def deliver(self, event: TagsEvent) -> None:
        """Keep one event."""
        self._outbox.append("tags", encode(event))
        self._notify()

    def sound(self, event: SoundEvent) -> None:
        """Keep a sound that began or ended."""
        self._outbox.append("events", encode(event))
        self._notify()

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
        if self.connected:
            self._say(health)

    def delivery(self) -> DeliveryHealth:
        """How often the broker was reached, why it was not, and what waits for it."""
        with self._changed:
            connects = len(_of_last_hour(self._connects_s, self._monotonic()))
            reached = self._n_connects, connects, self._error or self._last_error
        return DeliveryHealth(*reached, self._outbox.health())

    def trouble(self) -> str:
        """Why delivery is not as it was asked for. That nobody is there is none: it is what we are for."""
        if fault := self._outbox.fault:
            return f"the outbox cannot be written ({fault}): messages are kept in memory"
        with self._changed:
            refusals = _of_last_hour(self._refused_s, self._monotonic())
            return RIVALRY if self._has_rival() else REFUSED if refusals else ""

    @property
    def connected(self) -> bool:
        """Whether the courier is entered, and has not failed as far as is known."""
        with self._changed:
            return self._connected

    def unreachable(self) -> str:
        """Why nobody is reached; "" while somebody is, and before the first attempt."""
        with self._changed:
            return self._error

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush, take leave, and say what is left; raises nothing."""
        with self._changed:
            self._deadline_s = self._monotonic() + self._flush_s
            self._stopping.set()
            self._news = True
            self._changed.notify_all()
        self._thread.join(self._flush_s + _LEAVE_S)
        self._outbox.__exit__(exc_type, exc, traceback)
        if n_left := self._outbox.depth:
            kept = self._outbox.outlives_process
            log = _log.info if kept else _log.warning
            reason = self.unreachable() or "not acknowledged in time"
            log("delivery.kept" if kept else "delivery.undelivered", messages=n_left, reason=reason)

    def _has_rival(self) -> bool:
        return len(_of_last_hour(self._rivals_s, self._monotonic())) >= _N_RIVALS

    def _say(self, message: Status | Info | Health) -> None:
        with self._changed:
            self._latest.pop(type(message), None)  # so that they are in order
            self._latest[type(message)] = _Latest(message, self._outbox.next_id)
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._news = True
            self._changed.notify_all()

    # -- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._is_to_connect():
            is_last = self._stopping.is_set()
            entered_s = float("inf")
            try:
                with self._new_courier() as courier:
                    entered_s = self._monotonic()
                    self._note_connected()
                    self._serve(courier)
            except Exception as error:  # a fault of ours must not end delivery for good
                self._note_failure(error, lasted_s=self._monotonic() - entered_s)
                error.with_traceback(None)  # its frames have the courier, which may have the error
                if is_last:
                    return
                self._wait(self._delay_s())
            else:
                with self._changed:
                    self._connected = False
                return

    def _is_to_connect(self) -> bool:
        """Waits for the first state. At the end only what is left to deliver is worth another attempt."""
        with self._changed:
            self._changed.wait_for(lambda: self._status is not None or self._stopping.is_set())
            if not self._stopping.is_set():
                return True
            is_in_time = self._monotonic() < self._deadline_s
            return self._status is not None and is_in_time and self._outbox.depth > 0

    def _new_courier(self) -> Courier:
        with self._changed:
            self._latest.clear()
            status, info = self._status, self._info
        assert status is not None
        return self._make(status, info)

    def _serve(self, courier: Courier) -> None:
        """Until it is time to leave."""
        try:
            while (due := self._next(courier)) is not None:
                self._hand_over(courier, due)
        except NetworkError:
            with contextlib.suppress(NetworkError):  # what was settled before that need not come twice
                self._settle(courier)
            raise

    def _next(self, courier: Courier) -> Queued | _Latest | None:
        """What to hand over next, once there is something; None when it is time to leave."""
        while True:
            self._settle(courier)
            is_stopping = self._stopping.is_set()
            if is_stopping and self._monotonic() >= self._deadline_s:
                return None
            if (due := self._pop()) is not None:
                return due
            if is_stopping and not self._in_flight:
                return None
            with self._changed:
                poll_s = _LEAVING_POLL_S if is_stopping else _POLL_S
                self._changed.wait_for(lambda: self._news, poll_s)
                self._news = False

    def _settle(self, courier: Courier) -> None:
        for settled in courier.settled():
            self._outbox.settle(settled)
            self._in_flight.pop(settled.id, None)
            self._has_settled, self._suspect = True, _Suspect()
            if settled.refusal:
                self._note_refusal(settled.refusal)

    def _pop(self) -> Queued | _Latest | None:
        """The first in order: a state is said before the messages that came after it."""
        end_id = self._outbox.next_id  # before the outbox is looked into: what comes now is not seen there
        if self._head is None:
            self._head = self._outbox.next()
        head = self._head
        with self._changed:
            for kind, latest in self._latest.items():
                if latest.before_id <= (end_id if head is None else head.id):
                    return self._latest.pop(kind)
        if head is None or (self._suspect.goes_alone and self._in_flight):
            return None
        self._head = None
        return head

    def _hand_over(self, courier: Courier, due: Queued | _Latest) -> None:
        match due:
            case Queued():
                self._in_flight[due.id] = self._monotonic()
                courier.forward(due.id, due.kind, _stamped(due))
            case _Latest(Status() as status):
                courier.state(status)
            case _Latest(Info() as info):
                courier.announce(info)
            case _Latest(Health() as health):
                courier.report(health)

    # -- what becomes of a connection --------------------------------------------------------------------

    def _note_connected(self) -> None:
        self._has_settled = False
        with self._changed:
            self._connected, self._error = True, ""
            self._n_connects += 1
            self._connects_s.append(self._monotonic())
        _log.info("delivery.connected", waiting=self._outbox.depth)

    def _note_failure(self, error: Exception, lasted_s: float) -> None:
        """Begin again with what is not settled; log a reason once, not at every attempt."""
        self._suspect_of(error)
        self._in_flight.clear()
        self._head = None
        self._outbox.rewind()
        is_ours = not isinstance(error, EdgetagError)
        reason = f"{type(error).__name__}: {first_line(error)}" if is_ours else str(error)
        with self._changed:
            is_news = reason != self._error
            self._connected, self._error, self._last_error = False, reason, reason
            if _is_like_a_rival(error, lasted_s):
                self._rivals_s.append(self._monotonic())
            has_rival = self._has_rival()
        self._n_failures = 1 if lasted_s >= _STABLE_S and not has_rival else self._n_failures + 1
        if is_news:
            _log.warning("delivery.failed", reason=reason, exc_info=is_ours)

    def _suspect_of(self, error: Exception) -> None:
        """A broker that cannot bear a message hangs up when it comes, at once and every time."""
        oldest = next(iter(self._in_flight.items()), None)
        if not isinstance(error, LostError) or self._has_settled or oldest is None:
            return
        id, forwarded_s = oldest
        if self._monotonic() - forwarded_s < _HANG_UP_S:
            self._suspect.hung_up_on(id)
        if self._suspect.is_convicted:
            self._note_refusal(HANGS_UP)
            self._outbox.settle(Settled(id, HANGS_UP))
            self._suspect = _Suspect()

    def _note_refusal(self, reason: str) -> None:
        _log.error("delivery.refused", reason=reason)
        with self._changed:
            self._refused_s.append(self._monotonic())

    def _delay_s(self) -> float:
        """Doubled with every failure; a random part keeps a street of sensors from calling all at once."""
        delay_s = min(_FIRST_DELAY_S * 2.0 ** min(self._n_failures - 1, 30), _MAX_DELAY_S)
        return delay_s * (1 + self._uniform()) / 2


def _is_like_a_rival(error: Exception, lasted_s: float) -> bool:
    """Whether a connection ended as one does where another client comes with our id."""
    if isinstance(error, LostError):
        return not error.is_told and 0 <= lasted_s < _STABLE_S
    return isinstance(error, TakenOverError)


def _of_last_hour(times_s: deque[float], now_s: float) -> deque[float]:
    """The same deque, without what is older."""
    while times_s and now_s - times_s[0] > _HOUR_S:
        times_s.popleft()
    return times_s


def _stamped(queued: Queued) -> bytes:
    """The payload; where an event has waited, it says so. It may be one of another version of edgetag."""
    is_late = queued.waited_s is None or queued.waited_s > LATE_S
    if queued.kind != "tags" or not is_late:
        return queued.payload
    try:
        event = msgspec.json.decode(queued.payload, type=dict[str, Any])
    except ValueError:  # of msgspec, or in its strings: a bad disk; the courier will say so, too
        return queued.payload
    return msgspec.json.encode(event | {"late": True})
