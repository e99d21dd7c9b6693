"""A connection that the broker has accepted, or one sentence that says why there is none.

`FakeBroker`, also with TLS, and amqtt's WebSockets; Mosquitto is in tests/system.
"""

import asyncio
import base64
import contextlib
import errno
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTMessage
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from certificates import Authority
from edgetag.contract.errors import InputError, NetworkError
from edgetag.delivery.address import BrokerAddress, Scheme
from edgetag.delivery.connection import (
    BrokerClient,
    Connecting,
    Limits,
    LostError,
    RefusedError,
    TakenOverError,
    Tls,
    connect,
    reason_of,
    tls_context,
)
from fakes import (
    HANG_UP,
    NOTHING,
    Answer,
    FakeBroker,
    LastWords,
    accept,
    accept_with,
    publish,
    refuse,
)

WAIT_S = 20  # for what must happen; nothing here waits for what must not
IMPATIENT = Connecting(timeout_s=0.5)  # what is not answered here never will be


def at(port: int, scheme: Scheme = "mqtt", user: str | None = None) -> BrokerAddress:
    path = "/mqtt" if scheme in ("ws", "wss") else ""
    return BrokerAddress("127.0.0.1", port, user, "hunter2" if user else None, scheme, path)


@contextlib.contextmanager
def connected(
    address: BrokerAddress,
    how: Connecting = IMPATIENT,
    prepare: Callable[[Client], None] = lambda _client: None,
) -> Iterator[BrokerClient]:
    client, _ = connect(address, "me", how, prepare)
    try:
        yield client
    finally:
        client.break_off()
        client.attend()


def failure(address: BrokerAddress, how: Connecting = IMPATIENT) -> NetworkError:
    with pytest.raises(NetworkError) as error, connected(address, how):
        pass
    return error.value


def loss(client: BrokerClient) -> NetworkError:
    """With what the network ends; it must end."""
    deadline_s = time.monotonic() + WAIT_S
    with pytest.raises(NetworkError) as error:
        client.attend(until=lambda: time.monotonic() > deadline_s)
    return error.value


def always(answer: bytes | None) -> Answer:
    return lambda _level: answer


OLD_REFUSAL = b"\x20\x02\x00\x01"


def only_3_1_1(answer: Answer, refusal: bytes | None = OLD_REFUSAL) -> Answer:
    """A broker that has never heard of MQTT 5."""
    return lambda level: answer(level) if level == 4 else refusal


# -- nobody there ----------------------------------------------------------------------------------------


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert str(failure(at(port))) == (
        f"nothing listens at mqtt://127.0.0.1:{port}: is the broker running? "
        "(`sudo apt install mosquitto` puts one on this machine)"
    )


