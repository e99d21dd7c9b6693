"""What `deploy/mosquitto/` ships, in a real Mosquitto: its README's commands, configuration and rights.

The commands run as they are written, in a copy of the folder, but for the values in the README's first lines;
the ports are other ones. Where this runs as root, Mosquitto runs as its own user, as in Debian.
"""

import base64
import dataclasses
import grp
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgetag.contract.errors import NetworkError
from edgetag.contract.event import encode
from edgetag.delivery.address import BrokerAddress
from edgetag.delivery.connection import Connecting, LostError, RefusedError, Tls, connect
from edgetag.delivery.homeassistant import HomeAssistant, birth_topic
from edgetag.delivery.mqtt import MqttPublisher
from fakes import bundle_info, tags_event
from system.test_mosquitto import find

DEPLOY = Path(__file__).parents[2] / "deploy"
README = DEPLOY / "mosquitto" / "README.md"
WAIT_S = 20  # for what must happen
Version = Literal["5", "3.1.1"]
VERSIONS: list[Version] = ["5", "3.1.1"]

SENSOR, OTHER, CERTIFIED = "b827eb42bd4a", "lamp-2", "lamp-17"  # the last has a certificate
N_KEPT = 1500  # messages; more than the 1,000 that Mosquitto keeps for a reader unless it is told otherwise
KINDS = ["status", "info", "tags", "events", "health", "homeassistant/tag_1", "doctor"]

pytestmark = pytest.mark.skipif(
    not (find("mosquitto") and find("mosquitto_passwd") and shutil.which("openssl")),
    reason="mosquitto or openssl is not installed",
)
needs_portaudio = pytest.mark.skipif(not find_library("portaudio"), reason="PortAudio is not installed")


# -- a place where it is installed -----------------------------------------------------------------------


class Site:
    """A broker's machine, in `folder`: the README was followed there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "mosquitto"
        self.port, self.certificates_port = free_port(), free_port()
        self.etc = self.folder / "etc"
        self.group = "mosquitto" if os.geteuid() == 0 else grp.getgrgid(os.getegid()).gr_name
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        shutil.copytree(DEPLOY, self.folder.parent, dirs_exist_ok=True)
        (self.etc / "conf.d").mkdir(parents=True)
        (self.folder / "state").mkdir()
        if os.geteuid() == 0:
            shutil.chown(self.folder / "state", "mosquitto")
        self.run(*_blocks("sh"))
        readers = [f"../provision.sh --reader {name}" for name in ("homeassistant", "admin")]
        self.administer(f"../provision.sh {OTHER} --broker $HOST", *readers)
        for name, before, port in (
            ("edgetag.conf", "listener 8883", self.port),
            ("edgetag-certificates.conf", "listener 8884", self.certificates_port),
        ):
            conf = self.etc / "conf.d" / name
            conf.write_text(_changed(conf.read_text(), before, f"listener {port} 127.0.0.1"))
        self.start()
        return self

    def administer(self, *commands: str) -> None:
        """What the README says of later changes, but for the reload."""
        self.run(_blocks("sh")[0], *commands, "tell_broker")

    def run(self, *commands: str) -> None:
        """In one shell, as an administrator would; what the README defines in its first lines is set."""
        script = "\n".join(commands)
        script = _changed(script, "ETC=/etc/mosquitto", f"ETC={self.etc}")
        script = _changed(script, "GROUP=mosquitto", f"GROUP={self.group}")
        script = _changed(script, "HOST=broker.example", "HOST=localhost")
        done = subprocess.run(
            ["sh", "-eu", "-c", script], cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """With what Debian's own configuration file says, in another place; returns when it listens."""
        config = self.folder / "mosquitto.conf"
        config.write_text(
            f"pid_file {self.folder}/state/mosquitto.pid\n"
            f"persistence true\npersistence_location {self.folder}/state/\n"
            f"log_dest file {self.folder}/state/mosquitto.log\ninclude_dir {self.etc}/conf.d\n"
        )
        program = find("mosquitto")
        assert program is not None
        self._process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
        wait_until(self._listens)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "mosquitto did not start"
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionRefusedError:
            return False
        return True

    def reload(self) -> None:
        """`systemctl reload mosquitto`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(WAIT_S)

    def identity(self, sensor: str) -> Path:
        """A folder with what `provision.sh` made for it, unpacked as the sensor would; none for a reader."""
        if (tar := self.folder / f"{sensor}.tar").exists():
            with tarfile.open(tar) as archive:
                archive.extractall(self.folder / "unpacked", filter="data")
        return self.folder / "unpacked" / sensor

    def password(self, user: str) -> str:
        reader = self.folder / f"{user}.password"
        file = reader if reader.exists() else self.identity(user) / "edgetag.mqtt-password"
        return file.read_text().strip()

    def certificate(self, user: str) -> list[str]:
        """The files with its certificate and key; none if it has a password."""
        files = [self.identity(user) / name for name in ("sensor.crt", "edgetag.mqtt-key")]
        return [str(file) for file in files if file.exists()]

    def address(self, user: str | None, password: str | None = None) -> BrokerAddress:
        """Where this user logs in, with its own password if it has one and no other is given."""
        if user is not None and password is None:
            if self.certificate(user):
                return BrokerAddress("localhost", self.certificates_port, scheme="mqtts")
            password = self.password(user)
        return BrokerAddress("localhost", self.port, user, password, "mqtts")

    @property
    def ca_file(self) -> str:
        return str(self.folder / "ca" / "ca.crt")

    def how(self, version: Version = "5", user: str = SENSOR) -> Connecting:
        return Connecting(version=version, tls=Tls(self.ca_file, *self.certificate(user)))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def _blocks(language: str) -> list[str]:
    """What the README has in this language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def _changed(text: str, before: str, after: str) -> str:
    assert text.count(before) == 1, f"expected once: {before}"
    return text.replace(before, after)


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # Mosquitto's user must get to its own
        with Site(Path(folder)) as site:
            yield site


