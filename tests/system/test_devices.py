"""`edgetag devices` against a real sound server, through the real PortAudio."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgetag.capture.devices import NoDeviceError
from fakes_cli import refused
from system.sound_server import SoundServer, needs_sound_server

pytestmark = needs_sound_server

RATE_HZ = 44_100


@pytest.fixture
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoundServer]:
    with SoundServer(tmp_path_factory.mktemp("sound"), rate_hz=RATE_HZ) as server:
        yield server


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """A minute at −12 dBFS."""
    times_s = np.arange(60 * RATE_HZ) / RATE_HZ
    soundfile.write(tmp_path / "tone.wav", 0.25 * np.sin(2 * np.pi * 440 * times_s), RATE_HZ, "FLOAT")
    return tmp_path / "tone.wav"


def edgetag(street: SoundServer, *arguments: str, patience_s: float = 8) -> subprocess.Popen[str]:
    code = f"import edgetag.devices_cli as d, edgetag.cli as c; d.DEADLINE_S = {patience_s}; c.main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "devices", *arguments],
        env=street.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def listed(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What it says in JSON; nothing else is said."""
    done = ended(process)
    assert (done.returncode, done.stderr) == (0, "")
    entries: list[dict[str, Any]] = json.loads(done.stdout)["devices"]
    assert {entry["device"]: entry["default"] for entry in entries} == {"pulse": False, "default": True}
    return entries


def test_a_street_is_heard_or_silent(street: SoundServer, tone: Path) -> None:
    """Only zeros while nothing plays; then a signal, of the level that is played."""
    for entry in listed(edgetag(street, "--json", "--seconds", "0.3")):
        assert (entry["state"], entry["peak_dbfs"]) == ("digital silence", None)
        assert RATE_HZ in entry["rates_hz"]
    street.play(tone, wait=False)
    for entry in listed(edgetag(street, "--json")):
        assert (entry["state"], entry["peak_dbfs"]) == ("signal", pytest.approx(-12, abs=0.2))


def test_the_table_is_for_people(street: SoundServer, tone: Path) -> None:
    """One row a device, without what ALSA says of all that it tried."""
    street.play(tone, wait=False)
    done = ended(edgetag(street))
    assert (done.returncode, done.stderr) == (0, "")
    header, pulse, default = done.stdout.splitlines()[:3]
    assert header.split() == ["device", "name", "API", "channels", "kHz", "hears"]
    assert pulse.startswith("pulse ")
    assert default.startswith("default * ")
    assert "signal, peak -12" in default


def test_a_microphone_that_is_pulled_out_cannot_be_opened(street: SoundServer) -> None:
    """The sound server still offers its name. Plugged in again it is heard again."""
    street.unload_sink()
    assert {entry["state"] for entry in listed(edgetag(street, "--json"))} == {"cannot be opened"}
    street.load_sink()
    assert {entry["state"] for entry in listed(edgetag(street, "--json"))} == {"digital silence"}


def test_without_a_sound_server_there_is_no_device(street: SoundServer) -> None:
    """Nothing to list is no error; the server comes back, and so do its devices."""
    street.kill()
    done = ended(edgetag(street))
    assert done.returncode == 0
    assert done.stdout.startswith("There is no input device.")
    street.start()
    assert len(listed(edgetag(street, "--json", "--seconds", "0.1"))) == 2


def test_a_hanging_sound_server_does_not_hang_the_list(street: SoundServer) -> None:
    """A sentence, and no answer that is none."""
    street.stop()
    done = ended(edgetag(street, patience_s=2))
    refused(done, NoDeviceError.exit_code, "does a sound server hang?")


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_hanging_read_does_not_hang_the_list(street: SoundServer, interrupted: bool) -> None:
    """What gives no answer is reported, or Ctrl-C ends it; nothing waits for it, nothing crashes."""
    process = edgetag(street, "--json", "--seconds", "3", patience_s=2)
    street.wait_for_listener()
    street.stop()
    if interrupted:
        process.send_signal(signal.SIGINT)
        assert ended(process).returncode == 130
    else:
        pulse, default = listed(process)
        assert (pulse["state"], pulse["reason"]) == ("cannot be read", "no answer within 5 s")
        assert (default["state"], default["reason"]) == ("cannot be opened", "no answer within 5 s")