@pytest.mark.parametrize("version", ["auto", "5", "3.1.1"])
def test_a_listener_that_never_answers(version: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        error = failure(at(port), Connecting(version=version, timeout_s=0.3))  # type: ignore[arg-type]
    assert str(error) == f"mqtt://127.0.0.1:{port} did not answer within 0.3 s"


@pytest.mark.parametrize("answer", [HANG_UP, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x00"])
def test_a_listener_that_is_no_broker(answer: bytes | None) -> None:
    with FakeBroker(always(answer)) as broker:
        message = str(failure(at(broker.port)))
    assert message in (
        f"{at(broker.port)} did not answer within 0.5 s",
        f"{at(broker.port)} speaks neither MQTT 5 nor 3.1.1",
        f"{at(broker.port)} hung up without an answer: is it an MQTT broker, or does it want TLS?",
    )


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64, "a..b"])
def test_an_unknown_host(host: str) -> None:
    assert str(failure(BrokerAddress(host))) == (
        f"cannot find the host of mqtt://{host}:1883: is the name right, and is there a network?"
    )


def test_a_slow_name_server_costs_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is not the broker's: a first name server that is dead costs five seconds every time."""
    resolve = socket.getaddrinfo

    def slowly(*arguments: object, **options: object) -> object:
        time.sleep(1.5 * IMPATIENT.timeout_s)
        return resolve(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    with FakeBroker() as broker, connected(at(broker.port)) as client:
        assert client.is_mqtt5


def test_an_error_of_the_network_is_told_in_the_system_s_words() -> None:
    error = reason_of(BrokerAddress("broker"), OSError(errno.EHOSTUNREACH, "No route to host"))
    assert str(error) == "cannot reach mqtt://broker:1883: No route to host"


# -- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "code", "reason"),
    [
        (5, 0x86, "(bad user name or password): it wants a user and a password"),
        (5, 0x87, "(not authorized): it wants a user and a password"),
        (5, 0x85, "(client identifier not valid): it does not like the id 'me', choose another"),
        (5, 0x88, "(server unavailable): try again later"),
        (5, 0x89, "(server busy): try again later"),
        (5, 0x8A, "(banned): ask whoever runs it why"),
        (5, 0x97, "(quota exceeded): try again later, or ask whoever runs it for more"),
        (5, 0x9F, "(connection rate exceeded): try again later"),
        (5, 0x83, "(implementation specific error)"),
        (4, 2, "(client identifier not valid): it does not like the id 'me', choose another"),
        (4, 3, "(server unavailable): try again later"),
        (4, 4, "(bad user name or password): it wants a user and a password"),
        (4, 5, "(not authorized): it wants a user and a password"),
    ],
)
def test_a_refused_connection_is_not_a_connected_one(level: int, code: int, reason: str) -> None:
    answer = refuse(code, code)
    with FakeBroker(answer if level == 5 else only_3_1_1(answer)) as broker:
        error = failure(at(broker.port))
    assert isinstance(error, RefusedError)
    assert str(error) == f"mqtt://127.0.0.1:{broker.port} refused the connection {reason}"
    assert broker.levels == ([5] if level == 5 else [5, 4])


def test_what_the_broker_adds_to_its_refusal_is_told() -> None:
    """Reason String, and Server Reference."""
    why = b"\x1f\x00\x06closed" + b"\x1c\x00\x05other"
    with FakeBroker(always(bytes([0x20, 3 + len(why), 0, 0x9D, len(why)]) + why)) as broker:
        assert "refused the connection (server moved, closed, other)" in str(failure(at(broker.port)))


def test_wrong_credentials_are_named_but_never_shown() -> None:
    with FakeBroker(refuse(0x86, 4)) as broker, structlog.testing.capture_logs() as logs:
        error = failure(at(broker.port, user="sensor"))
    assert str(error).endswith(": check user and password")
    assert "hunter2" not in str(error) + repr(error) + str(logs)


# -- versions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [OLD_REFUSAL, b"\x20\x03\x00\x84\x00", HANG_UP, NOTHING])
def test_a_broker_that_does_not_understand_mqtt_5_is_spoken_to_in_3_1_1(refusal: bytes | None) -> None:
    """0x84 is MQTT 5's own word for it; others answer in the old format, hang up, or are struck dumb."""
    with FakeBroker(only_3_1_1(accept, refusal)) as broker, connected(at(broker.port)) as client:
        assert not client.is_mqtt5
    assert broker.levels == [5, 4]


def test_a_listener_that_hangs_up_is_tried_with_both_versions() -> None:
    with FakeBroker(always(HANG_UP)) as broker:
        failure(at(broker.port))
    assert broker.levels == [5, 4]


def test_a_broker_that_speaks_nothing_known_is_an_error() -> None:
    with FakeBroker(always(OLD_REFUSAL)) as broker:
        error = failure(at(broker.port))
    assert str(error) == f"{at(broker.port)} speaks neither MQTT 5 nor 3.1.1"
    assert broker.levels == [5, 4]


@pytest.mark.parametrize(("version", "level"), [("5", 5), ("3.1.1", 4)])
def test_a_version_that_is_asked_for_is_the_only_one_tried(version: str, level: int) -> None:
    how = Connecting(version=version, timeout_s=0.5)  # type: ignore[arg-type]
    with FakeBroker() as broker, connected(at(broker.port), how):
        pass
    with FakeBroker(always(OLD_REFUSAL)) as deaf:
        error = failure(at(deaf.port), how)
    assert str(error) == f"{at(deaf.port)} does not speak MQTT {version}: set the version to auto"
    assert broker.levels == deaf.levels == [level]


# -- what is asked of the broker, and what it asks --------------------------------------------------------


def flags_and_properties(connect: bytes) -> tuple[int, bytes]:
    """Of a CONNECT of MQTT 5."""
    return connect[7], connect[11 : 11 + connect[10]]


@pytest.mark.parametrize(("expiry_s", "clean_start"), [(0, True), (300, False)])
def test_a_session_that_is_to_outlive_its_connection_is_taken_up_again(
    expiry_s: int, clean_start: bool
) -> None:
    how = Connecting(session_expiry_s=expiry_s, keepalive_s=77)
    with FakeBroker() as broker, connected(at(broker.port), how):
        flags, properties = flags_and_properties(broker.connects[0])
    assert bool(flags & 0x02) is clean_start
    assert b"\x11" + expiry_s.to_bytes(4, "big") in properties
    assert broker.connects[0][8:10] == bytes([0, 77])


def test_a_broker_is_told_to_keep_to_itself_what_would_fill_the_memory() -> None:
    with FakeBroker() as broker, connected(at(broker.port)):
        _, properties = flags_and_properties(broker.connects[0])
    assert b"\x27" + (1 << 20).to_bytes(4, "big") in properties  # Maximum Packet Size


def test_in_3_1_1_where_sessions_never_expire_there_is_none() -> None:
    how = Connecting("3.1.1", session_expiry_s=300)
    with FakeBroker() as broker, connected(at(broker.port), how):
        assert broker.connects[0][7] & 0x02


def test_a_broker_says_what_it_takes() -> None:
    conditions = b"\x21\x00\x05" + b"\x27\x00\x00\x04\x00"  # Receive Maximum 5, Maximum Packet Size 1024
    with FakeBroker(accept_with(conditions)) as broker:
        client, limits = connect(at(broker.port), "me", IMPATIENT)
        client.break_off()
        client.attend()
    assert limits == Limits(receive_maximum=5, packet_bytes=1024)


@pytest.mark.parametrize("answer", [accept, only_3_1_1(accept)], ids=["5", "3.1.1"])
def test_a_broker_that_says_nothing_takes_everything(answer: Answer) -> None:
    with FakeBroker(answer) as broker:
        client, limits = connect(at(broker.port), "me", IMPATIENT)
        client.break_off()
        client.attend()
    assert limits == Limits(receive_maximum=65_535, packet_bytes=None)


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_packet_exceeds_what_the_broker_takes_by_its_whole_length(n_bytes: int, takes_bytes: int) -> None:
    excess = Limits(packet_bytes=takes_bytes).excess("a/b", bytes(n_bytes), None)
    header_bytes = 1 + (1 if n_bytes < 120 else 2) + 2 + 3 + 2
    assert (excess == "") <= (header_bytes + n_bytes <= takes_bytes), "what is too large is never sent"
    assert (excess == "") >= (header_bytes + n_bytes + 3 <= takes_bytes), "what fits with 3 bytes to spare is"


# -- how a connection ends ----------------------------------------------------------------------------------


def test_a_connection_that_is_ended_here_ends_with_a_goodbye() -> None:
    with FakeBroker() as broker, connected(at(broker.port)) as client:
        client.disconnect()
        client.attend()
        wait_until(lambda: broker.goodbyes == 1)


def test_a_connection_that_is_broken_off_ends_at_once_and_without_one() -> None:
    with FakeBroker() as broker, connected(at(broker.port)) as client:
        network = threading.Thread(target=client.attend)
        network.start()
        client.break_off()
        network.join(WAIT_S)
        assert not network.is_alive()
    assert broker.goodbyes == 0


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_broker_that_hangs_up_is_an_error(version: str) -> None:
    how = Connecting(version=version)  # type: ignore[arg-type]
    with (
        FakeBroker(lambda level: LastWords(accept(level))) as broker,
        connected(at(broker.port), how) as client,
    ):
        error = loss(client)
    assert isinstance(error, LostError)
    assert str(error) == f"lost the connection to {at(broker.port)} (broken off)"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (b"\xe0\x01\x8b", "server shutting down"),
        (b"\xe0\x01\x98", "administrative action"),
        (b"\xe0\x0b\x93\x09\x1f\x00\x06slower", "receive maximum exceeded, slower"),
        (b"\xe0\x00", "normal disconnection"),
        (b"\x00\x00", "what it sent is not MQTT"),
    ],
)
def test_why_the_broker_ends_it_is_told(words: bytes, reason: str) -> None:
    with FakeBroker(lambda level: accept(level) + words) as broker, connected(at(broker.port)) as client:
        error = loss(client)
    assert isinstance(error, LostError)
    assert str(error) == f"lost the connection to {at(broker.port)} ({reason})"


