"""A relay in front of a broker that sees which events the broker acknowledges, and changes nothing.

A broker that is killed forgets what it acknowledged and had not written yet. Nobody but a witness can tell
that from a sensor that forgot.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

_PUBLISH, _PUBACK, _FAILURE = 0x30, 0x40, 0x80


class Witness:
    """Relays what comes to `port` of 127.0.0.1 to the broker's; where nobody listens, it hangs up.

    `acknowledged` has kind, boot and seq of the events that the broker took, once its word is passed on.
    """

    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.acknowledged: set[tuple[str, str, int]] = set()
        self._threads = [threading.Thread(target=self._run)]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._relay, args=(client,)))
                self._threads[-1].start()

    def _relay(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            broker = socket.create_connection(("127.0.0.1", self._broker_port))
            self._open += [client, broker]
            sent: dict[int, tuple[str, str, int]] = {}
            with broker:
                there = threading.Thread(
                    target=_pass_on, args=(client, broker, lambda *packet: _note(sent, *packet))
                )
                there.start()
                _pass_on(broker, client, lambda *packet: self._note_answer(sent, *packet))
                there.join()

    def _note_answer(self, sent: dict[int, tuple[str, str, int]], header: int, body: bytes) -> None:
        if header & 0xF0 == _PUBACK:
            (mid,) = struct.unpack_from("!H", body)
            event = sent.pop(mid, None)
            if event is not None and (len(body) < 3 or body[2] < _FAILURE):
                self.acknowledged.add(event)


class _Numbered(msgspec.Struct):
    boot: str
    seq: int


def _note(sent: dict[int, tuple[str, str, int]], header: int, body: bytes) -> None:
    """Remember an event on its way, by its message id. That MQTT 5 is spoken makes no difference here."""
    if header & 0xF0 != _PUBLISH or not header & 0x06:
        return
    (n_topic,) = struct.unpack_from("!H", body)
    kind = body[2 : 2 + n_topic].decode().rpartition("/")[2]
    (mid,) = struct.unpack_from("!H", body, 2 + n_topic)
    if kind in ("tags", "events"):
        event = msgspec.json.decode(body[body.index(b"{", 4 + n_topic) :], type=_Numbered)
        sent[mid] = kind, event.boot, event.seq


def _pass_on(source: socket.socket, sink: socket.socket, note: Callable[[int, bytes], None]) -> None:
    """Packet by packet, each noted before it goes on, until either end is gone; then both are."""
    with source.makefile("rb") as stream, contextlib.suppress(OSError, EOFError):
        while packet := _read(stream):
            note(packet[0], packet[1])
            sink.sendall(packet[2])
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _read(stream: BinaryIO) -> tuple[int, bytes, bytes] | None:
    """Header, body and all of a packet; None at the end of the stream."""
    raw = stream.read(1)
    n_bytes, shift, byte = 0, 0, 0x80
    while raw and byte & 0x80:
        if not (digit := stream.read(1)):
            return None
        raw, byte = raw + digit, digit[0]
        n_bytes |= (byte & 0x7F) << shift
        shift += 7
    body = stream.read(n_bytes)
    return (raw[0], body, raw + body) if raw and len(body) == n_bytes else None
