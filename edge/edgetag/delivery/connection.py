"""A connection that the broker has accepted, or one sentence that says why there is none.

MQTT 5 first; 3.1.1 where the broker says it does not speak 5, hangs up on it, or is struck dumb by it
(amqtt reads a last will of MQTT 5 as one of 3.1.1 and waits for bytes that never come).

```
NetworkError
├── RefusedError     the broker does not want us: credentials, ban, client id, overload
├── TakenOverError   it threw us out for another client with our id
└── LostError        the connection broke, or what came over it was not MQTT
```
"""

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, WebsocketConnectionError
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgetag.contract.errors import InputError, NetworkError, first_line
from edgetag.delivery.address import BrokerAddress

_MQTT5_PATIENCE_S = 5  # a slow link is no broker that is struck dumb
_MAX_HEADER_BYTES = 5 + 2 + 2  # type and length of a packet, length of its topic, its message id
_MAX_RECEIVED_BYTES = 1 << 20  # of a packet; a broker must keep larger ones to itself

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.mqtt")

# Mosquitto says "packet too large" in a PUBACK too, where the standard has no such code: without this,
# paho takes it for a malformed packet and breaks the connection off.
ReasonCode.names = {
    **ReasonCode.names,
    0x95: {"Packet too large": [PacketTypes.CONNACK, PacketTypes.DISCONNECT, PacketTypes.PUBACK]},
}


class RefusedError(NetworkError):
    """The broker answered, and does not want us."""


class TakenOverError(NetworkError):
    """The broker ended the connection because another client came with our id."""


class LostError(NetworkError):
    """The connection ended, though nobody wanted it to; not for a broker that is merely silent.

    `is_told`: the broker said why.
    """

    is_told = False


class _NotUnderstoodError(NetworkError):
    """No CONNACK, or one that says the protocol is unknown: worth another try with an older one."""


class _SilentError(_NotUnderstoodError):
    """No CONNACK in time."""