def test_a_second_client_of_the_same_id_is_another_error() -> None:
    with (
        FakeBroker(lambda level: accept(level) + b"\xe0\x01\x8e") as broker,
        connected(at(broker.port)) as client,
    ):
        error = loss(client)
    assert isinstance(error, TakenOverError)
    assert str(error) == (
        f"another client connected to {at(broker.port)} as 'me': every client needs an id of its own"
    )


def test_a_broker_that_gives_no_sign_of_life_is_given_up() -> None:
    with FakeBroker(pong=NOTHING) as broker, connected(at(broker.port), Connecting(keepalive_s=1)) as client:
        error = loss(client)
    assert isinstance(error, LostError)
    assert str(error) == f"lost the connection to {at(broker.port)} (no sign of life)"


def test_after_a_lost_connection_the_same_client_can_begin_again() -> None:
    first = [True]

    def answer(level: int) -> bytes:
        return LastWords(accept(level)) if first and first.pop() else accept(level)

    with FakeBroker(answer) as broker, connected(at(broker.port)) as client:
        loss(client)
        assert client.begin() == Limits()
        client.disconnect()
        client.attend()
        wait_until(lambda: broker.goodbyes == 1)
    assert broker.levels == [5, 5]


def test_to_begin_again_is_to_be_accepted_or_refused_again() -> None:
    answers: list[Answer] = [lambda level: LastWords(accept(level)), refuse(0x8A, 5)]
    with (
        FakeBroker(lambda level: answers.pop(0)(level)) as broker,
        connected(at(broker.port)) as client,
    ):
        loss(client)
        with pytest.raises(RefusedError, match="banned"):
            client.begin()


