"""`edgetag doctor` and the real things: Mosquitto with passwords, TLS and rights, PulseAudio, disks."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from certificates import Authority
from edgetag.config import MqttSettings, Settings
from edgetag.contract.errors import EdgetagError, InputError, NetworkError, OutputError
from edgetag.delivery.address import parse_url
from edgetag.delivery.connection import BrokerClient, connect
from edgetag.doctor import broker
from edgetag.doctor.finding import Case, Finding
from edgetag.doctor.storage import outbox
from system.sensor import Sensor
from system.sound_server import SoundServer, needs_sound_server
from system.test_mosquitto import Mosquitto, find
from system.test_mosquitto_deploy import SENSOR, Site

WAIT_S = 20
RATE_HZ = 44_100
TOPIC = f"sonyc/v1/{SENSOR}/doctor"

needs_mosquitto = pytest.mark.skipif(
    not (find("mosquitto") and find("mosquitto_passwd")), reason="mosquitto is not installed"
)


def fails(finding: Finding, kind: type[EdgetagError], text: str, remedy: str) -> None:
    """As this kind of error, with this in the sentence and this to do."""
    assert (finding.verdict, finding.exit_code) == ("failed", kind.exit_code), finding
    assert text in finding.text
    assert remedy in finding.remedy


# -- the command -----------------------------------------------------------------------------------------

# This machine's clock may be kept in step by nobody; and nobody shall wait for long.
_AS_ELSEWHERE = """
import dataclasses, sys, edgetag.cli as m, edgetag.doctor.checkup as c, edgetag.doctor.sensor as s
s.kernel_clock_synced = lambda: True
limit_s = float(sys.argv.pop())
c.CHECKS = tuple(dataclasses.replace(check, deadline_s=min(check.deadline_s, limit_s)) for check in c.CHECKS)
m.main()
"""
Reports = dict[str, dict[str, Any]]
Doctor = Callable[..., tuple[int, Reports]]


@pytest.fixture
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoundServer]:
    with SoundServer(tmp_path_factory.mktemp("sound"), rate_hz=RATE_HZ) as server:
        yield server


@pytest.fixture
def doctor(street: SoundServer, tmp_path: Path) -> Doctor:
    """Run it on this street; exit code and reports, by check. Nothing else is said."""

    def run(
        config: dict[str, Any] | None = None, *, state: Path = tmp_path / "state", deadline_s: float = 60
    ) -> tuple[int, Reports]:
        (tmp_path / "edgetag.yaml").write_text(yaml.safe_dump(config or {}))
        command = [sys.executable, "-c", _AS_ELSEWHERE, "doctor", "--json", "--config", "edgetag.yaml"]
        done = subprocess.run(
            [*command, str(deadline_s)],
            cwd=tmp_path,
            env=street.environment() | {"STATE_DIRECTORY": str(state)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stderr == ""
        reports = [json.loads(line) for line in done.stdout.splitlines()]
        return done.returncode, {report["check"]: report for report in reports}

    return run


def noise(seconds: float = 60) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.05, round(seconds * RATE_HZ)).astype(np.float32)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """The broker of deploy/mosquitto, set up as its README says."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # Mosquitto's user must get to its own
        with Site(Path(folder)) as site:
            yield site


@needs_sound_server
@needs_mosquitto
def test_a_sensor_as_it_is_documented_is_well(
    doctor: Doctor, street: SoundServer, site: Site, tmp_path: Path
) -> None:
    """A microphone that hears, a password, TLS, and the broker and the rights of deploy/mosquitto."""
    (tmp_path / "password").write_text(site.password(SENSOR))
    (tmp_path / "password").chmod(0o600)
    street.play(noise(), wait=False)
    mqtt = {"url": f"mqtts://localhost:{site.port}", "user": SENSOR, "password_file": "password"}
    code, reports = doctor({"sensor": {"id": SENSOR}, "mqtt": {**mqtt, "ca_file": site.ca_file}})
    assert {name: report["verdict"] for name, report in reports.items()} == dict.fromkeys(reports, "ok")
    assert code == 0
    assert reports["audio device"]["finding"].startswith("default, 1 channel at 44100 Hz: hears -26.")
    assert "certificate of localhost, valid until 20" in reports["TLS"]["finding"]
    assert reports["publish and receive"]["finding"] == f"{TOPIC}, there and back"
    assert site.password(SENSOR) not in json.dumps(reports)


