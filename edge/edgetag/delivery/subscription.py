"""Messages on a broker's topics, in the order they come, for as long as somebody listens.

```
this thread    connection ── messages ─┐             lost: made anew 1 s … 30 s later
               lost, regained ─────────┴─ queue ── next() ── caller's thread
```
A caller who is slow loses messages, counted, rather than the connection.
"""

import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

import structlog
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgetag.contract.errors import EdgetagError, NetworkError
from edgetag.delivery.address import BrokerAddress
from edgetag.delivery.connection import BrokerClient, Connecting, connect, tls_context
from edgetag.delivery.network import MAX_PAYLOAD_BYTES

MAX_WAITING = 10_000  # messages, some 20 MB; what a fleet's sensors have retained comes all at once

_FIRST_DELAY_S = 1.0
_MAX_DELAY_S = 30.0  # somebody looks
_LEAVE_S = 1.0

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.subscription")


class Message(NamedTuple):
    """One message, as it came; `at_s` is when (UTC)."""

    topic: str
    payload: bytes
    retained: bool
    at_s: float


class Lost(NamedTuple):
    """The connection is lost, or could not be made again; the next attempt comes in `retry_s`."""

    reason: str
    retry_s: float


class Regained(NamedTuple):
    """The connection is there again, and what is retained comes again. What was said meanwhile is missed."""


class Missed(NamedTuple):
    """So many messages were left out, because they came faster than they were taken."""

    n: int


Arrival: TypeAlias = Message | Lost | Regained | Missed


class Subscription:
    """An ordinary subscriber. A lost connection is repaired for ever; the first one must be made at once.

    Args:
        address: the broker.
        how: to connect.
        filters: of topics, each with its QoS.
        is_patient: the first one, too, is tried for ever; `Regained` tells that it is there.
        max_waiting: most messages that wait for `next`.
        wait: for so many seconds, or until this is left.
        uniform: a random number from 0 to 1.
    """

    def __init__(
        self,
        address: BrokerAddress,
        how: Connecting,
        filters: Sequence[tuple[str, int]],
        *,
        is_patient: bool = False,
        max_waiting: int = MAX_WAITING,
        wait: Callable[[float], object] | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._address = address
        self._how = how
        self._filters = list(filters)
        self._is_patient = is_patient
        self._max_waiting = max_waiting
        self._leaving = threading.Event()
        self._wait = wait or self._leaving.wait
        self._uniform = uniform
        self._arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._client: BrokerClient | None = None
        self._thread = threading.Thread(target=self._run, name="edgetag-subscription", daemon=True)

        self._answer: list[ReasonCode] | None = None  # to the subscription; the thread's own, once it runs
        self._n_missed = 0  # written by the thread only
        self._n_missed_said = 0

    def __enter__(self) -> Self:
        """Connected and subscribed when it returns, or about to be if it is patient.

        Raises:
            InputError: a certificate or key cannot be used.
            NetworkError: the broker cannot be reached, or refuses the connection or every topic.
        """
        if self._is_patient:
            self._check_files()
        else:
            self._client = self._subscribed()
        self._thread.start()
        return self

    def next(self, timeout_s: float) -> Arrival | None:
        """What has come next; None if nothing does within `timeout_s`."""
        if n := self._n_missed - self._n_missed_said:
            self._n_missed_said += n
            return Missed(n)
        try:
            return self._arrivals.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect. A thread that hangs in an attempt to connect goes down with the process."""
        self._leaving.set()
        if self._client is not None:
            self._client.disconnect()
        self._thread.join(_LEAVE_S)

    def _check_files(self) -> None:
        if self._address.is_tls:
            tls_context(self._how.tls)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._client is None:
            self._client = self._subscribed_at_last()
        while self._client is not None:
            if self._leaving.is_set():  # while it was being connected
                self._client.break_off()
                return
            try:
                self._client.attend()
            except NetworkError as error:
                self._client = self._subscribed_again(str(error))
            else:
                return

    def _subscribed_at_last(self) -> BrokerClient | None:
        """At once, or after as many attempts as it takes; None if this is left before."""
        try:
            client = self._subscribed()
        except EdgetagError as error:
            return self._subscribed_again(str(error))
        self._arrivals.put(Regained())
        return client

    def _subscribed_again(self, reason: str) -> BrokerClient | None:
        """After as many attempts as it takes; None if this is left before."""
        delay_s = _FIRST_DELAY_S
        while True:
            jittered_s = delay_s * (0.5 + self._uniform() / 2)
            self._arrivals.put(Lost(reason, jittered_s))
            self._wait(jittered_s)
            if self._leaving.is_set():
                return None
            try:
                client = self._subscribed()
            except EdgetagError as error:  # a certificate's file may be gone, too
                reason, delay_s = str(error), min(2 * delay_s, _MAX_DELAY_S)
            else:
                self._arrivals.put(Regained())
                return client

    def _subscribed(self) -> BrokerClient:
        """A client of an id that nobody else has; messages may have come already."""
        client, _ = connect(self._address, f"edgetag-watch-{secrets.token_hex(4)}", self._how, self._prepare)
        try:
            self._subscribe(client)
        except NetworkError:
            client.break_off()
            raise
        return client

    def _prepare(self, client: Client) -> None:
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe

    def _subscribe(self, client: BrokerClient) -> None:
        self._answer = None
        client.subscribe(self._filters)
        deadline_s = time.monotonic() + self._how.timeout_s
        client.attend(until=lambda: self._answer is not None or time.monotonic() > deadline_s)
        if self._answer is None:
            raise NetworkError(f"{self._address} confirmed no subscription within {self._how.timeout_s:g} s")
        self._heed_answer(self._answer)

    def _heed_answer(self, answer: list[ReasonCode]) -> None:
        refused = {
            topic: str(reason).lower()
            for (topic, _), reason in zip(self._filters, answer, strict=False)
            if reason.is_failure
        }
        if len(refused) == len(self._filters):
            topic, reason = next(iter(refused.items()))
            raise NetworkError(
                f"{self._address} refused the subscription to {topic} ({reason}): may this user read it?"
            )
        if refused:
            _log.warning("subscription.refused", broker=str(self._address), topics=refused)

    def _on_subscribe(
        self, _client: Client, _userdata: object, _mid: int, answer: list[ReasonCode], _why: Properties | None
    ) -> None:
        self._answer = answer

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        if self._arrivals.qsize() >= self._max_waiting:
            self._n_missed += 1
            return
        payload = bytes(message.payload[: MAX_PAYLOAD_BYTES + 1])  # enough to tell that it is too long
        self._arrivals.put(Message(_topic(message), payload, message.retain, time.time()))


def _topic(message: MQTTMessage) -> str:
    try:
        return message.topic
    except UnicodeDecodeError:
        return ""  # nobody's