def test_the_network_can_be_attended_until_something_has_happened() -> None:
    heard: list[str] = []

    def prepare(client: Client) -> None:
        client.on_message = lambda _client, _userdata, message: heard.append(message.topic)

    with (
        FakeBroker(lambda level: accept(level) + publish(b"a/b", b"1")) as broker,
        connected(at(broker.port), prepare=prepare) as client,
    ):
        client.attend(until=lambda: bool(heard))
    assert heard == ["a/b"]


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


# -- whatever it sends ------------------------------------------------------------------------------------


def _packet(header: int, body: bytes) -> bytes:
    return bytes([header, len(body)]) + body


PACKETS = st.builds(_packet, st.integers(0, 255), st.binary(max_size=100))
PUBLICATIONS = st.builds(
    lambda topic, payload: publish(topic, payload), st.binary(max_size=50), st.binary(max_size=50)
)
PUBACKS = st.builds(
    lambda mid, rest: _packet(0x40, bytes([0, mid]) + rest), st.integers(0, 9), st.binary(max_size=9)
)
WORDS = st.lists(PACKETS | PUBLICATIONS | PUBACKS | st.binary(max_size=20), max_size=4).map(b"".join)


@pytest.fixture(scope="module")
def babbler() -> Iterator[tuple[FakeBroker, list[bytes]]]:
    """A broker whose answer to CONNECT is what the list holds; then it hangs up."""
    words = [b""]
    with FakeBroker(lambda _level: LastWords(words[0])) as broker:
        yield broker, words