@needs_sound_server
@needs_mosquitto
def test_a_running_sensor_is_well_and_goes_on(doctor: Doctor, street: SoundServer, tmp_path: Path) -> None:
    """It shares the sound server, keeps its outbox and its connection, and says nothing of a doctor."""
    with Mosquitto(tmp_path) as server:
        config = {"sensor": {"id": SENSOR}, "mqtt": {"url": f"mqtt://127.0.0.1:{server.port}"}}
        (tmp_path / "sensor.yaml").write_text(yaml.safe_dump(config))
        server.subscribe("reader")
        options = "--format", "json", "--config", str(tmp_path / "sensor.yaml")
        with Sensor(tmp_path / "sensor", street.environment(), *options) as sensor:
            street.play(noise(), wait=False)
            assert sensor.wait_for_state("online", 0)
            code, reports = doctor(config, state=sensor.state)
            assert sensor.terminate()[0] == 0
        messages = server.take_until("reader", "stopped")
    assert code == 0, reports
    assert reports["outbox"]["finding"].endswith("the outbox is in use by a running edgetag")
    assert reports["audio device"]["verdict"] == reports["publish and receive"]["verdict"] == "ok"
    kinds = [message.kind for message in messages]
    assert (kinds.count("doctor"), kinds.count("info")) == (1, 1)
    assert "connection lost" not in [message.payload.get("reason") for message in messages]


@needs_sound_server
def test_a_silent_device_is_a_failure(doctor: Doctor) -> None:
    """A null sink's monitor delivers zeros, as no microphone does."""
    code, reports = doctor()
    assert code == InputError.exit_code
    report = reports["audio device"]
    assert report["finding"] == "default, 1 channel at 44100 Hz: nothing but zeros, digital silence"
    assert report["remedy"].startswith("is it muted")
    assert reports["clock"]["verdict"] == "ok"


@needs_sound_server
def test_a_device_that_is_not_there_is_a_failure(doctor: Doctor) -> None:
    """And what there is, is said."""
    code, reports = doctor({"audio": {"device": "usb:1-1.3"}})
    assert code == InputError.exit_code
    report = reports["audio device"]
    assert report["finding"].startswith('the input device "usb:1-1.3" is not there; there is "pulse", ')
    assert report["remedy"].startswith("plug it in")


@needs_sound_server
def test_a_sound_server_that_hangs_hangs_nobody(doctor: Doctor, street: SoundServer) -> None:
    """The check is given up, the others are made, and the process ends with the failure's code."""
    street.stop()
    code, reports = doctor(deadline_s=4)
    assert code == InputError.exit_code
    report = reports["audio device"]
    assert (report["verdict"], report["finding"]) == ("failed", "no answer within 4 s")
    assert report["remedy"].startswith("does a sound server hang")
    assert reports["clock"]["verdict"] == "ok"


