"""An MQTT broker inside the process: for the demo and for tests, never for a street.

Anonymous, on loopback only, and it forgets everything at its end. amqtt speaks MQTT 3.1.1, not 5.
"""

import asyncio
import contextlib
import importlib
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import ModuleType, TracebackType
from typing import Any, Self

from edgetag.contract.errors import InputError, NetworkError

_HOST = "127.0.0.1"
_N_PORTS_TRIED = 5
_SHUTDOWN_TIMEOUT_S = 5
_NOISY_LOGGERS = ("amqtt", "transitions")
_PLUGINS = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}


class EmbeddedBroker:
    """A broker on a free port of 127.0.0.1, in a thread and a loop of its own, between enter and exit."""

    def __init__(self) -> None:
        self._started: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, name="edgetag-broker", daemon=True)
        self._quiet = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start, and wait until it listens.

        Raises:
            InputError: amqtt is not installed.
            NetworkError: amqtt could not listen.
        """
        self._quiet.enter_context(_quiet_loggers())
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self._quiet.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close every connection and wait for the thread."""
        _, loop, stop = self._started.result()
        loop.call_soon_threadsafe(stop.set)
        self._thread.join()
        self._quiet.close()

    @property
    def port(self) -> int:
        """The port it listens on, once entered."""
        return self._started.result()[0]

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        """amqtt brings no listener here: one of ours knows the port it got, and can close every connection."""
        stop = asyncio.Event()
        try:
            broker = _broker()
            await broker.start()
            connections = _Connections(broker)
            server = await asyncio.start_server(connections.accept, _HOST, port=0)
        except Exception as error:
            self._started.set_exception(error)
            return
        port = server.sockets[0].getsockname()[1]
        self._started.set_result((port, asyncio.get_running_loop(), stop))
        await stop.wait()
        server.close()
        await broker.shutdown()
        await connections.close()


class _Connections:
    """Hands connections to the broker and remembers them: amqtt forgets those that never said CONNECT."""

    def __init__(self, broker: Any) -> None:  # noqa: ANN401
        self._broker = broker
        self._adapters = _import("amqtt.adapters")
        self._open: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._open[task] = writer
        try:
            await self._broker.external_connected(
                self._adapters.StreamReaderAdapter(reader),
                self._adapters.StreamWriterAdapter(writer),
                _LISTENER,
            )
        except (OSError, EOFError):
            pass  # a client that broke off in the middle of a packet
        finally:
            writer.close()
            del self._open[task]

    async def close(self) -> None:
        """Close what is still open, and see every handler off."""
        for writer in self._open.values():
            writer.close()
        await asyncio.wait([...])


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    """amqtt warns of every client that goes without a goodbye, and without a handler that ends on stderr."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
