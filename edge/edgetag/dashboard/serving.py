"""One function is the program: a subscription fills the board, a server shows it, until a signal."""

import asyncio
import errno
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import uvicorn

from edgetag.contract.errors import InputError, first_line
from edgetag.dashboard.access import Gate, Names
from edgetag.dashboard.board import Board
from edgetag.dashboard.feed import Feed
from edgetag.dashboard.site import site
from edgetag.delivery.address import BrokerAddress, own_name
from edgetag.delivery.connection import Connecting
from edgetag.delivery.network import KINDS, Network
from edgetag.delivery.subscription import Subscription

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8737

_TICK_S = 1.0  # from one batch of changes to the next
_SLICE_S = 0.2  # how soon an end is noticed
_LEAVE_S = 2.0
_BACKLOG = 128


@dataclass(frozen=True)
class Listening:
    """Where the page is served, and to whom.

    names: by which it may be asked for, besides its addresses and this host's own name.
    is_open: whether everybody may look, where others can reach it.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    gate: Gate = field(default_factory=lambda: Gate(None))
    names: tuple[str, ...] = ()
    is_open: bool = False


def serve(
    address: BrokerAddress,
    how: Connecting,
    prefix: str,
    listening: Listening,
    tell_url: Callable[[str], None],
) -> None:
    """Show what comes under `prefix` at a broker, until SIGINT or SIGTERM.

    Args:
        address, how: the broker.
        prefix: of all topics.
        listening: where, and to whom.
        tell_url: called with the page's URL once it can be opened.

    Raises:
        InputError: the port is taken, others could look without a token, or a certificate cannot be used.
        KeyboardInterrupt: it was ended.
    """
    filters = [(f"{prefix}/+/{kind}", 0 if kind == "health" else 1) for kind in KINDS]
    board = Board(Network(prefix), str(address), time.time())
    feed = Feed()
    with (
        _bound(listening) as bound,
        Subscription(address, how, filters, is_patient=True) as subscription,
    ):
        names = Names(frozenset({"localhost", own_name().lower(), *map(str.lower, listening.names)}))
        server = _Server(site(board, feed, listening.gate, names), feed)
        tell_url(_url(bound))
        asyncio.run(_serve(server, bound, subscription, board))


async def _serve(server: "_Server", bound: socket.socket, subscription: Subscription, board: Board) -> None:
    with _collecting(subscription, board, server):
        await server.serve([bound])


@contextmanager
def _collecting(subscription: Subscription, board: Board, server: "_Server") -> Iterator[None]:
    """A thread that fills the board and publishes what has changed. What it raises ends the server."""
    loop, leaving = asyncio.get_running_loop(), threading.Event()
    faults: list[BaseException] = []

    def collect() -> None:
        try:
            while not leaving.is_set():
                _take_for(_TICK_S, subscription, board, leaving)
                changes = msgspec.json.encode(board.changes(time.time()))
                loop.call_soon_threadsafe(server.feed.publish, changes)
        except BaseException as error:
            faults.append(error)
            server.should_exit = True

    thread = threading.Thread(target=collect, name="edgetag-dashboard", daemon=True)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join(_LEAVE_S)
    if faults:
        raise faults[0]


def _take_for(seconds: float, subscription: Subscription, board: Board, leaving: threading.Event) -> None:
    deadline_s = time.monotonic() + seconds
    while (left_s := deadline_s - time.monotonic()) > 0 and not leaving.is_set():
        if (arrival := subscription.next(min(left_s, _SLICE_S))) is not None:
            board.take(arrival, time.time())


class _Server(uvicorn.Server):
    """Ends open streams before it waits for them to end."""

    def __init__(self, app: object, feed: Feed) -> None:
        # It says on its loggers what the house says in its own words, or not at all.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(_LEAVE_S),
        )
        super().__init__(config)
        self.feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As its parent's."""
        self.feed.close()
        await super().shutdown(sockets)


@contextmanager
def _bound(listening: Listening) -> Iterator[socket.socket]:
    host, port = listening.host, listening.port
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host!r} is no address of this machine") from error
    _check_gate(str(where[0]), listening)
    try:
        bound = socket.create_server(where[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise _unbound(host, port, error) from error
    with bound:
        yield bound


def _check_gate(ip: str, listening: Listening) -> None:
    if listening.gate.is_open and not listening.is_open and not ipaddress.ip_address(ip).is_loopback:
        raise InputError(
            f"whoever reaches {listening.host} could look: give a token with --token-file, or "
            "--without-token if everybody may"
        )


def _unbound(host: str, port: int, error: OSError) -> InputError:
    match error.errno:
        case errno.EADDRINUSE:
            return InputError(
                f"port {port} of {host} is taken: choose another with --port, or 0 for a free one"
            )
        case errno.EACCES:
            return InputError(f"port {port} may be opened by root only: choose one above 1023 with --port")
        case errno.EADDRNOTAVAIL:
            return InputError(f"--host {host!r} is no address of this machine")
        case _:
            return InputError(f"cannot listen at {host}, port {port}: {error.strerror or first_line(error)}")


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = own_name()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
