"""What the commands that listen at a broker have in common: its URL, credentials, TLS, and how they end."""

import dataclasses
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from edgetag.contract.errors import InputError

if TYPE_CHECKING:
    from edgetag.delivery.address import BrokerAddress
    from edgetag.delivery.connection import Tls

URL_HELP = "mqtt://host[:port], or mqtts:// with TLS, ws:// or wss:// through WebSockets."

Prefix: TypeAlias = Annotated[str, typer.Option("--prefix", help="Topic prefix.")]
User: TypeAlias = Annotated[str | None, typer.Option("--user", help="Name at the broker.")]
PasswordFile: TypeAlias = Annotated[
    Path | None, typer.Option("--password-file", help="File whose first line is the password.")
]
CaFile: TypeAlias = Annotated[
    Path | None,
    typer.Option("--ca-file", help="Certificates that the broker's must lead to; or else the system's."),
]
CertFile: TypeAlias = Annotated[
    Path | None, typer.Option("--cert-file", help="Own certificate, where the broker wants one.")
]
KeyFile: TypeAlias = Annotated[
    Path | None, typer.Option("--key-file", help="Its key, if that is in another file.")
]
Alpn: TypeAlias = Annotated[
    str | None, typer.Option("--alpn", help="Protocol to ask for in the TLS handshake.")
]


def address_of(url: str, user: str | None, password_file: Path | None) -> "BrokerAddress":
    """The URL's broker, with the credentials of the options over its own.

    Raises:
        InputError: no URL, or no password.
    """
    from edgetag.delivery.address import parse_url
    from edgetag.secret import read_secret

    address = parse_url(url)
    if user is not None:
        address = dataclasses.replace(address, user=user, password=None)
    if password_file is None:
        return address
    if address.user is None:
        raise InputError("--password-file needs --user, whose password it is")
    return dataclasses.replace(address, password=read_secret(password_file, "--password-file").reveal())


def tls_of(address: "BrokerAddress", *, alpn: str | None, **files: Path | None) -> "Tls":
    """What the options say of it.

    Raises:
        InputError: they do not go with the URL or with each other.
    """
    from edgetag.delivery.connection import Tls

    given = {name: str(file) for name, file in files.items() if file is not None}
    given |= {} if alpn is None else {"alpn": alpn}
    if given and not address.is_tls:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise InputError(f"{option} needs TLS: a URL that begins with mqtts:// or wss://")
    if "key_file" in given and "cert_file" not in given:
        raise InputError("--key-file needs --cert-file, whose key it is")
    return Tls(**given)


@contextmanager
def ended_on_signal() -> Iterator[None]:
    """Ctrl-C and SIGTERM are how it ends, not how it fails."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
