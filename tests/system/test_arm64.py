"""What is installed on arm64 hears what x86-64 hears, finds itself well, and goes to work.

Run by `make test-system` on an x86-64 Debian, as root; a plain `make test` leaves these tests out. A minimal
Debian 12 for arm64 (see `emulation`) has been given one file, the archive of `make archive`, and no network.
Everything in there is emulated by QEMU, which shows values and behaviour, not speed: no test here is about
time, and the seconds printed are QEMU's. The microphone is a null sink of this machine's PulseAudio, the
brokers are this machine's Mosquitto. The emulated processor is a Raspberry Pi 4's, without dot product; what
others do to probabilities is `test_portability`'s.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import soundfile

from edgetag import Tagger, __version__
from edgetag.capture.clock import kernel_clock_synced
from edgetag.contract.errors import NetworkError
from edgetag.contract.event import json_schema
from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag.contract.manifest import Variant
from edgetag.demo.scene import street_scene
from edgetag.doctor.checkup import CHECKS
from system.emulation import PYTHON, add_packages, arm64_root, in_root, missing_for_arm64, run
from system.sensor import Sensor
from system.sound_server import SoundServer
from system.sound_server import missing as missing_for_sound
from system.test_mosquitto import SENSOR, Mosquitto, find
from system.test_mosquitto_deploy import Site

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with an x86-64 processor"),
    pytest.mark.skipif(missing_for_arm64() is not None, reason=missing_for_arm64() or ""),
]
needs_microphone = pytest.mark.skipif(missing_for_sound() is not None, reason=missing_for_sound() or "")
needs_broker = pytest.mark.skipif(not find("mosquitto_passwd"), reason="mosquitto is not installed")

REPOSITORY = Path(__file__).parents[2]
EDGETAG = "/usr/local/bin/edgetag"
CONFIGURATION = "/etc/edgetag/edgetag.yaml"  # as install.sh has left it
CPU = {"QEMU_CPU": "cortex-a72"}
ELF_MACHINE, AARCH64 = slice(18, 20), (183).to_bytes(2, "little")
STREET_S, PATIENCE_S = 25, 600
LEVEL_TOLERANCE_DB = 0.01
N_WINDOWS = 4

Event = dict[str, Any]


def say(claim: str) -> None:
    print(f"\narm64: {claim}", end="")  # noqa: T201


@pytest.fixture(scope="module")
def root() -> Path:
    """Debian for arm64, and edgetag as install.sh has put it there."""
    return arm64_root(REPOSITORY)


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that is there under the same path in both, and everybody may enter; there are sockets in it."""
    with tempfile.TemporaryDirectory(prefix="arm") as name:
        Path(name).chmod(0o755)
        yield Path(name)


# -- what was installed ----------------------------------------------------------------------------------


def packages(root: Path) -> list[Distribution]:
    (site,) = (root / "opt" / "edgetag" / "current").glob("lib/python3.11/site-packages")
    return list(distributions(path=[str(site)]))


def test_a_bare_debian_without_a_network_is_made_a_sensor_by_one_file(root: Path) -> None:
    """With neither pip nor venv's ensurepip of its own; and it starts with the next boot."""
    assert not (root / "usr/lib/python3.11/ensurepip").exists()
    assert not (root / "usr/lib/python3/dist-packages/pip").exists()
    assert run(in_root(root, EDGETAG, "--version"), **CPU) == f"edgetag {__version__}\n"
    assert run(in_root(root, "systemctl", "is-enabled", "edgetag.service")) == "enabled\n"
    installed = (root / "opt/edgetag/current").readlink().name
    say(f"install.sh of one archive, without any network or pip, puts {installed} in force and enables it")


def test_everything_native_is_aarch64_from_wheels(root: Path) -> None:
    """No compiler was there, and nothing of x86-64 has come along."""
    tags = {
        package.name: [line for line in (package.read_text("WHEEL") or "").splitlines() if "Tag:" in line]
        for package in packages(root)
    }
    native = [name for name, lines in tags.items() if any("aarch64" in line for line in lines)]
    strange = [name for name, lines in tags.items() if not any("aarch64" in t or "any" in t for t in lines)]
    assert strange == []
    assert {"numpy", "onnxruntime", "scipy", "soxr"} <= set(native)
    libraries = [file for package in packages(root) for file in package.files or () if ".so" in file.suffixes]
    foreign = [str(file) for file in libraries if Path(file.locate()).read_bytes()[ELF_MACHINE] != AARCH64]
    assert libraries
    assert foreign == []
    say(
        f"{len(tags)} packages, {len(native)} of them native, all of their {len(libraries)} libraries AArch64"
    )