@pytest.mark.parametrize("version", ["auto", "5", "3.1.1"])
@settings(max_examples=300)
@given(words=WORDS)
def test_whatever_answers_it_is_a_broker_or_an_error(
    babbler: tuple[FakeBroker, list[bytes]], version: str, words: bytes
) -> None:
    broker, said = babbler
    said[0] = words
    with (
        pytest.raises(NetworkError),
        connected(at(broker.port), Connecting(version=version, timeout_s=WAIT_S)) as client,  # type: ignore[arg-type]
    ):
        raise loss(client)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@settings(max_examples=300)
@given(words=WORDS)
def test_whatever_a_broker_sends_is_heard_or_ends_the_connection(
    babbler: tuple[FakeBroker, list[bytes]], version: str, words: bytes
) -> None:
    """Also to somebody who takes every topic for UTF-8."""
    broker, said = babbler
    said[0] = accept(5 if version == "5" else 4) + words

    def prepare(client: Client) -> None:
        client.on_message = on_message

    def on_message(_client: Client, _userdata: object, message: MQTTMessage) -> None:
        assert message.topic is not None

    how = Connecting(version=version, timeout_s=WAIT_S)  # type: ignore[arg-type]
    with connected(at(broker.port), how, prepare) as client:
        error = loss(client)
    assert isinstance(error, LostError | TakenOverError)


# -- TLS ---------------------------------------------------------------------------------------------------


def server(files: tuple[Path, Path], clients_of: Authority | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    if clients_of is not None:
        context.load_verify_locations(clients_of.ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def trusting(
    authority: Authority, files: tuple[Path, Path] | None = None, alpn: str | None = None
) -> Connecting:
    cert_file, key_file = (str(path) for path in files) if files else (None, None)
    return Connecting(tls=Tls(str(authority.ca_file), cert_file, key_file, alpn), timeout_s=WAIT_S)


def test_a_broker_whose_certificate_leads_to_the_authority_is_trusted(authority: Authority) -> None:
    with (
        FakeBroker(context=server(authority.issue("broker"))) as broker,
        connected(at(broker.port, "mqtts"), trusting(authority)) as client,
    ):
        assert client.is_mqtt5


def test_by_name_too(authority: Authority) -> None:
    with (
        FakeBroker(context=server(authority.issue("broker", hosts=["localhost"]))) as broker,
        connected(BrokerAddress("localhost", broker.port, scheme="mqtts"), trusting(authority)) as client,
    ):
        assert client.is_mqtt5


def test_3_1_1_goes_through_tls_too(authority: Authority) -> None:
    with (
        FakeBroker(only_3_1_1(accept), context=server(authority.issue("broker"))) as broker,
        connected(at(broker.port, "mqtts"), trusting(authority)) as client,
    ):
        assert not client.is_mqtt5


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"expired": True}, "has expired: renew it there, or is this machine's clock wrong?"),
        ({"early": True}, "is not valid yet: is this machine's clock right?"),
        ({"hosts": ["broker.example"]}, "is for another host: use a name that is in the certificate"),
    ],
)
def test_a_certificate_that_does_not_fit_is_an_error(
    authority: Authority, options: dict[str, object], reason: str
) -> None:
    with FakeBroker(context=server(authority.issue("unfit", **options))) as broker:  # type: ignore[arg-type]
        error = failure(at(broker.port, "mqtts"), trusting(authority))
    assert str(error) == f"the certificate of {at(broker.port, 'mqtts')} {reason}"
    assert broker.levels == []


@pytest.mark.parametrize("knows_another", [True, False])
def test_an_unknown_authority_is_an_error(
    authority: Authority, stranger: Authority, knows_another: bool
) -> None:
    how = trusting(stranger) if knows_another else Connecting()
    with FakeBroker(context=server(authority.issue("broker"))) as broker:
        error = failure(at(broker.port, "mqtts"), how)
    assert str(error).endswith(
        " comes from an unknown authority: set ca_file to that authority's certificate"
    )


def test_a_listener_without_tls_is_an_error(authority: Authority) -> None:
    for words in b"", b"220 mail ESMTP\r\n":
        with Reciter(words) as listener:
            address = at(listener.port, "mqtts")
            assert str(failure(address, trusting(authority))) == (
                f"{address} broke the TLS handshake off: is that port meant for TLS?"
            )


