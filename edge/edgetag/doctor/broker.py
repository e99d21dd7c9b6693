"""The way to the broker, step by step, and back.

At the broker the doctor is a client of its own, `<sensor>-doctor`, without a last will. It publishes one
message, not retained, on `<prefix>/<sensor>/doctor`.
"""

import secrets
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from edgetag.contract.errors import InputError, NetworkError
from edgetag.delivery.address import BrokerAddress
from edgetag.delivery.connection import (
    LostError,
    RefusedError,
    TakenOverError,
    connect,
    reason_of,
    tls_context,
)
from edgetag.doctor.finding import Case, Finding, credential_remedy, failed
from edgetag.publishing import connecting

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage
    from paho.mqtt.reasoncodes import ReasonCode

ANSWER_S = 10.0  # for a broker's host to answer
ECHO_S = 5.0  # for a message to come back
ENDING_SHARE = 0.1  # of a certificate's life: what renews them does it with more than that left


def dns(case: Case) -> Finding:
    """The broker's name has addresses."""
    host, port = case.broker.host, case.broker.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        remedy = f"correct mqtt.url, or the network: `getent hosts {host}` asks who /etc/resolv.conf names"
        return failed(reason_of(case.broker, error, ANSWER_S), remedy, NetworkError)
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    if addresses == [host]:
        return Finding("ok", f"{host} is an address")
    return Finding("ok", f"{host} is {', '.join(addresses)}")


def tcp(case: Case) -> Finding:
    """Something listens there."""
    try:
        with _connected(case.broker) as connection:
            host, port = connection.getpeername()[:2]
    except OSError as error:
        remedy = f"is there a network (`ip route`), does a firewall let port {case.broker.port} through?"
        if isinstance(error, ConnectionRefusedError):
            remedy = "start the broker, or correct the port in mqtt.url"
        return failed(reason_of(case.broker, error, ANSWER_S), remedy, NetworkError)
    return Finding("ok", f"{host} listens on port {port}")


def tls(case: Case) -> Finding:
    """The broker shows a certificate for its host, by an authority that is trusted, and still valid."""
    if not case.broker.is_tls:
        return Finding("skipped", f"{case.broker.scheme}:// is not encrypted")
    try:
        context = tls_context(connecting(case.settings).tls)
    except InputError as error:
        return failed(error, _own_remedy(case), InputError)
    try:
        with (
            _connected(case.broker) as raw,
            context.wrap_socket(raw, server_hostname=case.broker.host) as connection,
        ):
            certificate: dict[str, Any] = connection.getpeercert() or {}
            version = connection.version()
    except OSError as error:
        return failed(reason_of(case.broker, error, ANSWER_S), _tls_remedy(case, error), NetworkError)
    return shown_certificate(certificate, str(version), time.time())


def _own_remedy(case: Case) -> str:
    remedy = "correct that setting, or the file that it names"
    name = case.settings.mqtt.key_credential
    return remedy if name is None else f"{remedy}; if it is mqtt.key_credential, {credential_remedy(name)}"


def _tls_remedy(case: Case, error: OSError) -> str:
    match getattr(error, "verify_code", None):
        case 9 | 10:  # X509_V_ERR_CERT_NOT_YET_VALID, …_HAS_EXPIRED
            now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
            return f"renew the broker's certificate; or set this machine's clock, if {now} UTC is wrong"
        case 62 | 64:  # X509_V_ERR_HOSTNAME_MISMATCH, …_IP_ADDRESS_MISMATCH
            return "let mqtt.url name the host as the certificate does, or give the broker one for this name"
        case int():
            return "let mqtt.ca_file name the certificate of the authority that signed the broker's"
    reason = str(getattr(error, "reason", ""))
    if "APPLICATION_PROTOCOL" in reason:
        return "correct mqtt.alpn, or take it away"
    if "ALERT" in reason:
        return "let mqtt.cert_file, and its key, be a certificate that the broker trusts"
    return f"is {case.broker.port} the broker's port with TLS (8883, as a rule)? Without TLS it is mqtt://"


def shown_certificate(certificate: dict[str, Any], version: str, now_s: float) -> Finding:
    """Whose it is, and how long it is valid.

    Args:
        certificate: as of `SSLSocket.getpeercert`.
        version: of TLS.
        now_s: seconds since 1970.
    """
    names = [value for rdn in certificate["subject"] for key, value in rdn if key == "commonName"]
    names += [value for _, value in certificate.get("subjectAltName", ()) if value not in names]
    begin_s, end_s = (ssl.cert_time_to_seconds(certificate[key]) for key in ("notBefore", "notAfter"))
    until = time.strftime("%Y-%m-%d", time.gmtime(end_s))
    left_s = end_s - now_s
    found = f"{version}, certificate of {', '.join(names[:3])}, valid until {until} ({_span(left_s)} left)"
    if left_s < ENDING_SHARE * (end_s - begin_s):
        return Finding("warning", found, "renew the broker's certificate")
    return Finding("ok", found)


def _span(seconds: float) -> str:
    days = seconds / 86_400
    return f"{days:.0f} days" if days >= 2 else f"{seconds / 3600:.0f} hours"