# -- clients ---------------------------------------------------------------------------------------------


class Peer:
    """A client of a user, all in this thread: what it publishes, and what it is sent.

    `client_id` and `will` are what it claims, `how` is how it connects; `topics` are subscribed to when it is
    entered.
    """

    def __init__(
        self,
        site: Site,
        user: str,
        *topics: str,
        version: Version = "5",
        client_id: str = "whatever",
        will: str | None = None,
        **how: int,
    ) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.retained: dict[str, bytes] = {}  # what was there already
        self._answers: list[str] = []
        self._topics = topics

        def prepare(client: Client) -> None:
            client.on_message = self._on_message
            client.on_publish = self._on_publish
            client.on_subscribe = lambda *_: self._answers.append("subscribed")
            if will is not None:
                client.will_set(will, b"will", 1)

        self.client, self.limits = connect(
            site.address(user), client_id, dataclasses.replace(site.how(version, user), **how), prepare
        )

    def __enter__(self) -> Self:
        if self._topics:
            self.client.subscribe([(topic, 1) for topic in self._topics])
            self.wait(lambda: bool(self._answers))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.disconnect()
        self.client.attend()

    def publish(self, topic: str, payload: bytes = b"payload", *, retain: bool = False) -> str:
        """Why the broker refused it, as far as it says so; "" if it did not."""
        self._answers.clear()
        self.client.publish(topic, payload, 1, retain)
        self.wait(lambda: bool(self._answers))
        return self._answers[0]

    def heard(self, last: str) -> list[str]:
        """Topics of all that has come, once something has come on `last`."""
        self.wait(lambda: any(topic == last for topic, _ in self.messages))
        return [topic for topic, _ in self.messages]

    def wait(self, done: Callable[[], bool]) -> None:
        """Take what comes until `done()`."""
        deadline_s = time.monotonic() + WAIT_S
        self.client.attend(lambda: done() or time.monotonic() > deadline_s)
        assert done(), f"nothing of that kind among {self.messages}"

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        if message.retain:
            self.retained[message.topic] = bytes(message.payload)
        else:
            self.messages.append((message.topic, bytes(message.payload)))

    def _on_publish(
        self, _client: Client, _userdata: object, _mid: int, reason: ReasonCode, _why: Properties | None
    ) -> None:
        self._answers.append(str(reason) if reason.is_failure else "")


# -- who gets in -----------------------------------------------------------------------------------------


