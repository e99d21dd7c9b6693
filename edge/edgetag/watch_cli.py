"""`edgetag watch`: what the sensors of a network say, live."""

import io
import math
import select
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Protocol, Self

import typer

from edgetag.assembly import is_terminal
from edgetag.broker_options import (
    URL_HELP,
    Alpn,
    CaFile,
    CertFile,
    KeyFile,
    PasswordFile,
    Prefix,
    User,
    address_of,
    ended_on_signal,
    tls_of,
)
from edgetag.contract.errors import OutputError, printable
from edgetag.contract.event import DEFAULT_PREFIX
from edgetag.log import set_level
from edgetag.terminal import print_text

if TYPE_CHECKING:
    from rich.console import Console

    from edgetag.delivery.network import Network
    from edgetag.delivery.subscription import Message, Subscription

_TICK_S = 0.5  # from one picture to the next


def watch(
    url: Annotated[str, typer.Argument(metavar="URL", help=URL_HELP)],
    sensor: Annotated[str | None, typer.Option("--sensor", help="One sensor only.")] = None,
    prefix: Prefix = DEFAULT_PREFIX,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: every message, one a line.")] = False,
    user: User = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    alpn: Alpn = None,
) -> None:
    """Show what the sensors at a broker say, live: state, level, active tags, lag, latest sounds.

    An ordinary subscriber, without rights that others do not have. In a terminal
    a picture; in a pipe a line for each window, sound and state. A lost
    connection is made anew; what was said meanwhile is missed. Ctrl-C ends it.

    A line of --json is an object: topic, sensor, kind (tags, events, status, info
    or health), received (UTC), retained (said earlier, and kept by the broker),
    and payload, as it came, or else fault: why that is no JSON. Of tags and
    events that come twice, by (sensor, boot, seq), the first is shown.

    Example: edgetag watch mqtt://localhost
    """
    from edgetag.delivery.address import check_prefix, check_sensor
    from edgetag.delivery.connection import Connecting
    from edgetag.delivery.network import KINDS
    from edgetag.delivery.subscription import Subscription

    address = address_of(url, user, password_file)
    tls = tls_of(address, ca_file=ca_file, cert_file=cert_file, key_file=key_file, alpn=alpn)
    whose = f"{check_prefix(prefix)}/{'+' if sensor is None else check_sensor(sensor)}"
    filters = [(f"{whose}/{kind}", 0 if kind == "health" else 1) for kind in KINDS]
    shown = _shown(as_json, prefix, heading=f"{address}  {whose}")
    with ended_on_signal(), Subscription(address, Connecting(tls=tls), filters) as subscription, shown:
        _show(subscription, shown)


class _Shown(AbstractContextManager[object], Protocol):
    """How a network is shown."""

    def take(self, message: "Message") -> None:
        """Show a message."""

    def note(self, trouble: str) -> None:
        """Show how the connection is; "" for well again."""

    def tick(self) -> None:
        """Time has passed."""


def _show(subscription: "Subscription", shown: _Shown) -> None:
    """For ever."""
    while True:
        deadline_s = time.monotonic() + _TICK_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            _show_next(subscription, shown, left_s)
        shown.tick()


def _show_next(subscription: "Subscription", shown: _Shown, timeout_s: float) -> None:
    from edgetag.delivery.subscription import Lost, Message, Missed, Regained

    match subscription.next(timeout_s):
        case Message() as message:
            shown.take(message)
        case Lost(reason, retry_s):
            shown.note(f"trying again in {math.ceil(retry_s)} s: {reason}")
        case Regained():
            shown.note("")
        case Missed(n):
            shown.note(f"{n:,} messages missed: they came faster than they could be shown")


def _shown(as_json: bool, prefix: str, heading: str) -> _Shown:
    """As lines for programs, as lines for a log, or as a picture.

    Raises:
        OutputError: there is no stdout.
    """
    from rich.console import Console

    from edgetag.delivery.network import Network
    from edgetag.delivery.network_view import JsonLines, log_line

    if sys.stdout is None:
        raise OutputError("stdout is closed; there is nothing to show it on")
    if as_json:
        lines = JsonLines(prefix)
        return _Lines(lambda message: lines.line(*message))
    network = Network(prefix)
    console = Console()
    if is_terminal(sys.stdout) and not console.is_dumb_terminal:
        return _Picture(network, heading, console)

    def line(message: "Message") -> str | None:
        news = network.take(message.topic, message.payload, message.at_s)
        return None if news is None else log_line(news, message.at_s)

    return _Lines(line)


class _Lines(_Shown):
    """A message is a line on stdout, or none; how the connection is, on stderr."""

    def __init__(self, line: "Callable[[Message], str | None]") -> None:
        self._line = line
        self._poll = select.poll()
        self._poll.register(sys.stdout.fileno(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is held open."""

    def take(self, message: "Message") -> None:
        if (line := self._line(message)) is not None:
            print_text(line)

    def note(self, trouble: str) -> None:
        typer.echo(f"edgetag: {printable(trouble) or 'connected again'}", err=True)

    def tick(self) -> None:
        """A reader who has gone is noticed, also while there is nothing to print."""
        if self._poll.poll(0):
            raise typer.Exit


class _Picture(_Shown):
    """A picture that fills the terminal, drawn anew at every tick."""

    def __init__(self, network: "Network", heading: str, console: "Console") -> None:
        from rich.live import Live

        self._network, self._heading, self._console = network, heading, console
        self._trouble = ""
        self._live = Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def __enter__(self) -> Self:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        set_level("error")  # a line on stderr would stand in the middle of the picture
        self._live.__enter__()
        self.tick()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.__exit__(exc_type, exc, traceback)

    def take(self, message: "Message") -> None:
        self._network.take(message.topic, message.payload, message.at_s)

    def note(self, trouble: str) -> None:
        self._trouble = trouble

    def tick(self) -> None:
        from edgetag.delivery.network_view import picture

        columns, rows = self._console.size
        drawn = picture(self._network, self._heading, self._trouble, time.time(), columns, rows)
        self._live.update(drawn, refresh=True)