def test_a_listener_with_tls_is_an_error_for_who_speaks_none(authority: Authority) -> None:
    with FakeBroker(context=server(authority.issue("broker"))) as broker:
        error = failure(at(broker.port))
    assert str(error) == (
        f"{at(broker.port)} hung up without an answer: is it an MQTT broker, or does it want TLS?"
    )


def test_a_client_with_a_certificate_is_let_in(authority: Authority) -> None:
    with (
        FakeBroker(context=server(authority.issue("broker"), clients_of=authority)) as broker,
        connected(at(broker.port, "mqtts"), trusting(authority, authority.issue("sensor"))),
    ):
        pass


def test_a_key_may_be_in_the_certificate_s_file(authority: Authority, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(path.read_bytes() for path in authority.issue("sensor")))
    how = Connecting(tls=Tls(str(authority.ca_file), str(both)))
    with (
        FakeBroker(context=server(authority.issue("broker"), clients_of=authority)) as broker,
        connected(at(broker.port, "mqtts"), how),
    ):
        pass


def test_a_client_without_a_certificate_is_told_that_it_needs_one(authority: Authority) -> None:
    """TLS 1.3 says so after the handshake, when it is read for the first time; TLS 1.2 says less."""
    context = server(authority.issue("broker"), clients_of=authority)
    with FakeBroker(context=context) as broker:
        error = failure(at(broker.port, "mqtts"), trusting(authority))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        old = failure(at(broker.port, "mqtts"), trusting(authority))
    address = at(broker.port, "mqtts")
    assert str(error) == f"{address} wants a client certificate: set cert_file and key_file"
    assert str(old) == (
        f"{address} refused the TLS handshake: does it want a client certificate (cert_file, key_file)?"
    )
    assert broker.levels == []


