"""The demonstration, as `make demo` runs it."""

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from structlog.testing import capture_logs

from edgetag.contract.errors import InputError, OutputError
from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag.delivery.address import BrokerAddress
from edgetag.demo.scene import street_scene
from edgetag.demo.show import save_street
from edgetag.demo.streets import SENSORS, Streets
from edgetag.tagging.tagger import Tagger
from fakes_dashboard import Running


def test_the_demo_ends_by_itself_with_a_summary() -> None:
    """Eleven windows of a minute, each received over MQTT and shown; one line of summary, exit code 0."""
    done = subprocess.run(
        [sys.executable, "-m", "edgetag", "demo"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    *rows, summary = done.stdout.splitlines()
    assert len([row for row in rows if re.match(r"\d\d:\d\d:\d\d ", row)]) == 11
    assert re.match(
        r"11 windows of a synthetic 60-s street published to mqtt://127\.0\.0\.1:\d+ and received", summary
    )


def test_on_a_dashboard_streets_go_on_until_a_signal() -> None:
    """Three sensors, minutes of whose hour have passed already, with levels, tags and sounds; exit code 0."""

    with Running("demo", "--dashboard", "--port", 0) as demo:
        snapshot = demo.until(
            lambda seen: (
                len(seen.sensors) == 3 and all(row.level_db for row in seen.sensors) and bool(seen.sounds)
            )
        )
        assert sorted(row.id for row in snapshot.sensors) == ["demo-1", "demo-2", "demo-3"]
        assert {row.state for row in snapshot.sensors} == {"online"}
        assert snapshot.notes.trouble == ""
        assert demo.ended(signal.SIGINT) == (0, "")


def test_the_street_is_saved_as_it_was_heard(tmp_path: Path) -> None:
    """The same samples, to a 16-bit step."""
    save_street(tmp_path / "street.flac")
    samples, rate_hz = soundfile.read(tmp_path / "street.flac")
    assert rate_hz == SAMPLE_RATE_HZ
    np.testing.assert_allclose(samples, street_scene().samples, atol=2**-15)


@pytest.mark.parametrize(
    ("file", "error", "said"),
    [("street.mp4", InputError, "neither .wav nor .flac"), ("nowhere/street.wav", OutputError, "written")],
)
def test_a_street_that_cannot_be_saved(tmp_path: Path, file: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        save_street(tmp_path / file)


def test_bundles_are_loaded_one_after_the_other() -> None:
    """In the thread that enters: the process crashes where two are the first to read a bundle's card."""
    loading: list[threading.Thread] = []

    def load() -> Tagger:
        loading.append(threading.current_thread())
        return Tagger.load()

    with capture_logs() as logs, Streets(BrokerAddress("127.0.0.1", 1), load):
        assert loading == [threading.current_thread()] * len(SENSORS)
    assert {log["event"] for log in logs} <= {"demo.sensor_ended"}  # there is no broker
