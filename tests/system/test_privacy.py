"""What the daemon hears stays in its memory: what leaves it, by file or by wire, is what it says of it.

Its whole life is traced, from the first import to the last farewell, with all its threads, libraries and
children: which files are changed, to whom it speaks, and every byte that it writes anywhere.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_S
from edgetag.demo.scene import street_scene
from system.sensor import WAIT_S, Sensor
from system.sound_server import SoundServer, needs_sound_server
from system.test_mosquitto import SENSOR, Mosquitto, Received
from system.test_mosquitto import pytestmark as needs_mosquitto
from system.trace import Trace, needs_strace

pytestmark = needs_strace

HOP_S, N_WINDOWS = 2.5, 3
STREET_S = WINDOW_S + HOP_S * N_WINDOWS + 20

SMALL_BYTES = 10_000  # of whatever cannot be read: five seconds of a speech codec's 16 kbit/s
WORD_BYTES = 200  # of text without a space or a mark in it; a hash has 64
MQTT_BYTES = 200  # of a message: topic, properties, frame
CONNECTION_BYTES = 1_000


# -- laws ------------------------------------------------------------------------------------------------


def changed_outside(trace: Trace, *allowed: Path) -> list[str]:
    """Files that were changed and lie in none of these places; devices are no files, nor is what the kernel
    keeps of a process.
    """
    files = sorted(path for path in trace.changed if not ("<char " in path or path.startswith("/proc/")))
    return [path for path in files if not any(Path(path).is_relative_to(place) for place in allowed)]


def unreadable(trace: Trace, *allowed: Path) -> list[str]:
    """Where more was written than a little that is no text for people, as audio is not: neither raw nor
    compressed, nor in hexadecimal digits or base 64.
    """
    places = [where for where, content in trace.written.items() if not _is_readable(bytes(content))]
    return [where for where in places if not any(Path(where).is_relative_to(place) for place in allowed)]


def _is_readable(content: bytes) -> bool:
    odd = re.sub(rb"[\t\n\r -~\0]+", b"", content)  # pages of a data base are filled up with zeros
    long_words = re.findall(rb"[\w+/=]{%d,}" % WORD_BYTES, content)
    return len(content) < SMALL_BYTES or not (len(odd) > 0.1 * len(content) or long_words)


def strangers(trace: Trace, *friends: str) -> set[str]:
    """To whom else it has spoken; not to itself, as paho does to wake up its own thread."""
    return trace.called - trace.answered - set(friends)


# -- the daemon ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    """Of a daemon: what it did, and what a subscriber has had of it."""

    trace: Trace
    sensor: Sensor
    sound: Path
    broker: Mosquitto
    received: list[Received]
    code: int | None


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """It starts, hears a few windows of a street, publishes them, and is stopped."""
    folder = tmp_path_factory.mktemp("p").resolve()
    sound = folder / "sound"
    sound.mkdir()
    trace = Trace(folder / "trace")
    with Mosquitto(folder) as broker, SoundServer(sound) as server:
        broker.subscribe("witness")
        options = ["--mqtt", f"mqtt://127.0.0.1:{broker.port}", "--sensor", SENSOR]
        options += ["--format", "json", "--hop", str(HOP_S)]
        with Sensor(folder / "sensor", server.environment(), *options, under=trace.command()) as sensor:
            server.play(street_scene().samples[: round(STREET_S * SAMPLE_RATE_HZ)], wait=False)
            heard = sensor.wait_for(lambda: len(sensor.messages("tags")) >= N_WINDOWS, 2 * WAIT_S)
            assert heard, sensor.logged
            code, _ = sensor.terminate()
            trace.read(sensor.process.pid)
        yield Life(trace, sensor, sound, broker, broker.take_until("witness", "stopped"), code)


@pytest.fixture
def libraries(life: Life) -> tuple[Path, ...]:
    """What PortAudio's libraries write: PulseAudio's, 256 random bytes by which a client is known; JACK's,
    which is asked whether there is a JACK server, an empty data base in shared memory.
    """
    return life.sound / "cookie", Path(f"/dev/shm/jack_db-{os.getuid()}")


def live(test: Callable[..., None]) -> Callable[..., None]:
    """It needs a sound server and a broker."""
    return needs_sound_server(needs_mosquitto(test))


@live
def test_a_street_was_heard_and_the_trace_knows_what_was_said_of_it(life: Life) -> None:
    """Every event that the subscriber has is in the bytes that were seen on their way to the broker."""
    assert life.code == 0, life.sensor.logged
    tags = [message.payload for message in life.received if message.kind == "tags"]
    assert len(tags) >= N_WINDOWS
    assert {event["verdict"] for event in tags} == {"tagged"}
    sent = b"".join(content for where, content in life.trace.written.items() if where.startswith("TCP:"))
    assert sent.count(b'"edgetag.tags/1"') == len(tags)
    assert str(life.sensor.state / "bench.json") in life.trace.changed


@live
def test_nothing_but_its_state_is_written(life: Life, libraries: tuple[Path, ...]) -> None:
    assert changed_outside(life.trace, life.sensor.state, *libraries) == []
    assert life.trace.hidden == set()


@live
def test_what_is_written_can_be_read_by_people(life: Life, libraries: tuple[Path, ...]) -> None:
    """Messages, findings, log lines: state directory, broker, pipes and whatever else there is."""
    assert unreadable(life.trace, *libraries) == []
    left = [file for file in life.sensor.state.rglob("*") if file.is_file()]
    assert left
    assert [file for file in left if not _is_readable(file.read_bytes())] == []


@live
def test_nobody_is_spoken_to_but_broker_sound_server_and_service_manager(life: Life) -> None:
    broker = f"127.0.0.1:{life.broker.port}"
    assert strangers(life.trace, broker, str(life.sound / "socket"), str(life.sensor.notify_socket)) == set()
    assert broker in life.trace.called


@live
def test_the_broker_is_sent_the_messages_and_no_more(life: Life) -> None:
    """What a subscriber has and what went over the wire differ by what MQTT adds."""
    sent = sum(len(content) for where, content in life.trace.written.items() if where.startswith("TCP:"))
    said = sum(len(json.dumps(message.payload, separators=(",", ":"))) for message in life.received)
    assert sent < said + MQTT_BYTES * len(life.received) + CONNECTION_BYTES


# -- the laws can be broken ------------------------------------------------------------------------------

_AUDIO = """
import array, base64, math, os, socket, subprocess, sys, zlib
audio = array.array("h", (int(9000 * math.sin(0.3 * n)) for n in range(9000))).tobytes()
state, elsewhere = sys.argv[1:]
stranger = ("127.0.0.1", 9)
"""


@pytest.mark.parametrize(
    ("crime", "law"),
    [
        ("open(elsewhere, 'wb')", "changed"),
        ("os.open(elsewhere, os.O_RDWR | os.O_CREAT)", "changed"),
        ("os.mkdir(elsewhere)", "changed"),
        ("open(f'{state}/x', 'wb'); os.rename(f'{state}/x', elsewhere)", "changed"),
        ("os.symlink(sys.executable, elsewhere)", "changed"),
        ("subprocess.run(['touch', elsewhere])", "changed"),
        ("open(f'{state}/x', 'wb').write(audio)", "unreadable"),
        ("open(f'{state}/x', 'wb').write(zlib.compress(os.urandom(11_000)))", "unreadable"),
        ("open(f'{state}/x', 'wb').write(base64.b64encode(audio))", "unreadable"),
        ("open(f'{state}/x', 'w').write(audio.hex())", "unreadable"),
        ("os.writev(1, [audio[:9000], audio[9000:]])", "unreadable"),
        ("os.pwrite(os.open(f'{state}/x', os.O_WRONLY | os.O_CREAT), audio, 7)", "unreadable"),
        ("subprocess.run(['cat'], input=audio)", "unreadable"),
        ("a, b = socket.socketpair(); a.sendmsg([audio])", "unreadable"),
        ("os.sendfile(1, os.open(sys.executable, os.O_RDONLY), 0, 9)", "hidden"),
        ("socket.socket(type=socket.SOCK_DGRAM).sendto(b'', stranger)", "called"),
        ("socket.socket(type=socket.SOCK_DGRAM).connect(stranger)", "called"),
        ("open(f'{state}/x', 'w').write('{\"edgetag\": 1.234}\\n' * 9000)", ""),
        ("open('/dev/null', 'w').write('edgetag ' * 9000)", ""),
        ("open(elsewhere, 'rb') if os.path.exists(elsewhere) else os.stat(state)", ""),
    ],
)
def test_a_leak_is_found(tmp_path: Path, crime: str, law: str) -> None:
    """By the law that it breaks, and by no other."""
    state = tmp_path.resolve() / "state"
    state.mkdir()
    trace = Trace(tmp_path / "trace")
    program = [sys.executable, "-I", "-S", "-c", _AUDIO + crime, str(state), str(tmp_path / "leak")]
    with subprocess.Popen([*trace.command(), *program], stdout=subprocess.DEVNULL) as process:
        assert process.wait(WAIT_S) == 0
    trace.read(process.pid)
    broken = {
        "changed": changed_outside(trace, state),
        "unreadable": unreadable(trace),
        "hidden": trace.hidden,
        "called": strangers(trace),
    }
    assert {name for name, found in broken.items() if found} == ({law} if law else set())
