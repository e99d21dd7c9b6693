"""An MQTT broker inside the process: for the demo and for tests, never for a street.

Anonymous, on loopback only, and it forgets everything at its end. amqtt speaks MQTT 3.1.1, not 5.
"""

import asyncio
import contextlib
import importlib
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Self

from edgetag.contract.errors import InputError, install

HOST = "127.0.0.1"
_LISTENER = "default"
_STOP_TIMEOUT_S = 5.0
_CONFIG = {
    "listeners": {_LISTENER: {"type": "external"}},
    "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
}
_NOISY_LOGGERS = ("amqtt", "transitions")

_MAX_CONNECT_BYTES = 0xFFFF
_MQTT_5 = b"\x00\x04MQTT\x05"
_CONNACK_UNSUPPORTED_VERSION = b"\x20\x02\x00\x01"  # in the format of 3.1.1: 5 has another


class EmbeddedBroker:
    """A broker on a free port of 127.0.0.1, in a thread and a loop of its own, between enter and exit."""

    def __init__(self) -> None:
        self._running: Future[_Running] = Future()
        self._thread = threading.Thread(target=self._run, name="edgetag-broker", daemon=True)
        self._quiet = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start, and wait until it listens.

        Raises:
            InputError: amqtt is not installed.
        """
        self._quiet.enter_context(_quiet_loggers())
        self._thread.start()
        try:
            self._running.result()
        except BaseException:
            self._quiet.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close every connection and wait for the thread."""
        running = self._running.result()
        running.loop.call_soon_threadsafe(running.stop.set)
        self._thread.join(_STOP_TIMEOUT_S)  # a daemon thread: the process can end without it
        self._quiet.close()

    @property
    def port(self) -> int:
        """The port it listens on, once entered."""
        return self._running.result().port

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # for __enter__ to raise; a broker that runs raises nothing
            self._running.set_exception(error)

    async def _serve(self) -> None:
        broker = _import("amqtt.broker").Broker(
            _import("amqtt.contexts").BrokerConfig.from_dict(dict(_CONFIG))
        )
        await broker.start()
        connections = _Connections(broker)
        server = await asyncio.start_server(connections.serve, HOST, port=0)
        stop = asyncio.Event()
        self._running.set_result(
            _Running(asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1])
        )
        await stop.wait()
        server.close()
        await connections.close()  # first: amqtt's own way of closing them gets stuck now and then
        await broker.shutdown()


@dataclass(frozen=True)
class _Running:
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event
    port: int


class _Connections:
    """The listener, instead of amqtt's: it knows its port and every connection it has to close.

    It also answers MQTT 5 itself. amqtt means to refuse it, but first reads the whole CONNECT as one of
    3.1.1, and with a last will in it waits for bytes that never come.
    """

    def __init__(self, broker: Any) -> None:  # noqa: ANN401
        self._broker = broker
        self._adapters = _import("amqtt.adapters")
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until it goes."""
        self._open[writer] = asyncio.current_task()
        with contextlib.suppress(OSError, EOFError):  # it broke off in the middle of a packet
            await self._hand_over(reader, writer)
        writer.transport.abort()
        del self._open[writer]

    async def _hand_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        header, body = await _first_packet(reader)
        if body.startswith(_MQTT_5):
            writer.write(_CONNACK_UNSUPPORTED_VERSION)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            return
        stream = _Rewound(header + body, reader)
        await self._broker.external_connected(stream, self._adapters.StreamWriterAdapter(writer), _LISTENER)

    async def close(self) -> None:
        """Break off what is still open; returns when every client's task has ended."""
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*(task for task in self._open.values() if task), return_exceptions=True)


class _Rewound:
    """What amqtt asks of a reader, with the first packet put back in front."""

    def __init__(self, packet: bytes, reader: asyncio.StreamReader) -> None:
        self._packet = packet
        self._reader = reader

    async def read(self, n: int = -1) -> bytes:
        if self._packet:
            head, self._packet = self._packet[:n], self._packet[n:]
            return head
        return await (self._reader.read() if n < 0 else self._reader.readexactly(n))

    def feed_eof(self) -> None:
        self._reader.feed_eof()


async def _first_packet(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Fixed header and the rest, whose length the header gives seven bits a byte, lowest first."""
    header = await reader.readexactly(1)
    n_bytes = 0
    while len(header) == 1 or header[-1] & 0x80:
        header += await reader.readexactly(1)
        n_bytes |= (header[-1] & 0x7F) << 7 * (len(header) - 2)
        if n_bytes > _MAX_CONNECT_BYTES:
            raise EOFError("too long for a CONNECT")
    return header, await reader.readexactly(n_bytes)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"the embedded broker needs amqtt: {install('demo')}") from error


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    """amqtt warns of every client that goes without a goodbye; without a handler that ends on stderr."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
