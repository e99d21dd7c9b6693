"""Honest stand-ins for what tests cannot have: a street, and a broker that misbehaves on demand."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

from edgetag.contract.event import (
    Audio,
    BundleHealth,
    Clock,
    Health,
    Info,
    Level,
    SoundEvent,
    State,
    Status,
    TagsEvent,
    timestamp,
)
from edgetag.contract.taxonomy import SONYC_UST

START_UTC_S = 1_795_341_600.0  # 2026-11-22T10:00:00Z
HOP_S = 10.0

_COARSE = {"1": 0.12, "2": 0.03, "3": 0.08, "4": 0.01, "5": 0.04, "6": 0.22, "7": 0.91, "8": 0.02}
_FINE = dict.fromkeys(SONYC_UST.fine_ids, 0.05) | {"3-1": 0.08, "7-1": 0.80, "7-2": 0.41, "8-1": 0.02}


def tags_event(seq: int = 0, **changes: object) -> TagsEvent:
    """The `seq`-th window of a calm street where someone talks; `changes` replace fields of the event."""
    start_utc_s = START_UTC_S + seq * HOP_S
    event = TagsEvent(
        sensor="b827eb42bd4a",
        boot="01JD9Z6Q5V3M8X2N7R4T0KHCWE",
        seq=seq,
        start=timestamp(start_utc_s),
        end=timestamp(start_utc_s + HOP_S),
        clock=Clock(synced=True),
        verdict="tagged",
        audio=Audio(rate_hz=44_100, valid=1.0, overruns=0, clipped=0.0),
        level=Level(laeq_db=63.2, lafmax_db=78.4, la10_db=66.0, la90_db=55.1, calibrated=True),
        coarse=dict(_COARSE),
        fine=dict(_FINE),
        refined=["7"],
        active=["7", "7-1"],
        model="starter@sha256:0123456789ab",
        lag_s=0.2,
    )
    return msgspec.structs.replace(event, **changes)


def sound_event(seq: int = 0, **changes: object) -> SoundEvent:
    """Message `seq` on `events`: a dog begins to bark; `changes` replace fields of it."""
    at = timestamp(START_UTC_S + seq * HOP_S)
    event = SoundEvent(
        sensor="b827eb42bd4a",
        boot="01JD9Z6Q5V3M8X2N7R4T0KHCWE",
        seq=seq,
        kind="start",
        id=f"01JD9Z6Q5V3M8X2N7R4T0KHCWE/{seq}",
        tag="8",
        name="dog",
        start=at,
        end=timestamp(START_UTC_S + seq * HOP_S + 10.0),
        duration_s=10.0,
        peak=0.91,
        peak_at=at,
        model="starter@sha256:0123456789ab",
    )
    return msgspec.structs.replace(event, **changes)


def sensor_status(state: State = "online", reason: str = "as asked") -> Status:
    """The state of a sensor since it began to hear."""
    return Status(
        state=state, reason=reason, boot_id="01JD9Z6Q5V3M8X2N7R4T0KHCWE", since=timestamp(START_UTC_S)
    )


def sensor_health() -> Health:
    """How a sensor of a minute's age is."""
    return Health(
        sensor="b827eb42bd4a",
        boot="01JD9Z6Q5V3M8X2N7R4T0KHCWE",
        at=timestamp(START_UTC_S + 60),
        windows=6,
        uptime_s=60.0,
        cpu_s=1.5,
        rss_mb=120.0,
        bundle=BundleHealth("starter@sha256:0123456789ab", "ok", "as asked", timestamp(START_UTC_S)),
    )


def bundle_info() -> Info:
    """What a sensor with the starter bundle says about itself."""
    return Info(
        edgetag="0.1.0",
        bundle="starter",
        bundle_sha256="0123456789ab" + 52 * "0",
        variant="int8",
        taxonomy=SONYC_UST.name,
        tags={tag.id: tag.name for tag in SONYC_UST.tags.values()},
        thresholds=dict.fromkeys(SONYC_UST.ids, 0.5),
        window_s=10.0,
        hop_s=HOP_S,
    )


# -- a broker on a real socket ------------------------------------------------------------------------

HANG_UP = None
NOTHING = b""
PONG = b"\xd0\x00"


class LastWords(bytes):
    """To be sent before hanging up."""


@dataclass(frozen=True)
class Published:
    """A PUBLISH as it came in. `level` is the protocol level of its connection: 4 (3.1.1) or 5."""

    level: int
    topic: str
    message_id: int
    payload: bytes
    retain: bool
    duplicate: bool
    properties: bytes = b""

    @property
    def kind(self) -> str:
        return self.topic.rpartition("/")[2]

    @property
    def seq(self) -> int | None:
        """The event's sequence number; None for other messages."""
        return msgspec.json.decode(self.payload, type=TagsEvent).seq if self.kind == "tags" else None


@dataclass(frozen=True)
class Subscribed:
    """A SUBSCRIBE as it came in."""

    level: int
    message_id: int
    topics: list[str]


Answer = Callable[[int], bytes | None]
OnSubscribe = Callable[[Subscribed], bytes | None]
OnPublish = Callable[[Published], bytes | None]


def accept(level: int) -> bytes:
    """CONNACK: welcome."""
    return b"\x20\x03\x00\x00\x00" if level == 5 else b"\x20\x02\x00\x00"


def refuse(mqtt5_code: int, mqtt311_code: int) -> Answer:
    """CONNACK: go away, because."""
    return lambda level: bytes([0x20, 3, 0, mqtt5_code, 0] if level == 5 else [0x20, 2, 0, mqtt311_code])


def accept_with(properties: bytes) -> Answer:
    """CONNACK of MQTT 5: welcome, on these conditions."""
    return lambda _level: bytes([0x20, 3 + len(properties), 0, 0, len(properties)]) + properties