@dataclass(frozen=True)
class Tls:
    """How to trust and be trusted.

    ca_file: certificates (PEM) that the broker's must lead to; None is the system's.
    cert_file, key_file: our own certificate and its key (PEM), for a broker that wants one; the key may be
        in the same file.
    alpn: name of the protocol to ask for in the handshake.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    alpn: str | None = None


@dataclass(frozen=True)
class Connecting:
    """What to ask of a broker.

    version: of MQTT; auto is 5, and 3.1.1 where the broker does not speak it.
    session_expiry_s: how long it remembers us; 0 begins afresh and ends with the connection. MQTT 5 only.
    timeout_s: for each step: a connection to the host, and the broker's answer.
    """

    version: Literal["auto", "5", "3.1.1"] = "auto"
    keepalive_s: int = 30
    session_expiry_s: int = 0
    tls: Tls = Tls()
    timeout_s: float = 10.0


class Limits(NamedTuple):
    """What a broker takes: unacknowledged messages of QoS 1, and bytes of a packet; None is any number."""

    receive_maximum: int = 0xFFFF
    packet_bytes: int | None = None

    def excess(self, topic: str, payload: bytes, properties: Properties | None) -> str:
        """Why a message of QoS 1 would break these limits; "" if it would not."""
        if self.packet_bytes is None:
            return ""
        packed_bytes = 0 if properties is None else len(properties.pack())  # type: ignore[no-untyped-call]
        n_bytes = _MAX_HEADER_BYTES + len(topic.encode()) + packed_bytes + len(payload)
        if n_bytes <= self.packet_bytes:
            return ""
        return f"its {n_bytes} bytes are more than the {self.packet_bytes} that the broker takes"


def connect(
    address: BrokerAddress,
    client_id: str,
    how: Connecting = Connecting(),
    prepare: Callable[[Client], None] = lambda _client: None,
) -> tuple["BrokerClient", Limits]:
    """A client whose connection the broker has accepted, its network loop not yet running, and the limits.

    `prepare` gives it a last will and callbacks for messages, before it connects (once for every version
    tried: `client.protocol`); `on_connect` and `on_disconnect` are taken.

    Raises:
        InputError: as `tls_context`.
        RefusedError: the broker says no.
        NetworkError: there is no broker, no answer, or no trust.
    """
    context = tls_context(how.tls) if address.is_tls else None

    def attempt(protocol: MQTTProtocolVersion, patience_s: float) -> tuple[BrokerClient, Limits]:
        client = BrokerClient(address, client_id, how, protocol, context)
        client.connect_timeout = how.timeout_s
        prepare(client)
        return client, client.begin(patience_s)

    if how.version == "3.1.1":
        return attempt(MQTTProtocolVersion.MQTTv311, how.timeout_s)
    if how.version == "5":
        return attempt(MQTTProtocolVersion.MQTTv5, how.timeout_s)
    try:
        return attempt(MQTTProtocolVersion.MQTTv5, min(_MQTT5_PATIENCE_S, how.timeout_s / 2))
    except _NotUnderstoodError as error:
        log = _log.warning if isinstance(error, _SilentError) else _log.info
        log("mqtt.fallback", broker=str(address), version="3.1.1", reason=str(error))
        return attempt(MQTTProtocolVersion.MQTTv311, how.timeout_s)


class BrokerClient(Client):
    """paho's client with one owner: nothing of it runs in a thread or connects again by itself.

    `begin` connects; `attend` is the network, in the caller's thread, until the connection ends; then
    `begin` may connect again. Other threads may publish, `disconnect` and `break_off` meanwhile.
    Use `connect` to get one.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        how: Connecting,
        protocol: MQTTProtocolVersion,
        context: "_Context | None",
    ) -> None:
        self._heard = _Heard()
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            userdata=self._heard,
            protocol=protocol,
            transport="websockets" if address.is_websocket else "tcp",
            reconnect_on_failure=False,
        )
        self._address = address
        self._how = how
        self._name = client_id
        self._context = context
        self._tcp: socket.socket | None = None
        self.max_inflight_messages = 0  # bounded by who publishes, not by a second queue in paho
        self.username_pw_set(address.user, address.password)
        if context is not None:
            self.tls_set_context(context)
        if address.is_websocket:
            self.ws_set_options(address.path)
        self.on_connect = _note_answer
        self.on_disconnect = _note_loss
        self.on_socket_register_write = _leave_to_the_loop

    @property
    def is_mqtt5(self) -> bool:
        return self.protocol == MQTTProtocolVersion.MQTTv5

    def begin(self, patience_s: float | None = None) -> Limits:
        """Connect, and wait for the broker's answer for so long, or as long as for anything else.

        Raises:
            NetworkError: as `connect`.
        """
        self._heard.answer = self._heard.loss = None
        with contextlib.ExitStack() as failed:
            failed.callback(self._close)
            try:
                self._call()
                limits = self._hear(self._how.timeout_s if patience_s is None else patience_s)
            except NetworkError:
                raise
            except Exception as error:  # a socket's, or paho's that reads what was never meant for it
                raise reason_of(self._address, error, self._how.timeout_s) from error
            failed.pop_all()
        return limits

    def attend(self, until: Callable[[], bool] = lambda: False) -> None:
        """The network: returns after `disconnect` or `break_off`, or within a second of `until()`.

        Raises:
            TakenOverError: another client came with our id.
            LostError: the connection ended otherwise.
        """
        try:
            while not until():
                if self._heard.is_leaving or self.loop() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    self._end()
                    return
        except NetworkError:
            raise
        except Exception as error:  # whatever a broker sends, it must not end a thread in silence
            self._close()
            raise self._lost(f"{type(error).__name__}: {first_line(error)}") from error

    def break_off(self) -> None:
        """End the connection without a word, so that the broker publishes the last will."""
        self._heard.is_leaving = True
        for sock in self._sockets():
            with contextlib.suppress(OSError):
                # Not SSLSocket's own shutdown: it takes the TLS away from under who is reading.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    # -- the broker's answer -----------------------------------------------------------------------

    def _call(self) -> None:
        host, port, keepalive_s = self._address.host, self._address.port, self._how.keepalive_s
        if not self.is_mqtt5:
            self.connect(host, port, keepalive_s)
            return
        asked = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        asked.SessionExpiryInterval = self._how.session_expiry_s
        asked.MaximumPacketSize = _MAX_RECEIVED_BYTES
        # A session that is taken up again keeps its last will to itself, if the will has a delay.
        is_clean = self._how.session_expiry_s == 0
        self.connect(host, port, keepalive_s, clean_start=is_clean, properties=asked)

    def _hear(self, patience_s: float) -> Limits:
        """The broker's first word; read in this thread, for paho's own would retry a refusal."""
        deadline_s = time.monotonic() + patience_s
        while self._heard.answer is None:
            sock, left_s = self.socket(), deadline_s - time.monotonic()
            if sock is None:
                raise self._hung_up()
            writing = [sock] if self.want_write() else []
            readable, writable, _ = select.select([sock], writing, [], max(left_s, 0))
            if writable:
                self.loop_write()
            if readable:
                self.loop_read()
            if left_s <= 0:
                raise _SilentError(_no_answer(self._address, patience_s))
        reason, properties = self._heard.answer
        if reason.is_failure:
            raise self._refused(reason, properties)
        return Limits(
            getattr(properties, "ReceiveMaximum", 0xFFFF), getattr(properties, "MaximumPacketSize", None)
        )

    def _hung_up(self) -> NetworkError:
        if self._context is not None and self._context.trouble is not None:
            return reason_of(self._address, self._context.trouble)
        if self._heard.loss is not None and str(self._heard.loss[1]) == "Protocol error":
            return _NotUnderstoodError(self._speaks_another_version())  # paho's way to say so of 3.1.1 too
        hint = "does it want a client certificate" if self._address.is_tls else "or does it want TLS"
        return _NotUnderstoodError(
            f"{self._address} hung up without an answer: is it an MQTT broker, {hint}?"
        )

    def _refused(self, reason: ReasonCode, properties: Properties | None) -> NetworkError:
        name = str(reason)
        if name == "Unsupported protocol version":
            return _NotUnderstoodError(self._speaks_another_version())
        hint = _REFUSALS.get(name, "")
        if name in ("Bad user name or password", "Not authorized"):
            hint = "check user and password" if self._address.user else "it wants a user and a password"
        remedy = f": {hint.format(name=self._name)}" if hint else ""
        said = _said(reason, properties).lower()
        return RefusedError(f"{self._address} refused the connection ({said}){remedy}")

    def _speaks_another_version(self) -> str:
        match self._how.version:
            case "auto":
                return f"{self._address} speaks neither MQTT 5 nor 3.1.1"
            case version:
                return f"{self._address} does not speak MQTT {version}: set the version to auto"

    # -- its end -----------------------------------------------------------------------------------

    def _end(self) -> None:
        self._close()
        if self._heard.is_leaving:
            return
        if self._heard.loss is None:
            raise self._lost("broken off")
        is_told, reason, properties = self._heard.loss
        if is_told and str(reason) == "Session taken over":
            raise TakenOverError(
                f"another client connected to {self._address} as {self._name!r}:"
                " every client needs an id of its own"
            )
        if is_told:
            lost = self._lost(_said(reason, properties).lower())
            lost.is_told = True
            raise lost
        raise self._lost(_LOSSES.get(str(reason), str(reason).lower()))

    def _lost(self, why: str) -> LostError:
        return LostError(f"lost the connection to {self._address} ({why})")

    def _sockets(self) -> list[socket.socket]:
        sockets = [self._tcp, None if self._context is None else self._context.last]
        return [sock for sock in sockets if sock is not None]

    def _close(self) -> None:
        for sock in self._sockets():
            sock.close()
        if self._context is not None:  # a socket knows its context: together they would stay for long
            self._context.last = self._context.trouble = None

    def _create_socket_connection(self) -> socket.socket:
        """paho's own, remembered: paho forgets to close it when a WebSocket's handshake fails."""
        self._tcp = super()._create_socket_connection()
        return self._tcp