@needs_sound_server
def test_ctrl_c_ends_it_while_it_hears(street: SoundServer, tmp_path: Path) -> None:
    """In the middle of PortAudio's code, without a crash of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetag", "doctor"],
        env=street.environment() | {"STATE_DIRECTORY": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    street.wait_for_listener()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=WAIT_S)[1] == b""
    assert process.returncode == 130


# -- brokers ---------------------------------------------------------------------------------------------


def at(server: Mosquitto, scheme: str = "mqtt", password: str | None = None, **mqtt: Any) -> Case:
    """The sensor with this broker; its user is called like it, where there is a password."""
    settings = MqttSettings(url=f"{scheme}://127.0.0.1:{server.port}", user=password and SENSOR, **mqtt)
    assert settings.url is not None
    address = replace(parse_url(settings.url), user=settings.user, password=password)
    return Case(None, Path("/nowhere"), Settings(mqtt=settings), SENSOR, address)


def there_and_back(case: Case) -> Finding:
    login = broker.mqtt_login(case)
    assert login.verdict == "ok", login
    return broker.publish_and_receive(case)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as server:
        yield server


@needs_mosquitto
def test_a_broker_that_is_down_is_to_be_started(plain: Mosquitto) -> None:
    plain.stop()
    fails(broker.tcp(at(plain)), NetworkError, "nothing listens at", "start the broker")
    fails(
        broker.mqtt_login(at(plain)), NetworkError, "nothing listens at", "let mqtt.url name an MQTT listener"
    )


@needs_mosquitto
@pytest.mark.parametrize("version", [5, "3.1.1"])
def test_a_running_sensor_and_its_subscribers_are_left_alone(plain: Mosquitto, version: Any) -> None:
    """It keeps its connection; a subscriber to everything gets one message more, and nothing is retained."""
    sensor, _ = connect(plain.address(), SENSOR)
    plain.subscribe("reader", "sonyc/#")
    assert there_and_back(at(plain, version=version)).verdict == "ok"
    sensor.publish(f"sonyc/v1/{SENSOR}/tags", b"{}", qos=1)
    _attend(sensor, lambda: not sensor.want_write())
    (first, second) = plain.take("reader", 2, "sonyc/#")
    assert [first.kind, second.kind] == [TOPIC.rpartition("/")[2], "tags"]
    assert not first.retained
    sensor.break_off()


@needs_mosquitto
def test_where_the_user_is_the_client_id_the_sensor_must_come_again(tmp_path: Path) -> None:
    """The price of `use_username_as_clientid`: the doctor takes the connection over.

    Mosquitto 2.0.11 ends the other one without a word.
    """
    settings = _guarded(tmp_path, "pattern readwrite sonyc/v1/%u/#")
    with Mosquitto(tmp_path, *settings, "use_username_as_clientid true") as server:
        sensor, _ = connect(server.address(SENSOR, "hunter2"), SENSOR)
        assert there_and_back(at(server, password="hunter2")).verdict == "ok"
        with pytest.raises(NetworkError):
            _attend(sensor, lambda: False)


def _attend(client: BrokerClient, done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    client.attend(lambda: done() or time.monotonic() > deadline_s)


def _guarded(folder: Path, *rights: str) -> list[str]:
    """Settings of a broker that knows the sensor by the password hunter2, and gives it these rights."""
    passwd = find("mosquitto_passwd")
    assert passwd is not None
    subprocess.run([passwd, "-b", "-c", str(folder / "passwords"), SENSOR, "hunter2"], check=True)
    (folder / "rights").write_text("\n".join([*rights, ""]))
    files = f"password_file {folder / 'passwords'}", f"acl_file {folder / 'rights'}"
    return ["allow_anonymous false", *files]


@needs_mosquitto
@pytest.mark.parametrize("version", [5, "3.1.1"])
def test_a_wrong_password_does_not_open(tmp_path: Path, version: Any) -> None:
    with Mosquitto(tmp_path, *_guarded(tmp_path)) as server:
        for password in ("hunter3", None):
            finding = broker.mqtt_login(at(server, password=password, version=version))
            fails(finding, NetworkError, "refused the connection", "let mqtt.user and the password be those")
            assert "hunter" not in f"{finding}"


@needs_mosquitto
def test_a_missing_right_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To write, which a sensor needs; or to read back, which it does not."""
    monkeypatch.setattr(broker, "ECHO_S", 1.0)
    with Mosquitto(tmp_path, *_guarded(tmp_path, "pattern read sonyc/v1/%u/#")) as server:
        finding = there_and_back(at(server, password="hunter2"))
        fails(
            finding, NetworkError, f"refuses a message on {TOPIC}", f"let the user write sonyc/v1/{SENSOR}/#"
        )
    with Mosquitto(tmp_path, *_guarded(tmp_path, "pattern write sonyc/v1/%u/#")) as server:
        finding = there_and_back(at(server, password="hunter2"))
        assert finding.verdict == "warning"
        assert "the user has no right to read it" in finding.text
        assert finding.remedy.startswith("none needed")


@needs_mosquitto
@pytest.mark.parametrize("right", ["read", "write"])
def test_of_mqtt_3_the_right_to_write_is_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: str
) -> None:
    """Mosquitto acknowledges there what it throws away."""
    monkeypatch.setattr(broker, "ECHO_S", 1.0)
    with Mosquitto(tmp_path, *_guarded(tmp_path, f"pattern {right} sonyc/v1/%u/#")) as server:
        finding = there_and_back(at(server, password="hunter2", version="3.1.1"))
    assert finding.verdict == "warning"
    assert "MQTT 3.1.1 does not say which" in finding.text


# -- certificates ----------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def _secured(folder: Path, certificate: tuple[Path, Path], *settings: str) -> Mosquitto:
    files = f"certfile {certificate[0]}", f"keyfile {certificate[1]}"
    return Mosquitto(folder, *files, "allow_anonymous true", *settings)


