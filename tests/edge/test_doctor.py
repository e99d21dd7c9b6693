"""What the doctor finds, and says to do: real files, sockets and databases, one thing wrong at a time."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import termios
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetag.config import (
    BundleSettings,
    EventSettings,
    MqttSettings,
    OutboxSettings,
    Settings,
    TagSettings,
    WindowSettings,
)
from edgetag.contract.errors import BundleError, EdgetagError, InputError, NetworkError, OutputError
from edgetag.delivery.address import parse_url
from edgetag.delivery.outbox import FILE_NAME, Outbox
from edgetag.doctor import broker, sensor
from edgetag.doctor.broker import shown_certificate
from edgetag.doctor.bundle import bundle
from edgetag.doctor.checkup import CHECKS, Check, Report, examine
from edgetag.doctor.finding import Case, Finding, Verdict, failed
from edgetag.doctor.microphone import capturing, not_opened
from edgetag.doctor.storage import outbox
from edgetag.tagging.store import store_in
from fakes import (
    HANG_UP,
    NOTHING,
    Answer,
    FakeBroker,
    LastWords,
    OnPublish,
    OnSubscribe,
    Published,
    accept,
    acknowledge,
    grant,
    publish,
    refuse,
    reject,
)
from fakes_bundle import write_bundle
from fakes_cli import run_python

CALM = [0.1] * 37
TOPIC = "sonyc/v1/lamp/doctor"
WAIT_S = 20


def case(state: Path = Path("/nowhere"), **sections: Any) -> Case:
    """A configuration that could be read, with these sections."""
    settings = Settings(**sections)
    url = settings.mqtt.url
    address = None if url is None else replace(parse_url(url), user=settings.mqtt.user)
    return Case(None, state, settings, "lamp", address)


def broker_case(port: int, scheme: str = "mqtt", host: str = "127.0.0.1", **mqtt: Any) -> Case:
    return case(mqtt=MqttSettings(url=f"{scheme}://{host}:{port}", **mqtt))


def fails(finding: Finding, kind: type[EdgetagError], text: str, remedy: str) -> None:
    """As this kind of error, with this in the sentence and this to do."""
    assert (finding.verdict, finding.exit_code) == ("failed", kind.exit_code), finding
    assert text in finding.text
    assert remedy in finding.remedy


def passes(finding: Finding, text: str = "") -> None:
    assert (finding.verdict, finding.remedy, finding.exit_code) == ("ok", "", 0), finding
    assert text in finding.text


def warns(finding: Finding, text: str, remedy: str) -> None:
    """Which is no failure."""
    assert (finding.verdict, finding.exit_code) == ("warning", 0), finding
    assert text in finding.text
    assert remedy in finding.remedy


# -- one check after another -----------------------------------------------------------------------------


def check(
    name: str, verdict: Verdict, *needs: str, is_network: bool = False, kind: type[EdgetagError] = BundleError
) -> Check:
    finding = failed("", "", kind) if verdict == "failed" else Finding(verdict, "")
    return Check(name, lambda case: finding, needs, WAIT_S, kind, "", is_network)


def verdicts(*checks: Check, of: Case | None = None) -> dict[str, str]:
    return {report.check: report.verdict for report in examine(of or case(), checks)}


def test_what_needs_something_that_failed_is_skipped_and_nothing_else() -> None:
    """
    a ok ── b failed ── c skipped ── d skipped
    e skipped by itself ── f ok
    """
    reports = list(
        examine(
            case(),
            [
                check("a", "ok"),
                check("b", "failed", "a"),
                check("c", "ok", "a", "b"),
                check("d", "ok", "c"),
                check("e", "skipped", "a"),
                check("f", "ok", "e"),
            ],
        )
    )
    assert [report.verdict for report in reports] == ["ok", "failed", "skipped", "skipped", "skipped", "ok"]
    assert [report.finding for report in reports] == ["", "", "needs b", "needs c", "", ""]


def test_without_a_broker_the_network_is_skipped() -> None:
    """And with one it is not."""
    checks = check("a", "ok"), check("b", "ok", is_network=True)
    assert verdicts(*checks) == {"a": "ok", "b": "skipped"}
    assert verdicts(*checks, of=broker_case(1)) == {"a": "ok", "b": "ok"}


def test_every_check_can_be_reached() -> None:
    """What one needs comes before it, under that name."""
    for n, made in enumerate(CHECKS):
        assert set(made.needs) <= {before.name for before in CHECKS[:n]}


# Checks that hang, in a process of their own: it is ended with a thread left behind.
_HANGS = """
import dataclasses, sys, threading, edgetag.doctor.checkup as c, edgetag.cli as m
def hang(case): threading.Event().wait()
checks = {check.name: check for check in c.CHECKS}
checks["bundle"] = dataclasses.replace(checks["bundle"], look=hang, deadline_s=float(sys.argv.pop()))
del checks["audio device"]
c.CHECKS = tuple(checks.values())
m.main()
"""


def test_what_hangs_is_given_up(tmp_path: Path) -> None:
    """It has failed, the others are made all the same, and the process ends."""
    done = run_python("-c", _HANGS, "doctor", "--json", "0.2", state=tmp_path)
    reports = {report["check"]: report for report in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == BundleError.exit_code, done.stderr
    assert reports["bundle"]["finding"] == "no answer within 0.2 s"
    assert reports["bundle"]["remedy"]
    assert reports["outbox"]["verdict"] == "ok"


def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    """Whatever hangs; without a traceback."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGS, "doctor", "600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("skipped  password"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert "Traceback" not in stderr


# -- what the sensor is told -----------------------------------------------------------------------------


def test_the_defaults_are_a_configuration(tmp_path: Path) -> None:
    """It says who hears, and for whom."""
    finding = sensor.configuration(Case(None, tmp_path))
    passes(finding, "no file, the defaults; sensor ")
    assert finding.text.endswith("events go to stdout")


def test_a_configuration_says_where_events_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And which variables of the environment are over the file."""
    monkeypatch.setenv("EDGETAG_MQTT_USER", "anna")
    file = tmp_path / "edgetag.yaml"
    file.write_text("sensor: {id: lamp}\nmqtt: {url: 'mqtts://broker.example'}")
    found = Case(file, tmp_path)
    finding = sensor.configuration(found)
    passes(finding, f"{file}, EDGETAG_MQTT_USER; sensor lamp; events go to mqtts://broker.example:8883")
    assert found.broker.user == "anna"


def test_a_file_that_cannot_be_read_is_asked_for(tmp_path: Path) -> None:
    finding = sensor.configuration(Case(tmp_path / "absent.yaml", tmp_path))
    fails(finding, InputError, "absent.yaml cannot be read (No such file or directory)", "--config")


def test_all_faults_of_a_configuration_are_told(tmp_path: Path) -> None:
    """And nothing is known for the other checks."""
    file = tmp_path / "edgetag.yaml"
    file.write_text("audio: {devise: x}\nmqtt: {url: broker}\n")
    found = Case(file, tmp_path)
    finding = sensor.configuration(found)
    fails(
        finding, InputError, "audio.devise is unknown; did you mean audio.device?; ", "edgetag config schema"
    )
    assert "mqtt.url: a broker's URL reads" in finding.text
    assert found.address is None


def test_a_host_whose_name_is_no_id_must_be_told_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "a+b")
    fails(sensor.configuration(Case(None, tmp_path)), InputError, "sensor id 'a+b'", "set sensor.id")


def test_the_password_is_found_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file, or where systemd puts it."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    secret.chmod(0o600)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for setting, value in ("password_file", str(secret)), ("password_credential", "secret"):
        found = broker_case(1883, user="lamp", **{setting: value})
        finding = sensor.password(found)
        passes(finding, f"from mqtt.{setting}")
        assert found.broker.password == "hunter2"
        assert "hunter2" not in f"{finding}{found}"


def test_a_password_for_everybody_is_mentioned(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "secret").chmod(0o644)
    found = broker_case(1883, user="lamp", password_file=str(tmp_path / "secret"))
    warns(sensor.password(found), "can be read by everybody", "chmod o-r")


def test_a_missing_password_says_what_belongs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path is not quoted: somebody may have put the password itself there."""
    finding = sensor.password(broker_case(1883, user="lamp", password_file="hunter2"))
    fails(finding, InputError, "mqtt.password_file's file cannot be read", "its first line is the password")
    assert "hunter2" not in f"{finding}"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    finding = sensor.password(broker_case(1883, user="lamp", password_credential="broker"))
    fails(
        finding,
        InputError,
        "$CREDENTIALS_DIRECTORY is not set",
        "its place is /etc/credstore/broker, readable by root alone",
    )


def test_no_password_is_none() -> None:
    assert sensor.password(broker_case(1883)).verdict == "skipped"


# -- the bundle ------------------------------------------------------------------------------------------


def test_the_starter_passes_and_is_timed(tmp_path: Path) -> None:
    """Without a trace: what is measured for good is measured by whoever hears."""
    finding = bundle(case(tmp_path))
    passes(finding, "starter@sha256:")
    assert "the one that ships; passes its self-test; a window takes " in finding.text
    assert finding.text.endswith("a new one every 5 s")
    assert not list(tmp_path.iterdir())


def test_an_installed_bundle_is_named(tmp_path: Path) -> None:
    store_in(tmp_path).install(write_bundle(tmp_path / "source", CALM))
    passes(bundle(case(tmp_path)), "constant@sha256:")


def test_a_broken_bundle_says_how_to_get_it_back(tmp_path: Path) -> None:
    """By where it came from."""
    broken = write_bundle(tmp_path / "broken", CALM)
    (broken / "root.onnx").write_bytes(b"no net")
    finding = bundle(case(tmp_path, bundle=BundleSettings(path=str(broken))))
    fails(finding, BundleError, "root.onnx", "correct bundle.path")
    installed = store_in(tmp_path).install(write_bundle(tmp_path / "source", CALM))
    (installed / "root.onnx").write_bytes(b"no net")
    fails(bundle(case(tmp_path)), BundleError, "root.onnx", "`edgetag bundle rollback`")
    (tmp_path / "bundles" / "current").unlink()
    (tmp_path / "bundles" / "current").touch()
    fails(bundle(case(tmp_path)), BundleError, "cannot be read as a link", "`edgetag bundle install BUNDLE`")


def test_a_bundle_must_be_signed_where_a_key_is_set(tmp_path: Path) -> None:
    """The one that ships is not; and the key must be one."""
    done = run_python("-m", "edgetag", "bundle", "keygen", tmp_path / "acme", state=tmp_path)
    assert done.returncode == 0, done.stderr
    key = BundleSettings(public_key=str(tmp_path / "acme.pub"))
    fails(
        bundle(case(tmp_path, bundle=key)), BundleError, "sign", "that the owner of bundle.public_key signed"
    )
    absent = BundleSettings(public_key=str(tmp_path / "absent.pub"))
    fails(bundle(case(tmp_path, bundle=absent)), InputError, "absent.pub", "correct bundle.public_key")


def test_rules_for_tags_that_the_bundle_does_not_have_are_found(tmp_path: Path) -> None:
    """With them the sensor would not start."""
    events = EventSettings(tags={"9-9": TagSettings()})
    fails(bundle(case(tmp_path, events=events)), InputError, "9-9", "correct events.tags")


def test_a_bundle_that_takes_longer_than_a_hop_is_too_slow(tmp_path: Path) -> None:
    finding = bundle(case(tmp_path, window=WindowSettings(hop_s=1e-6)))
    fails(finding, BundleError, "too slow", "a smaller bundle, or a longer window.hop_s")


# -- the audio device ------------------------------------------------------------------------------------


def proc(folder: Path, pid: int, *command: str) -> Path:
    """A /proc where a process has the input of card 1, and nobody that of card 0."""
    for card, status in (0, "closed\n"), (1, f"state: RUNNING\nowner_pid   : {pid}\ntrigger_time: 1.0\n"):
        substream = folder / "asound" / f"card{card}" / "pcm0c" / "sub0"
        substream.mkdir(parents=True)
        (substream / "status").write_text(status)
    (folder / str(pid)).mkdir()
    (folder / str(pid) / "cmdline").write_bytes("\0".join([*command, ""]).encode())
    return folder


def test_a_device_that_a_running_sensor_has_is_no_failure(tmp_path: Path) -> None:
    """PortAudio does not list it then."""
    command = "/usr/bin/python3", "/opt/edgetag/bin/edgetag", "run", "--config", "edgetag.yaml"
    owners = capturing(proc(tmp_path, 4711, *command))
    assert owners == {4711: list(command)}
    passes(not_opened("the default input is not there", owners), "in use: a running edgetag (process 4711)")


def test_a_device_that_another_program_has_is_named_with_it(tmp_path: Path) -> None:
    owners = capturing(proc(tmp_path, 4711, "/usr/bin/arecord", "-f", "cd"))
    finding = not_opened('the input device "Mic" is not there', owners)
    fails(
        finding,
        InputError,
        '"Mic" is not there; a sound card\'s input is in use by arecord (process 4711)',
        "end that",
    )


def test_a_sandbox_that_hides_processes_does_not_hide_the_running_sensor(tmp_path: Path) -> None:
    """Whose the process is says its cgroup. Another's is only known to be there."""
    folder = proc(tmp_path / "proc", 4711, "arecord")
    (folder / "4711" / "cmdline").unlink()
    owners = capturing(folder)
    service = tmp_path / "cgroup" / "system.slice" / "edgetag.service"
    service.mkdir(parents=True)
    (service / "cgroup.procs").write_text("471\n4711\n")
    passes(not_opened("not there", owners, tmp_path / "cgroup"), "in use: a running edgetag (process 4711)")
    (service / "cgroup.procs").write_text("471\n")
    finding = not_opened("not there", owners, tmp_path / "cgroup")
    fails(finding, InputError, "in use by a program that cannot be seen from here (process 4711)", "end that")


def test_a_device_that_nobody_has_is_to_be_plugged_in(tmp_path: Path) -> None:
    """Nobody, too, where there is no ALSA."""
    assert capturing(tmp_path) == {}
    fails(not_opened("no such device", {}), InputError, "no such device", "plug it in")


def test_without_portaudio_it_says_what_installs_it(tmp_path: Path) -> None:
    done = doctor(tmp_path)
    assert done.returncode == InputError.exit_code
    assert "failed   audio device         PortAudio is not installed" in done.stdout
    assert "remedy: `sudo apt install libportaudio2`" in done.stdout


# -- the outbox ------------------------------------------------------------------------------------------


def test_a_state_directory_that_can_be_made_is_one(tmp_path: Path) -> None:
    """It is not made: that is for whoever hears, as whoever that is."""
    passes(outbox(case(tmp_path / "not" / "yet")), "no outbox yet")
    assert not list(tmp_path.iterdir())


def test_an_outbox_that_waits_for_its_sensor_is_looked_through(tmp_path: Path) -> None:
    """Twice with the same result: looking changes nothing."""
    with Outbox(tmp_path / FILE_NAME) as messages:
        for _ in range(3):
            messages.append("tags", b"{}")
    for _ in range(2):
        passes(outbox(case(tmp_path)), "the outbox is whole, messages in it: 3")


def test_an_outbox_of_a_running_sensor_is_left_alone(tmp_path: Path) -> None:
    """The sensor goes on while it is looked at."""
    with Outbox(tmp_path / FILE_NAME) as messages:
        messages.append("tags", b"{}")
        passes(outbox(case(tmp_path)), "in use by a running edgetag")
        messages.append("tags", b"{}")
        assert (messages.depth, messages.fault) == (2, "")


@pytest.mark.parametrize("damage", ["no database", "a page", "a stranger's"])
def test_a_damaged_outbox_is_reported_and_left_to_the_sensor(tmp_path: Path, damage: str) -> None:
    """It is the sensor that sets it aside."""
    file = tmp_path / FILE_NAME
    match damage:
        case "no database":
            file.write_bytes(b"no database at all\n" * 500)
        case "a page":
            with Outbox(file) as messages:
                for _ in range(100):
                    messages.append("tags", bytes(1000))
            content = bytearray(file.read_bytes())
            content[-8192:-4096] = b"\xff" * 4096
            file.write_bytes(content)
        case _:
            with sqlite3.connect(file) as database:
                database.execute("CREATE TABLE other (n)")
            database.close()
    before = file.read_bytes()
    fails(outbox(case(tmp_path)), OutputError, f"{file} is damaged", f"sets it aside as {FILE_NAME}.damaged")
    assert file.read_bytes() == before


def test_a_state_directory_that_cannot_be_written_fails(tmp_path: Path) -> None:
    """Nothing can be made in what is no directory, even by root."""
    (tmp_path / "state").touch()
    fails(
        outbox(case(tmp_path / "state")),
        OutputError,
        "cannot write (Not a directory)",
        "make it writable for",
    )


def test_too_little_room_for_a_full_outbox_is_mentioned(tmp_path: Path) -> None:
    finding = outbox(case(tmp_path, outbox=OutboxSettings(max_bytes=10**18)))
    warns(finding, "there is no room for a full one", "lower outbox.max_bytes, which is 1,000,000,000,000 MB")


def test_an_outbox_in_memory_needs_no_disk() -> None:
    assert outbox(case(outbox=OutboxSettings(durability="memory"))).verdict == "skipped"


# -- the way to the broker -------------------------------------------------------------------------------


def test_an_address_is_no_name() -> None:
    passes(broker.dns(broker_case(1883)), "127.0.0.1 is an address")


def test_a_name_is_looked_up() -> None:
    passes(broker.dns(broker_case(1883, host="localhost")), "localhost is ")


@pytest.mark.parametrize("host", ["broker.invalid", f"{'x' * 64}.example"])
def test_a_name_that_nobody_knows_fails(host: str) -> None:
    """The second cannot even be asked for."""
    finding = broker.dns(broker_case(1883, host=host))
    fails(finding, NetworkError, "cannot find the host of mqtt://", f"`getent hosts {host}`")


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    fails(
        broker.tcp(broker_case(port)),
        NetworkError,
        "nothing listens at",
        "start the broker, or correct the port",
    )


def test_packets_that_vanish_are_waited_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose queue is full answers no more than a firewall that drops."""
    monkeypatch.setattr(broker, "ANSWER_S", 0.2)
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        port = server.getsockname()[1]
        finding = broker.tcp(broker_case(port))
    fails(finding, NetworkError, "did not answer within 0.2 s", f"does a firewall let port {port} through?")


def test_a_port_where_nobody_answers_is_no_port_with_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        passes(broker.tcp(broker_case(port)), f"127.0.0.1 listens on port {port}")
        finding = broker.tls(broker_case(port, "mqtts"))
    fails(finding, NetworkError, "did not answer within 0.2 s", "Without TLS it is mqtt://")


def test_a_setting_of_tls_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    finding = broker.tls(broker_case(1, "mqtts", ca_file=str(tmp_path / "absent.pem")))
    fails(finding, InputError, "absent.pem: No such file", "correct that setting")


def test_a_key_that_is_no_credential_of_ours_says_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is asked of the network."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    finding = broker.tls(broker_case(1, "mqtts", cert_file="sensor.crt", key_credential="mqtt-key"))
    fails(finding, InputError, "mqtt.key_credential names none of the", "/etc/credstore/mqtt-key")


@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
def test_without_tls_there_is_no_certificate(scheme: str) -> None:
    assert broker.tls(broker_case(1, scheme)) == Finding("skipped", f"{scheme}:// is not encrypted")


@pytest.mark.parametrize(
    ("now_s", "left", "verdict"),
    [
        (60 * 86_400, "30 days left", "ok"),
        (82 * 86_400, "8 days left", "warning"),
        (89 * 86_400, "24 hours left", "warning"),
    ],
)
def test_a_certificate_is_renewed_before_the_last_tenth_of_its_life(
    now_s: int, left: str, verdict: str
) -> None:
    """Ninety days from 1970 on."""
    certificate = {
        "subject": ((("organizationName", "Acme"),), (("commonName", "broker.example"),)),
        "subjectAltName": (("DNS", "broker.example"), ("DNS", "mqtt.example")),
        "notBefore": "Jan  1 00:00:00 1970 GMT",
        "notAfter": "Apr  1 00:00:00 1970 GMT",
    }
    finding = shown_certificate(certificate, "TLSv1.3", now_s)
    assert finding.verdict == verdict
    assert (
        finding.text
        == f"TLSv1.3, certificate of broker.example, mqtt.example, valid until 1970-04-01 ({left})"
    )
    assert finding.remedy == ("" if verdict == "ok" else "renew the broker's certificate")


# -- at the broker ---------------------------------------------------------------------------------------


def echo(message: Published) -> bytes:
    """Acknowledged, and back to the only subscriber."""
    return acknowledge(message) + publish(message.topic.encode(), message.payload, message.level)


def visited(
    monkeypatch: pytest.MonkeyPatch,
    *,
    answer: Answer = accept,
    on_publish: OnPublish = echo,
    on_subscribe: OnSubscribe = grant,
    **mqtt: Any,
) -> tuple[Finding, Finding | None, FakeBroker]:
    """Login, and message there and back, at such a broker."""
    monkeypatch.setattr(broker, "ECHO_S", 0.5)
    with FakeBroker(answer, on_publish, on_subscribe=on_subscribe) as fake:
        visiting = broker_case(fake.port, **mqtt)
        login = broker.mqtt_login(visiting)
        back = broker.publish_and_receive(visiting) if visiting.login else None
    return login, back, fake


def test_a_message_goes_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an id and a topic of its own, without a last will, not retained. Then it says goodbye."""
    login, back, fake = visited(monkeypatch, user="lamp")
    passes(login, "MQTT 5 as lamp, client id lamp-doctor")
    assert back is not None
    passes(back, f"{TOPIC}, there and back")
    (connect,), (message,) = fake.connects, fake.published
    assert b"lamp-doctor" in connect
    assert b"status" not in connect
    assert (message.topic, message.retain) == (TOPIC, False)
    assert fake.goodbyes == 1


def test_the_version_that_was_spoken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_3(level: int) -> bytes:
        return refuse(0x84, 1)(level) or b"" if level == 5 else accept(level)

    login, back, _ = visited(monkeypatch, answer=only_3)
    passes(login, "MQTT 3.1.1 as nobody")
    assert back is not None
    passes(back)


def test_a_refused_login_says_whose_password_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    login, back, _ = visited(monkeypatch, answer=refuse(0x86, 4), user="lamp")
    fails(login, NetworkError, "bad user name or password", "let mqtt.user and the password be those")
    assert "client id lamp-doctor" in login.remedy
    assert back is None


def test_who_speaks_no_mqtt_is_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    login, _, _ = visited(monkeypatch, answer=lambda level: HANG_UP)
    fails(login, NetworkError, "hung up without an answer", "let mqtt.url name an MQTT listener")


@pytest.mark.parametrize(
    ("on_publish", "text"),
    [
        (lambda message: reject(message, 0x87), f"the broker refuses a message on {TOPIC} (not authorized)"),
        (lambda message: NOTHING, f"no answer to a message on {TOPIC} within 0.5 s"),
        (lambda message: HANG_UP, "lost the connection"),
    ],
)
def test_who_may_not_publish_is_told_what_to_allow(
    monkeypatch: pytest.MonkeyPatch, on_publish: OnPublish, text: str
) -> None:
    """Refused, not answered, or thrown out for it."""
    _, back, _ = visited(monkeypatch, on_publish=on_publish)
    assert back is not None
    fails(back, NetworkError, text, "let the user write sonyc/v1/lamp/#")


@pytest.mark.parametrize(
    "on_subscribe",
    [lambda wish: grant(wish, 0x87), grant, lambda wish: NOTHING],
    ids=["refused", "granted, but nothing comes", "no answer"],
)
def test_who_may_not_read_can_run(monkeypatch: pytest.MonkeyPatch, on_subscribe: OnSubscribe) -> None:
    """The missing right is named, and that sensors do not need it."""
    _, back, _ = visited(monkeypatch, on_publish=acknowledge, on_subscribe=on_subscribe)
    assert back is not None
    warns(back, f"{TOPIC} is taken, but does not come back: the user has no right to read it", "none needed")


def test_another_message_on_the_topic_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another doctor's, for instance."""
    _, back, _ = visited(
        monkeypatch, on_publish=lambda message: acknowledge(message) + publish(TOPIC.encode(), b"other")
    )
    assert back is not None
    assert back.verdict == "warning"


def test_of_mqtt_3_nobody_learns_which_right_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker acknowledges there what it throws away."""
    _, back, _ = visited(monkeypatch, version="3.1.1", on_publish=acknowledge)
    assert back is not None
    warns(back, "no right to read it (not needed), or none to write it", "let the user write sonyc/v1/lamp/#")


def test_a_sensor_that_comes_back_under_the_same_id_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the broker takes the user's name for the client id: DISCONNECT, session taken over."""
    _, back, _ = visited(monkeypatch, on_publish=lambda message: LastWords(b"\xe0\x01\x8e"))
    assert back is not None
    warns(back, "the broker takes the user's name for the client id", "stop the sensor meanwhile")


def test_who_is_cut_off_after_the_message_was_taken_may_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a sensor that comes back to Mosquitto 2.0, which does not say why."""
    _, back, _ = visited(monkeypatch, on_publish=lambda message: LastWords(acknowledge(message)))
    assert back is not None
    warns(back, f"{TOPIC} is taken, but does not come back", "none needed")


# -- the command -----------------------------------------------------------------------------------------


_DEAF = "import ctypes.util as u, edgetag.cli as c; u.find_library = lambda name: None; c.main()"


def doctor(folder: Path, *options: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`edgetag doctor` on a machine without PortAudio, whatever this one has."""
    command = "-c", _DEAF, *before, "doctor", *options
    return run_python(*command, state=folder / "state", cwd=folder)


def test_a_check_is_a_line_and_a_remedy_another(tmp_path: Path) -> None:
    """In the order of the checks. Nothing is left behind."""
    done = doctor(tmp_path)
    assert (done.returncode, done.stderr) == (InputError.exit_code, "")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("         remedy: ")]
    assert [line[9:].partition("  ")[0] for line in lines] == [check.name for check in CHECKS]
    assert lines[0].startswith("ok       configuration        no file, the defaults; sensor ")
    assert lines[0].endswith(" s)")
    assert lines[1] == "skipped  password             mqtt.url is null: events go to stdout"
    assert not list(tmp_path.iterdir())