@dataclass
class _Heard:
    """What the broker said, and whether nobody wants to hear more."""

    answer: tuple[ReasonCode, Properties | None] | None = None
    loss: tuple[bool, ReasonCode, Properties | None] | None = None  # whether the broker told us, and why
    is_leaving: bool = False


def _note_answer(
    _client: Client, heard: _Heard, _flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
) -> None:
    heard.answer = reason, properties


def _note_loss(
    _client: Client, heard: _Heard, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
) -> None:
    is_told = flags.is_disconnect_packet_from_server
    heard.loss = is_told, reason, properties
    heard.is_leaving = heard.is_leaving or not (is_told or reason.is_failure)


def _leave_to_the_loop(*_: object) -> None:
    """That there is somebody to write keeps paho from writing in whatever thread publishes."""


# -- reasons ---------------------------------------------------------------------------------------------

_REFUSALS = {
    "Banned": "ask whoever runs it why",
    "Client identifier not valid": "it does not like the id {name!r}, choose another",
    "Server unavailable": "try again later",
    "Server busy": "try again later",
    "Quota exceeded": "try again later, or ask whoever runs it for more",
    "Connection rate exceeded": "try again later",
}
_LOSSES = {  # in paho's words
    "Unspecified error": "broken off",
    "Keep alive timeout": "no sign of life",
    "Protocol error": "what it sent is not MQTT",
}


