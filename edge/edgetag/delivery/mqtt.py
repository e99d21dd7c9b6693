"""A thin publisher for replay: events to a broker, QoS 1, nothing kept on disk.

MQTT 5 first; 3.1.1 where the broker says it does not speak 5, hangs up on it, or is struck dumb by it
(amqtt reads a last will of MQTT 5 as one of 3.1.1 and waits for bytes that never come). paho's network
thread owns the socket, reconnects by itself and sends again what was not acknowledged; what happens
there reaches the caller's thread as notices in a queue, so every decision is taken in one thread.

The caller waits when too many events are unacknowledged: right for a replay, wrong for a
microphone, whose pipeline must never wait for the network: `background` waits in its place.
"""

import contextlib
import queue
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import structlog
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgetag.contract.errors import NetworkError
from edgetag.contract.event import (
    DEFAULT_PREFIX,
    Health,
    Info,
    SoundEvent,
    Status,
    TagsEvent,
    encode,
    timestamp,
)
from edgetag.delivery.address import BrokerAddress, check_prefix, check_sensor, parse_url
from edgetag.delivery.sink import Sink

__all__ = ["BrokerAddress", "MqttPublisher", "parse_url"]

_QOS = 1
_KEEPALIVE_S = 30
_MQTT5_PATIENCE_S = 2
_MAX_RECONNECT_DELAY_S = 8
_N_ANNOUNCEMENTS = 2  # status and info, said again after a reconnect

_EVENTS = ("tags", "events")  # topics whose every message counts; of the others the last one does

_Message = TagsEvent | SoundEvent | Status | Info | Health

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.mqtt")


# -- what the network thread tells the caller's ------------------------------------------------------


@dataclass(frozen=True)
class _Acknowledged:
    mid: int
    reason: ReasonCode


@dataclass(frozen=True)
class _Connected:
    receive_maximum: int


@dataclass(frozen=True)
class _Refused:
    reason: ReasonCode


@dataclass(frozen=True)
class _Lost:
    reason: ReasonCode


_Notice = _Acknowledged | _Connected | _Refused | _Lost


@dataclass(frozen=True)
class _Sent:
    """A message that is not acknowledged; `n_before` events were published before it."""

    kind: str
    n_before: int


class _NotUnderstoodError(NetworkError):
    """No CONNACK, or one that says the protocol is unknown: worth another try with an older one."""


# -- the publisher -----------------------------------------------------------------------------------


