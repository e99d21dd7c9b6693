"""Honest stand-ins for what tests cannot have: a street, and a broker that misbehaves on demand."""

import contextlib
import socket
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


@dataclass(frozen=True)
class Published:
    """A PUBLISH as it came in. `level` is the protocol level of its connection: 4 (3.1.1) or 5."""

    level: int
    topic: str
    message_id: int
    payload: bytes
    retain: bool
    duplicate: bool

    @property
    def kind(self) -> str:
        return self.topic.rpartition("/")[2]

    @property
    def seq(self) -> int | None:
        """The event's sequence number; None for other messages."""
        return msgspec.json.decode(self.payload, type=TagsEvent).seq if self.kind == "tags" else None


Answer = Callable[[int], bytes | None]
OnPublish = Callable[[Published], bytes | None]


def accept(level: int) -> bytes:
    """CONNACK: welcome."""
    return b"\x20\x03\x00\x00\x00" if level == 5 else b"\x20\x02\x00\x00"


def refuse(mqtt5_code: int, mqtt311_code: int) -> Answer:
    """CONNACK: go away, because."""
    return lambda level: bytes([0x20, 3, 0, mqtt5_code, 0] if level == 5 else [0x20, 2, 0, mqtt311_code])


def acknowledge(message: Published) -> bytes:
    """PUBACK."""
    return b"\x40\x02" + struct.pack("!H", message.message_id)


class FakeBroker:
    """Enough of a broker to go wrong: one client at a time, on a port of 127.0.0.1, a free one unless given.

    `answer` and `on_publish` give the bytes to send for a CONNECT of a protocol level and for a
    PUBLISH: `NOTHING`, or `HANG_UP`. Both run in the broker's thread.
    """

    def __init__(
        self,
        answer: Answer = accept,
        on_publish: OnPublish = acknowledge,
        port: int = 0,
    ) -> None:
        self._answer = answer
        self._on_publish = on_publish
        self._listener = socket.create_server(("127.0.0.1", port))
        self._connection: socket.socket | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self.port: int = self._listener.getsockname()[1]
        self.levels: list[int] = []
        self.published: list[Published] = []
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
                with self._connection, self._connection.makefile("rb") as stream:
                    self._serve(stream.read)

    def _serve(self, read: Callable[[int], bytes]) -> None:
        assert self._connection is not None
        level = 0
        while (packet := _read_packet(read)) is not None:
            header, body = packet
            reply: bytes | None = NOTHING
            match header & 0xF0:
                case 0x10:  # CONNECT
                    level = body[2 + body[1]]  # after the protocol's name, "MQTT" or "MQIsdp"
                    self.levels.append(level)
                    reply = self._answer(level)
                case 0x30:  # PUBLISH
                    message = _parse_publish(level, header, body)
                    self.published.append(message)
                    reply = self._on_publish(message)
                case 0xC0:  # PINGREQ
                    reply = b"\xd0\x00"
                case 0xE0:  # DISCONNECT
                    self.goodbyes += 1
            if reply is HANG_UP:
                # Close the sending half and read on to the client's own end: with something unread,
                # the kernel would send a reset, which throws away what the client has not read yet.
                self._connection.shutdown(socket.SHUT_WR)
                read(-1)
                return
            self._connection.sendall(reply)

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
    (message_id,) = struct.unpack_from("!H", body, 2 + n_topic_bytes)
    start = 4 + n_topic_bytes
    if level == 5:
        start += 1 + body[start]  # its properties are fewer than 128 bytes
    return Published(level, topic, message_id, body[start:], bool(header & 1), bool(header & 8))