def _connected(broker: BrokerAddress) -> socket.socket:
    return socket.create_connection((broker.host, broker.port), ANSWER_S)


class Login:
    """A connection that the broker accepted, and what becomes of a message that the doctor sends itself.

    Attributes:
        granted: what the broker answered to the subscription; None before.
        acknowledged: what it answered to the message.
        is_back: whether that has come back.
    """

    def __init__(self, case: Case) -> None:
        self.topic = f"{case.settings.mqtt.prefix}/{case.sensor}/doctor"
        self.granted: ReasonCode | None = None
        self.acknowledged: ReasonCode | None = None
        self.is_back = False
        self._payload = msgspec.json.encode({"nonce": secrets.token_hex(16)})
        how = replace(connecting(case.settings), session_expiry_s=0, timeout_s=ANSWER_S)
        self.client, _ = connect(case.broker, f"{case.sensor}-doctor", how, self._prepare)

    @property
    def subtree(self) -> str:
        """What a sensor writes."""
        return f"{self.topic.removesuffix('doctor')}#"

    @property
    def is_granted(self) -> bool:
        """Whether the broker has said that it will send what is published."""
        return self.granted is not None and not self.granted.is_failure

    @property
    def is_taken(self) -> bool:
        """Whether the broker has said that it has the message."""
        return self.acknowledged is not None and not self.acknowledged.is_failure

    def subscribe(self) -> None:
        """Returns with the broker's answer, or without one after a while, as the next two."""
        self.client.subscribe(self.topic, qos=1)
        self._attend(lambda: self.granted is not None)

    def publish(self) -> None:
        self.client.publish(self.topic, self._payload, qos=1, retain=False)
        self._attend(lambda: self.acknowledged is not None)

    def receive(self) -> None:
        self._attend(lambda: self.is_back)

    def close(self) -> None:
        """Say goodbye."""
        self.client.disconnect()
        with suppress(LostError, TakenOverError):
            self._attend(lambda: False)
        # Without the references back to this, paho closes its sockets at once.
        self.client.on_subscribe = self.client.on_publish = self.client.on_message = None

    def _attend(self, done: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + ECHO_S
        self.client.attend(lambda: done() or time.monotonic() > deadline_s)

    def _prepare(self, client: "Client") -> None:
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message

    def _on_subscribe(
        self, _client: object, _userdata: object, _mid: int, answers: list["ReasonCode"], _properties: object
    ) -> None:
        self.granted = answers[0] if answers else None

    def _on_publish(
        self, _client: object, _userdata: object, _mid: int, reason: "ReasonCode", _properties: object
    ) -> None:
        self.acknowledged = reason

    def _on_message(self, _client: object, _userdata: object, message: "MQTTMessage") -> None:
        self.is_back = self.is_back or message.payload == self._payload


def mqtt_login(case: Case) -> Finding:
    """The broker accepts the sensor's user, under an id that throws no running sensor out."""
    try:
        case.login = Login(case)
    except RefusedError as error:
        remedy = (
            "let mqtt.user and the password be those that the broker knows; it must also allow the client id "
            f"{case.sensor}-doctor; its log says more"
        )
        return failed(error, remedy, NetworkError)
    except NetworkError as error:
        remedy = "let mqtt.url name an MQTT listener, and mqtt.cert_file a certificate where it wants one"
        return failed(error, f"{remedy}; the broker's log says more", NetworkError)
    version = "5" if case.login.client.is_mqtt5 else "3.1.1"
    return Finding("ok", f"MQTT {version} as {case.broker.user or 'nobody'}, client id {case.sensor}-doctor")


def publish_and_receive(case: Case) -> Finding:
    """A message of the sensor's own, not retained, gets to the broker and back."""
    assert case.login is not None, "a login comes first"
    with closing(case.login) as login:
        try:
            login.subscribe()
            login.publish()
            if login.is_granted and login.is_taken:
                login.receive()
        except TakenOverError:
            return Finding("warning", _TAKEN_OVER, "to see this through, stop the sensor meanwhile")
        except LostError as error:
            if not login.is_taken:
                remedy = f"some brokers hang up on what they do not allow: let the user write {login.subtree}"
                return failed(error, remedy, NetworkError)
        return _became_of(login)


_TAKEN_OVER = (
    "cut off by another client of this id: the broker takes the user's name for the client id, "
    "and the running sensor, cut off by this login, has come back"
)


def _became_of(login: Login) -> Finding:
    topic, answer = login.topic, login.acknowledged
    write = f"let the user write {login.subtree} in the broker's access list"
    if answer is None:
        return failed(f"no answer to a message on {topic} within {ECHO_S:g} s", write, NetworkError)
    if answer.is_failure:
        return failed(f"the broker refuses a message on {topic} ({str(answer).lower()})", write, NetworkError)
    if login.is_back:
        return Finding("ok", f"{topic}, there and back")
    if login.client.is_mqtt5 or not login.is_granted:
        found = f"{topic} is taken, but does not come back: the user has no right to read it"
        return Finding("warning", found, "none needed, sensors only write; to see this through, allow it")
    found = f"{topic} does not come back: the user has no right to read it (not needed), or none to write it"
    return Finding("warning", f"{found}; MQTT 3.1.1 does not say which", write)
