"""The publisher: events to a broker, QoS 1, nothing kept on disk.

A thread of its own owns the socket, and paho in it sends again what was not acknowledged before a
connection was lost. What happens there reaches the caller's thread as notices in a queue, so every
decision is taken in one thread.

For a replay it is the sink: whoever delivers waits when too many events are unacknowledged, which is wrong
for a microphone, whose pipeline must never wait for the network. There it is the courier of `background`,
which has the events on disk, waits in the pipeline's place, and is told what became of each of them.
"""

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import msgspec
import structlog
from paho.mqtt.client import Client, MQTTMessage
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
from edgetag.delivery.connection import (
    BrokerClient,
    Connecting,
    Limits,
    LostError,
    TakenOverError,
    connect,
)
from edgetag.delivery.sink import Forwarded, Settled, Sink

__all__ = ["BrokerAddress", "MqttPublisher", "parse_url"]

_QOS = 1
_FIRST_RECONNECT_DELAY_S = 1.0
_MAX_RECONNECT_DELAY_S = 8.0
_MAX_HEARD = 100  # messages nobody has taken; the oldest go

_EVENTS = ("tags", "events")  # topics whose every message counts; of the others the last one does
# Refusals that say nothing against the message: the same one may be taken later.
_TRANSIENT = ("Packet identifier in use", "Quota exceeded")

_Message = TagsEvent | SoundEvent | Status | Info | Health

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.mqtt")


# -- what the network thread tells the caller's ------------------------------------------------------


@dataclass(frozen=True)
class _Acknowledged:
    mid: int
    reason: ReasonCode


@dataclass(frozen=True)
class _Connected:
    limits: Limits


@dataclass(frozen=True)
class _StillAway:
    """A lost connection could not be had again this time."""

    error: NetworkError


_Notice = _Acknowledged | _Connected | _StillAway | NetworkError  # the last one ends a connection


@dataclass(frozen=True)
class _Packet:
    """A message as it is published; `id` is its sender's number for it, None for our own."""

    kind: str
    payload: bytes
    schema: str
    retain: bool = False
    id: int | None = None


class _AnyMessage(msgspec.Struct):
    """What every message says of itself."""

    schema: str


# -- the publisher -----------------------------------------------------------------------------------


