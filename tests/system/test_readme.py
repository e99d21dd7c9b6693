"""Every command of the READMEs is run as it stands, in one folder, from first to last.

```
make demo                     needs another machine, the network or hours: where that is tested is named
edgetag replay street.flac    runs to its end
edgetag run --mic             goes on for ever: ended as by Ctrl-C, once it has said something
```
What is the test's: the folder, the port of `mqtt://localhost` (where a sensor publishes), the microphone.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import pytest
import soundfile

from edgetag.demo.scene import street_scene
from edgetag.demo.show import save_street
from edgetag.tagging.bundle import starter_path
from edgetag.tagging.store import BundleStore
from fakes_bundle import write_bundle
from system.sound_server import SoundServer, missing
from system.test_mosquitto import Mosquitto
from system.test_mosquitto import pytestmark as needs_mosquitto

pytestmark = [needs_mosquitto, pytest.mark.skipif(missing() is not None, reason=missing() or "")]

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
READMES = ("README.md", "edge/README.md")
WAIT_S = 120
STREET_S = 25

ELSEWHERE = {
    "make ": "conftest.py",  # the whole of it is run by one of them
    "deploy/provision.sh ": "system/test_provision.py",
    "scp ": "system/test_installation.py",
    "tar -xf ": "system/test_installation.py",
    "sudo ": "system/test_installation.py",
    "pip install ": "train/test_cli.py",
    "edgetag fetch ": "train/test_fetch.py",
    "edgetag train ": "train/test_cli.py",
    "edgetag replay archive --cluster ": "system/test_cluster.py",
    "edgetag watch mqtts://broker.example ": "system/test_watch.py",
    "python deploy/examples/subscriber.py ": "system/test_examples.py",
}
"""How a line begins that needs another machine, the network or hours; where that is done."""

FOR_EVER = (
    "edgetag run",
    "edgetag watch",
    "edgetag dashboard",
    "edgetag demo --dashboard",
    "mosquitto_sub",
    "EDGETAG_",
)
JUDGES = ("edgetag doctor",)
"""What they end with says how the machine is."""
ENDED_WELL = (0, 130, -signal.SIGINT, 27)  # 27: mosquitto_sub, after -W
MORE = {"edgetag dashboard ": " --port 0", "edgetag demo --dashboard": " --port 0"}
"""What a line is given besides, so as not to be in another test's way."""


class Ended(NamedTuple):
    """A command's end."""

    code: int
    out: str
    err: str


def lines_of(readme: str) -> list[str]:
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", (ROOT / readme).read_text("utf-8"), re.M | re.S)
    lines = [re.sub(r"(^|\s+)# .*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def is_here(line: str) -> bool:
    return not line.startswith(tuple(ELSEWHERE))


LINES = {readme: lines_of(readme) for readme in READMES}
TO_THE_END = [
    (readme, line)
    for readme, lines in LINES.items()
    for line in lines
    if is_here(line) and not line.startswith(FOR_EVER)
]
ENDLESS = [
    (readme, line)
    for readme, lines in LINES.items()
    for line in lines
    if is_here(line) and line.startswith(FOR_EVER)
]


class Place:
    """The folder in which everything is run, with what its lines speak of."""

    def __init__(self, folder: Path, broker: Mosquitto, street: SoundServer) -> None:
        self.folder, self._broker, self._street = folder, broker, street
        scene = street_scene(seed=3).samples[: STREET_S * 44_100]
        soundfile.write(folder / "street.wav", scene, 44_100)
        (folder / "edgetag.yaml").write_text((ROOT / "deploy" / "edgetag.yaml").read_text())
        (folder / "deploy").symlink_to(ROOT / "deploy")
        write_bundle(folder / "my-bundle", [0.2] * 37)
        BundleStore(folder / "state" / "bundles").install(starter_path())

    def start(self, line: str, **environment: str) -> "subprocess.Popen[str]":
        line += next((more for begin, more in MORE.items() if line.startswith(begin)), "")
        line = line.replace("mqtt://localhost", f"mqtt://localhost:{self._broker.port}")
        line = re.sub(r"^mosquitto_sub", f"mosquitto_sub -p {self._broker.port}", line)
        return subprocess.Popen(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self._street.environment()
            | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "STATE_DIRECTORY": str(self.folder / "state"),
                "XDG_CACHE_HOME": str(self.folder / "cache"),
            }
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, line: str) -> Ended:
        process = self.start(line)
        out, err = process.communicate(timeout=WAIT_S)
        return Ended(process.returncode, out, err)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with (
        Mosquitto(tmp_path_factory.mktemp("broker")) as broker,
        SoundServer(tmp_path_factory.mktemp("s")) as street,
    ):
        yield Place(tmp_path_factory.mktemp("place"), broker, street)


def test_what_is_run_elsewhere_is_there() -> None:
    """Each beginning is some line's, and the file is there."""
    for begin, file in ELSEWHERE.items():
        assert any(line.startswith(begin) for lines in LINES.values() for line in lines), begin
        assert (TESTS / file).exists()


@pytest.mark.parametrize("readme", READMES)
def test_to_the_end(place: Place, readme: str) -> None:
    """In the order of the text, since one makes what the next takes; none complains."""
    for _, line in (found for found in TO_THE_END if found[0] == readme):
        done = place.run(line)
        assert "Traceback" not in done.err, line
        assert done.code == 0 or line.startswith(JUDGES), f"{line}\n{done.err}"


def test_the_python_example(place: Place) -> None:
    """A line for each window, with names in it."""
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    save_street(place.folder / "street.flac")
    done = place.run(f"python -c {shlex.quote(example)}")
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == 11
    assert "human-voice" in done.out


def test_for_ever(place: Place) -> None:
    """All at once: each says something of the street, and ends as it should when Ctrl-C is pressed."""
    with ExitStack() as stack:
        running = [
            (line, stack.enter_context(place.start(line, **_as_another(place, k))))
            for k, (_, line) in enumerate(ENDLESS)
        ]
        said = {line: threading.Event() for line, _ in running}
        for line, process in running:
            stack.callback(_kill, process)
            for stream in (process.stdout, process.stderr):
                threading.Thread(target=_drain, args=(stream, said[line]), daemon=True).start()
        deadline_s = time.monotonic() + WAIT_S
        while not all(event.is_set() for event in said.values()):
            silent = [line for line, event in said.items() if not event.is_set()]
            assert time.monotonic() < deadline_s, f"they said nothing: {silent}"
            assert place.run("edgetag replay street.wav --mqtt mqtt://localhost").code == 0
        for line, process in running:
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(WAIT_S) in ENDED_WELL, line


def _as_another(place: Place, number: int) -> dict[str, str]:
    """A sensor of its own name and state; two of one would throw each other out."""
    return {"STATE_DIRECTORY": str(place.folder / f"state-{number}"), "EDGETAG_SENSOR_ID": f"lamp-{number}"}


def _drain(stream: IO[str], said: threading.Event) -> None:
    for line in stream:
        assert "Traceback" not in line
        said.set()


def _kill(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