def test_no_secret_of_the_broker_is_for_everybody(site: Site) -> None:
    """And the broker has no password, only what proves one."""
    installed = list((site.etc / "edgetag").iterdir())
    assert {file.name for file in installed} == {
        *("acl", "passwords", "server.key", "server.crt", "ca.crt", "ca.crl")
    }
    assert all(file.stat().st_mode & 0o007 == 0 for file in installed)
    for file in ("ca/ca.key", "ca", f"{SENSOR}.tar", f"{CERTIFIED}.tar", "dashboard.password"):
        assert (site.folder / file).stat().st_mode & 0o077 == 0, file
    hashes = (site.etc / "edgetag" / "passwords").read_text()
    assert CERTIFIED not in hashes
    for user in (SENSOR, OTHER, "dashboard"):
        assert f"{user}:$6$" in hashes
        assert site.password(user) not in hashes


def test_the_brokers_certificate_is_good_for_the_strictest_reader(site: Site) -> None:
    strictly = ["-x509_strict", "-purpose", "sslserver", "-verify_hostname", "localhost"]
    certificate = site.etc / "edgetag" / "server.crt"
    subprocess.run(
        ["openssl", "verify", *strictly, "-CAfile", site.ca_file, str(certificate)],
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("user", "password", "remedy"),
    [
        (SENSOR, "a guess", "check user and password"),
        ("nobody", "a guess", "check user and password"),
        (OTHER, None, "check user and password"),  # with the other's password
        (None, None, "it wants a user and a password"),
    ],
)
def test_nobody_gets_in_without_the_right_password(
    site: Site, version: Version, user: str | None, password: str | None, remedy: str
) -> None:
    stolen = site.password(SENSOR) if user == OTHER else password
    with pytest.raises(RefusedError, match=f"refused the connection .*: {remedy}"):
        connect(site.address(user, stolen), "whatever", site.how(version))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_password_is_no_certificate(site: Site, version: Version) -> None:
    """And the broker's own certificate is no sensor's."""
    address = dataclasses.replace(site.address(SENSOR), port=site.certificates_port)
    with pytest.raises(NetworkError, match="wants a client certificate"):
        connect(address, SENSOR, site.how(version))
    server = [str(site.folder / "ca" / f"server.{kind}") for kind in ("crt", "key")]
    with pytest.raises(NetworkError, match="does not accept our certificate"):
        connect(address, SENSOR, Connecting(version=version, tls=Tls(site.ca_file, *server)))


def test_a_certificate_is_no_password(site: Site) -> None:
    """Where those are asked for; also if it says whose it is."""
    for user in (None, CERTIFIED):
        with pytest.raises(RefusedError):
            connect(BrokerAddress("localhost", site.port, user, None, "mqtts"), "a", site.how(user=CERTIFIED))


def test_another_authoritys_certificate_is_refused(site: Site) -> None:
    """Of the same name for a sensor of the same name."""
    site.run(
        _blocks("sh")[0],
        "mkdir elsewhere",
        f"../provision.sh {CERTIFIED} --broker $HOST --certificate --ca elsewhere/ca --out elsewhere",
        f"tar -xf elsewhere/{CERTIFIED}.tar -C elsewhere",
    )
    forged = [
        str(site.folder / "elsewhere" / CERTIFIED / name) for name in ("sensor.crt", "edgetag.mqtt-key")
    ]
    with pytest.raises(NetworkError, match="does not accept our certificate"):
        connect(site.address(CERTIFIED), CERTIFIED, Connecting(tls=Tls(site.ca_file, *forged)))


def test_there_is_no_plain_text(site: Site) -> None:
    plain = BrokerAddress("localhost", site.port, SENSOR, site.password(SENSOR))
    with pytest.raises(NetworkError, match="hung up without an answer"):
        connect(plain, SENSOR, Connecting())


def test_a_client_that_does_not_know_the_authority_does_not_trust(site: Site) -> None:
    with pytest.raises(NetworkError, match="certificate of mqtts://localhost"):
        connect(site.address(SENSOR), SENSOR, Connecting())


def test_clients_are_told_the_limits(site: Site) -> None:
    with Peer(site, SENSOR, keepalive_s=3600) as peer:
        assert peer.limits.packet_bytes == 65_536
        assert peer.client.keepalive == 300


def test_who_sends_too_much_is_out(site: Site) -> None:
    peer = Peer(site, SENSOR, version="3.1.1")
    peer.client.publish(f"sonyc/v1/{SENSOR}/tags", bytes(70_000), 1)
    with pytest.raises(LostError):
        peer.client.attend()


