"""`edgetag dashboard`: a network of sensors in a browser."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
from edgetag.contract.errors import InputError, install
from edgetag.contract.event import DEFAULT_PREFIX
from edgetag.terminal import print_text

if TYPE_CHECKING:
    from edgetag.dashboard.serving import Listening

_HOST = "127.0.0.1"
PORT = 8737


def dashboard(
    url: Annotated[str, typer.Option("--mqtt", metavar="URL", help=URL_HELP)],
    prefix: Prefix = DEFAULT_PREFIX,
    host: Annotated[str, typer.Option("--host", help="Address to serve the page at.")] = _HOST,
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="And its port; 0: any.")] = PORT,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File whose first line a browser has to show.")
    ] = None,
    without_token: Annotated[
        bool, typer.Option("--without-token", help="Everybody who reaches --host may look.")
    ] = False,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Host name that the page is also asked for by, e.g. a proxy's."),
    ] = None,
    user: User = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    alpn: Alpn = None,
) -> None:
    """Serve a page that shows what the sensors at a broker say, live. Ctrl-C ends it.

    An ordinary subscriber, as `edgetag watch` is: it keeps the last hour in memory,
    and the broker's credentials to itself. Until there is a broker, and whenever it
    is lost, the page says so. Others can look only by --host, and with a token.

    Example: edgetag dashboard --mqtt mqtt://localhost
    """
    from edgetag.delivery.address import check_prefix
    from edgetag.delivery.connection import Connecting

    _check_installed()
    from edgetag.dashboard.serving import serve

    address = address_of(url, user, password_file)
    tls = tls_of(address, ca_file=ca_file, cert_file=cert_file, key_file=key_file, alpn=alpn)
    listening = _listening(host, port, token_file, without_token, tuple(name or ()))
    with ended_on_signal():
        serve(address, Connecting(tls=tls), check_prefix(prefix), listening, _told(str(address)))


def demonstrate(port: int) -> None:
    """Synthetic streets that go on, at a broker of their own, on a dashboard, until SIGINT or SIGTERM.

    Raises:
        InputError: a library is not installed, or the port is taken.
    """
    _check_installed()
    from edgetag.dashboard.serving import Listening, serve
    from edgetag.delivery.address import BrokerAddress
    from edgetag.delivery.connection import Connecting
    from edgetag.demo.broker import HOST, EmbeddedBroker
    from edgetag.demo.streets import Streets

    with ended_on_signal(), EmbeddedBroker() as broker:
        address = BrokerAddress(HOST, broker.port)
        with Streets(address):
            serve(address, Connecting(), DEFAULT_PREFIX, Listening(port=port), _told(str(address)))


def _check_installed() -> None:
    """Whether there is what serves a page.

    Raises:
        InputError: no.
    """
    from importlib.util import find_spec

    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise InputError(
            f"the dashboard needs {' and '.join(missing)}, not installed: {install('dashboard')}"
        )


def _told(broker: str) -> Callable[[str], None]:
    """Prints where the page is."""
    return lambda url: print_text(f"{broker} is shown at {url} (Ctrl-C ends it)")


def _listening(
    host: str, port: int, token_file: Path | None, is_open: bool, names: tuple[str, ...]
) -> "Listening":
    from edgetag.dashboard.access import Gate
    from edgetag.dashboard.serving import Listening
    from edgetag.secret import read_secret

    if token_file is not None and is_open:
        raise InputError("--token-file and --without-token exclude each other")
    token = None if token_file is None else read_secret(token_file, "--token-file")
    return Listening(host, port, Gate(token), names, is_open)