class MqttPublisher(Sink):
    """Publishes events on `<prefix>/<sensor>/tags` and `…/events`, and keeps `status` and `info` true.

    Entering connects and publishes the retained `status` and `info`. Leaving waits for every
    acknowledgement, publishes the retained `status` offline with the reason `farewell`, and disconnects.
    If that fails, or the process dies, the broker publishes the last will: offline, "connection lost".

    A lost connection is paho's to repair, if `reconnect`. Until what was in flight has been sent again
    and acknowledged, nothing new is sent: events stay in order.

    Args:
        address: the broker.
        sensor: topic level and client id; two publishers with one id throw each other out.
        info: published retained, now and after every reconnect, until `announce` gives another.
        boot_id: stands in every status.
        status: published retained, now and after every reconnect, until `state` gives another; "online",
            with the reasons "connected" and "reconnected", if absent.
        farewell: the reason of the last status.
        reconnect: or else a lost connection is an error of the next call, and the caller's to repair.
        connect_timeout_s: from the first attempt to the broker's answer, name resolution aside.
        ack_timeout_s: longest wait without any acknowledgement.
        max_in_flight: most unacknowledged events before `deliver` waits; fewer if the broker asks.

    Raises:
        InputError: `sensor` or `prefix` cannot be part of a topic.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        sensor: str,
        info: Info,
        boot_id: str,
        prefix: str = DEFAULT_PREFIX,
        status: Status | None = None,
        farewell: str = "ended",
        reconnect: bool = True,
        connect_timeout_s: float = 10,
        ack_timeout_s: float = 30,
        max_in_flight: int = 20,
    ) -> None:
        self._address = address
        self._sensor = check_sensor(sensor)
        self._topic = f"{check_prefix(prefix)}/{sensor}"
        self._info = info
        self._boot_id = boot_id
        self._status = status
        self._farewell = farewell
        self._reconnect = reconnect
        self._connect_timeout_s = connect_timeout_s
        self._ack_timeout_s = ack_timeout_s
        self._max_in_flight = max_in_flight

        self._client: Client | None = None
        self._notices: queue.SimpleQueue[_Notice] = queue.SimpleQueue()
        self._in_flight: dict[int, _Sent] = {}  # by message id, in the order they were sent
        self._n_events = 0
        self._progress_s = 0.0  # when something was last acknowledged, or sent with nothing in flight
        self._connected = False
        self._resending = False
        self._failed = False
        self._last_loss = ""
        # Read by the network thread:
        self._announce_again = False  # on a reconnect
        self._leaving = False

    def __enter__(self) -> Self:
        """Connect, and announce the sensor.

        Raises:
            NetworkError: the host is unknown, refuses, does not answer in time, does not like the
                credentials, or does not acknowledge the announcement.
        """
        self._client = self._connect()
        try:
            self._client.loop_start()
            self._wait_until(lambda: self._connected)
            for kind, message in self._announcement("connected"):
                self._publish(kind, message, retain=True)
            self._wait_until(lambda: not self._in_flight)
            self._announce_again = True
        except BaseException:
            self._abandon()
            raise
        return self

    def deliver(self, event: TagsEvent) -> None:
        """Publish one event, after waiting for room among the unacknowledged.

        Raises:
            NetworkError: the broker refused an event, or acknowledged nothing for `ack_timeout_s`.
        """
        self._wait_until(self._may_publish)
        self._publish("tags", event)

    def sound(self, event: SoundEvent) -> None:
        """Publish the beginning or the end of a sound, in order with the events.

        Raises:
            NetworkError: as `deliver`.
        """
        self._wait_until(self._may_publish)
        self._publish("events", event)

    def state(self, status: Status) -> None:
        """Replace the retained `status`, in order with the events; it is said again after a reconnect.

        Raises:
            NetworkError: as `deliver`.
        """
        self._status = status
        self._wait_until(self._may_publish)
        self._publish("status", status, retain=True)

    def announce(self, info: Info) -> None:
        """Replace the retained `info`, in order with the events.

        Raises:
            NetworkError: as `deliver`.
        """
        self._info = info
        self._wait_until(self._may_publish)
        self._publish("info", info, retain=True)

    def report(self, health: Health) -> None:
        """Publish once, unacknowledged; not at all while there is no connection."""
        if self._connected:
            self._send(self._the_client, "health", health, retain=False, qos=0)

    def unconfirmed(self) -> int:
        """How many of the latest events may not have arrived: all from the first unacknowledged one on.

        Raises:
            NetworkError: as `deliver`.
        """
        while not self._notices.empty():
            self._heed(self._notices.get())
        if self._in_flight and time.monotonic() - self._progress_s > self._ack_timeout_s:
            raise self._failure(self._silence_of_broker())
        in_flight = (sent.n_before for sent in self._in_flight.values() if sent.kind in _EVENTS)
        return self._n_events - next(in_flight, self._n_events)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for every acknowledgement, say farewell, disconnect; after an error of its own, just let go.

        Raises:
            NetworkError: as `deliver`, unless another error is on its way already.
        """
        try:
            if not self._failed:
                self._end()
        except NetworkError as error:
            if exc is None:
                raise
            _log.warning("mqtt.not_ended", broker=str(self._address), reason=str(error))
        finally:
            if self._client is not None:
                self._abandon()

    def _end(self) -> None:
        self._wait_until(lambda: self._connected and not self._in_flight)
        self._announce_again = False  # or "online" might have the last word after a reconnect
        self._publish("status", self._status_now("offline", self._farewell), retain=True)
        self._wait_until(lambda: not self._in_flight)
        self._leaving = True
        self._the_client.disconnect()
        self._release()
        _log.info("mqtt.disconnected", broker=str(self._address), sensor=self._sensor)

    def _abandon(self) -> None:
        """Break the connection without a word, so that the broker publishes the last will."""
        self._leaving = True
        if isinstance(sock := self._the_client.socket(), socket.socket):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._release()
        _log.info("mqtt.abandoned", broker=str(self._address), sensor=self._sensor)

    def _release(self) -> None:
        self._the_client.loop_stop()
        _silence(self._the_client)
        self._client = None
        self._connected = False

    # -- connecting ------------------------------------------------------------------------------

    def _connect(self) -> Client:
        deadline_s = time.monotonic() + self._connect_timeout_s
        patience_s = min(_MQTT5_PATIENCE_S, self._connect_timeout_s / 2)
        try:
            return self._attempt(MQTTProtocolVersion.MQTTv5, deadline_s, patience_s)
        except _NotUnderstoodError:
            _log.info("mqtt.fallback", broker=str(self._address), version="3.1.1")
            return self._attempt(MQTTProtocolVersion.MQTTv311, deadline_s)

    def _attempt(
        self, protocol: MQTTProtocolVersion, deadline_s: float, patience_s: float = float("inf")
    ) -> Client:
        """A client whose connection the broker has accepted; its network thread does not run yet."""
        self._notices = queue.SimpleQueue()
        client = self._new_client(protocol)
        client.connect_timeout = max(deadline_s - time.monotonic(), 0.001)
        try:
            client.connect(self._address.host, self._address.port, _KEEPALIVE_S)
            self._heed_answer(self._answer(client, min(deadline_s, time.monotonic() + patience_s)))
        except BaseException as error:
            client.disconnect()
            _silence(client)
            if isinstance(error, OSError | UnicodeError):
                raise self._unreachable(error) from error
            raise
        return client

    def _new_client(self, protocol: MQTTProtocolVersion) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._sensor,
            protocol=protocol,
            reconnect_on_failure=self._reconnect,
        )
        client.username_pw_set(self._address.user, self._address.password)
        client.reconnect_delay_set(1, _MAX_RECONNECT_DELAY_S)
        client.max_inflight_messages = 0  # bounded here, by deliver(), not by a second queue in paho
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        # Nobody can put the moment of loss into a message written now: `since` is when it could begin.
        will = self._status_now("offline", "connection lost")
        properties = _properties(client, PacketTypes.WILLMESSAGE, will.schema)
        client.will_set(f"{self._topic}/status", encode(will), _QOS, retain=True, properties=properties)
        return client

    def _answer(self, client: Client, deadline_s: float) -> _Notice | None:
        """The broker's first word, if in time; read in this thread, for paho's own would retry a refusal."""
        while self._notices.empty():
            sock, left_s = client.socket(), deadline_s - time.monotonic()
            if sock is None or left_s <= 0 or not select.select([sock], [], [], left_s)[0]:
                return None
            client.loop_read()
        return self._notices.get()

    def _heed_answer(self, answer: _Notice | None) -> None:
        match answer:
            case None:
                raise _NotUnderstoodError(
                    f"{self._address} did not answer within {self._connect_timeout_s:g} s"
                )
            case _Lost():
                raise _NotUnderstoodError(f"{self._address} hung up without an answer: is it an MQTT broker?")
            case _Refused(reason) if str(reason) == "Unsupported protocol version":
                raise _NotUnderstoodError(f"{self._address} speaks none of MQTT 5, 3.1.1 and 3.1")
            case _Refused(reason):
                raise NetworkError(self._refusal(reason))
            case _:
                self._heed(answer)

    def _refusal(self, reason: ReasonCode) -> str:
        hint = ""
        if str(reason) in ("Bad user name or password", "Not authorized"):
            hint = ": check user and password" if self._address.user else ": it wants a user and a password"
        return f"{self._address} refused the connection ({str(reason).lower()}){hint}"

    def _unreachable(self, error: OSError | UnicodeError) -> NetworkError:
        match error:
            case socket.gaierror() | UnicodeError():
                return NetworkError(
                    f"cannot find the host of {self._address}: is the name right, and is there a network?"
                )
            case ConnectionRefusedError():
                return NetworkError(f"nothing listens at {self._address}: is the broker running?")
            case TimeoutError():
                return NetworkError(f"{self._address} did not answer within {self._connect_timeout_s:g} s")
            case _:
                return NetworkError(f"cannot reach {self._address}: {error.strerror or error}")

    # -- publishing, in the caller's thread ---------------------------------------------------------

    def _publish(self, kind: str, message: _Message, *, retain: bool = False) -> None:
        if not self._in_flight:
            self._progress_s = time.monotonic()
        message_id = self._send(self._the_client, kind, message, retain=retain)
        self._in_flight[message_id] = _Sent(kind, self._n_events)
        self._n_events += kind in _EVENTS

    def _send(self, client: Client, kind: str, message: _Message, *, retain: bool, qos: int = _QOS) -> int:
        """Hand to paho, which sends it again after a reconnect if need be; returns the message id."""
        properties = _properties(client, PacketTypes.PUBLISH, message.schema)
        return client.publish(f"{self._topic}/{kind}", encode(message), qos, retain, properties).mid

    def _announcement(self, reason: str) -> list[tuple[str, Status | Info]]:
        return [("status", self._status or self._status_now("online", reason)), ("info", self._info)]

    def _status_now(self, state: Literal["online", "offline"], reason: str) -> Status:
        return Status(state=state, reason=reason, boot_id=self._boot_id, since=timestamp(time.time()))

    def _may_publish(self) -> bool:
        return self._connected and not self._resending and len(self._in_flight) < self._max_in_flight

    def _wait_until(self, done: Callable[[], bool]) -> None:
        """Take in every notice, then more until `done()`; without progress for `ack_timeout_s`, give up."""
        deadline_s = time.monotonic() + self._ack_timeout_s
        while not (self._notices.empty() and done()):
            try:
                notice = self._notices.get(timeout=max(deadline_s - time.monotonic(), 0))
            except queue.Empty:
                raise self._failure(self._silence_of_broker()) from None
            if self._heed(notice):
                deadline_s = time.monotonic() + self._ack_timeout_s

    def _heed(self, notice: _Notice) -> bool:
        """Take in one notice; true for an acknowledgement: only that is progress, reconnecting is not."""
        match notice:
            case _Acknowledged(mid, reason):
                return self._heed_acknowledgement(self._in_flight.pop(mid, None), reason)
            case _Connected(receive_maximum):
                self._connected = True
                self._max_in_flight = max(1, min(self._max_in_flight, receive_maximum - _N_ANNOUNCEMENTS))
            case _Refused(reason):
                self._last_loss = f"refused: {reason}"
            case _Lost(reason):
                self._heed_loss(reason)
        return False

    def _heed_acknowledgement(self, sent: _Sent | None, reason: ReasonCode) -> bool:
        if reason.is_failure:
            what = "the announcement" if sent is None else sent.kind
            raise self._failure(f"{self._address} did not accept {what} on {self._topic}: {reason}")
        self._resending = self._resending and bool(self._in_flight)
        if sent is not None:
            self._progress_s = time.monotonic()
        return sent is not None

    def _heed_loss(self, reason: ReasonCode) -> None:
        if str(reason) == "Session taken over":
            raise self._failure(
                f"another client connected to {self._address} as {self._sensor!r}:"
                " every publisher needs a sensor id of its own"
            )
        if self._connected:
            self._last_loss = str(reason)
        self._connected = False
        if not self._reconnect:
            lost = f"lost the connection to {self._address} ({self._last_loss.lower()})"
            raise self._failure(f"{lost}: {self._unacknowledged()}")
        self._resending = bool(self._in_flight)

    def _failure(self, message: str) -> NetworkError:
        """What has gone wrong here will not get better by waiting for it again at the exit."""
        self._failed = True
        return NetworkError(message)

    def _silence_of_broker(self) -> str:
        rest = self._unacknowledged()
        if self._connected:
            return f"{self._address} acknowledged nothing for {self._ack_timeout_s:g} s: {rest}"
        return (
            f"lost the connection to {self._address} ({self._last_loss.lower()})"
            f" and did not get it back within {self._ack_timeout_s:g} s: {rest}"
        )

    def _unacknowledged(self) -> str:
        n_events = sum(sent.kind in _EVENTS for sent in self._in_flight.values())
        return f"{n_events} event{'' if n_events == 1 else 's'} not acknowledged"

    @property
    def _the_client(self) -> Client:
        assert self._client is not None, "use the publisher in a with statement"
        return self._client

    # -- paho's callbacks, in its thread ---------------------------------------------------------

    def _on_connect(
        self, client: Client, _userdata: object, _flags: object, reason: ReasonCode, answer: Properties | None
    ) -> None:
        if reason.is_failure:
            self._log_trouble("mqtt.refused", reason)
            self._notices.put(_Refused(reason))
            return
        if self._leaving:
            client.disconnect()
            return
        version = "5" if client.protocol == MQTTProtocolVersion.MQTTv5 else "3.1.1"
        _log.info("mqtt.connected", broker=str(self._address), sensor=self._sensor, version=version)
        if self._announce_again:  # the last will has been published meanwhile, or the broker has forgotten us
            for kind, message in self._announcement("reconnected"):
                self._send(client, kind, message, retain=True)
        self._notices.put(_Connected(getattr(answer, "ReceiveMaximum", 0xFFFF)))

    def _on_disconnect(
        self, _client: Client, _userdata: object, _flags: object, reason: ReasonCode, _why: Properties | None
    ) -> None:
        if not self._leaving:
            self._log_trouble("mqtt.lost", reason)
            self._notices.put(_Lost(reason))

    def _log_trouble(self, what: str, reason: ReasonCode) -> None:
        """While still connecting, or if not to connect again, trouble ends in an exception."""
        if self._client is not None and self._reconnect:
            _log.warning(what, broker=str(self._address), reason=str(reason))

    def _on_publish(
        self, _client: Client, _userdata: object, mid: int, reason: ReasonCode, _why: Properties | None
    ) -> None:
        self._notices.put(_Acknowledged(mid, reason))


def _properties(client: Client, packet_type: int, schema: str) -> Properties | None:
    """MQTT 5's description of a payload: JSON, and by which schema. 3.1.1 has none."""
    if client.protocol != MQTTProtocolVersion.MQTTv5:
        return None
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]
    properties.PayloadFormatIndicator = 1  # UTF-8
    properties.ContentType = "application/json"
    properties.UserProperty = ("schema", schema)
    return properties


def _silence(client: Client) -> None:
    """Cut the references back to the publisher: without the cycle, paho closes its sockets at once."""
    client.on_connect = client.on_disconnect = client.on_publish = None