def gets_in(site: Site, sensor: str) -> bool:
    """Whether it is let in, and may what a sensor may."""
    try:
        with Peer(site, sensor) as peer:
            return peer.publish(f"sonyc/v1/{sensor}/tags") == ""
    except NetworkError:
        return False


@pytest.mark.parametrize("kind", ["", "--certificate"])
def test_sensors_come_and_go_with_a_reload(site: Site, kind: str) -> None:
    """Mosquitto, as the user it is by then, can read its files anew; who stays notices nothing."""
    sensor = f"lamp-3{kind}"
    topic = f"sonyc/v1/{SENSOR}/doctor"
    with Peer(site, SENSOR, topic) as old:
        site.administer(f"../provision.sh {sensor} --broker $HOST {kind}")
        assert gets_in(site, sensor) == bool(kind)  # a certificate speaks for itself
        site.reload()
        wait_until(lambda: gets_in(site, sensor))
        site.administer(f"../provision.sh --revoke {sensor}")
        assert gets_in(site, sensor)
        site.reload()
        wait_until(lambda: not gets_in(site, sensor))
        assert gets_in(site, CERTIFIED)
        assert old.publish(f"sonyc/v1/{OTHER}/tags") == "Not authorized"
        assert old.publish(topic) == ""
        assert old.heard(topic) == [topic]


def test_a_renewed_certificate_is_good_beside_the_old_one(site: Site) -> None:
    """Until somebody has been to the lamp post; a renewed password takes the place of the old one."""
    kinds = {"lamp-4": "", "lamp-5": "--certificate"}
    site.administer(*(f"../provision.sh {name} --broker $HOST {kind}" for name, kind in kinds.items()))
    former_password = site.address("lamp-4")
    site.identity("lamp-5").rename(site.folder / "unpacked" / "former")
    site.administer(
        "rm lamp-4.tar lamp-5.tar",
        *(f"../provision.sh {name} --broker $HOST {kind} --renew" for name, kind in kinds.items()),
    )
    site.reload()
    wait_until(lambda: gets_in(site, "lamp-4") and gets_in(site, "lamp-5"))
    with pytest.raises(RefusedError):
        connect(former_password, "lamp-4", site.how())
    with Peer(site, "former") as peer:
        assert peer.publish("sonyc/v1/lamp-5/tags") == ""


# -- who may what ----------------------------------------------------------------------------------------


both_kinds = pytest.mark.parametrize("own", [SENSOR, CERTIFIED])  # with a password, with a certificate


@both_kinds
@pytest.mark.parametrize("version", VERSIONS)
def test_a_sensor_publishes_under_its_own_id_and_readers_get_it(
    site: Site, version: Version, own: str
) -> None:
    topics = [f"sonyc/v1/{own}/{kind}" for kind in KINDS]
    with Peer(site, "dashboard", "sonyc/v1/#") as reader, Peer(site, own, version=version) as sensor:
        for topic in topics:
            assert sensor.publish(topic) == ""
        assert reader.heard(topics[-1]) == topics


def forbidden_to(sensor: str) -> list[str]:
    return [
        *(f"sonyc/v1/{OTHER}/{kind}" for kind in KINDS),
        "sonyc/v1/tags",
        f"sonyc/v2/{sensor}/tags",
        f"homeassistant/sensor/{OTHER}/tag_1/config",
        f"homeassistant/switch/{sensor}/tag_1/config",
        "homeassistant/status",
        "anything",
    ]


@both_kinds
@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_that_a_sensor_publishes_elsewhere_reaches_anybody(
    site: Site, version: Version, own: str
) -> None:
    """MQTT 5 tells it; in 3.1.1 it is acknowledged, and thrown away all the same."""
    last, forbidden = f"sonyc/v1/{own}/tags", forbidden_to(own)
    answer = {"5": "Not authorized", "3.1.1": ""}[version]
    with Peer(site, "admin", "#") as everybody, Peer(site, own, version=version) as sensor:
        assert {topic: sensor.publish(topic) for topic in forbidden} == dict.fromkeys(forbidden, answer)
        assert sensor.publish(last) == ""
        assert everybody.heard(last) == [last]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sensor_reads_nothing_of_the_others(site: Site, version: Version) -> None:
    """Only what it says to itself, and that Home Assistant has started."""
    own, birth = f"sonyc/v1/{SENSOR}/doctor", "homeassistant/status"
    with (
        Peer(site, SENSOR, "#", "$SYS/#", f"sonyc/v1/{OTHER}/#", version=version) as sensor,
        Peer(site, OTHER) as other,
        Peer(site, "homeassistant") as house,
    ):
        for kind in KINDS:
            assert other.publish(f"sonyc/v1/{OTHER}/{kind}") == ""
            assert sensor.publish(f"sonyc/v1/{SENSOR}/{kind}") == ""
        assert other.publish(f"homeassistant/sensor/{OTHER}/tag_1/config") == ""
        assert house.publish("homeassistant/sensor/a/b/config") == ""
        assert house.publish(birth, b"online") == ""
        assert sensor.heard(birth) == [own, birth]