def test_why_the_other_end_hung_up_is_found_by_who_writes_first(authority: Authority) -> None:
    context = tls_context(trusting(authority).tls)
    with (
        FakeBroker(context=server(authority.issue("broker"), clients_of=authority)) as broker,
        socket.create_connection(("127.0.0.1", broker.port)) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        wait_until(lambda: connection.send(b"x") == 0)


def test_without_a_file_the_system_s_authorities_are_trusted(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    with (
        FakeBroker(context=server(authority.issue("broker"))) as broker,
        connected(at(broker.port, "mqtts"), Connecting()) as client,
    ):
        assert client.is_mqtt5


@pytest.mark.parametrize(
    ("is_known", "alert"), [(False, "unknown ca"), (True, "certificate expired")], ids=["stranger", "expired"]
)
def test_a_client_certificate_that_is_not_accepted_is_an_error(
    authority: Authority, stranger: Authority, is_known: bool, alert: str
) -> None:
    files = authority.issue("late", expired=True) if is_known else stranger.issue("sensor")
    with FakeBroker(context=server(authority.issue("broker"), clients_of=authority)) as broker:
        error = failure(at(broker.port, "mqtts"), trusting(authority, files))
    assert str(error) == (
        f"{at(broker.port, 'mqtts')} does not accept our certificate ({alert}): check cert_file"
    )


@pytest.mark.parametrize("alpn", [None, "mqtt"])
def test_a_protocol_can_be_asked_for_in_the_handshake(authority: Authority, alpn: str | None) -> None:
    context = server(authority.issue("broker"))
    context.set_alpn_protocols(["http/1.1", "mqtt"])
    with (
        FakeBroker(context=context) as broker,
        connected(at(broker.port, "mqtts"), trusting(authority, alpn=alpn)),
    ):
        assert broker.alpn == alpn


# -- TLS's files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read {setting} {path}: No such file or directory"),
        (b"", "{setting} {path} holds no {what} in PEM form"),
        (
            b"-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n",
            "{setting} {path} holds no {what} in PEM form",
        ),
        (b"\xff\x00", "{setting} {path} holds no {what} in PEM form"),
    ],
    ids=["absent", "empty", "broken", "binary"],
)
def test_a_file_that_cannot_be_used_is_named_with_its_setting(
    authority: Authority, tmp_path: Path, setting: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_bytes(content)
    cert_file, key_file = authority.issue("sensor")
    files = {"cert_file": str(cert_file), "key_file": str(key_file)} | {setting: str(path)}
    what = "private key" if setting == "key_file" else "certificate"
    with pytest.raises(InputError) as error:
        tls_context(Tls(**files))
    assert str(error.value) == reason.format(setting=setting, path=path, what=what)


def test_a_key_of_another_certificate_is_an_error(authority: Authority) -> None:
    cert_file, key_file = authority.issue("sensor")[0], authority.issue("other")[1]
    with pytest.raises(
        InputError, match=r"the key in key_file .*other.key is not that of cert_file .*sensor"
    ):
        tls_context(Tls(None, str(cert_file), str(key_file)))


def test_a_certificate_s_file_without_the_key_is_an_error(authority: Authority) -> None:
    cert_file, _ = authority.issue("sensor")
    with pytest.raises(InputError, match=r"cert_file .* holds no private key in PEM form"):
        tls_context(Tls(None, str(cert_file)))


def test_a_key_without_a_certificate_is_an_error(authority: Authority) -> None:
    _, key_file = authority.issue("sensor")
    with pytest.raises(InputError, match=r"key_file .* needs a cert_file, whose key it is"):
        tls_context(Tls(key_file=str(key_file)))


def test_an_encrypted_key_is_an_error_and_asks_nobody(authority: Authority) -> None:
    cert_file, key_file = authority.issue("locked", key_password=b"hunter2")
    with pytest.raises(InputError, match=r"the key in key_file .* is encrypted: store it without a password"):
        tls_context(Tls(None, str(cert_file), str(key_file)))


@pytest.mark.parametrize("alpn", ["", "mqtté", 256 * "x"])
def test_a_protocol_that_cannot_be_asked_for_is_an_error(alpn: str) -> None:
    with pytest.raises(InputError, match="is not 1 to 255 ASCII characters"):
        tls_context(Tls(alpn=alpn))


def test_a_file_that_cannot_be_used_is_found_before_anybody_is_called(tmp_path: Path) -> None:
    with FakeBroker() as broker, pytest.raises(InputError, match="ca_file"):
        connect(at(broker.port, "mqtts"), "me", Connecting(tls=Tls(str(tmp_path / "absent"))))
    assert broker.levels == []


# -- WebSockets ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def websockets() -> Iterator[int]:
    """The port of amqtt's own WebSocket listener; it speaks 3.1.1."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    loop, started = asyncio.new_event_loop(), threading.Event()

    async def serve(stop: asyncio.Event) -> None:
        from amqtt.broker import Broker
        from amqtt.contexts import BrokerConfig

        config = {
            "listeners": {"default": {"type": "ws", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        broker = Broker(BrokerConfig.from_dict(config))
        await broker.start()
        started.set()
        await stop.wait()
        await broker.shutdown()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(stop),))
    thread.start()
    assert started.wait(WAIT_S)
    yield port
    loop.call_soon_threadsafe(stop.set)
    thread.join(WAIT_S)
    loop.close()


@pytest.mark.parametrize("version", ["auto", "3.1.1"])
def test_messages_go_through_websockets_there_and_back(websockets: int, version: str) -> None:
    heard: list[tuple[str, bytes]] = []

    def prepare(client: Client) -> None:
        client.on_message = lambda _client, _userdata, message: heard.append((message.topic, message.payload))
        client.on_subscribe = lambda client, *_: client.publish("a/b", bytes(100_000), 1)

    how = Connecting(version=version)  # type: ignore[arg-type]
    with connected(at(websockets, "ws"), how, prepare) as client:
        client.subscribe("a/b", 1)
        deadline_s = time.monotonic() + WAIT_S
        client.attend(until=lambda: bool(heard) or time.monotonic() > deadline_s)
        client.disconnect()
        client.attend()
    assert heard == [("a/b", bytes(100_000))]


class Reciter:
    """Answers whoever speaks to it with its words, one after the other, and hangs up."""

    def __init__(self, *words: bytes | Callable[[bytes], bytes]) -> None:
        self.words = words
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    self._recite(connection)

    def _recite(self, connection: socket.socket) -> None:
        for word in self.words:
            said = connection.recv(65_536)
            connection.sendall(word(said) if callable(word) else word)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass


def upgrade(request: bytes) -> bytes:
    """The answer of a WebSocket's server to a client's handshake."""
    (key,) = (line[19:] for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return b"\r\n".join(
        [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest),
            b"",
            b"",
        ]
    )


@pytest.fixture(scope="module")
def server_of_websites() -> Iterator[Reciter]:
    with Reciter() as reciter:
        yield reciter


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 404 Not Found\r\n\r\n", b"", b"Sec-WebSocket-Accept:\n", b"connection: \xff\n"]
)
def test_a_listener_without_websockets_is_an_error(server_of_websites: Reciter, answer: bytes) -> None:
    server_of_websites.words = (answer,)
    address = at(server_of_websites.port, "ws")
    assert str(failure(address)) == (
        f"{address} does not speak MQTT over WebSockets there: are port and path right?"
    )


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from([b"\r", b"\n", b"\r\n", b"connection: ", b"upgrade", b"sec-websocket-accept: "])
        | st.binary(max_size=9)
    ).map(b"".join)
)
def test_whatever_answers_a_websocket_s_handshake_is_an_error(
    server_of_websites: Reciter, answer: bytes
) -> None:
    server_of_websites.words = (answer,)
    failure(at(server_of_websites.port, "ws"), Connecting("5", timeout_s=WAIT_S))


FRAMES = st.builds(
    lambda opcode, length, body: bytes([opcode, length]) + body,
    st.sampled_from([0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, 0x02, 0xFF]),
    st.integers(0, 255),
    st.binary(max_size=20),
)


@settings(max_examples=300)
@given(st.lists(FRAMES | WORDS.map(lambda words: bytes([0x82, len(words) % 126]) + words), max_size=4))
def test_whatever_comes_through_a_websocket_is_heard_or_ends_the_connection(
    server_of_websites: Reciter, frames: list[bytes]
) -> None:
    server_of_websites.words = (upgrade, b"\x82\x05" + accept(5) + b"".join(frames))
    with connected(at(server_of_websites.port, "ws"), Connecting("5", timeout_s=WAIT_S)) as client:
        error = loss(client)
    assert isinstance(error, LostError | TakenOverError)


@contextlib.contextmanager
def secure_websockets(context: ssl.SSLContext, port: int) -> Iterator[int]:
    """The port of a proxy with TLS and WebSockets in front of a broker, as they stand before many."""

    def bridge(client: ServerConnection) -> None:
        with socket.create_connection(("127.0.0.1", port)) as broker:
            back = threading.Thread(target=copy_back, args=(client, broker))
            back.start()
            for words in client:
                broker.sendall(words)
            broker.shutdown(socket.SHUT_WR)
            back.join()

    def copy_back(client: ServerConnection, broker: socket.socket) -> None:
        with contextlib.suppress(ConnectionClosed):
            while words := broker.recv(65_536):
                client.send(words)

    with serve(bridge, "127.0.0.1", 0, ssl=context, subprotocols=["mqtt"]) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield proxy.socket.getsockname()[1]
        proxy.shutdown()
        thread.join()


def test_mqtt_5_goes_through_websockets_with_tls(authority: Authority) -> None:
    with (
        FakeBroker() as broker,
        secure_websockets(server(authority.issue("broker")), broker.port) as port,
    ):
        with connected(at(port, "wss"), trusting(authority)) as client:
            assert client.is_mqtt5
            client.disconnect()
            client.attend()
        wait_until(lambda: broker.goodbyes == 1)
        error = failure(at(port, "wss"), Connecting(timeout_s=WAIT_S))
    assert "unknown authority" in str(error)


def test_a_websocket_that_wants_a_client_certificate_is_an_error(authority: Authority) -> None:
    with secure_websockets(server(authority.issue("broker"), clients_of=authority), 0) as port:
        error = failure(at(port, "wss"), trusting(authority))
    assert str(error) == f"{at(port, 'wss')} wants a client certificate: set cert_file and key_file"