def test_a_terminal_gets_lines_of_its_width_and_sees_what_is_waited_for(tmp_path: Path) -> None:
    """What is announced while it takes is erased; only the verdict is coloured."""
    near, far = pty.openpty()
    columns = 70
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = os.environ | {"STATE_DIRECTORY": "state", "LC_ALL": "C.UTF-8"}
    for variable in ("COLUMNS", "NO_COLOR"):
        environment.pop(variable, None)
    command = [sys.executable, "-c", _DEAF, "doctor"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=far, stderr=far):
        os.close(far)
        shown = b"".join(iter(lambda: _read(near), b"")).decode()
    os.close(near)
    assert "         audio device …\r\x1b[K\x1b[31mfailed\x1b[0m   audio device " in shown
    lines = re.sub(r"[^\n]*\x1b\[K|\x1b\[\d*m", "", shown).splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("ok       configuration        no file, the defaults; sensor ")
    assert any(line.startswith("         remedy: ") for line in lines)
    assert not any("…" in line for line in lines)


def _read(terminal: int) -> bytes:
    """What comes next; nothing once nobody writes any more."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_json_is_for_programs(tmp_path: Path) -> None:
    reports = [json.loads(line) for line in doctor(tmp_path, "--json").stdout.splitlines()]
    assert [report["check"] for report in reports] == [check.name for check in CHECKS]
    assert all(report.keys() == set(Report.__struct_fields__) for report in reports)


def test_the_first_failure_gives_the_exit_code(tmp_path: Path) -> None:
    """The bundle's, before the audio's; a configuration that is none leaves only the clock to look at."""
    (tmp_path / "edgetag.yaml").write_text("bundle: {path: nowhere}")
    assert doctor(tmp_path, "--config", "edgetag.yaml").returncode == BundleError.exit_code
    (tmp_path / "edgetag.yaml").write_text("bundel: {}")
    done = doctor(tmp_path, "--config", "edgetag.yaml", "--json")
    assert done.returncode == InputError.exit_code
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert {report["verdict"] for report in reports[1:-1]} == {"skipped"}


def test_no_secret_is_shown(tmp_path: Path) -> None:
    """Neither by what passes nor by what fails, nor in the log."""
    (tmp_path / "secret").write_text("hunter2\n")
    with FakeBroker(refuse(0x86, 4)) as fake:
        mqtt = f"{{url: 'mqtt://127.0.0.1:{fake.port}', user: lamp, password_file: secret}}"
        (tmp_path / "edgetag.yaml").write_text(f"mqtt: {mqtt}")
        done = doctor(tmp_path, "--config", "edgetag.yaml", before=("-v",))
    assert "failed   MQTT login" in done.stdout
    assert b"hunter2" in fake.connects[0]
    assert "hunter2" not in done.stdout + done.stderr


def test_a_warning_of_the_log_is_no_line_beside_its_own(tmp_path: Path) -> None:
    """That a password can be read by everybody, for instance."""
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "secret").chmod(0o644)
    with FakeBroker() as fake:
        mqtt = f"{{url: 'mqtt://127.0.0.1:{fake.port}', user: lamp, password_file: secret}}"
        (tmp_path / "edgetag.yaml").write_text(f"mqtt: {mqtt}")
        done = doctor(tmp_path, "--config", "edgetag.yaml")
    assert "warning  password             mqtt.password_file can be read by everybody" in done.stdout
    assert done.stderr == ""