def test_a_reader_publishes_nothing(site: Site) -> None:
    """Not even as a sensor that is called like the reader."""
    last = f"sonyc/v1/{SENSOR}/tags"
    own = ["sonyc/v1/dashboard/tags", "homeassistant/sensor/dashboard/tag_1/config"]
    with (
        Peer(site, "admin", "#") as everybody,
        Peer(site, "dashboard") as reader,
        Peer(site, SENSOR) as sensor,
    ):
        for topic in [*own, last, *forbidden_to(SENSOR)]:
            assert reader.publish(topic) == "Not authorized"
        assert sensor.publish(last) == ""
        assert everybody.heard(last) == [last]


def test_home_assistant_reads_the_sensors_and_takes_entities_back(site: Site) -> None:
    config, state = f"homeassistant/sensor/{SENSOR}/tag_1/config", f"sonyc/v1/{SENSOR}/homeassistant/tag_1"
    with (
        Peer(site, "homeassistant", "homeassistant/#", "sonyc/v1/#") as house,
        Peer(site, SENSOR) as sensor,
    ):
        assert sensor.publish(config) == sensor.publish(state) == ""
        assert house.heard(state) == [config, state]
        assert house.publish(config, b"", retain=True) == ""
        assert house.publish(state) == "Not authorized"
        assert house.publish("sonyc/v1/homeassistant/tags") == "Not authorized"


def test_an_administrator_sees_the_broker_and_takes_back_what_a_sensor_has_left(site: Site) -> None:
    left, other = f"sonyc/v1/{SENSOR}/info", f"sonyc/v1/{OTHER}/info"
    with Peer(site, SENSOR) as sensor, Peer(site, OTHER) as stays:
        assert sensor.publish(left, b"retained", retain=True) == ""
        assert stays.publish(other, b"retained", retain=True) == ""
    with Peer(site, "admin", "$SYS/broker/version") as admin:
        assert admin.publish(left, b"", retain=True) == ""
        admin.wait(lambda: bool(admin.retained))
    with Peer(site, "dashboard", left, other) as reader, Peer(site, OTHER) as stays:
        assert stays.publish(other) == ""
        assert reader.heard(other) == [other]
        assert reader.retained == {other: b"retained"}


@both_kinds
def test_a_last_will_is_bound_by_the_same_rules(site: Site, own: str) -> None:
    """Of two sensors that die, the one that wished to speak for the other is not heard."""
    with Peer(site, "dashboard", "sonyc/v1/#") as reader:
        for will in (f"sonyc/v1/{OTHER}/status", f"sonyc/v1/{own}/status"):
            sensor = Peer(site, own, will=will)
            sensor.client.break_off()
            sensor.client.attend()
        assert reader.heard(f"sonyc/v1/{own}/status") == [f"sonyc/v1/{own}/status"]


@both_kinds
def test_nobody_throws_another_out_by_taking_its_id(site: Site, own: str) -> None:
    topic = f"sonyc/v1/{OTHER}/doctor"
    with Peer(site, OTHER, topic, client_id=OTHER) as other:
        with Peer(site, own, client_id=OTHER) as rogue:
            assert rogue.publish(f"sonyc/v1/{own}/tags") == ""
            assert other.publish(topic) == ""
        assert other.heard(topic) == [topic]


def test_what_waits_for_a_reader_outlives_the_broker(site: Site) -> None:
    topic = f"sonyc/v1/{SENSOR}/tags"
    with Peer(site, "dashboard", topic, session_expiry_s=3600):
        pass
    with Peer(site, SENSOR) as sensor:
        assert [sensor.publish(topic, b"%d" % seq) for seq in range(N_KEPT)] == [""] * N_KEPT
    site.stop()
    site.start()
    with Peer(site, "dashboard", session_expiry_s=3600) as reader:
        reader.wait(lambda: len(reader.messages) == N_KEPT)
    assert reader.messages == [(topic, b"%d" % seq) for seq in range(N_KEPT)]


