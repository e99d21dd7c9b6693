"""Where a broker is and what topics may be called, from what people type."""

import socket
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import SplitResult, unquote, urlsplit

from edgetag.contract.errors import InputError
from edgetag.contract.event import DEFAULT_PREFIX

MAX_SENSOR_CHARS = 64
MAX_PREFIX_CHARS = 256

Scheme = Literal["mqtt", "mqtts", "ws", "wss"]
DEFAULT_PORTS: dict[str, int] = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
DEFAULT_PATH = "/mqtt"  # of WebSockets

_MAX_STRING_BYTES = 0xFFFF  # MQTT's strings carry a two-byte length
_URL_FORM = "a broker's URL reads mqtt://[user[:password]@]host[:port]"


@dataclass(frozen=True, repr=False)
class BrokerAddress:
    """A broker and the credentials for it. `str()` leaves them out, `repr()` hides the password.

    `path` is that of a WebSocket; others have none.
    """

    host: str
    port: int = DEFAULT_PORTS["mqtt"]
    user: str | None = None
    password: str | None = None
    scheme: Scheme = "mqtt"
    path: str = ""

    @property
    def is_tls(self) -> bool:
        return self.scheme in ("mqtts", "wss")

    @property
    def is_websocket(self) -> bool:
        return self.scheme in ("ws", "wss")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    def __repr__(self) -> str:
        password = None if self.password is None else "***"
        return f"BrokerAddress({str(self)!r}, user={self.user!r}, password={password!r})"


def parse_url(url: str) -> BrokerAddress:
    """The address in `mqtt://[user[:password]@]host[:port]`, `mqtts://…`, `ws://…[/path]` or `wss://…[/path]`.

    The ports are 1883, 8883, 80 and 443 unless given. User and password may be percent-encoded, and must be
    where they hold one of `/?#%` or a blank.

    Raises:
        InputError: not such a URL. The message quotes nothing of it: a slip of the pen moves the
            password into the host, the port or the path.

    >>> parse_url("mqtt://sensor:s3cret@broker.example:1884")
    BrokerAddress('mqtt://broker.example:1884', user='sensor', password='***')
    >>> str(parse_url("wss://broker.example"))
    'wss://broker.example:443/mqtt'
    """
    if not url.isprintable() or " " in url:
        raise InputError(
            f"{_URL_FORM}, and this one holds a blank or a control character: write it as %20 or alike"
        )
    if (split := _split(url)) is None:
        raise InputError(f"{_URL_FORM}, with a port from 1 to 65535 and [brackets] around an IPv6 address")
    parts, port = split
    if parts.scheme not in DEFAULT_PORTS:
        raise InputError(f"{_URL_FORM}, and this one does not begin with mqtt://, mqtts://, ws:// or wss://")
    scheme = cast("Scheme", parts.scheme)
    if not parts.hostname:
        raise InputError(f"{_URL_FORM}, and this one has no host")
    path = (parts.path or DEFAULT_PATH) if scheme in ("ws", "wss") else ""
    if (parts.path and not path) or "?" in url or "#" in url:
        raise InputError(f"{_URL_FORM} and ends there: write / ? # in a user or password as %2F %3F %23")
    return BrokerAddress(parts.hostname, port, *_credentials(parts), scheme, path)


def _split(url: str) -> tuple[SplitResult, int] | None:
    """The parts and the port, or None where the standard library refuses (its messages quote the URL)."""
    try:
        parts = urlsplit(url)
        port = DEFAULT_PORTS.get(parts.scheme, 1883) if parts.port is None else parts.port
    except ValueError:
        return None
    return (parts, port) if port else None


def _credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    if not user and password is not None:
        raise InputError(f"{_URL_FORM}, and this one has a password without a user")
    if user and not user.isprintable():
        raise InputError(f"{_URL_FORM}, and the user in this one holds a control character")
    if max(len((part or "").encode()) for part in (user, password)) > _MAX_STRING_BYTES:
        raise InputError(f"{_URL_FORM}, with at most {_MAX_STRING_BYTES} bytes of user and of password")
    return user or None, password


def own_name() -> str:
    """This host's, short enough to be a sensor's id."""
    return socket.gethostname().partition(".")[0][:MAX_SENSOR_CHARS]


def check_sensor(sensor: str) -> str:
    """`sensor` itself, if it can be one level of a topic and a client id.

    Raises:
        InputError: it is empty, too long, or holds one of `+ # /` or a control character.
    """
    return _check("sensor id", sensor, "+#/", MAX_SENSOR_CHARS)


def check_prefix(prefix: str) -> str:
    """`prefix` itself, if topics can begin with it.

    Raises:
        InputError: it is empty, too long, begins or ends with a slash, or holds a wildcard or a
            control character.
    """
    if prefix.startswith("/") or prefix.endswith("/"):
        raise InputError(
            f"the topic prefix {prefix!r} must not begin or end with a slash: e.g. {DEFAULT_PREFIX}"
        )
    return _check("topic prefix", prefix, "+#", MAX_PREFIX_CHARS)


def _check(what: str, value: str, forbidden: str, max_chars: int) -> str:
    if not 0 < len(value) <= max_chars:
        raise InputError(f"the {what} has {len(value)} characters, expected 1 to {max_chars}")
    if not value.isprintable() or any(char in value for char in forbidden):
        raise InputError(f"the {what} {value!r} holds one of {' '.join(forbidden)} or a control character")
    return value