def _said(reason: ReasonCode, properties: Properties | None) -> str:
    """The broker's reason, and what it adds of its own, if anything."""
    added = [
        str(getattr(properties, name))
        for name in ("ReasonString", "ServerReference")
        if hasattr(properties, name)
    ]
    return ", ".join([str(reason), *added])


def _no_answer(address: BrokerAddress, timeout_s: float | None) -> str:
    return f"{address} did not answer" + ("" if timeout_s is None else f" within {timeout_s:g} s")


def reason_of(address: BrokerAddress, error: Exception, timeout_s: float | None = None) -> NetworkError:
    """Why `address` cannot be reached, in a sentence, from what a socket raised."""
    match error:
        case UnicodeDecodeError() | LookupError() | WebsocketConnectionError():  # paho's reading of HTTP
            reason = f"{address} does not speak MQTT over WebSockets there: are port and path right?"
        case socket.gaierror() | UnicodeError():
            reason = f"cannot find the host of {address}: is the name right, and is there a network?"
        case ConnectionRefusedError():
            here = address.host in ("localhost", "127.0.0.1", "::1")
            remedy = " (`sudo apt install mosquitto` puts one on this machine)" if here else ""
            reason = f"nothing listens at {address}: is the broker running?{remedy}"
        case TimeoutError():
            reason = _no_answer(address, timeout_s)
        case ssl.SSLCertVerificationError():
            reason = _distrust(address, error)
        case ssl.SSLError():
            reason = _tls_trouble(address, error)
        case ConnectionError() if address.is_tls:
            reason = _not_tls(address)
        case OSError():
            reason = f"cannot reach {address}: {error.strerror or first_line(error)}"
        case _:
            reason = f"cannot reach {address}: {type(error).__name__}: {first_line(error)}"
    return NetworkError(reason)


def _not_tls(address: BrokerAddress) -> str:
    return f"{address} broke the TLS handshake off: is that port meant for TLS?"


def _distrust(address: BrokerAddress, error: ssl.SSLCertVerificationError) -> str:
    """By OpenSSL's X509_V_ERR_…, in x509_vfy.h."""
    match error.verify_code:
        case 9:
            return f"the certificate of {address} is not valid yet: is this machine's clock right?"
        case 10:
            return (
                f"the certificate of {address} has expired: renew it there, or is this machine's clock wrong?"
            )
        case 62 | 64:
            return f"the certificate of {address} is for another host: use a name that is in the certificate"
        case 2 | 18 | 19 | 20 | 21:
            return (
                f"the certificate of {address} comes from an unknown authority:"
                " set ca_file to that authority's certificate"
            )
        case _:
            return f"the certificate of {address} is not accepted: {error.verify_message}"