@needs_mosquitto
def test_a_certificate_is_shown(tmp_path: Path, authority: Authority) -> None:
    """Whose, and until when."""
    with _secured(tmp_path, authority.issue("broker")) as server:
        case = at(server, "mqtts", ca_file=str(authority.ca_file))
        finding = broker.tls(case)
        assert there_and_back(case).verdict == "ok"
    assert finding.verdict == "ok"
    assert "TLSv1.3, certificate of broker, 127.0.0.1, localhost, valid until 20" in finding.text
    assert "(24 hours left)" in finding.text


@needs_mosquitto
def test_an_expired_certificate_is_to_be_renewed(tmp_path: Path, authority: Authority) -> None:
    """Or it is the clock."""
    with _secured(tmp_path, authority.issue("broker", expired=True)) as server:
        finding = broker.tls(at(server, "mqtts", ca_file=str(authority.ca_file)))
    fails(
        finding,
        NetworkError,
        "has expired",
        "renew the broker's certificate; or set this machine's clock, if 20",
    )


@needs_mosquitto
def test_a_certificate_for_another_host_is_named_by_its_own(tmp_path: Path, authority: Authority) -> None:
    with _secured(tmp_path, authority.issue("broker", hosts=["broker.example"])) as server:
        finding = broker.tls(at(server, "mqtts", ca_file=str(authority.ca_file)))
    fails(finding, NetworkError, "is for another host", "let mqtt.url name the host as the certificate does")


@needs_mosquitto
def test_an_unknown_authority_is_to_be_made_known(tmp_path: Path, authority: Authority) -> None:
    """None is set, or another one."""
    with _secured(tmp_path, authority.issue("broker")) as server:
        for ca_file in (None, str(Authority(tmp_path, "other").ca_file)):
            finding = broker.tls(at(server, "mqtts", ca_file=ca_file))
            fails(
                finding,
                NetworkError,
                "comes from an unknown authority",
                "let mqtt.ca_file name the certificate",
            )


@needs_mosquitto
def test_a_listener_without_tls_is_found_out(plain: Mosquitto) -> None:
    fails(
        broker.tls(at(plain, "mqtts")),
        NetworkError,
        "is that port meant for TLS?",
        "Without TLS it is mqtt://",
    )


@needs_mosquitto
@pytest.mark.parametrize("tls_version", ["tlsv1.2", "tlsv1.3"])
def test_a_broker_that_wants_a_certificate_gets_one(
    tmp_path: Path, authority: Authority, tls_version: str
) -> None:
    """Without one it is refused in the handshake or, by TLS 1.3, only after it."""
    settings = f"cafile {authority.ca_file}", "require_certificate true", f"tls_version {tls_version}"
    certificate, key = authority.issue("sensor")
    with _secured(tmp_path, authority.issue("broker"), *settings) as server:
        known = {"ca_file": str(authority.ca_file)}
        case = at(server, "mqtts", **known)
        finding = broker.tls(case)
        if finding.verdict == "ok":
            finding = broker.mqtt_login(case)
        fails(finding, NetworkError, "client certificate", "mqtt.cert_file")
        case = at(server, "mqtts", **known, cert_file=str(certificate), key_file=str(key))
        assert broker.tls(case).verdict == "ok"
        assert there_and_back(case).verdict == "ok"


# -- disks -----------------------------------------------------------------------------------------------


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system of its own, with these options; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "edgetag-test", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("cannot mount a file system here")
        return folder

    yield mounted
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def _outbox(state: Path) -> Finding:
    return outbox(Case(None, state))


def test_a_read_only_disk_cannot_be_written(mount: Callable[[str], Path]) -> None:
    """Even by root; nor can a directory be made there."""
    folder = mount("ro,size=64k")
    for state in (folder, folder / "state"):
        fails(_outbox(state), OutputError, "cannot write (Read-only file system)", "make it writable for")


def test_a_full_disk_is_to_be_emptied(mount: Callable[[str], Path]) -> None:
    folder = mount("size=64k")
    (folder / "full").write_bytes(bytes(60_000))
    fails(_outbox(folder), OutputError, "cannot write (No space left on device)", "make room: `du ")


def test_a_small_disk_has_no_room_for_a_full_outbox(mount: Callable[[str], Path]) -> None:
    """Which is no failure: it may never be full."""
    finding = _outbox(mount("size=1m"))
    assert finding.verdict == "warning"
    assert "there is no room for a full one" in finding.text