def acknowledge(message: Published) -> bytes:
    """PUBACK."""
    return b"\x40\x02" + struct.pack("!H", message.message_id)


def reject(message: Published, code: int) -> bytes:
    """PUBACK of MQTT 5: arrived, and not taken."""
    return b"\x40\x03" + struct.pack("!HB", message.message_id, code)


def publish(topic: bytes, payload: bytes, level: int = 5) -> bytes:
    """PUBLISH of QoS 0, from the broker."""
    rest = struct.pack("!H", len(topic)) + topic + (b"\x00" if level == 5 else b"") + payload
    assert len(rest) < 128
    return bytes([0x30, len(rest)]) + rest


def grant(wish: Subscribed, code: int = 1) -> bytes:
    """SUBACK: every topic, with QoS 1 at most, or each refused by this code."""
    body = struct.pack("!H", wish.message_id) + (b"\x00" if wish.level == 5 else b"")
    body += bytes([code] * len(wish.topics))
    return bytes([0x90, len(body)]) + body


class FakeBroker:
    """Enough of a broker to go wrong: one client at a time, on a port of 127.0.0.1, a free one unless given.

    `answer`, `on_publish` and `on_subscribe` give the bytes to send for a CONNECT of a protocol level, a
    PUBLISH that wants an acknowledgement and a SUBSCRIBE: also `NOTHING`, `HANG_UP` or `LastWords`. They run
    in the broker's thread. A sign of life is answered with `pong`. With a `context` it speaks TLS.
    """

    def __init__(
        self,
        answer: Answer = accept,
        on_publish: OnPublish = acknowledge,
        port: int = 0,
        context: ssl.SSLContext | None = None,
        on_subscribe: OnSubscribe = grant,
        pong: bytes = PONG,
    ) -> None:
        self._pong = pong
        self._answer = answer
        self._on_subscribe = on_subscribe
        self._on_publish = on_publish
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", port))
        self._connection: socket.socket | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self.port: int = self._listener.getsockname()[1]
        self.levels: list[int] = []
        self.connects: list[bytes] = []  # all of a CONNECT after its length
        self.published: list[Published] = []
        self.subscribed: list[Subscribed] = []
        self.alpn: str | None = None
        self.goodbyes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping = True
        for sock in (self._listener, self._connection):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while not self._stopping:
            with contextlib.suppress(OSError, EOFError):
                self._connection, _ = self._listener.accept()
                with self._connection:
                    self._meet(self._connection)

    def _meet(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            if self._context is not None:
                secured = self._context.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
                self._connection = connection = stack.enter_context(secured)
                secured.do_handshake()
                self.alpn = secured.selected_alpn_protocol()
            self._serve(connection, stack.enter_context(connection.makefile("rb")).read)

    def _serve(self, connection: socket.socket, read: Callable[[int], bytes]) -> None:
        level = 0
        while (packet := _read_packet(read)) is not None:
            header, body = packet
            reply: bytes | None = NOTHING
            match header & 0xF0:
                case 0x10:  # CONNECT
                    level = body[2 + body[1]]  # after the protocol's name, "MQTT" or "MQIsdp"
                    self.levels.append(level)
                    self.connects.append(body)
                    reply = self._answer(level)
                case 0x30:  # PUBLISH
                    message = _parse_publish(level, header, body)
                    self.published.append(message)
                    reply = self._on_publish(message) if message.message_id else NOTHING
                case 0x80:  # SUBSCRIBE
                    wish = _parse_subscribe(level, body)
                    self.subscribed.append(wish)
                    reply = self._on_subscribe(wish)
                case 0xC0:  # PINGREQ
                    reply = self._pong
                case 0xE0:  # DISCONNECT
                    self.goodbyes += 1
            if reply:
                connection.sendall(reply)
            if reply is HANG_UP or isinstance(reply, LastWords):
                # Close the sending half and read on to the client's own end: with something unread,
                # the kernel would send a reset, which throws away what the client has not read yet.
                connection.shutdown(socket.SHUT_WR)
                read(-1)
                return

    def seqs(self) -> list[int]:
        """Sequence numbers of the events, as they came in."""
        return [message.seq for message in self.published if message.seq is not None]


def _read_packet(read: Callable[[int], bytes]) -> tuple[int, bytes] | None:
    """The fixed header's first byte and everything after its length; None at the end of the stream."""
    if not (header := read(1)):
        return None
    n_bytes, shift = 0, 0
    while True:
        byte = read(1)[0]
        n_bytes |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return header[0], read(n_bytes)


def _parse_publish(level: int, header: int, body: bytes) -> Published:
    (n_topic_bytes,) = struct.unpack_from("!H", body)
    topic = body[2 : 2 + n_topic_bytes].decode()
    start, message_id, properties = 2 + n_topic_bytes, 0, b""
    if header & 0x06:
        (message_id,) = struct.unpack_from("!H", body, start)
        start += 2
    if level == 5:
        end = start + 1 + body[start]  # its properties are fewer than 128 bytes
        start, properties = end, body[start + 1 : end]
    return Published(level, topic, message_id, body[start:], bool(header & 1), bool(header & 8), properties)


def _parse_subscribe(level: int, body: bytes) -> Subscribed:
    (message_id,) = struct.unpack_from("!H", body)
    start = 2 if level < 5 else 3 + body[2]  # its properties are fewer than 128 bytes
    topics = []
    while start < len(body):
        (n_bytes,) = struct.unpack_from("!H", body, start)
        topics.append(body[start + 2 : start + 2 + n_bytes].decode())
        start += 3 + n_bytes  # its options are a byte
    return Subscribed(level, message_id, topics)