def _tls_trouble(address: BrokerAddress, error: ssl.SSLError) -> str:
    """By OpenSSL's SSL_R_…, in sslerr.h; what is said against our certificate comes with the first read."""
    reason = str(error.reason or "")
    if "ALERT_CERTIFICATE_REQUIRED" in reason:
        return f"{address} wants a client certificate: set cert_file and key_file"
    if "ALERT_HANDSHAKE_FAILURE" in reason:
        return (
            f"{address} refused the TLS handshake: does it want a client certificate (cert_file, key_file)?"
        )
    if "NO_APPLICATION_PROTOCOL" in reason:
        return f"{address} does not know the protocol that alpn asks for: is alpn right?"
    if any(word in reason for word in _ABOUT_US):
        alert = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return f"{address} does not accept our certificate ({alert}): check cert_file"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or any(word in reason for word in _NO_TLS):
        return _not_tls(address)
    return f"no TLS with {address}: {reason.replace('_', ' ').lower() or first_line(error)}"


_ABOUT_US = (
    "ALERT_UNKNOWN_CA",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_CERTIFICATE_",  # expired, revoked, unknown
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_ACCESS_DENIED",
    "ALERT_DECRYPT_ERROR",
)
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNEXPECTED_EOF")


# -- TLS -------------------------------------------------------------------------------------------------


def tls_context(tls: Tls) -> "_Context":
    """Trusts `ca_file`, or the system's authorities, checks the host, and shows our own certificate.

    Raises:
        InputError: a file cannot be read or used, or alpn not be said; the message names the setting.
    """
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _Socket
    if tls.ca_file is None:
        context.load_default_certs()
    else:
        _load_certificates(context, "ca_file", tls.ca_file)
    if tls.cert_file is not None:
        _load_key(context, tls.cert_file, tls.key_file)
    elif tls.key_file is not None:
        raise InputError(f"key_file {tls.key_file} needs a cert_file, whose key it is")
    if tls.alpn is not None:
        _ask_for(context, tls.alpn)
    return context


def _ask_for(context: ssl.SSLContext, alpn: str) -> None:
    try:
        context.set_alpn_protocols([alpn])
    except (UnicodeError, ssl.SSLError) as error:
        raise InputError(f"alpn {alpn!r} is not 1 to 255 ASCII characters") from error


def _load_certificates(context: ssl.SSLContext, setting: str, path: str) -> None:
    _check_readable(setting, path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise InputError(f"{setting} {path} holds no certificate in PEM form") from error


def _load_key(context: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
    _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "cert_file", cert_file)
    setting, path = ("key_file", key_file) if key_file is not None else ("cert_file", cert_file)
    _check_readable(setting, path)

    def refuse() -> str:  # or else OpenSSL asks for it on the terminal
        raise InputError(f"the key in {setting} {path} is encrypted: store it without a password")

    try:
        context.load_cert_chain(cert_file, key_file, password=refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InputError(f"the key in {setting} {path} is not that of cert_file {cert_file}") from error
        raise InputError(f"{setting} {path} holds no private key in PEM form") from error


def _check_readable(setting: str, path: str) -> None:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise InputError(f"cannot read {setting} {path}: {error.strerror}") from error


class _Context(ssl.SSLContext):
    """Remembers its last socket and what went wrong there: paho loses the one and swallows the other."""

    last: ssl.SSLSocket | None = None
    trouble: ssl.SSLError | None = None

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:  # noqa: ANN401
        """As its parent's."""
        self.last = super().wrap_socket(*args, **options)
        self.trouble = None
        return self.last


class _Socket(ssl.SSLSocket):
    """Tells its context what the other end says against it."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As its parent's."""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            assert isinstance(self.context, _Context)
            self.context.trouble = error
            raise

    def send(self, data: Any, flags: int = 0) -> int:  # noqa: ANN401
        """As its parent's; who has hung up already may have said why before."""
        try:
            return super().send(data, flags)
        except (ConnectionError, ssl.SSLEOFError):
            self.recv(1)
            raise