def test_the_trainer_s_libraries_stay_at_home(root: Path) -> None:
    names = {package.name.lower() for package in packages(root)}
    assert names & {"torch", "librosa", "numba", "pandas", "scikit-learn", "onnx", "amqtt", "pytest"} == set()
    say("no torch, no librosa, nothing else of the trainer's or the tests'")


# -- the same events -------------------------------------------------------------------------------------

VARIES = {"boot", "lag_s", "level", "coarse", "fine", "refined", "active"}  # from machine to machine


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.load()


def replayed(command: list[str], recording: Path, variant: Variant) -> list[Event]:
    options = ["--variant", variant, "--start", "2026-11-22T10:00:00Z", "--sensor", SENSOR]
    said = run([*command, "replay", str(recording), *options], **CPU)
    return [json.loads(line) for line in said.splitlines()]


@pytest.mark.parametrize("variant", ["int8", "fp32"])
def test_a_recording_gives_the_same_events(
    root: Path, folder: Path, tagger: Tagger, variant: Variant
) -> None:
    """Law: windows, times and verdicts are the same, every level within 0.01 dB, every probability within the
    bundle's tolerance; the same branches are asked and the same tags active, unless a probability is that
    near to its threshold.
    """
    recording = folder / "street.flac"
    samples = street_scene(duration_s=STREET_S).samples
    soundfile.write(recording, samples, SAMPLE_RATE_HZ, subtype="PCM_16")
    here = replayed([sys.executable, "-m", "edgetag"], recording, variant)
    there = replayed(in_root(root, EDGETAG, shared=folder), recording, variant)
    tolerance = tagger.bundle.manifest.golden.tolerance[variant]
    found = [differences(tagger, *pair, tolerance) for pair in zip(here, there, strict=True)]
    n_values, furthest, furthest_db = (np.array(column) for column in zip(*found, strict=True))
    claim = f"{len(found)} windows of a street: {n_values.sum()} probabilities differ by {furthest.max():g}"
    say(f"{variant}: {claim} at most, tolerance {tolerance:g}, levels by {furthest_db.max():g} dB")
    assert len(found) > 1
    assert furthest.max() <= tolerance
    assert furthest_db.max() <= LEVEL_TOLERANCE_DB


def differences(tagger: Tagger, one: Event, other: Event, tolerance: float) -> tuple[int, float, float]:
    """How many probabilities can be compared, the largest difference of theirs, and of the levels, dB.

    Raises:
        AssertionError: anything else is different.
    """
    assert one.keys() == other.keys()
    assert {k: v for k, v in one.items() if k not in VARIES} == {
        k: other[k] for k in other if k not in VARIES
    }
    fires_at = dict.fromkeys(one["coarse"], tagger.bundle.manifest.cascade.threshold)
    asked_once = set(one["refined"]) ^ set(other["refined"])
    assert asked_once <= close(one["coarse"], fires_at, tolerance)
    p, q = comparable(one, asked_once), comparable(other, asked_once)
    assert p.keys() == q.keys()
    active_once = (set(one["active"]) ^ set(other["active"])) & p.keys()
    assert active_once <= close(p, tagger.thresholds, tolerance)
    levels_db = [abs(one["level"][kind] - other["level"][kind]) for kind in one["level"]]
    return len(p), max(abs(p[id] - q[id]) for id in p), max(levels_db)


def close(probabilities: dict[str, float], thresholds: dict[str, float], tolerance: float) -> set[str]:
    """Tags that another machine may see on the other side of their thresholds."""
    return {id for id, p in probabilities.items() if abs(p - thresholds[id]) <= tolerance}


def comparable(event: Event, asked_once: set[str]) -> dict[str, float]:
    """Probabilities, without those of branches that only one machine has asked."""
    fine = {id: p for id, p in event["fine"].items() if id.partition("-")[0] not in asked_once}
    return event["coarse"] | fine


# -- eight bits -----------------------------------------------------------------------------------------

_OPTIMISE = """
import sys, onnxruntime
from edgetag.tagging.bundle import starter_path
for net in starter_path().glob("*.int8.onnx"):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{sys.argv[1]}/{net.name}"
    onnxruntime.InferenceSession(net, options, providers=["CPUExecutionProvider"])
"""