# -- edgetag there ---------------------------------------------------------------------------------------


@both_kinds
def test_what_was_provisioned_passes_the_doctor(site: Site, own: str) -> None:
    """With nothing changed but where things lie."""
    identity = site.identity(own)
    text = (identity / "edgetag.yaml").read_text().replace("/etc/edgetag", str(identity))
    config = identity / "here.yaml"
    config.write_text(re.sub("mqtts://localhost(:8884)?", str(site.address(own)), text))
    done = subprocess.run(
        [sys.executable, "-m", "edgetag", "doctor", "--json", "--config", str(config)],
        env=os.environ | {"CREDENTIALS_DIRECTORY": str(identity)},
        stdout=subprocess.PIPE,
        check=False,
    )
    verdicts = {check["check"]: check["verdict"] for check in map(json.loads, done.stdout.splitlines())}
    assert verdicts["password"] == ("skipped" if own == CERTIFIED else "ok")
    assert {verdicts[name] for name in ("configuration", "TLS", "MQTT login", "publish and receive")} == {
        "ok"
    }


def publisher(site: Site, user: str, sensor: str, version: Version = "5") -> MqttPublisher:
    return MqttPublisher(
        site.address(user), sensor=sensor, info=bundle_info(), boot_id="01JD", how=site.how(version, user)
    )


@both_kinds
@pytest.mark.parametrize("version", VERSIONS)
def test_a_sensors_events_arrive(site: Site, version: Version, own: str) -> None:
    with Peer(site, "dashboard", f"sonyc/v1/{own}/tags") as reader:
        with publisher(site, own, own, version) as sink:
            sink.deliver(tags_event())
        reader.heard(f"sonyc/v1/{own}/tags")
        assert reader.messages == [(f"sonyc/v1/{own}/tags", encode(tags_event()))]


def test_the_readme_shows_a_reader_the_sensors(site: Site) -> None:
    """Its last command, with this broker's port."""
    (command,) = re.findall(r"^edgetag (watch .*)$", _blocks("console")[-1], re.MULTILINE)
    arguments = shlex.split(_changed(command, "broker.example", f"localhost:{site.port}"))
    with (
        publisher(site, SENSOR, SENSOR),
        subprocess.Popen(
            [sys.executable, "-m", "edgetag", *arguments], cwd=site.folder, stdout=subprocess.PIPE, text=True
        ) as watch,
    ):
        assert watch.stdout is not None
        line = watch.stdout.readline()
        watch.terminate()
    assert SENSOR in line
    assert "online" in line


@pytest.mark.parametrize("user", [SENSOR, CERTIFIED, "dashboard"])
def test_whoever_poses_as_another_sensor_is_told_so(site: Site, user: str) -> None:
    with (
        pytest.raises(NetworkError, match=rf"did not accept status on sonyc/v1/{OTHER}: Not authorized"),
        publisher(site, user, OTHER),
    ):
        pass


def test_in_mqtt_311_nobody_is_told_and_nothing_arrives(site: Site) -> None:
    with Peer(site, "admin", "sonyc/v1/#") as everybody:
        with publisher(site, SENSOR, OTHER, "3.1.1") as sink:
            sink.deliver(tags_event())
        with publisher(site, SENSOR, SENSOR) as sink:
            sink.deliver(tags_event())
        heard = everybody.heard(f"sonyc/v1/{SENSOR}/tags")
    assert not any(topic.startswith(f"sonyc/v1/{OTHER}") for topic in heard)


def test_home_assistant_discovery_is_within_a_sensors_rights(site: Site) -> None:
    topic = f"homeassistant/sensor/{SENSOR}/tag_1/config"
    courier = HomeAssistant(
        MqttPublisher(
            site.address(SENSOR),
            sensor=SENSOR,
            info=bundle_info(),
            boot_id="01JD",
            how=site.how(),
            reconnect=False,
            subscribe=[birth_topic("homeassistant")],
        ),
        sensor=SENSOR,
        prefix="sonyc/v1",
        discovery_prefix="homeassistant",
        info=bundle_info(),
        uniform=lambda: 0.0,
    )
    with Peer(site, "homeassistant", topic) as house:
        with courier:
            house.heard(topic)
            house.messages.clear()
            assert house.publish(birth_topic("homeassistant"), b"online") == ""
            house.wait(lambda: bool(courier.settled() or house.messages))
        assert house.heard(topic) == [topic]