class MqttPublisher(Sink):
    """Publishes events on `<prefix>/<sensor>/tags` and `…/events`, and keeps `status` and `info` true.

    Entering connects and publishes the retained `status` and `info`. Leaving waits for every
    acknowledgement, publishes the retained `status` offline with the reason `farewell`, and disconnects.
    If that fails, or the process dies, the broker publishes the last will: offline, "connection lost".

    A lost connection is repaired here, if `reconnect`. What was in flight is sent again before anything
    new: events stay in order.

    It is a `Sink`, for which an event that the broker refuses is an error, and a `Courier`
    (`reconnect=False`), which settles it.

    Args:
        address: the broker.
        sensor: topic level and client id; two publishers with one id throw each other out.
        info: published retained, now and after every reconnect, until `announce` gives another.
        boot_id: stands in every status.
        status: published retained, now and after every reconnect, until `state` gives another; "online",
            with the reasons "connected" and "reconnected", if absent.
        farewell: the reason of the last status.
        reconnect: or else a lost connection is an error of the next call, and the caller's to repair.
        connect_timeout_s: instead of `how.timeout_s`.
        ack_timeout_s: longest wait without any acknowledgement.
        max_in_flight: most unacknowledged events before `deliver` waits; fewer if the broker asks.
        how: to connect.
        will_delay_s: how long after a lost connection the last will is published, but not after
            `how.session_expiry_s`, and not at all if a publisher for `sensor` connects before. MQTT 5 only.
        message_expiry_s: how long the broker keeps an event for a subscriber who is away; None is for ever.
            MQTT 5 only.
        subscribe: filters of topics to hear.

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
        connect_timeout_s: float | None = None,
        ack_timeout_s: float = 30,
        max_in_flight: int = 20,
        how: Connecting = Connecting(),  # noqa: B008 - frozen
        will_delay_s: int = 0,
        message_expiry_s: int | None = None,
        subscribe: Sequence[str] = (),
    ) -> None:
        self._address = address
        self._sensor = check_sensor(sensor)
        self._topic = f"{check_prefix(prefix)}/{sensor}"
        self._info = info
        self._boot_id = boot_id
        self._status = status
        self._farewell = farewell
        self._reconnect = reconnect
        self._ack_timeout_s = ack_timeout_s
        self._max_in_flight = max_in_flight
        self._how = (
            how if connect_timeout_s is None else dataclasses.replace(how, timeout_s=connect_timeout_s)
        )
        self._will_delay_s = will_delay_s
        self._message_expiry_s = message_expiry_s
        self._subscribe = subscribe

        self._client: BrokerClient | None = None
        self._thread: threading.Thread | None = None
        self._limits = Limits()
        self._in_flight: dict[int, _Packet] = {}  # by message id, in the order they were sent
        self._settled: list[Settled] = []  # that nobody has asked for
        self._owed: list[_Packet] = []  # the announcement, as far as it is not sent
        self._progress_s = 0.0  # when something was last acknowledged, or sent with nothing in flight
        self._connected = False
        self._announce_again = False  # on a reconnect
        self._error: NetworkError | None = None
        self._has_accepted = False  # a forwarded message, over this connection
        self._last_loss = ""
        # Shared with the network thread:
        self._notices: queue.SimpleQueue[_Notice] = queue.SimpleQueue()
        self._heard: deque[tuple[str, bytes]] = deque(maxlen=_MAX_HEARD)
        self._leaving = threading.Event()

    def __enter__(self) -> Self:
        """Connect, and announce the sensor.

        Raises:
            InputError: a certificate or key cannot be used.
            NetworkError: the host is unknown, refuses, does not answer in time, is not to be trusted, does
                not like the credentials, or does not acknowledge the announcement.
        """
        self._client, limits = connect(self._address, self._sensor, self._how, self._prepare)
        self._welcome(self._client, limits)
        self._thread = threading.Thread(
            target=self._attend, args=(self._client,), name="edgetag-mqtt", daemon=True
        )
        self._thread.start()
        try:
            self._owed = self._announcement("connected")
            self._wait_until(lambda: self._connected and not (self._owed or self._in_flight))
            self._announce_again = True
        except BaseException:
            self._abandon()
            raise
        return self

    # -- as a sink ---------------------------------------------------------------------------------

    def deliver(self, event: TagsEvent) -> None:
        """Publish one event, after waiting for room among the unacknowledged.

        Raises:
            NetworkError: the broker refused an event, or acknowledged nothing for `ack_timeout_s`.
        """
        self._publish(_packet("tags", event))

    def sound(self, event: SoundEvent) -> None:
        """Publish the beginning or the end of a sound, in order with the events.

        Raises:
            NetworkError: as `deliver`.
        """
        self._publish(_packet("events", event))

    def state(self, status: Status) -> None:
        """Replace the retained `status`, in order with the events; it is said again after a reconnect.

        Raises:
            NetworkError: as `deliver`.
        """
        self._status = status
        self._publish(_packet("status", status, retain=True))

    def announce(self, info: Info) -> None:
        """Replace the retained `info`, in order with the events.

        Raises:
            NetworkError: as `deliver`.
        """
        self._info = info
        self._publish(_packet("info", info, retain=True))

    def report(self, health: Health) -> None:
        """Publish once, unacknowledged; not at all while there is no connection."""
        packet = _packet("health", health)
        self._say(f"{self._topic}/health", packet.payload, self._properties(packet), retain=False)

    # -- as a courier ------------------------------------------------------------------------------

    def forward(self, id: int, kind: Forwarded, payload: bytes) -> None:
        """Publish one encoded message, after waiting for room among the unacknowledged.

        Raises:
            NetworkError: the connection is lost, or the broker acknowledged nothing for `ack_timeout_s`.
        """
        try:
            schema = msgspec.json.decode(payload, type=_AnyMessage).schema
        except ValueError as error:  # of msgspec, or in its strings
            self._settled.append(Settled(id, f"a message on {kind} names no schema: {error}"))
            return
        packet = _Packet(kind, payload, schema, id=id)
        if excess := self._excess(packet):
            self._settled.append(Settled(id, excess))
        else:
            self._publish(packet)

    def settled(self) -> list[Settled]:
        """What was acknowledged or refused since the last call; what failed after that is the next call's.

        Raises:
            NetworkError: as `forward`.
        """
        try:
            self._look()
        except NetworkError:
            if not self._settled:
                raise
        settled, self._settled = self._settled, []
        return settled

    def say(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Publish once on any topic, unacknowledged; not at all while there is no connection."""
        self._say(topic, payload, None, retain=retain)

    def heard(self) -> list[tuple[str, bytes]]:
        """What came on the topics of `subscribe` since the last call: the latest, if it was much."""
        return [self._heard.popleft() for _ in range(len(self._heard))]

    # -- leaving -----------------------------------------------------------------------------------

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for every acknowledgement, say farewell, disconnect; after an error of its own, just let go.

        Raises:
            NetworkError: as `deliver`, unless another error is on its way already.
        """
        try:
            if self._error is None:
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
        self._publish(_packet("status", self._status_now("offline", self._farewell), retain=True))
        self._wait_until(lambda: not self._in_flight)
        self._leaving.set()
        self._the_client.disconnect()
        self._release()
        _log.info("mqtt.disconnected", broker=str(self._address), sensor=self._sensor)

    def _abandon(self) -> None:
        """Break the connection without a word, so that the broker publishes the last will."""
        self._leaving.set()
        self._the_client.break_off()
        self._release()
        _log.info("mqtt.abandoned", broker=str(self._address), sensor=self._sensor)

    def _release(self) -> None:
        assert self._thread is not None
        self._thread.join()
        self._the_client.on_publish = None  # without a reference back to us, it goes as soon as we let it go
        self._client = None
        self._connected = False

    # -- publishing, in the caller's thread ---------------------------------------------------------

    def _publish(self, packet: _Packet) -> None:
        """Hand to paho as soon as there is room, which sends it again after a reconnect if need be."""
        self._wait_until(self._may_publish)
        self._send(packet)

    def _send(self, packet: _Packet) -> None:
        if excess := self._excess(packet):
            raise self._failure(NetworkError(excess))
        if not self._in_flight:
            self._progress_s = time.monotonic()
        topic, properties = f"{self._topic}/{packet.kind}", self._properties(packet)
        message = self._the_client.publish(topic, packet.payload, _QOS, packet.retain, properties)
        self._in_flight[message.mid] = packet

    def _say(self, topic: str, payload: bytes, properties: Properties | None, *, retain: bool) -> None:
        if not self._connected:
            return
        if excess := self._limits.excess(topic, payload, properties):
            _log.warning("mqtt.unsaid", topic=topic, reason=f"{self._address} {excess}")
            return
        self._the_client.publish(topic, payload, 0, retain, properties)

    def _excess(self, packet: _Packet) -> str:
        """Why the broker would break the connection off at this message; "" if it would not."""
        topic = f"{self._topic}/{packet.kind}"
        excess = self._limits.excess(topic, packet.payload, self._properties(packet))
        return f"{self._address} does not take {packet.kind} on {self._topic}: {excess}" if excess else ""

    def _announcement(self, reason: str) -> list[_Packet]:
        status = self._status or self._status_now("online", reason)
        return [_packet("status", status, retain=True), _packet("info", self._info, retain=True)]

    def _status_now(self, state: Literal["online", "offline"], reason: str) -> Status:
        return Status(state=state, reason=reason, boot_id=self._boot_id, since=timestamp(time.time()))

    def _properties(self, packet: _Packet) -> Properties | None:
        if not self._the_client.is_mqtt5:
            return None
        properties = _described(PacketTypes.PUBLISH, packet.schema)
        if self._message_expiry_s is not None and packet.kind in _EVENTS:
            properties.MessageExpiryInterval = self._message_expiry_s
        return properties

    def _may_send(self) -> bool:
        window = min(self._max_in_flight, self._limits.receive_maximum)
        return self._connected and len(self._in_flight) < window

    def _may_publish(self) -> bool:
        return self._may_send() and not self._owed

    # -- what has happened meanwhile, in the caller's thread ------------------------------------------

    def _look(self) -> None:
        """Take in every notice; raise what is wrong, also if the broker has been silent for too long."""
        self._check()
        while not self._notices.empty():
            self._heed(self._notices.get())
        self._send_owed()
        if self._in_flight and time.monotonic() - self._progress_s > self._ack_timeout_s:
            raise self._failure(self._silence_of_broker())

    def _wait_until(self, done: Callable[[], bool]) -> None:
        """Take in every notice, then more until `done()`; without progress for `ack_timeout_s`, give up."""
        self._check()
        deadline_s = time.monotonic() + self._ack_timeout_s
        while True:
            if self._notices.empty():
                self._send_owed()
                if done():
                    return
            try:
                notice = self._notices.get(timeout=max(deadline_s - time.monotonic(), 0))
            except queue.Empty:
                raise self._failure(self._silence_of_broker()) from None
            if self._heed(notice):
                deadline_s = time.monotonic() + self._ack_timeout_s

    def _send_owed(self) -> None:
        while self._owed and self._may_send():
            self._send(self._owed.pop(0))

    def _heed(self, notice: _Notice) -> bool:
        """Take in one notice; true for an acknowledgement: only that is progress, reconnecting is not."""
        match notice:
            case _Acknowledged(mid, reason):
                return self._heed_acknowledgement(self._in_flight.pop(mid, None), reason)
            case _Connected(limits):
                self._limits, self._connected = limits, True
                if self._announce_again:  # the last will is out, or the broker has forgotten us
                    self._owed = self._announcement("reconnected")
            case _StillAway(error):
                self._last_loss = str(error)
            case LostError():
                self._heed_loss(notice)
            case TakenOverError():
                raise self._failure(notice)
        return False

    def _heed_acknowledgement(self, sent: _Packet | None, reason: ReasonCode) -> bool:
        if sent is None:  # what was only said
            return False
        refusal = ""
        if reason.is_failure:
            refusal = f"{self._address} did not accept {sent.kind} on {self._topic}: {reason}"
            # Who could publish until now is not to blame for each message.
            is_revoked = self._has_accepted and str(reason) == "Not authorized"
            if sent.id is None or is_revoked or str(reason) in _TRANSIENT:
                raise self._failure(NetworkError(refusal))
        if sent.id is not None:
            self._settled.append(Settled(sent.id, refusal))
            self._has_accepted |= not refusal
        self._progress_s = time.monotonic()
        return True

    def _heed_loss(self, loss: LostError) -> None:
        self._last_loss = str(loss)
        self._connected = False
        if not self._reconnect:
            lost = LostError(f"{loss}: {self._unacknowledged()}")
            lost.is_told = loss.is_told
            raise self._failure(lost)

    def _check(self) -> None:
        """What has gone wrong here will not get better by asking again."""
        if self._error is not None:
            raise self._error

    def _failure(self, error: NetworkError) -> NetworkError:
        self._error = error
        return error

    def _silence_of_broker(self) -> NetworkError:
        rest = self._unacknowledged()
        if self._connected:
            return NetworkError(f"{self._address} acknowledged nothing for {self._ack_timeout_s:g} s: {rest}")
        return NetworkError(
            f"{self._last_loss} and did not get it back within {self._ack_timeout_s:g} s: {rest}"
        )

    def _unacknowledged(self) -> str:
        n_events = sum(sent.kind in _EVENTS for sent in self._in_flight.values())
        return f"{n_events} event{'' if n_events == 1 else 's'} not acknowledged"

    @property
    def _the_client(self) -> BrokerClient:
        assert self._client is not None, "use the publisher in a with statement"
        return self._client

    # -- the network thread --------------------------------------------------------------------------

    def _attend(self, client: BrokerClient) -> None:
        """The connection, and if `reconnect` the ones after it."""
        while True:
            try:
                client.attend()
                return
            except NetworkError as error:
                self._notices.put(_bare(error))
                if not (self._reconnect and isinstance(error, LostError)):
                    return
                _log.warning("mqtt.lost", broker=str(self._address), reason=str(error))
            if not self._connect_again(client):
                return

    def _connect_again(self, client: BrokerClient) -> bool:
        """False if this is left before."""
        delay_s = _FIRST_RECONNECT_DELAY_S
        while not self._leaving.wait(delay_s):
            try:
                limits = client.begin()
            except NetworkError as error:
                self._notices.put(_StillAway(error))
                _log.warning("mqtt.still_away", broker=str(self._address), reason=str(error))
                delay_s = min(2 * delay_s, _MAX_RECONNECT_DELAY_S)
            else:
                self._welcome(client, limits)
                return True
        return False

    def _welcome(self, client: BrokerClient, limits: Limits) -> None:
        """Every connection begins so; no loop is running yet."""
        version = "5" if client.is_mqtt5 else "3.1.1"
        _log.info("mqtt.connected", broker=str(self._address), sensor=self._sensor, version=version)
        for topic in self._subscribe:
            client.subscribe(topic, _QOS)
        self._notices.put(_Connected(limits))

    def _prepare(self, client: Client) -> None:
        assert isinstance(client, BrokerClient)
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        for topic in self._subscribe:  # a session taken up again may bring what an older one subscribed to
            client.message_callback_add(topic, self._on_message)
        # Nobody can put the moment of loss into a message written now: `since` is when it could begin.
        will = _packet("status", self._status_now("offline", "connection lost"), retain=True)
        properties = None
        if client.is_mqtt5:
            properties = _described(PacketTypes.WILLMESSAGE, will.schema)
            properties.WillDelayInterval = self._will_delay_s
        client.will_set(f"{self._topic}/status", will.payload, _QOS, retain=True, properties=properties)

    def _on_publish(
        self, _client: Client, _userdata: object, mid: int, reason: ReasonCode, _why: Properties | None
    ) -> None:
        self._notices.put(_Acknowledged(mid, reason))

    def _on_subscribe(
        self,
        _client: Client,
        _userdata: object,
        _mid: int,
        reasons: list[ReasonCode],
        _why: Properties | None,
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                _log.warning("mqtt.deaf", broker=str(self._address), reason=str(reason), to=self._subscribe)

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        self._heard.append((message.topic, bytes(message.payload)))


def _bare(error: NetworkError) -> NetworkError:
    """Without the frames it came through, which would keep the client and its sockets for long."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _packet(kind: str, message: _Message, *, retain: bool = False) -> _Packet:
    return _Packet(kind, encode(message), message.schema, retain)


def _described(packet_type: int, schema: str) -> Properties:
    """What a payload is: JSON, and by which schema."""
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]
    properties.PayloadFormatIndicator = 1  # UTF-8
    properties.ContentType = "application/json"
    properties.UserProperty = ("schema", schema)
    return properties