def layers_in_eight_bits(command: list[str], folder: Path) -> int:
    """Of all nets of the bundle, as ONNX Runtime runs them there."""
    folder.mkdir()
    run([*command, "-c", _OPTIMISE, str(folder)], **CPU)
    nodes = [node for file in folder.glob("*.onnx") for node in onnx.load(file).graph.node]
    return sum(node.op_type in ("QLinearConv", "QGemm") for node in nodes)


def test_what_is_computed_in_eight_bits_here_is_so_there(root: Path, folder: Path) -> None:
    """Law: every layer. ONNX Runtime computes in floats, and says nothing, where types meet that it has no
    kernel for; on arm64 these are others.
    """
    here = layers_in_eight_bits([sys.executable], folder / "here")
    there = layers_in_eight_bits(in_root(root, PYTHON, shared=folder), folder / "there")
    say(f"int8: {there} layers are computed in eight bits, {here} on x86-64")
    assert there == here > 0


# -- a sensor --------------------------------------------------------------------------------------------


@pytest.fixture
def street(root: Path, folder: Path) -> Iterator[SoundServer]:
    """This machine's sound server, with a street played for as long as it may take."""
    add_packages(root, "libasound2-plugins")
    sound = folder / "sound"
    sound.mkdir()
    with SoundServer(sound) as server:
        server.play(street_scene(duration_s=PATIENCE_S).samples, wait=False)
        yield server


def settings(**over: str) -> dict[str, str]:
    """Over those that install.sh has left, by the environment: `mqtt_url`, …"""
    return {f"EDGETAG_{name.upper()}": value for name, value in {"sensor_id": SENSOR, **over}.items()}


@needs_microphone
@needs_broker
def test_the_doctor_finds_it_well(root: Path, folder: Path, street: SoundServer) -> None:
    """Configuration, password, bundle, microphone, outbox, and the broker of deploy/mosquitto, with its TLS
    and its rights. Of the clock it says what the kernel says: a test machine's is not always kept in step.
    Nor is the time that a window takes this machine's: it may be long.
    """
    with Site(folder / "site") as site:
        (folder / "password").write_text(site.password(SENSOR))
        (folder / "password").chmod(0o600)
        over = settings(
            mqtt_url=f"mqtts://localhost:{site.port}",
            mqtt_user=SENSOR,
            mqtt_password_file=str(folder / "password"),
            mqtt_ca_file=site.ca_file,
            window_hop_s="60",
        )
        doctor = in_root(root, EDGETAG, "doctor", "--json", "--config", CONFIGURATION, shared=folder)
        environment = street.environment() | CPU | over | {"STATE_DIRECTORY": str(folder / "state")}
        done = subprocess.run(doctor, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    reports = {report["check"]: report for report in map(json.loads, done.stdout.splitlines())}
    for report in reports.values():
        say(f"doctor: {report['verdict']:7} {report['check']}: {report['finding']}")
    is_synced = kernel_clock_synced()
    verdicts = {check: report["verdict"] for check, report in reports.items()}
    assert verdicts == {
        **{check.name: "ok" for check in CHECKS},
        "clock": "ok" if is_synced else "failed",
    }
    assert done.returncode == (0 if is_synced else NetworkError.exit_code)


@needs_microphone
@needs_broker
def test_it_hears_and_delivers(root: Path, folder: Path, street: SoundServer) -> None:
    """READY after its first window, valid messages at the broker, and a good end. It is late, at this speed:
    what it leaves out it counts.
    """
    with Mosquitto(folder) as broker:
        broker.subscribe("reader")
        environment = street.environment() | CPU | settings(mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
        options = "--config", CONFIGURATION, "--variant", "int8", "--format", "json"
        under = tuple(in_root(root, shared=folder))
        began_s = time.time()
        with Sensor(folder / "sensor", environment, *options, under=under, python=PYTHON) as sensor:
            has_heard = sensor.wait_for(lambda: len(sensor.messages("tags")) >= N_WINDOWS, PATIENCE_S)
            code, _ = sensor.terminate()
        messages = broker.take_until("reader", "stopped")
    assert has_heard, sensor.logged
    assert code == 0, sensor.logged
    (ready_s,) = [line.at_s for line in sensor.notified if line.text == "READY=1"]
    tags = [message.payload for message in messages if message.kind == "tags"]
    for message in messages:
        jsonschema.validate(message.payload, json_schema(message.kind))
    assert len(tags) >= N_WINDOWS
    assert {event["verdict"] for event in tags} == {"tagged"}
    claim = f"READY {ready_s - began_s:.0f} s after its start, {len(tags)} windows at the broker, a good end"
    say(f"run: {claim}")