# -- the daemon there, and its password ------------------------------------------------------------------


class Daemon:
    """`edgetag run` by a configuration file, without a microphone, as talkative as it can be."""

    def __init__(self, site: Site, folder: Path, password: str) -> None:
        self.folder = folder
        self.config = folder / "edgetag.yaml"
        self._password_file = folder / "password"
        self._password_file.touch(0o600)
        self._password_file.write_text(password + "\n")
        self.config.write_text(
            f"sensor: {{id: {SENSOR}}}\n"
            "audio: {device: nobody}\nruntime: {variant: int8}\n"
            f"mqtt:\n  url: mqtts://localhost:{site.port}\n  user: {SENSOR}\n"
            f"  password_file: {self._password_file}\n  ca_file: {site.ca_file}\n"
            "home_assistant: {discovery: true}\n"
            "log: {level: debug, format: json}\n"
        )
        (folder / "state").mkdir()
        self.environment = os.environ | {"STATE_DIRECTORY": str(folder / "state")}

    def __enter__(self) -> Self:
        with (self.folder / "stdout").open("wb") as stdout, (self.folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                self.command("run", "--format", "json"), env=self.environment, stdout=stdout, stderr=stderr
            )
        return self

    def command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "edgetag", name, *arguments, "--config", str(self.config)]

    def wait_for(self, stream: str, text: bytes) -> None:
        wait_until(lambda: text in self.read(stream) or self._process.poll() is not None)
        assert text in self.read(stream), self.read("stderr").decode()

    def read(self, stream: str) -> bytes:
        return (self.folder / stream).read_bytes()

    def said(self) -> dict[str, bytes]:
        return {name: self.read(name) for name in ("stdout", "stderr")}

    def seen_by_others(self) -> dict[str, bytes]:
        """What the kernel tells of the process."""
        proc = Path("/proc", str(self._process.pid))
        return {name: (proc / name).read_bytes() for name in ("cmdline", "environ")}

    def kept(self) -> dict[str, bytes]:
        """What it has written to its state directory."""
        return {file.name: file.read_bytes() for file in (self.folder / "state").rglob("*") if file.is_file()}

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(WAIT_S)


def assert_nowhere(password: str, places: dict[str, bytes]) -> None:
    spellings = [password.encode(), base64.b64encode(password.encode()).rstrip(b"=")]
    for name, content in places.items():
        assert not any(spelling in content for spelling in spellings), f"the password is in {name}"


@needs_portaudio
def test_the_daemon_publishes_over_tls_and_its_password_is_nowhere_else(site: Site, tmp_path: Path) -> None:
    password = site.password(SENSOR)
    topic = f"sonyc/v1/{SENSOR}/status"
    with Peer(site, "admin", "#") as everybody:
        with Daemon(site, tmp_path, password) as daemon:
            everybody.wait(lambda: b'"no_audio"' in dict(everybody.messages).get(topic, b""))
            daemon.wait_for("stdout", b"no_audio")
            seen = daemon.seen_by_others()
        everybody.wait(lambda: b'"offline"' in dict(everybody.messages)[topic])
    shown = subprocess.run(
        daemon.command("config", "show"), env=daemon.environment, capture_output=True, check=True
    )
    messages = dict(everybody.messages)
    assert f"homeassistant/sensor/{SENSOR}/tag_1/config" in messages
    assert str(daemon.config).encode() in seen["cmdline"]
    assert SENSOR.encode() in shown.stdout
    assert b"mqtt.connected" in daemon.read("stderr")
    assert any(name.endswith(".db") for name in daemon.kept())
    assert_nowhere(password, messages | seen | daemon.said() | daemon.kept() | {"config show": shown.stdout})


@needs_portaudio
def test_a_refused_password_is_reported_and_not_repeated(site: Site, tmp_path: Path) -> None:
    password = "hunter2-is-wrong"
    with Daemon(site, tmp_path, password) as daemon:
        daemon.wait_for("stderr", b"refused the connection")
        seen = daemon.seen_by_others()
    assert b"check user and password" in daemon.read("stderr")
    assert_nowhere(password, seen | daemon.said() | daemon.kept())
